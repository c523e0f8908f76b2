/* render: a build's stored events for people (plain lines, or with a live status line on a
 * terminal) and for programs (JSON, one event a line). What a program printed is shown without its
 * control sequences, but for colours on a terminal: a log must not be able to move a reader's
 * cursor. */
#include "cli/cli.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

enum {
    LINE_MAX_BYTES = 16384,
    PLAIN_PROGRESS_MS = 10000,
    USED_CPU_MS = 100, /* what used less is not worth a word */
    FOLLOW_POLL_MS = 250,
    OWNER_LOOK_MS = 1000
};

struct render {
    enum progress_mode mode;
    FILE *out;
    char *build_id;
    int total_steps;
    int step;
    char *title;           /* of the open step: "deps: apt-get update" */
    int64_t step_began_ms; /* by the events' clock */
    int64_t seen_ms;       /* our clock when the step was seen to begin */
    bool step_cached;
    struct cb_buf line; /* output that has not ended in a newline */
    int64_t last_progress_ms;
    uint64_t current, total;
    char unit[16];
    bool status_shown;
    unsigned spin;
    char *hint; /* what the final event says the user should do, or NULL */
};

struct render *render_new(enum progress_mode mode, FILE *out, const char *build_id)
{
    struct render *r = cb_xcalloc(1, sizeof(*r));
    r->mode = mode;
    if (mode == PROGRESS_AUTO)
        r->mode = isatty(fileno(out)) == 1 && getenv("TERM") && strcmp(getenv("TERM"), "dumb") != 0
                      ? PROGRESS_TTY
                      : PROGRESS_PLAIN;
    r->out = out;
    r->build_id = cb_xstrdup(build_id);
    cb_buf_init(&r->line, LINE_MAX_BYTES);
    return r;
}

static const char *paint(const struct render *r, const char *code)
{
    return r->mode == PROGRESS_TTY ? code : "";
}
#define DIM "\033[2m"
#define RED "\033[31m"
#define GREEN "\033[32m"
#define YELLOW "\033[33m"
#define BOLD "\033[1m"
#define NORMAL "\033[0m"

static void clear_status(struct render *r)
{
    if (r->status_shown)
        fputs("\r\033[K", r->out);
    r->status_shown = false;
}

static void show_status(struct render *r)
{
    static const char *const frames[] = {"|", "/", "-", "\\"};
    if (r->mode != PROGRESS_TTY || !r->title || r->step_cached)
        return;
    struct winsize ws = {0};
    int width = ioctl(fileno(r->out), TIOCGWINSZ, &ws) == 0 && ws.ws_col > 20 ? ws.ws_col : 80;
    char amount[96] = "";
    if (r->total && strcmp(r->unit, "bytes") == 0) {
        char cur[32], tot[32];
        cb_human_bytes(r->current, cur, sizeof(cur));
        cb_human_bytes(r->total, tot, sizeof(tot));
        (void)snprintf(amount, sizeof(amount), "  %s of %s", cur, tot);
    } else if (strcmp(r->unit, "bytes") == 0) {
        cb_human_bytes(r->current, amount + 2, sizeof(amount) - 2);
        memset(amount, ' ', 2);
    } else if (r->total) {
        (void)snprintf(amount, sizeof(amount), "  %llu of %llu %s", (unsigned long long)r->current,
                       (unsigned long long)r->total, r->unit);
    }
    char text[512];
    (void)snprintf(text, sizeof(text), "%s %s  %.0f s%s", frames[r->spin % 4], r->title,
                   (double)(cb_monotonic_ms() - r->seen_ms) / 1000, amount);
    fprintf(r->out, "\r\033[K%s%.*s%s", DIM, width - 1, text, NORMAL);
    r->status_shown = true;
    fflush(r->out);
}

void render_tick(struct render *r)
{
    r->spin++;
    show_status(r);
}

void render_free(struct render *r)
{
    if (!r)
        return;
    clear_status(r);
    fflush(r->out);
    free(r->build_id);
    free(r->title);
    free(r->hint);
    cb_buf_release(&r->line);
    free(r);
}

