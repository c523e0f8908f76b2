#include "builder/gcp.h"

#include "builder/emit.h"
#include "builder/machine.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/jwt.h"
#include "support/mem.h"

#include <curl/curl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum {
    CONNECT_MS = 2000,
    TOTAL_MS = 10000,
    REPLY_MAX = 64 << 10,
    FILE_MAX = 64 << 10,
    TOKENS_MAX = 8,    /* of different scopes */
    FETCHES_MAX = 200, /* in one build: commands choose the scopes */
    SCOPES_MAX = 2048,
    MARGIN_MS = 225000, /* a token is not given out when it ends sooner */
    SKEW_S = 30,
};
#define SCOPE_PREFIX "https://www.googleapis.com/auth/"
#define SCOPE_DEFAULT SCOPE_PREFIX "cloud-platform"
#define TOKEN_URI "https://oauth2.googleapis.com/token"
#define METADATA_HOST "169.254.169.254"

CB_DEFINE_CLEANUP(curl, CURL *, curl_easy_cleanup);
CB_DEFINE_CLEANUP(slist, struct curl_slist *, curl_slist_free_all);

struct token {
    char *scopes, *text;
    int64_t until_ms; /* monotonic */
};

struct gcp {
    enum { FROM_KEY, FROM_USER, FROM_METADATA } kind;
    struct emitter *em;
    char *who, *email, *project, *scopes;
    char *key_id, *pem, *token_uri;                  /* FROM_KEY */
    char *client_id, *client_secret, *refresh_token; /* FROM_USER, and token_uri */
    char *host;                                      /* FROM_METADATA */
    struct token tokens[TOKENS_MAX];
    size_t n_tokens;
    unsigned fetches;
};

static void forget(char **text)
{
    if (*text)
        explicit_bzero(*text, strlen(*text));
    free(*text);
    *text = NULL;
}

static void token_release(struct token *t)
{
    free(t->scopes);
    forget(&t->text);
}

void gcp_free(struct gcp *g)
{
    if (!g)
        return;
    char **const owned[] = {&g->who,           &g->email,         &g->project,   &g->scopes,
                            &g->key_id,        &g->pem,           &g->token_uri, &g->client_id,
                            &g->client_secret, &g->refresh_token, &g->host};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++)
        forget(owned[i]);
    for (size_t i = 0; i < g->n_tokens; i++)
        token_release(&g->tokens[i]);
    free(g);
}

const char *gcp_who(const struct gcp *g)
{
    return g->who;
}

const char *gcp_email(const struct gcp *g)
{
    return g->email;
}

const char *gcp_scopes(const struct gcp *g)
{
    return g->scopes;
}

const char *gcp_project(const struct gcp *g)
{
    return g->project ? g->project : "";
}

/* ---- HTTP ---- */

struct call {
    const char *url, *form; /* NULL: GET */
    bool metadata;          /* with its header, and the answer has to have it */
    struct cb_buf reply;
    bool flavored;
    long status;
};

static size_t on_body(char *p, size_t one, size_t n, void *arg)
{
    struct call *c = arg;
    (void)one;
    return cb_buf_add(&c->reply, p, n) < 0 ? 0 : n;
}

static size_t on_header(char *p, size_t one, size_t n, void *arg)
{
    static const char flavor[] = "Metadata-Flavor: Google";
    struct call *c = arg;
    (void)one;
    if (n >= sizeof(flavor) - 1 && strncasecmp(p, flavor, sizeof(flavor) - 1) == 0)
        c->flavored = true;
    return n;
}

static int on_progress(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)arg;
    (void)a;
    (void)b;
    (void)c;
    (void)d;
    return machine_canceled();
}

static CURLcode set_options(CURL *curl, struct call *c, struct curl_slist *headers, char *why)
{
#define SET(option, value)                                                                         \
    do {                                                                                           \
        CURLcode set_rc_ = curl_easy_setopt(curl, option, value);                                  \
        if (set_rc_ != CURLE_OK)                                                                   \
            return set_rc_;                                                                        \
    } while (0)
    SET(CURLOPT_ERRORBUFFER, why);
    SET(CURLOPT_URL, c->url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS * (c->metadata ? 1 : 3));
    SET(CURLOPT_TIMEOUT_MS, (long)TOTAL_MS);
    SET(CURLOPT_USERAGENT, "capsule-build");
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, (void *)c);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, (void *)c);
    SET(CURLOPT_XFERINFOFUNCTION, on_progress);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_HTTPHEADER, headers);
    if (c->metadata)
        SET(CURLOPT_NOPROXY, "*");
    if (c->form)
        SET(CURLOPT_POSTFIELDS, c->form);
    const char *ca = getenv("CURL_CA_BUNDLE"); /* `ca_bundle` of the settings */
    if (ca && *ca)
        SET(CURLOPT_CAINFO, ca);
