#include "schemas/docker_archive.h"

#include "schemas/reference.h"
#include "support/cleanup.h"
#include "support/limits.h"
#include "support/mem.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define IMAGES_MAX 1024u
#define TAGS_MAX 1024u
#define LIST_MAX 2000u /* names listed in an error, bytes */

void docker_archive_release(struct docker_archive *a)
{
    for (size_t i = 0; i < a->n; i++) {
        free(a->images[i].config);
        cb_strv_release(&a->images[i].tags);
        cb_strv_release(&a->images[i].files);
    }
    free(a->images);
    *a = (struct docker_archive){0};
}

/* Adds the parts of @name to @b, which ends without "/". False: it leads out. */
static bool add_parts(struct cb_buf *b, const char *name, bool up)
{
    while (*name) {
        size_t n = strcspn(name, "/");
        if (n == 2 && memcmp(name, "..", 2) == 0) {
            if (!up || b->len == 0)
                return false;
            while (b->len && b->data[b->len - 1] != '/')
                b->len--;
            if (b->len)
                b->len--;
            b->data[b->len] = '\0';
        } else if (n && !(n == 1 && *name == '.')) {
            if (b->len && cb_buf_add(b, "/", 1) < 0)
                return false;
            if (cb_buf_add(b, name, n) < 0)
                return false;
        }
        name += n + (name[n] == '/');
    }
    return true;
}

char *archive_member_name(const char *base, const char *name)
{
    CB_AUTO_BUF b = CB_BUF_INIT(CB_PATH_MAX);
    if (base && *name != '/' && !add_parts(&b, base, false))
        return NULL;
    if (!add_parts(&b, name, base != NULL) || b.len == 0)
        return NULL;
    return cb_buf_take(&b);
}

/* --- reading --- */

static int member_of(const json_t *v, const char *what, char **out, struct cb_error *err)
{
    const char *s = json_string_value(v);
    if (!s || !*s)
        return cb_fail(err, CB_E_CORRUPT, "manifest.json: %s is not the name of a member", what);
    for (const char *c = s; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return cb_fail(err, CB_E_CORRUPT, "manifest.json: %s holds a control character", what);
    *out = *s == '/' ? NULL : archive_member_name(NULL, s);
    if (!*out)
        return cb_fail(err, CB_E_UNTRUSTED, "manifest.json: %s \"%.200s\" leads out of the archive",
                       what, s);
    return 0;
}

static int parse_tags(const json_t *v, struct cb_strv *out, struct cb_error *err)
{
    size_t i;
    json_t *tag;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_array(v))
        return cb_fail(err, CB_E_CORRUPT, "manifest.json: RepoTags is not a list");
    if (json_array_size(v) > TAGS_MAX)
        return cb_fail(err, CB_E_LIMIT, "manifest.json: more than %u names of one image", TAGS_MAX);
    json_array_foreach(v, i, tag)
    {
        struct image_ref r;
        CB_AUTO_ERROR bad = CB_ERROR_INIT;
        const char *s = json_string_value(tag);
        if (!s)
            return cb_fail(err, CB_E_CORRUPT, "manifest.json: RepoTags[%zu] is not a string", i);
        if (image_ref_parse(s, &r, &bad) < 0)
            continue; /* nobody can ask for it: it is as if it had none */
        if (r.kind == SOURCE_REGISTRY)
            cb_strv_add(out, s);
        image_ref_release(&r);
    }
    return 0;
}

static int parse_image(const json_t *o, struct docker_image *im, struct cb_error *err)
{
    size_t i;
    json_t *file;
    if (!json_is_object(o))
        return cb_fail(err, CB_E_CORRUPT, "manifest.json: an image is not an object");
    int rc = member_of(json_object_get(o, "Config"), "Config", &im->config, err);
    if (rc == 0)
        rc = parse_tags(json_object_get(o, "RepoTags"), &im->tags, err);
    if (rc < 0)
        return rc;
    const json_t *files = json_object_get(o, "Layers");
    if (files && !json_is_null(files) && !json_is_array(files))
        return cb_fail(err, CB_E_CORRUPT, "manifest.json: Layers is not a list");
    if (json_array_size(files) > CB_LAYERS_MAX)
        return cb_fail(err, CB_E_LIMIT, "manifest.json: %zu layers; at most %u are accepted",
                       json_array_size(files), CB_LAYERS_MAX);
    json_array_foreach(files, i, file)
    {
        CB_AUTO_FREE char *what = cb_xasprintf("Layers[%zu]", i);
        CB_AUTO_FREE char *name = NULL;
        rc = member_of(file, what, &name, err);
        if (rc < 0)
            return rc;
        cb_strv_add(&im->files, name);
    }
    return 0;
}

