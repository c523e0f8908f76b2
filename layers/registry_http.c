#include "layers/registry_http.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

enum {
    REDIRECTS_MAX = 10,
    CONNECT_TIMEOUT_S = 15,
    STALL_MS = 30000,
    STALL_RATE = 1 << 10,      /* bytes a second that count as nothing: a trickle never ends */
    STALL_UPLOADS = 10,        /* times as long: whoever gets a blob checks it before it answers */
    DIRECT_TOTAL_S = 5,        /* an answer from this machine's own link */
    SMALL_TOTAL_S = 120,       /* an answer that is kept in memory */
    ERROR_BODY_MAX = 64 << 10, /* of an answer that is no success; the rest is not read */
    CHALLENGES_MAX = 16,
    WARNINGS_MAX = 8,
    URL_MAX = 16 << 10,
};

CB_DEFINE_CLEANUP(url, CURLU *, curl_url_cleanup);
CB_DEFINE_CLEANUP(slist, struct curl_slist *, curl_slist_free_all);
CB_DEFINE_CLEANUP(curl_text, char *, curl_free);

struct http_client {
    CURL *curl;
    int64_t stall_ms;
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void curl_start(void)
{
    (void)curl_global_init(CURL_GLOBAL_DEFAULT);
}

struct http_client *http_client_new(int64_t stall_ms)
{
    (void)pthread_once(&curl_once, curl_start);
    struct http_client *c = cb_xcalloc(1, sizeof(*c));
    c->stall_ms = stall_ms > 0 ? stall_ms : STALL_MS;
    c->curl = curl_easy_init();
    if (!c->curl)
        abort(); /* out of memory */
    return c;
}

void http_client_free(struct http_client *c)
{
    if (!c)
        return;
    curl_easy_cleanup(c->curl);
    free(c);
}

static void response_clear(struct http_response *r)
{
    free(r->content_type);
    free(r->content_range);
    free(r->digest);
    free(r->location);
    free(r->range);
    free(r->subject);
    free(r->etag);
    free(r->link);
    cb_strv_release(&r->challenges);
    cb_strv_release(&r->warnings);
    cb_buf_release(&r->body);
    *r = (struct http_response)HTTP_RESPONSE_INIT;
}

void http_response_release(struct http_response *r)
{
    response_clear(r);
}

/* --- addresses --- */

static char *url_part(const char *url, CURLUPart part, unsigned flags)
{
    CB_AUTO(url) u = curl_url();
    char *text = NULL;
    if (!u || curl_url_set(u, CURLUPART_URL, url, 0) || curl_url_get(u, part, &text, flags))
        return NULL;
    char *copy = cb_xstrdup(text);
    curl_free(text);
    return copy;
}

char *http_host(const char *url)
{
    CB_AUTO_FREE char *host = url_part(url, CURLUPART_HOST, 0);
    CB_AUTO_FREE char *port = url_part(url, CURLUPART_PORT, 0);
    return cb_xasprintf("%s%s%s", host ? host : "?", port ? ":" : "", port ? port : "");
}

static bool v4_is_loopback(struct in_addr a)
{
    return ntohl(a.s_addr) >> 24 == 127;
}

static bool v6_is_loopback(const struct in6_addr *a)
{
    return IN6_IS_ADDR_LOOPBACK(a) || (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 127);
}

/* The machine itself and what only its own link reaches (169.254.169.254 hands out credentials). */
static bool address_is_inside(const struct curl_sockaddr *sa)
{
    if (sa->family == AF_INET) {
        struct in_addr a = ((const struct sockaddr_in *)(const void *)&sa->addr)->sin_addr;
        return v4_is_loopback(a) || ntohl(a.s_addr) >> 16 == 0xa9fe || a.s_addr == INADDR_ANY;
    }
    if (sa->family != AF_INET6)
        return false;
    struct sockaddr_in6 v6;
    memcpy(&v6, &sa->addr, sizeof(v6));
    const struct in6_addr *a = &v6.sin6_addr;
    return v6_is_loopback(a) || IN6_IS_ADDR_LINKLOCAL(a) || IN6_IS_ADDR_UNSPECIFIED(a) ||
           (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 169 && a->s6_addr[13] == 254);
}

bool http_host_is_loopback(const char *host)
{
    CB_AUTO_FREE char *url = cb_xasprintf("http://%s/", host);
    CB_AUTO_FREE char *name = url_part(url, CURLUPART_HOST, 0);
    struct in_addr v4;
    struct in6_addr v6;
    if (!name)
        return false;
    if (strcasecmp(name, "localhost") == 0)
        return true;
    if (inet_pton(AF_INET, name, &v4) == 1)
        return v4_is_loopback(v4);
    size_t n = strlen(name);
    if (n < 2 || name[0] != '[' || name[n - 1] != ']')
        return false;
    name[n - 1] = '\0';
    return inet_pton(AF_INET6, name + 1, &v6) == 1 && v6_is_loopback(&v6);
}

/* With a proxy the address that is connected to says nothing about where the request ends. */
static bool proxy_is_set(void)
{
    static const char *const names[] = {"http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy",
                                        "ALL_PROXY"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const char *v = getenv(names[i]);
        if (v && *v)
            return true;
    }
    return false;
}

/* --- headers --- */

int64_t http_retry_after(const char *value, int64_t now_s)
{
    size_t n = strspn(value, "0123456789");
    if (n > 0 && value[n] == '\0') {
        long long s = n > 9 ? INT32_MAX : strtoll(value, NULL, 10);
        return s < INT32_MAX ? s : INT32_MAX;
    }
    if (n > 0 || !*value)
        return 0; /* curl_getdate() would make something of "5 apples" */
    int64_t when = (int64_t)curl_getdate(value, NULL);
    if (when < 0 || when <= now_s)
        return 0;
    return when - now_s < INT32_MAX ? when - now_s : INT32_MAX;
}

/* Digits at *@s, at most 18 of them, and moves behind. */
static bool take_number(const char **s, uint64_t *out)
{
    size_t n = strspn(*s, "0123456789");
    if (n == 0 || n > 18)
        return false;
    *out = strtoull(*s, NULL, 10);
    *s += n;
    return true;
}

bool http_range_fits(const char *text, uint64_t from, uint64_t size)
{
    uint64_t first, last, total;
    if (!text || strncasecmp(text, "bytes ", 6) != 0)
        return false;
    text += 6;
    if (!take_number(&text, &first) || *text++ != '-' || !take_number(&text, &last) ||
        *text++ != '/')
        return false;
    if (strcmp(text, "*") != 0 && (!take_number(&text, &total) || *text || total != size))
        return false;
    return first == from && last + 1 == size;
}

bool http_upload_range(const char *text, uint64_t *have)
{
    uint64_t first, last;
    if (strncasecmp(text, "bytes=", 6) == 0)
        text += 6; /* against the specification, but seen */
    if (!take_number(&text, &first) || first != 0 || *text++ != '-' || !take_number(&text, &last) ||
        *text)
        return false;
    *have = last + 1;
    return true;
}

char *http_warning(const char *value)
{
    if (strncmp(value, "299 ", 4) != 0)
        return NULL;
    const char *quote = strchr(value + 4, '"');
    if (!quote)
        return NULL;
    CB_AUTO_BUF b = CB_BUF_INIT(1024);
    for (quote++; *quote && *quote != '"'; quote++) {
        if (*quote == '\\' && quote[1])
            quote++;
        bool control = (unsigned char)*quote < 0x20 || *quote == 0x7f;
        (void)cb_buf_add(&b, control ? "?" : quote, 1);
    }
    return *quote == '"' && b.len ? cb_buf_take(&b) : NULL;
}

/* --- one transfer --- */

struct transfer {
    CURL *curl;
    const struct http_request *req;
    struct http_response *res;
    struct cb_error *err;
    int64_t stall_ms;
    uint64_t sent; /* of the request's body */
    int rc;        /* what the sink raised */
    bool begun;    /* begin was called */
    bool enough;   /* an error's body was cut short on purpose */
    bool first;    /* this is the host that was meant: it may see who we are */
    bool foreign;  /* a redirect led here: addresses inside are refused */
    bool refused;  /* and this was one */
};

static void set_text(char **slot, const char *value, size_t n)
{
    free(*slot);
    *slot = cb_xstrndup(value, n);
}

static size_t on_header(char *line, size_t size, size_t count, void *arg)
{
    struct transfer *t = arg;
    struct http_response *r = t->res;
    size_t n = size * count;
    if (n >= 5 && strncasecmp(line, "HTTP/", 5) == 0) { /* a new answer: after 100, for example */
        response_clear(r);
        return n;
    }
    const char *colon = memchr(line, ':', n);
    if (!colon || memchr(line, '\0', n))
        return n;
    size_t name = (size_t)(colon - line);
    const char *value = colon + 1;
    size_t len = n - name - 1;
    while (len && (value[len - 1] == '\r' || value[len - 1] == '\n' || value[len - 1] == ' '))
        len--;
    while (len && (*value == ' ' || *value == '\t')) {
        value++;
        len--;
    }
#define IS(text) (name == sizeof(text) - 1 && strncasecmp(line, text, name) == 0)
    if (IS("content-type")) {
        set_text(&r->content_type, value, len);
    } else if (IS("content-range")) {
        set_text(&r->content_range, value, len);
    } else if (IS("docker-content-digest")) {
        set_text(&r->digest, value, len);
    } else if (IS("location")) {
        set_text(&r->location, value, len);
    } else if (IS("range")) {
        set_text(&r->range, value, len);
    } else if (IS("oci-subject")) {
        set_text(&r->subject, value, len);
    } else if (IS("etag")) {
        set_text(&r->etag, value, len);
    } else if (IS("link")) {
        set_text(&r->link, value, len);
    } else if (IS("metadata-flavor")) {
        r->google = len == 6 && strncasecmp(value, "Google", 6) == 0;
    } else if (IS("retry-after")) {
        CB_AUTO_FREE char *copy = cb_xstrndup(value, len);
        r->retry_after_s = http_retry_after(copy, cb_now_ms() / 1000);
    } else if (IS("oci-chunk-min-length")) {
        CB_AUTO_FREE char *copy = cb_xstrndup(value, len);
        const char *at = copy;
        uint64_t n_min = 0;
        r->chunk_min = take_number(&at, &n_min) && !*at ? (int64_t)n_min : 0;
    } else if (IS("warning") && r->warnings.n < WARNINGS_MAX) {
        CB_AUTO_FREE char *copy = cb_xstrndup(value, len);
        char *text = http_warning(copy);
        if (text)
            cb_strv_take(&r->warnings, text);
    } else if (IS("www-authenticate") && r->challenges.n < CHALLENGES_MAX) {
        CB_AUTO_FREE char *copy = cb_xstrndup(value, len);
        cb_strv_add(&r->challenges, copy);
    }
#undef IS
    return n;
}

/* What the status line and the headers said, once they are all there. */
static void take_status(struct transfer *t)
{
    curl_off_t length = -1;
    (void)curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &t->res->status);
    (void)curl_easy_getinfo(t->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    t->res->length = length;
}

static bool is_success(const struct http_response *r)
{
    return r->status >= 200 && r->status < 300;
}

static bool is_head(const struct http_request *req)
{
    return req->method && strcmp(req->method, "HEAD") == 0;
}

static int too_large(const struct transfer *t)
{
    return cb_fail(t->err, CB_E_LIMIT, "the answer is larger than %zu bytes", t->req->body_max);
}

static int begin_body(struct transfer *t)
{
    if (t->begun)
        return 0;
    t->begun = true;
    take_status(t);
    if (is_success(t->res) && t->req->begin)
        t->rc = t->req->begin(t->req->arg, t->res, t->err);
    else if (is_success(t->res) && !is_head(t->req) && t->res->length > 0 &&
             (uint64_t)t->res->length > t->req->body_max)
        t->rc = too_large(t);
    size_t max = is_success(t->res) ? t->req->body_max : (size_t)ERROR_BODY_MAX;
    cb_buf_init(&t->res->body, max);
    return t->rc;
}

static size_t on_body(char *p, size_t size, size_t count, void *arg)
{
    struct transfer *t = arg;
    size_t n = size * count;
    if (begin_body(t) < 0)
        return 0;
    if (is_success(t->res) && t->req->add) {
        t->rc = t->req->add(t->req->arg, p, n, t->err);
        return t->rc < 0 ? 0 : n;
    }
    if (cb_buf_add(&t->res->body, p, n) == 0)
        return n;
    if (is_success(t->res))
        t->rc = too_large(t);
    else
        t->enough = true;
    return 0;
}

/* The request's body. */
static size_t on_read(char *to, size_t size, size_t count, void *arg)
{
    struct transfer *t = arg;
    const struct http_body *b = t->req->body;
    size_t n = size * count;
    if (n > b->len - t->sent)
        n = (size_t)(b->len - t->sent);
    if (n == 0)
        return 0;
    if (b->mem)
        memcpy(to, (const char *)b->mem + t->sent, n);
    else
        t->rc = cb_pread_all(b->fd, to, n, (off_t)(b->at + t->sent), t->err);
    if (t->rc == 0 && t->req->sent && !t->req->sent(t->req->arg, (int64_t)n))
        t->rc = cb_fail(t->err, CB_E_CANCELED, "the upload was stopped");
    if (t->rc < 0)
        return CURL_READFUNC_ABORT;
    t->sent += n;
    return n;
}

/* A connection that was kept and is gone: curl sends again on a new one. */
static int on_seek(void *arg, curl_off_t offset, int origin)
{
    struct transfer *t = arg;
    if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > t->req->body->len)
        return CURL_SEEKFUNC_CANTSEEK;
    if (t->req->sent)
        (void)t->req->sent(t->req->arg, (int64_t)offset - (int64_t)t->sent);
    t->sent = (uint64_t)offset;
    return CURL_SEEKFUNC_OK;
}

