/* metadata: where commands ask for tokens, as programs do in a machine of Google's. A small HTTP
 * server on the layer's loopback, in its init: it reads a request's first line and two headers and
 * hands the rest to the host, which knows the answers and alone has a credential. One request a
 * connection. What a client sends is bounded, and a slow one delays nobody. */
#include "builder/agent/agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLIENT_MS 30000

int metadata_open(struct metadata *m, struct fail *f)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    if (m->port)
        return 0;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 16) < 0 ||
        getsockname(fd, (struct sockaddr *)&a, &n) < 0) {
        int saved = errno;
        if (fd >= 0)
            (void)close(fd);
        return fail_sys(f, saved, "listen for requests for tokens");
    }
    m->listener = fd;
    m->port = ntohs(a.sin_port);
    return 0;
}

void metadata_env(const struct metadata *m, struct words *env)
{
    /* the names that Google's libraries know; gcloud has one of its own */
    static const char *const names[] = {"GCE_METADATA_HOST", "GCE_METADATA_IP",
                                        "GCE_METADATA_ROOT"};
    char pair[64];
    for (size_t i = 0; m->port && i < ARRAY_LEN(names); i++) {
        (void)snprintf(pair, sizeof pair, "%s=127.0.0.1:%u", names[i], m->port);
        env_set(env, pair);
    }
}

/* --- what a client says --- */

static bool is_target(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] <= ' ' || p[i] >= 0x7f)
            return false;
    return n > 0 && n <= METADATA_TARGET_MAX && p[0] == '/';
}

static bool header_is(const char *line, size_t n, const char *name)
{
    size_t len = strlen(name);
    return n > len && strncasecmp(line, name, len) == 0 && line[len] == ':';
}

static void read_header(const char *line, size_t n, struct metadata_request *r)
{
    static const char flavor[] = "Metadata-Flavor";
    if (header_is(line, n, "X-Forwarded-For"))
        r->forwarded = true;
    if (!header_is(line, n, flavor))
        return;
    const char *v = line + sizeof flavor, *end = line + n;
    while (v < end && (*v == ' ' || *v == '\t'))
        v++;
    while (end > v && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    r->flavor = end - v == 6 && strncmp(v, "Google", 6) == 0;
}

int metadata_parse(const char *text, size_t n, struct metadata_request *r)
{
    *r = (struct metadata_request){.status = 400};
    const char *eol = memmem(text, n, "\r\n", 2);
    if (!memmem(text, n, "\r\n\r\n", 4))
        return n < METADATA_REQUEST_MAX ? 0 : 1;
    const char *sp = memchr(text, ' ', (size_t)(eol - text));
    const char *end = sp ? memchr(sp + 1, ' ', (size_t)(eol - sp - 1)) : NULL;
    if (!end || strncmp(end + 1, "HTTP/1.", 7) != 0 || !is_target(sp + 1, (size_t)(end - sp - 1)))
        return 1;
    (void)snprintf(r->target, sizeof r->target, "%.*s", (int)(end - sp - 1), sp + 1);
    r->status = sp - text == 3 && strncmp(text, "GET", 3) == 0 ? 0 : 405;
    for (const char *line = eol + 2;; line = eol + 2) {
        eol = memmem(line, n - (size_t)(line - text), "\r\n", 2);
        if (!eol || eol == line)
            break;
        read_header(line, (size_t)(eol - line), r);
    }
    return 1;
}

/* --- and what it is told --- */

static const char *reason(unsigned status)
{
    switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    default: return "Service Unavailable";
    }
}

static void answer(struct metadata_client *c, unsigned status, const char *type, const void *body,
                   size_t n)
{
    char head[512];
    int len = snprintf(head, sizeof head,
                       "HTTP/1.1 %u %s\r\nMetadata-Flavor: Google\r\nServer: Metadata Server for "
                       "VM\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
                       status, reason(status), type, n);
    text_add(&c->out, head, (size_t)len);
    text_add(&c->out, body, n);
    c->state = METADATA_TELLING;
}

