#include "layers/registry.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/hash.h"
#include "support/limits.h"
#include "support/mem.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

enum {
    PLACES_MAX = 2,
    TRIES = 3,                 /* more tries after one that failed in passing */
    CONNECT_TRIES = 1,         /* a host that is not there rarely comes back at once */
    WAIT_MAX_S = 60,           /* a registry that asks for longer is not waited for */
    PROGRESS_RESETS = 1 << 20, /* bytes after which failures no longer add up */
    WORDS_MAX = 400,           /* of what a registry says */
};

#define ACCEPT OCI_INDEX ", " OCI_MANIFEST ", " DOCKER_LIST ", " DOCKER_MANIFEST

int64_t registry_second_ms = 1000;

/* A place to ask. */
struct place {
    char *base;  /* "https://registry-1.docker.io", without a slash at the end */
    char *host;  /* "127.0.0.1:5000" */
    char *label; /* in messages: "the registry", "the mirror http://127.0.0.1:5001" */
    char *ca_file;
    bool last; /* nobody is asked after it */
    struct auth_credentials credentials;
    pthread_mutex_t lock; /* guards what follows, also while a token is being asked for */
    char *authorization;  /* what the last answer to a challenge was, or NULL */
};

struct registry {
    struct place at[PLACES_MAX];
    size_t n;
    char *path;  /* repository */
    char *scope; /* of a token */
    const struct layers_progress *progress;
};

/* --- life cycle --- */

static int add_place(struct registry *r, const struct settings *settings, const char *base,
                     const char *ca_file, char *label, struct cb_error *err)
{
    struct place *p = &r->at[r->n++];
    size_t n = strlen(base);
    while (n && base[n - 1] == '/')
        n--;
    p->base = cb_xstrndup(base, n);
    p->host = http_host(base);
    p->label = label;
    p->ca_file = cb_xstrdup0(ca_file);
    (void)pthread_mutex_init(&p->lock, NULL);
    return auth_find_credentials(settings, p->host, &p->credentials, err);
}

static int add_mirror(struct registry *r, const struct settings *settings,
                      const struct registry_settings *own, struct cb_error *err)
{
    const char *url = own->mirror;
    if (strncasecmp(url, "http://", 7) != 0 && strncasecmp(url, "https://", 8) != 0)
        return cb_fail(err, CB_E_CONFIG,
                       "registries: %s: mirror: \"%s\" is no http or https address", own->host,
                       url);
    CB_AUTO_FREE char *host = http_host(url);
    const struct registry_settings *its = settings_find_registry(settings, host);
    const char *ca_file = its && its->ca_file ? its->ca_file : own->ca_file;
    return add_place(r, settings, url, ca_file, cb_xasprintf("the mirror %s", url), err);
}

static int add_host(struct registry *r, const struct settings *settings,
                    const struct registry_settings *own, const struct image_ref *ref,
                    struct cb_error *err)
{
    bool hub = strcmp(ref->domain, "docker.io") == 0;
    const char *host = hub ? "registry-1.docker.io" : ref->domain;
    const char *ca_file = own ? own->ca_file : NULL;
    /* who names an authority for a loopback host wants TLS there */
    bool plain = (own && own->insecure) || (http_host_is_loopback(host) && !ca_file);
    CB_AUTO_FREE char *base = cb_xasprintf("%s://%s", plain ? "http" : "https", host);
    bool named = strncmp(ref->text, ref->domain, strlen(ref->domain)) == 0;
    char *label = named ? cb_xstrdup("the registry") : cb_xasprintf("the registry %s", ref->domain);
    int rc = add_place(r, settings, base, ca_file, label, err);
    if (rc == 0 && hub && own && own->username && own->password) {
        /* credentials are kept under the name that people use */
        auth_credentials_release(&r->at[r->n - 1].credentials);
        rc = auth_find_credentials(settings, "docker.io", &r->at[r->n - 1].credentials, err);
    }
    return rc;
}