/* Where a control sequence that starts at @s (an ESC) ends. */
static size_t escape_length(const char *s, size_t n, bool *colour)
{
    *colour = false;
    if (n < 2)
        return n;
    if (s[1] == '[') {
        size_t i = 2;
        while (i < n && (unsigned char)s[i] >= 0x20 && (unsigned char)s[i] <= 0x3f)
            i++;
        *colour = i < n && s[i] == 'm' && i < 32;
        return i < n ? i + 1 : n;
    }
    if (s[1] == ']' || s[1] == 'P' || s[1] == '_' || s[1] == '^') { /* a string, to BEL or ST */
        size_t i = 2;
        while (i < n && s[i] != '\a' && s[i] != '\033')
            i++;
        return i < n && s[i] == '\033' && i + 1 < n ? i + 2 : (i < n ? i + 1 : n);
    }
    return 2;
}

static void print_line(struct render *r, const char *s, size_t n)
{
    while (n && s[n - 1] == '\r')
        n--;
    for (size_t i = n; i > 0; i--) { /* a progress bar redraws its line: its last state counts */
        if (s[i - 1] == '\r') {
            s += i;
            n -= i;
            break;
        }
    }
    CB_AUTO_BUF b = CB_BUF_INIT(LINE_MAX_BYTES * 2 + 64);
    bool painted = false;
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        if (c == 033) {
            bool colour;
            size_t len = escape_length(s + i, n - i, &colour);
            if (colour && r->mode == PROGRESS_TTY) {
                cb_buf_add(&b, s + i, len);
                painted = true;
            }
            i += len;
            continue;
        }
        if (c == 0xc2 && i + 1 < n && (unsigned char)s[i + 1] < 0xa0) { /* U+0080 to U+009F */
            i += 2;
            continue;
        }
        if (c == '\t' || (c >= 0x20 && c != 0x7f))
            cb_buf_add(&b, s + i, 1);
        i++;
    }
    fprintf(r->out, "  %s|%s %s%s\n", paint(r, DIM), paint(r, NORMAL), b.data ? b.data : "",
            painted ? NORMAL : "");
}

static void show_output(struct render *r, const json_t *p)
{
    CB_AUTO_BUF bytes = CB_BUF_INIT(1u << 20);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (event_output_bytes(p, &bytes, &err) < 0)
        return;
    const char *at = bytes.data;
    size_t n = bytes.len;
    while (n) {
        const char *nl = memchr(at, '\n', n);
        size_t part = nl ? (size_t)(nl - at) : n;
        size_t used = part < r->line.max - r->line.len ? part : r->line.max - r->line.len;
        cb_buf_add(&r->line, at, used);
        if (nl || r->line.len == r->line.max) {
            print_line(r, r->line.data ? r->line.data : "", r->line.len);
            cb_buf_clear(&r->line);
        }
        if (nl && used == part)
            used++;
        at += used;
        n -= used;
    }
}

static void end_output(struct render *r)
{
    if (r->line.len)
        print_line(r, r->line.data, r->line.len);
    cb_buf_clear(&r->line);
}

static const char *text_of(const json_t *p, const char *key)
{
    const char *s = json_string_value(json_object_get(p, key));
    return s ? s : "";
}

static void step_start(struct render *r, const struct event_out *ev)
{
    const json_t *p = ev->payload;
    r->step = (int)json_integer_value(json_object_get(p, "step"));
    const char *layer = text_of(p, "layer");
    const char *cmd = text_of(p, "cmd");
    free(r->title);
    r->title = layer[0] ? cb_xasprintf("%s: %s", layer, cmd) : cb_xstrdup(cmd);
    for (unsigned char *c = (unsigned char *)r->title; *c; c++) { /* as cli_put_text(), one line */
        if (c[0] == 0xc2 && c[1] && c[1] < 0xa0)
            c[0] = c[1] = ' ';
        if (*c < 0x20 || *c == 0x7f)
            *c = ' ';
    }
    r->step_cached = json_is_true(json_object_get(p, "cached"));
    r->step_began_ms = ev->ts_ms;
    r->seen_ms = r->last_progress_ms = cb_monotonic_ms();
    r->current = r->total = 0;
    fprintf(r->out, "%s[%d]%s %s%s%s%s\n", paint(r, DIM), r->step, paint(r, NORMAL), paint(r, BOLD),
            r->title, paint(r, NORMAL), r->step_cached ? "  (cached)" : "");
}

