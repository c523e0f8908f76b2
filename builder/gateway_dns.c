#include "builder/gateway_dns.h"

#include <string.h>

enum {
    HEADER = 12,
    FLAG_RESPONSE = 0x8000,
    FLAG_RECURSION_DESIRED = 0x0100,
    FLAG_RECURSION_AVAILABLE = 0x0080,
    OPCODE = 0x7800,
    CLASS_IN = 1,
    POINTER = 0xc0,
    JUMPS_MAX = 32,
    ALIASES_MAX = 16,
    EDNS_SIZE = 1232,
    TYPE_OPT = 41,
};

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v & 0xffff);
}

/* The name at *@at, in text, and *@at after it. False when it is no host's name; *@at is then set
 * where the name itself ends, or is @n when that is unknown. */
static bool read_name(const uint8_t *p, size_t n, size_t *at, char out[HOST_NAME_MAX_LEN + 1])
{
    size_t i = *at, len = 0, end = 0;
    char text[HOST_NAME_MAX_LEN + 2];
    bool fits = true;
    for (int jumps = 0; i < n;) {
        size_t label = p[i];
        if ((label & POINTER) == POINTER) {
            if (i + 1 >= n || ++jumps > JUMPS_MAX)
                break;
            end = end ? end : i + 2;
            i = (size_t)get16(p + i) & 0x3fff;
            continue;
        }
        if (label & POINTER || label >= n - i)
            break;
        if (label == 0) {
            *at = end ? end : i + 1;
            return fits && gateway_host_name(text, len, out);
        }
        if (len + label + 1 < sizeof(text)) {
            for (size_t k = 0; k < label; k++) /* a dot within a label is another name */
                text[len + k] = (char)(p[i + 1 + k] == '.' ? '\1' : p[i + 1 + k]);
            len += label;
            text[len++] = '.';
        } else {
            fits = false;
        }
        i += label + 1;
    }
    *at = n;
    return false;
}

int dns_read_question(const uint8_t *p, size_t n, struct dns_question *out)
{
    *out = (struct dns_question){0};
    if (n < HEADER || n > DNS_MESSAGE_MAX || get16(p + 2) & FLAG_RESPONSE)
        return -1;
    out->id = get16(p);
    out->recursion = get16(p + 2) & FLAG_RECURSION_DESIRED;
    if (get16(p + 2) & OPCODE)
        return DNS_NOTIMP;
    size_t at = HEADER;
    if (get16(p + 4) != 1)
        return DNS_FORMERR;
    bool named = read_name(p, n, &at, out->name);
    if (n - at < 4)
        return DNS_FORMERR;
    out->type = get16(p + at);
    out->end = at + 4;
    if (get16(p + at + 2) != CLASS_IN)
        return DNS_NOTIMP;
    return named ? 0 : DNS_NXDOMAIN;
}

/* Header and question of an answer. */
static size_t begin_answer(const uint8_t *query, const struct dns_question *q, int code,
                           size_t answers, uint8_t *out, size_t max)
{
    size_t len = q->end ? q->end : HEADER; /* the question goes back as it came */
    if (len > max)
        len = HEADER;
    memset(out, 0, HEADER);
    put16(out, q->id);
    put16(out + 2, (unsigned)(FLAG_RESPONSE | FLAG_RECURSION_AVAILABLE | code |
                              (q->recursion ? FLAG_RECURSION_DESIRED : 0)));
    put16(out + 4, len > HEADER);
    put16(out + 6, (unsigned)answers);
    memcpy(out + HEADER, query + HEADER, len - HEADER);
    return len;
}

size_t dns_write_code(const uint8_t *query, const struct dns_question *q, int code, uint8_t *out,
                      size_t max)
{
    return begin_answer(query, q, code, 0, out, max);
}

