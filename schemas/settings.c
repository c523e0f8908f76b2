#include "schemas/settings.h"

#include "schemas/reader.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <ctype.h>
#include <pwd.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define REGISTRIES_MAX 256u
#define STORE_GB_MAX 1048576u
#define KEEP_MAX 1000000u
#define MIRRORS_MAX 8u
#define KEEP_FAILED 3
#define KEEP_FAILED_GB 10
#define FETCHES_MAX 16
#define OUTPUT_MIB_MAX 4096
#define DISK_GB_MAX 2048
#define DEBIAN_MIRROR "http://deb.debian.org/debian"
#define UBUNTU_MIRROR "http://archive.ubuntu.com/ubuntu"

static const char url_accepts[] = "a URL such as https://mirror.example.com, without user or query";
static const char proxy_accepts[] = "the URL of a proxy such as http://proxy.example.com:3128";
static const char host_accepts[] = "a registry's host such as docker.io or 127.0.0.1:5000";
static const char helper_accepts[] =
    "the name of a credential helper: `gcloud` means the program docker-credential-gcloud";
static const char path_accepts[] = "an absolute path";
static const char *const isolations[] = {"auto", "vm", "container", NULL};
static const char *const pulls[] = {"always", "missing", "never", NULL};

/* ---- what is accepted ---- */

static bool valid_host(const char *h)
{
    size_t n = strlen(h), i = 0;
    if (n == 0 || n > 255)
        return false;
    if (h[0] == '[') { /* [v6 address] */
        size_t in = strspn(h + 1, "0123456789abcdefABCDEF:.");
        if (in < 2 || h[1 + in] != ']')
            return false;
        i = in + 2;
    } else {
        while (isalnum((unsigned char)h[i]) || h[i] == '-' || h[i] == '.' || h[i] == '_')
            i++;
        if (i == 0 || h[0] == '-' || h[0] == '.')
            return false;
    }
    if (h[i] == ':') {
        unsigned port = 0;
        size_t digits = 0;
        for (const char *p = h + i + 1; *p >= '0' && *p <= '9' && digits < 6; p++, digits++)
            port = port * 10 + (unsigned)(*p - '0');
        if (digits == 0 || port == 0 || port > 65535)
            return false;
        i += 1 + digits;
    }
    return h[i] == '\0';
}

static bool valid_url(const char *u)
{
    size_t scheme = strncmp(u, "http://", 7) == 0 ? 7 : strncmp(u, "https://", 8) == 0 ? 8 : 0;
    if (scheme == 0 || strlen(u) > 2048)
        return false;
    CB_AUTO_FREE char *host = cb_xstrndup(u + scheme, strcspn(u + scheme, "/"));
    if (!valid_host(host))
        return false;
    for (const char *p = u + scheme + strlen(host); *p; p++)
        if (!isgraph((unsigned char)*p) || strchr("?#@\"<>\\", *p))
            return false;
    return true;
}

static bool is_one_of(const char *text, const char *const *words)
{
    for (; *words; words++)
        if (strcmp(text, *words) == 0)
            return true;
    return false;
}

static void set(char **to, const char *text)
{
    char *copy = cb_xstrdup(text); /* first: it may be *to itself */
    free(*to);
    *to = copy;
}

/* Without the slashes at its end: paths are put behind it. */
static void set_url(char **to, const char *url)
{
    size_t n = strlen(url);
    while (n && url[n - 1] == '/')
        n--;
    char *copy = cb_xstrndup(url, n);
    free(*to);
    *to = copy;
}

/* ---- files ---- */

static bool read_url(struct reader *r, const struct at *at, const struct doc_node *n,
                     const struct field *f, void *to)
{
    (void)f;
    const char *text = read_text(r, at, n, url_accepts);
    if (!text)
        return false;
    if (strchr(text, '@')) {
        read_problem(r, at, n, "expected %s; `username` and `password` are fields of their own",
                     url_accepts);
        return false;
    }
    if (!valid_url(text))
        return read_expected(r, at, n, url_accepts);
    set_url(to, text);
    return true;
}

