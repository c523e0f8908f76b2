/* corpus_again: every legal case of a corpus (corpus.py) by every way to its image.
 *
 *   corpus_again CORPUS OUT
 *
 * From the blobs; from an image of each prefix of the layers, of another size; and, once the layers
 * are known, from where their bytes lie. All must give one digest. A refused case must be refused
 * in the same words when its first layers come with an image or are known. Prints the number of
 * comparisons. */
#include "corpus.h"

#include "layers/layers.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define SMALL ((uint64_t)700 << 20)
#define LARGE ((uint64_t)6 << 30)

struct again {
    struct store *store;
    const struct corpus_case *c;
    char *image, *below; /* paths */
    unsigned compared;
};

struct outcome {
    int rc;
    struct flatten_result r;
    char *words; /* of the error, owned */
};

static void outcome_release(struct outcome *o)
{
    free(o->words);
    *o = (struct outcome){0};
}
#define CB_AUTO_OUTCOME __attribute__((cleanup(outcome_release))) struct outcome

static void make(const struct again *a, struct flatten_spec spec, const char *path,
                 struct outcome *out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    (void)unlink(path);
    spec.store = a->store;
    spec.layers = a->c->layers;
    spec.out_path = path;
    out->rc = flatten(&spec, &out->r, &err);
    out->words = cb_xstrdup0(err.msg);
}

static int compare(struct again *a, const struct outcome *want, const struct outcome *got,
                   const char *how, struct cb_error *err)
{
    a->compared++;
    if (got->rc != want->rc)
        return cb_fail(err, CB_E_CORRUPT, "%s: %d instead of %d: %s", how, got->rc, want->rc,
                       got->words ? got->words : "");
    if (want->rc < 0 && strcmp(got->words, want->words) != 0)
        return cb_fail(err, CB_E_CORRUPT, "%s: \"%s\" instead of \"%s\"", how, got->words,
                       want->words);
    if (want->rc == 0 && (!cb_digest_eq(&got->r.digest, &want->r.digest) ||
                          got->r.entries != want->r.entries || got->r.size != want->r.size))
        return cb_fail(err, CB_E_CORRUPT, "%s: another image", how);
    return 0;
}

/* From an image of the first @k layers: 1 when there is one. */
static int from_prefix(struct again *a, size_t k, const struct outcome *want, struct cb_error *err)
{
    CB_AUTO_OUTCOME below = {0};
    CB_AUTO_OUTCOME got = {0};
    make(a, (struct flatten_spec){.n_layers = k, .size_bytes = k % 2 ? LARGE : 0}, a->below,
         &below);
    if (below.rc < 0)
        return 0;
    CB_AUTO_FD fd = open(a->below, O_RDONLY | O_CLOEXEC);
    const struct flatten_parent parent = {fd, k, NULL};
    make(a,
         (struct flatten_spec){.n_layers = a->c->n_layers,
                               .size_bytes = want->rc ? 0 : want->r.size,
                               .parent = &parent},
         a->image, &got);
    if (got.rc == 0 && got.r.inherited != k)
        return cb_fail(err, CB_E_CORRUPT, "the image of %zu layers was left aside", k);
    int rc = compare(a, want, &got, "from a prefix", err);
    return rc < 0 ? rc : 1;
}

/* Learns the first @k layers, and makes the whole from what is known then. */
static int from_places(struct again *a, size_t k, const struct outcome *want, struct cb_error *err)
{
    CB_AUTO_OUTCOME known = {0};
    CB_AUTO_OUTCOME got = {0};
    CB_AUTO_PLACES places = places_new(a->store);
    CB_AUTO_FREE char *tmp = store_tmp_path(a->store, "again");
    make(a, (struct flatten_spec){.n_layers = k, .places = places, .flags = FLATTEN_INFLATE}, tmp,
         &known);
    if (known.rc < 0)
        return 0;
    int rc = store_lower_publish(a->store, tmp, &known.r.digest, err);
    if (rc < 0)
        return rc;
    places_put(places, PREFIX_LOWERS, &known.r.digest);
    make(a,
         (struct flatten_spec){.n_layers = a->c->n_layers,
                               .size_bytes = want->rc ? 0 : want->r.size},
         a->image, &got);
    if (got.rc == 0 && k == a->c->n_layers && got.r.copied != k)
        rc = cb_fail(err, CB_E_CORRUPT, "%zu of %zu layers were inflated again", k - got.r.copied,
                     k);
    if (rc == 0)
        rc = compare(a, want, &got, "from where the bytes lie", err);
    store_lower_trim(a->store, 0);
    places_trim(a->store);
    return rc < 0 ? rc : 1;
}

static int run_case(struct again *a, struct cb_error *err)
{
    CB_AUTO_OUTCOME want = {0};
    size_t n = a->c->n_layers;
    make(a, (struct flatten_spec){.n_layers = n, .size_bytes = SMALL}, a->image, &want);
    if (want.rc == -CB_E_LIMIT || !a->c->legal) { /* too large for it, or not at all */
        outcome_release(&want);
        make(a, (struct flatten_spec){.n_layers = n}, a->image, &want);
    }
    int rc = 1;
    for (size_t k = n; rc > 0 && k >= 1; k--)
        rc = from_prefix(a, k, &want, err) < 0 ? -(int)err->code : 1;
    if (rc > 0)
        rc = from_places(a, n, &want, err);
    if (rc >= 0 && n > 1 && err->code == CB_OK)
        rc = from_places(a, n - 1, &want, err);
    return rc < 0 ? cb_wrap(err, "%s", a->c->name) : 0;
}

int main(int argc, char **argv)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct corpus corpus;
    struct corpus_case c;
    struct again a = {.c = &c};
    if (argc != 3) {
        fprintf(stderr, "usage: corpus_again CORPUS OUT\n");
        return 2;
    }
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/store", argv[2]);
    a.image = cb_xasprintf("%s/image", argv[2]);
    a.below = cb_xasprintf("%s/below", argv[2]);
    int rc = store_open(dir, &a.store, &err);
    if (rc == 0 && (rc = corpus_open(&corpus, argv[1], a.store, &err)) == 0) {
        while ((rc = corpus_next(&corpus, &c, &err)) > 0)
            if (run_case(&a, &err) < 0)
                break;
        corpus_close(&corpus);
    }
    store_free(a.store);
    free(a.image);
    free(a.below);
    if (err.code != CB_OK) {
        fprintf(stderr, "%s: %s\n", cb_code_name(err.code), err.msg);
        return 1;
    }
    printf("%u comparisons\n", a.compared);
    return a.compared > 100 ? 0 : 1;
}
