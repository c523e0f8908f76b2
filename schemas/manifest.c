/* Manifests and cache records. One table of fields for each struct drives its writer, its reader
 * and its release, so that the three cannot drift apart. */
#include "schemas/manifest.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/limits.h"
#include "support/mem.h"

#include <jansson.h>
#include <string.h>
#include <time.h>

#define SCHEMA_VERSION 1
#define LAYERS_MAX                                                                                 \
    ((size_t)2 * CB_LAYERS_MAX) /* the base image's, the config's and the agent's                  \
                                 */
#define LIST_MAX 65536u         /* strings in an argv or an environment */

enum kind {
    KIND_STR,    /* char * */
    KIND_JSON,   /* char * with canonical JSON text; a JSON value in the file */
    KIND_KEY16,  /* char[17], lower-case hex */
    KIND_DIGEST, /* all zero: absent */
    KIND_U64,
    KIND_U32,
    KIND_U16,
    KIND_I64,  /* not negative */
    KIND_TIME, /* int64_t, milliseconds; RFC 3339 in the file */
    KIND_BOOL,
    KIND_STRV,
    KIND_ENV,     /* struct config_pairs; ["K=V", ...] in the file */
    KIND_TIER,    /* enum tier by name */
    KIND_COMMAND, /* enum command_type by name */
    KIND_COMMANDS
};

enum {
    REQUIRED = 1u << 0,
    NOT_ZERO = 1u << 1, /* 0 is absent */
};

struct field {
    const char *group; /* the object that it lies in, or NULL: the document itself */
    const char *name;
    enum kind kind;
    unsigned flags;
    size_t offset;
};

#define FIELD(type, group, name, kind, flags, member)                                              \
    {                                                                                              \
        group, name, kind, flags, offsetof(type, member)                                           \
    }

/* clang-format off */
static const struct field blob_fields[] = {
#define F(...) FIELD(struct layer_blob, NULL, __VA_ARGS__)
    F("media_type", KIND_STR, REQUIRED, media_type),
    F("digest", KIND_DIGEST, REQUIRED, digest),
    F("diff_id", KIND_DIGEST, REQUIRED, diff_id),
    F("size", KIND_U64, REQUIRED, size),
#undef F
    {0}};

static const struct field record_fields[] = {
#define F(...) FIELD(struct cache_record, __VA_ARGS__)
    F(NULL, "layer", KIND_STR, REQUIRED, layer_name),
    F(NULL, "inputs", KIND_JSON, REQUIRED, inputs),
    F(NULL, "created", KIND_TIME, REQUIRED, created_ms),
    F(NULL, "below", KIND_DIGEST, REQUIRED, below),
    F(NULL, "refreshed", KIND_DIGEST, 0, refreshed),
    F(NULL, "refreshes", KIND_U32, NOT_ZERO, refreshes),
    F("diff", "media_type", KIND_STR, REQUIRED, diff.media_type),
    F("diff", "digest", KIND_DIGEST, REQUIRED, diff.digest),
    F("diff", "diff_id", KIND_DIGEST, REQUIRED, diff.diff_id),
    F("diff", "size", KIND_U64, REQUIRED, diff.size),
    F(NULL, "watched", KIND_BOOL, 0, watched),
    F(NULL, "hosts", KIND_STRV, 0, hosts),
#undef F
    {0}};

static const struct field drive_fields[] = {
#define F(...) FIELD(struct drive_image, NULL, __VA_ARGS__)
    F("drive_id", KIND_STR, REQUIRED, drive_id),
    F("label", KIND_STR, REQUIRED, label),
    F("mount_path", KIND_STR, REQUIRED, mount_path),
    F("read_only", KIND_BOOL, 0, read_only),
    F("filled", KIND_BOOL, 0, filled),
    F("image", KIND_DIGEST, REQUIRED, image),
    F("size", KIND_U64, REQUIRED, size),
    F("chunk_size", KIND_U32, REQUIRED, chunk_size),
    F("chunks", KIND_U64, REQUIRED, n_chunks),
    F("chunk_map", KIND_DIGEST, REQUIRED, chunk_map),
    F("made_in", KIND_STR, 0, made_in),
#undef F
    {0}};

