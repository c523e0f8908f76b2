/* registry_session: see registry_private.h. */
#include "layers/registry_private.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <dirent.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

enum {
    TRIES = 3,                   /* more tries after one that failed in passing */
    CONNECT_TRIES = 1,           /* a host that is not there rarely comes back at once */
    WAIT_MAX_S = 60,             /* a registry that asks for longer is not waited for */
    PROGRESS_RESETS = 256 << 10, /* bytes after which failures no longer add up */
    WORDS_MAX = 400,             /* of what a registry says */
    EARLY_MS = 10000,            /* a token is renewed so long before it expires */
    CA_MAX = 4 << 20,
    WARNED_MAX = 64,
};

int64_t registry_second_ms = 1000;
const char *registry_certs_dirs[3] = {"/etc/containers/certs.d", "/etc/docker/certs.d", NULL};

/* --- life cycle --- */

/* Certificates that the administrator keeps for a host, as Docker and podman do: every *.crt is an
 * authority, X.cert with X.key is who we are. */
static int read_certs_dir(struct place *p, const char *dir, struct cb_error *err)
{
    struct dirent **names = NULL;
    CB_AUTO_BUF pem = CB_BUF_INIT(CA_MAX);
    int rc = 0, n = scandir(dir, &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, names[i]->d_name);
        const char *dot = strrchr(path, '.');
        CB_AUTO_BUF one = CB_BUF_INIT(0);
        if (rc == 0 && strcmp(dot, ".crt") == 0) {
            rc = cb_read_file(path, CA_MAX, &one, err);
            if (rc == 0 && cb_buf_addf(&pem, "%s\n", one.data ? one.data : "") < 0)
                rc = cb_fail(err, CB_E_LIMIT, "%s: more than 4 MiB of certificates", dir);
        } else if (rc == 0 && !p->cert_file && strcmp(dot, ".cert") == 0) {
            p->key_file = cb_xasprintf("%.*s.key", (int)(dot - path), path);
            p->cert_file = cb_take_ptr(&path);
            if (!cb_path_exists(p->key_file))
                rc = cb_fail(err, CB_E_CONFIG, "%s has no key beside it (%s)", p->cert_file,
                             p->key_file);
        }
        free(names[i]);
    }
    free(names);
    if (rc == 0 && pem.len)
        p->ca_pem = cb_buf_take(&pem);
    return rc;
}

/* What the settings say of certificates, else what the folders have. */
static int find_certificates(struct place *p, const struct registry_settings *its,
                             const struct registry_settings *own, struct cb_error *err)
{
    const struct registry_settings *from[] = {its, own};
    for (size_t i = 0; i < 2; i++) {
        if (!from[i])
            continue;
        if (!p->ca_file)
            p->ca_file = cb_xstrdup0(from[i]->ca_file);
        if (!p->cert_file && from[i]->client_cert) {
            p->cert_file = cb_xstrdup(from[i]->client_cert);
            p->key_file = cb_xstrdup0(from[i]->client_key);
        }
    }
    int rc = 0;
    for (size_t i = 0; registry_certs_dirs[i] && rc == 0; i++) {
        if (p->ca_file || p->cert_file || p->ca_pem)
            break;
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%s", registry_certs_dirs[i], p->host);
        rc = read_certs_dir(p, dir, err);
    }
    return rc;
}

/* A new place; @base is complete but for its scheme when that is NULL, and then the certificates
 * decide. */
static struct place *new_place(struct registry *r, const char *host, char *label)
{
    struct place *p = &r->at[r->n++];
    p->host = cb_xstrdup(host);
    p->logins = cb_xstrdup(host);
    p->label = label;
    p->query = cb_xstrdup("");
    (void)pthread_mutex_init(&p->lock, NULL);
    return p;
}

static int find_login(const struct registry *r, struct place *p, struct cb_error *err)
{
    int rc = auth_find_credentials(r->settings, p->logins, r->path, &p->credentials, err);
    if (rc == 0 && p->credentials.trouble && !auth_has_credentials(&p->credentials))
        registry_note(r, "warning: %s; going on without a login", p->credentials.trouble);
    return rc;
}

