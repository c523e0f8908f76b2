/* corpus_tool: every case of a corpus (corpus.py) through the flattener, in one process.
 *
 *   corpus_tool flatten CORPUS OUT [CASE...]   without names: all cases
 *   corpus_tool list IMAGE                     image_list.h of one image
 *
 * A legal case leaves OUT/NAME.ext4 and OUT/NAME.list (image_list.h), a refused one OUT/NAME.error:
 * the name of the code and the message, a line each. Each prints "NAME DIGEST" or "NAME refused".
 * After a refused one nothing else may be left in OUT or unfinished in the store (OUT/store), and
 * its blobs must still be what their names say; at the end all blobs must. */
#include "corpus.h"
#include "image_list.h"

#include "layers/flatten.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

struct run {
    const char *out;
    struct store *store;
    struct cb_digest *blobs; /* of all cases so far; owned */
    size_t n_blobs;
    size_t unfinished; /* files in tmp/ and partial/ before the case: the handle's own */
};

static int fail(struct cb_error *err)
{
    (void)fflush(stdout);
    fprintf(stderr, "%s: %s\n", cb_code_name(err->code), err->msg);
    cb_error_clear(err);
    return 1;
}

/* ---- what a failure must leave ---- */

static int check_blob(struct store *s, const struct cb_digest *d, struct cb_error *err)
{
    struct cb_digest got;
    CB_AUTO_FD fd = store_blob_open(s, d, NULL, err);
    if (fd < 0)
        return fd;
    int rc = cb_sha256_fd(fd, &got, err);
    if (rc == 0 && !cb_digest_eq(d, &got))
        rc = cb_fail(err, CB_E_CORRUPT, "a blob of the store is not what its name says");
    return rc;
}

/* The number of files in a folder of the store that no reader may see. */
static size_t unfinished(struct store *s, const char *sub)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", store_dir(s), sub);
    DIR *d = opendir(path);
    size_t n = 0;
    while (d && readdir(d))
        n++;
    if (d)
        (void)closedir(d);
    return n;
}

static int check_left(struct run *r, const struct corpus_case *c, const char *image,
                      struct cb_error *err)
{
    int rc = 0;
    if (access(image, F_OK) == 0)
        rc = cb_fail(err, CB_E_CORRUPT, "the image is left");
    if (rc == 0 && unfinished(r->store, "tmp") + unfinished(r->store, "partial") != r->unfinished)
        rc = cb_fail(err, CB_E_CORRUPT, "something unfinished is left in the store");
    for (size_t i = 0; rc == 0 && i < c->n_layers; i++)
        rc = check_blob(r->store, &c->layers[i].digest, err);
    return rc;
}

/* ---- one case ---- */

static FILE *result_file(struct run *r, const char *name, const char *kind, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s.%s", r->out, name, kind);
    FILE *f = fopen(path, "we");
    if (!f)
        (void)cb_fail_sys(err, errno, "make %s", path);
    return f;
}

static int flatten_case(struct run *r, const struct corpus_case *c, const char *image,
                        struct cb_digest *digest, struct cb_error *err)
{
    struct flatten_result result;
    const struct flatten_spec spec = {
        .store = r->store, .layers = c->layers, .n_layers = c->n_layers, .out_path = image};
    int rc = flatten(&spec, &result, err);
    if (rc == 0)
        *digest = result.digest;
    return rc;
}

static int note_refusal(struct run *r, const struct corpus_case *c, const char *image,
                        struct cb_error *why, struct cb_error *err)
{
    FILE *f = result_file(r, c->name, "error", err);
    if (!f)
        return -(int)err->code;
    (void)fprintf(f, "%s\n%s\n", cb_code_name(why->code), why->msg);
    (void)fclose(f);
    int rc = check_left(r, c, image, err);
    if (rc == 0)
        printf("%s refused\n", c->name);
    return rc;
}

static int run_case(struct run *r, const struct corpus_case *c, struct cb_error *err)
{
    CB_AUTO_FREE char *image = cb_xasprintf("%s/%s.ext4", r->out, c->name);
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    struct cb_digest digest;
    char text[CB_DIGEST_LEN + 1];
    r->unfinished = unfinished(r->store, "tmp") + unfinished(r->store, "partial");
    if (flatten_case(r, c, image, &digest, &why) < 0)
        return note_refusal(r, c, image, &why, err);
    cb_digest_text(&digest, text);
    FILE *f = result_file(r, c->name, "list", err);
    if (!f)
        return -(int)err->code;
    int rc = image_list(image, f, err);
    if (fclose(f) != 0 && rc == 0)
        rc = cb_fail_sys(err, errno, "write the listing");
    if (rc == 0)
        printf("%s %s\n", c->name, text);
    return rc;
}

static bool is_wanted(const char *name, char **names, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return n == 0;
}

static void note_blobs(struct run *r, const struct corpus_case *c)
{
    r->blobs = cb_xrealloc(r->blobs, (r->n_blobs + c->n_layers + 1) * sizeof(*r->blobs));
    for (size_t i = 0; i < c->n_layers; i++)
        r->blobs[r->n_blobs++] = c->layers[i].digest;
}

static int run_cases(struct run *r, const char *dir, char **names, int n, struct cb_error *err)
{
    struct corpus corpus;
    struct corpus_case c;
    int rc = corpus_open(&corpus, dir, r->store, err);
    while (rc >= 0 && (rc = corpus_next(&corpus, &c, err)) > 0) {
        note_blobs(r, &c);
        if (is_wanted(c.name, names, n) && (rc = run_case(r, &c, err)) < 0)
            (void)cb_wrap(err, "%s", c.name);
    }
    corpus_close(&corpus);
    for (size_t i = 0; rc == 0 && i < r->n_blobs; i++)
        rc = check_blob(r->store, &r->blobs[i], err);
    return rc;
}

int main(int argc, char **argv)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (argc == 3 && strcmp(argv[1], "list") == 0)
        return image_list(argv[2], stdout, &err) < 0 ? fail(&err) : 0;
    if (argc < 4 || strcmp(argv[1], "flatten") != 0) {
        fprintf(stderr, "usage: corpus_tool flatten CORPUS OUT [CASE...] | list IMAGE\n");
        return 2;
    }
    struct run r = {.out = argv[3]};
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/store", r.out);
    (void)setvbuf(stdout, NULL, _IOLBF, 0); /* a reader may go on with each case at once */
    int rc = mkdir(r.out, 0777) < 0 && errno != EEXIST ? cb_fail_sys(&err, errno, "make %s", r.out)
                                                       : store_open(dir, &r.store, &err);
    if (rc == 0)
        rc = run_cases(&r, argv[2], argv + 4, argc - 4, &err);
    store_free(r.store);
    free(r.blobs);
    return rc < 0 ? fail(&err) : 0;
}
