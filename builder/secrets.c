#include "builder/secrets.h"

#include "builder/state.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* One reading of a config. */
struct loading {
    struct secrets *s;
    json_t *credentials;      /* as checked by the config's reader; may be NULL */
    struct cb_strv variables; /* that secrets came from */
    size_t total;
};

static void wipe_pairs(struct config_pairs *p)
{
    for (size_t i = 0; i < p->n; i++)
        explicit_bzero(p->v[i].value, strlen(p->v[i].value));
    config_pairs_release(p);
}

static void wipe_buf(struct cb_buf *b)
{
    if (b->data)
        explicit_bzero(b->data, b->cap);
    cb_buf_release(b);
}
#define AUTO_SECRET __attribute__((cleanup(wipe_buf))) struct cb_buf

void secrets_free(struct secrets *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_layers; i++) {
        struct layer_secrets *l = &s->layers[i];
        wipe_pairs(&l->env);
        for (size_t j = 0; j < l->n_files; j++) {
            char *data = l->files[j].data;
            explicit_bzero(data, l->files[j].len);
            free(data);
        }
        free(l->files);
    }
    free(s->layers);
    for (size_t i = 0; i < s->n_values; i++) {
        free(s->values[i].what);
        explicit_bzero(s->values[i].data, s->values[i].len);
        free(s->values[i].data);
    }
    free(s->values);
    mask_free(s->mask);
    cb_strv_release(&s->unmasked);
    free(s);
}

const struct layer_secrets *secrets_of(const struct secrets *s, size_t i)
{
    return s && i >= s->first && i - s->first < s->n_layers ? &s->layers[i - s->first] : NULL;
}

void secrets_no_cores(void)
{
    /* 1 is less than any file and, unlike 0, also refuses what core_pattern pipes to a program. */
    const struct rlimit none = {.rlim_cur = 1, .rlim_max = 1};
    if (setrlimit(RLIMIT_CORE, &none) < 0) { /* it was 0 already, and may not be raised */
        const struct rlimit zero = {0};
        (void)setrlimit(RLIMIT_CORE, &zero);
    }
}

/* ---- where values come from ---- */

/* "NAME" of "NAME" or "${NAME}", the two forms that are accepted. Owned. */
static char *variable_name(const char *text)
{
    size_t n = strlen(text);
    if (strncmp(text, "${", 2) == 0 && n > 3 && text[n - 1] == '}')
        return cb_xstrndup(text + 2, n - 3);
    return cb_xstrdup(text);
}

static int from_variable(const char *name, struct cb_buf *out, struct cb_error *err)
{
    const char *value = getenv(name);
    if (!value) {
        cb_fail(err, CB_E_CONFIG, "the variable %s is not set", name);
        return cb_hint(err,
                       "set %s for the command that builds, or say in credentials.secrets "
                       "where the secret is",
                       name);
    }
    if (cb_buf_adds(out, value) < 0)
        return cb_fail(err, CB_E_LIMIT, "the variable %s holds more than %d KiB", name,
                       SECRET_MAX >> 10);
    return 0;
}

static int from_file(const char *path, struct cb_buf *out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        cb_fail(err, CB_E_CONFIG, "the file %s cannot be read: %s", path, strerror(errno));
        return cb_hint(err, "put it there, or say in credentials.secrets where the secret is");
    }
    if (!S_ISREG(st.st_mode))
        return cb_fail(err, CB_E_CONFIG, "%s is not a file", path);
    return cb_read_fd(fd, path, SECRET_MAX, out, err);
}

/* From here on @p is masked, and looked for in what layers leave. */
static void keep_value(struct loading *l, const char *what, const char *p, size_t n)
{
    struct secrets *s = l->s;
    while (n && (p[n - 1] == '\n' || p[n - 1] == '\r')) /* a copy of it may end otherwise */
        n--;
    mask_add(s->mask, p, n);
    for (size_t i = 0; i < s->n_values; i++) /* several layers may have it */
        if (s->values[i].len == n && memcmp(s->values[i].data, p, n) == 0)
            return;
    s->values = cb_xgrow(s->values, &s->cap_values, s->n_values, sizeof(*s->values));
    s->values[s->n_values++] =
        (struct secret_value){cb_xstrdup(what), n ? cb_xmemdup(p, n) : cb_xstrdup(""), n};
}

/* @text with each ${VAR} in its place. For @what, unless that is NULL, the values of these are
 * secrets, too: "Bearer ${T}" has T in it. */
