#include "layers/registry_private.h"

#include "support/cleanup.h"
#include "support/hash.h"
#include "support/limits.h"
#include "support/mem.h"

#include <string.h>

#define ACCEPT OCI_INDEX ", " OCI_MANIFEST ", " DOCKER_LIST ", " DOCKER_MANIFEST

/* --- manifests --- */

struct manifest_job {
    struct http_client *c;
    struct store *store;
    const char *tag;
    struct cb_digest *digest;
    struct cb_buf *body;
    char **type;
};

static int get_manifest(struct registry *r, struct place *p, struct http_client *c,
                        const char *name, bool head, struct tries *tries, struct http_response *res,
                        struct cb_error *err)
{
    CB_AUTO_FREE char *url =
        cb_xasprintf("%s/v2/%s/manifests/%s%s", p->base, r->path, name, p->query);
    struct http_request req = {
        .method = head ? "HEAD" : "GET", .url = url, .accept = ACCEPT, .body_max = CB_JSON_MAX};
    for (;;) {
        int rc = registry_ask(r, p, c, &req, res, err);
        if (!registry_again(r, p, tries, rc, res, err))
            return rc;
    }
}

/* Where the tag points, by HEAD (which costs nothing where pulls are counted). 1: known, in *@out;
 * 0: ask for the manifest itself, which also brings the words that an answer to HEAD cannot carry.
 */
static int head_digest(struct registry *r, struct place *p, const struct manifest_job *job,
                       struct tries *tries, struct cb_digest *out, struct cb_error *err)
{
    struct http_response res = HTTP_RESPONSE_INIT;
    int rc = get_manifest(r, p, job->c, job->tag, true, tries, &res, err);
    if (rc == 0 && res.status == 200)
        rc = res.digest && cb_digest_parse(res.digest, out);
    http_response_release(&res);
    return rc;
}

/* Checks and keeps what came. */
static int take_manifest(const struct place *p, const struct manifest_job *job,
                         struct http_response *res, const struct cb_digest *expect,
                         struct cb_error *err)
{
    struct cb_digest got;
    char is[CB_DIGEST_LEN + 1], should[CB_DIGEST_LEN + 1];
    if (res->status != 200)
        return registry_bad_status(p, res, err);
    cb_sha256(res->body.data ? res->body.data : "", res->body.len, &got);
    struct cb_digest said = got;
    if (!expect && res->digest && cb_digest_parse(res->digest, &said))
        expect = &said;
    if (expect && !cb_digest_eq(expect, &got)) {
        cb_digest_text(&got, is);
        cb_digest_text(expect, should);
        return cb_fail(err, CB_E_CORRUPT, "%s sent a manifest with the digest %s instead of %s",
                       p->label, is, should);
    }
    int rc =
        store_blob_put(job->store, res->body.data ? res->body.data : "", res->body.len, NULL, err);
    if (rc < 0)
        return rc;
    *job->digest = got;
    cb_buf_release(job->body);
    *job->body = res->body;
    res->body = (struct cb_buf)CB_BUF_INIT(0);
    *job->type = cb_take_ptr(&res->content_type);
    return 0;
}

static int manifest_at(struct registry *r, struct place *p, void *arg, struct cb_error *err)
{
    struct manifest_job *job = arg;
    struct cb_digest digest = *job->digest;
    char name[CB_DIGEST_LEN + 1];
    struct tries tries = {
        0}; /* shared: who said no for good to HEAD is asked once more, not four times */
    int known = 1;
    if (job->tag)
        known = head_digest(r, p, job, &tries, &digest, err);
    if (known < 0)
        return known;
    if (known && store_blob_has(job->store, &digest)) {
        *job->digest = digest;
        return image_read_small(job->store, &digest, job->body, err);
    }
    cb_digest_text(&digest, name);
    struct http_response res = HTTP_RESPONSE_INIT;
    int rc = get_manifest(r, p, job->c, known ? name : job->tag, false, &tries, &res, err);
    if (rc == 0)
        rc = take_manifest(p, job, &res, known ? &digest : NULL, err);
    http_response_release(&res);
    return rc;
}

int registry_manifest(struct registry *r, struct http_client *c, struct store *s, const char *tag,
                      struct cb_digest *digest, struct cb_buf *body, char **type,
                      struct cb_error *err)
{
    struct manifest_job job = {c, s, tag, digest, body, type};
    cb_buf_init(body, CB_JSON_MAX);
    *type = NULL;
    return registry_each_place(r, manifest_at, &job, err);
}

/* --- blobs --- */

struct blob_job {
    struct http_client *c;
    struct store *store;
    const struct cb_digest *digest;
    uint64_t size;
    registry_moved *moved;
    void *arg;
    const struct place *place;
    struct blob_writer *w;
};

/* False when whoever wants the blob does not want it any more. */
static bool moved(const struct blob_job *job, int64_t delta)
{
    return !job->moved || job->moved(job->arg, delta);
}