#undef SET
    return CURLE_OK;
}

static int http(struct call *c, struct cb_error *err)
{
    CB_AUTO(curl) curl = curl_easy_init();
    CB_AUTO(slist)
    headers = c->metadata ? curl_slist_append(NULL, "Metadata-Flavor: Google") : NULL;
    char why[CURL_ERROR_SIZE] = "";
    cb_buf_init(&c->reply, REPLY_MAX);
    if (!curl)
        return cb_fail(err, CB_E_BUG, "libcurl does not start");
    CURLcode rc = set_options(curl, c, headers, why);
    if (rc == CURLE_OK)
        rc = curl_easy_perform(curl);
    if (rc == CURLE_ABORTED_BY_CALLBACK)
        return cb_fail(err, CB_E_CANCELED, "canceled");
    if (rc != CURLE_OK)
        return cb_fail(err, CB_E_NET, "%s: %s", c->url, *why ? why : curl_easy_strerror(rc));
    (void)curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &c->status);
    return 0;
}

static void call_release(struct call *c)
{
    if (c->reply.data)
        explicit_bzero(c->reply.data, c->reply.len);
    cb_buf_release(&c->reply);
}

/* ---- credentials ---- */

static char *text_of(json_t *o, const char *name)
{
    const char *s = json_string_value(json_object_get(o, name));
    return s && *s ? cb_xstrdup(s) : NULL;
}

/* Where a secret is sent: nobody on the way may read it. */
static bool may_be_asked(const char *url)
{
    static const char loopback[] = "http://127.0.0.1:";
    if (strncmp(url, "https://", 8) == 0)
        return true;
    if (strncmp(url, loopback, strlen(loopback)) != 0)
        return false;
    size_t port = strspn(url + strlen(loopback), "0123456789"); /* no "...:80@elsewhere" */
    return port && (url[strlen(loopback) + port] == '/' || url[strlen(loopback) + port] == '\0');
}

static int take_file(struct gcp *g, const char *path, json_t *o, struct cb_error *err)
{
    const char *type = json_string_value(json_object_get(o, "type"));
    g->token_uri = text_of(o, "token_uri");
    if (!g->token_uri)
        g->token_uri = cb_xstrdup(TOKEN_URI);
    if (!may_be_asked(g->token_uri))
        return cb_fail(err, CB_E_CONFIG, "%s: its token_uri is not one with https", path);
    if (type && strcmp(type, "service_account") == 0) {
        g->kind = FROM_KEY;
        g->email = text_of(o, "client_email");
        g->key_id = text_of(o, "private_key_id");
        g->pem = text_of(o, "private_key");
        g->project = text_of(o, "project_id");
        if (!g->email || !g->pem)
            return cb_fail(err, CB_E_CONFIG, "%s: a key file has client_email and private_key",
                           path);
        g->who = cb_xasprintf("%s (key file %s)", g->email, path);
        return 0;
    }
    if (type && strcmp(type, "authorized_user") == 0) {
        g->kind = FROM_USER;
        g->email = cb_xstrdup("default");
        g->client_id = text_of(o, "client_id");
        g->client_secret = text_of(o, "client_secret");
        g->refresh_token = text_of(o, "refresh_token");
        g->project = text_of(o, "quota_project_id");
        if (!g->client_id || !g->client_secret || !g->refresh_token)
            return cb_fail(err, CB_E_CONFIG,
                           "%s: a user's file has client_id, client_secret and refresh_token",
                           path);
        g->who = cb_xasprintf("the user of %s", path);
        return 0;
    }
    return cb_fail(err, CB_E_CONFIG, "%s: of type %s; service_account and authorized_user work",
                   path, type ? type : "unknown");
}

static int read_credential(struct gcp *g, const char *path, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(FILE_MAX);
    int rc = cb_read_file(path, FILE_MAX, &text, err);
    if (rc < 0) {
        err->code = CB_E_CONFIG;
        return -(int)CB_E_CONFIG;
    }
    json_auto_t *o = json_loadb(text.data ? text.data : "", text.len, 0, NULL);
    if (text.data)
        explicit_bzero(text.data, text.len);
    return json_is_object(o) ? take_file(g, path, o, err)
                             : cb_fail(err, CB_E_CONFIG, "%s is no JSON object", path);
}