static curl_socket_t on_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *a)
{
    struct transfer *t = arg;
    if (purpose == CURLSOCKTYPE_IPCXN && t->foreign && address_is_inside(a)) {
        t->refused = true;
        return CURL_SOCKET_BAD;
    }
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

/* The host's own, else that of all hosts (`ca_bundle` of the settings). */
static const char *ca_file(const struct http_request *req)
{
    const char *of_all = getenv("CURL_CA_BUNDLE");
    return req->tls.ca_file ? req->tls.ca_file : of_all && *of_all ? of_all : NULL;
}

static int raise_curl(const struct transfer *t, const char *url, CURLcode code, const char *detail)
{
    CB_AUTO_FREE char *host = http_host(url);
    struct cb_error *err = t->err;
    const char *why = *detail ? detail : curl_easy_strerror(code);
    if (t->refused) {
        cb_fail(err, CB_E_UNTRUSTED,
                "redirected to %s, an address of this machine or of its own link", host);
        return cb_hint(err, "That is refused: a registry has no business there.");
    }
    curl_off_t connect = 0;
    (void)curl_easy_getinfo(t->curl, CURLINFO_CONNECT_TIME_T, &connect);
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
        t->res->unreachable = true;
        cb_fail(err, CB_E_NET, "%s cannot be reached: %s", host, why);
        return cb_hint(err, "Check the network and the name of the host.");
    case CURLE_OPERATION_TIMEDOUT:
        t->res->unreachable = connect == 0;
        cb_fail(err, CB_E_TIMEOUT, "%s: %s", host, connect ? "nothing came for too long" : why);
        return cb_hint(err, "Check the network and the name of the host.");
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_INVALIDCERTSTATUS:
        cb_fail(err, CB_E_UNTRUSTED, "the certificate of %s is not trusted: %s", host, why);
        return cb_hint(err,
                       "If its authority is a private one, name it: registries: %s: ca_file "
                       "in the settings.",
                       host);
    case CURLE_SSL_CACERT_BADFILE:
        return cb_fail(err, CB_E_CONFIG, "%s %s cannot be used: %s",
                       t->req->tls.ca_file ? "ca_file" : "ca_bundle",
                       ca_file(t->req) ? ca_file(t->req) : "", why);
    case CURLE_SSL_CERTPROBLEM:
        cb_fail(err, CB_E_CONFIG, "the client certificate %s cannot be used: %s",
                t->req->tls.cert_file ? t->req->tls.cert_file : "", why);
        return cb_hint(err, "It needs its private key beside it, both as PEM.");
    case CURLE_SSL_CONNECT_ERROR:
        cb_fail(err, CB_E_NET, "no TLS connection to %s: %s", host, why);
        return cb_hint(err,
                       "If it speaks plain HTTP only, allow that: registries: %s: insecure: "
                       "true in the settings.",
                       host);
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT: return cb_fail(err, CB_E_UNTRUSTED, "%s: %s", host, why);
    default: return cb_fail(err, CB_E_NET, "%s: %s", host, why);
    }
}

