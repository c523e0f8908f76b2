/* registry_login: where a login for a registry is found: our settings, the files that docker and
 * podman keep, the helpers that those files name, Google's metadata server. */
#include "layers/registry_auth.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"
#include "support/proc.h"

#include <ctype.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>

enum {
    FILE_MAX = 1 << 20,
    ANSWER_MAX = 256 << 10, /* of a helper or the metadata server */
    SECRET_MAX = 64 << 10,
    HELPER_MAX = 128, /* a helper's name */
    WORDS_MAX = 200,  /* of a helper, in a message */
};

#define HUB_KEY "https://index.docker.io/v1/"
#define METADATA_PATH "/computeMetadata/v1/instance/service-accounts/default/token"

int64_t auth_helper_ms = 30000;

/* --- credentials --- */

static void wipe(char **secret)
{
    if (*secret)
        explicit_bzero(*secret, strlen(*secret));
    free(*secret);
    *secret = NULL;
}

void auth_credentials_release(struct auth_credentials *c)
{
    wipe(&c->password);
    wipe(&c->identity);
    wipe(&c->token);
    free(c->username);
    free(c->from);
    free(c->trouble);
    *c = (struct auth_credentials){0};
}

bool auth_has_credentials(const struct auth_credentials *c)
{
    return c->username || c->identity || c->token;
}

char *auth_basic(const struct auth_credentials *c)
{
    char *plain = cb_xasprintf("%s:%s", c->username, c->password);
    size_t n = strlen(plain);
    CB_AUTO_FREE char *code = cb_xmalloc(4 * ((n + 2) / 3) + 1);
    (void)EVP_EncodeBlock((unsigned char *)code, (const unsigned char *)plain, (int)n);
    wipe(&plain);
    return cb_xasprintf("Basic %s", code);
}

/* It may become a header's line, or a part of one. */
static bool secret_ok(const char *s, size_t max)
{
    size_t n = strlen(s);
    if (n > max)
        return false;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f)
            return false;
    return true;
}

/* "dXNlcjpwYXNz" -> user, pass. False when it is not that. */
static bool decode_basic(const char *code, struct auth_credentials *out)
{
    size_t n = strlen(code);
    if (n == 0 || n > SECRET_MAX)
        return false;
    char *plain = cb_xcalloc(n + 4, 1);
    CB_AUTO_FREE char *padded = cb_xasprintf("%s%.*s", code, (int)((4 - n % 4) % 4), "===");
    int len =
        EVP_DecodeBlock((unsigned char *)plain, (const unsigned char *)padded, (int)strlen(padded));
    const char *colon = len < 0 ? NULL : strchr(plain, ':'); /* padding decodes to NUL */
    bool ok = colon && colon > plain && secret_ok(plain, SECRET_MAX);
    if (ok) {
        out->username = cb_xstrndup(plain, (size_t)(colon - plain));
        out->password = cb_xstrdup(colon + 1);
    }
    explicit_bzero(plain, n);
    free(plain);
    return ok;
}

/* --- which entry is meant --- */

static bool is_hub(const char *host)
{
    return strcasecmp(host, "docker.io") == 0 || strcasecmp(host, "index.docker.io") == 0 ||
           strcasecmp(host, "registry-1.docker.io") == 0;
}

/* How well @key fits: 0 not at all; else the more the better. Keys are hosts, URLs as Docker wrote
 * them once, or (of podman) a host and the beginning of a path. */
static size_t key_fits(const char *key, bool with_path, const char *host, const char *path)
{
    const char *scheme = strstr(key, "://");
    const char *name = scheme ? scheme + 3 : key;
    size_t n = strcspn(name, "/");
    CB_AUTO_FREE char *bare = cb_xstrndup(name, n);
    if (strcasecmp(bare, host) != 0 && !(is_hub(bare) && is_hub(host)))
        return 0;
    if (with_path && !scheme && name[n] == '/' && name[n + 1]) {
        const char *part = name + n + 1;
        size_t len = strlen(part);
        if (!path || strncmp(path, part, len) != 0 || (path[len] && path[len] != '/'))
            return 0;
        return 2 + len;
    }
    return strcasecmp(key, host) == 0 ? 2 : 1;
}