static const struct field command_fields[] = {
#define F(...) FIELD(struct command, NULL, __VA_ARGS__)
    F("type", KIND_COMMAND, REQUIRED, type),
    F("script", KIND_STR, 0, script),
    F("args", KIND_STRV, 0, args),
    F("run_as_root", KIND_BOOL, 0, run_as_root),
    F("timeout_ms", KIND_I64, 0, timeout_ms),
    F("max_retries", KIND_U32, 0, max_retries),
    F("compute", KIND_STR, 0, compute),
    F("ram", KIND_STR, 0, ram),
    F("allowed_hosts", KIND_STRV, 0, allowed_hosts),
    F("allowed_files", KIND_STRV, 0, allowed_files),
    F("env_variables", KIND_ENV, 0, env_variables),
    F("name", KIND_STR, 0, name),
    F("user", KIND_STR, 0, user),
    F("workdir", KIND_STR, 0, workdir),
#undef F
    {0}};

static const struct field boot_fields[] = {
#define F(...) FIELD(struct boot_info, NULL, __VA_ARGS__)
    F("start_argv", KIND_STRV, 0, start_argv),
    F("start_env", KIND_ENV, 0, start_env),
    F("start_user", KIND_STR, 0, start_user),
    F("start_workdir", KIND_STR, 0, start_workdir),
    F("port", KIND_U16, 0, port),
    F("health_path", KIND_STR, 0, health_path),
    F("hostname", KIND_STR, 0, hostname),
    F("init", KIND_STR, 0, init),
    F("commands", KIND_COMMANDS, 0, boot_commands),
#undef F
    {0}};

static const struct field manifest_fields[] = {
#define F(...) FIELD(struct template_manifest, __VA_ARGS__)
    F(NULL, "name", KIND_STR, REQUIRED, name),
    F(NULL, "workload_key", KIND_KEY16, REQUIRED, workload_key),
    F(NULL, "version", KIND_U64, REQUIRED, version),
    F(NULL, "template_key", KIND_DIGEST, REQUIRED, template_key),
    F(NULL, "template_inputs", KIND_JSON, 0, template_inputs),
    F(NULL, "created", KIND_TIME, REQUIRED, created_ms),
    F("base", "ref", KIND_STR, 0, base_ref),
    F("base", "digest", KIND_DIGEST, 0, base_digest),
    F("image", "digest", KIND_DIGEST, REQUIRED, image),
    F("image", "size", KIND_U64, REQUIRED, image_size),
    F("image", "allocated", KIND_U64, 0, image_allocated),
    F("image", "chunk_size", KIND_U32, NOT_ZERO, chunk_size),
    F("image", "chunks", KIND_U64, NOT_ZERO, n_chunks),
    F("image", "chunk_map", KIND_DIGEST, 0, chunk_map),
    F("kernel", "digest", KIND_DIGEST, REQUIRED, kernel),
    F("kernel", "release", KIND_STR, 0, kernel_release),
    F("kernel", "from", KIND_STR, 0, kernel_from),
    F("kernel", "cmdline", KIND_STR, 0, cmdline),
    F("kernel", "initramfs", KIND_DIGEST, REQUIRED, initramfs),
    F("kernel", "modules", KIND_DIGEST, 0, modules),
    F(NULL, "tier", KIND_TIER, REQUIRED, tier),
    F(NULL, "default_env", KIND_ENV, 0, default_env),
    F(NULL, "default_user", KIND_STR, 0, default_user),
    F(NULL, "workdir", KIND_STR, 0, workdir),
    F(NULL, "entrypoint", KIND_STRV, 0, entrypoint),
    F(NULL, "cmd", KIND_STRV, 0, cmd),
    F(NULL, "workspace_gb", KIND_U32, NOT_ZERO, workspace_gb),
    F(NULL, "boot_checked", KIND_BOOL, 0, boot_checked),
    F("warm", "digest", KIND_DIGEST, 0, warm.blob),
    F("warm", "size", KIND_U64, NOT_ZERO, warm.size),
    F("warm", "qemu", KIND_STR, 0, warm.qemu),
    F("warm", "machine", KIND_STR, 0, warm.machine),
    F("warm", "cpu", KIND_STR, 0, warm.cpu),
    F("warm", "network", KIND_STR, 0, warm.network),
    F("warm", "vcpus", KIND_U32, NOT_ZERO, warm.vcpus),
    F("warm", "memory_mib", KIND_U32, NOT_ZERO, warm.memory_mib),
    F("warm", "tsc_khz", KIND_U32, NOT_ZERO, warm.tsc_khz),
    F("warm", "image", KIND_DIGEST, 0, warm.image),
    F("warm", "kernel", KIND_DIGEST, 0, warm.kernel),
    F("warm", "initramfs", KIND_DIGEST, 0, warm.initramfs),
    F("warm", "cmdline", KIND_DIGEST, 0, warm.cmdline),
    F("warm", "drives", KIND_DIGEST, 0, warm.drives),
    F("documents", "sbom", KIND_DIGEST, 0, sbom),
    F("documents", "provenance", KIND_DIGEST, 0, provenance),
    F("documents", "sbom_signed", KIND_DIGEST, 0, sbom_signed),
    F("documents", "provenance_signed", KIND_DIGEST, 0, provenance_signed),
    F(NULL, "config", KIND_JSON, 0, config),
    F(NULL, "lock", KIND_JSON, 0, lock),
#undef F
    {0}};