/* Without user and password: it is shown, and stands in the environment of what we start. */
static bool read_proxy(struct reader *r, const struct at *at, const struct doc_node *n,
                       const struct field *f, void *to)
{
    (void)f;
    const char *text = read_text(r, at, n, proxy_accepts);
    if (!text)
        return false;
    if (strchr(text, '@')) {
        read_problem(r, at, n, "expected %s, without user and password", proxy_accepts);
        return false;
    }
    if (!valid_url(text))
        return read_expected(r, at, n, proxy_accepts);
    set_url(to, text);
    return true;
}

static bool read_urls(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    struct cb_strv *all = to;
    if (n->kind != DOC_LIST || n->n == 0 || n->n > MIRRORS_MAX)
        return read_expected(r, at, n, "a list of 1 to 8 URLs");
    struct cb_strv fresh = {0};
    for (size_t i = 0; i < n->n; i++) {
        const struct at here = {.up = at, .index = i};
        char *one = NULL;
        if (read_url(r, &here, n->items[i], f, &one))
            cb_strv_take(&fresh, one);
    }
    cb_strv_release(all); /* a later file's list stands in place of an earlier one's */
    *all = fresh;
    return true;
}

static bool read_helper(struct reader *r, const struct at *at, const struct doc_node *n,
                        const struct field *f, void *to)
{
    (void)f;
    const char *text = read_text(r, at, n, helper_accepts);
    if (!text)
        return false;
    for (const char *p = text; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("._-", *p))
            return read_expected(r, at, n, helper_accepts);
    if (!*text || strlen(text) > 128)
        return read_expected(r, at, n, helper_accepts);
    set(to, text);
    return true;
}

static bool read_path(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    (void)f;
    const char *text = read_text(r, at, n, path_accepts);
    if (!text)
        return false;
    if (*text != '/' || n->n >= CB_PATH_MAX)
        return read_expected(r, at, n, path_accepts);
    set(to, text);
    return true;
}

/* A password stands in no message. */
static bool read_secret(struct reader *r, const struct at *at, const struct doc_node *n,
                        const struct field *f, void *to)
{
    (void)f;
    if (n->kind != DOC_SCALAR || doc_is_null(n) || n->n == 0 || n->n > 8192) {
        read_problem(r, at, n, "expected a text");
        return false;
    }
    set(to, n->text);
    return true;
}

#define AT(member) offsetof(struct registry_settings, member)

static const struct field registry_fields[] = {
    {.name = "mirror", .read = read_url, .offset = AT(mirror)},
    {.name = "mirrors", .read = read_urls, .offset = AT(mirrors)},
    {.name = "ca_file", .read = read_path, .offset = AT(ca_file)},
    {.name = "username", .read = read_string, .offset = AT(username), .max = 1024},
    {.name = "password", .read = read_secret, .offset = AT(password)},
    {.name = "credential_helper", .read = read_helper, .offset = AT(credential_helper)},
    {.name = "client_cert", .read = read_path, .offset = AT(client_cert)},
    {.name = "client_key", .read = read_path, .offset = AT(client_key)},
    {.name = "insecure", .read = read_bool, .offset = AT(insecure)},
    {.name = NULL},
};

static bool read_registries(struct reader *r, const struct at *at, const struct doc_node *n,
                            const struct field *f, void *to)
{
    (void)f;
    struct settings *s = to;
    if (n->kind != DOC_MAP)
        return read_expected(r, at, n, "a map such as {docker.io: {mirror: https://...}}");
    if (n->n > REGISTRIES_MAX) {
        read_problem(r, at, n, "more than %u registries", REGISTRIES_MAX);
        return false;
    }
    for (size_t i = 0; i < n->n; i++) {
        const struct doc_node *key = n->pairs[i].key;
        const struct at here = {.up = at, .key = key->text};
        if (!valid_host(key->text)) {
            (void)read_expected(r, &here, key, host_accepts);
            continue;
        }
        (void)read_map(r, &here, n->pairs[i].value, registry_fields,
                       settings_registry(s, key->text));
    }
    return true;
}