int registry_open(const struct settings *settings, const struct image_ref *ref,
                  const struct layers_progress *progress, struct registry **out,
                  struct cb_error *err)
{
    const struct registry_settings *own = settings_find_registry(settings, ref->domain);
    struct registry *r = cb_xcalloc(1, sizeof(*r));
    r->path = cb_xstrdup(ref->path);
    r->scope = cb_xasprintf("repository:%s:pull", ref->path);
    r->progress = progress;
    int rc = own && own->mirror ? add_mirror(r, settings, own, err) : 0;
    if (rc == 0)
        rc = add_host(r, settings, own, ref, err);
    if (rc < 0) {
        registry_free(r);
        return rc;
    }
    r->at[r->n - 1].last = true;
    *out = r;
    return 0;
}

void registry_free(struct registry *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->n; i++) {
        struct place *p = &r->at[i];
        free(p->base);
        free(p->host);
        free(p->label);
        free(p->ca_file);
        auth_credentials_release(&p->credentials);
        if (p->authorization)
            explicit_bzero(p->authorization, strlen(p->authorization));
        free(p->authorization);
        (void)pthread_mutex_destroy(&p->lock);
    }
    free(r->path);
    free(r->scope);
    free(r);
}

__attribute__((format(printf, 2, 3))) static void note(const struct registry *r, const char *fmt,
                                                       ...)
{
    if (!r->progress || !r->progress->note)
        return;
    va_list ap;
    va_start(ap, fmt);
    CB_AUTO_FREE char *text = cb_xvasprintf(fmt, ap);
    va_end(ap);
    r->progress->note(r->progress->arg, text);
}

/* --- one request with authorization --- */

/* Where a registry sends 401 without saying what it wants, its front door may say it. */
static int ping(struct place *p, struct http_client *c, struct cb_strv *challenges,
                struct cb_error *err)
{
    CB_AUTO_FREE char *url = cb_xasprintf("%s/v2/", p->base);
    struct http_request req = {.url = url, .ca_file = p->ca_file, .body_max = CB_JSON_MAX};
    struct http_response res = HTTP_RESPONSE_INIT;
    int rc = http_exchange(c, &req, &res, err);
    for (size_t i = 0; rc == 0 && !res.foreign && i < res.challenges.n; i++)
        cb_strv_add(challenges, res.challenges.v[i]);
    http_response_release(&res);
    return rc;
}

/* A new authorization after @used (may be NULL) was refused with @challenges. *@out is owned. */
static int renew(const struct registry *r, struct place *p, struct http_client *c, const char *used,
                 struct cb_strv *challenges, char **out, struct cb_error *err)
{
    struct auth_place place = {.label = p->label,
                               .scope = r->scope,
                               .ca_file = p->ca_file,
                               .plain_http = strncasecmp(p->base, "http:", 5) == 0,
                               .credentials = &p->credentials};
    char *fresh = NULL;
    int rc = 0;
    (void)pthread_mutex_lock(&p->lock);
    if (p->authorization && (!used || strcmp(used, p->authorization) != 0)) {
        *out = cb_xstrdup(p->authorization); /* another thread was here first */
    } else {
        if (challenges->n == 0)
            rc = ping(p, c, challenges, err);
        if (rc == 0)
            rc = auth_answer(c, &place, challenges, &fresh, err);
        if (rc == 0 && used && strcmp(used, fresh) == 0)
            rc = cb_fail(err, CB_E_AUTH, "%s refused the login of user %s", p->label,
                         p->credentials.username ? p->credentials.username : "(none)");
        if (rc == 0) {
            free(p->authorization);
            p->authorization = cb_take_ptr(&fresh);
            *out = cb_xstrdup(p->authorization);
        }
    }
    (void)pthread_mutex_unlock(&p->lock);
    free(fresh);
    return rc;
}

static char *current_authorization(struct place *p)
{
    (void)pthread_mutex_lock(&p->lock);
    char *copy = cb_xstrdup0(p->authorization);
    (void)pthread_mutex_unlock(&p->lock);
    return copy;
}

