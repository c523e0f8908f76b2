/* What a build is trusted with: credentials and the providers of `auth`. Both are checked here and
 * kept as they are written; a secret's value is in neither. */
#include "schemas/config_fields.h"
#include "schemas/config_json.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <ctype.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- names that become names of files ---- */

bool read_id(struct reader *r, const struct at *at, const struct doc_node *n, const struct field *f,
             void *to)
{
    const char *accepts =
        "a name of letters, digits, '.', '_' and '-', the first a letter or digit";
    const char *text = read_text(r, at, n, accepts);
    if (!text)
        return false;
    bool ok = isalnum((unsigned char)*text) && n->n <= (size_t)f->max;
    for (const char *p = text; ok && *p; p++)
        ok = isalnum((unsigned char)*p) || strchr("._-", *p);
    if (!ok)
        return read_expected(r, at, n, accepts);
    return read_string(r, at, n, f, to);
}

bool read_variable(struct reader *r, const struct at *at, const struct doc_node *n,
                   const struct field *f, void *to)
{
    const char *text = read_text(r, at, n, f->accepts);
    if (!text)
        return false;
    bool braces = strncmp(text, "${", 2) == 0;
    const char *name = braces ? text + 2 : text;
    size_t len = 0;
    while (isalnum((unsigned char)name[len]) || name[len] == '_')
        len++;
    if (len == 0 || isdigit((unsigned char)*name) || strcmp(name + len, braces ? "}" : "") != 0)
        /* what stands there may be the secret itself */
        read_problem_private(r, at, n, "expected %s", f->accepts);
    else
        return read_string(r, at, n, f, to);
    return false;
}

/* ---- credentials ---- */

static void check_variables(struct reader *r, const struct at *at, const struct doc_node *n)
{
    if (n->kind == DOC_SCALAR) {
        (void)read_expand(r, at, n, n->text, NULL);
        return;
    }
    for (size_t i = 0; i < n->n; i++) {
        const struct at here = {
            .up = at, .key = n->kind == DOC_MAP ? n->pairs[i].key->text : NULL, .index = i};
        check_variables(r, &here, n->kind == DOC_MAP ? n->pairs[i].value : n->items[i]);
    }
}

struct credential {
    char *name, *secret_name, *env, *path, *version;
};
struct host_dir {
    char *src, *dst;
    bool read_only;
};
struct credentials {
    struct credential *secrets;
    size_t n_secrets;
    struct config_pairs env;
};

#define AT(member) offsetof(struct credential, member)
static const struct field credential_fields[] = {
    {.name = "name",
     .read = read_id,
     .offset = AT(name),
     .max = 128,
     .required = true,
     .accepts = "what layers[].secrets call it"},
    {.name = "secret_name", .read = read_string, .offset = AT(secret_name), .max = 1024},
    {.name = "env",
     .read = read_variable,
     .offset = AT(env),
     .max = 1024,
     .accepts = VARIABLE_ACCEPTS},
    {.name = "path", .read = read_absolute_path, .offset = AT(path)},
    {.name = "version", .read = read_string, .offset = AT(version), .max = 128},
    {.name = NULL},
};
#undef AT

#define AT(member) offsetof(struct host_dir, member)
static const struct field host_dir_fields[] = {
    {.name = "src",
     .read = read_absolute_path,
     .offset = AT(src),
     .required = true,
     .accepts = "the folder on this machine"},
    {.name = "dst",
     .read = read_absolute_path,
     .offset = AT(dst),
     .required = true,
     .accepts = "where it is to be seen"},
    {.name = "read_only", .read = read_bool, .offset = AT(read_only)},
    {.name = NULL},
};
#undef AT

static bool read_credential_list(struct reader *r, const struct at *at, const struct doc_node *n,
                                 const struct field *f, void *to)
{
    (void)f;
    struct credentials *c = to;
    void *v = NULL;
    (void)read_structs(r, at, n, credential_fields, "a list of secrets", sizeof(struct credential),
                       SIZE_MAX, &v, &c->n_secrets);
    c->secrets = v;
    for (size_t i = 0; i < c->n_secrets; i++) {
        const struct at here = {.up = at, .index = i};
        const struct doc_node *item = n->items[i];
        int sources =
            !!doc_child(item, "secret_name") + !!doc_child(item, "env") + !!doc_child(item, "path");
        if (item->kind == DOC_MAP && sources != 1)
            read_problem(r, &here, item,
                         "a credential comes from one of `secret_name` (a secret manager's), `env` "
                         "(a variable) and `path` (a file)");
    }
    return false;
}

