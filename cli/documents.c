/* show --sbom, --provenance, --verify-signature: the documents of a template (docs/provenance.md).
 */
#include "cli/cli.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <string.h>

CB_DEFINE_CLEANUP(sign_key, struct cb_sign_key *, cb_sign_key_free);

static bool is_absent(const struct cb_digest *d)
{
    static const struct cb_digest none;
    return cb_digest_eq(d, &none);
}

/* A document's bytes, compared with its digest: what is shown is what the manifest names. */
static int read_document(struct store *store, const struct cb_digest *d, const char *what,
                         struct cb_buf *out, struct cb_error *err)
{
    CB_AUTO_FD fd = store_blob_open(store, d, NULL, err);
    if (fd < 0)
        return cb_wrap(err, "%s", what);
    int rc = cb_read_fd(fd, what, ATTEST_MAX, out, err);
    struct cb_digest got;
    cb_sha256(out->data ? out->data : "", out->len, &got);
    if (rc >= 0 && !cb_digest_eq(&got, d))
        rc = cb_fail(err, CB_E_CORRUPT, "%s: its content is not what its digest says", what);
    return rc;
}

static int print_document(struct store *store, const struct template_manifest *m,
                          const struct cb_digest *d, const char *what)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(ATTEST_MAX);
    if (is_absent(d)) {
        (void)cb_fail(&err, CB_E_NOTFOUND, "%s version %llu was published without a %s", m->name,
                      (unsigned long long)m->version, what);
        (void)cb_hint(&err, "`--force` builds and publishes it anew");
        return cli_fail(&err);
    }
    if (read_document(store, d, what, &text, &err) < 0)
        return cli_fail(&err);
    (void)fwrite(text.data, 1, text.len, stdout);
    return EXIT_DONE;
}

/* The manifest as it lies in the store: the one that was described when it was signed. */
static int subject_of(struct store *store, const struct template_manifest *m,
                      struct attest_subject *out, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/templates/%s/%llu.json", store_dir(store), m->name,
                                           (unsigned long long)m->version);
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    int rc = cb_read_file(path, 64u << 20, &text, err);
    *out = (struct attest_subject){.name = m->name, .image = m->image};
    return rc < 0 ? rc : attest_manifest_digest(text.data, text.len, &out->manifest, err);
}

static int not_about_it(const char *what, struct cb_error *err)
{
    return cb_fail(err, CB_E_UNTRUSTED,
                   "the signed %s is not about this template: its image, its manifest or the "
                   "document beside it was changed",
                   what);
}

/* The envelope is signed by @key, holds the document that the manifest names, and is about this
 * image and this manifest. @predicate: of the statement that the envelope must hold, or NULL when
 * the document is that statement itself. */
static int verify_one(struct store *store, const struct attest_subject *about,
                      const struct cb_digest *plain, const struct cb_digest *sealed,
                      const char *predicate, const char *what, const struct cb_sign_key *key,
                      struct cb_error *err)
{
    CB_AUTO_BUF document = CB_BUF_INIT(ATTEST_MAX), envelope = CB_BUF_INIT(ATTEST_MAX);
    CB_AUTO_BUF payload = CB_BUF_INIT(ATTEST_MAX), expected = CB_BUF_INIT(ATTEST_MAX);
    if (is_absent(sealed))
        return cb_fail(err, CB_E_UNTRUSTED, "the %s is not signed", what);
    int rc = read_document(store, plain, what, &document, err);
    if (rc >= 0)
        rc = read_document(store, sealed, what, &envelope, err);
    if (rc >= 0)
        rc = attest_open(envelope.data, envelope.len, key, &payload, err);
    if (rc < 0)
        return cb_wrap(err, "the signed %s", what);
    if (predicate) {
        rc = attest_statement(about, predicate, document.data, document.len, &expected, err);
        if (rc < 0)
            return rc;
        if (payload.len != expected.len || memcmp(payload.data, expected.data, payload.len) != 0)
            return not_about_it(what, err);
        return 0;
    }
    if ((rc = attest_statement(about, ATTEST_SLSA_TYPE, "", 0, &expected, err)) < 0)
        return rc;
    size_t head = expected.len - strlen("}\n");
    if (payload.len != document.len || memcmp(payload.data, document.data, payload.len) != 0 ||
        payload.len < head || memcmp(payload.data, expected.data, head) != 0)
        return not_about_it(what, err);
    return 0;
}

static int verify(struct store *store, const struct template_manifest *m, const char *key_path)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO(sign_key) key = NULL;
    struct attest_subject about;
    int rc = cb_verify_key_load(key_path, &key, &err);
    if (rc >= 0)
        rc = subject_of(store, m, &about, &err);
    if (rc >= 0)
        rc = verify_one(store, &about, &m->provenance, &m->provenance_signed, NULL, "provenance",
                        key, &err);
    if (rc >= 0)
        rc = verify_one(store, &about, &m->sbom, &m->sbom_signed, ATTEST_SPDX_TYPE, "package list",
                        key, &err);
    if (rc < 0) {
        (void)cb_wrap(&err, "%s version %llu", m->name, (unsigned long long)m->version);
        return cli_fail(&err);
    }
    printf("%s version %llu: provenance and package list are about this template and signed by "
           "the key %s\n",
           m->name, (unsigned long long)m->version, cb_sign_key_id(key));
    return EXIT_DONE;
}

int cli_show_documents(struct cli_args *a, struct store *store, const struct template_manifest *m)
{
    if (a->verify_key)
        return verify(store, m, a->verify_key);
    if (a->sbom)
        return print_document(store, m, &m->sbom, "package list");
    return print_document(store, m, &m->provenance, "provenance");
}
