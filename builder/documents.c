#include "builder/documents.h"

#include "layers/sbom.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <string.h>

#define DOCUMENT_MAX (64u << 20)

CB_DEFINE_CLEANUP(sign_key, struct cb_sign_key *, cb_sign_key_free);

int documents_check_key(const struct settings *s, struct cb_error *err)
{
    CB_AUTO(sign_key) key = NULL;
    if (!s->signing_key)
        return 0;
    int rc = cb_sign_key_load(s->signing_key, &key, err);
    return rc < 0 ? cb_wrap(err, "signing_key") : 0;
}

static void say_packages(struct build *b, const struct image_packages *p)
{
    if (p->sources.n)
        emit_note(&b->em, "packages: %zu, from %s%s", p->list.n, p->sources.v[0],
                  p->sources.n > 1 ? " and others" : "");
    for (size_t i = 0; i < p->notes.n && i < 8; i++)
        emit_warning(&b->em, "the package list is not complete: %s", p->notes.v[i]);
}

static int make_sbom(struct build *b, const char *image_path, struct cb_buf *out,
                     struct cb_error *err)
{
    CB_AUTO_FREE char *scratch = store_tmp_path(b->store, "packages");
    if (!scratch)
        return cb_fail(err, CB_E_ENV, "no temporary file can be made in %s", store_dir(b->store));
    struct image_packages packages;
    int rc = image_packages_read(image_path, scratch, &packages, err);
    if (rc < 0)
        return rc;
    say_packages(b, &packages);
    CB_AUTO_FREE char *purl = documents_base_purl(b);
    const struct sbom_spec spec = {.name = b->name,
                                   .image = b->image.digest,
                                   .base_ref = b->c->base_image,
                                   .base_purl = purl,
                                   .base = b->base.manifest,
                                   .packages = &packages};
    rc = sbom_spdx(&spec, out, err);
    image_packages_release(&packages);
    return rc;
}

static int keep(struct build *b, const struct cb_buf *text, struct cb_digest *digest,
                struct cb_error *err)
{
    return store_blob_put(b->store, text->data, text->len, digest, err);
}

/* A statement in an envelope. */
static int keep_signed(struct build *b, const struct cb_buf *statement,
                       const struct cb_sign_key *key, struct cb_digest *digest,
                       struct cb_error *err)
{
    CB_AUTO_BUF envelope = CB_BUF_INIT(ATTEST_MAX);
    int rc = attest_seal(statement->data, statement->len, key, &envelope, err);
    return rc < 0 ? rc : keep(b, &envelope, digest, err);
}

static int sign(struct build *b, const struct attest_subject *about, const struct cb_buf *sbom,
                const struct cb_buf *provenance, struct template_manifest *m, struct cb_error *err)
{
    CB_AUTO(sign_key) key = NULL;
    if (!b->settings->signing_key)
        return 0;
    int rc = cb_sign_key_load(b->settings->signing_key, &key, err);
    CB_AUTO_BUF statement = CB_BUF_INIT(ATTEST_MAX);
    if (rc >= 0)
        rc = attest_statement(about, ATTEST_SPDX_TYPE, sbom->data, sbom->len, &statement, err);
    if (rc >= 0)
        rc = keep_signed(b, &statement, key, &m->sbom_signed, err);
    if (rc >= 0)
        rc = keep_signed(b, provenance, key, &m->provenance_signed, err);
    if (rc >= 0)
        emit_note(&b->em, "signed with the key %.16s...", cb_sign_key_id(key));
    return rc;
}

int documents_make(struct build *b, const char *image_path, struct template_manifest *m,
                   struct cb_error *err)
{
    CB_AUTO_BUF sbom = CB_BUF_INIT(DOCUMENT_MAX), provenance = CB_BUF_INIT(DOCUMENT_MAX);
    int rc = make_sbom(b, image_path, &sbom, err);
    if (rc >= 0)
        rc = keep(b, &sbom, &m->sbom, err);
    if (rc < 0)
        return cb_wrap(err, "list the packages");
    CB_AUTO_FREE char *manifest = template_manifest_dump(m);
    CB_AUTO_FREE char *predicate = provenance_dump(b, &m->sbom, cb_now_ms());
    if (!manifest || !predicate)
        return cb_fail(err, CB_E_BUG, "the provenance of %s is not UTF-8", b->name);
    struct attest_subject about = {.name = b->name, .image = m->image};
    rc = attest_manifest_digest(manifest, strlen(manifest), &about.manifest, err);
    if (rc >= 0)
        rc = attest_statement(&about, ATTEST_SLSA_TYPE, predicate, strlen(predicate), &provenance,
                              err);
    if (rc >= 0)
        rc = keep(b, &provenance, &m->provenance, err);
    if (rc >= 0)
        rc = sign(b, &about, &sbom, &provenance, m, err);
    return rc < 0 ? cb_wrap(err, "write the provenance") : 0;
}