/* ", 1.2 s CPU, 45.0 MiB": what a command used, when it is worth a word. */
static void used(struct render *r, const json_t *execution)
{
    json_int_t cpu = json_integer_value(json_object_get(execution, "cpu_ms"));
    json_int_t ram = json_integer_value(json_object_get(execution, "ram_used"));
    json_int_t retries = json_integer_value(json_object_get(execution, "retries"));
    if (cpu >= USED_CPU_MS)
        fprintf(r->out, ", %.1f s CPU", (double)cpu / 1000);
    if (ram > 0 && cpu >= USED_CPU_MS) {
        char size[32];
        cb_human_bytes((uint64_t)ram, size, sizeof(size));
        fprintf(r->out, ", %s", size);
    }
    if (retries > 0)
        fprintf(r->out, ", attempt %lld", (long long)retries + 1);
}

static void step_end(struct render *r, const struct event_out *ev)
{
    end_output(r);
    if (!r->step_cached) {
        bool ok = json_is_true(json_object_get(ev->payload, "ok"));
        double s = (double)json_integer_value(json_object_get(ev->payload, "elapsed_ms")) / 1000;
        fprintf(r->out, "  %s%s%s after %.1f s", paint(r, ok ? GREEN : RED), ok ? "done" : "FAILED",
                paint(r, NORMAL), s);
        used(r, json_object_get(json_object_get(ev->payload, "record"), "execution"));
        const char *error = text_of(ev->payload, "error");
        if (!ok && error[0]) {
            fputs(": ", r->out);
            cli_put_text(r->out, error, "\n");
        }
        fputc('\n', r->out);
    }
    free(r->title);
    r->title = NULL;
}

static void progress(struct render *r, const json_t *p)
{
    r->current = (uint64_t)json_integer_value(json_object_get(p, "current"));
    r->total = (uint64_t)json_integer_value(json_object_get(p, "total"));
    (void)snprintf(r->unit, sizeof(r->unit), "%s", text_of(p, "unit"));
    int64_t now = cb_monotonic_ms();
    if (r->mode != PROGRESS_PLAIN || now - r->last_progress_ms < PLAIN_PROGRESS_MS)
        return;
    r->last_progress_ms = now;
    if (strcmp(r->unit, "bytes") == 0) {
        char cur[32], tot[32];
        cb_human_bytes(r->current, cur, sizeof(cur));
        cb_human_bytes(r->total, tot, sizeof(tot));
        fprintf(r->out, r->total ? "  ... %s of %s\n" : "  ... %s\n", cur, tot);
    } else {
        fprintf(r->out, "  ... %llu %s\n", (unsigned long long)r->current, r->unit);
    }
}

static void plan(struct render *r, const json_t *p)
{
    const json_t *layers = json_object_get(p, "layers");
    size_t n = json_array_size(layers), cached = 0;
    for (size_t i = 0; i < n; i++)
        cached += json_is_true(json_object_get(json_array_get(layers, i), "cached"));
    r->total_steps = (int)json_integer_value(json_object_get(p, "total_steps"));
    fprintf(r->out, "plan: %zu layer%s, %zu cached, %d step%s\n", n, n == 1 ? "" : "s", cached,
            r->total_steps, r->total_steps == 1 ? "" : "s");
}

static void status(struct render *r, const json_t *p)
{
    const char *s = text_of(p, "status");
    end_output(r);
    bool bad = strcmp(s, "failed") == 0 || strcmp(s, "cancelled") == 0;
    bool good = strcmp(s, "success") == 0;
    fprintf(r->out, "build %s: %s%s%s", r->build_id,
            paint(r, bad    ? RED
                     : good ? GREEN
                            : ""),
            s, paint(r, bad || good ? NORMAL : ""));
    const char *error = text_of(p, "error");
    if (error[0]) {
        fputs(": ", r->out);
        cli_put_text(r->out, error, "\n");
    }
    fputc('\n', r->out);
}