static bool read_host_dirs(struct reader *r, const struct at *at, const struct doc_node *n,
                           const struct field *f, void *to)
{
    (void)f;
    (void)to;
    if (n->kind != DOC_LIST)
        return read_expected(r, at, n, "a list of folders of this machine");
    for (size_t i = 0; i < n->n; i++) {
        const struct at here = {.up = at, .index = i};
        struct host_dir d = {0};
        if (n->items[i]->kind == DOC_MAP)
            (void)read_map(r, &here, n->items[i], host_dir_fields, &d);
        else
            (void)read_absolute_path(r, &here, n->items[i], &host_dir_fields[0], &d.src);
        free(d.src);
        free(d.dst);
    }
    return n->n > 0;
}

static bool read_credential_env(struct reader *r, const struct at *at, const struct doc_node *n,
                                const struct field *f, void *to)
{
    struct credentials *c = to;
    (void)read_env(r, at, n, f, &c->env);
    return false;
}

static const struct field credentials_fields[] = {
    {.name = "secrets", .read = read_credential_list},
    {.name = "host_dirs", .read = read_host_dirs, .note = "host_dirs"},
    {.name = "env", .read = read_credential_env},
    {.name = NULL},
};

/* What is a text in the language is one here, too: `{A: 1.10}` is "1.10". */
static char *credentials_text(const struct doc_node *n, const struct credentials *c)
{
    json_auto_t *v = doc_to_json(n);
    if (doc_child(n, "secrets")) {
        json_t *list = json_array();
        for (size_t i = 0; i < c->n_secrets; i++) {
            const struct credential *x = &c->secrets[i];
            json_t *o = json_object();
            json_put_text(o, "name", x->name);
            json_put_text(o, "secret_name", x->secret_name);
            json_put_text(o, "env", x->env);
            json_put_text(o, "path", x->path);
            json_put_text(o, "version", x->version);
            (void)json_array_append_new(list, o);
        }
        (void)json_object_set_new(v, "secrets", list);
    }
    if (doc_child(n, "env"))
        (void)json_object_set_new(v, "env", json_pairs(&c->env, false));
    return json_dumps(v, JSON_SORT_KEYS | JSON_COMPACT);
}

/* Secret values stay out of the model: the text is kept as written, with its ${VAR}. */
bool read_credentials(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to)
{
    (void)f;
    struct credentials c = {0};
    bool ok = read_map(r, at, n, credentials_fields, &c);
    CB_AUTO_FREE char *text = ok ? credentials_text(n, &c) : NULL;
    for (size_t i = 0; i < c.n_secrets; i++) {
        free(c.secrets[i].name);
        free(c.secrets[i].secret_name);
        free(c.secrets[i].env);
        free(c.secrets[i].path);
        free(c.secrets[i].version);
    }
    free(c.secrets);
    config_pairs_release(&c.env);
    if (!ok)
        return false;
    char **out = to;
    if (*out) {
        read_problem(r, at, n, "`credentials` is given twice, beside and below `workload`");
        return false;
    }
    check_variables(r, at, n);
    *out = text;
    text = NULL;
    return n->n > 0;
}

/* ---- auth ---- */

/* `password` and the like: a value below such a name would be a secret in the file, the queue and
 * the manifest. `token_ref`, `password_env`, `key_file` name where it is. */
static bool names_a_secret(const char *key)
{
    static const char *const words[] = {"password", "passwd",     "token",         "secret",
                                        "api_key",  "access_key", "client_secret", "private_key"};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcasecmp(key, words[i]) == 0)
            return true;
    return false;
}

static void check_references(struct reader *r, const struct at *at, const struct doc_node *n)
{
    for (size_t i = 0; n->kind != DOC_SCALAR && i < n->n; i++) {
        const char *key = n->kind == DOC_MAP ? n->pairs[i].key->text : NULL;
        const struct doc_node *value = n->kind == DOC_MAP ? n->pairs[i].value : n->items[i];
        const struct at here = {.up = at, .key = key, .index = i};
        if (key && value->kind == DOC_SCALAR && names_a_secret(key))
            read_problem_private(
                r, &here, n->pairs[i].key,
                "a secret's value does not belong into a config; name where it is, as %s_ref", key);
        else
            check_references(r, &here, value);
    }
}

/* Nothing in it but {providers: {gcp: ...}}, which builds use. */
static bool gcp_alone(const struct doc_node *n)
{
    const struct doc_node *providers = n->n == 1 ? n->pairs[0].value : NULL;
    if (!providers || strcmp(n->pairs[0].key->text, "providers") != 0 || providers->kind != DOC_MAP)
        return false;
    for (size_t i = 0; i < providers->n; i++)
        if (strcmp(providers->pairs[i].key->text, "gcp") != 0)
            return false;
    return true;
}

bool read_auth(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to)
{
    if (n->kind == DOC_MAP) {
        check_references(r, at, n);
        if (!gcp_alone(n))
            reader_note(r, at, n, "auth");
    }
    return read_object(r, at, n, f, to);
}
