/* What sse_source.c says, made before it is needed, and what it reads of a request: part of it, included once. */

enum { VARIANTS = 1024, PIECE_MAX = 512 };

typedef enum { CHAT, TEXT, OTHER } shape;

static char pieces[2][VARIANTS][PIECE_MAX];
static size_t piece_length[2];
static char opening[2][2 * PIECE_MAX];
static size_t opening_length[2];

static size_t frame(char *out, size_t size, const char *format, ...) {
    char data[PIECE_MAX];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(data, sizeof data, format, values);
    va_end(values);
    if (length < 0 || (size_t)length >= sizeof data) exit(1);
    return snprintf(out, size, "%x\r\ndata: %s\n\n\r\n", length + 8, data);
}

static const char CHAT_HEAD[] =
    "{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1763000000,"
    "\"model\":\"%s\",";
static const char TEXT_HEAD[] =
    "{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\",\"created\":1763000000,"
    "\"model\":\"%s\",";
static char object_head[2][PIECE_MAX];

static void prepare(const char *model) {
    snprintf(object_head[CHAT], PIECE_MAX, CHAT_HEAD, model);
    snprintf(object_head[TEXT], PIECE_MAX, TEXT_HEAD, model);
    for (int k = 0; k < VARIANTS; k++) {
        piece_length[CHAT] = frame(pieces[CHAT][k], PIECE_MAX,
                                   "%s\"choices\":[{\"index\":0,\"delta\":{\"content\":\" w%04d\"},\"logprobs\":null,"
                                   "\"finish_reason\":null,\"token_ids\":null}]}", object_head[CHAT], k);
        piece_length[TEXT] = frame(pieces[TEXT][k], PIECE_MAX,
                                   "%s\"choices\":[{\"index\":0,\"text\":\" w%04d\",\"logprobs\":null,"
                                   "\"finish_reason\":null,\"stop_reason\":null,\"token_ids\":null}]}", object_head[TEXT], k);
    }
    for (int s = 0; s < 2; s++) {
        size_t length = snprintf(opening[s], sizeof opening[s],
                                 "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                                 "transfer-encoding: chunked\r\n\r\n");
        if (s == CHAT)
            length += frame(opening[s] + length, PIECE_MAX,
                            "%s\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                            "\"logprobs\":null,\"finish_reason\":null}]}", object_head[s]);
        opening_length[s] = length;
    }
}

/* What follows the last token. */
static size_t closing(shape shape, unsigned long prompt, unsigned total, char *out, size_t size) {
    const char *head = object_head[shape];
    size_t length = frame(out, size, "%s\"choices\":[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":\"length\"}]}", head,
                          shape == CHAT ? "\"delta\":{}" : "\"text\":\"\"");
    length += frame(out + length, size - length,
                    "%s\"choices\":[],\"usage\":{\"prompt_tokens\":%lu,\"completion_tokens\":%u,\"total_tokens\":%lu,"
                    "\"prompt_tokens_details\":{\"cached_tokens\":0}}}", head, prompt, total, prompt + total);
    return length + snprintf(out + length, size - length, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

/* ---- of a request's first and last bytes */

static long number_after(const char *text, const char *name) {
    const char *at = strstr(text, name);
    return at ? strtol(at + strlen(name), NULL, 10) : -1;
}

static long wanted_tokens(const char *text) {
    static const char *const names[] = {"\"max_tokens\":", "\"max_completion_tokens\":"};
    for (int k = 0; k < 2; k++) {
        long found = number_after(text, names[k]);
        if (found > 0) return found;
    }
    return -1;
}

static unsigned long count_ids(const char *text) {
    const char *at = strstr(text, "\"prompt\":[");
    if (!at) return 0;
    unsigned long count = 1;
    for (at += 10; *at && *at != ']'; at++) count += *at == ',';
    return count;
}

static int wants_stream(const char *text) { return strstr(text, "\"stream\":true") || strstr(text, "\"stream\": true"); }