/* http_exchange(), and once more with a new authorization when the first answer was 401. */
static int ask(const struct registry *r, struct place *p, struct http_client *c,
               struct http_request *req, struct http_response *res, struct cb_error *err)
{
    CB_AUTO_FREE char *auth = current_authorization(p);
    CB_AUTO_FREE char *fresh = NULL;
    req->ca_file = p->ca_file;
    req->authorization = auth;
    int rc = http_exchange(c, req, res, err);
    if (rc == 0 && res->status == 401 && !res->foreign) {
        rc = renew(r, p, c, auth, &res->challenges, &fresh, err);
        http_response_release(res);
        req->authorization = fresh;
        if (rc == 0)
            rc = http_exchange(c, req, res, err);
    }
    req->authorization = NULL;
    return rc;
}

/* --- what an answer means --- */

static bool is_passing(long status)
{
    return status == 408 || status == 429 || (status >= 500 && status <= 599);
}

/* " MANIFEST_UNKNOWN: manifest unknown" from an errors body, or "". */
static void server_words(const struct http_response *res, char out[WORDS_MAX])
{
    json_error_t je;
    const char *text = res->body.data ? res->body.data : "";
    json_auto_t *root = json_loadb(text, res->body.len, 0, &je);
    const json_t *first = json_array_get(json_object_get(root, "errors"), 0);
    const char *code = json_string_value(json_object_get(first, "code"));
    const char *message = json_string_value(json_object_get(first, "message"));
    out[0] = '\0';
    if (code || message)
        (void)snprintf(out, WORDS_MAX, " %s%s%s", code ? code : "",
                       code && message && *message ? ": " : "", message ? message : "");
    else if (!root && res->content_type && strncasecmp(res->content_type, "text/plain", 10) == 0)
        (void)snprintf(out, WORDS_MAX, " %.*s", (int)strcspn(text, "\r\n"), text);
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    if (strcmp(out, " ") == 0)
        out[0] = '\0';
}

/* Raises what a status that is not the expected one means. */
static int bad_status(const struct place *p, const struct http_response *res, struct cb_error *err)
{
    char words[WORDS_MAX];
    server_words(res, words);
    enum cb_code code = CB_E_CORRUPT;
    if (is_passing(res->status))
        code = CB_E_NET;
    else if (res->status == 401 || res->status == 403)
        code = CB_E_AUTH;
    else if (res->status == 400 || res->status == 404 || res->status == 410)
        code = CB_E_NOTFOUND;
    if (res->status == 429 && res->retry_after_s > WAIT_MAX_S)
        cb_fail(err, code, "%s answered 429%s, to be asked again in %lld s", p->label, words,
                (long long)res->retry_after_s);
    else
        cb_fail(err, code, "%s answered %ld%s", p->label, res->status, words);
    switch (code) {
    case CB_E_AUTH:
        return cb_hint(
            err,
            "The image does not exist or is not public. For a private one give username "
            "and password under registries: %s: in the settings, or run: docker login %s",
            p->host, p->host);
    case CB_E_NOTFOUND:
        /* how Go's servers answer plain HTTP on a TLS port; to HEAD without a word */
        if (res->status == 400 && strncasecmp(p->base, "http:", 5) == 0)
            return cb_hint(err,
                           "It was asked by plain HTTP. If it speaks TLS, say so in the settings: "
                           "registries: %s: ca_file, or mirror: https://%s.",
                           p->host, p->host);
        return cb_hint(err, "Check the spelling of the image's name and of its tag.");
    case CB_E_NET:
        return cb_hint(err, res->status == 429
                                ? "Too many requests: wait, give credentials, or use a mirror."
                                : "The server has a problem; try again later.");
    default: return cb_hint(err, "Is this really the address of a registry?");
    }
}

/* --- trying again --- */

struct tries {
    unsigned n;    /* failures that were followed by another try */
    uint64_t from; /* where the download stood at the last of them */
};

static double wait_seconds(unsigned n, int64_t asked_s)
{
    uint32_t dice = 0;
    (void)!getrandom(&dice, sizeof(dice), GRND_NONBLOCK);
    double s = 0.5 * (double)(1u << n);
    if (asked_s > 0)
        s = (double)asked_s;
    return s * (1.0 + 0.25 * ((double)dice / 4294967296.0));
}

static void pause_for(double seconds)
{
    int64_t ms = (int64_t)(seconds * (double)registry_second_ms);
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    while (nanosleep(&ts, &ts) < 0) {
    }
}

