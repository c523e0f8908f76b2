#include "schemas/event.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <stdio.h>
#include <string.h>

static const char *const type_names[EVENT_TYPE_N] = {
    [EVENT_BUILD_STATUS] = "build-status", [EVENT_PLAN] = "plan",
    [EVENT_STEP_START] = "step-start",     [EVENT_OUTPUT] = "output",
    [EVENT_PROGRESS] = "progress",         [EVENT_STEP_END] = "step-end",
    [EVENT_WARNING] = "warning",           [EVENT_NOTE] = "note",
};

static const char *const phase_names[PHASE_N] = {
    [PHASE_RESOLVE] = "resolve",       [PHASE_PULL] = "pull",
    [PHASE_PRE_BUILD] = "pre-build",   [PHASE_RECIPE] = "recipe",
    [PHASE_POST_BUILD] = "post-build", [PHASE_FLATTEN] = "flatten",
    [PHASE_BOOT_CHECK] = "boot-check", [PHASE_PUBLISH] = "publish",
};

const char *event_type_name(enum event_type t)
{
    return (unsigned)t < EVENT_TYPE_N ? type_names[t] : "unknown";
}

int event_type_from_name(const char *name)
{
    for (int i = 0; i < EVENT_TYPE_N; i++)
        if (strcmp(name, type_names[i]) == 0)
            return i;
    return -1;
}

const char *phase_name(enum phase p)
{
    return (unsigned)p < PHASE_N ? phase_names[p] : "unknown";
}

/* ---- text ---- */