/* clang-format on */

static const struct cb_digest no_digest;

/* -- release -- */

static void fields_release(const struct field *fields, void *obj);

static void command_list_release(struct commands *c)
{
    for (size_t i = 0; i < c->n; i++) {
        fields_release(command_fields, &c->v[i]);
        free(c->v[i].loc.file);
        free(c->v[i].loc.path);
    }
    free(c->v);
    *c = (struct commands){0};
}

static void fields_release(const struct field *fields, void *obj)
{
    for (const struct field *f = fields; f->name; f++) {
        void *at = (char *)obj + f->offset;
        if (f->kind == KIND_STR || f->kind == KIND_JSON)
            free(cb_take_ptr((char **)at));
        else if (f->kind == KIND_STRV)
            cb_strv_release(at);
        else if (f->kind == KIND_ENV)
            config_pairs_release(at);
        else if (f->kind == KIND_COMMANDS)
            command_list_release(at);
    }
}

void drive_images_free(struct drive_image *v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        fields_release(drive_fields, &v[i]);
    free(v);
}

struct drive_image *drive_images_dup(const struct drive_image *v, size_t n)
{
    struct drive_image *out = cb_xcalloc(n ? n : 1, sizeof(*out));
    for (size_t i = 0; i < n; i++) {
        out[i] = v[i];
        out[i].drive_id = cb_xstrdup(v[i].drive_id);
        out[i].label = cb_xstrdup(v[i].label);
        out[i].mount_path = cb_xstrdup(v[i].mount_path);
        out[i].made_in = cb_xstrdup0(v[i].made_in);
    }
    return out;
}

void cache_record_release(struct cache_record *r)
{
    fields_release(record_fields, r);
    drive_images_free(r->drives, r->n_drives);
    *r = (struct cache_record){0};
}

void boot_info_release(struct boot_info *b)
{
    fields_release(boot_fields, b);
    *b = (struct boot_info){0};
}