/* An option that curl refuses is our mistake, except that memory may be out. */
#define SET(option, value)                                                                         \
    do {                                                                                           \
        CURLcode set_rc_ = curl_easy_setopt(curl, option, value);                                  \
        if (set_rc_ != CURLE_OK)                                                                   \
            return cb_fail(err, CB_E_BUG, "curl: %s: %s", #option, curl_easy_strerror(set_rc_));   \
    } while (0)

static int set_method(struct transfer *t, struct cb_error *err)
{
    CURL *curl = t->curl;
    const struct http_request *req = t->req;
    if (is_head(req)) {
        SET(CURLOPT_NOBODY, 1L);
    } else if (req->body) {
        SET(CURLOPT_UPLOAD, 1L);
        SET(CURLOPT_INFILESIZE_LARGE, (curl_off_t)req->body->len);
        SET(CURLOPT_READFUNCTION, on_read);
        SET(CURLOPT_READDATA, t);
        SET(CURLOPT_SEEKFUNCTION, on_seek);
        SET(CURLOPT_SEEKDATA, t);
        (void)curl_easy_setopt(curl, CURLOPT_UPLOAD_BUFFERSIZE, 512L << 10);
        SET(CURLOPT_CUSTOMREQUEST, req->method);
    } else if (req->method && strcmp(req->method, "DELETE") == 0) {
        SET(CURLOPT_CUSTOMREQUEST, req->method);
    } else if (req->method && strcmp(req->method, "GET") != 0) {
        SET(CURLOPT_POSTFIELDS, "");
        SET(CURLOPT_POSTFIELDSIZE, 0L);
        SET(CURLOPT_CUSTOMREQUEST, req->method);
    }
    return 0;
}

static int set_up(struct transfer *t, const char *url, const char *protocols, char *detail,
                  struct curl_slist *headers, struct cb_error *err)
{
    CURL *curl = t->curl;
    const struct http_request *req = t->req;
    CB_AUTO_FREE char *host = http_host(url);
    curl_easy_reset(curl);
    SET(CURLOPT_URL, url);
    SET(CURLOPT_PROTOCOLS_STR, protocols);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_CONNECTTIMEOUT, (long)CONNECT_TIMEOUT_S);
    int64_t stall_ms = t->stall_ms * (req->body ? STALL_UPLOADS : 1);
    SET(CURLOPT_LOW_SPEED_LIMIT, (long)STALL_RATE);
    SET(CURLOPT_LOW_SPEED_TIME, (long)((stall_ms + 999) / 1000));
    if (req->direct)
        SET(CURLOPT_TIMEOUT, (long)DIRECT_TOTAL_S);
    else if (!req->add && !req->body)
        SET(CURLOPT_TIMEOUT, (long)SMALL_TOTAL_S);
    SET(CURLOPT_USERAGENT, "capsule-build");
    SET(CURLOPT_ERRORBUFFER, detail);
    SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    /* curl refuses it where the handle still has the buffer of a transfer that failed early */
    (void)curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 256L << 10);
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, t);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, t);
    if (http_host_is_loopback(host) || req->direct)
        SET(CURLOPT_PROXY, "");
    if (!proxy_is_set()) {
        SET(CURLOPT_OPENSOCKETFUNCTION, on_socket);
        SET(CURLOPT_OPENSOCKETDATA, t);
    }
    if (req->tls.ca_pem) {
        struct curl_blob pem = {(void *)(uintptr_t)req->tls.ca_pem, strlen(req->tls.ca_pem),
                                CURL_BLOB_NOCOPY};
        SET(CURLOPT_CAINFO_BLOB, &pem);
    } else if (ca_file(req)) {
        SET(CURLOPT_CAINFO, ca_file(req));
    }
    if (req->tls.cert_file && t->first) {
        SET(CURLOPT_SSLCERT, req->tls.cert_file);
        if (req->tls.key_file)
            SET(CURLOPT_SSLKEY, req->tls.key_file);
    }
    if (req->from) {
        CB_AUTO_FREE char *range = cb_xasprintf("%llu-", (unsigned long long)req->from);
        SET(CURLOPT_RANGE, range);
    }
    return set_method(t, err);
}

