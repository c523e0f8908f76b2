/* push_template: a template as an OCI image, and the documents about it as artifacts. */
#include "layers/export_oci.h"
#include "layers/registry_push.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <string.h>

#define SPDX_TYPE "application/spdx+json"
#define IN_TOTO_TYPE "application/vnd.in-toto+json"
#define DSSE_TYPE "application/vnd.dsse.envelope.v1+json"

/* The repository of the base image, when that is on the same host; owned, or NULL. */
static char *mount_from(const struct template_manifest *t, const struct image_ref *to)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct image_ref base;
    if (!t->base_ref || image_ref_parse(t->base_ref, &base, &err) < 0)
        return NULL;
    bool same = base.kind == SOURCE_REGISTRY && strcmp(base.domain, to->domain) == 0;
    char *path = same ? cb_xstrdup(base.path) : NULL;
    image_ref_release(&base);
    return path;
}

static bool is_set(const struct cb_digest *d)
{
    static const struct cb_digest zero;
    return !cb_digest_eq(d, &zero);
}

/* Everything of the store that will be sent must be there: better said before than in the middle.
 */
static int check_there(struct store *s, const struct oci_image *im, struct cb_error *err)
{
    for (size_t i = 0; i < im->n_layers; i++) {
        if (store_blob_has(s, &im->layers[i].digest))
            continue;
        char digest[CB_DIGEST_LEN + 1];
        cb_digest_text(&im->layers[i].digest, digest);
        cb_fail(err, CB_E_NOTFOUND, "layer %s (%.19s) is not in the store any more", im->names[i],
                digest);
        return cb_hint(err, "Build the template again; what is cached is not run again.");
    }
    return 0;
}

static int push_image(struct push *p, struct store *s, const struct oci_image *im, const char *tag,
                      struct push_result *out, struct cb_digest *digest, struct cb_error *err)
{
    struct push_blob *blobs = cb_xcalloc(im->n_layers + 1, sizeof(*blobs));
    for (size_t i = 0; i < im->n_layers; i++)
        blobs[i] = (struct push_blob){.media_type = im->layers[i].media_type,
                                      .digest = im->layers[i].digest,
                                      .size = im->layers[i].size};
    blobs[im->n_layers] = (struct push_blob){.media_type = im->config.media_type,
                                             .digest = im->config.digest,
                                             .size = im->config.len,
                                             .mem = im->config.text};
    int rc = push_blobs(p, s, blobs, im->n_layers + 1, out, err);
    if (rc == 0)
        rc = push_manifest(p, im->manifest.media_type, im->manifest.text, im->manifest.len, tag,
                           digest, err);
    free(blobs);
    return rc;
}

static int push_documents(struct push *p, struct store *s, const struct template_manifest *t,
                          const struct oci_image *im, struct push_result *out, size_t *n,
                          struct cb_error *err)
{
    const struct {
        const struct cb_digest *digest;
        const char *type, *title;
    } documents[] = {
        {&t->sbom, SPDX_TYPE, "sbom.spdx.json"},
        {&t->provenance, IN_TOTO_TYPE, "provenance.intoto.json"},
        {&t->sbom_signed, DSSE_TYPE, "sbom.spdx.dsse.json"},
        {&t->provenance_signed, DSSE_TYPE, "provenance.dsse.json"},
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof(documents) / sizeof(documents[0]) && rc == 0; i++) {
        struct push_artifact a = {
            .type = documents[i].type,
            .title = documents[i].title,
            .blob = {.media_type = documents[i].type, .digest = *documents[i].digest},
            .subject = {.media_type = im->manifest.media_type,
                        .digest = im->manifest.digest,
                        .size = im->manifest.len}};
        struct cb_digest digest;
        if (!is_set(documents[i].digest))
            continue;
        CB_AUTO_FD fd = store_blob_open(s, documents[i].digest, &a.blob.size, err);
        rc = fd < 0 ? fd : push_artifact(p, s, &a, out, &digest, err);
        *n += rc == 0;
    }
    return rc;
}

static int push_all(struct store *s, const struct settings *settings,
                    const struct template_manifest *t, const struct image_ref *to,
                    const struct layers_progress *progress, struct oci_image *im,
                    struct push_result *out, struct cb_digest *digest, size_t *artifacts,
                    struct cb_error *err)
{
    CB_AUTO_FREE char *from = mount_from(t, to);
    struct push *p = NULL;
    int rc = oci_image_documents(t, im, err);
    if (rc == 0)
        rc = check_there(s, im, err);
    if (rc == 0)
        rc = push_open(settings, to, from, progress, &p, err);
    if (rc == 0)
        rc = push_image(p, s, im, to->tag, out, digest, err);
    if (rc == 0)
        rc = push_documents(p, s, t, im, out, artifacts, err);
    push_free(p);
    return rc;
}

int push_template(struct store *s, const struct settings *settings,
                  const struct template_manifest *t, const struct image_ref *to,
                  const struct layers_progress *p, struct push_result *out,
                  struct cb_digest *digest, size_t *artifacts, struct cb_error *err)
{
    struct oci_image im = {0};
    size_t n = 0;
    if (to->kind != SOURCE_REGISTRY || to->has_digest) {
        cb_fail(err, CB_E_CONFIG, "%s: not a name of a registry's image", to->text);
        return cb_hint(err, "Something like registry.example.com/team/app:1, without a digest.");
    }
    *out = (struct push_result){0};
    int rc = oci_image_layers(t, &im, err);
    if (rc < 0)
        return rc;
    if (t->boot.boot_commands.n > 0 && p && p->note)
        p->note(p->arg, "the commands of every boot have no place in an OCI image; they are left "
                        "out");
    if (t->n_drives > 0 && p && p->note)
        p->note(p->arg, "an OCI image has no drives; the template's are left out");
    rc = push_all(s, settings, t, to, p, &im, out, digest, artifacts ? artifacts : &n, err);
    oci_image_release(&im);
    return rc < 0 ? cb_wrap(err, "push %s to %s", t->name, to->text) : 0;
}
