/* image_tool STORE OUT SIZE_MIB REFERENCE: a base image from its registry to an ext4 image, as a
 * build does it, without a build around it: resolve, then fetch what the store lacks and flatten
 * what has arrived. Prints the seconds of each part and what the image takes. OUT must not exist;
 * "-" stops after the fetch.
 */
#include "layers/layers.h"
#include "support/cleanup.h"
#include "support/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct work {
    struct store *store;
    struct settings *settings;
    struct base_image base;
    struct flatten_result image;
    int64_t resolved, made; /* microseconds since the start */
};

static int run(struct work *w, char **argv, struct cb_error *err)
{
    struct config_problems problems = {0};
    int64_t start = cb_monotonic_us();
    int rc = settings_load_files(NULL, 0, false, &w->settings, &problems, err);
    config_problems_release(&problems);
    if (rc == 0)
        rc = store_open(argv[1], &w->store, err);
    if (rc == 0)
        rc = image_resolve(w->store, w->settings, argv[4], "amd64", PULL_ALWAYS, NULL, &w->base,
                           err);
    w->resolved = cb_monotonic_us() - start;
    struct image_fetching *f = NULL;
    if (rc == 0)
        rc = image_fetch_start(w->store, w->settings, &w->base, NULL, &f, err);
    if (rc < 0)
        return rc;
    if (strcmp(argv[2], "-") == 0)
        return image_fetch_end(f, err);
    const struct flatten_spec spec = {.store = w->store,
                                      .layers = w->base.layers,
                                      .n_layers = w->base.n_layers,
                                      .size_bytes = strtoull(argv[3], NULL, 10) << 20,
                                      .out_path = argv[2]};
    rc = flatten_arriving(f, &spec, &w->image, err);
    w->made = cb_monotonic_us() - start;
    return rc;
}

int main(int argc, char **argv)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct work w = {0};
    if (argc != 5) {
        fputs("usage: image_tool STORE OUT SIZE_MIB REFERENCE\n", stderr);
        return 2;
    }
    int rc = run(&w, argv, &err);
    base_image_release(&w.base);
    store_free(w.store);
    settings_free(w.settings);
    if (rc < 0) {
        fprintf(stderr, "%s: %s\n", cb_code_name(err.code), err.msg);
        return 1;
    }
    printf("{\"resolve\": %.6f, \"image\": %.6f, \"entries\": %" PRIu64 ", \"allocated\": %" PRIu64
           "}\n",
           (double)w.resolved / 1e6, (double)(w.made - w.resolved) / 1e6, w.image.entries,
           w.image.allocated);
    return 0;
}