void template_manifest_free(struct template_manifest *m)
{
    if (!m)
        return;
    fields_release(manifest_fields, m);
    boot_info_release(&m->boot);
    drive_images_free(m->drives, m->n_drives);
    for (size_t i = 0; i < m->n_layers; i++) {
        layer_blob_release(&m->layers[i]);
        free(m->layer_names[i]);
    }
    free(m->layers);
    free(m->layer_names);
    free(m);
}

/* -- writing -- */

/* Canonical JSON becomes a value in the file, as people and tools want it; any other text a string,
 * so that reading gives back the same bytes in both cases. */
static json_t *dump_json_text(const char *text)
{
    json_t *v = json_loads(text, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
    CB_AUTO_FREE char *again =
        v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    if (again && strcmp(again, text) == 0 && !json_is_string(v) && !json_is_null(v))
        return v;
    json_decref(v);
    return json_string(text);
}

static json_t *dump_strv(const struct cb_strv *s)
{
    json_t *a = json_array();
    for (size_t i = 0; i < s->n; i++)
        (void)json_array_append_new(a, json_string(s->v[i]));
    return json_array_size(a) == s->n ? a : (json_decref(a), NULL);
}

static json_t *dump_env(const struct config_pairs *p)
{
    json_t *a = json_array();
    for (size_t i = 0; i < p->n; i++) {
        CB_AUTO_FREE char *kv = cb_xasprintf("%s=%s", p->v[i].key, p->v[i].value);
        (void)json_array_append_new(a, json_string(kv));
    }
    return json_array_size(a) == p->n ? a : (json_decref(a), NULL);
}

static int dump_fields(const struct field *fields, const void *obj, json_t *doc);

static json_t *dump_commands(const struct commands *c)
{
    json_t *a = json_array();
    for (size_t i = 0; i < c->n; i++) {
        json_t *o = json_object();
        if (dump_fields(command_fields, &c->v[i], o) < 0) {
            json_decref(o);
            json_decref(a);
            return NULL;
        }
        (void)json_array_append_new(a, o);
    }
    return a;
}

/* 1 and *@v (NULL when it cannot be written), or 0 when the field is absent. */
static int dump_field(const struct field *f, const void *at, json_t **v)
{
    switch (f->kind) {
    case KIND_STR:
    case KIND_JSON: {
        const char *s = *(char *const *)at;
        if (!s)
            return 0;
        *v = f->kind == KIND_JSON ? dump_json_text(s) : json_string(s);
        return 1;
    }
    case KIND_KEY16: *v = json_string(at); return 1;
    case KIND_DIGEST: {
        char text[CB_DIGEST_LEN + 1];
        if (!(f->flags & REQUIRED) && cb_digest_eq(at, &no_digest))
            return 0;
        cb_digest_text(at, text);
        *v = json_string(text);
        return 1;
    }
    case KIND_U64:
    case KIND_U32: {
        uint64_t n = f->kind == KIND_U64 ? *(const uint64_t *)at : *(const uint32_t *)at;
        if (n == 0 && (f->flags & NOT_ZERO))
            return 0;
        *v = json_integer((json_int_t)n);
        return 1;
    }
    case KIND_U16: *v = json_integer(*(const uint16_t *)at); return 1;
    case KIND_I64: *v = json_integer(*(const int64_t *)at); return 1;
    case KIND_TIME: {
        char text[CB_RFC3339_LEN + 1];
        cb_rfc3339(*(const int64_t *)at, text);
        *v = json_string(text);
        return 1;
    }
    case KIND_BOOL: *v = json_boolean(*(const bool *)at); return 1;
    case KIND_STRV: *v = dump_strv(at); return 1;
    case KIND_ENV: *v = dump_env(at); return 1;
    case KIND_TIER: *v = json_string(tier_name(*(const enum tier *)at)); return 1;
    case KIND_COMMAND:
        *v = json_string(command_type_name(*(const enum command_type *)at));
        return 1;
    case KIND_COMMANDS: *v = dump_commands(at); return 1;
    }
    return 1;
}

/* -1 when a string is not UTF-8. */
static int dump_fields(const struct field *fields, const void *obj, json_t *doc)
{
    for (const struct field *f = fields; f->name; f++) {
        json_t *v = NULL;
        if (dump_field(f, (const char *)obj + f->offset, &v) == 0)
            continue;
        json_t *in = doc;
        if (f->group) {
            in = json_object_get(doc, f->group);
            if (!in) {
                in = json_object();
                (void)json_object_set_new(doc, f->group, in);
            }
        }
        if (!v || json_object_set_new(in, f->name, v) < 0)
            return -1;
    }
    return 0;
}

static char *print(json_t *doc)
{
    (void)json_object_set_new(doc, "schema_version", json_integer(SCHEMA_VERSION));
    CB_AUTO_FREE char *text = json_dumps(doc, JSON_INDENT(2) | JSON_SORT_KEYS);
    return text ? cb_xasprintf("%s\n", text) : NULL;
}

/* Documents without drives look as they did before there were any. */
static int dump_drives(const struct drive_image *v, size_t n, json_t *doc)
{
    json_t *list = n ? json_array() : NULL;
    if (list)
        (void)json_object_set_new(doc, "drives", list);
    for (size_t i = 0; i < n; i++) {
        json_t *o = json_object();
        (void)json_array_append_new(list, o);
        if (dump_fields(drive_fields, &v[i], o) < 0)
            return -1;
    }
    return 0;
}

char *cache_record_dump(const struct cache_record *r)
{
    json_auto_t *doc = json_object();
    return dump_fields(record_fields, r, doc) < 0 || dump_drives(r->drives, r->n_drives, doc) < 0
               ? NULL
               : print(doc);
}

char *template_manifest_dump(const struct template_manifest *m)
{
    json_auto_t *doc = json_object();
    json_t *boot = json_object(), *layers = json_array();
    (void)json_object_set_new(doc, "boot", boot);
    (void)json_object_set_new(doc, "layers", layers);
    if (dump_fields(manifest_fields, m, doc) < 0 || dump_fields(boot_fields, &m->boot, boot) < 0 ||
        dump_drives(m->drives, m->n_drives, doc) < 0)
        return NULL;
    for (size_t i = 0; i < m->n_layers; i++) {
        json_t *o = json_object();
        (void)json_array_append_new(layers, o);
        if (dump_fields(blob_fields, &m->layers[i], o) < 0 ||
            json_object_set_new(o, "name", json_string(m->layer_names[i])) < 0)
            return NULL;
    }
    return print(doc);
}

/* -- reading -- */

/* Where in the document we are, for messages: "layers[3].". */
struct reader {
    const char *what; /* "template manifest" */
    char where[64];
    struct cb_error *err;
};

static int bad(struct reader *r, const struct field *f, const char *why)
{
    return cb_fail(r->err, CB_E_CORRUPT, "%s: %s%s%s%s: %s", r->what, r->where,
                   f->group ? f->group : "", f->group ? "." : "", f->name, why);
}

static int read_number(struct reader *r, const struct field *f, const json_t *v, void *at)
{
    static const struct {
        uint64_t max;
        const char *why;
    } bound[] = {
        [KIND_U64] = {INT64_MAX, "must be a number that is not negative"},
        [KIND_U32] = {UINT32_MAX, "must be a number from 0 to 4294967295"},
        [KIND_U16] = {UINT16_MAX, "must be a number from 0 to 65535"},
        [KIND_I64] = {INT64_MAX, "must be a number that is not negative"},
    };
    json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < 0 || (uint64_t)n > bound[f->kind].max)
        return bad(r, f, bound[f->kind].why);
    if (f->kind == KIND_U16)
        *(uint16_t *)at = (uint16_t)n;
    else if (f->kind == KIND_U32)
        *(uint32_t *)at = (uint32_t)n;
    else if (f->kind == KIND_I64)
        *(int64_t *)at = n;
    else
        *(uint64_t *)at = (uint64_t)n;
    return 0;
}

