#include "builder/gateway_peek.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

/* ---- TLS: RFC 8446, 4.1.2 and RFC 6066, 3 ---- */

enum {
    RECORD_HANDSHAKE = 22,
    CLIENT_HELLO = 1,
    EXT_SERVER_NAME = 0,
    RECORD_MAX = (16 << 10) + 256
};

struct cursor {
    const uint8_t *p;
    size_t n;
    bool broken;
};

/* The next @n bytes; NULL, and the cursor is broken, when there are fewer. */
static const uint8_t *take(struct cursor *c, size_t n)
{
    if (c->broken || n > c->n) {
        c->broken = true;
        return NULL;
    }
    const uint8_t *at = c->p;
    c->p += n;
    c->n -= n;
    return at;
}

/* A number of @bytes bytes. */
static size_t number(struct cursor *c, size_t bytes)
{
    const uint8_t *p = take(c, bytes);
    size_t v = 0;
    for (size_t i = 0; p && i < bytes; i++)
        v = v << 8 | p[i];
    return v;
}

/* What follows a length of @bytes bytes. */
static struct cursor vector(struct cursor *c, size_t bytes)
{
    size_t n = number(c, bytes);
    const uint8_t *p = take(c, n);
    return (struct cursor){p, p ? n : 0, !p};
}

static void read_server_name(struct cursor list, struct peeked *out)
{
    while (list.n && !list.broken) {
        size_t type = number(&list, 1);
        struct cursor name = vector(&list, 2);
        if (name.broken || type != 0)
            continue;
        if (out->name[0] || !gateway_host_name((const char *)name.p, name.n, out->name)) {
            out->kind = PEEK_BROKEN;
            return;
        }
    }
    if (list.broken)
        out->kind = PEEK_BROKEN;
}

static void read_hello(struct cursor c, struct peeked *out)
{
    out->kind = PEEK_TLS;
    (void)take(&c, 2 + 32); /* version, random */
    (void)vector(&c, 1);    /* session */
    (void)vector(&c, 2);    /* ciphers */
    (void)vector(&c, 1);    /* compression */
    struct cursor extensions = {NULL, 0, false};
    if (!c.broken && c.n)
        extensions = vector(&c, 2);
    bool seen = false;
    while (extensions.n && !extensions.broken && out->kind == PEEK_TLS) {
        size_t type = number(&extensions, 2);
        struct cursor value = vector(&extensions, 2);
        if (value.broken || type != EXT_SERVER_NAME)
            continue;
        struct cursor list = vector(&value, 2);
        if (seen || list.broken || value.n)
            out->kind = PEEK_BROKEN;
        else
            read_server_name(list, out);
        seen = true;
    }
    if (c.broken || c.n || extensions.broken)
        out->kind = PEEK_BROKEN;
}

/* Joins the fragments of the first handshake message; false when a record is none of a handshake.
 */
static bool join_records(const uint8_t *p, size_t n, uint8_t *message, size_t *have)
{
    *have = 0;
    for (size_t at = 0; n - at >= 5;) {
        size_t len = (size_t)p[at + 3] << 8 | p[at + 4];
        if (p[at] != RECORD_HANDSHAKE || p[at + 1] != 3 || len == 0 || len > RECORD_MAX)
            return false;
        size_t here = n - at - 5 < len ? n - at - 5 : len;
        memcpy(message + *have, p + at + 5, here);
        *have += here;
        at += 5 + here;
        if (here < len)
            break;
        size_t said =
            *have >= 4 ? (size_t)message[1] << 16 | (size_t)message[2] << 8 | message[3] : 0;
        if (*have >= 4 && *have - 4 >= said)
            break; /* what follows is another message */
    }
    return true;
}

static void peek_tls(const uint8_t *p, size_t n, struct peeked *out)
{
    uint8_t message[PEEK_MAX];
    size_t have;
    if (n >= 2 && p[1] != 3) {
        out->kind = PEEK_OTHER; /* it only begins with the same byte */
        return;
    }
    if (!join_records(p, n, message, &have) || (have && message[0] != CLIENT_HELLO)) {
        out->kind = PEEK_BROKEN;
        return;
    }
    size_t said = have >= 4 ? (size_t)message[1] << 16 | (size_t)message[2] << 8 | message[3] : 0;
    if (have < 4 || have - 4 < said)
        out->kind = n >= PEEK_MAX || said > PEEK_MAX ? PEEK_BROKEN : PEEK_MORE;
    else
        read_hello((struct cursor){message + 4, said, false}, out);
}

/* ---- HTTP: RFC 9112 ---- */

static const char *const methods[] = {
    "GET",       "HEAD",  "POST",  "PUT",  "DELETE", "CONNECT", "TRACE",  "OPTIONS", "PROPFIND",
    "PROPPATCH", "PATCH", "MKCOL", "COPY", "MOVE",   "LOCK",    "UNLOCK", "REPORT",  "SEARCH"};

/* Do these bytes begin, or may they yet begin, with a method and a space? */
static bool may_be_request(const char *p, size_t n)
{
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        size_t len = strlen(methods[i]);
        if (memcmp(p, methods[i], n < len ? n : len) == 0 && (n <= len || p[len] == ' '))
            return true;
    }
    return false;
}

/* "name", "name:80", "[::1]:80" as a host and a port. */
static bool read_authority(const char *p, size_t n, struct peeked *out)
{
    size_t len = n;
    for (size_t i = 0; i < n; i++)
        if (p[i] == ':') {
            len = i;
            break;
        }
    unsigned port = 0;
    for (size_t i = len + 1; i < n; i++) {
        if (!isdigit((unsigned char)p[i]) || port > 65535)
            return false;
        port = port * 10 + (unsigned)(p[i] - '0');
    }
    if (port > 65535)
        return false;
    if (len < n)
        out->port = (uint16_t)port;
    return gateway_host_name(p, len, out->name);
}

