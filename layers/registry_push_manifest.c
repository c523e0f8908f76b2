/* registry_push_manifest: manifests, and artifacts that refer to them. */
#include "layers/push_private.h"
#include "support/cleanup.h"
#include "support/hash.h"
#include "support/limits.h"
#include "support/mem.h"

#include <jansson.h>
#include <string.h>

#define EMPTY_TYPE "application/vnd.oci.empty.v1+json"
#define EMPTY_TEXT "{}"

enum { REFERRER_TRIES = 4 }; /* times that somebody else may change the list first */

static char *manifest_url(const struct push *p, const char *name)
{
    return cb_xasprintf("%s/v2/%s/manifests/%s", p->r->at[0].base, p->r->path, name);
}

/* One PUT, tried again while that helps. @header may be NULL. 0 with *@res, whatever its status. */
static int put_manifest(struct push *p, const char *name, const struct http_body *body,
                        const char *header, struct http_response *res, struct cb_error *err)
{
    CB_AUTO_FREE char *url = manifest_url(p, name);
    struct tries tries = {0};
    for (;;) {
        struct http_request req = {
            .method = "PUT", .url = url, .body = body, .header = header, .body_max = CB_JSON_MAX};
        int rc = registry_ask(p->r, &p->r->at[0], p->client, &req, res, err);
        if (!registry_again(p->r, &p->r->at[0], &tries, rc, res, err))
            return rc;
    }
}

static bool is_done(const struct http_response *res)
{
    return res->status >= 200 && res->status < 300;
}

/* The digest that the registry gave it must be that of our bytes. */
static int check_kept(const struct push *p, const struct http_response *res,
                      const struct cb_digest *ours, struct cb_error *err)
{
    struct cb_digest kept;
    char text[CB_DIGEST_LEN + 1];
    if (!res->digest || !cb_digest_parse(res->digest, &kept) || cb_digest_eq(&kept, ours))
        return 0;
    cb_digest_text(ours, text);
    return cb_fail(err, CB_E_CORRUPT, "%s kept the manifest as %s instead of %s", p->r->at[0].label,
                   res->digest, text);
}

/* @subject: the registry was also told whom it refers to; *@listed says whether it keeps a list. */
static int send_manifest(struct push *p, const char *media_type, const void *text, size_t len,
                         const char *tag, struct cb_digest *digest, bool *listed,
                         struct cb_error *err)
{
    char name[CB_DIGEST_LEN + 1];
    struct http_body body = {.mem = text, .fd = -1, .len = len, .type = media_type};
    struct http_response res = HTTP_RESPONSE_INIT;
    if (len > CB_JSON_MAX)
        return cb_fail(err, CB_E_LIMIT, "a manifest of %zu bytes; registries take 4 MiB", len);
    cb_sha256(text, len, digest);
    cb_digest_text(digest, name);
    int rc = put_manifest(p, tag ? tag : name, &body, NULL, &res, err);
    if (rc == 0)
        rc = is_done(&res) ? check_kept(p, &res, digest, err)
                           : registry_bad_status(&p->r->at[0], &res, err);
    *listed = res.subject != NULL;
    http_response_release(&res);
    return rc < 0 ? cb_wrap(err, "manifest %s", tag ? tag : name) : 0;
}

int push_manifest(struct push *p, const char *media_type, const void *text, size_t len,
                  const char *tag, struct cb_digest *digest, struct cb_error *err)
{
    bool listed;
    return send_manifest(p, media_type, text, len, tag, digest, &listed, err);
}

/* --- artifacts --- */

static json_t *descriptor(const struct push_blob *b)
{
    char digest[CB_DIGEST_LEN + 1];
    cb_digest_text(&b->digest, digest);
    return json_pack("{s:s, s:s, s:I}", "mediaType", b->media_type, "digest", digest, "size",
                     (json_int_t)b->size);
}

static struct push_blob empty_blob(void)
{
    struct push_blob b = {.media_type = EMPTY_TYPE, .size = strlen(EMPTY_TEXT), .mem = EMPTY_TEXT};
    cb_sha256(EMPTY_TEXT, strlen(EMPTY_TEXT), &b.digest);
    return b;
}

/* Owned (free()). */
static char *artifact_text(const struct push_artifact *a)
{
    struct push_blob empty = empty_blob();
    json_t *layer = descriptor(&a->blob);
    if (a->title)
        (void)json_object_set_new(layer, "annotations",
                                  json_pack("{s:s}", "org.opencontainers.image.title", a->title));
    json_auto_t *o = json_pack("{s:i, s:s, s:s, s:o, s:[o], s:o}", "schemaVersion", 2, "mediaType",
                               OCI_MANIFEST, "artifactType", a->type, "config", descriptor(&empty),
                               "layers", layer, "subject", descriptor(&a->subject));
    return json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);
}

/* The list under the fallback tag, or a new one when there is none; and its ETag (owned), if any.
 */