static void add_line(struct curl_slist **list, const char *line)
{
    struct curl_slist *longer = curl_slist_append(*list, line);
    if (!longer)
        abort(); /* out of memory */
    *list = longer;
}

static void add_header(struct curl_slist **list, const char *name, const char *value)
{
    if (!value)
        return;
    CB_AUTO_FREE char *line = cb_xasprintf("%s: %s", name, value);
    add_line(list, line);
    explicit_bzero(line, strlen(line)); /* curl frees its copy as it likes, ours is gone */
}

static int transfer(struct transfer *t, const char *url, const char *authorization)
{
    char detail[CURL_ERROR_SIZE] = "";
    CB_AUTO(slist) headers = NULL;
    const char *protocols = strncasecmp(url, "https:", 6) == 0 ? "https" : "http";
    add_header(&headers, "Accept", t->req->accept ? t->req->accept : "*/*");
    add_header(&headers, "Authorization", authorization);
    if (t->first && t->req->header)
        add_line(&headers, t->req->header);
    if (t->req->body) {
        add_header(&headers, "Content-Type", t->req->body->type);
        add_header(&headers, "Content-Range", t->req->body->range);
        add_line(&headers, "Expect:"); /* else curl waits a second for "100 Continue" */
    } else if (t->req->method && strcmp(t->req->method, "POST") == 0) {
        add_line(&headers, "Content-Type:");
    }
    int rc = set_up(t, url, protocols, detail, headers, t->err);
    if (rc < 0)
        return rc;
    CURLcode code = curl_easy_perform(t->curl);
    if (t->rc < 0)
        return t->rc;
    if (code != CURLE_OK && !(code == CURLE_WRITE_ERROR && t->enough)) {
        rc = raise_curl(t, url, code, detail);
    } else {
        rc = begin_body(t); /* an answer without a body has begun nothing yet */
        take_status(t);
    }
    /* headers, detail and t end with this call; the handle lives on with its connections */
    curl_easy_reset(t->curl);
    return rc;
}

