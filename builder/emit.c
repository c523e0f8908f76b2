#include "builder/emit.h"

#include "support/clock.h"
#include "support/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SIGN_OF_LIFE_MS = 1000, PROGRESS_EVERY_MS = 200, OUTPUT_PIECE = 32 << 10 };

/* Texts are masked before they become events, which cut what is too long; this is for the rest. */
static json_t *mask_json(struct mask *m, json_t *v)
{
    const char *key;
    size_t i;
    json_t *of;
    void *next;
    if (json_is_string(v)) {
        char *masked = mask_text(m, json_string_value(v));
        json_t *text = masked ? json_string(masked) : json_incref(v);
        free(masked);
        return text ? text : json_string("***"); /* a value ended within a character */
    }
    json_object_foreach_safe(v, next, key, of)(void) json_object_set_new(v, key, mask_json(m, of));
    json_array_foreach(v, i, of)(void) json_array_set_new(v, i, mask_json(m, of));
    return json_incref(v);
}

static void say(struct emitter *e, enum event_type type, json_t *payload)
{
    if (e->mask && type != EVENT_OUTPUT) {
        json_t *masked = mask_json(e->mask, payload);
        json_decref(payload);
        payload = masked;
    }
    e->spoke_ms = cb_monotonic_ms();
    e->sink->event(e->sink->arg, type, payload);
}

static void say_progress(struct emitter *e)
{
    say(e, EVENT_PROGRESS, event_progress(e->open_step, e->current, e->total, e->unit));
}