static int ask_metadata(struct gcp *g, const char *path, struct call *c, struct cb_error *err)
{
    CB_AUTO_FREE char *url = cb_xasprintf("http://%s/computeMetadata/v1/%s", g->host, path);
    *c = (struct call){.url = url, .metadata = true};
    int rc = http(c, err);
    if (rc < 0)
        return rc;
    if (!c->flavored)
        return cb_fail(err, CB_E_UNTRUSTED, "%s is no metadata server of Google's", g->host);
    return c->status == 200
               ? 0
               : cb_fail(err, c->status == 404 || c->status == 403 ? CB_E_AUTH : CB_E_NET,
                         "the metadata server answers %ld to %s", c->status, path);
}

static int text_of_metadata(struct gcp *g, const char *path, char **out, struct cb_error *err)
{
    struct call c = {0};
    int rc = ask_metadata(g, path, &c, err);
    if (rc == 0)
        *out = cb_xstrndup(c.reply.data ? c.reply.data : "",
                           strcspn(c.reply.data ? c.reply.data : "", "\r\n\t \""));
    call_release(&c);
    return rc;
}

static int find_metadata(struct gcp *g, struct cb_error *err)
{
    const char *host = getenv("GCE_METADATA_HOST");
    CB_AUTO_ERROR no_project = CB_ERROR_INIT;
    g->kind = FROM_METADATA;
    g->host = cb_xstrdup(host && *host ? host : METADATA_HOST);
    if (text_of_metadata(g, "instance/service-accounts/default/email", &g->email, err) < 0) {
        cb_wrap(err,
                "no credential of Google Cloud: no key file is named, and this machine is none "
                "of Google's with a service account");
        err->code = err->code == CB_E_CANCELED ? CB_E_CANCELED : CB_E_ENV;
        return cb_hint(err, "set config.auth.providers.gcp.key_file_ref, or "
                            "GOOGLE_APPLICATION_CREDENTIALS, to a service account's key file");
    }
    (void)text_of_metadata(g, "project/project-id", &g->project, &no_project);
    g->who = cb_xasprintf("%s (metadata server %s)", g->email, g->host);
    return 0;
}

/* ---- scopes ---- */

static bool is_scope(const char *p, size_t n)
{
    static const char ok[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:";
    return n > 0 && n <= 256 && strspn(p, ok) >= n;
}

/* Those that are no URLs: OpenID's. */
static bool is_bare(const char *p, size_t n)
{
    static const char *const bare[] = {"openid", "email", "profile"};
    for (size_t i = 0; i < sizeof(bare) / sizeof(bare[0]); i++)
        if (strlen(bare[i]) == n && strncmp(p, bare[i], n) == 0)
            return true;
    return memchr(p, ':', n) != NULL;
}

/* "a,https://..." with each a whole URL. Owned; NULL: not scopes. */
static char *whole_scopes(const char *text)
{
    CB_AUTO_BUF out = CB_BUF_INIT(SCOPES_MAX);
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, ", ");
        if (!is_scope(p, n) || cb_buf_addf(&out, "%s%s%.*s", out.len ? "," : "",
                                           is_bare(p, n) ? "" : SCOPE_PREFIX, (int)n, p) < 0)
            return NULL;
        p += n + (p[n] != '\0');
    }
    return out.len ? cb_buf_take(&out) : NULL;
}

static void set_scopes(struct gcp *g, char *taken)
{
    free(g->scopes);
    g->scopes = taken;
}

int gcp_set_scopes(struct gcp *g, const struct cb_strv *args, struct cb_error *err)
{
    CB_AUTO_BUF all = CB_BUF_INIT(SCOPES_MAX);
    for (size_t i = 0; i < args->n; i++) {
        const char *value = NULL;
        if (strncmp(args->v[i], "--scope=", 8) == 0)
            value = args->v[i] + 8;
        else if (strcmp(args->v[i], "--scope") == 0 && i + 1 < args->n)
            value = args->v[++i];
        if (!value || cb_buf_addf(&all, "%s%s", all.len ? "," : "", value) < 0)
            return cb_fail(err, CB_E_CONFIG, "gcp-auth: expected `--scope NAME`, found %s",
                           args->v[i]);
    }
    if (!all.len)
        return 0;
    char *scopes = whole_scopes(all.data);
    if (!scopes)
        return cb_fail(err, CB_E_CONFIG, "gcp-auth: %s is no list of scopes", all.data);
    set_scopes(g, scopes);
    return 0;
}

/* ---- what config.auth says ---- */