/* After a failure (@rc < 0 and @err) or a passing status: waits and returns true when it is worth
 * another try; then @err and @res are fresh again. */
static bool again(const struct registry *r, const struct place *p, struct tries *t, int rc,
                  struct http_response *res, struct cb_error *err)
{
    unsigned max = TRIES;
    if (rc < 0 ? rc != -CB_E_NET && rc != -CB_E_TIMEOUT : !is_passing(res->status))
        return false;
    if (rc < 0 && res->unreachable)
        max = p->last ? CONNECT_TRIES : 0;
    if (t->n >= max || res->retry_after_s > WAIT_MAX_S)
        return false;
    double s = wait_seconds(t->n++, res->retry_after_s);
    if (rc < 0 && err)
        note(r, "%s; trying again in %.1f s", err->msg, s);
    else
        note(r, "%s answered %ld; trying again in %.1f s", p->host, res->status, s);
    cb_error_clear(err);
    http_response_release(res);
    pause_for(s);
    return true;
}

/* An error that another place would not change: disk full, our own mistake. */
static bool is_ours(int rc)
{
    switch (-rc) {
    case CB_E_SYS:
    case CB_E_ENV:
    case CB_E_BUG:
    case CB_E_CANCELED:
    case CB_E_CONFIG: return true;
    default: return false;
    }
}

/* Runs @op on each place until one delivers. */
static int each_place(struct registry *r,
                      int (*op)(struct registry *r, struct place *p, void *arg,
                                struct cb_error *err),
                      void *arg, struct cb_error *err)
{
    CB_AUTO_FREE char *before = NULL;
    for (size_t i = 0; i < r->n; i++) {
        CB_AUTO_ERROR one = CB_ERROR_INIT;
        int rc = op(r, &r->at[i], arg, &one);
        if (rc == 0)
            return 0;
        if (r->at[i].last || is_ours(rc)) {
            if (before) {
                CB_AUTO_FREE char *msg = one.msg;
                one.msg = cb_xasprintf("%s; before that, %s", msg, before);
            }
            return cb_error_move(err, &one);
        }
        note(r, "%s; asking %s", one.msg, r->at[i + 1].host);
        before = cb_take_ptr(&one.msg);
    }
    return cb_fail(err, CB_E_BUG, "no registry to ask");
}

/* --- manifests --- */

struct manifest_job {
    struct http_client *c;
    struct store *store;
    const char *tag;
    struct cb_digest *digest;
    struct cb_buf *body;
    char **type;
};

static int get_manifest(struct registry *r, struct place *p, struct http_client *c,
                        const char *name, bool head, struct tries *tries, struct http_response *res,
                        struct cb_error *err)
{
    CB_AUTO_FREE char *url = cb_xasprintf("%s/v2/%s/manifests/%s", p->base, r->path, name);
    struct http_request req = {.url = url, .head = head, .accept = ACCEPT, .body_max = CB_JSON_MAX};
    for (;;) {
        int rc = ask(r, p, c, &req, res, err);
        if (!again(r, p, tries, rc, res, err))
            return rc;
    }
}

/* Where the tag points, by HEAD (which costs nothing where pulls are counted). 1: known, in *@out;
 * 0: ask for the manifest itself, which also brings the words that an answer to HEAD cannot carry.
 */
static int head_digest(struct registry *r, struct place *p, const struct manifest_job *job,
                       struct tries *tries, struct cb_digest *out, struct cb_error *err)
{
    struct http_response res = HTTP_RESPONSE_INIT;
    int rc = get_manifest(r, p, job->c, job->tag, true, tries, &res, err);
    if (rc == 0 && res.status == 200)
        rc = res.digest && cb_digest_parse(res.digest, out);
    http_response_release(&res);
    return rc;
}