static int add_mirror(struct registry *r, const char *url, const struct registry_settings *own,
                      struct cb_error *err)
{
    if (strncasecmp(url, "http://", 7) != 0 && strncasecmp(url, "https://", 8) != 0)
        return cb_fail(err, CB_E_CONFIG,
                       "registries: %s: mirror: \"%s\" is no http or https address", own->host,
                       url);
    if (r->n + 1 >= REGISTRY_PLACES_MAX)
        return cb_fail(err, CB_E_CONFIG, "registries: %s: more than %d mirrors", own->host,
                       REGISTRY_PLACES_MAX - 1);
    CB_AUTO_FREE char *host = http_host(url);
    struct place *p = new_place(r, host, cb_xasprintf("the mirror %s", url));
    size_t n = strlen(url);
    while (n && url[n - 1] == '/')
        n--;
    p->base = cb_xstrndup(url, n);
    free(p->query);
    p->query = cb_xasprintf("?ns=%s", r->domain); /* for one that stands before several hosts */
    int rc = find_certificates(p, settings_find_registry(r->settings, host), own, err);
    return rc < 0 ? rc : find_login(r, p, err);
}

static int add_host(struct registry *r, const struct registry_settings *own,
                    const struct image_ref *ref, struct cb_error *err)
{
    bool hub = strcmp(ref->domain, "docker.io") == 0;
    const char *host = hub ? "registry-1.docker.io" : ref->domain;
    bool named = strncmp(ref->text, ref->domain, strlen(ref->domain)) == 0;
    struct place *p = new_place(
        r, host, named ? cb_xstrdup("the registry") : cb_xasprintf("the registry %s", ref->domain));
    int rc = find_certificates(p, own, NULL, err);
    /* who names an authority or a certificate for a loopback host wants TLS there */
    bool tls = p->ca_file || p->ca_pem || p->cert_file;
    bool plain = (own && own->insecure) || (http_host_is_loopback(host) && !tls);
    p->base = cb_xasprintf("%s://%s", plain ? "http" : "https", host);
    if (hub) { /* credentials are kept under the name that people use */
        free(p->logins);
        p->logins = cb_xstrdup("docker.io");
    }
    p->last = true;
    return rc < 0 ? rc : find_login(r, p, err);
}

static struct registry *new_registry(const struct settings *settings, const struct image_ref *ref,
                                     const struct layers_progress *progress)
{
    struct registry *r = cb_xcalloc(1, sizeof(*r));
    r->settings = settings;
    r->domain = cb_xstrdup(ref->domain);
    r->path = cb_xstrdup(ref->path);
    r->progress = progress;
    (void)pthread_mutex_init(&r->lock, NULL);
    return r;
}

static int opened(struct registry *r, int rc, struct registry **out)
{
    if (rc < 0)
        registry_free(r);
    else
        *out = r;
    return rc;
}

int registry_open(const struct settings *settings, const struct image_ref *ref,
                  const struct layers_progress *progress, struct registry **out,
                  struct cb_error *err)
{
    const struct registry_settings *own = settings_find_registry(settings, ref->domain);
    struct registry *r = new_registry(settings, ref, progress);
    r->scope = cb_xasprintf("repository:%s:pull", ref->path);
    int rc = own && own->mirror ? add_mirror(r, own->mirror, own, err) : 0;
    for (size_t i = 0; own && i < own->mirrors.n && rc == 0; i++)
        rc = add_mirror(r, own->mirrors.v[i], own, err);
    if (rc == 0)
        rc = add_host(r, own, ref, err);
    return opened(r, rc, out);
}

int registry_open_push(const struct settings *settings, const struct image_ref *ref,
                       const char *from, const struct layers_progress *progress,
                       struct registry **out, struct cb_error *err)
{
    const struct registry_settings *own = settings_find_registry(settings, ref->domain);
    struct registry *r = new_registry(settings, ref, progress);
    r->scope = cb_xasprintf("repository:%s:pull,push", ref->path);
    r->more = from ? cb_xasprintf("%s repository:%s:pull", r->scope, from) : cb_xstrdup(r->scope);
    int rc = add_host(r, own, ref, err);
    r->at[0].pushing = true;
    return opened(r, rc, out);
}