/* The length of the UTF-8 sequence at @p (no overlong forms, no surrogates), or 0. */
static size_t utf8_len(const unsigned char *p, size_t n)
{
    unsigned char lo = 0x80, hi = 0xbf;
    size_t len;
    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        len = 2;
    else if (p[0] >= 0xe0 && p[0] <= 0xef)
        len = 3;
    else if (p[0] >= 0xf0 && p[0] <= 0xf4)
        len = 4;
    else
        return 0;
    if (p[0] == 0xe0)
        lo = 0xa0;
    else if (p[0] == 0xed)
        hi = 0x9f;
    else if (p[0] == 0xf0)
        lo = 0x90;
    else if (p[0] == 0xf4)
        hi = 0x8f;
    if (n < len || p[1] < lo || p[1] > hi)
        return 0;
    for (size_t i = 2; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return len;
}

/* Any bytes as a JSON string of at most EVENT_TEXT_MAX bytes. */
static json_t *text_json(const char *text)
{
    size_t n = strlen(text);
    struct cb_buf b = CB_BUF_INIT(EVENT_TEXT_MAX + 16);
    size_t i = 0;
    while (i < n && b.len < EVENT_TEXT_MAX - 3) {
        size_t len = utf8_len((const unsigned char *)text + i, n - i);
        (void)cb_buf_add(&b, len ? text + i : "\xef\xbf\xbd", len ? len : 3);
        i += len ? len : 1;
    }
    if (i < n)
        (void)cb_buf_adds(&b, "...");
    json_t *s = json_stringn(b.data ? b.data : "", b.len);
    cb_buf_release(&b);
    return s;
}

static void set(json_t *o, const char *key, json_t *value)
{
    (void)json_object_set_new(o, key, value);
}

/* the 64 digits, and what fills up the last group */
static const char b64_digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=";

static json_t *base64_json(const unsigned char *p, size_t n)
{
    size_t len = (n + 2) / 3 * 4;
    CB_AUTO_FREE char *text = cb_xmalloc(len + 1);
    char *at = text;
    for (size_t i = 0; i < n; i += 3) {
        size_t left = n - i;
        unsigned v = (unsigned)p[i] << 16 | (left > 1 ? (unsigned)p[i + 1] << 8 : 0u) |
                     (left > 2 ? (unsigned)p[i + 2] : 0u);
        *at++ = b64_digits[v >> 18 & 63];
        *at++ = b64_digits[v >> 12 & 63];
        *at++ = b64_digits[left > 1 ? v >> 6 & 63 : 64];
        *at++ = b64_digits[left > 2 ? v & 63 : 64];
    }
    return json_stringn(text, len);
}

static int b64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Strict: padded, nothing else inside. @out may be NULL (check only). */
static bool base64_decode(const char *s, size_t n, struct cb_buf *out)
{
    if (n % 4 != 0)
        return false;
    for (size_t i = 0; i < n; i += 4) {
        size_t pad = 0;
        if (i + 4 == n && s[i + 3] == '=')
            pad = s[i + 2] == '=' ? 2 : 1;
        unsigned v = 0;
        for (size_t k = 0; k < 4; k++) {
            int d = k >= 4 - pad ? 0 : b64_value(s[i + k]);
            if (d < 0)
                return false;
            v = v << 6 | (unsigned)d;
        }
        const unsigned char three[3] = {v >> 16 & 255, v >> 8 & 255, v & 255};
        if (out && cb_buf_add(out, three, 3 - pad) < 0)
            return false;
    }
    return true;
}

/* ---- builders ---- */

json_t *event_status(const char *status, const char *error_or_null, int attempt)
{
    json_t *o = json_object();
    set(o, "status", json_string(status));
    if (error_or_null)
        set(o, "error", text_json(error_or_null));
    set(o, "attempt", json_integer(attempt));
    return o;
}

json_t *event_text(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    CB_AUTO_FREE char *text = cb_xvasprintf(fmt, ap);
    va_end(ap);
    json_t *o = json_object();
    set(o, "text", text_json(text));
    return o;
}

json_t *event_step_start(int step, enum phase phase, const char *layer_or_null, const char *cmd,
                         bool cached)
{
    json_t *o = json_object();
    set(o, "step", json_integer(step));
    set(o, "phase", json_string(phase_name(phase)));
    if (layer_or_null)
        set(o, "layer", text_json(layer_or_null));
    set(o, "cmd", text_json(cmd));
    set(o, "cached", json_boolean(cached));
    return o;
}

/* Whether the bytes can be a JSON string as they are: UTF-8, no NUL (which many readers cannot
 * carry), and not so full of control characters that escaping them passes the ceiling. */
static bool plain_text(const unsigned char *p, size_t n)
{
    size_t escaped = 0;
    for (size_t i = 0; i < n;) {
        size_t len = utf8_len(p + i, n - i);
        if (len == 0 || p[i] == 0)
            return false;
        escaped += p[i] < 0x20 ? 6 : p[i] == '"' || p[i] == '\\' ? 2 : len;
        i += len;
    }
    return escaped < CB_EVENT_MAX - 4096;
}

json_t *event_output(int step, const char *stream, const void *data, size_t len)
{
    json_t *o = json_object();
    set(o, "step", json_integer(step));
    set(o, "stream", json_string(stream));
    if (plain_text(data, len)) {
        set(o, "data", len ? json_stringn(data, len) : json_string(""));
    } else {
        set(o, "data", base64_json(data, len));
        set(o, "encoding", json_string("base64"));
    }
    return o;
}

json_t *event_left_out(int step, uint64_t bytes)
{
    char size[32], line[96];
    cb_human_bytes(bytes, size, sizeof(size));
    (void)snprintf(line, sizeof(line), "… %s of output left out …\n", size);
    json_t *o = event_output(step, "stdout", line, strlen(line));
    set(o, "left_out", json_integer((json_int_t)(bytes > INT64_MAX ? INT64_MAX : bytes)));
    return o;
}

json_t *event_progress(int step, uint64_t current, uint64_t total, const char *unit)
{
    json_t *o = json_object();
    set(o, "step", json_integer(step));
    set(o, "current", json_integer((json_int_t)(current > INT64_MAX ? INT64_MAX : current)));
    set(o, "total", json_integer((json_int_t)(total > INT64_MAX ? INT64_MAX : total)));
    set(o, "unit", text_json(unit));
    return o;
}

json_t *event_step_end(int step, int exit_code, bool ok, int64_t elapsed_ms,
                       const char *error_or_null)
{
    json_t *o = json_object();
    set(o, "step", json_integer(step));
    set(o, "exit", json_integer(exit_code));
    set(o, "ok", json_boolean(ok));
    set(o, "elapsed_ms", json_integer(elapsed_ms));
    if (error_or_null)
        set(o, "error", text_json(error_or_null));
    return o;
}

json_t *event_record(const struct event_execution *x)
{
    json_t *e = json_object();
    set(e, "task_name", text_json(x->task_name ? x->task_name : ""));
    set(e, "duration_ms", json_integer(0));
    set(e, "retries", json_integer(x->retries));
    set(e, "cpu_ms", json_integer(x->cpu_ms));
    set(e, "ram_used", json_integer((json_int_t)(x->ram_used > INT64_MAX ? 0 : x->ram_used)));
    set(e, "host_requests", x->host_requests ? json_deep_copy(x->host_requests) : json_array());
    json_t *error = json_object();
    set(error, "error_type", text_json(x->error_type ? x->error_type : "failed"));
    json_t *o = json_object();
    set(o, "success", json_false());
    set(o, "result", json_null());
    set(o, "error", error);
    set(o, "execution", e);
    return o;
}

void event_add_record(json_t *step_end, json_t *record)
{
    bool ok = json_is_true(json_object_get(step_end, "ok"));
    const char *message = json_string_value(json_object_get(step_end, "error"));
    set(record, "success", json_boolean(ok));
    if (ok)
        set(record, "error", json_null());
    else
        set(json_object_get(record, "error"), "message", text_json(message ? message : ""));
    set(json_object_get(record, "execution"), "duration_ms",
        json_incref(json_object_get(step_end, "elapsed_ms")));
    set(step_end, "record", record);
}

int event_output_bytes(const json_t *payload, struct cb_buf *out, struct cb_error *err)
{
    const json_t *data = json_object_get(payload, "data");
    const char *encoding = json_string_value(json_object_get(payload, "encoding"));
    if (!json_is_string(data))
        return cb_fail(err, CB_E_CORRUPT, "output event: data is missing");
    const char *text = json_string_value(data);
    size_t n = json_string_length(data);
    if (!encoding) {
        if (cb_buf_add(out, text, n) < 0)
            return cb_fail(err, CB_E_CORRUPT, "output event: data is too large");
        return 0;
    }
    if (strcmp(encoding, "base64") != 0)
        return cb_fail(err, CB_E_CORRUPT, "output event: unknown encoding \"%.40s\"", encoding);
    if (!base64_decode(text, n, out))
        return cb_fail(err, CB_E_CORRUPT, "output event: data is not base64");
    return 0;
}

/* ---- checking ---- */

enum kind { STRING, COUNT, STEP, EXIT, BOOLEAN, OBJECT, LAYERS, PHASE, STREAM, STATUS, BASE64 };

struct field {
    const char *name;
    enum kind kind;
    bool optional; /* may be absent or null */
};

enum { MAX_FIELDS = 8 };
static const struct field fields[EVENT_TYPE_N][MAX_FIELDS] = {
    [EVENT_BUILD_STATUS] = {{"status", STATUS, false},
                            {"attempt", COUNT, false},
                            {"error", STRING, true},
                            {"class", STRING, true},
                            {"hint", STRING, true},
                            {"result", OBJECT, true}},
    [EVENT_PLAN] = {{"layers", LAYERS, false},
                    {"total_steps", COUNT, false},
                    {"lock", OBJECT, true}},
    [EVENT_STEP_START] = {{"step", STEP, false},
                          {"phase", PHASE, false},
                          {"layer", STRING, true},
                          {"cmd", STRING, false},
                          {"cached", BOOLEAN, false}},
    [EVENT_OUTPUT] = {{"step", STEP, false},
                      {"stream", STREAM, false},
                      {"data", STRING, false},
                      {"encoding", BASE64, true},
                      {"left_out", COUNT, true}},
    [EVENT_PROGRESS] = {{"step", STEP, false},
                        {"current", COUNT, false},
                        {"total", COUNT, false},
                        {"unit", STRING, false}},
    [EVENT_STEP_END] = {{"step", STEP, false},
                        {"exit", EXIT, false},
                        {"ok", BOOLEAN, false},
                        {"elapsed_ms", COUNT, false},
                        {"error", STRING, true},
                        {"record", OBJECT, true}},
    [EVENT_WARNING] = {{"text", STRING, false}},
    [EVENT_NOTE] = {{"text", STRING, false}},
};

static const struct field layer_fields[] = {{"name", STRING, false},
                                            {"key", STRING, false},
                                            {"cached", BOOLEAN, false},
                                            {"steps", COUNT, false}};

static bool is_one_of(const json_t *v, const char *const *words, size_t n)
{
    const char *s = json_string_value(v);
    for (size_t i = 0; s && i < n; i++)
        if (strcmp(s, words[i]) == 0)
            return true;
    return false;
}

static bool in_range(const json_t *v, json_int_t max)
{
    return json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) <= max;
}