/* Checks and keeps what came. */
static int take_manifest(const struct place *p, const struct manifest_job *job,
                         struct http_response *res, const struct cb_digest *expect,
                         struct cb_error *err)
{
    struct cb_digest got;
    char is[CB_DIGEST_LEN + 1], should[CB_DIGEST_LEN + 1];
    if (res->status != 200)
        return bad_status(p, res, err);
    cb_sha256(res->body.data ? res->body.data : "", res->body.len, &got);
    struct cb_digest said = got;
    if (!expect && res->digest && cb_digest_parse(res->digest, &said))
        expect = &said;
    if (expect && !cb_digest_eq(expect, &got)) {
        cb_digest_text(&got, is);
        cb_digest_text(expect, should);
        return cb_fail(err, CB_E_CORRUPT, "%s sent a manifest with the digest %s instead of %s",
                       p->label, is, should);
    }
    int rc =
        store_blob_put(job->store, res->body.data ? res->body.data : "", res->body.len, NULL, err);
    if (rc < 0)
        return rc;
    *job->digest = got;
    cb_buf_release(job->body);
    *job->body = res->body;
    res->body = (struct cb_buf)CB_BUF_INIT(0);
    *job->type = cb_take_ptr(&res->content_type);
    return 0;
}

static int manifest_at(struct registry *r, struct place *p, void *arg, struct cb_error *err)
{
    struct manifest_job *job = arg;
    struct cb_digest digest = *job->digest;
    char name[CB_DIGEST_LEN + 1];
    struct tries tries = {
        0}; /* shared: who said no for good to HEAD is asked once more, not four times */
    int known = 1;
    if (job->tag)
        known = head_digest(r, p, job, &tries, &digest, err);
    if (known < 0)
        return known;
    if (known && store_blob_has(job->store, &digest)) {
        *job->digest = digest;
        return image_read_small(job->store, &digest, job->body, err);
    }
    cb_digest_text(&digest, name);
    struct http_response res = HTTP_RESPONSE_INIT;
    int rc = get_manifest(r, p, job->c, known ? name : job->tag, false, &tries, &res, err);
    if (rc == 0)
        rc = take_manifest(p, job, &res, known ? &digest : NULL, err);
    http_response_release(&res);
    return rc;
}

int registry_manifest(struct registry *r, struct http_client *c, struct store *s, const char *tag,
                      struct cb_digest *digest, struct cb_buf *body, char **type,
                      struct cb_error *err)
{
    struct manifest_job job = {c, s, tag, digest, body, type};
    cb_buf_init(body, CB_JSON_MAX);
    *type = NULL;
    return each_place(r, manifest_at, &job, err);
}

/* --- blobs --- */

struct blob_job {
    struct http_client *c;
    struct store *store;
    const struct cb_digest *digest;
    uint64_t size;
    registry_moved *moved;
    void *arg;
    const struct place *place;
    struct blob_writer *w;
};

/* False when whoever wants the blob does not want it any more. */
static bool moved(const struct blob_job *job, int64_t delta)
{
    return !job->moved || job->moved(job->arg, delta);
}

static int start_over(struct blob_job *job, struct cb_error *err)
{
    (void)moved(job, -(int64_t)blob_writer_offset(job->w));
    return blob_writer_restart(job->w, err);
}

/* "bytes 5-9/10": true when it is the rest of our blob from @from. */
static bool range_fits(const char *text, uint64_t from, uint64_t size)
{
    unsigned long long first, last;
    int at = 0;
    char total[24];
    if (!text || strncasecmp(text, "bytes ", 6) != 0 ||
        sscanf(text + 6, "%20llu-%20llu/%n", &first, &last, &at) != 2 || at == 0)
        return false;
    (void)snprintf(total, sizeof(total), "%llu", (unsigned long long)size);
    const char *rest = text + 6 + at;
    return first == from && last + 1 == size &&
           (strcmp(rest, total) == 0 || strcmp(rest, "*") == 0);
}

static int on_begin(void *arg, const struct http_response *res, struct cb_error *err)
{
    struct blob_job *job = arg;
    uint64_t from = blob_writer_offset(job->w);
    if (res->status == 206 && from > 0) {
        if (range_fits(res->content_range, from, job->size))
            return 0;
        return cb_fail(err, CB_E_CORRUPT, "%s sent another part of the blob than it was asked for",
                       job->place->label);
    }
    if (res->status != 200)
        return 0; /* raised after the transfer, with the server's words */
    if (res->length >= 0 && (uint64_t)res->length != job->size)
        return cb_fail(err, CB_E_CORRUPT,
                       "%s sends a blob of %lld bytes; the manifest says it has %llu",
                       job->place->label, (long long)res->length, (unsigned long long)job->size);
    return from > 0 ? start_over(job, err) : 0; /* our Range was ignored */
}

