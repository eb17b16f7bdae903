/* A cheap source of server-sent events: answers chat and text completions as a model server would, at a pace given by
 * flags, and logs its own lateness. One thread, epoll, loopback only; for benchmarks of clients.
 *
 *   cc -O2 -o sse_source sse_source.c && ./sse_source --ttft-ms 200 --itl-ms 20 --tokens 128
 *
 * It prints its URL, serves until SIGTERM, and then prints its log, a JSON object, which GET /log gives at any time and
 * GET /reset starts anew. The first token is due TTFT after the last byte of its request was read, rounded up to a
 * quantum (0.25 ms), so that tokens leave in groups, as those of one step of a model server do; the next ones are due
 * ITL after each other. Lateness is the moment after the write less that. A write not taken whole is a stall.
 *
 * A request's middle is dropped inside the kernel: nothing but its first and last bytes is looked at, for max_tokens and
 * stream. Nothing here has a tokenizer: token ids are counted in small bodies, else a prompt is a quarter of its bytes.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "sse_log.h"
#include "sse_text.h"

enum { HEAD_MAX = 16384, EDGE = 2048 };

typedef enum { READ_HEAD, READ_BODY, STREAMING } phase;

typedef struct conn {
    int fd;
    phase phase;
    shape shape;
    long heap_at; /* -1: not waiting for a token */
    int64_t due_ns;
    uint32_t sent, total, variant;
    uint64_t body_length, body_read;
    unsigned long prompt_tokens;
    int64_t asked_ns; /* the head was read */
    size_t head_length;
    char *head; /* HEAD_MAX bytes while a request's head comes in */
    char first[EDGE], last[EDGE];
    char *held; /* what the kernel did not take yet */
    size_t held_length, held_size;
    int64_t held_due_ns;
    int ended; /* the answer is whole; with `held` empty the next request may come */
    struct conn *next_dead;
} conn;

static int64_t ttft_ns = 200000000, itl_ns = 20000000, quantum_ns = 250000;
static uint32_t fixed_tokens;
static uint64_t notable_bytes; /* the first request that is logged has at least so many; probes have fewer */
static const char *model = "fake-model";
static int poll_fd, timer_fd, listen_fd;
static conn **heap;
static long heap_count, heap_size;
static conn *dead_conns;
static int64_t armed_ns;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *grab(void *old, size_t size) {
    void *got = realloc(old, size);
    if (!got) die("memory");
    return got;
}

/* ---- the heap of what is due, the earliest first */

static void place(conn *c, long at) {
    heap[at] = c;
    c->heap_at = at;
}

static void sift_up(conn *c, long at) {
    while (at > 0 && heap[(at - 1) / 2]->due_ns > c->due_ns) {
        place(heap[(at - 1) / 2], at);
        at = (at - 1) / 2;
    }
    place(c, at);
}

static void sift_down(conn *c, long at) {
    for (;;) {
        long child = 2 * at + 1;
        if (child >= heap_count) break;
        if (child + 1 < heap_count && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (heap[child]->due_ns >= c->due_ns) break;
        place(heap[child], at);
        at = child;
    }
    place(c, at);
}

static void heap_add(conn *c) {
    if (heap_count == heap_size) {
        heap_size = heap_size ? 2 * heap_size : 1024;
        heap = grab(heap, heap_size * sizeof *heap);
    }
    sift_up(c, heap_count++);
}

static void heap_remove(conn *c) {
    if (c->heap_at < 0) return;
    long at = c->heap_at;
    conn *moved = heap[--heap_count];
    c->heap_at = -1;
    if (moved == c) return;
    sift_down(moved, at);
    sift_up(moved, moved->heap_at);
}

/* ---- connections */

static void watch(conn *c, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poll_fd, how, c->fd, &event) < 0) die("epoll_ctl");
}

static void close_conn(conn *c) {
    if (c->fd < 0) return;
    heap_remove(c);
    if (c->phase == STREAMING) {
        tally.open_streams--;
        if (!c->ended) tally.aborted++;
    }
    close(c->fd);
    c->fd = -1;
    free(c->head);
    free(c->held);
    c->next_dead = dead_conns; /* events of this round may still name it */
    dead_conns = c;
}

static void bury(void) {
    while (dead_conns) {
        conn *c = dead_conns;
        dead_conns = c->next_dead;
        free(c);
    }
}