static void end_client(struct metadata_client *c)
{
    if (c->state != METADATA_FREE)
        (void)close(c->fd);
    if (c->out.p)
        explicit_bzero(c->out.p, c->out.n); /* it may have been a token */
    text_release(&c->out);
    *c = (struct metadata_client){.state = METADATA_FREE};
}

static void ask_host(struct metadata_client *c, const struct metadata_request *r, struct chan *up)
{
    struct frame_out o;
    frame_begin(&o, up->out, FRAME_HEAD + FRAME_REPLY_MAX, FRAME_METADATA, 0);
    frame_put_number(&o, TAG_CLIENT, c->id);
    frame_put_text(&o, TAG_TEXT, r->target);
    frame_put_number(&o, TAG_FLAVOR, r->flavor);
    frame_put_number(&o, TAG_FORWARDED, r->forwarded);
    (void)chan_send(up, &o);
    c->state = METADATA_ASKING;
}

static void read_client(struct metadata_client *c, struct chan *up)
{
    struct metadata_request r;
    ssize_t n = read(c->fd, c->in + c->n, sizeof c->in - c->n);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        end_client(c);
        return;
    }
    c->n += (size_t)n;
    if (metadata_parse(c->in, c->n, &r) == 0)
        return;
    if (r.status)
        answer(c, r.status, "text/html", "", 0);
    else
        ask_host(c, &r, up);
}

static void write_client(struct metadata_client *c)
{
    ssize_t n = send(c->fd, c->out.p + c->at, c->out.n - c->at, MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0)
        c->at += (size_t)n;
    if (n <= 0 || c->at == c->out.n)
        end_client(c);
}

static void accept_client(struct metadata *m)
{
    for (size_t i = 0; i < METADATA_CLIENTS; i++) {
        struct metadata_client *c = &m->clients[i];
        if (c->state != METADATA_FREE)
            continue;
        int fd = accept4(m->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        *c = (struct metadata_client){
            .fd = fd, .state = METADATA_READING, .id = ++m->last_id, .until = now_ms() + CLIENT_MS};
    }
}

void metadata_work(struct metadata *m, struct chan *up, int64_t now)
{
    if (!m->port)
        return;
    accept_client(m);
    for (size_t i = 0; i < METADATA_CLIENTS; i++) {
        struct metadata_client *c = &m->clients[i];
        if (c->state == METADATA_READING)
            read_client(c, up);
        if (c->state == METADATA_TELLING)
            write_client(c);
        if (c->state != METADATA_FREE && now > c->until)
            end_client(c);
    }
}

void metadata_answer(struct metadata *m, const uint8_t *p, size_t n)
{
    struct frame_field x, body = {0};
    uint64_t id = 0, status = 503;
    char type[64] = "text/plain";
    for (const uint8_t *end = p + n; frame_next(&p, end, &x) > 0;) {
        if (x.tag == TAG_CLIENT)
            (void)frame_number(&x, &id);
        else if (x.tag == TAG_STATUS)
            (void)frame_number(&x, &status);
        else if (x.tag == TAG_TEXT && frame_is_text(&x, sizeof type - 1))
            (void)snprintf(type, sizeof type, "%.*s", (int)x.len, (const char *)x.data);
        else if (x.tag == TAG_DATA)
            body = x;
    }
    for (size_t i = 0; i < METADATA_CLIENTS; i++) {
        struct metadata_client *c = &m->clients[i];
        if (c->state == METADATA_ASKING && c->id == id)
            answer(c, (unsigned)status, type, body.data, body.len);
    }
}

size_t metadata_pollfds(const struct metadata *m, struct pollfd *p)
{
    size_t n = 0;
    bool full = true;
    for (size_t i = 0; m->port && i < METADATA_CLIENTS; i++) {
        const struct metadata_client *c = &m->clients[i];
        full = full && c->state != METADATA_FREE;
        if (c->state == METADATA_READING || c->state == METADATA_TELLING)
            p[n++] = (struct pollfd){.fd = c->fd,
                                     .events = c->state == METADATA_READING ? POLLIN : POLLOUT};
    }
    if (m->port && !full)
        p[n++] = (struct pollfd){.fd = m->listener, .events = POLLIN};
    return n;
}