/* The value of the entry of the object @o that fits best, or NULL; *@found is its key. */
static json_t *best_entry(json_t *o, enum auth_file_kind kind, const char *host, const char *path,
                          const char **found)
{
    const char *key;
    json_t *value, *best = NULL;
    size_t best_fit = 0;
    json_object_foreach(o, key, value)
    {
        size_t fit = key_fits(key, kind == AUTH_FILE_PODMAN, host, path);
        if (fit > best_fit) {
            best_fit = fit;
            best = value;
            *found = key;
        }
    }
    return best;
}

/* --- files --- */

void auth_file_answer_release(struct auth_file_answer *a)
{
    auth_credentials_release(&a->credentials);
    free(a->helper);
    *a = (struct auth_file_answer){0};
}

/* A name is put behind "docker-credential-" and looked up in PATH. */
static bool helper_name_ok(const char *s)
{
    size_t n = strlen(s);
    if (n == 0 || n > HELPER_MAX)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)s[i]) && !strchr("._-", s[i]))
            return false;
    return true;
}

/* An optional text of the entry, which may be a secret. */
static bool text_of(const json_t *entry, const char *key, const char **out)
{
    const json_t *v = json_object_get(entry, key);
    *out = json_string_value(v);
    if (*out && !**out)
        *out = NULL;
    return !v || json_is_null(v) ||
           (json_is_string(v) && strlen(json_string_value(v)) == json_string_length(v) &&
            secret_ok(json_string_value(v), SECRET_MAX));
}

static bool take_entry(const json_t *entry, struct auth_credentials *out)
{
    const char *auth, *identity, *token, *user, *password;
    if (!json_is_object(entry) || !text_of(entry, "auth", &auth) ||
        !text_of(entry, "identitytoken", &identity) || !text_of(entry, "registrytoken", &token) ||
        !text_of(entry, "username", &user) || !text_of(entry, "password", &password))
        return false;
    if (auth && !decode_basic(auth, out) && !identity && !token)
        return false;
    if (!out->username && user && password) {
        out->username = cb_xstrdup(user);
        out->password = cb_xstrdup(password);
    }
    out->identity = cb_xstrdup0(identity);
    out->token = cb_xstrdup0(token);
    return true;
}

static int take_helper(const json_t *value, const char *name, struct auth_file_answer *out,
                       struct cb_error *err)
{
    const char *helper = json_string_value(value);
    if (helper && !*helper)
        return 0; /* how it is switched off */
    if (!helper || !helper_name_ok(helper))
        return cb_fail(err, CB_E_CONFIG, "%s: a credential helper has no usable name", name);
    out->helper = cb_xstrdup(helper);
    return 0;
}

int auth_file_read(const char *text, size_t len, enum auth_file_kind kind, const char *name,
                   const char *host, const char *path, struct auth_file_answer *out,
                   struct cb_error *err)
{
    json_error_t je;
    *out = (struct auth_file_answer){0};
    json_auto_t *root = json_loadb(text, len, 0, &je);
    if (!root)
        return cb_fail(err, CB_E_CONFIG, "%s:%d:%d: %s", name, je.line, je.column, je.text);
    const char *key = NULL;
    json_t *helper = best_entry(json_object_get(root, "credHelpers"), kind, host, path, &key);
    json_t *store = json_object_get(root, "credsStore");
    int rc = 0;
    out->own = helper != NULL;
    if (helper || (store && !json_is_null(store)))
        rc = take_helper(helper ? helper : store, name, out, err);
    const json_t *entry = best_entry(kind == AUTH_FILE_OLD ? root : json_object_get(root, "auths"),
                                     kind, host, path, &key);
    if (rc == 0 && entry && !take_entry(entry, &out->credentials))
        rc = cb_fail(err, CB_E_CONFIG, "%s: auths: the entry for %s cannot be read", name, host);
    if (rc < 0)
        auth_file_answer_release(out);
    else if (auth_has_credentials(&out->credentials))
        out->credentials.from = cb_xstrdup(name);
    return rc;
}

/* --- helpers --- */