static int expand(struct loading *l, const char *what, const char *text, struct cb_buf *out,
                  struct cb_error *err)
{
    for (const char *p = text; *p;) {
        const char *end = strncmp(p, "${", 2) == 0 ? strchr(p, '}') : NULL;
        int rc;
        if (strncmp(p, "$${", 3) == 0) {
            rc = cb_buf_adds(out, "${");
            p += 3;
        } else if (end) {
            CB_AUTO_FREE char *name = cb_xstrndup(p + 2, (size_t)(end - p) - 2);
            size_t before = out->len;
            rc = from_variable(name, out, err);
            if (rc == 0 && what) {
                cb_strv_add(&l->variables, name);
                keep_value(l, what, out->data ? out->data + before : "", out->len - before);
            }
            p = end + 1;
        } else {
            size_t run = 1 + strcspn(p + 1, "$");
            rc = cb_buf_add(out, p, run);
            p += run;
        }
        if (rc < 0)
            return err && err->code
                       ? rc
                       : cb_fail(err, CB_E_LIMIT, "longer than %d KiB", SECRET_MAX >> 10);
    }
    return 0;
}

static json_t *credential_of(const struct loading *l, const char *id)
{
    json_t *list = json_object_get(l->credentials, "secrets");
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *c = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(c, "name"));
        if (name && strcmp(name, id) == 0)
            return c;
    }
    return NULL;
}

/* The credential of that name says where; else the same variable, or file, as in the step. */
static int find_value(struct loading *l, const struct secret *secret, struct cb_buf *out,
                      struct cb_error *err)
{
    json_t *c = credential_of(l, secret->id);
    const char *env = json_string_value(json_object_get(c, "env"));
    const char *path = json_string_value(json_object_get(c, "path"));
    if (json_object_get(c, "secret_name")) {
        cb_fail(err, CB_E_CONFIG, "it is a secret manager's (secret_name), which is not asked yet");
        return cb_hint(err, "give `env` or `path` in place of secret_name");
    }
    if (!c) {
        env = secret->env;
        path = secret->path;
    }
    if (env) {
        CB_AUTO_FREE char *name = variable_name(env);
        cb_strv_add(&l->variables, name);
        return from_variable(name, out, err);
    }
    AUTO_SECRET full = CB_BUF_INIT(SECRET_MAX);
    int rc = expand(l, NULL, path ? path : "", &full, err);
    return rc < 0 ? rc : from_file(full.data ? full.data : "", out, err);
}

/* ---- what layers are given ---- */

static int count(struct loading *l, const char *what, const struct cb_buf *value,
                 struct cb_error *err)
{
    l->total += value->len;
    if (l->total > SECRETS_MAX)
        return cb_fail(err, CB_E_LIMIT, "all secrets together are larger than %d KiB",
                       SECRETS_MAX >> 10);
    if (value->len && value->len < MASK_SHORTEST)
        cb_strv_add(&l->s->unmasked, what);
    keep_value(l, what, value->data ? value->data : "", value->len);
    return 0;
}

static int set_variable(struct layer_secrets *to, const char *name, struct cb_buf *value,
                        struct cb_error *err)
{
    while (value->len && (value->data[value->len - 1] == '\n' ||
                          value->data[value->len - 1] == '\r')) /* as a shell's $(cat) */
        value->data[--value->len] = '\0';
    if (value->len && memchr(value->data, '\0', value->len)) {
        cb_fail(err, CB_E_CONFIG, "it holds a NUL, which no variable can");
        return cb_hint(err, "give it as a file: `path` in place of `env`");
    }
    config_pairs_set(&to->env, name, value->data ? value->data : "");
    return 0;
}

/* As it is, byte for byte. */
static void add_file(struct layer_secrets *to, const char *path, const struct cb_buf *value)
{
    size_t cap = to->n_files; /* few: grown one by one */
    to->files = cb_xgrow(to->files, &cap, to->n_files, sizeof(*to->files));
    to->files[to->n_files++] = (struct guest_secret){
        path, cb_xmemdup(value->data ? value->data : "", value->len + 1), value->len};
}

static int load_secret(struct loading *l, struct layer_secrets *to, const struct secret *secret,
                       struct cb_error *err)
{
    AUTO_SECRET value = CB_BUF_INIT(SECRET_MAX);
    CB_AUTO_FREE char *what = cb_xasprintf("secret %s", secret->id);
    int rc = find_value(l, secret, &value, err);
    if (rc == 0 && secret->env) {
        CB_AUTO_FREE char *name = variable_name(secret->env);
        rc = set_variable(to, name, &value, err);
    } else if (rc == 0) {
        add_file(to, secret->path, &value);
    }
    if (rc == 0)
        rc = count(l, what, &value, err);
    return rc < 0 ? cb_wrap(err, "secret %s", secret->id) : 0;
}