static int take_config(struct gcp *g, const struct workload_config *c, char **file,
                       struct cb_error *err)
{
    json_auto_t *o = c->auth ? json_loads(c->auth, 0, NULL) : NULL;
    json_t *gcp = json_object_get(json_object_get(o, "providers"), "gcp");
    json_t *scopes = json_object_get(gcp, "scopes"), *v;
    size_t i;
    CB_AUTO_BUF all = CB_BUF_INIT(SCOPES_MAX);
    json_array_foreach(scopes, i, v)(void)
        cb_buf_addf(&all, "%s%s", i ? "," : "", json_string_value(v) ? json_string_value(v) : "?");
    /* what cannot be read asks for nothing, least of all for the widest one */
    if (scopes && (!json_is_array(scopes) || !all.len || all.over))
        return cb_fail(err, CB_E_CONFIG,
                       "config.auth.providers.gcp.scopes: expected a list of scopes");
    set_scopes(g, whole_scopes(scopes ? all.data : SCOPE_DEFAULT));
    if (!g->scopes)
        return cb_fail(err, CB_E_CONFIG, "config.auth.providers.gcp.scopes: %s are no scopes",
                       all.data);
    json_t *ref = json_object_get(gcp, "key_file_ref");
    if (ref && !json_is_string(ref))
        return cb_fail(err, CB_E_CONFIG, "config.auth.providers.gcp.key_file_ref: expected a path");
    *file = text_of(gcp, "key_file_ref");
    if (*file && **file != '/')
        return cb_fail(err, CB_E_CONFIG,
                       "config.auth.providers.gcp.key_file_ref: %s is no absolute path", *file);
    if (c->tenant_gcp_project) {
        free(g->project);
        g->project = cb_xstrdup(c->tenant_gcp_project);
    }
    return 0;
}

int gcp_open(const struct workload_config *c, struct emitter *em, struct gcp **out,
             struct cb_error *err)
{
    struct gcp *g = cb_xcalloc(1, sizeof(*g));
    CB_AUTO_FREE char *file = NULL;
    const char *token = NULL, *by_env = getenv("GOOGLE_APPLICATION_CREDENTIALS");
    int64_t left = 0;
    g->em = em;
    int rc = take_config(g, c, &file, err);
    char *project = cb_take_ptr(&g->project); /* the config's wins */
    if (rc == 0 && !file && by_env && *by_env)
        file = cb_xstrdup(by_env);
    if (rc == 0)
        rc = file ? read_credential(g, file, err) : find_metadata(g, err);
    if (project) {
        free(g->project);
        g->project = project;
    }
    if (rc == 0)
        rc = gcp_token(g, NULL, &token, &left, err);
    if (rc < 0) {
        gcp_free(g);
        return cb_wrap(err, "gcp-auth");
    }
    *out = g;
    return 0;
}

/* ---- tokens ---- */

static char *escape(const char *text)
{
    char *e = curl_easy_escape(NULL, text, 0), *out = cb_xstrdup(e ? e : "");
    curl_free(e);
    return out;
}

static char *key_form(const struct gcp *g, const char *scopes, struct cb_error *err)
{
    CB_AUTO_FREE char *spaced = cb_xstrdup(scopes);
    for (char *p = spaced; *p; p++)
        *p = *p == ',' ? ' ' : *p;
    json_int_t iat = cb_now_ms() / 1000 - SKEW_S;
    json_auto_t *head =
        json_pack("{s:s, s:s, s:s*}", "alg", "RS256", "typ", "JWT", "kid", g->key_id);
    json_auto_t *claims = json_pack("{s:s, s:s, s:s, s:I, s:I}", "iss", g->email, "scope", spaced,
                                    "aud", g->token_uri, "iat", iat, "exp", iat + 3600);
    CB_AUTO_FREE char *h = head ? json_dumps(head, JSON_COMPACT) : NULL;
    CB_AUTO_FREE char *b = claims ? json_dumps(claims, JSON_COMPACT) : NULL;
    CB_AUTO_FREE char *jwt = NULL;
    if (!h || !b) {
        cb_fail(err, CB_E_CONFIG, "the key file has a text that is not UTF-8");
        return NULL;
    }
    if (cb_jwt_rs256(g->pem, h, b, &jwt, err) < 0)
        return NULL;
    return cb_xasprintf("grant_type=urn%%3Aietf%%3Aparams%%3Aoauth%%3Agrant-type%%3Ajwt-bearer&"
                        "assertion=%s",
                        jwt);
}

static char *user_form(const struct gcp *g)
{
    CB_AUTO_FREE char *id = escape(g->client_id);
    CB_AUTO_FREE char *secret = escape(g->client_secret);
    CB_AUTO_FREE char *token = escape(g->refresh_token);
    return cb_xasprintf("grant_type=refresh_token&client_id=%s&client_secret=%s&refresh_token=%s",
                        id, secret, token);
}

