/* What sse_source.c knows of itself, its lateness above all: part of it, included once. */

enum { BUCKET_US = 10, BUCKETS = 200000 };

static struct {
    int64_t started_ns, first_request_ns, cpu_zero_us;
    uint64_t requests, finished, tokens, stalls, connections, bytes_in, over_1ms, aborted;
    int64_t max_late_ns;
    long open_streams, most_streams;
    uint32_t late[BUCKETS + 1];
} tally;

static int64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int64_t cpu_us(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000LL + used.ru_utime.tv_usec + used.ru_stime.tv_usec;
}

static void note_late(int64_t due_ns, int64_t at_ns) {
    int64_t late_ns = at_ns > due_ns ? at_ns - due_ns : 0;
    int64_t bucket = late_ns / 1000 / BUCKET_US;
    tally.late[bucket < BUCKETS ? bucket : BUCKETS]++;
    tally.over_1ms += late_ns > 1000000;
    if (late_ns > tally.max_late_ns) tally.max_late_ns = late_ns;
    tally.tokens++;
}

static double late_us(double share) {
    uint64_t all = 0, seen = 0;
    for (int k = 0; k <= BUCKETS; k++) all += tally.late[k];
    for (int k = 0; k <= BUCKETS && all; k++)
        if ((seen += tally.late[k]) >= share * all) return (k + 1) * (double)BUCKET_US;
    return 0;
}

static int write_log(char *out, size_t size) {
    return snprintf(
        out, size,
        "{\"requests\": %lu, \"finished\": %lu, \"aborted\": %lu, \"connections\": %lu, \"tokens\": %lu, \"stalls\": %lu, "
        "\"late_p50_us\": %.0f, \"late_p99_us\": %.0f, \"late_p999_us\": %.0f, \"late_max_us\": %.1f, "
        "\"late_over_1ms\": %lu, \"bytes_in\": %lu, \"open_streams\": %ld, \"most_streams\": %ld, "
        "\"first_request_ns\": %ld, \"seconds\": %.3f, \"cpu_s\": %.3f}\n",
        tally.requests, tally.finished, tally.aborted, tally.connections, tally.tokens, tally.stalls, late_us(0.5),
        late_us(0.99), late_us(0.999), tally.max_late_ns / 1e3, tally.over_1ms, tally.bytes_in, tally.open_streams,
        tally.most_streams, tally.first_request_ns, (now_ns() - tally.started_ns) / 1e9,
        (cpu_us() - tally.cpu_zero_us) / 1e6);
}

static void reset(void) {
    long open = tally.open_streams;
    memset(&tally, 0, sizeof tally);
    tally.started_ns = now_ns();
    tally.cpu_zero_us = cpu_us();
    tally.open_streams = tally.most_streams = open;
}