static void *ticker_main(void *arg)
{
    struct emitter *e = arg;
    pthread_mutex_lock(&e->lock);
    while (!e->stopping) {
        int64_t now = cb_monotonic_ms();
        int64_t due = e->spoke_ms + SIGN_OF_LIFE_MS;
        if (e->open_step && now >= due) {
            uint64_t withheld = outlog_withheld(e->log);
            if (withheld) {
                memcpy(e->unit, "bytes", sizeof("bytes"));
                e->current = withheld;
                e->total = 0;
            } else if (e->unit[0] == '\0') {
                memcpy(e->unit, "seconds", sizeof("seconds"));
                e->total = 0;
            }
            if (strcmp(e->unit, "seconds") == 0)
                e->current = (uint64_t)(now - e->started_ms) / 1000;
            say_progress(e);
            due = now + SIGN_OF_LIFE_MS;
        }
        int64_t wait = due > now ? due - now : SIGN_OF_LIFE_MS;
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += wait / 1000;
        until.tv_nsec += (wait % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
        (void)pthread_cond_timedwait(&e->wake, &e->lock, &until);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

static void on_bytes(void *arg, uint64_t current, uint64_t total, const char *unit)
{
    struct emitter *e = arg;
    pthread_mutex_lock(&e->lock);
    bool ended = total != 0 && current >= total && e->current < total;
    e->current = current;
    e->total = total;
    size_t n = strnlen(unit, sizeof(e->unit) - 1);
    memcpy(e->unit, unit, n);
    e->unit[n] = '\0';
    if (e->open_step && (ended || cb_monotonic_ms() - e->spoke_ms >= PROGRESS_EVERY_MS))
        say_progress(e);
    pthread_mutex_unlock(&e->lock);
}

static void on_note(void *arg, const char *text)
{
    emit_note(arg, "%s", text);
}

static void on_log(void *arg, int stream, const void *data, uint64_t len)
{
    struct emitter *e = arg;
    say(e, EVENT_OUTPUT,
        data ? event_output(e->open_step, stream == 2 ? "stderr" : "stdout", data, (size_t)len)
             : event_left_out(e->open_step, len));
}

void emitter_init(struct emitter *e, const struct build_sink *sink)
{
    *e = (struct emitter){.sink = sink, .partial = CB_BUF_INIT(EMIT_TAIL_LINE_MAX)};
    e->progress = (struct layers_progress){on_bytes, on_note, e};
    e->log = outlog_new(EMIT_OUTPUT_MAX, on_log, e);
    pthread_mutex_init(&e->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->wake, &attr);
    pthread_condattr_destroy(&attr);
    e->spoke_ms = cb_monotonic_ms();
    if (pthread_create(&e->ticker, NULL, ticker_main, e) != 0)
        abort(); /* no memory for a thread's stack */
}

void emit_output_limit(struct emitter *e, uint64_t bytes)
{
    outlog_free(e->log);
    e->log = outlog_new(bytes, on_log, e);
}

static void clear_tail(struct emitter *e)
{
    for (unsigned i = 0; i < EMIT_TAIL_LINES; i++) {
        free(e->tail[i]);
        e->tail[i] = NULL;
    }
    e->tail_next = 0;
    cb_buf_clear(&e->partial);
}

void emitter_release(struct emitter *e)
{
    pthread_mutex_lock(&e->lock);
    e->stopping = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->ticker, NULL);
    clear_tail(e);
    cb_buf_release(&e->partial);
    outlog_free(e->log);
    json_decref(e->record);
    for (size_t i = 0; i < 2; i++)
        mask_stream_release(&e->streams[i]);
    mask_free(e->own);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->lock);
}

void emit_set_mask(struct emitter *e, struct mask *mask)
{
    pthread_mutex_lock(&e->lock);
    e->mask = mask;
    for (size_t i = 0; i < 2; i++)
        mask_stream_init(&e->streams[i], mask);
    pthread_mutex_unlock(&e->lock);
}

char *emit_masked(struct emitter *e, char *text)
{
    pthread_mutex_lock(&e->lock);
    char *other = e->mask && text ? mask_text(e->mask, text) : NULL;
    pthread_mutex_unlock(&e->lock);
    if (!other)
        return text;
    explicit_bzero(text, strlen(text));
    free(text);
    return other;
}

void emit_mask_error(struct emitter *e, struct cb_error *err)
{
    if (!err)
        return;
    err->msg = emit_masked(e, err->msg);
    err->hint = emit_masked(e, err->hint);
}

void emit(struct emitter *e, enum event_type type, json_t *payload)
{
    pthread_mutex_lock(&e->lock);
    say(e, type, payload);
    pthread_mutex_unlock(&e->lock);
}

void emit_note(struct emitter *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *text = emit_masked(e, cb_xvasprintf(fmt, ap));
    va_end(ap);
    emit(e, EVENT_NOTE, event_text("%s", text));
    free(text);
}

void emit_warning(struct emitter *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *text = emit_masked(e, cb_xvasprintf(fmt, ap));
    va_end(ap);
    emit(e, EVENT_WARNING, event_text("%s", text));
    free(text);
}

static void end_line(struct emitter *e)
{
    free(e->tail[e->tail_next]);
    e->tail[e->tail_next] = cb_xstrndup(e->partial.data ? e->partial.data : "", e->partial.len);
    e->tail_next = (e->tail_next + 1) % EMIT_TAIL_LINES;
    cb_buf_clear(&e->partial);
}

static void keep_tail(struct emitter *e, const char *at, size_t len)
{
    while (len) {
        const char *nl = memchr(at, '\n', len);
        size_t n = nl ? (size_t)(nl - at) : len;
        size_t room = e->partial.max - e->partial.len;
        (void)cb_buf_add(&e->partial, at, n < room ? n : room);
        if (nl) {
            end_line(e);
            n++;
        }
        at += n;
        len -= n;
    }
}

/* What was held back may have become long. */
static void say_output(struct emitter *e, int stream, const char *data, size_t len)
{
    keep_tail(e, data, len);
    while (len) {
        size_t n = len < OUTPUT_PIECE ? len : OUTPUT_PIECE;
        outlog_add(e->log, stream, data, n);
        data += n;
        len -= n;
    }
}

/* No more output comes: what was held back because it might become a secret is none. */
static void flush_output(struct emitter *e)
{
    for (int i = 0; e->mask && i < 2; i++) {
        CB_AUTO_BUF out = CB_BUF_INIT(SIZE_MAX / 2);
        mask_flush(&e->streams[i], &out);
        say_output(e, i + 1, out.data, out.len);
    }
}

void emit_mask_more(struct emitter *e, const char *secret)
{
    pthread_mutex_lock(&e->lock);
    flush_output(e);
    if (!e->mask)
        e->mask = e->own = mask_new();
    mask_add_later(e->mask, secret, strlen(secret));
    for (int i = 0; i < 2; i++) {
        mask_stream_release(&e->streams[i]);
        mask_stream_init(&e->streams[i], e->mask);
    }
    pthread_mutex_unlock(&e->lock);
}

int emit_step_start(struct emitter *e, enum phase phase, const char *layer, const char *cmd)
{
    pthread_mutex_lock(&e->lock);
    flush_output(e);
    int step = ++e->last_step;
    e->open_step = step;
    e->started_ms = cb_monotonic_ms();
    e->current = e->total = 0;
    e->unit[0] = '\0';
    clear_tail(e);
    outlog_begin(e->log);
    json_decref(e->record);
    e->record = NULL;
    say(e, EVENT_STEP_START, event_step_start(step, phase, layer, cmd, false));
    pthread_mutex_unlock(&e->lock);
    return step;
}

void emit_step_output(struct emitter *e, int stream, const void *data, size_t len)
{
    pthread_mutex_lock(&e->lock);
    if (e->mask) {
        CB_AUTO_BUF out = CB_BUF_INIT(SIZE_MAX / 2);
        mask_feed(&e->streams[stream == 2], data, len, &out);
        say_output(e, stream, out.data, out.len);
    } else {
        say_output(e, stream, data, len);
    }
    pthread_mutex_unlock(&e->lock);
}

void emit_step_used(struct emitter *e, const struct event_execution *x)
{
    pthread_mutex_lock(&e->lock);
    json_decref(e->record);
    e->record = event_record(x);
    pthread_mutex_unlock(&e->lock);
}

void emit_step_end(struct emitter *e, int exit_code, const struct cb_error *failure)
{
    char *why = emit_masked(e, cb_xstrdup0(failure ? failure->msg : NULL));
    pthread_mutex_lock(&e->lock);
    flush_output(e);
    if (e->open_step) {
        int64_t ms = cb_monotonic_ms() - e->started_ms;
        outlog_end(e->log);
        json_t *end = event_step_end(e->open_step, exit_code, failure == NULL, ms, why);
        if (e->record)
            event_add_record(end, e->record);
        e->record = NULL;
        say(e, EVENT_STEP_END, end);
        e->open_step = 0;
    }
    pthread_mutex_unlock(&e->lock);
    free(why);
}

void emit_step_cached(struct emitter *e, enum phase phase, const char *layer, const char *cmd)
{
    pthread_mutex_lock(&e->lock);
    int step = ++e->last_step;
    say(e, EVENT_STEP_START, event_step_start(step, phase, layer, cmd, true));
    say(e, EVENT_STEP_END, event_step_end(step, 0, true, 0, NULL));
    pthread_mutex_unlock(&e->lock);
}

char *emit_tail(struct emitter *e)
{
    pthread_mutex_lock(&e->lock);
    flush_output(e);
    if (e->partial.len)
        end_line(e);
    CB_AUTO_BUF b = CB_BUF_INIT(EMIT_TAIL_LINES * (EMIT_TAIL_LINE_MAX + 1));
    for (unsigned i = 0; i < EMIT_TAIL_LINES; i++) {
        const char *line = e->tail[(e->tail_next + i) % EMIT_TAIL_LINES];
        if (line)
            cb_buf_addf(&b, "%s\n", line);
    }
    pthread_mutex_unlock(&e->lock);
    return cb_buf_take(&b);
}
