/* image_tool STORE SIZE_MIB REFERENCE HOW [OUT]: a base image from its registry to an ext4 image,
 * as a build does it, without a build around it: resolve, then fetch what the store lacks and
 * flatten what has arrived. HOW:
 *
 *   publish  the image goes into the store, with what later ones can take from it
 *   copy     OUT is made from the layers' bytes in images of the store (another base, another
 * order) extend   OUT is made from the image of the same layers in the store (another size, more
 * layers) chunks   stores OUT, an image, in chunks, as publishing a template does update   hashes
 * OUT anew after 1 % of its chunks changed, and whole
 *
 * Prints the seconds as JSON. */
#include "layers/layers.h"
#include "layers/prefix.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct work {
    struct store *store;
    struct settings *settings;
    struct base_image base;
    const char *how, *out;
    uint64_t size;
    struct flatten_result image;
};

static double since(int64_t start)
{
    return (double)(cb_monotonic_us() - start) / 1e6;
}

static int publish(struct work *w, const char *tmp, struct places *places,
                   const struct chunk_map *chunks, struct cb_error *err)
{
    int rc = store_lower_publish(w->store, tmp, &w->base.manifest, err);
    if (rc == 0)
        rc = prefix_put(w->store, w->base.layers, w->base.n_layers, PREFIX_LOWERS,
                        &w->base.manifest, chunks, err);
    if (rc == 0)
        places_put(places, PREFIX_LOWERS, &w->base.manifest);
    return rc;
}

static int make(struct work *w, struct image_fetching *f, struct cb_error *err)
{
    bool first = strcmp(w->how, "publish") == 0;
    CB_AUTO_FREE char *tmp = first ? store_tmp_path(w->store, "image") : cb_xstrdup(w->out);
    CB_AUTO_CHUNK_MAP chunks = {0};
    CB_AUTO_PREFIX below = PREFIX_INIT;
    CB_AUTO_PLACES places = first ? places_new(w->store) : NULL;
    if (strcmp(w->how, "extend") == 0 &&
        prefix_find(w->store, w->base.layers, w->base.n_layers, &below) == 0)
        fputs("no image of these layers in the store\n", stderr);
    const struct flatten_parent parent = {below.fd, below.n_layers, &below.chunks};
    const struct flatten_spec spec = {.store = w->store,
                                      .layers = w->base.layers,
                                      .n_layers = w->base.n_layers,
                                      .size_bytes = w->size,
                                      .out_path = tmp,
                                      .chunks = &chunks,
                                      .parent = below.n_layers ? &parent : NULL,
                                      .flags = first ? FLATTEN_INFLATE : 0,
                                      .places = places};
    int rc = flatten_arriving(f, &spec, &w->image, err);
    return rc == 0 && first ? publish(w, tmp, places, &chunks, err) : rc;
}

static int run(struct work *w, const char *reference, struct cb_error *err)
{
    struct image_fetching *f = NULL;
    int64_t start = cb_monotonic_us();
    int rc =
        image_resolve(w->store, w->settings, reference, "amd64", PULL_ALWAYS, NULL, &w->base, err);
    if (rc == 0)
        rc = image_fetch_start(w->store, w->settings, &w->base, NULL, &f, err);
    if (rc == 0)
        rc = make(w, f, err);
    if (rc == 0)
        printf("{\"seconds\": %.6f, \"entries\": %" PRIu64 ", \"allocated\": %" PRIu64
               ", \"inherited\": %zu, \"copied\": %zu}\n",
               since(start), w->image.entries, w->image.allocated, w->image.inherited,
               w->image.copied);
    return rc;
}

/* Flips a byte in one of a hundred chunks, spread over the image. */
static int change(int fd, const struct chunk_map *m, struct byte_range *dirty, size_t n,
                  struct cb_error *err)
{
    for (size_t i = 0; i < n; i++) {
        char byte;
        off_t at = (off_t)(m->v[i * 100].index * m->chunk_size + 12345);
        if (pread(fd, &byte, 1, at) != 1)
            return cb_fail_sys(err, errno, "read the image");
        byte ^= 1;
        if (pwrite(fd, &byte, 1, at) != 1)
            return cb_fail_sys(err, errno, "change the image");
        dirty[i] = (struct byte_range){(uint64_t)at, 1};
    }
    return 0;
}

static int update(struct work *w, struct cb_error *err)
{
    CB_AUTO_CHUNK_MAP before = {0}, whole = {0}, after = {0};
    CB_AUTO_FD fd = open(w->out, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", w->out);
    int rc = chunk_map_make(fd, CHUNK_SIZE_DEFAULT, &before, err);
    if (rc < 0)
        return rc;
    size_t n = (before.n + 99) / 100;
    CB_AUTO_FREE struct byte_range *dirty = cb_xcalloc(n, sizeof(*dirty));
    if ((rc = change(fd, &before, dirty, n, err)) < 0)
        return rc;
    int64_t start = cb_monotonic_us();
    if ((rc = chunk_map_make(fd, CHUNK_SIZE_DEFAULT, &whole, err)) < 0)
        return rc;
    double all = since(start);
    start = cb_monotonic_us();
    if ((rc = chunk_map_update(fd, &before, dirty, n, &after, err)) < 0)
        return rc;
    double part = since(start);
    struct cb_digest a, b;
    chunk_map_digest(&whole, &a);
    chunk_map_digest(&after, &b);
    if (!cb_digest_eq(&a, &b))
        return cb_fail(err, CB_E_BUG, "the update gives another digest");
    printf("{\"whole\": %.6f, \"part\": %.6f, \"chunks\": %zu, \"changed\": %zu}\n", all, part,
           whole.n, n);
    return 0;
}

static int store_in_chunks(struct work *w, struct cb_error *err)
{
    CB_AUTO_CHUNK_MAP map = {0};
    struct store_chunks c;
    CB_AUTO_FD fd = open(w->out, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", w->out);
    int rc = chunk_map_make(fd, CHUNK_SIZE_DEFAULT, &map, err);
    int64_t start = cb_monotonic_us();
    if (rc == 0)
        rc = store_chunks_put(w->store, fd, &map, NULL, &c, err);
    if (rc == 0)
        printf("{\"seconds\": %.6f, \"added\": %" PRIu64 ", \"bytes\": %" PRIu64 "}\n",
               since(start), c.added, c.added_bytes);
    return rc;
}

static int do_as_told(struct work *w, const char *reference, struct cb_error *err)
{
    if (strcmp(w->how, "update") == 0)
        return update(w, err);
    return strcmp(w->how, "chunks") == 0 ? store_in_chunks(w, err) : run(w, reference, err);
}

int main(int argc, char **argv)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct config_problems problems = {0};
    struct work w = {0};
    if (argc < 5 || (argc < 6 && strcmp(argv[4], "publish") != 0)) {
        fputs(
            "usage: image_tool STORE SIZE_MIB REFERENCE publish|copy|extend|chunks|update [OUT]\n",
            stderr);
        return 2;
    }
    w.how = argv[4];
    w.out = argv[5];
    w.size = strtoull(argv[2], NULL, 10) << 20;
    int rc = settings_load_files(NULL, 0, false, &w.settings, &problems, &err);
    config_problems_release(&problems);
    if (rc == 0)
        rc = store_open(argv[1], &w.store, &err);
    if (rc == 0)
        rc = do_as_told(&w, argv[3], &err);
    base_image_release(&w.base);
    store_free(w.store);
    settings_free(w.settings);
    if (rc < 0)
        fprintf(stderr, "%s: %s\n", cb_code_name(err.code), err.msg);
    return rc < 0;
}