/* The first line: "METHOD target HTTP/1.1". */
static void read_request_line(const char *p, size_t n, struct peeked *out)
{
    static const char scheme[] = "http://";
    const char *space = memchr(p, ' ', n);
    const char *target = space ? space + 1 : p + n;
    const char *end = memrchr(target, ' ', (size_t)(p + n - target));
    if (!end || (size_t)(p + n - end) < 9 || memcmp(end, " HTTP/1.", 8) != 0) {
        out->kind = PEEK_OTHER; /* a line of another protocol */
        return;
    }
    size_t len = (size_t)(end - target);
    out->kind = PEEK_HTTP;
    out->tunnel = strncmp(p, "CONNECT ", 8) == 0;
    if (out->tunnel) {
        out->port = 443;
    } else if (len > strlen(scheme) && strncasecmp(target, scheme, strlen(scheme)) == 0) {
        target += strlen(scheme);
        len -= strlen(scheme);
        const char *at = memchr(target, '@', len);
        for (size_t i = 0; i < len; i++)
            if (target[i] == '/' || target[i] == '?' || target[i] == '#')
                len = i;
        if (at && at < target + len) {
            len -= (size_t)(at + 1 - target);
            target = at + 1;
        }
        out->port = 80;
    } else {
        return;
    }
    out->kind = read_authority(target, len, out) ? PEEK_PROXY : PEEK_BROKEN;
}

/* What the lines of a request's head said. */
struct head {
    bool host, length, chunked;
    uint64_t body;
};

static bool read_length(const char *p, size_t n, struct head *h)
{
    if (h->length || n == 0 || n > 18)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!isdigit((unsigned char)p[i]))
            return false;
        h->body = h->body * 10 + (uint64_t)(p[i] - '0');
    }
    h->length = true;
    return true;
}

static bool is_called(const char *p, size_t n, const char *name)
{
    return n == strlen(name) && strncasecmp(p, name, n) == 0;
}

/* One header line. What is given twice, or in a way that servers read differently, cannot be relied
 * on. */
static bool read_header(const char *p, size_t n, struct head *h, struct peeked *out)
{
    const char *colon = memchr(p, ':', n);
    if (!colon || colon == p)
        return false; /* also a line that goes on with the one before */
    for (const char *c = p; c < colon; c++)
        if (*c <= ' ')
            return false;
    size_t name = (size_t)(colon - p), from = name + 1;
    while (from < n && (p[from] == ' ' || p[from] == '\t'))
        from++;
    while (n > from && (p[n - 1] == ' ' || p[n - 1] == '\t'))
        n--;
    if (is_called(p, name, "content-length"))
        return read_length(p + from, n - from, h);
    if (is_called(p, name, "transfer-encoding"))
        h->chunked = true;
    if (!is_called(p, name, "host"))
        return true;
    if (h->host)
        return false;
    h->host = true;
    if (out->kind == PEEK_PROXY || n == from) /* the target says it */
        return true;
    if (p[from] == '[')
        return true; /* an IPv6 address, which names nobody */
    return read_authority(p + from, n - from, out);
}

/* Where the request ends. */
static void end_head(const struct head *h, size_t len, struct peeked *out)
{
    if (h->chunked && (h->length || out->tunnel))
        out->kind = PEEK_BROKEN;
    else if (!h->chunked)
        out->length = len + h->body;
}

static void peek_http(const char *p, size_t n, struct peeked *out)
{
    struct head h = {0};
    for (size_t at = 0, line = 0;; line++) {
        const char *nl = memchr(p + at, '\n', n - at);
        if (!nl) {
            out->kind = n >= PEEK_MAX ? PEEK_BROKEN : PEEK_MORE;
            return;
        }
        size_t len = (size_t)(nl - (p + at));
        if (len && p[at + len - 1] == '\r')
            len--;
        if (line == 0) {
            read_request_line(p + at, len, out);
            if (out->kind == PEEK_OTHER || out->kind == PEEK_BROKEN)
                return;
        } else if (len == 0) {
            end_head(&h, (size_t)(nl + 1 - p), out);
            return;
        } else if (!read_header(p + at, len, &h, out)) {
            out->kind = PEEK_BROKEN;
            return;
        }
        at = (size_t)(nl + 1 - p);
    }
}

static void peek(const uint8_t *p, size_t n, struct peeked *out)
{
    *out = (struct peeked){.kind = PEEK_MORE, .length = PEEK_ALL};
    n = n < PEEK_MAX ? n : PEEK_MAX;
    if (n == 0)
        return;
    if (p[0] == RECORD_HANDSHAKE) {
        peek_tls(p, n, out);
        return;
    }
    const char *text = (const char *)p;
    size_t skip = 0; /* servers pass over empty lines before a request */
    while (skip < n && (text[skip] == '\r' || text[skip] == '\n'))
        skip++;
    if (skip == n)
        out->kind = n >= PEEK_MAX ? PEEK_BROKEN : PEEK_MORE;
    else if (may_be_request(text + skip, n - skip))
        peek_http(text + skip, n - skip, out);
    else
        out->kind = PEEK_OTHER;
    if (out->length != PEEK_ALL)
        out->length += skip;
}

void gateway_peek(const uint8_t *p, size_t n, struct peeked *out)
{
    peek(p, n, out);
    if (out->kind == PEEK_MORE && n >= PEEK_MAX)
        out->kind = PEEK_BROKEN;
    if (out->kind == PEEK_BROKEN || out->kind == PEEK_MORE)
        *out = (struct peeked){.kind = out->kind, .length = PEEK_ALL};
}