static int start_over(struct blob_job *job, struct cb_error *err)
{
    (void)moved(job, -(int64_t)blob_writer_offset(job->w));
    return blob_writer_restart(job->w, err);
}

static int on_begin(void *arg, const struct http_response *res, struct cb_error *err)
{
    struct blob_job *job = arg;
    uint64_t from = blob_writer_offset(job->w);
    if (res->status == 206 && from > 0) {
        if (http_range_fits(res->content_range, from, job->size))
            return 0;
        return cb_fail(err, CB_E_CORRUPT, "%s sent another part of the blob than it was asked for",
                       job->place->label);
    }
    if (res->status != 200)
        return 0; /* raised after the transfer, with the server's words */
    if (res->length >= 0 && (uint64_t)res->length != job->size)
        return cb_fail(err, CB_E_CORRUPT,
                       "%s sends a blob of %lld bytes; the manifest says it has %llu",
                       job->place->label, (long long)res->length, (unsigned long long)job->size);
    return from > 0 ? start_over(job, err) : 0; /* our Range was ignored */
}

static int on_add(void *arg, const void *p, size_t n, struct cb_error *err)
{
    struct blob_job *job = arg;
    int rc = blob_writer_add(job->w, p, n, err);
    if (rc == 0 && !moved(job, (int64_t)n))
        rc = cb_fail(err, CB_E_CANCELED, "the download was stopped");
    return rc;
}

/* Until the writer holds all bytes. */
static int download(struct registry *r, struct place *p, struct blob_job *job, struct cb_error *err)
{
    char name[CB_DIGEST_LEN + 1];
    cb_digest_text(job->digest, name);
    CB_AUTO_FREE char *url = cb_xasprintf("%s/v2/%s/blobs/%s%s", p->base, r->path, name, p->query);
    struct tries tries = {.from = blob_writer_offset(job->w)};
    bool refused_range = false;
    while (blob_writer_offset(job->w) < job->size) {
        uint64_t from = blob_writer_offset(job->w);
        struct http_request req = {
            .url = url, .from = from, .begin = on_begin, .add = on_add, .arg = job};
        struct http_response res = HTTP_RESPONSE_INIT;
        int rc = registry_ask(r, p, job->c, &req, &res, err);
        bool whole = rc == 0 && (res.status == 200 || (res.status == 206 && from > 0));
        if (rc == 0 && res.status == 416 && from > 0 && !refused_range) {
            refused_range = true;
            http_response_release(&res);
            rc = start_over(job, err);
            if (rc < 0)
                return rc;
            continue;
        }
        uint64_t now = blob_writer_offset(job->w);
        if (whole && now < job->size) /* no length was announced, so curl could not tell */
            rc = cb_fail(err, CB_E_NET, "%s: the blob ended after %llu of %llu bytes", p->host,
                         (unsigned long long)now, (unsigned long long)job->size);
        registry_progressed(&tries, now);
        if ((rc < 0 || !whole) && !registry_again(r, p, &tries, rc, &res, err)) {
            if (rc == 0)
                rc = registry_bad_status(p, &res, err);
            http_response_release(&res);
            return rc;
        }
        http_response_release(&res);
    }
    return 0;
}

static int blob_at(struct registry *r, struct place *p, void *arg, struct cb_error *err)
{
    struct blob_job *job = arg;
    job->place = p;
    for (bool resumed = true; resumed;) {
        int rc = store_blob_begin(job->store, job->digest, job->size, &job->w, err);
        if (rc < 0)
            return rc;
        uint64_t had = blob_writer_offset(job->w);
        resumed = had > 0;
        (void)moved(job, (int64_t)had);
        rc = download(r, p, job, err);
        uint64_t now = blob_writer_offset(job->w);
        if (rc < 0) {
            (void)moved(job, -(int64_t)now);
            blob_writer_abort(job->w);
            return rc;
        }
        rc = blob_writer_commit(job->w, NULL, NULL, err);
        if (rc == 0)
            return 0;
        (void)moved(job, -(int64_t)now);
        if (rc != -CB_E_CORRUPT)
            return rc;
        if (!resumed)
            return cb_wrap(err, "%s", p->label);
        cb_error_clear(err); /* perhaps what was there before was bad: once more, all of it */
    }
    return 0;
}

int registry_blob(struct registry *r, struct http_client *c, struct store *s,
                  const struct cb_digest *digest, uint64_t size, registry_moved *on_moved,
                  void *arg, struct cb_error *err)
{
    struct blob_job job = {c, s, digest, size, on_moved, arg, NULL, NULL};
    char name[CB_DIGEST_LEN + 1];
    if (registry_each_place(r, blob_at, &job, err) == 0)
        return 0;
    cb_digest_text(digest, name);
    return cb_wrap(err, "blob %.19s", name);
}