/* `credentials.env`, which every layer has. */
static int load_env(struct loading *l, struct config_pairs *to, struct cb_error *err)
{
    const char *key;
    json_t *text;
    json_object_foreach(json_object_get(l->credentials, "env"), key, text)
    {
        AUTO_SECRET value = CB_BUF_INIT(SECRET_MAX);
        CB_AUTO_FREE char *what = cb_xasprintf("credentials.env.%s", key);
        int rc = expand(l, what, json_string_value(text), &value, err);
        if (rc == 0)
            rc = count(l, what, &value, err);
        if (rc < 0)
            return cb_wrap(err, "%s", what);
        config_pairs_set(to, key, value.data ? value.data : "");
    }
    return 0;
}

static int check_size(const struct layer_secrets *to, struct cb_error *err)
{
    size_t size = 0;
    for (size_t i = 0; i < to->env.n; i++)
        size += strlen(to->env.v[i].key) + strlen(to->env.v[i].value);
    for (size_t i = 0; i < to->n_files; i++)
        size += strlen(to->files[i].path) + to->files[i].len;
    return size <= SECRETS_LAYER_MAX
               ? 0
               : cb_fail(err, CB_E_LIMIT, "its secrets are larger than %d KiB",
                         SECRETS_LAYER_MAX >> 10);
}

static int load_layers(struct loading *l, const struct workload_config *c,
                       const struct config_pairs *all, struct cb_error *err)
{
    for (size_t i = 0; i < l->s->n_layers; i++) {
        struct layer_secrets *to = &l->s->layers[i];
        const struct layer *layer = &c->layers[l->s->first + i];
        int rc = 0;
        for (size_t j = 0; j < all->n; j++)
            config_pairs_set(&to->env, all->v[j].key, all->v[j].value);
        for (size_t j = 0; rc == 0 && j < layer->n_secrets; j++)
            rc = load_secret(l, to, &layer->secrets[j], err);
        if (rc == 0)
            rc = check_size(to, err);
        if (rc < 0)
            return cb_wrap(err, "layer %s", layer->name);
    }
    return 0;
}

/* What we and the programs that we start need ourselves stays, whatever a config calls a secret. */
static bool is_ours(const char *name)
{
    static const char *const names[] = {
        "PATH",          "HOME",     "TMPDIR",     "USER",        "no_proxy",   "LANG",
        "SSL_CERT_FILE", "NO_PROXY", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return strncmp(name, "CAPSULE_", 8) == 0;
}

static void forget_variables(const struct cb_strv *names)
{
    for (size_t i = 0; i < names->n; i++) {
        char *value = is_ours(names->v[i]) ? NULL : getenv(names->v[i]);
        if (!value)
            continue;
        explicit_bzero(value, strlen(value)); /* /proc/PID/environ shows this memory */
        (void)unsetenv(names->v[i]);
    }
}

static bool has_any(const struct workload_config *c, size_t first, const json_t *credentials)
{
    bool any = json_object_size(json_object_get(credentials, "env")) > 0;
    for (size_t i = first; i < c->n_layers; i++)
        any = any || c->layers[i].n_secrets > 0;
    return any;
}

int secrets_load(const struct workload_config *c, size_t first, struct secrets **out,
                 struct cb_error *err)
{
    json_auto_t *credentials = c->credentials ? json_loads(c->credentials, 0, NULL) : NULL;
    *out = NULL;
    if (first >= c->n_layers || !has_any(c, first, credentials))
        return 0;
    secrets_no_cores();
    struct config_pairs all = {0};
    struct loading l = {.s = cb_xcalloc(1, sizeof(*l.s)), .credentials = credentials};
    l.s->first = first;
    l.s->n_layers = c->n_layers - first;
    l.s->layers = cb_xcalloc(l.s->n_layers, sizeof(*l.s->layers));
    l.s->mask = mask_new();
    int rc = load_env(&l, &all, err);
    if (rc == 0)
        rc = load_layers(&l, c, &all, err);
    wipe_pairs(&all);
    forget_variables(&l.variables);
    cb_strv_release(&l.variables);
    if (rc < 0)
        secrets_free(l.s);
    else
        *out = l.s;
    return rc;
}