#undef AT
#define AT(member) offsetof(struct settings, member)

static const struct field settings_fields[] = {
    {.name = "home", .read = read_path, .offset = AT(home)},
    {.name = "debian_mirror", .read = read_url, .offset = AT(debian_mirror)},
    {.name = "ubuntu_mirror", .read = read_url, .offset = AT(ubuntu_mirror)},
    {.name = "kernel", .read = read_path, .offset = AT(kernel)},
    {.name = "qemu", .read = read_path, .offset = AT(qemu)},
    {.name = "isolation", .read = read_choice, .offset = AT(isolation), .more = isolations},
    {.name = "pull", .read = read_choice, .offset = AT(pull), .more = pulls},
    {.name = "proxy", .read = read_proxy, .offset = AT(proxy)},
    {.name = "ca_bundle", .read = read_path, .offset = AT(ca_bundle)},
    {.name = "allow_host_network", .read = read_bool, .offset = AT(allow_host_network)},
    {.name = "store_max_gb",
     .read = read_u32,
     .offset = AT(store_max_gb),
     .min = 1,
     .max = STORE_GB_MAX},
    {.name = "keep_versions",
     .read = read_u32,
     .offset = AT(keep_versions),
     .min = 1,
     .max = KEEP_MAX},
    {.name = "keep_failed", .read = read_u32, .offset = AT(keep_failed), .max = 1000},
    {.name = "keep_failed_gb",
     .read = read_u32,
     .offset = AT(keep_failed_gb),
     .min = 1,
     .max = STORE_GB_MAX},
    {.name = "signing_key", .read = read_path, .offset = AT(signing_key)},
    {.name = "parallel_fetches",
     .read = read_u32,
     .offset = AT(parallel_fetches),
     .min = 1,
     .max = FETCHES_MAX},
    {.name = "stall_seconds", .read = read_u32, .offset = AT(stall_seconds), .min = 1, .max = 3600},
    {.name = "step_output_mib",
     .read = read_u32,
     .offset = AT(step_output_mib),
     .min = 1,
     .max = OUTPUT_MIB_MAX},
    {.name = "disk_gb", .read = read_u32, .offset = AT(disk_gb), .min = 1, .max = DISK_GB_MAX},
    {.name = "registries", .read = read_registries},
    {.name = NULL},
};

/* A settings file without settings is fine, unlike a config without anything to build. */
static bool says_nothing(const struct cb_buf *text)
{
    for (const char *p = text->data ? text->data : ""; *p; p++) {
        if (*p == '#')
            p += strcspn(p, "\n") - 1;
        else if (!isspace((unsigned char)*p))
            return false;
    }
    return true;
}

static void append(struct config_problems *to, struct config_problems *from)
{
    for (size_t i = 0; i < from->n; i++) {
        to->v = cb_xgrow(to->v, &to->cap, to->n, sizeof(*to->v));
        to->v[to->n++] = from->v[i];
    }
    to->n_errors += from->n_errors;
    to->n_dropped += from->n_dropped;
    from->n = 0; /* moved */
    config_problems_release(from);
}

static void read_settings_file(struct settings *s, const char *path, bool required,
                               struct config_problems *all)
{
    struct config_problems problems = {0};
    CB_AUTO_BUF text = CB_BUF_INIT(CB_CONFIG_MAX);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = cb_read_file(path, CB_CONFIG_MAX, &text, &err);
    if (rc < 0) {
        if (required || err.code != CB_E_NOTFOUND)
            problem_unreadable(&problems, path, &err);
    } else if (!says_nothing(&text)) {
        struct doc d;
        bool secret = strcasestr(text.data, "password") || strchr(text.data, '@');
        bool ok = secret ? doc_read_private(&d, text.data, text.len, path, CONFIG_AUTO, &problems)
                         : doc_read(&d, text.data, text.len, path, CONFIG_AUTO, &problems);
        if (ok) {
            struct reader r = {.doc = &d, .problems = &problems};
            if (d.root->kind == DOC_MAP)
                (void)read_map(&r, NULL, d.root, settings_fields, s);
            else
                (void)read_expected(&r, NULL, d.root, "a map of settings");
        }
        doc_release(&d);
    }
    problems_sort(&problems);
    append(all, &problems);
}