int auth_helper_read(const char *text, size_t len, const char *name, struct auth_credentials *out,
                     struct cb_error *err)
{
    json_error_t je;
    json_auto_t *root = json_loadb(text, len, 0, &je);
    const char *user, *secret;
    if (!root || !json_is_object(root))
        return cb_fail(err, CB_E_AUTH, "%s: its answer is not JSON", name);
    if (!text_of(root, "Username", &user) || !text_of(root, "Secret", &secret) || !secret)
        return cb_fail(err, CB_E_AUTH, "%s: its answer holds no usable login", name);
    if (!user || strcmp(user, "<token>") == 0) {
        out->identity = cb_xstrdup(secret);
    } else {
        out->username = cb_xstrdup(user);
        out->password = cb_xstrdup(secret);
    }
    out->from = cb_xstrdup(name);
    out->renewable = true;
    return 0;
}

/* What a helper that failed said: on its stdout, by the protocol. */
static void helper_words(const struct cb_proc_result *res, char out[WORDS_MAX])
{
    const char *text = res->out.data && *res->out.data   ? res->out.data
                       : res->err.data && *res->err.data ? res->err.data
                                                         : "nothing";
    (void)snprintf(out, WORDS_MAX, "%.*s", (int)strcspn(text, "\r\n"), text);
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
}

/* Asks a helper. 0 also when it knows nobody for @host. */
static int run_helper(const char *helper, const char *host, struct auth_credentials *out,
                      struct cb_error *err)
{
    CB_AUTO_FREE char *program = cb_xasprintf("docker-credential-%s", helper);
    const char *const argv[] = {program, "get", NULL};
    struct cb_proc_spec spec = {.argv = argv};
    struct cb_proc_result res = {0};
    int rc =
        cb_proc_run(&spec, is_hub(host) ? HUB_KEY : host, ANSWER_MAX, auth_helper_ms, &res, err);
    if (rc == 0 && WIFEXITED(res.status) && WEXITSTATUS(res.status) == 0) {
        rc = auth_helper_read(res.out.data ? res.out.data : "", res.out.len, program, out, err);
    } else if (rc == 0) {
        char words[WORDS_MAX];
        helper_words(&res, words);
        if (!strstr(words, "credentials not found"))
            rc = cb_fail(err, CB_E_AUTH, "%s failed for %s: %s", program, host, words);
    }
    if (res.out.data)
        explicit_bzero(res.out.data, res.out.len);
    cb_proc_result_release(&res);
    return rc;
}

/* --- the files, in podman's order after the one that was asked for --- */

static int from_file(const char *file, enum auth_file_kind kind, const char *host, const char *path,
                     struct auth_credentials *out, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    struct auth_file_answer a;
    if (!cb_path_exists(file))
        return 0;
    int rc = cb_read_file(file, FILE_MAX, &text, err);
    if (rc == 0)
        rc = auth_file_read(text.data ? text.data : "", text.len, kind, file, host, path, &a, err);
    if (rc < 0)
        return rc;
    CB_AUTO_ERROR helper = CB_ERROR_INIT;
    if (a.helper && run_helper(a.helper, host, out, &helper) < 0) {
        if (a.own) {
            auth_file_answer_release(&a);
            cb_error_move(err, &helper);
            return cb_wrap(err, "%s: credHelpers", file);
        }
        /* one for all hosts that does not work: public images can be had without it */
        free(out->trouble);
        out->trouble = cb_xasprintf("%s: credsStore: %s", file, helper.msg);
    }
    if (!auth_has_credentials(out) && auth_has_credentials(&a.credentials)) {
        auth_credentials_release(out);
        *out = a.credentials;
        a.credentials = (struct auth_credentials){0};
    }
    auth_file_answer_release(&a);
    return 0;
}

static int from_files(const char *host, const char *path, struct auth_credentials *out,
                      struct cb_error *err)
{
    static const struct {
        const char *variable, *below;
        enum auth_file_kind kind;
    } files[] = {
        {"REGISTRY_AUTH_FILE", "", AUTH_FILE_PODMAN},
        {"DOCKER_CONFIG", "/config.json", AUTH_FILE_DOCKER},
        {"XDG_RUNTIME_DIR", "/containers/auth.json", AUTH_FILE_PODMAN},
        {"XDG_CONFIG_HOME", "/containers/auth.json", AUTH_FILE_PODMAN},
        {"HOME", "/.config/containers/auth.json", AUTH_FILE_PODMAN},
        {"HOME", "/.docker/config.json", AUTH_FILE_DOCKER},
        {"HOME", "/.dockercfg", AUTH_FILE_OLD},
    };
    const char *docker = getenv("DOCKER_CONFIG");
    int rc = 0;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        const char *dir = getenv(files[i].variable);
        if (!dir || !*dir || rc < 0 || auth_has_credentials(out))
            continue;
        if (docker && *docker && strcmp(files[i].below, "/.docker/config.json") == 0)
            continue; /* DOCKER_CONFIG stands in its place */
        CB_AUTO_FREE char *file = cb_xasprintf("%s%s", dir, files[i].below);
        rc = from_file(file, files[i].kind, host, path, out, err);
    }
    return rc;
}

