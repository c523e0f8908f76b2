#include "layers/registry.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <curl/curl.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <string.h>
#include <strings.h>

enum {
    TOKEN_BODY_MAX = 1 << 20,
    TOKEN_MAX = 64 << 10, /* one header line */
    VALUE_MAX = 4096,     /* of a challenge's parameter */
    DOCKER_CONFIG_MAX = 1 << 20,
};

CB_DEFINE_CLEANUP(curl_text, char *, curl_free);

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

/* --- credentials --- */

void auth_credentials_release(struct auth_credentials *c)
{
    if (c->password)
        explicit_bzero(c->password, strlen(c->password));
    free(c->username);
    free(c->password);
    free(c->from);
    *c = (struct auth_credentials){0};
}

char *auth_basic(const struct auth_credentials *c)
{
    char *plain = cb_xasprintf("%s:%s", c->username, c->password);
    size_t n = strlen(plain);
    CB_AUTO_FREE char *code = cb_xmalloc(4 * ((n + 2) / 3) + 1);
    (void)EVP_EncodeBlock((unsigned char *)code, (const unsigned char *)plain, (int)n);
    explicit_bzero(plain, n);
    free(plain);
    return cb_xasprintf("Basic %s", code);
}

/* "dXNlcjpwYXNz" -> user, pass. False when it is not that. */
static bool decode_basic(const char *code, struct auth_credentials *out)
{
    size_t n = strlen(code);
    if (n == 0 || n > TOKEN_MAX)
        return false;
    CB_AUTO_FREE char *plain = cb_xcalloc(n + 1, 1);
    int len = EVP_DecodeBlock((unsigned char *)plain, (const unsigned char *)code, (int)n);
    if (len < 0)
        return false;
    plain[len] = '\0'; /* padding decodes to NUL, which ends the text */
    const char *colon = strchr(plain, ':');
    if (!colon)
        return false;
    out->username = cb_xstrndup(plain, (size_t)(colon - plain));
    out->password = cb_xstrdup(colon + 1);
    explicit_bzero(plain, (size_t)len);
    return true;
}

static bool is_hub(const char *host)
{
    return strcmp(host, "docker.io") == 0 || strcmp(host, "index.docker.io") == 0 ||
           strcmp(host, "registry-1.docker.io") == 0;
}

/* Keys are hosts, or URLs as Docker wrote them once. */
static bool key_is_host(const char *key, const char *host)
{
    const char *scheme = strstr(key, "://");
    const char *name = scheme ? scheme + 3 : key;
    CB_AUTO_FREE char *bare = cb_xstrndup(name, strcspn(name, "/"));
    return strcmp(bare, host) == 0 || (is_hub(bare) && is_hub(host));
}

static char *docker_config_path(void)
{
    const char *dir = getenv("DOCKER_CONFIG");
    const char *home = getenv("HOME");
    if (dir && *dir)
        return cb_xasprintf("%s/config.json", dir);
    return home && *home ? cb_xasprintf("%s/.docker/config.json", home) : NULL;
}

static int from_docker_config(const char *host, struct auth_credentials *out, struct cb_error *err)
{
    CB_AUTO_FREE char *path = docker_config_path();
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    json_error_t je;
    if (!path || !cb_path_exists(path))
        return 0;
    int rc = cb_read_file(path, DOCKER_CONFIG_MAX, &text, err);
    if (rc < 0)
        return rc;
    json_auto_t *root = json_loadb(text.data ? text.data : "", text.len, 0, &je);
    if (!root)
        return cb_fail(err, CB_E_CONFIG, "%s:%d:%d: %s", path, je.line, je.column, je.text);
    const char *key, *found = NULL;
    json_t *entry;
    json_object_foreach(json_object_get(root, "auths"), key, entry)
    {
        const char *auth = json_string_value(json_object_get(entry, "auth"));
        if (auth && *auth && key_is_host(key, host) && (!found || strcmp(key, host) == 0))
            found = auth;
    }
    if (!found)
        return 0;
    if (!decode_basic(found, out))
        return cb_fail(err, CB_E_CONFIG, "%s: auths: the entry for %s cannot be read", path, host);
    out->from = cb_xstrdup(path);
    return 0;
}

int auth_find_credentials(const struct settings *settings, const char *host,
                          struct auth_credentials *out, struct cb_error *err)
{
    *out = (struct auth_credentials){0};
    const struct registry_settings *r = settings_find_registry(settings, host);
    if (r && r->username && r->password) {
        out->username = cb_xstrdup(r->username);
        out->password = cb_xstrdup(r->password);
        out->from = cb_xstrdup("the settings");
        return 0;
    }
    return from_docker_config(host, out, err);
}

