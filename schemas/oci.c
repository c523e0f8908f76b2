#include "schemas/oci.h"

#include "support/cleanup.h"
#include "support/limits.h"
#include "support/mem.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define ENV_MAX 4096u       /* variables of one image; Docker itself starts no process with more */
#define MEDIA_TYPE_MAX 255u /* RFC 6838: 127 "/" 127 */
#define ANNOTATION_MAX 512u
#define PLATFORM_MAX 64u /* a platform's fields */
#define LIST_MAX 1000u   /* platforms listed in an error, bytes */

/* --- life cycle --- */

static void descriptor_release(struct oci_descriptor *d)
{
    free(d->media_type);
    free(d->architecture);
    free(d->os);
    free(d->variant);
    free(d->ref_name);
    free(d->image_name);
    *d = (struct oci_descriptor){0};
}

void oci_manifest_release(struct oci_manifest *m)
{
    descriptor_release(&m->config);
    for (size_t i = 0; i < m->n_layers; i++)
        descriptor_release(&m->layers[i]);
    free(m->layers);
    *m = (struct oci_manifest){0};
}

void oci_config_release(struct oci_image_config *c)
{
    free(c->architecture);
    free(c->os);
    free(c->variant);
    cb_strv_release(&c->env);
    free(c->user);
    free(c->workdir);
    cb_strv_release(&c->entrypoint);
    cb_strv_release(&c->cmd);
    free(c->stop_signal);
    free(c->diff_ids);
    *c = (struct oci_image_config){0};
}

/* --- reading --- */

static int load(const char *text, size_t len, const char *what, json_t **out, struct cb_error *err)
{
    json_error_t je;
    if (len > CB_JSON_MAX)
        return cb_fail(err, CB_E_LIMIT, "%s is larger than 4 MiB", what);
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    if (!root)
        return cb_fail(err, CB_E_CORRUPT, "%s is not JSON: %s (line %d)", what, je.text, je.line);
    if (!json_is_object(root)) {
        json_decref(root);
        return cb_fail(err, CB_E_CORRUPT, "%s is not a JSON object", what);
    }
    *out = root;
    return 0;
}

/* The member, or NULL when it is absent or null (the specification makes those the same). */
static json_t *member(const json_t *o, const char *key)
{
    json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
}