/* What Google says against it: a word, and a sentence when there is one. */
static int said_no(const struct gcp *g, const struct call *c, struct cb_error *err)
{
    json_auto_t *o = json_loadb(c->reply.data ? c->reply.data : "", c->reply.len, 0, NULL);
    const char *word = json_string_value(json_object_get(o, "error"));
    const char *text = json_string_value(json_object_get(o, "error_description"));
    bool final = c->status >= 400 && c->status < 500 && c->status != 429;
    cb_fail(err, final ? CB_E_AUTH : CB_E_NET, "%s gives no token (%ld): %.60s%s%.300s",
            g->token_uri, c->status, word ? word : "no reason", text ? ": " : "", text ? text : "");
    return final ? cb_hint(err, "is the key still valid, and the clock of this machine right?")
                 : -(int)err->code;
}

static int fetch(struct gcp *g, const char *scopes, struct call *c, struct cb_error *err)
{
    if (g->kind == FROM_METADATA) {
        CB_AUTO_FREE char *escaped = escape(scopes);
        CB_AUTO_FREE char *path =
            cb_xasprintf("instance/service-accounts/default/token?scopes=%s", escaped);
        return ask_metadata(g, path, c, err);
    }
    char *form = g->kind == FROM_KEY ? key_form(g, scopes, err) : user_form(g);
    if (!form)
        return -(int)err->code;
    *c = (struct call){.url = g->token_uri, .form = form};
    int rc = http(c, err);
    forget(&form);
    return rc < 0 || c->status == 200 ? rc : said_no(g, c, err);
}

static struct token *room_for(struct gcp *g, const char *scopes)
{
    for (size_t i = 0; i < g->n_tokens; i++)
        if (strcmp(g->tokens[i].scopes, scopes) == 0)
            return &g->tokens[i];
    if (g->n_tokens == TOKENS_MAX) { /* the one that was made first goes */
        token_release(&g->tokens[0]);
        memmove(g->tokens, g->tokens + 1, --g->n_tokens * sizeof(*g->tokens));
    }
    g->tokens[g->n_tokens] = (struct token){.scopes = cb_xstrdup(scopes)};
    return &g->tokens[g->n_tokens++];
}

/* Masked before anybody has it. */
static int take_token(struct gcp *g, const char *scopes, const struct call *c, struct token **out,
                      struct cb_error *err)
{
    json_auto_t *o = json_loadb(c->reply.data ? c->reply.data : "", c->reply.len, 0, NULL);
    const char *text = json_string_value(json_object_get(o, "access_token"));
    json_int_t left = json_integer_value(json_object_get(o, "expires_in"));
    if (!text || !*text || left <= 0 || left > 86400)
        return cb_fail(err, CB_E_UNTRUSTED, "what should be a token of %s is none", g->who);
    struct token *t = room_for(g, scopes);
    emit_mask_more(g->em, text);
    forget(&t->text);
    t->text = cb_xstrdup(text);
    t->until_ms = cb_monotonic_ms() + left * 1000;
    *out = t;
    return 0;
}

/* One that lasts long enough, or NULL. */
static struct token *find_token(struct gcp *g, const char *scopes)
{
    for (size_t i = 0; i < g->n_tokens; i++)
        if (strcmp(g->tokens[i].scopes, scopes) == 0 && g->tokens[i].text &&
            g->tokens[i].until_ms - cb_monotonic_ms() > MARGIN_MS)
            return &g->tokens[i];
    return NULL;
}

int gcp_token(struct gcp *g, const char *scopes, const char **token, int64_t *expires_in_s,
              struct cb_error *err)
{
    CB_AUTO_FREE char *whole = whole_scopes(scopes && *scopes ? scopes : g->scopes);
    if (!whole)
        return cb_fail(err, CB_E_CONFIG, "these are no scopes");
    struct token *t = find_token(g, whole);
    if (!t) {
        struct call c = {0};
        if (g->fetches++ >= FETCHES_MAX)
            return cb_fail(err, CB_E_LIMIT, "%d tokens were made for this build", FETCHES_MAX);
        int rc = fetch(g, whole, &c, err);
        if (rc == 0)
            rc = take_token(g, whole, &c, &t, err);
        call_release(&c);
        if (rc < 0)
            return rc;
    }
    *token = t->text;
    *expires_in_s = (t->until_ms - cb_monotonic_ms()) / 1000;
    return 0;
}