/* Exactly what cb_rfc3339() writes: checked by writing it again. */
static bool parse_time(const char *s, int64_t *ms)
{
    if (strlen(s) != CB_RFC3339_LEN)
        return false;
    static const char shape[] = "0000-00-00T00:00:00.000Z";
    for (size_t i = 0; i < CB_RFC3339_LEN; i++) {
        bool digit = s[i] >= '0' && s[i] <= '9';
        if (shape[i] == '0' ? !digit : s[i] != shape[i])
            return false;
    }
#define TWO(at) ((s[at] - '0') * 10 + (s[(at) + 1] - '0'))
    struct tm tm = {.tm_year = TWO(0) * 100 + TWO(2) - 1900,
                    .tm_mon = TWO(5) - 1,
                    .tm_mday = TWO(8),
                    .tm_hour = TWO(11),
                    .tm_min = TWO(14),
                    .tm_sec = TWO(17)};
    *ms = (int64_t)timegm(&tm) * 1000 + (TWO(20) * 10 + (s[22] - '0'));
#undef TWO
    char again[CB_RFC3339_LEN + 1];
    cb_rfc3339(*ms, again);
    return strcmp(again, s) == 0;
}

static bool is_key16(const char *s)
{
    return strlen(s) == 16 && strspn(s, "0123456789abcdef") == 16;
}