static void await_request(conn *c) {
    if (c->phase == STREAMING) {
        tally.open_streams--;
        tally.finished++;
    }
    c->phase = READ_HEAD;
    c->head_length = 0;
    c->ended = 0;
}

static void accept_all(void) {
    for (;;) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        conn *c = memset(grab(NULL, sizeof *c), 0, sizeof *c);
        c->fd = fd;
        c->heap_at = -1;
        tally.connections++;
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
    }
}

/* ---- writing */

/* Whether the connection lives on. */
static int put(conn *c, const char *data, size_t length, int64_t due_ns) {
    ssize_t took = 0;
    if (!c->held_length) {
        took = send(c->fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (took < 0) {
            if (errno != EAGAIN && errno != EWOULDBLOCK) {
                close_conn(c);
                return 0;
            }
            took = 0;
        }
        if ((size_t)took == length) return 1;
        tally.stalls++;
        c->held_due_ns = due_ns;
        watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    size_t rest = length - took;
    if (c->held_length + rest > c->held_size) {
        c->held_size = 2 * (c->held_length + rest);
        c->held = grab(c->held, c->held_size);
    }
    memcpy(c->held + c->held_length, data + took, rest);
    c->held_length += rest;
    return 1;
}

static void put_held(conn *c) {
    ssize_t took = send(c->fd, c->held, c->held_length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (took < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK) close_conn(c);
        return;
    }
    c->held_length -= took;
    memmove(c->held, c->held + took, c->held_length);
    if (c->held_length) return;
    if (c->held_due_ns) note_late(c->held_due_ns, now_ns());
    watch(c, EPOLLIN, EPOLL_CTL_MOD);
    if (c->ended) await_request(c);
}

static void emit(conn *c) {
    static char joined[8 * PIECE_MAX];
    int64_t due_ns = c->due_ns;
    const char *piece = pieces[c->shape][(c->variant + c->sent * 7) % VARIANTS];
    size_t length = piece_length[c->shape];
    int first = !c->sent, last = ++c->sent == c->total;
    if (first || last) { /* what comes with a token leaves with it */
        size_t joined_length = 0;
        if (first) {
            memcpy(joined, opening[c->shape], opening_length[c->shape]);
            joined_length = opening_length[c->shape];
        }
        memcpy(joined + joined_length, piece, length);
        joined_length += length;
        if (last) joined_length += closing(c->shape, c->prompt_tokens, c->total, joined + joined_length, sizeof joined - joined_length);
        piece = joined;
        length = joined_length;
    }
    int was_held = c->held_length > 0;
    if (!put(c, piece, length, due_ns)) return;
    if (!c->held_length) note_late(due_ns, now_ns());
    else if (was_held) tally.tokens++; /* behind one that stalled: the stall's own lateness stands for it */
    if (!last) {
        c->due_ns += itl_ns;
        sift_down(c, c->heap_at);
        return;
    }
    heap_remove(c);
    c->ended = 1;
    if (!c->held_length) await_request(c);
}

/* ---- requests */

static void reply(conn *c, int status, const char *body) {
    static char out[8192];
    int length = snprintf(out, sizeof out, "HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                          status, status == 200 ? "OK" : "No", strlen(body), body);
    c->ended = 1;
    if (put(c, out, length, 0) && !c->held_length) await_request(c);
}

static void answer(conn *c) {
    static char text[2 * EDGE + 2];
    static uint32_t variant;
    size_t first = c->body_length < EDGE ? c->body_length : EDGE;
    size_t last = c->body_length - first < EDGE ? c->body_length - first : EDGE;
    memcpy(text, c->first, first);
    memcpy(text + first, c->last + EDGE - last, last);
    text[first + last] = 0;
    for (size_t k = 0; k < first + last; k++)
        if (!text[k]) text[k] = ' ';
    long tokens = fixed_tokens ? fixed_tokens : wanted_tokens(text);
    c->total = tokens > 0 && tokens < 10000000 ? tokens : 128;
    unsigned long ids = c->body_length <= 2 * EDGE ? count_ids(text) : 0;
    c->prompt_tokens = ids ? ids : c->body_length / 4;
    tally.requests++;
    if (!wants_stream(text)) {
        char body[1024];
        unsigned long prompt = c->prompt_tokens;
        snprintf(body, sizeof body,
                 "%s\"choices\":[{\"index\":0,%s,\"finish_reason\":\"length\"}],"
                 "\"usage\":{\"prompt_tokens\":%lu,\"completion_tokens\":%u,\"total_tokens\":%lu}}", object_head[c->shape],
                 c->shape == CHAT ? "\"message\":{\"role\":\"assistant\",\"content\":\"w\"}" : "\"text\":\"w\"", prompt,
                 c->total, prompt + c->total);
        reply(c, 200, body);
        return;
    }
    c->phase = STREAMING;
    if (!tally.first_request_ns && c->body_length >= notable_bytes) tally.first_request_ns = c->asked_ns;
    if (++tally.open_streams > tally.most_streams) tally.most_streams = tally.open_streams;
    c->sent = 0;
    c->variant = variant += 13;
    c->due_ns = ((now_ns() + ttft_ns) / quantum_ns + 1) * quantum_ns;
    heap_add(c);
}

/* Keep the body's first and last bytes. */
static void take_body(conn *c, const char *data, size_t length) {
    uint64_t from = c->body_read, to = from + length;
    if (from < EDGE) memcpy(c->first + from, data, (to < EDGE ? to : EDGE) - from);
    uint64_t tail = c->body_length > EDGE ? c->body_length - EDGE : 0;
    if (to > tail) {
        uint64_t begin = from > tail ? from : tail;
        /* `last` is aligned to its end */
        memcpy(c->last + EDGE - (c->body_length - begin), data + (begin - from), to - begin);
    }
    c->body_read = to;
    tally.bytes_in += length;
}

/* Whether the connection lives on and has a whole head. */
static int understand(conn *c, char *head, char *body, size_t rest) {
    if (!strncmp(head, "GET ", 4)) {
        char out[2048];
        if (!strncmp(head + 4, "/log ", 5)) {
            write_log(out, sizeof out);
            reply(c, 200, out);
        } else if (!strncmp(head + 4, "/reset ", 7)) {
            reset();
            reply(c, 200, "{}");
        } else if (!strncmp(head + 4, "/health ", 8)) {
            reply(c, 200, "{}");
        } else if (!strncmp(head + 4, "/v1/models ", 11)) {
            snprintf(out, sizeof out,
                     "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"owned_by\":\"bench\","
                     "\"max_model_len\":1048576}]}", model);
            reply(c, 200, out);
        } else {
            reply(c, 404, "{\"error\":{\"message\":\"no such page\"}}");
        }
        return 0;
    }
    const char *length = strcasestr(head, "\r\ncontent-length:");
    if (!length) {
        reply(c, 411, "{\"error\":{\"message\":\"send the length\"}}");
        return 0;
    }
    c->asked_ns = now_ns();
    c->shape = !strstr(head, "completions ") ? OTHER : strstr(head, "/chat/") ? CHAT : TEXT;
    c->body_length = strtoull(length + 17, NULL, 10);
    c->body_read = 0;
    c->phase = READ_BODY;
    if (rest > c->body_length) return close_conn(c), 0; /* nobody pipelines */
    take_body(c, body, rest);
    return 1;
}

static void hear(conn *c) {
    static char scratch[65536];
    if (c->phase == STREAMING) {
        ssize_t got = recv(c->fd, scratch, sizeof scratch, MSG_DONTWAIT);
        if (got >= 0 || (errno != EAGAIN && errno != EINTR)) close_conn(c); /* gone, or it pipelines */
        return;
    }
    if (c->phase == READ_HEAD) {
        ssize_t got = recv(c->fd, scratch + c->head_length, sizeof scratch - 1 - c->head_length, MSG_DONTWAIT);
        if (got <= 0) {
            if (got == 0 || (errno != EAGAIN && errno != EINTR)) close_conn(c);
            return;
        }
        if (c->head_length) memcpy(scratch, c->head, c->head_length);
        size_t length = c->head_length + got;
        scratch[length] = 0;
        char *end = memmem(scratch, length, "\r\n\r\n", 4);
        if (!end) {
            if (length >= HEAD_MAX) {
                close_conn(c);
                return;
            }
            c->head = grab(c->head, HEAD_MAX);
            memcpy(c->head, scratch, length);
            c->head_length = length;
            return;
        }
        end[2] = 0;
        if (!understand(c, scratch, end + 4, scratch + length - end - 4)) return;
    }
    while (c->body_read < c->body_length) {
        uint64_t left = c->body_length - c->body_read;
        if (c->body_read >= EDGE && left > EDGE) { /* the middle: dropped without a copy */
            uint64_t drop = left - EDGE < (1u << 30) ? left - EDGE : 1u << 30;
            ssize_t got = recv(c->fd, scratch, drop, MSG_DONTWAIT | MSG_TRUNC);
            if (got <= 0) {
                if (got == 0 || (errno != EAGAIN && errno != EINTR)) close_conn(c);
                return;
            }
            c->body_read += got;
            tally.bytes_in += got;
            continue;
        }
        uint64_t most = c->body_read < EDGE ? EDGE - c->body_read : left;
        ssize_t got = recv(c->fd, scratch, most < left ? most : left, MSG_DONTWAIT);
        if (got <= 0) {
            if (got == 0 || (errno != EAGAIN && errno != EINTR)) close_conn(c);
            return;
        }
        take_body(c, scratch, got);
    }
    if (c->shape == OTHER) reply(c, 404, "{\"error\":{\"message\":\"no such page\"}}");
    else answer(c);
}

/* ---- the loop */

static void arm(void) {
    int64_t due_ns = heap_count ? heap[0]->due_ns : 0;
    if (due_ns == armed_ns) return;
    armed_ns = due_ns;
    struct itimerspec when = {.it_value = {.tv_sec = due_ns / 1000000000, .tv_nsec = due_ns % 1000000000}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL) < 0) die("timerfd_settime");
}

static double option(int argc, char **argv, int *k) {
    if (*k + 1 >= argc) {
        fprintf(stderr, "%s needs a value\n", argv[*k]);
        exit(2);
    }
    return atof(argv[++*k]);
}

int main(int argc, char **argv) {
    for (int k = 1; k < argc; k++) {
        if (!strcmp(argv[k], "--ttft-ms")) ttft_ns = option(argc, argv, &k) * 1e6;
        else if (!strcmp(argv[k], "--itl-ms")) itl_ns = option(argc, argv, &k) * 1e6;
        else if (!strcmp(argv[k], "--tokens")) fixed_tokens = option(argc, argv, &k);
        else if (!strcmp(argv[k], "--notable-bytes")) notable_bytes = option(argc, argv, &k);
        else if (!strcmp(argv[k], "--quantum-us")) quantum_ns = option(argc, argv, &k) * 1e3;
        else if (!strcmp(argv[k], "--model") && k + 1 < argc) model = argv[++k];
        else {
            fprintf(stderr, "unknown option %s: see the head of sse_source.c\n", argv[k]);
            return 2;
        }
    }
    if (quantum_ns < 1 || strlen(model) > 100) {
        fprintf(stderr, "the quantum must be above 0, the model's name at most 100 bytes\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prepare(model);

    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    if (bind(listen_fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(listen_fd, 8192) < 0) die("listen");
    socklen_t size = sizeof address;
    getsockname(listen_fd, (struct sockaddr *)&address, &size);

    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    int signal_fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    static conn listening, ticking, ending; /* names for the events of what is no connection */
    listening.fd = listen_fd;
    ticking.fd = timer_fd;
    ending.fd = signal_fd;
    watch(&listening, EPOLLIN, EPOLL_CTL_ADD);
    watch(&ticking, EPOLLIN | EPOLLET, EPOLL_CTL_ADD); /* edges: set anew, it need not be read */
    watch(&ending, EPOLLIN, EPOLL_CTL_ADD);
    printf("http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    reset();

    struct epoll_event events[256];
    for (;;) {
        arm();
        int count = epoll_wait(poll_fd, events, 256, -1);
        if (count < 0 && errno != EINTR) die("epoll_wait");
        for (int k = 0; k < count; k++) {
            conn *c = events[k].data.ptr;
            if (c == &listening) accept_all();
            else if (c == &ending) {
                char out[2048];
                write_log(out, sizeof out);
                fputs(out, stdout);
                return 0;
            } else if (c != &ticking) {
                if (c->fd >= 0 && events[k].events & EPOLLOUT) put_held(c);
                if (c->fd >= 0 && events[k].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) hear(c);
            }
        }
        int64_t until_ns = now_ns();
        if (heap_count && heap[0]->due_ns <= until_ns) armed_ns = 0;
        while (heap_count && heap[0]->due_ns <= until_ns) emit(heap[0]);
        bury();
    }
}