struct http_client *registry_client(const struct registry *r)
{
    return http_client_new((int64_t)r->settings->stall_seconds * 1000);
}

static void forget_authorization(struct place *p)
{
    if (p->authorization)
        explicit_bzero(p->authorization, strlen(p->authorization));
    free(p->authorization);
    p->authorization = NULL;
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
        free(p->query);
        free(p->logins);
        free(p->ca_file);
        free(p->ca_pem);
        free(p->cert_file);
        free(p->key_file);
        auth_credentials_release(&p->credentials);
        cb_strv_release(&p->challenges);
        forget_authorization(p);
        (void)pthread_mutex_destroy(&p->lock);
    }
    (void)pthread_mutex_destroy(&r->lock);
    cb_strv_release(&r->warned);
    free(r->domain);
    free(r->path);
    free(r->scope);
    free(r->more);
    free(r);
}

void registry_note(const struct registry *r, const char *fmt, ...)
{
    if (!r->progress || !r->progress->note)
        return;
    va_list ap;
    va_start(ap, fmt);
    CB_AUTO_FREE char *text = cb_xvasprintf(fmt, ap);
    va_end(ap);
    r->progress->note(r->progress->arg, text);
}

/* What a registry wants its users to know is said once. */
static void pass_on_warnings(struct registry *r, const struct place *p,
                             const struct http_response *res)
{
    for (size_t i = 0; i < res->warnings.n; i++) {
        bool known = false;
        (void)pthread_mutex_lock(&r->lock);
        for (size_t k = 0; k < r->warned.n && !known; k++)
            known = strcmp(r->warned.v[k], res->warnings.v[i]) == 0;
        if (!known && r->warned.n < WARNED_MAX)
            cb_strv_add(&r->warned, res->warnings.v[i]);
        else
            known = true;
        (void)pthread_mutex_unlock(&r->lock);
        if (!known)
            registry_note(r, "%s says: %s", p->host, res->warnings.v[i]);
    }
}

/* --- one request with authorization --- */

static struct http_tls tls_of(const struct place *p)
{
    return (struct http_tls){.ca_file = p->ca_file,
                             .ca_pem = p->ca_pem,
                             .cert_file = p->cert_file,
                             .key_file = p->key_file};
}

/* Where a registry sends 401 without saying what it wants, its front door may say it. */
static int ping(struct place *p, struct http_client *c, struct cb_strv *challenges,
                struct cb_error *err)
{
    CB_AUTO_FREE char *url = cb_xasprintf("%s/v2/", p->base);
    struct http_request req = {.url = url, .tls = tls_of(p), .body_max = CB_JSON_MAX};
    struct http_response res = HTTP_RESPONSE_INIT;
    int rc = http_exchange(c, &req, &res, err);
    for (size_t i = 0; rc == 0 && !res.foreign && i < res.challenges.n; i++)
        cb_strv_add(challenges, res.challenges.v[i]);
    http_response_release(&res);
    return rc;
}

/* Asks for an authorization by p->challenges and keeps it. The lock is held. */
static int answer_challenges(const struct registry *r, struct place *p, struct http_client *c,
                             struct cb_error *err)
{
    struct auth_place place = {.label = p->label,
                               .scope = r->scope,
                               .more = r->more,
                               .tls = tls_of(p),
                               .plain_http = strncasecmp(p->base, "http:", 5) == 0,
                               .credentials = &p->credentials};
    struct auth_answer answer;
    int rc = auth_answer(c, &place, &p->challenges, &answer, err);
    if (rc < 0)
        return rc;
    forget_authorization(p);
    p->authorization = answer.authorization;
    p->expires_ms = answer.expires_s ? cb_monotonic_ms() + answer.expires_s * 1000 : 0;
    return 0;
}

/* The login that was refused may have been renewed since. True when it was. The lock is held. */
static bool find_login_again(const struct registry *r, struct place *p)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct auth_credentials now;
    if (!p->credentials.renewable ||
        auth_find_credentials(r->settings, p->logins, r->path, &now, &err) < 0)
        return false;
    auth_credentials_release(&p->credentials);
    p->credentials = now;
    return true;
}