static int on_add(void *arg, const void *p, size_t n, struct cb_error *err)
{
    struct blob_job *job = arg;
    int rc = blob_writer_add(job->w, p, n, err);
    if (rc == 0 && !moved(job, (int64_t)n))
        rc = cb_fail(err, CB_E_CANCELED, "the download was stopped");
    return rc;
}

/* Until the writer holds all bytes. */
static int download(struct registry *r, struct place *p, struct blob_job *job, struct cb_error *err)
{
    char name[CB_DIGEST_LEN + 1];
    cb_digest_text(job->digest, name);
    CB_AUTO_FREE char *url = cb_xasprintf("%s/v2/%s/blobs/%s", p->base, r->path, name);
    struct tries tries = {.from = blob_writer_offset(job->w)};
    bool refused_range = false;
    while (blob_writer_offset(job->w) < job->size) {
        uint64_t from = blob_writer_offset(job->w);
        struct http_request req = {
            .url = url, .from = from, .begin = on_begin, .add = on_add, .arg = job};
        struct http_response res = HTTP_RESPONSE_INIT;
        int rc = ask(r, p, job->c, &req, &res, err);
        bool whole = rc == 0 && (res.status == 200 || (res.status == 206 && from > 0));
        if (rc == 0 && res.status == 416 && from > 0 && !refused_range) {
            refused_range = true;
            http_response_release(&res);
            rc = start_over(job, err);
            if (rc < 0)
                return rc;
            continue;
        }
        uint64_t now = blob_writer_offset(job->w);
        if (whole && now < job->size) /* no length was announced, so curl could not tell */
            rc = cb_fail(err, CB_E_NET, "%s: the blob ended after %llu of %llu bytes", p->host,
                         (unsigned long long)now, (unsigned long long)job->size);
        if (now >= tries.from + PROGRESS_RESETS)
            tries = (struct tries){.from = now};
        if ((rc < 0 || !whole) && !again(r, p, &tries, rc, &res, err)) {
            if (rc == 0)
                rc = bad_status(p, &res, err);
            http_response_release(&res);
            return rc;
        }
        http_response_release(&res);
    }
    return 0;
}

static int blob_at(struct registry *r, struct place *p, void *arg, struct cb_error *err)
{
    struct blob_job *job = arg;
    job->place = p;
    for (bool resumed = true; resumed;) {
        int rc = store_blob_begin(job->store, job->digest, job->size, &job->w, err);
        if (rc < 0)
            return rc;
        uint64_t had = blob_writer_offset(job->w);
        resumed = had > 0;
        (void)moved(job, (int64_t)had);
        rc = download(r, p, job, err);
        uint64_t now = blob_writer_offset(job->w);
        if (rc < 0) {
            (void)moved(job, -(int64_t)now);
            blob_writer_abort(job->w);
            return rc;
        }
        rc = blob_writer_commit(job->w, NULL, NULL, err);
        if (rc == 0)
            return 0;
        (void)moved(job, -(int64_t)now);
        if (rc != -CB_E_CORRUPT)
            return rc;
        if (!resumed)
            return cb_wrap(err, "%s", p->label);
        cb_error_clear(err); /* perhaps what was there before was bad: once more, all of it */
    }
    return 0;
}

int registry_blob(struct registry *r, struct http_client *c, struct store *s,
                  const struct cb_digest *digest, uint64_t size, registry_moved *on_moved,
                  void *arg, struct cb_error *err)
{
    struct blob_job job = {c, s, digest, size, on_moved, arg, NULL, NULL};
    char name[CB_DIGEST_LEN + 1];
    if (each_place(r, blob_at, &job, err) == 0)
        return 0;
    cb_digest_text(digest, name);
    return cb_wrap(err, "blob %.19s", name);
}