/* --- Google's registries, on Google's machines --- */

static bool is_google_registry(const char *host)
{
    static const char *const hosts[] = {"gcr.io", "us.gcr.io", "eu.gcr.io", "asia.gcr.io"};
    for (size_t i = 0; i < sizeof(hosts) / sizeof(hosts[0]); i++)
        if (strcasecmp(host, hosts[i]) == 0)
            return true;
    static const char suffix[] = "-docker.pkg.dev";
    size_t n = strlen(host), m = sizeof(suffix) - 1;
    return n > m && !strchr(host, ':') && strcasecmp(host + n - m, suffix) == 0;
}

/* "http://metadata.google.internal", or NULL where there is none. GCE_METADATA_HOST names another
 * one, as for Google's own libraries. Owned. */
static char *metadata_server(void)
{
    const char *host = getenv("GCE_METADATA_HOST");
    if (host && *host)
        return cb_xasprintf("http://%s", host);
    CB_AUTO_BUF product = CB_BUF_INIT(0);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (cb_read_file("/sys/class/dmi/id/product_name", 4096, &product, &err) < 0 || !product.data ||
        strncmp(product.data, "Google", 6) != 0)
        return NULL;
    return cb_xstrdup("http://metadata.google.internal");
}

/* The machine's own account. That it has none, or no right, is no error: the image may be public.
 */
static void from_metadata(const char *host, struct auth_credentials *out)
{
    CB_AUTO_FREE char *server = is_google_registry(host) ? metadata_server() : NULL;
    if (!server)
        return;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *url = cb_xasprintf("%s%s", server, METADATA_PATH);
    struct http_request req = {.url = url,
                               .accept = "application/json",
                               .header = "Metadata-Flavor: Google",
                               .body_max = ANSWER_MAX,
                               .direct = true};
    struct http_response res = HTTP_RESPONSE_INIT;
    struct http_client *c = http_client_new(0);
    json_error_t je;
    if (http_exchange(c, &req, &res, &err) == 0 && res.status == 200 && res.google &&
        !res.foreign) {
        json_auto_t *root = json_loadb(res.body.data ? res.body.data : "", res.body.len, 0, &je);
        const char *token;
        if (text_of(root, "access_token", &token) && token) {
            out->username = cb_xstrdup("oauth2accesstoken");
            out->password = cb_xstrdup(token);
            out->from = cb_xasprintf("the metadata server %s", server + strlen("http://"));
            out->renewable = true;
        }
    }
    if (!out->username && !out->trouble)
        out->trouble = err.msg ? cb_xasprintf("the metadata server gave no token: %s", err.msg)
                               : cb_xasprintf("the metadata server answered %ld", res.status);
    if (res.body.data)
        explicit_bzero(res.body.data, res.body.len);
    http_response_release(&res);
    http_client_free(c);
}

int auth_find_credentials(const struct settings *settings, const char *host, const char *path,
                          struct auth_credentials *out, struct cb_error *err)
{
    *out = (struct auth_credentials){0};
    const struct registry_settings *r = settings_find_registry(settings, host);
    int rc = 0;
    if (r && r->username && r->password) {
        out->username = cb_xstrdup(r->username);
        out->password = cb_xstrdup(r->password);
        out->from = cb_xstrdup("the settings");
        return 0;
    }
    if (r && r->credential_helper) {
        rc = run_helper(r->credential_helper, host, out, err);
        if (rc < 0)
            rc = cb_wrap(err, "registries: %s: credential_helper", host);
    }
    if (rc == 0 && !auth_has_credentials(out))
        rc = from_files(host, path, out, err);
    if (rc == 0 && !auth_has_credentials(out))
        from_metadata(host, out);
    if (rc < 0)
        auth_credentials_release(out);
    return rc;
}