static void print_json(struct render *r, const struct event_out *ev)
{
    char ts[CB_RFC3339_LEN + 1];
    cb_rfc3339(ev->ts_ms, ts);
    json_t *o = json_pack("{s:I, s:s, s:s}", "seq", (json_int_t)ev->seq, "ts", ts, "type",
                          event_type_name(ev->type));
    if (!o)
        return;
    (void)json_object_update_missing(o, ev->payload);
    char *line = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    if (line)
        fprintf(r->out, "%s\n", line);
    free(line);
}

const char *render_hint(const struct render *r)
{
    return r->hint;
}

void render_event(struct render *r, const struct event_out *ev)
{
    if (ev->type == EVENT_BUILD_STATUS) {
        free(r->hint);
        const char *hint = text_of(ev->payload, "hint");
        r->hint = hint[0] ? cb_xstrdup(hint) : NULL;
    }
    if (r->mode == PROGRESS_JSON) {
        print_json(r, ev);
        return;
    }
    clear_status(r);
    switch (ev->type) {
    case EVENT_BUILD_STATUS: status(r, ev->payload); break;
    case EVENT_PLAN: plan(r, ev->payload); break;
    case EVENT_STEP_START: step_start(r, ev); break;
    case EVENT_OUTPUT: show_output(r, ev->payload); break;
    case EVENT_PROGRESS: progress(r, ev->payload); break;
    case EVENT_STEP_END: step_end(r, ev); break;
    case EVENT_WARNING:
        end_output(r);
        fprintf(r->out, "%swarning:%s ", paint(r, YELLOW), paint(r, NORMAL));
        cli_put_text(r->out, text_of(ev->payload, "text"), "\n");
        fputc('\n', r->out);
        break;
    case EVENT_NOTE:
        end_output(r);
        fprintf(r->out, "  %s", paint(r, DIM));
        cli_put_text(r->out, text_of(ev->payload, "text"), "\n");
        fprintf(r->out, "%s\n", paint(r, NORMAL));
        break;
    case EVENT_TYPE_N: break;
    }
}

struct catch_up {
    struct render *r;
    uint64_t *seq;
    int status;
};

static int on_stored(void *arg, const struct event_out *ev)
{
    struct catch_up *c = arg;
    render_event(c->r, ev);
    *c->seq = ev->seq;
    if (ev->type == EVENT_BUILD_STATUS) {
        const char *s = text_of(ev->payload, "status");
        for (int i = BUILD_QUEUED; i <= BUILD_CANCELLED; i++)
            if (strcmp(s, build_status_name((enum build_status)i)) == 0)
                c->status = i;
    }
    return 0;
}

int render_catch_up(struct render *r, struct queue *q, const char *build_id, uint64_t *seq)
{
    struct catch_up c = {r, seq, -1};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int n = queue_events(q, build_id, *seq, 0, on_stored, &c, &err);
    if (n < 0)
        fprintf(stderr, "capsule-build: %s\n", err.msg);
    if (n != 0) {
        show_status(r);
        fflush(r->out);
    }
    return c.status;
}

int render_follow(struct render *r, struct queue *q, const char *build_id, uint64_t *seq,
                  int stop_fd, bool *interrupted)
{
    *interrupted = false;
    int64_t last_look = 0;
    for (;;) {
        int s = render_catch_up(r, q, build_id, seq);
        if (s >= 0 && build_status_is_final((enum build_status)s))
            return s;
        struct build_record rec;
        if (queue_get(q, build_id, &rec, NULL) < 0)
            return -1;
        bool over = build_status_is_final(rec.status) && rec.last_seq <= *seq;
        s = (int)rec.status;
        build_record_release(&rec);
        if (over)
            return s;
        /* the process that ran it may have been killed: then nobody else would ever say the end */
        CB_AUTO_ERROR ignored = CB_ERROR_INIT;
        if (cb_monotonic_ms() - last_look >= OWNER_LOOK_MS) {
            last_look = cb_monotonic_ms();
            (void)queue_abandon_dead(q, NULL, NULL, &ignored);
        }
        struct pollfd p = {.fd = stop_fd, .events = POLLIN};
        if (stop_fd >= 0 && poll(&p, 1, 0) > 0) {
            *interrupted = true;
            return -1;
        }
        queue_wait_change(q, FOLLOW_POLL_MS);
        render_tick(r);
    }
}