/* ---- environment ---- */

static void refuse_variable(struct config_problems *p, const char *name, const char *accepts,
                            const char *value)
{
    struct source s = {.name = "environment"};
    CB_AUTO_FREE char *q =
        strchr(value, '@') ? cb_xstrdup("one with an '@'") : quote_text(value, strlen(value));
    problem_add(p, &s, false, 0, 0, name, "expected %s, found %s", accepts, q);
}

/* A variable that is set to nothing is as one that is not set. */
static const char *variable(const char *name)
{
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

static void set_path(const char *name, const char *v, char **to, struct config_problems *p)
{
    if (strlen(v) >= CB_PATH_MAX) {
        refuse_variable(p, name, "a path", v);
    } else if (*v == '/') {
        set(to, v);
    } else { /* typed at a prompt: relative to where we are */
        CB_AUTO_FREE char *here = realpath(".", NULL);
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", here ? here : "", v);
        set(to, path);
    }
}

static void set_number(const char *name, const char *v, const struct field *f, uint32_t *to,
                       struct config_problems *p)
{
    size_t digits = strspn(v, "0123456789");
    bool number = digits > 0 && digits < 10 && !v[digits];
    long long n = number ? strtoll(v, NULL, 10) : 0;
    if (number && n >= f->min && n <= f->max) {
        *to = (uint32_t)n;
        return;
    }
    CB_AUTO_FREE char *accepts =
        cb_xasprintf("a whole number from %lld to %lld", (long long)f->min, (long long)f->max);
    refuse_variable(p, name, accepts, v);
}

static void set_bool(const char *name, const char *v, bool *to, struct config_problems *p)
{
    if (strcmp(v, "true") == 0 || strcmp(v, "false") == 0)
        *to = v[0] == 't';
    else
        refuse_variable(p, name, "true or false", v);
}

static void set_choice(const char *name, const char *v, const struct field *f, char **to,
                       struct config_problems *p)
{
    if (is_one_of(v, f->more)) {
        set(to, v);
        return;
    }
    CB_AUTO_BUF accepts = CB_BUF_INIT(1024);
    for (const char *const *w = f->more; *w; w++)
        (void)cb_buf_addf(&accepts, "%s%s", w == f->more ? "one of " : ", ", *w);
    refuse_variable(p, name, accepts.data, v);
}

/* As the same field of a file, but for paths, which may be relative. */
static void take_variable(struct settings *s, const struct field *f, const char *name,
                          const char *v, struct config_problems *p)
{
    void *to = (char *)s + f->offset;
    if (f->read == read_path)
        set_path(name, v, to, p);
    else if (f->read == read_u32)
        set_number(name, v, f, to, p);
    else if (f->read == read_bool)
        set_bool(name, v, to, p);
    else if (f->read == read_choice)
        set_choice(name, v, f, to, p);
    else if (valid_url(v))
        set_url(to, v);
    else
        refuse_variable(p, name, f->read == read_proxy ? proxy_accepts : url_accepts, v);
}

#define PREFIX "CAPSULE_BUILD_"
#define REGISTRY_MIRRORS "REGISTRY_MIRRORS"

/* The name of a field's variable, without the prefix. Owned. */
static char *variable_of(const struct field *f)
{
    char *name = cb_xstrdup(f->name);
    for (char *c = name; *c; c++)
        *c = (char)toupper((unsigned char)*c);
    return name;
}

/* A variable that is nearly one of ours would be a setting that is silently not set. Others with
 * our prefix are somebody else's. */
static void warn_of_misspelt_variables(const struct cb_strv *known, struct config_problems *p)
{
    const char *words[sizeof(settings_fields) / sizeof(*settings_fields) + 1] = {NULL};
    for (size_t i = 0; i < known->n; i++)
        words[i] = known->v[i];
    for (char **e = environ; *e; e++) {
        if (strncmp(*e, PREFIX, sizeof(PREFIX) - 1) != 0)
            continue;
        const char *rest = *e + sizeof(PREFIX) - 1;
        CB_AUTO_FREE char *name = cb_xstrndup(rest, strcspn(rest, "="));
        const char *near = is_one_of(name, words) ? NULL : nearest_word(name, words);
        if (!near)
            continue;
        struct source env = {.name = "environment"};
        CB_AUTO_FREE char *q = quote_text(*e, strcspn(*e, "="));
        problem_add(p, &env, true, 0, 0, NULL,
                    "there is no variable %s, it is ignored; did you mean " PREFIX "%s?", q, near);
    }
}

static void read_mirrors(struct settings *s, struct config_problems *p)
{
    const char *list = variable(PREFIX REGISTRY_MIRRORS);
    for (const char *at = list; at && *at;) {
        size_t n = strcspn(at, ",");
        CB_AUTO_FREE char *one = cb_xstrndup(at, n);
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct source env = {.name = "environment"};
        if (n && settings_add_mirror(s, one, &err) < 0)
            problem_add(p, &env, false, 0, 0, PREFIX REGISTRY_MIRRORS, "%s", err.msg);
        at += n + (at[n] == ',');
    }
}

/* Each field has the variable of its name, but for `registries`, a map. */
static void read_environment(struct settings *s, struct config_problems *p)
{
    struct cb_strv known = {0};
    for (const struct field *f = settings_fields; f->name; f++) {
        if (f->read == read_registries) {
            cb_strv_add(&known, REGISTRY_MIRRORS);
            continue;
        }
        cb_strv_take(&known, variable_of(f));
        CB_AUTO_FREE char *name = cb_xasprintf(PREFIX "%s", known.v[known.n - 1]);
        const char *v = variable(name);
        if (v)
            take_variable(s, f, name, v, p);
    }
    read_mirrors(s, p);
    warn_of_misspelt_variables(&known, p);
    cb_strv_release(&known);
}

/* ---- the whole ---- */

static char *user_home(void)
{
    const char *h = variable("HOME");
    if (h && *h == '/')
        return cb_xstrdup(h);
    struct passwd pw, *found = NULL;
    char buf[4096];
    if (getpwuid_r(geteuid(), &pw, buf, sizeof(buf), &found) == 0 && found && found->pw_dir)
        return cb_xstrdup(found->pw_dir);
    return NULL;
}

/* $@variable_name if it is an absolute path (the XDG specification says to ignore others), else
 * HOME/@below. Owned, or NULL. */
static char *xdg(const char *variable_name, const char *below)
{
    const char *v = variable(variable_name);
    if (v && *v == '/')
        return cb_xstrdup(v);
    CB_AUTO_FREE char *home = user_home();
    return home ? cb_xasprintf("%s/%s", home, below) : NULL;
}

static char *default_home(void)
{
    if (geteuid() == 0)
        return cb_xstrdup("/var/lib/capsule-build");
    CB_AUTO_FREE char *data = xdg("XDG_DATA_HOME", ".local/share");
    return data ? cb_xasprintf("%s/capsule-build", data) : NULL;
}

int settings_load_files(const char *const *files, size_t n, bool last_required,
                        struct settings **out, struct config_problems *problems,
                        struct cb_error *err)
{
    struct settings *s = cb_xcalloc(1, sizeof(*s));
    s->home = default_home();
    s->debian_mirror = cb_xstrdup(DEBIAN_MIRROR);
    s->ubuntu_mirror = cb_xstrdup(UBUNTU_MIRROR);
    s->isolation = cb_xstrdup("auto");
    s->keep_failed = KEEP_FAILED;
    s->keep_failed_gb = KEEP_FAILED_GB;
    s->pull = cb_xstrdup("always");
    for (size_t i = 0; i < n; i++)
        read_settings_file(s, files[i], last_required && i + 1 == n, problems);
    read_environment(s, problems);
    if (!s->home) {
        struct source env = {.name = "environment"};
        problem_add(problems, &env, false, 0, 0, "HOME",
                    "not set; set CAPSULE_BUILD_HOME to the folder that builds are kept in");
    }
    int rc = problems_summary(problems, "the settings", err);
    if (rc < 0)
        settings_free(s);
    else
        *out = s;
    return rc;
}

int settings_load(const char *config_file, struct settings **out, struct config_problems *problems,
                  struct cb_error *err)
{
    const char *files[3] = {"/etc/capsule-build/config.yaml"};
    size_t n = 1;
    CB_AUTO_FREE char *dir = xdg("XDG_CONFIG_HOME", ".config");
    CB_AUTO_FREE char *user = dir ? cb_xasprintf("%s/capsule-build/config.yaml", dir) : NULL;
    if (user)
        files[n++] = user;
    if (config_file)
        files[n++] = config_file;
    return settings_load_files(files, n, config_file != NULL, out, problems, err);
}

struct registry_settings *settings_registry(struct settings *s, const char *host)
{
    for (size_t i = 0; i < s->n_registries; i++)
        if (strcasecmp(s->registries[i].host, host) == 0)
            return &s->registries[i];
    s->registries = cb_xrealloc(s->registries, (s->n_registries + 1) * sizeof(*s->registries));
    struct registry_settings *r = &s->registries[s->n_registries++];
    *r = (struct registry_settings){.host = cb_xstrdup(host)};
    return r;
}

const struct registry_settings *settings_find_registry(const struct settings *s, const char *host)
{
    for (size_t i = 0; i < s->n_registries; i++)
        if (strcasecmp(s->registries[i].host, host) == 0)
            return &s->registries[i];
    return NULL;
}

int settings_add_mirror(struct settings *s, const char *text, struct cb_error *err)
{
    const char *eq = strchr(text, '=');
    CB_AUTO_FREE char *host = cb_xstrndup(text, eq ? (size_t)(eq - text) : 0);
    CB_AUTO_FREE char *q =
        strchr(text, '@') ? cb_xstrdup("one with an '@'") : quote_text(text, strlen(text));
    if (!eq || !valid_host(host) || !valid_url(eq + 1))
        return cb_fail(err, CB_E_CONFIG,
                       "expected HOST=URL such as docker.io=http://127.0.0.1:5000, found %s", q);
    set_url(&settings_registry(s, host)->mirror, eq + 1);
    return 0;
}

void settings_export(const struct settings *s)
{
    if (s->proxy) {
        (void)setenv("http_proxy", s->proxy, 1);
        (void)setenv("https_proxy", s->proxy, 1);
        (void)setenv("no_proxy", "localhost,127.0.0.1,::1", 0); /* what is said there is kept */
    }
    if (s->ca_bundle)
        (void)setenv("CURL_CA_BUNDLE", s->ca_bundle, 1);
}

void settings_free(struct settings *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_registries; i++) {
        struct registry_settings *r = &s->registries[i];
        free(r->host);
        free(r->mirror);
        cb_strv_release(&r->mirrors);
        free(r->ca_file);
        free(r->credential_helper);
        free(r->client_cert);
        free(r->client_key);
        free(r->username);
        if (r->password)
            explicit_bzero(r->password, strlen(r->password));
        free(r->password);
    }
    free(s->registries);
    free(s->home);
    free(s->debian_mirror);
    free(s->ubuntu_mirror);
    free(s->kernel);
    free(s->qemu);
    free(s->signing_key);
    free(s->isolation);
    free(s->pull);
    free(s->proxy);
    free(s->ca_bundle);
    free(s);
}