/* --- tokens --- */

static int append_query(struct cb_buf *url, const char *name, const char *value)
{
    CB_AUTO(curl_text) escaped = curl_easy_escape(NULL, value, (int)strlen(value));
    return cb_buf_addf(url, "%s%s=%s", strchr(url->data, '?') ? "&" : "?", name,
                       escaped ? escaped : "");
}

static int token_url(const struct auth_place *place, const struct auth_challenge *ch, char **out,
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
    CB_AUTO_BUF url = CB_BUF_INIT(64 << 10);
    const char *scope = ch->scope && *ch->scope ? ch->scope : place->scope;
    (void)cb_buf_adds(&url, realm);
    if (ch->service)
        (void)append_query(&url, "service", ch->service);
    /* one parameter for each scope; several are separated by spaces in the challenge */
    while (*scope) {
        size_t n = strcspn(scope, " ");
        CB_AUTO_FREE char *one = cb_xstrndup(scope, n);
        if (n)
            (void)append_query(&url, "scope", one);
        scope += n + (scope[n] == ' ');
    }
    if (place->credentials->username)
        (void)append_query(&url, "account", place->credentials->username);
    if (url.over)
        return cb_fail(err, CB_E_LIMIT, "%s: the address of its token server is too long",
                       place->label);
    *out = cb_buf_take(&url);
    return 0;
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

static int read_token(const struct http_response *res, const char *host, char **out,
                      struct cb_error *err)
{
    json_error_t je;
    json_auto_t *root = json_loadb(res->body.data ? res->body.data : "", res->body.len, 0, &je);
    const char *token = json_string_value(json_object_get(root, "token"));
    if (!token || !*token)
        token = json_string_value(json_object_get(root, "access_token"));
    if (!token || !token_ok(token))
        return cb_fail(err, CB_E_AUTH, "the token server %s sent no usable token", host);
    *out = cb_xasprintf("Bearer %s", token);
    return 0;
}

static int ask_token(struct http_client *c, const struct auth_place *place,
                     const struct auth_challenge *ch, char **out, struct cb_error *err)
{
    CB_AUTO_FREE char *url = NULL;
    int rc = token_url(place, ch, &url, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE char *host = http_host(url);
    const struct auth_credentials *cred = place->credentials;
    CB_AUTO_FREE char *basic = cred->username ? auth_basic(cred) : NULL;
    struct http_request req = {.url = url,
                               .authorization = basic,
                               .accept = "application/json",
                               .ca_file = place->ca_file,
                               .body_max = TOKEN_BODY_MAX};
    struct http_response res = HTTP_RESPONSE_INIT;
    rc = http_exchange(c, &req, &res, err);
    if (rc < 0) {
        rc = cb_wrap(err, "the token server of %s", place->label);
    } else if (res.status == 200) {
        rc = read_token(&res, host, out, err);
    } else if (res.status == 429 || res.status >= 500) {
        rc = cb_fail(err, CB_E_NET, "the token server %s answered %ld", host, res.status);
    } else if (cred->username) {
        cb_fail(err, CB_E_AUTH, "the token server %s answered %ld for user %s", host, res.status,
                cred->username);
        rc = cb_hint(err, "Check the user name and the password in %s.", cred->from);
    } else {
        rc = cb_fail(err, CB_E_AUTH, "the token server %s answered %ld", host, res.status);
    }
    http_response_release(&res);
    return rc;
}

int auth_answer(struct http_client *c, const struct auth_place *place,
                const struct cb_strv *challenges, char **out, struct cb_error *err)
{
    struct auth_challenge best = {0};
    bool have = false;
    for (size_t i = 0; i < challenges->n; i++) {
        struct auth_challenge one = {0};
        bool ok = auth_challenge_parse(challenges->v[i], &one);
        keep_better(&best, &have, &one, ok);
    }
    int rc;
    if (!have) {
        rc = cb_fail(err, CB_E_AUTH, "%s wants a login of a kind that is not supported",
                     place->label);
        (void)cb_hint(err, "Supported are Bearer tokens and Basic.");
    } else if (best.bearer) {
        rc = ask_token(c, place, &best, out, err);
    } else if (place->credentials->username) {
        *out = auth_basic(place->credentials);
        rc = 0;
    } else {
        rc = cb_fail(err, CB_E_AUTH, "%s wants a user name and a password", place->label);
    }
    auth_challenge_release(&best);
    return rc;
}