/* The kinds that are a string in the file. */
static int read_text(struct reader *r, const struct field *f, const json_t *v, void *at)
{
    const char *s = json_string_value(v);
    if (!s)
        return bad(r, f, "must be a string");
    if (f->kind == KIND_STR) {
        free(*(char **)at);
        *(char **)at = cb_xstrdup(s);
        return 0;
    }
    if (f->kind == KIND_DIGEST)
        return cb_digest_parse(s, at) ? 0 : bad(r, f, "must be sha256: and 64 hex digits");
    if (f->kind == KIND_TIME)
        return parse_time(s, at) ? 0 : bad(r, f, "must be a time such as 2026-01-02T03:04:05.678Z");
    if (f->kind == KIND_KEY16) {
        if (!is_key16(s))
            return bad(r, f, "must be 16 hex digits");
        memcpy(at, s, 17);
        return 0;
    }
    if (f->kind == KIND_TIER) {
        for (int t = 0; t < TIER_N; t++) {
            if (strcmp(tier_name((enum tier)t), s) == 0) {
                *(enum tier *)at = (enum tier)t;
                return 0;
            }
        }
        return bad(r, f, "is not a tier");
    }
    for (int t = 0; t < COMMAND_TYPE_N; t++) {
        if (strcmp(command_type_name((enum command_type)t), s) == 0) {
            *(enum command_type *)at = (enum command_type)t;
            return 0;
        }
    }
    return bad(r, f, "is not a command type");
}

/* The kinds that are an array of strings in the file. */
static int read_list(struct reader *r, const struct field *f, const json_t *v, void *at)
{
    if (!json_is_array(v) || json_array_size(v) > LIST_MAX)
        return bad(r, f, "must be an array of strings");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const char *s = json_string_value(json_array_get(v, i));
        if (!s)
            return bad(r, f, "must be an array of strings");
        if (f->kind == KIND_STRV) {
            cb_strv_add(at, s);
            continue;
        }
        const char *eq = strchr(s, '=');
        if (!eq || eq == s)
            return bad(r, f, "must be an array of NAME=VALUE");
        struct config_pairs *p = at;
        p->v = cb_xgrow(p->v, &p->cap, p->n, sizeof(*p->v));
        p->v[p->n].key = cb_xstrndup(s, (size_t)(eq - s));
        p->v[p->n++].value = cb_xstrdup(eq + 1);
    }
    return 0;
}

static int read_fields(struct reader *r, const struct field *fields, const json_t *doc, void *obj);