static const char *check_fields(const struct field *f, size_t n, const json_t *o);

static bool layers_ok(const json_t *v)
{
    if (!json_is_array(v) || json_array_size(v) > CB_LAYERS_MAX)
        return false;
    size_t i;
    json_t *layer;
    json_array_foreach(v, i, layer)
    {
        if (!json_is_object(layer) ||
            check_fields(layer_fields, sizeof(layer_fields) / sizeof(layer_fields[0]), layer))
            return false;
    }
    return true;
}

static bool value_ok(enum kind kind, const json_t *v)
{
    static const char *const streams[] = {"stdout", "stderr"};
    static const char *const states[] = {"queued", "running", "success", "failed", "cancelled"};
    static const char *const encodings[] = {"base64"};
    switch (kind) {
    case STRING: return json_is_string(v);
    case COUNT: return in_range(v, INT64_MAX);
    case STEP: return in_range(v, INT32_MAX);
    case EXIT: return in_range(v, 255);
    case BOOLEAN: return json_is_boolean(v);
    case OBJECT: return json_is_object(v);
    case LAYERS: return layers_ok(v);
    case PHASE: return is_one_of(v, phase_names, PHASE_N);
    case STREAM: return is_one_of(v, streams, 2);
    case STATUS: return is_one_of(v, states, 5);
    case BASE64: return is_one_of(v, encodings, 1);
    }
    return false;
}

