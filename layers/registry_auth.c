#include "layers/registry_auth.h"

#include "support/cleanup.h"
#include "support/limits.h"
#include "support/mem.h"

#include <curl/curl.h>
#include <jansson.h>
#include <string.h>
#include <strings.h>

enum {
    TOKEN_BODY_MAX = 1 << 20,
    TOKEN_MAX = 64 << 10, /* one header line */
    VALUE_MAX = 4096,     /* of a challenge's parameter */
    EXPIRES_MIN_S = 60,   /* the least that a token lives, whatever its server says */
    EXPIRES_MAX_S = 24 * 3600,
};

#define CLIENT_ID "capsule-build"

CB_DEFINE_CLEANUP(curl_text, char *, curl_free);

static void wipe(char *secret)
{
    if (secret)
        explicit_bzero(secret, strlen(secret));
    free(secret);
}

/* --- challenges --- */

void auth_challenge_release(struct auth_challenge *c)
{
    free(c->realm);
    free(c->service);
    free(c->scope);
    free(c->error);
    *c = (struct auth_challenge){0};
}

static bool is_token_char(char c)
{
    return c > 0x20 && c < 0x7f && !strchr("()<>@,;:\\\"/[]?={}", c);
}

static size_t token_len(const char *s)
{
    size_t n = 0;
    while (s[n] && is_token_char(s[n]))
        n++;
    return n;
}

static const char *skip_space(const char *s)
{
    return s + strspn(s, " \t");
}

/* A value behind "=", a token or quoted. *@out is owned, NULL when it is malformed. Returns where
 * to go on. */
static const char *read_value(const char *s, char **out)
{
    *out = NULL;
    if (*s != '"') {
        size_t n = token_len(s);
        /* unquoted URLs are against the grammar, but occur */
        while (s[n] && s[n] != ',' && s[n] != ' ' && s[n] != '\t' && s[n] != '"')
            n++;
        if (n <= VALUE_MAX)
            *out = cb_xstrndup(s, n);
        return s + n;
    }
    CB_AUTO_BUF b = CB_BUF_INIT(VALUE_MAX);
    for (s++; *s && *s != '"'; s++) {
        if (*s == '\\' && s[1])
            s++;
        (void)cb_buf_add(&b, s, 1);
    }
    if (*s != '"')
        return s; /* never closed */
    if (!b.over)
        *out = cb_buf_take(&b);
    return s + 1;
}

static void set_param(struct auth_challenge *c, const char *name, size_t n, char *value)
{
    static const char *const names[] = {"realm", "service", "scope", "error"};
    char **slots[] = {&c->realm, &c->service, &c->scope, &c->error};
    for (size_t i = 0; value && i < 4; i++) {
        if (strlen(names[i]) != n || strncasecmp(name, names[i], n) != 0 || *slots[i])
            continue;
        for (const char *p = value; *p; p++)
            if ((unsigned char)*p < 0x20 || *p == 0x7f) {
                free(value);
                return;
            }
        *slots[i] = value;
        return;
    }
    free(value);
}

/* Keeps the better of the two in @best; @c is taken. */
static void keep_better(struct auth_challenge *best, bool *have, struct auth_challenge *c,
                        bool known)
{
    bool usable = known && (!c->bearer || c->realm);
    if (usable && (!*have || (c->bearer && !best->bearer))) {
        auth_challenge_release(best);
        *best = *c;
        *have = true;
    } else {
        auth_challenge_release(c);
    }
    *c = (struct auth_challenge){0};
}

bool auth_challenge_parse(const char *s, struct auth_challenge *out)
{
    struct auth_challenge best = {0}, now = {0};
    bool have = false, known = false;
    for (;;) {
        s += strspn(s, " \t,");
        size_t n = token_len(s);
        if (n == 0)
            break;
        const char *name = s;
        s = skip_space(s + n);
        if (*s == '=') {
            char *value = NULL;
            s = read_value(skip_space(s + 1), &value);
            set_param(&now, name, n, value);
            s += strcspn(s, ","); /* padding of a token68, or nonsense */
            continue;
        }
        keep_better(&best, &have, &now, known);
        now.bearer = n == 6 && strncasecmp(name, "bearer", n) == 0;
        known = now.bearer || (n == 5 && strncasecmp(name, "basic", n) == 0);
    }
    keep_better(&best, &have, &now, known);
    if (have)
        *out = best;
    return have;
}

/* --- tokens --- */

static int append_escaped(struct cb_buf *to, const char *before, const char *value)
{
    CB_AUTO(curl_text) escaped = curl_easy_escape(NULL, value, (int)strlen(value));
    return cb_buf_addf(to, "%s%s", before, escaped ? escaped : "");
}