static int read_commands(struct reader *r, const struct field *f, const json_t *v,
                         struct commands *c)
{
    if (!json_is_array(v) || json_array_size(v) > LIST_MAX)
        return bad(r, f, "must be an array of commands");
    struct reader in = *r;
    for (size_t i = 0; i < json_array_size(v); i++) {
        c->v = cb_xgrow(c->v, &c->cap, c->n, sizeof(*c->v));
        struct command *cmd = &c->v[c->n++];
        *cmd = (struct command){0};
        (void)snprintf(in.where, sizeof(in.where), "boot.commands[%zu].", i);
        int rc = read_fields(&in, command_fields, json_array_get(v, i), cmd);
        if (rc < 0)
            return rc;
        if (!cmd->script && cmd->args.n == 0)
            return cb_fail(r->err, CB_E_CORRUPT, "%s: %sargs: must not be empty without a script",
                           r->what, in.where);
    }
    return 0;
}

static int read_field(struct reader *r, const struct field *f, const json_t *v, void *at)
{
    switch (f->kind) {
    case KIND_U64:
    case KIND_U32:
    case KIND_U16:
    case KIND_I64: return read_number(r, f, v, at);
    case KIND_STR:
    case KIND_KEY16:
    case KIND_DIGEST:
    case KIND_TIME:
    case KIND_TIER:
    case KIND_COMMAND: return read_text(r, f, v, at);
    case KIND_STRV:
    case KIND_ENV: return read_list(r, f, v, at);
    case KIND_COMMANDS: return read_commands(r, f, v, at);
    case KIND_BOOL:
        if (!json_is_boolean(v))
            return bad(r, f, "must be true or false");
        *(bool *)at = json_is_true(v);
        return 0;
    case KIND_JSON:
        if (json_is_null(v))
            return bad(r, f, "must not be null");
        *(char **)at = json_is_string(v)
                           ? cb_xstrdup(json_string_value(v))
                           : json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS);
        return *(char **)at ? 0 : bad(r, f, "cannot be written again");
    }
    return 0;
}

