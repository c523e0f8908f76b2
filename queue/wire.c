#include "queue/wire.h"

#include "support/limits.h"
#include "support/mem.h"

#include <string.h>

enum { VERSION = 1, PIECE = 64 << 10 };

void wire_reader_init(struct wire_reader *r, size_t max)
{
    /* a frame that is not complete, and the piece that follows it */
    *r = (struct wire_reader){.buf = CB_BUF_INIT(max + WIRE_HEADER + PIECE), .max = max};
}

void wire_reader_release(struct wire_reader *r)
{
    cb_buf_release(&r->buf);
}

int wire_feed(struct wire_reader *r, const void *p, size_t n)
{
    cb_buf_drop(&r->buf, r->at);
    r->at = 0;
    return cb_buf_add(&r->buf, p, n);
}

int wire_next(struct wire_reader *r, struct wire_msg *out, struct cb_error *err)
{
    size_t have = r->buf.len - r->at;
    if (have < WIRE_HEADER)
        return 0;
    const unsigned char *p = (const unsigned char *)r->buf.data + r->at;
    uint32_t len = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    if (len < WIRE_HEADER - 4 || len - (WIRE_HEADER - 4) > r->max)
        return cb_fail(err, CB_E_CORRUPT, "a message of %u bytes (at most %zu are accepted)", len,
                       r->max);
    if (p[4] < WIRE_JOB || p[4] > WIRE_DONE)
        return cb_fail(err, CB_E_CORRUPT, "a message of unknown type %u", p[4]);
    if (p[5] != VERSION)
        return cb_fail(err, CB_E_CORRUPT, "a message of version %u instead of %d", p[5], VERSION);
    if (have < 4 + (size_t)len)
        return 0;
    *out = (struct wire_msg){.type = (enum wire_type)p[4],
                             .payload = (const char *)p + WIRE_HEADER,
                             .len = len - (WIRE_HEADER - 4),
                             .frame = 4 + (size_t)len};
    r->at += out->frame;
    return 1;
}

int wire_put(struct cb_buf *out, enum wire_type type, const json_t *payload, struct cb_error *err)
{
    size_t max = type == WIRE_JOB ? WIRE_JOB_MAX : WIRE_MAX;
    char *text = json_dumps(payload, JSON_COMPACT);
    size_t n = text ? strlen(text) : 0;
    if (!text || n > max) {
        free(text);
        return cb_fail(err, CB_E_LIMIT, "a message of %zu bytes, at most %zu are possible", n, max);
    }
    size_t len = n + WIRE_HEADER - 4;
    unsigned char h[WIRE_HEADER] = {(unsigned char)(len >> 24), (unsigned char)(len >> 16),
                                    (unsigned char)(len >> 8),  (unsigned char)len,
                                    (unsigned char)type,        VERSION};
    int rc = cb_buf_add(out, h, sizeof(h));
    if (rc >= 0)
        rc = cb_buf_add(out, text, n);
    free(text);
    return rc < 0 ? cb_fail(err, CB_E_LIMIT, "too many messages wait to be sent") : 0;
}

/* The payload as an object that @fmt (json_unpack) takes apart, nothing missing, nothing more. */
static json_t *load(const struct wire_msg *m, enum wire_type type, struct cb_error *err)
{
    if (m->type != type) {
        cb_fail(err, CB_E_CORRUPT, "a message of type %d where %d is expected", m->type, type);
        return NULL;
    }
    json_error_t je;
    json_t *o = json_loadb(m->payload, m->len, JSON_REJECT_DUPLICATES, &je);
    if (!o)
        cb_fail(err, CB_E_CORRUPT, "a message that is not JSON: %s", je.text);
    return o;
}

static int bad(const json_error_t *je, const char *what, struct cb_error *err)
{
    return cb_fail(err, CB_E_CORRUPT, "a bad %s message: %s", what, je->text);
}