static int append_query(struct cb_buf *url, const char *name, const char *value)
{
    CB_AUTO_FREE char *before = cb_xasprintf("%s%s=", strchr(url->data, '?') ? "&" : "?", name);
    return append_escaped(url, before, value);
}

/* True when @scope is one of the words of @list. */
static bool has_scope(const char *list, const char *scope, size_t n)
{
    for (const char *at = list; *at;) {
        size_t len = strcspn(at, " ");
        if (len == n && strncmp(at, scope, n) == 0)
            return true;
        at += len + (at[len] == ' ');
    }
    return false;
}

/* What to ask for: what the challenge wants, and what we shall need besides. Owned. */
static char *all_scopes(const struct auth_place *place, const struct auth_challenge *ch)
{
    const char *asked = ch->scope && *ch->scope ? ch->scope : place->scope;
    CB_AUTO_BUF all = CB_BUF_INIT(64 << 10);
    (void)cb_buf_adds(&all, asked);
    for (const char *at = place->more ? place->more : ""; *at;) {
        size_t n = strcspn(at, " ");
        if (n && !has_scope(asked, at, n))
            (void)cb_buf_addf(&all, " %.*s", (int)n, at);
        at += n + (at[n] == ' ');
    }
    return cb_buf_take(&all);
}

/* The token server's address without a fragment, once it is one that may be asked. Owned. */
static int realm_url(const struct auth_place *place, const struct auth_challenge *ch, char **out,
                     struct cb_error *err)
{
    bool tls = strncasecmp(ch->realm, "https://", 8) == 0;
    if (!tls && strncasecmp(ch->realm, "http://", 7) != 0)
        return cb_fail(err, CB_E_UNTRUSTED, "%s names a token server that is no web address",
                       place->label);
    if (!tls && !place->plain_http)
        return cb_fail(err, CB_E_UNTRUSTED, "%s names a token server without HTTPS", place->label);
    CB_AUTO_FREE char *realm = cb_xstrndup(ch->realm, strcspn(ch->realm, "#"));
    size_t authority = strcspn(realm + (tls ? 8 : 7), "/?");
    if (memchr(realm + (tls ? 8 : 7), '@', authority))
        return cb_fail(err, CB_E_UNTRUSTED, "%s names a token server with a user in its address",
                       place->label);
    *out = cb_take_ptr(&realm);
    return 0;
}

static int token_url(const struct auth_place *place, const struct auth_challenge *ch,
                     const char *realm, char **out, struct cb_error *err)
{
    CB_AUTO_BUF url = CB_BUF_INIT(64 << 10);
    CB_AUTO_FREE char *scopes = all_scopes(place, ch);
    (void)cb_buf_adds(&url, realm);
    if (ch->service)
        (void)append_query(&url, "service", ch->service);
    /* one parameter for each scope; several are separated by spaces in the challenge */
    for (const char *scope = scopes; *scope;) {
        size_t n = strcspn(scope, " ");
        CB_AUTO_FREE char *one = cb_xstrndup(scope, n);
        if (n)
            (void)append_query(&url, "scope", one);
        scope += n + (scope[n] == ' ');
    }
    if (place->credentials->username)
        (void)append_query(&url, "account", place->credentials->username);
    (void)append_query(&url, "client_id", CLIENT_ID);
    if (url.over)
        return cb_fail(err, CB_E_LIMIT, "%s: the address of its token server is too long",
                       place->label);
    *out = cb_buf_take(&url);
    return 0;
}

/* The form that exchanges an identity token for one of a registry. Owned. */
static char *token_form(const struct auth_place *place, const struct auth_challenge *ch)
{
    CB_AUTO_BUF form = CB_BUF_INIT(256 << 10);
    CB_AUTO_FREE char *scopes = all_scopes(place, ch);
    (void)append_escaped(&form, "grant_type=refresh_token&client_id=" CLIENT_ID "&service=",
                         ch->service ? ch->service : "");
    (void)append_escaped(&form, "&scope=", scopes);
    (void)append_escaped(&form, "&refresh_token=", place->credentials->identity);
    return cb_buf_take(&form);
}

/* A header is made from it: nothing in it may end that line. */
static bool token_ok(const char *t)
{
    size_t n = strlen(t);
    if (n == 0 || n > TOKEN_MAX)
        return false;
    for (size_t i = 0; i < n; i++)
        if (t[i] <= 0x20 || t[i] >= 0x7f)
            return false;
    return true;
}