/* @obj is zeroed; what was read until a failure stays in it for its release. */
static int read_fields(struct reader *r, const struct field *fields, const json_t *doc, void *obj)
{
    for (const struct field *f = fields; f->name; f++) {
        const json_t *in = doc;
        if (f->group) {
            in = json_object_get(doc, f->group);
            if (in && !json_is_object(in))
                return bad(r, f, "must lie in an object");
        }
        const json_t *v = json_object_get(in, f->name);
        if (!v && (f->flags & REQUIRED))
            return bad(r, f, "is missing");
        int rc = v ? read_field(r, f, v, (char *)obj + f->offset) : 0;
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* An owned document of a version that we know, or NULL. */
static json_t *load(struct reader *r, const char *text, size_t len)
{
    json_error_t je;
    json_t *doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    if (!doc) {
        cb_fail(r->err, CB_E_CORRUPT, "%s: %s (line %d)", r->what, je.text, je.line);
        return NULL;
    }
    const json_t *version = json_object_get(doc, "schema_version");
    if (!json_is_integer(version) || json_integer_value(version) < 1)
        cb_fail(r->err, CB_E_CORRUPT, "%s: schema_version: must be a number from 1", r->what);
    else if (json_integer_value(version) > SCHEMA_VERSION)
        cb_fail(r->err, CB_E_ENV, "%s: schema_version %lld is newer than this program", r->what,
                (long long)json_integer_value(version));
    else
        return doc;
    cb_hint(r->err, "use the version of capsule-build that wrote it, or a newer one");
    json_decref(doc);
    return NULL;
}

static int load_failed(const struct cb_error *err)
{
    return err ? -(int)err->code : -(int)CB_E_CORRUPT;
}

/* What is in "drives" of @doc; what was read until a failure is the caller's to free as well. */
static int read_drives(struct reader *r, const json_t *doc, struct drive_image **v, size_t *n)
{
    const json_t *list = json_object_get(doc, "drives");
    size_t count = json_array_size(list);
    if (!list)
        return 0;
    if (!json_is_array(list) || count > DRIVES_MAX)
        return cb_fail(r->err, CB_E_CORRUPT, "%s: drives: must be an array of at most %d drives",
                       r->what, DRIVES_MAX);
    *v = cb_xcalloc(count + 1, sizeof(**v));
    *n = count;
    struct reader in = *r;
    for (size_t i = 0; i < count; i++) {
        (void)snprintf(in.where, sizeof(in.where), "drives[%zu].", i);
        int rc = read_fields(&in, drive_fields, json_array_get(list, i), &(*v)[i]);
        if (rc < 0)
            return rc;
        if (!(*v)[i].size || (*v)[i].mount_path[0] != '/' ||
            strlen((*v)[i].label) > DRIVE_LABEL_MAX)
            return cb_fail(r->err, CB_E_CORRUPT, "%s: %ssize, mount_path or label is impossible",
                           r->what, in.where);
    }
    return 0;
}

int cache_record_parse(const char *text, size_t len, struct cache_record *out, struct cb_error *err)
{
    struct reader r = {.what = "cache record", .err = err};
    json_auto_t *doc = load(&r, text, len);
    if (!doc)
        return load_failed(err);
    struct cache_record rec = {0};
    int rc = read_fields(&r, record_fields, doc, &rec);
    if (rc == 0)
        rc = read_drives(&r, doc, &rec.drives, &rec.n_drives);
    if (rc < 0) {
        cache_record_release(&rec);
        return rc;
    }
    *out = rec;
    return 0;
}

static int read_layers(struct reader *r, const json_t *list, struct template_manifest *m)
{
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n == 0 || n > LAYERS_MAX)
        return cb_fail(r->err, CB_E_CORRUPT, "%s: layers: must be an array of 1 to %zu layers",
                       r->what, LAYERS_MAX);
    m->layers = cb_xcalloc(n, sizeof(*m->layers));
    m->layer_names = cb_xcalloc(n, sizeof(*m->layer_names));
    m->n_layers = n;
    struct reader in = *r;
    for (size_t i = 0; i < n; i++) {
        static const struct field name_field[] = {{NULL, "name", KIND_STR, REQUIRED, 0}, {0}};
        const json_t *o = json_array_get(list, i);
        (void)snprintf(in.where, sizeof(in.where), "layers[%zu].", i);
        int rc = read_fields(&in, blob_fields, o, &m->layers[i]);
        if (rc == 0)
            rc = read_fields(&in, name_field, o, &m->layer_names[i]);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int template_manifest_parse(const char *text, size_t len, struct template_manifest **out,
                            struct cb_error *err)
{
    struct reader r = {.what = "template manifest", .err = err};
    json_auto_t *doc = load(&r, text, len);
    if (!doc)
        return load_failed(err);
    struct template_manifest *m = cb_xcalloc(1, sizeof(*m));
    int rc = read_fields(&r, manifest_fields, doc, m);
    if (rc == 0)
        rc = read_layers(&r, json_object_get(doc, "layers"), m);
    if (rc == 0)
        rc = read_drives(&r, doc, &m->drives, &m->n_drives);
    const json_t *boot = json_object_get(doc, "boot");
    struct reader in = {.what = r.what, .where = "boot.", .err = err};
    if (rc == 0 && !json_is_object(boot))
        rc = cb_fail(err, CB_E_CORRUPT, "%s: boot: must be an object", r.what);
    if (rc == 0)
        rc = read_fields(&in, boot_fields, boot, &m->boot);
    if (rc == 0 && m->version == 0)
        rc = cb_fail(err, CB_E_CORRUPT, "%s: version: must be a number from 1", r.what);
    if (rc < 0) {
        template_manifest_free(m);
        return rc;
    }
    *out = m;
    return 0;
}