/* --- redirects --- */

static bool is_redirect(const struct http_response *r)
{
    switch (r->status) {
    case 301:
    case 302:
    case 303:
    case 307:
    case 308: return true;
    default: return false;
    }
}

char *http_origin(const char *url)
{
    CB_AUTO_FREE char *scheme = url_part(url, CURLUPART_SCHEME, 0);
    CB_AUTO_FREE char *host = url_part(url, CURLUPART_HOST, 0);
    CB_AUTO_FREE char *port = url_part(url, CURLUPART_PORT, CURLU_DEFAULT_PORT);
    return cb_xasprintf("%s://%s:%s", scheme ? scheme : "", host ? host : "", port ? port : "");
}

int http_follow(const char *url, const char *location, char **out, struct cb_error *err)
{
    CB_AUTO(url) u = curl_url();
    CB_AUTO(curl_text) text = NULL;
    CB_AUTO_FREE char *from = http_host(url);
    if (!location || strlen(location) > URL_MAX)
        return cb_fail(err, CB_E_NET, "%s redirects without saying where", from);
    if (!u || curl_url_set(u, CURLUPART_URL, url, 0) ||
        curl_url_set(u, CURLUPART_URL, location, CURLU_DISALLOW_USER) ||
        curl_url_get(u, CURLUPART_URL, &text, 0))
        return cb_fail(err, CB_E_UNTRUSTED, "%s redirects to something that is no URL", from);
    bool was_tls = strncasecmp(url, "https:", 6) == 0;
    bool is_tls = strncasecmp(text, "https:", 6) == 0;
    if (!is_tls && (was_tls || strncasecmp(text, "http:", 5) != 0))
        return cb_fail(err, CB_E_UNTRUSTED, "%s redirects away from HTTPS; that is refused", from);
    *out = cb_xstrdup(text);
    return 0;
}