/* A new authorization after @used (may be NULL) was refused with @challenges. *@out is owned. */
static int renew(const struct registry *r, struct place *p, struct http_client *c, const char *used,
                 struct cb_strv *challenges, char **out, struct cb_error *err)
{
    int rc = 0;
    (void)pthread_mutex_lock(&p->lock);
    if (!p->authorization || (used && strcmp(used, p->authorization) == 0)) {
        if (challenges->n == 0)
            rc = ping(p, c, challenges, err);
        cb_strv_release(&p->challenges);
        p->challenges = *challenges;
        *challenges = (struct cb_strv){0};
        if (used)
            (void)find_login_again(r, p);
        if (rc == 0)
            rc = answer_challenges(r, p, c, err);
        if (rc == 0 && used && strcmp(used, p->authorization) == 0)
            rc = cb_fail(err, CB_E_AUTH, "%s refused the login of user %s", p->label,
                         p->credentials.username ? p->credentials.username : "(none)");
    } /* else another thread was here first */
    if (rc == 0)
        *out = cb_xstrdup(p->authorization);
    (void)pthread_mutex_unlock(&p->lock);
    return rc;
}

/* What to send with a request, renewed when it is about to expire. Owned, or NULL. */
static char *current_authorization(const struct registry *r, struct place *p, struct http_client *c)
{
    (void)pthread_mutex_lock(&p->lock);
    if (p->authorization && p->expires_ms && cb_monotonic_ms() > p->expires_ms - EARLY_MS) {
        CB_AUTO_ERROR err = CB_ERROR_INIT; /* then the request will tell */
        if (answer_challenges(r, p, c, &err) < 0)
            p->expires_ms = 0;
    }
    char *copy = cb_xstrdup0(p->authorization);
    (void)pthread_mutex_unlock(&p->lock);
    return copy;
}

int registry_ask(struct registry *r, struct place *p, struct http_client *c,
                 struct http_request *req, struct http_response *res, struct cb_error *err)
{
    CB_AUTO_FREE char *auth = current_authorization(r, p, c);
    CB_AUTO_FREE char *fresh = NULL;
    req->tls = tls_of(p);
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
    if (rc == 0)
        pass_on_warnings(r, p, res);
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

static int hint_of_pushing(const struct place *p, long status, struct cb_error *err)
{
    if (status == 401 || status == 403)
        return cb_hint(err,
                       "Who may push there? Give username and password under registries: %s: in "
                       "the settings, or run: docker login %s",
                       p->host, p->host);
    if (status == 404 || status == 405)
        return cb_hint(err, "Does this registry take pushes, and has it such a repository?");
    if (status == 413)
        return cb_hint(err, "The registry, or a proxy before it, has a limit on sizes.");
    return cb_hint(err, is_passing(status) ? "The server has a problem; try again later."
                                           : "Is this really the address of a registry?");
}

int registry_bad_status(const struct place *p, const struct http_response *res,
                        struct cb_error *err)
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
    if (p->pushing)
        return hint_of_pushing(p, res->status, err);
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

bool registry_again(const struct registry *r, const struct place *p, struct tries *t, int rc,
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
        registry_note(r, "%s; trying again in %.1f s", err->msg, s);
    else
        registry_note(r, "%s answered %ld; trying again in %.1f s", p->host, res->status, s);
    cb_error_clear(err);
    http_response_release(res);
    pause_for(s);
    return true;
}

void registry_progressed(struct tries *t, uint64_t now)
{
    if (now >= t->from + PROGRESS_RESETS)
        *t = (struct tries){.from = now};
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

int registry_each_place(struct registry *r,
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
        registry_note(r, "%s; asking %s", one.msg, r->at[i + 1].host);
        char *all = before ? cb_xasprintf("%s; %s", before, one.msg) : cb_take_ptr(&one.msg);
        free(before);
        before = all;
    }
    return cb_fail(err, CB_E_BUG, "no registry to ask");
}