size_t dns_write_addresses(const uint8_t *query, const struct dns_question *q,
                           const uint32_t *addresses, size_t n, uint32_t ttl, uint8_t *out,
                           size_t max)
{
    enum { RECORD = 16 };
    size_t room = q->end < max ? (max - q->end) / RECORD : 0;
    n = n < room ? n : room;
    size_t at = begin_answer(query, q, DNS_NOERROR, n, out, max);
    for (size_t i = 0; i < n; i++, at += RECORD) {
        put16(out + at, POINTER << 8 | HEADER); /* the name of the question */
        put16(out + at + 2, DNS_A);
        put16(out + at + 4, CLASS_IN);
        put32(out + at + 6, ttl);
        put16(out + at + 10, 4);
        put32(out + at + 12, addresses[i]);
    }
    return at;
}

size_t dns_write_query(const uint8_t *query, const struct dns_question *q, uint16_t id,
                       uint8_t *out, size_t max)
{
    enum { OPT = 11 };
    if (q->end + OPT > max)
        return 0;
    memset(out, 0, HEADER);
    put16(out, id);
    put16(out + 2, FLAG_RECURSION_DESIRED);
    put16(out + 4, 1);
    put16(out + 10, 1);
    memcpy(out + HEADER, query + HEADER, q->end - HEADER);
    uint8_t *opt = out + q->end;
    memset(opt, 0, OPT);
    put16(opt + 1, TYPE_OPT);
    put16(opt + 3, EDNS_SIZE);
    return q->end + OPT;
}

struct record {
    char owner[HOST_NAME_MAX_LEN + 1]; /* "" when it is no host's */
    uint16_t type;
    uint32_t ttl;
    size_t data, len;
};

static bool read_record(const uint8_t *p, size_t n, size_t *at, struct record *r)
{
    if (!read_name(p, n, at, r->owner))
        r->owner[0] = '\0';
    if (n - *at < 10)
        return false;
    r->type = get16(p + *at);
    if (get16(p + *at + 2) != CLASS_IN)
        r->owner[0] = '\0';
    r->ttl = get32(p + *at + 4);
    r->len = get16(p + *at + 8);
    r->data = *at + 10;
    if (r->len > n - r->data)
        return false;
    *at = r->data + r->len;
    return true;
}

/* Takes in the addresses of @name, and goes on to what it is an alias of: true when @name is
 * another one now. */
static bool read_answers(const uint8_t *p, size_t n, size_t from, char *name, struct dns_reply *out)
{
    struct record r;
    size_t at = from;
    unsigned answers = get16(p + 6);
    for (unsigned i = 0; i < answers && read_record(p, n, &at, &r); i++) {
        if (strcmp(r.owner, name) != 0)
            continue;
        if (r.type == DNS_A && r.len == 4 && out->n < DNS_ADDRESSES_MAX) {
            out->addresses[out->n++] = get32(p + r.data);
        } else if (r.type == DNS_CNAME) {
            size_t data = r.data;
            char alias[HOST_NAME_MAX_LEN + 1];
            if (!read_name(p, n, &data, alias))
                return false;
            out->ttl = r.ttl < out->ttl ? r.ttl : out->ttl;
            memcpy(name, alias, sizeof(alias));
            return true;
        } else {
            continue;
        }
        out->ttl = r.ttl < out->ttl ? r.ttl : out->ttl;
    }
    return false;
}

bool dns_read_reply(const uint8_t *p, size_t n, uint16_t id, const struct dns_question *q,
                    struct dns_reply *out)
{
    char name[HOST_NAME_MAX_LEN + 1];
    size_t at = HEADER;
    *out = (struct dns_reply){.ttl = UINT32_MAX};
    if (n < HEADER || get16(p) != id || !(get16(p + 2) & FLAG_RESPONSE) || get16(p + 4) != 1)
        return false;
    if (!read_name(p, n, &at, name) || strcmp(name, q->name) != 0 || n - at < 4 ||
        get16(p + at) != q->type || get16(p + at + 2) != CLASS_IN)
        return false;
    out->code = get16(p + 2) & 15;
    for (int i = 0; i < ALIASES_MAX && read_answers(p, n, at + 4, name, out); i++)
        ;
    if (out->ttl == UINT32_MAX)
        out->ttl = 0;
    return true;
}
