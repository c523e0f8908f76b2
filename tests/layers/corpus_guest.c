/* corpus_guest: every layer of the corpus (corpus.py) as a guest could hand it over: bytes of its
 * own on the output disk, in place of the tar that our agent writes.
 *
 *   corpus_guest CORPUS OUT
 *
 * What store_layer_import() accepts must give the image that the same layers give from a registry,
 * or be refused when that is made; what it refuses, it refuses as the guest's fault. What the
 * corpus holds to be no layer gives no image this way either. Prints how many went which way. */
#include "corpus.h"

#include "layers/layers.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PLACE = 8192 }; /* where the tar lies on the disk, with something in front of it */

struct guest {
    struct store *store;
    char *disk, *image;
    unsigned same, refused;
};

/* Copies the blob to the output disk and takes it in from there. */
static int hand_over(struct guest *g, const struct layer_blob *l, struct layer_blob *out,
                     struct cb_error *err)
{
    uint64_t size = 0, at = 0;
    CB_AUTO_FD from = store_blob_open(g->store, &l->digest, &size, err);
    CB_AUTO_FD disk = open(g->disk, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (from < 0 || disk < 0)
        return -CB_E_SYS;
    static char buf[1 << 18];
    memset(buf, 'x', PLACE);
    ssize_t n = pwrite(disk, buf, PLACE, 0);
    while (n > 0 && (n = pread(from, buf, sizeof(buf), (off_t)at)) > 0) {
        n = pwrite(disk, buf, (size_t)n, (off_t)(PLACE + at));
        at += n > 0 ? (uint64_t)n : 0;
    }
    if (n < 0 || at != size)
        return cb_fail_sys(err, errno, "copy a layer");
    return store_layer_import(g->store, disk, PLACE, size, out, err);
}

static int make(struct guest *g, const struct layer_blob *layers, size_t n,
                struct flatten_result *r, struct cb_error *err)
{
    (void)unlink(g->image);
    const struct flatten_spec spec = {
        .store = g->store, .layers = layers, .n_layers = n, .out_path = g->image};
    return flatten(&spec, r, err);
}

static bool is_the_guests_fault(int rc)
{
    return rc == -CB_E_CORRUPT || rc == -CB_E_UNTRUSTED || rc == -CB_E_LIMIT;
}

static int run_case(struct guest *g, const struct corpus_case *c, struct cb_error *err)
{
    CB_AUTO_ERROR theirs = CB_ERROR_INIT;
    CB_AUTO_ERROR ours = CB_ERROR_INIT;
    struct flatten_result want = {0}, got = {0};
    struct layer_blob handed[CORPUS_LAYERS_MAX] = {0};
    size_t n = 0;
    int wanted = make(g, c->layers, c->n_layers, &want, &theirs), rc = 0;
    while (rc == 0 && n < c->n_layers) {
        rc = hand_over(g, &c->layers[n], &handed[n], &ours);
        n += rc == 0;
    }
    if (rc == 0)
        rc = make(g, handed, n, &got, &ours);
    for (size_t i = 0; i < n; i++)
        layer_blob_release(&handed[i]);
    if (rc < 0 && !is_the_guests_fault(rc))
        return cb_fail(err, CB_E_CORRUPT, "%s: refused as %s: %s", c->name, cb_code_name(ours.code),
                       ours.msg);
    if (rc < 0) {
        g->refused++;
        return 0;
    }
    if (!c->legal || wanted < 0)
        return cb_fail(err, CB_E_CORRUPT, "%s: accepted", c->name);
    if (!cb_digest_eq(&got.digest, &want.digest))
        return cb_fail(err, CB_E_CORRUPT, "%s: another image than from a registry", c->name);
    g->same++;
    return 0;
}

int main(int argc, char **argv)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct corpus corpus;
    struct corpus_case c;
    struct guest g = {0};
    if (argc != 3) {
        fprintf(stderr, "usage: corpus_guest CORPUS OUT\n");
        return 2;
    }
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/store", argv[2]);
    g.image = cb_xasprintf("%s/image", argv[2]);
    g.disk = cb_xasprintf("%s/disk", argv[2]);
    int rc = store_open(dir, &g.store, &err);
    if (rc == 0 && (rc = corpus_open(&corpus, argv[1], g.store, &err)) == 0) {
        while ((rc = corpus_next(&corpus, &c, &err)) > 0)
            if (run_case(&g, &c, &err) < 0)
                break;
        corpus_close(&corpus);
    }
    store_free(g.store);
    free(g.image);
    free(g.disk);
    if (err.code != CB_OK) {
        fprintf(stderr, "%s: %s\n", cb_code_name(err.code), err.msg);
        return 1;
    }
    printf("%u the same, %u refused\n", g.same, g.refused);
    return g.same > 100 && g.refused > 100 ? 0 : 1;
}