/* What changes something is sent again only where the answer says that nothing was changed. */
static bool may_follow(const struct http_request *req, const struct http_response *r)
{
    bool reads = !req->method || strcmp(req->method, "GET") == 0 || is_head(req);
    return reads || r->status == 307 || r->status == 308;
}

int http_exchange(struct http_client *c, const struct http_request *req, struct http_response *r,
                  struct cb_error *err)
{
    CB_AUTO_ERROR own = CB_ERROR_INIT; /* the sink and the cases above need a place for words */
    CB_AUTO_FREE char *url = cb_xstrdup(req->url);
    CB_AUTO_FREE char *first = http_origin(req->url);
    CB_AUTO_FREE char *host = http_host(req->url);
    bool local = http_host_is_loopback(host);
    for (int hop = 0; hop <= REDIRECTS_MAX; hop++) {
        CB_AUTO_FREE char *here = http_origin(url);
        bool same = strcmp(first, here) == 0;
        struct transfer t = {.curl = c->curl,
                             .req = req,
                             .res = r,
                             .err = &own,
                             .stall_ms = c->stall_ms,
                             .first = same};
        t.foreign = (!same && !local) || req->led;
        int rc = transfer(&t, url, same ? req->authorization : NULL);
        if (req->sent && t.sent && (rc < 0 || !is_success(r)))
            (void)req->sent(req->arg, -(int64_t)t.sent);
        if (rc < 0) {
            cb_error_move(err, &own);
            return rc;
        }
        r->foreign = !same;
        if (!is_redirect(r))
            return 0;
        if (!may_follow(req, r))
            return cb_fail(err, CB_E_NET, "%s answered %ld to %s", host, r->status, req->method);
        char *next = NULL;
        rc = http_follow(url, r->location, &next, err);
        if (rc < 0)
            return rc;
        free(url);
        url = next;
        response_clear(r);
    }
    return cb_fail(err, CB_E_NET, "%s redirects more than %d times", host, REDIRECTS_MAX);
}