/* An optional string without control characters, at most @max bytes. *@out is borrowed or NULL. */
static int text_of(const json_t *o, const char *what, const char *key, size_t max, const char **out,
                   struct cb_error *err)
{
    *out = NULL;
    const json_t *v = member(o, key);
    if (!v)
        return 0;
    if (!json_is_string(v))
        return cb_fail(err, CB_E_CORRUPT, "%s: \"%s\" is not a string", what, key);
    const char *s = json_string_value(v);
    if (json_string_length(v) > max)
        return cb_fail(err, CB_E_LIMIT, "%s: \"%s\" is longer than %zu bytes", what, key, max);
    for (const char *c = s; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return cb_fail(err, CB_E_CORRUPT, "%s: \"%s\" holds a control character", what, key);
    *out = s;
    return 0;
}

static int parse_platform(const json_t *o, const char *what, struct oci_descriptor *d,
                          struct cb_error *err)
{
    const json_t *p = member(o, "platform");
    const char *os, *arch, *variant;
    if (!p)
        return 0;
    if (!json_is_object(p))
        return cb_fail(err, CB_E_CORRUPT, "%s: \"platform\" is not an object", what);
    int rc = text_of(p, what, "os", PLATFORM_MAX, &os, err);
    if (rc == 0)
        rc = text_of(p, what, "architecture", PLATFORM_MAX, &arch, err);
    if (rc == 0)
        rc = text_of(p, what, "variant", PLATFORM_MAX, &variant, err);
    if (rc < 0)
        return rc;
    d->os = cb_xstrdup(os ? os : "");
    d->architecture = cb_xstrdup(arch ? arch : "");
    d->variant = cb_xstrdup0(variant);
    d->features = json_array_size(member(p, "os.features")) > 0;
    return 0;
}

/* BuildKit puts its attestations into the index as entries of platform unknown/unknown. */
static bool is_attestation(const json_t *o, const struct oci_descriptor *d)
{
    const json_t *notes = member(o, "annotations");
    const char *type = json_string_value(json_object_get(notes, "vnd.docker.reference.type"));
    if (type && strcmp(type, "attestation-manifest") == 0)
        return true;
    return d->os && strcmp(d->os, "unknown") == 0;
}

/* A name among the annotations, or NULL: what no name can be is no reason to refuse the rest. */
static char *annotation(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(member(o, "annotations"), key);
    const char *s = json_string_value(v);
    if (!s || !*s || json_string_length(v) > ANNOTATION_MAX)
        return NULL;
    for (const char *c = s; *c; c++)
        if ((unsigned char)*c <= 0x20 || (unsigned char)*c >= 0x7f)
            return NULL;
    return cb_xstrdup(s);
}

/* @d must be empty; the caller releases it, also on failure. */
static int parse_descriptor(const json_t *o, const char *what, struct oci_descriptor *d,
                            struct cb_error *err)
{
    const char *type, *digest;
    if (!json_is_object(o))
        return cb_fail(err, CB_E_CORRUPT, "%s is not an object", what);
    int rc = text_of(o, what, "mediaType", MEDIA_TYPE_MAX, &type, err);
    if (rc == 0)
        rc = text_of(o, what, "digest", 256, &digest, err);
    if (rc < 0)
        return rc;
    if (!type || !*type)
        return cb_fail(err, CB_E_CORRUPT, "%s has no mediaType", what);
    if (!digest || !cb_digest_parse(digest, &d->digest))
        return cb_fail(err, CB_E_CORRUPT, "%s: digest \"%s\" is not sha256 and 64 hex digits", what,
                       digest ? digest : "");
    const json_t *size = json_object_get(o, "size");
    if (!json_is_integer(size) || json_integer_value(size) < 0)
        return cb_fail(err, CB_E_CORRUPT, "%s: size is not a number of bytes", what);
    d->size = (uint64_t)json_integer_value(size);
    d->media_type = cb_xstrdup(type);
    rc = parse_platform(o, what, d, err);
    d->attestation = is_attestation(o, d);
    d->ref_name = annotation(o, "org.opencontainers.image.ref.name");
    d->image_name = annotation(o, "io.containerd.image.name");
    return rc;
}

static int parse_descriptors(const json_t *list, const char *what, struct oci_manifest *m,
                             struct cb_error *err)
{
    size_t n = json_array_size(list);
    if (!json_is_array(list))
        return cb_fail(err, CB_E_CORRUPT, "\"%s\" is not a list", what);
    if (n > CB_LAYERS_MAX)
        return cb_fail(err, CB_E_LIMIT, "%zu entries in \"%s\"; at most %u are accepted", n, what,
                       CB_LAYERS_MAX);
    m->layers = cb_xcalloc(n, sizeof(*m->layers));
    for (size_t i = 0; i < n; i++) {
        CB_AUTO_FREE char *name = cb_xasprintf("%s[%zu]", what, i);
        m->n_layers = i + 1;
        int rc = parse_descriptor(json_array_get(list, i), name, &m->layers[i], err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* --- manifest or index --- */

/* 1 and the kind when @type is one of the four; 0 when it says nothing about images. */
static int kind_of(const char *type, enum oci_kind *kind)
{
    if (strcmp(type, OCI_INDEX) == 0 || strcmp(type, DOCKER_LIST) == 0)
        *kind = OCI_KIND_INDEX;
    else if (strcmp(type, OCI_MANIFEST) == 0 || strcmp(type, DOCKER_MANIFEST) == 0)
        *kind = OCI_KIND_MANIFEST;
    else
        return 0;
    return 1;
}

static int schema1(struct cb_error *err)
{
    cb_fail(err, CB_E_CORRUPT,
            "the manifest is in the old Docker format \"schema 1\", which "
            "cannot be verified");
    return cb_hint(err, "Push the image again with a current docker, podman or skopeo.");
}

/* Content-Type without parameters, lower case; owned. */
static char *bare_type(const char *content_type)
{
    size_t n = strcspn(content_type, "; \t");
    char *t = cb_xstrndup(content_type, n < MEDIA_TYPE_MAX ? n : MEDIA_TYPE_MAX);
    for (char *c = t; *c; c++)
        if (*c >= 'A' && *c <= 'Z')
            *c = (char)(*c - 'A' + 'a');
    return t;
}

/* What the document is: its transport's type, its own mediaType and its shape must agree. */
static int decide_kind(const json_t *root, const char *content_type, enum oci_kind *kind,
                       struct cb_error *err)
{
    const char *own;
    enum oci_kind said = OCI_KIND_MANIFEST;
    CB_AUTO_FREE char *type = bare_type(content_type ? content_type : "");
    if (strstr(type, "docker.distribution.manifest.v1+"))
        return schema1(err);
    const json_t *version = member(root, "schemaVersion");
    if (json_is_integer(version) && json_integer_value(version) == 1)
        return schema1(err);
    if (!json_is_integer(version) || json_integer_value(version) != 2)
        return cb_fail(err, CB_E_CORRUPT, "the manifest's schemaVersion is not 2");
    int rc = text_of(root, "manifest", "mediaType", MEDIA_TYPE_MAX, &own, err);
    if (rc < 0)
        return rc;

    bool has_manifests = member(root, "manifests") != NULL;
    bool has_image = member(root, "layers") || member(root, "config");
    if (has_manifests && has_image)
        return cb_fail(err, CB_E_UNTRUSTED, "the document is image index and manifest at once");
    if (!has_manifests && !has_image)
        return cb_fail(err, CB_E_CORRUPT, "the document is neither image index nor manifest");
    *kind = has_manifests ? OCI_KIND_INDEX : OCI_KIND_MANIFEST;

    enum oci_kind sent;
    if (own && !kind_of(own, &said))
        return cb_fail(err, CB_E_CORRUPT, "media type %s is no image", own);
    if (own && said != *kind)
        return cb_fail(err, CB_E_UNTRUSTED, "media type %s does not fit what the document holds",
                       own);
    if (!kind_of(type, &sent))
        return 0; /* "application/json" from a simple file server */
    if (own && strcmp(own, type) != 0)
        return cb_fail(err, CB_E_UNTRUSTED, "sent as %s but says it is %s", type, own);
    if (sent != *kind)
        return cb_fail(err, CB_E_UNTRUSTED, "sent as %s, which does not fit what it holds", type);
    return 0;
}

static int parse_manifest(const json_t *root, struct oci_manifest *m, struct cb_error *err)
{
    if (m->kind == OCI_KIND_INDEX)
        return parse_descriptors(member(root, "manifests"), "manifests", m, err);
    const json_t *config = member(root, "config");
    if (!config)
        return cb_fail(err, CB_E_CORRUPT, "the manifest has no config");
    int rc = parse_descriptor(config, "config", &m->config, err);
    if (rc < 0)
        return rc;
    return parse_descriptors(member(root, "layers"), "layers", m, err);
}

int oci_manifest_parse(const char *text, size_t len, const char *content_type,
                       struct oci_manifest *out, struct cb_error *err)
{
    json_auto_t *root = NULL;
    struct oci_manifest m = {0};
    int rc = load(text, len, "the manifest", &root, err);
    if (rc == 0)
        rc = decide_kind(root, content_type, &m.kind, err);
    if (rc == 0)
        rc = parse_manifest(root, &m, err);
    if (rc < 0) {
        oci_manifest_release(&m);
        return rc;
    }
    *out = m;
    return 0;
}

int oci_layout_check(const char *text, size_t len, struct cb_error *err)
{
    json_auto_t *root = NULL;
    const char *version;
    int rc = load(text, len, "oci-layout", &root, err);
    if (rc == 0)
        rc = text_of(root, "oci-layout", "imageLayoutVersion", 32, &version, err);
    if (rc < 0)
        return rc;
    if (!version || strncmp(version, "1.", 2) != 0)
        return cb_fail(err, CB_E_CORRUPT, "oci-layout: imageLayoutVersion is \"%s\", not 1.0.0",
                       version ? version : "");
    return 0;
}

/* --- platform --- */

static const char *normal_arch(const char *arch)
{
    if (strcasecmp(arch, "x86_64") == 0 || strcasecmp(arch, "x86-64") == 0)
        return "amd64";
    return strcasecmp(arch, "aarch64") == 0 ? "arm64" : arch;
}

bool oci_variant_is_baseline(const char *arch, const char *variant)
{
    if (!variant || !*variant)
        return true;
    if (strcmp(arch, "amd64") == 0)
        return strcmp(variant, "v1") == 0;
    if (strcmp(arch, "arm64") == 0)
        return strcmp(variant, "v8") == 0 || strcmp(variant, "8") == 0 ||
               strcmp(variant, "v8.0") == 0;
    return false;
}

bool oci_entry_is_image(const struct oci_descriptor *d)
{
    enum oci_kind kind;
    return !d->attestation && kind_of(d->media_type, &kind);
}

int oci_index_select(const struct oci_manifest *index, const char *arch, size_t *entry,
                     struct cb_error *err)
{
    size_t images = 0, last = 0;
    CB_AUTO_BUF list = CB_BUF_INIT(LIST_MAX);
    for (size_t i = 0; i < index->n_layers; i++) {
        const struct oci_descriptor *d = &index->layers[i];
        if (!oci_entry_is_image(d))
            continue;
        images++;
        last = i;
        if (!d->os) {
            (void)cb_buf_addf(&list, "%sno platform", list.len ? ", " : "");
            continue;
        }
        if (strcasecmp(d->os, "linux") == 0 && strcmp(normal_arch(d->architecture), arch) == 0 &&
            oci_variant_is_baseline(arch, d->variant) && !d->features) {
            *entry = i;
            return 0;
        }
        (void)cb_buf_addf(&list, "%s%s/%s%s%s%s", list.len ? ", " : "", d->os, d->architecture,
                          d->variant ? "/" : "", d->variant ? d->variant : "",
                          d->features ? " with os.features" : "");
    }
    if (images == 1 && !index->layers[last].os) {
        *entry = last; /* the image's own config says what it is for; the caller checks that */
        return 0;
    }
    cb_fail(err, CB_E_NOTFOUND, "there is no image for linux/%s; there is %s", arch,
            list.len ? list.data : "none at all");
    return cb_hint(err, "Choose a base image that is built for linux/%s.", arch);
}

/* --- config --- */

/* A list of strings, or one string (as Docker's own reader takes it), or nothing. */
static int parse_strings(const json_t *o, const char *key, struct cb_strv *out,
                         struct cb_error *err)
{
    const json_t *v = member(o, key);
    if (!v)
        return 0;
    if (json_is_string(v)) {
        cb_strv_add(out, json_string_value(v));
        return 0;
    }
    if (!json_is_array(v))
        return cb_fail(err, CB_E_CORRUPT, "image config: \"%s\" is not a list", key);
    if (json_array_size(v) > ENV_MAX)
        return cb_fail(err, CB_E_LIMIT, "image config: more than %u entries in \"%s\"", ENV_MAX,
                       key);
    for (size_t i = 0; i < json_array_size(v); i++) {
        const char *s = json_string_value(json_array_get(v, i));
        if (!s)
            return cb_fail(err, CB_E_CORRUPT, "image config: %s[%zu] is not a string", key, i);
        cb_strv_add(out, s);
    }
    return 0;
}

/* "K=V" into the list; a K that is there already is replaced in its place. */
static void env_put(struct cb_strv *env, const char *pair, size_t name_len)
{
    for (size_t i = 0; i < env->n; i++) {
        if (strncmp(env->v[i], pair, name_len) == 0 && env->v[i][name_len] == '=') {
            free(env->v[i]);
            env->v[i] = cb_xstrdup(pair);
            return;
        }
    }
    cb_strv_add(env, pair);
}

static int parse_env(const json_t *o, struct cb_strv *out, struct cb_error *err)
{
    CB_AUTO_STRV raw = {0};
    int rc = parse_strings(o, "Env", &raw, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < raw.n; i++) {
        size_t n = strcspn(raw.v[i], "=");
        if (n == 0)
            return cb_fail(err, CB_E_CORRUPT, "image config: Env[%zu] has no name", i);
        CB_AUTO_FREE char *pair = cb_xasprintf("%s%s", raw.v[i], raw.v[i][n] ? "" : "=");
        env_put(out, pair, n);
    }
    return 0;
}

static int parse_diff_ids(const json_t *root, struct oci_image_config *c, struct cb_error *err)
{
    const char *type;
    const json_t *rootfs = member(root, "rootfs");
    if (!json_is_object(rootfs))
        return cb_fail(err, CB_E_CORRUPT, "image config: \"rootfs\" is missing");
    int rc = text_of(rootfs, "image config", "type", 64, &type, err);
    if (rc < 0)
        return rc;
    if (!type || strcmp(type, "layers") != 0)
        return cb_fail(err, CB_E_CORRUPT, "image config: rootfs.type is \"%s\", not \"layers\"",
                       type ? type : "");
    const json_t *ids = member(rootfs, "diff_ids");
    if (ids && !json_is_array(ids))
        return cb_fail(err, CB_E_CORRUPT, "image config: \"diff_ids\" is not a list");
    size_t n = json_array_size(ids);
    if (n > CB_LAYERS_MAX)
        return cb_fail(err, CB_E_LIMIT, "image config: %zu layers; at most %u are accepted", n,
                       CB_LAYERS_MAX);
    c->diff_ids = cb_xcalloc(n, sizeof(*c->diff_ids));
    c->n_diff_ids = n;
    for (size_t i = 0; i < n; i++) {
        const char *id = json_string_value(json_array_get(ids, i));
        if (!id || !cb_digest_parse(id, &c->diff_ids[i]))
            return cb_fail(err, CB_E_CORRUPT,
                           "image config: diff_ids[%zu] is not sha256 and 64 hex digits", i);
    }
    return 0;
}

static int parse_run_config(const json_t *o, struct oci_image_config *c, struct cb_error *err)
{
    const char *user = NULL, *workdir = NULL, *stop = NULL;
    if (o && !json_is_object(o))
        return cb_fail(err, CB_E_CORRUPT, "image config: \"config\" is not an object");
    int rc = parse_env(o, &c->env, err);
    if (rc == 0)
        rc = text_of(o, "image config", "User", CB_PATH_MAX, &user, err);
    if (rc == 0)
        rc = text_of(o, "image config", "WorkingDir", CB_PATH_MAX, &workdir, err);
    if (rc == 0)
        rc = text_of(o, "image config", "StopSignal", 32, &stop, err);
    if (rc == 0)
        rc = parse_strings(o, "Entrypoint", &c->entrypoint, err);
    if (rc == 0)
        rc = parse_strings(o, "Cmd", &c->cmd, err);
    if (rc < 0)
        return rc;
    c->user = cb_xstrdup(user ? user : "");
    /* a relative one is below the root, as Docker reads it */
    c->workdir = !workdir || *workdir != '/' ? cb_xasprintf("/%s", workdir ? workdir : "")
                                             : cb_xstrdup(workdir);
    c->stop_signal = cb_xstrdup0(stop);
    return 0;
}

int oci_config_parse(const char *text, size_t len, struct oci_image_config *out,
                     struct cb_error *err)
{
    json_auto_t *root = NULL;
    struct oci_image_config c = {0};
    const char *arch = NULL, *os = NULL, *variant = NULL;
    int rc = load(text, len, "the image config", &root, err);
    if (rc == 0)
        rc = text_of(root, "image config", "architecture", PLATFORM_MAX, &arch, err);
    if (rc == 0)
        rc = text_of(root, "image config", "os", PLATFORM_MAX, &os, err);
    if (rc == 0)
        rc = text_of(root, "image config", "variant", PLATFORM_MAX, &variant, err);
    if (rc == 0)
        rc = parse_run_config(member(root, "config"), &c, err);
    if (rc == 0)
        rc = parse_diff_ids(root, &c, err);
    if (rc < 0) {
        oci_config_release(&c);
        return rc;
    }
    c.architecture = cb_xstrdup(normal_arch(arch ? arch : ""));
    c.os = cb_xstrdup(os ? os : "");
    c.variant = cb_xstrdup0(variant);
    *out = c;
    return 0;
}
