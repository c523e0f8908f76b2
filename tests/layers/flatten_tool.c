/* flatten_tool: the flattener at a terminal, for tests and measurements.
 *   flatten_tool flatten OUT SIZE_MIB LAYER...   layers are tar files, plain or compressed
 *   flatten_tool learn OUT SIZE_MIB LAYER...     and the store keeps the image, and where its files
 * are flatten_tool copy OUT SIZE_MIB LAYER...      inflates no layer whose files an image has
 *   flatten_tool onto OUT SIZE_MIB LAYER...      starts from the longest prefix that the store has
 *   flatten_tool empty OUT SIZE_MIB
 *   flatten_tool digest IMAGE
 * The layers go through a store in OUT.store, which is kept and used again. */
#include "layers/inflate.h"
#include "layers/layers.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int fail(struct cb_error *err)
{
    fprintf(stderr, "%s: %s\n", cb_code_name(err->code), err->msg);
    if (err->hint)
        fprintf(stderr, "%s\n", err->hint);
    cb_error_clear(err);
    return 1;
}

static int diff_id(int fd, uint64_t size, struct cb_digest *out, struct cb_error *err)
{
    struct inflate *z = NULL;
    uint64_t bytes;
    int rc = inflate_start(fd, size, UINT64_MAX, &z, err);
    if (rc == 0)
        rc = inflate_finish(z, out, &bytes, err);
    inflate_free(z);
    return rc;
}

static int import(struct store *s, const char *path, struct layer_blob *out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    out->size = (uint64_t)st.st_size;
    int rc = cb_sha256_fd(fd, &out->digest, err);
    if (rc == 0 && diff_id(fd, out->size, &out->diff_id, err) < 0) {
        memset(&out->diff_id, 0,
               sizeof(out->diff_id)); /* flatten() will say what is wrong with it */
        cb_error_clear(err);
    }
    if (rc < 0 || store_blob_has(s, &out->digest))
        return rc;
    struct blob_writer *w = NULL;
    rc = store_blob_begin(s, &out->digest, out->size, &w, err);
    static char buf[1 << 16];
    for (uint64_t at = 0; rc == 0 && at < out->size;) {
        ssize_t n = pread(fd, buf, sizeof(buf), (off_t)at);
        if (n <= 0)
            rc = cb_fail_sys(err, errno, "read %s", path);
        else
            rc = blob_writer_add(w, buf, (size_t)n, err);
        at += n > 0 ? (uint64_t)n : 0;
    }
    if (rc < 0) {
        blob_writer_abort(w);
        return rc;
    }
    return blob_writer_commit(w, NULL, NULL, err);
}

static void print_digest(const struct cb_digest *d)
{
    char text[CB_DIGEST_LEN + 1];
    cb_digest_text(d, text);
    printf("%s\n", text);
}

/* The most memory that this program had, libraries included. */
static void print_peak(void)
{
    CB_AUTO_FILE f = fopen("/proc/self/status", "re");
    char line[256];
    while (f && fgets(line, sizeof(line), f))
        if (strncmp(line, "VmHWM:", 6) == 0)
            fputs(line, stdout);
}

enum how { FLATTEN, LEARN, COPY, ONTO };

/* The image goes into the store; OUT is a copy of it. */
static int keep(struct store *s, const struct flatten_spec *spec, const struct flatten_result *r,
                struct cb_error *err)
{
    CB_AUTO_FREE char *tmp = store_tmp_path(s, "learn");
    CB_AUTO_FD from = open(spec->out_path, O_RDONLY | O_CLOEXEC);
    CB_AUTO_FD to = open(tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (from < 0 || to < 0)
        return cb_fail_sys(err, errno, "open %s", spec->out_path);
    int rc = cb_clone_file(from, to, err);
    if (rc == 0)
        rc = store_lower_publish(s, tmp, &r->digest, err);
    if (rc == 0)
        rc = prefix_put(s, spec->layers, spec->n_layers, PREFIX_LOWERS, &r->digest, spec->chunks,
                        err);
    if (rc == 0)
        places_put(spec->places, PREFIX_LOWERS, &r->digest);
    return rc;
}

static int make(struct store *s, enum how how, struct flatten_spec *spec, struct cb_error *err)
{
    CB_AUTO_PLACES places = how == LEARN ? places_new(s) : NULL;
    CB_AUTO_PREFIX below = PREFIX_INIT;
    CB_AUTO_CHUNK_MAP chunks = {0};
    int64_t start = cb_monotonic_us();
    if (how == ONTO)
        (void)prefix_find(s, spec->layers, spec->n_layers, &below);
    const struct flatten_parent parent = {below.fd, below.n_layers, &below.chunks};
    struct flatten_result r;
    spec->parent = &parent;
    spec->places = places;
    spec->chunks = &chunks;
    spec->flags = how == FLATTEN || how == LEARN ? FLATTEN_INFLATE : 0;
    int rc = flatten(spec, &r, err);
    double seconds = (double)(cb_monotonic_us() - start) / 1e6;
    if (rc == 0 && how == LEARN)
        rc = keep(s, spec, &r, err);
    if (rc < 0)
        return rc;
    printf("%" PRIu64 " entries, %" PRIu64 " bytes, %" PRIu64 " allocated, %.3f s\n", r.entries,
           r.size, r.allocated, seconds);
    if (how == COPY || how == ONTO)
        printf("%zu layers inherited, %zu copied, of %zu\n", r.inherited, r.copied, spec->n_layers);
    print_digest(&r.digest);
    print_peak();
    return 0;
}

static int run_flatten(enum how how, const char *out, uint64_t mib, char **paths, size_t n)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct store *s = NULL;
    CB_AUTO_FREE char *dir = cb_xasprintf("%s.store", out);
    CB_AUTO_FREE struct layer_blob *layers = cb_xcalloc(n + 1, sizeof(*layers));
    int rc = store_open(dir, &s, &err);
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = import(s, paths[i], &layers[i], &err);
    struct flatten_spec spec = {
        .store = s, .layers = layers, .n_layers = n, .size_bytes = mib << 20, .out_path = out};
    if (rc == 0)
        rc = make(s, how, &spec, &err);
    store_free(s);
    return rc < 0 ? fail(&err) : 0;
}

static int run_digest(const char *path)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_digest d;
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        (void)cb_fail_sys(&err, errno, "open %s", path);
        return fail(&err);
    }
    if (image_digest(fd, &d, NULL, &err) < 0)
        return fail(&err);
    print_digest(&d);
    return 0;
}

int main(int argc, char **argv)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static const char *const hows[] = {"flatten", "learn", "copy", "onto"};
    for (enum how how = FLATTEN; how <= ONTO; how++)
        if (argc >= 4 && strcmp(argv[1], hows[how]) == 0)
            return run_flatten(how, argv[2], strtoull(argv[3], NULL, 10), argv + 4,
                               (size_t)argc - 4);
    if (argc == 4 && strcmp(argv[1], "empty") == 0)
        return ext4_make_empty(argv[2], strtoull(argv[3], NULL, 10) << 20, "scratch", &err) < 0
                   ? fail(&err)
                   : 0;
    if (argc == 3 && strcmp(argv[1], "digest") == 0)
        return run_digest(argv[2]);
    fprintf(
        stderr,
        "usage: flatten_tool flatten|learn|copy|onto OUT SIZE_MIB LAYER... | empty OUT SIZE_MIB | "
        "digest IMAGE\n");
    return 2;
}