int docker_archive_parse(const char *text, size_t len, struct docker_archive *out,
                         struct cb_error *err)
{
    json_error_t je;
    struct docker_archive a = {0};
    if (len > CB_JSON_MAX)
        return cb_fail(err, CB_E_LIMIT, "manifest.json is larger than 4 MiB");
    json_auto_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    if (!root)
        return cb_fail(err, CB_E_CORRUPT, "manifest.json is not JSON: %s (line %d)", je.text,
                       je.line);
    if (!json_is_array(root) || json_array_size(root) == 0)
        return cb_fail(err, CB_E_CORRUPT, "manifest.json is not a list of images");
    if (json_array_size(root) > IMAGES_MAX)
        return cb_fail(err, CB_E_LIMIT, "manifest.json: %zu images; at most %u are accepted",
                       json_array_size(root), IMAGES_MAX);
    a.n = json_array_size(root);
    a.images = cb_xcalloc(a.n, sizeof(*a.images));
    for (size_t i = 0; i < a.n; i++) {
        int rc = parse_image(json_array_get(root, i), &a.images[i], err);
        if (rc < 0) {
            docker_archive_release(&a);
            return rc;
        }
    }
    *out = a;
    return 0;
}

/* --- which one --- */

/* "docker.io/library/app:1" of "app:1". Owned. */
static char *whole_name(const char *text)
{
    struct image_ref r;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (image_ref_parse(text, &r, &err) < 0)
        return NULL;
    char *name = image_ref_canonical(&r);
    image_ref_release(&r);
    return name;
}

static bool has_name(const struct docker_image *im, const char *name)
{
    for (size_t i = 0; name && i < im->tags.n; i++) {
        CB_AUTO_FREE char *tag = whole_name(im->tags.v[i]);
        if (tag && strcmp(tag, name) == 0)
            return true;
    }
    return false;
}

/* "app:1, @1 (without a name)". Owned. */
static char *names_of(const struct docker_archive *a)
{
    CB_AUTO_BUF b = CB_BUF_INIT(LIST_MAX);
    for (size_t i = 0; i < a->n; i++) {
        const struct docker_image *im = &a->images[i];
        const char *sep = b.len ? ", " : "";
        int rc = im->tags.n ? cb_buf_addf(&b, "%s%s", sep, im->tags.v[0])
                            : cb_buf_addf(&b, "%s@%zu (without a name)", sep, i);
        if (rc < 0)
            break;
    }
    return b.len ? cb_buf_take(&b) : cb_xstrdup("none");
}

int docker_archive_select(const struct docker_archive *a, const char *selector, size_t *out,
                          struct cb_error *err)
{
    CB_AUTO_FREE char *names = names_of(a);
    if (!selector && a->n == 1) {
        *out = 0;
        return 0;
    }
    if (!selector) {
        cb_fail(err, CB_E_CONFIG, "the archive holds %zu images: %s", a->n, names);
        return cb_hint(err, "Say which one: docker-archive:FILE:NAME:TAG, or docker-archive:FILE:@0"
                            " for the first.");
    }
    if (*selector == '@') {
        size_t i = (size_t)strtoul(selector + 1, NULL, 10);
        *out = i;
        if (i < a->n)
            return 0;
    } else {
        CB_AUTO_FREE char *name = whole_name(selector);
        for (size_t i = 0; i < a->n; i++) {
            *out = i;
            if (has_name(&a->images[i], name))
                return 0;
        }
    }
    cb_fail(err, CB_E_NOTFOUND, "the archive has no image %s", selector);
    return cb_hint(err, "It holds: %s.", names);
}
