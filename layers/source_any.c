/* What the sources on this machine have in common: locks, and what --pull means for them. */
#include "layers/source.h"

#include "layers/registry.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <stdlib.h>

bool source_is_local(enum source_kind kind)
{
    return kind == SOURCE_OCI_LAYOUT || kind == SOURCE_DOCKER_ARCHIVE || kind == SOURCE_TEMPLATE;
}

static int read_source(struct store *s, const struct image_ref *ref, const char *arch,
                       const struct layers_progress *p, struct base_image *out,
                       struct cb_error *err)
{
    if (ref->kind == SOURCE_OCI_LAYOUT)
        return oci_layout_resolve(s, ref, arch, out, err);
    if (ref->kind == SOURCE_DOCKER_ARCHIVE)
        return docker_archive_resolve(s, ref, arch, p, out, err);
    return template_resolve(s, ref, arch, out, err);
}

static bool all_there(struct store *s, const struct base_image *b)
{
    for (size_t i = 0; i < b->n_layers; i++)
        if (!store_blob_has(s, &b->layers[i].digest))
            return false;
    return true;
}

int source_resolve(struct store *s, const struct image_ref *ref, const char *arch,
                   enum pull_policy policy, const struct layers_progress *p, struct base_image *out,
                   struct cb_error *err)
{
    CB_AUTO_ERROR gone = CB_ERROR_INIT;
    int64_t when = 0;
    int rc = read_source(s, ref, arch, p, out, &gone);
    if (rc == 0)
        return image_lock_put(s, ref, arch, &out->manifest, err);
    base_image_release(out);
    if (rc != -(int)CB_E_NOTFOUND || policy == PULL_ALWAYS ||
        !image_from_lock(s, ref, arch, out, &when) || !all_there(s, out))
        return cb_error_move(err, &gone);
    char day[CB_RFC3339_LEN + 1], digest[CB_DIGEST_LEN + 1];
    cb_rfc3339(when, day);
    cb_digest_text(&out->manifest, digest);
    out->from_lock = true;
    if (p && p->note) {
        CB_AUTO_FREE char *text =
            cb_xasprintf("warning: %s; going on with %s as of %s", gone.msg, digest, day);
        p->note(p->arg, text);
    }
    return 0;
}

int source_resolve_locked(struct store *s, const struct image_ref *ref,
                          const struct cb_digest *manifest, const char *arch,
                          const struct layers_progress *p, struct base_image *out,
                          struct cb_error *err)
{
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    if (ref->kind == SOURCE_TEMPLATE && /* first: it says which version that is */
        template_resolve_locked(s, ref, manifest, arch, out, &miss) == 0)
        return 0;
    base_image_release(out);
    CB_AUTO_ERROR absent = CB_ERROR_INIT;
    if (image_load(s, manifest, arch, out, &absent) == 0 && all_there(s, out))
        return 0;
    base_image_release(out);
    if (ref->kind == SOURCE_TEMPLATE)
        return cb_error_move(err, &miss);
    if (ref->kind == SOURCE_OCI_LAYOUT)
        return oci_layout_resolve_locked(s, ref, manifest, arch, out, err);
    int rc = docker_archive_resolve(s, ref, arch, p, out, err);
    if (rc < 0 || cb_digest_eq(&out->manifest, manifest))
        return rc;
    char now[CB_DIGEST_LEN + 1], then[CB_DIGEST_LEN + 1];
    cb_digest_text(&out->manifest, now);
    cb_digest_text(manifest, then);
    cb_fail(err, CB_E_NOTFOUND, "%s holds %s now, and the lock names %s", ref->path, now, then);
    return cb_hint(err, "Build without --locked to take what the file holds now.");
}

int source_fetch(struct store *s, const struct base_image *b, const struct layers_progress *p,
                 struct cb_error *err)
{
    if (b->ref.kind == SOURCE_OCI_LAYOUT)
        return oci_layout_fetch(s, b, p, err);
    if (b->ref.kind == SOURCE_DOCKER_ARCHIVE)
        return docker_archive_fetch(s, b, p, err);
    if (all_there(s, b))
        return 0;
    cb_fail(err, CB_E_NOTFOUND, "layers of template %s are not in the store any more", b->ref.path);
    return cb_hint(err, "Build that template again: capsule-build build --force FILE.");
}