int wire_event_parse(const struct wire_msg *m, struct wire_event *out, struct cb_error *err)
{
    json_auto_t *o = load(m, WIRE_EVENT, err);
    if (!o)
        return -CB_E_CORRUPT;
    const char *name;
    json_int_t ts;
    json_t *payload;
    json_error_t je;
    if (json_unpack_ex(o, &je, JSON_STRICT, "{s:s, s:I, s:o}", "type", &name, "ts", &ts, "payload",
                       &payload) < 0)
        return bad(&je, "event", err);
    int type = event_type_from_name(name);
    if (type < 0 || type == EVENT_BUILD_STATUS)
        return cb_fail(err, CB_E_CORRUPT, "an event of type \"%.40s\", which a build cannot send",
                       name);
    if (ts < 0 || ts > INT64_MAX / 1000)
        return cb_fail(err, CB_E_CORRUPT, "an event with an impossible time");
    int rc = event_check((enum event_type)type, payload, err);
    if (rc < 0)
        return rc;
    *out = (struct wire_event){(enum event_type)type, ts, json_incref(payload)};
    return 0;
}

int wire_finish_parse(const struct wire_msg *m, struct wire_finish *out, struct cb_error *err)
{
    json_auto_t *o = load(m, WIRE_FINISH, err);
    if (!o)
        return -CB_E_CORRUPT;
    int ok;
    const char *code = NULL, *message = NULL, *hint = NULL;
    json_t *result = NULL;
    json_error_t je;
    if (json_unpack_ex(o, &je, JSON_STRICT, "{s:b, s?s, s?s, s?s, s?o}", "ok", &ok, "code", &code,
                       "message", &message, "hint", &hint, "result", &result) < 0)
        return bad(&je, "finish", err);
    if (!ok && (!code || !message))
        return cb_fail(err, CB_E_CORRUPT,
                       "a bad finish message: a failure without code or message");
    if (result && !json_is_object(result))
        return cb_fail(err, CB_E_CORRUPT, "a bad finish message: the result is not an object");
    if (json_dumpb(result, NULL, 0, JSON_COMPACT) > CB_EVENT_MAX / 2)
        return cb_fail(err, CB_E_CORRUPT, "a bad finish message: the result is too large");
    *out = (struct wire_finish){.ok = ok != 0,
                                .code = cb_xstrdup0(code),
                                .message = cb_xstrdup0(message),
                                .hint = cb_xstrdup0(hint),
                                .result = json_incref(result)};
    return 0;
}

void wire_finish_release(struct wire_finish *f)
{
    free(f->code);
    free(f->message);
    free(f->hint);
    json_decref(f->result);
    *f = (struct wire_finish){0};
}

int wire_job_parse(const struct wire_msg *m, struct wire_job *out, struct cb_error *err)
{
    json_auto_t *o = load(m, WIRE_JOB, err);
    if (!o)
        return -CB_E_CORRUPT;
    const char *id, *config, *options;
    int attempt;
    json_error_t je;
    if (json_unpack_ex(o, &je, JSON_STRICT, "{s:s, s:i, s:s, s:s}", "id", &id, "attempt", &attempt,
                       "config", &config, "options", &options) < 0)
        return bad(&je, "job", err);
    if (strlen(id) != BUILD_ID_LEN)
        return cb_fail(err, CB_E_CORRUPT, "a bad job message: its id");
    *out = (struct wire_job){
        .attempt = attempt, .config = cb_xstrdup(config), .options = cb_xstrdup(options)};
    memcpy(out->id, id, sizeof(out->id));
    return 0;
}

void wire_job_release(struct wire_job *j)
{
    free(j->config);
    free(j->options);
    *j = (struct wire_job){0};
}

int wire_ack_parse(const struct wire_msg *m, uint64_t *bytes, struct cb_error *err)
{
    json_auto_t *o = load(m, WIRE_ACK, err);
    if (!o)
        return -CB_E_CORRUPT;
    json_int_t n;
    json_error_t je;
    if (json_unpack_ex(o, &je, JSON_STRICT, "{s:I}", "bytes", &n) < 0)
        return bad(&je, "ack", err);
    if (n < 0)
        return cb_fail(err, CB_E_CORRUPT, "a bad ack message");
    *bytes = (uint64_t)n;
    return 0;
}