/* The name of the first field that is wrong, or NULL. Fields that are not listed are left alone: a
 * newer producer may say more. */
static const char *check_fields(const struct field *f, size_t n, const json_t *o)
{
    for (size_t i = 0; i < n && f[i].name; i++) {
        const json_t *v = json_object_get(o, f[i].name);
        if (f[i].optional && (!v || json_is_null(v)))
            continue;
        if (!v || !value_ok(f[i].kind, v))
            return f[i].name;
    }
    return NULL;
}

int event_check(enum event_type t, const json_t *payload, struct cb_error *err)
{
    if ((unsigned)t >= EVENT_TYPE_N)
        return cb_fail(err, CB_E_CORRUPT, "event of unknown type %d", (int)t);
    const char *name = type_names[t];
    if (!json_is_object(payload))
        return cb_fail(err, CB_E_CORRUPT, "%s event: the payload is not an object", name);
    const char *bad = check_fields(fields[t], MAX_FIELDS, payload);
    if (bad)
        return cb_fail(err, CB_E_CORRUPT, "%s event: %s is missing or not as it must be", name,
                       bad);
    if (t == EVENT_OUTPUT && json_is_string(json_object_get(payload, "encoding"))) {
        const json_t *data = json_object_get(payload, "data");
        if (!base64_decode(json_string_value(data), json_string_length(data), NULL))
            return cb_fail(err, CB_E_CORRUPT, "output event: data is not base64");
    }
    size_t size = json_dumpb(payload, NULL, 0, JSON_COMPACT);
    if (size == 0 || size > CB_EVENT_MAX)
        return cb_fail(err, CB_E_CORRUPT, "%s event: %zu bytes, at most %u are accepted", name,
                       size, CB_EVENT_MAX);
    return 0;
}