static int read_token(const struct http_response *res, const char *host, struct auth_answer *out,
                      struct cb_error *err)
{
    json_error_t je;
    json_auto_t *root = json_loadb(res->body.data ? res->body.data : "", res->body.len, 0, &je);
    const char *token = json_string_value(json_object_get(root, "token"));
    if (!token || !*token)
        token = json_string_value(json_object_get(root, "access_token"));
    if (!token || !token_ok(token))
        return cb_fail(err, CB_E_AUTH, "the token server %s sent no usable token", host);
    json_int_t s = json_integer_value(json_object_get(root, "expires_in"));
    out->expires_s = s < EXPIRES_MIN_S ? EXPIRES_MIN_S : s > EXPIRES_MAX_S ? EXPIRES_MAX_S : s;
    out->authorization = cb_xasprintf("Bearer %s", token);
    return 0;
}

/* Raises what a status other than 200 of the token server means. */
static int token_refused(const struct auth_credentials *cred, const char *host, long status,
                         struct cb_error *err)
{
    if (status == 408 || status == 429 || status >= 500)
        return cb_fail(err, CB_E_NET, "the token server %s answered %ld", host, status);
    if (!cred->username && !cred->identity)
        return cb_fail(err, CB_E_AUTH, "the token server %s answered %ld", host, status);
    if (cred->identity)
        cb_fail(err, CB_E_AUTH, "the token server %s answered %ld to the identity token", host,
                status);
    else
        cb_fail(err, CB_E_AUTH, "the token server %s answered %ld for user %s", host, status,
                cred->username);
    return cb_hint(err, "Check the login in %s.", cred->from);
}

static int ask_token(struct http_client *c, const struct auth_place *place,
                     const struct auth_challenge *ch, struct auth_answer *out, struct cb_error *err)
{
    const struct auth_credentials *cred = place->credentials;
    CB_AUTO_FREE char *realm = NULL;
    CB_AUTO_FREE char *url = NULL;
    int rc = realm_url(place, ch, &realm, err);
    if (rc == 0 && !cred->identity)
        rc = token_url(place, ch, realm, &url, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE char *host = http_host(realm);
    char *basic = cred->username && !cred->identity ? auth_basic(cred) : NULL;
    char *form = cred->identity ? token_form(place, ch) : NULL;
    struct http_body body = {.mem = form,
                             .fd = -1,
                             .len = form ? strlen(form) : 0,
                             .type = "application/x-www-form-urlencoded"};
    struct http_request req = {.method = form ? "POST" : "GET",
                               .url = form ? realm : url,
                               .authorization = basic,
                               .accept = "application/json",
                               .body = form ? &body : NULL,
                               .tls = place->tls,
                               .body_max = TOKEN_BODY_MAX};
    struct http_response res = HTTP_RESPONSE_INIT;
    rc = http_exchange(c, &req, &res, err);
    if (rc < 0)
        rc = cb_wrap(err, "the token server of %s", place->label);
    else if (res.status == 200)
        rc = read_token(&res, host, out, err);
    else
        rc = token_refused(cred, host, res.status, err);
    http_response_release(&res);
    wipe(basic);
    wipe(form);
    return rc;
}

/* Words for who has no login, and why that is so when the files say it. */
static int no_login(const struct auth_place *place, struct cb_error *err)
{
    cb_fail(err, CB_E_AUTH, "%s wants a user name and a password", place->label);
    if (place->credentials->trouble)
        return cb_hint(err, "There is no login: %s.", place->credentials->trouble);
    return -CB_E_AUTH;
}

int auth_answer(struct http_client *c, const struct auth_place *place,
                const struct cb_strv *challenges, struct auth_answer *out, struct cb_error *err)
{
    struct auth_challenge best = {0};
    bool have = false;
    for (size_t i = 0; i < challenges->n; i++) {
        struct auth_challenge one = {0};
        bool ok = auth_challenge_parse(challenges->v[i], &one);
        keep_better(&best, &have, &one, ok);
    }
    *out = (struct auth_answer){0};
    int rc = 0;
    if (!have) {
        rc = cb_fail(err, CB_E_AUTH, "%s wants a login of a kind that is not supported",
                     place->label);
        (void)cb_hint(err, "Supported are Bearer tokens and Basic.");
    } else if (best.bearer && place->credentials->token) {
        out->authorization = cb_xasprintf("Bearer %s", place->credentials->token);
    } else if (best.bearer) {
        rc = ask_token(c, place, &best, out, err);
    } else if (place->credentials->username) {
        out->authorization = auth_basic(place->credentials);
    } else {
        rc = no_login(place, err);
    }
    auth_challenge_release(&best);
    return rc;
}