static int get_referrers(struct push *p, const char *tag, json_t **out, char **etag,
                         struct cb_error *err)
{
    CB_AUTO_FREE char *url = manifest_url(p, tag);
    struct http_request req = {.url = url, .accept = OCI_INDEX, .body_max = CB_JSON_MAX};
    struct http_response res = HTTP_RESPONSE_INIT;
    struct tries tries = {0};
    json_error_t je;
    int rc;
    do {
        rc = registry_ask(p->r, &p->r->at[0], p->client, &req, &res, err);
    } while (registry_again(p->r, &p->r->at[0], &tries, rc, &res, err));
    if (rc == 0 && res.status == 404) {
        *out =
            json_pack("{s:i, s:s, s:[]}", "schemaVersion", 2, "mediaType", OCI_INDEX, "manifests");
    } else if (rc == 0 && res.status == 200) {
        *out = json_loadb(res.body.data ? res.body.data : "", res.body.len, JSON_REJECT_DUPLICATES,
                          &je);
        if (!json_is_array(json_object_get(*out, "manifests"))) {
            json_decref(*out);
            *out = NULL;
            rc = cb_fail(err, CB_E_CORRUPT, "what is tagged %s is no image index", tag);
        }
        *etag = cb_take_ptr(&res.etag);
    } else if (rc == 0) {
        rc = registry_bad_status(&p->r->at[0], &res, err);
    }
    http_response_release(&res);
    return rc;
}

static bool names(const json_t *list, const char *digest)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *d = json_string_value(json_object_get(json_array_get(list, i), "digest"));
        if (d && strcmp(d, digest) == 0)
            return true;
    }
    return false;
}

/* Puts the list back, with @entry. 1: somebody else changed it meanwhile. */
static int put_referrers(struct push *p, const char *tag, json_t *index, const char *etag,
                         struct cb_error *err)
{
    char *text = json_dumps(index, JSON_COMPACT | JSON_SORT_KEYS);
    CB_AUTO_FREE char *header = etag ? cb_xasprintf("If-Match: %s", etag) : NULL;
    struct http_body body = {
        .mem = text, .fd = -1, .len = text ? strlen(text) : 0, .type = OCI_INDEX};
    struct http_response res = HTTP_RESPONSE_INIT;
    int rc = !text ? cb_fail(err, CB_E_BUG, "the list of referrers cannot be written")
                   : put_manifest(p, tag, &body, header, &res, err);
    if (rc == 0 && res.status == 412)
        rc = 1;
    else if (rc == 0 && !is_done(&res))
        rc = registry_bad_status(&p->r->at[0], &res, err);
    http_response_release(&res);
    free(text);
    return rc;
}

/* For registries without a list of referrers: an index under a tag made of the subject's digest. */
static int add_referrer(struct push *p, const struct push_artifact *a,
                        const struct push_blob *manifest, struct cb_error *err)
{
    char hex[CB_HEX_LEN + 1], digest[CB_DIGEST_LEN + 1];
    cb_digest_hex(&a->subject.digest, hex);
    cb_digest_text(&manifest->digest, digest);
    CB_AUTO_FREE char *tag = cb_xasprintf("sha256-%s", hex);
    for (int i = 0; i < REFERRER_TRIES; i++) {
        json_auto_t *index = NULL;
        CB_AUTO_FREE char *etag = NULL;
        int rc = get_referrers(p, tag, &index, &etag, err);
        if (rc == 0 && names(json_object_get(index, "manifests"), digest))
            return 0;
        if (rc == 0) {
            json_t *entry = descriptor(manifest);
            (void)json_object_set_new(entry, "artifactType", json_string(a->type));
            (void)json_array_append_new(json_object_get(index, "manifests"), entry);
            rc = put_referrers(p, tag, index, etag, err);
        }
        if (rc <= 0)
            return rc < 0 ? cb_wrap(err, "list of referrers") : 0;
    }
    return cb_fail(err, CB_E_CONFLICT, "list of referrers: others keep changing it");
}

int push_artifact(struct push *p, struct store *s, const struct push_artifact *a,
                  struct push_result *out, struct cb_digest *digest, struct cb_error *err)
{
    struct push_blob blobs[] = {empty_blob(), a->blob};
    char *text = artifact_text(a);
    bool listed = false;
    if (!text)
        return cb_fail(err, CB_E_BUG, "an artifact's manifest cannot be written");
    struct push_blob manifest = {.media_type = OCI_MANIFEST, .size = strlen(text)};
    int rc = push_blobs(p, s, blobs, 2, out, err);
    if (rc == 0)
        rc = send_manifest(p, OCI_MANIFEST, text, strlen(text), NULL, &manifest.digest, &listed,
                           err);
    if (rc == 0 && !listed)
        rc = add_referrer(p, a, &manifest, err);
    free(text);
    if (rc < 0)
        return cb_wrap(err, "artifact %s", a->type);
    *digest = manifest.digest;
    return 0;
}
