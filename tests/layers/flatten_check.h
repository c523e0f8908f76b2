/* Layers in, an image out, and what e2fsck and debugfs say about it. */
#pragma once

#include "store_check.h"
#include "tar_build.h"

#include "layers/flatten.h"
#include "support/proc.h"

#define LAYERS_MAX_IN_TEST 8

struct image_fixture {
    struct store_fixture *store;
    struct layer_blob layers[LAYERS_MAX_IN_TEST];
    size_t n;
    char *path; /* of the image */
    struct flatten_result result;
};

static inline int image_setup(void **state)
{
    struct image_fixture *f = cb_xcalloc(1, sizeof(*f));
    void *store = NULL;
    if (store_setup(&store) < 0 || !store)
        return -1;
    f->store = store;
    f->path = cb_xasprintf("%s/image.ext4", f->store->base);
    *state = f;
    return 0;
}

static inline int image_teardown(void **state)
{
    struct image_fixture *f = *state;
    void *store = f->store;
    free(f->path);
    free(f);
    return store_teardown(&store);
}

#define test_image(t) cmocka_unit_test_setup_teardown(t, image_setup, image_teardown)

/* Adds the tar (ended here) as the next layer, plain. */
static inline void add_layer(struct image_fixture *f, struct tar_build *t)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct layer_blob *l = &f->layers[f->n++];
    tb_end(t);
    assert_ok(store_blob_put(f->store->store, t->out.data, t->out.len, &l->digest, &err), &err);
    l->diff_id = l->digest;
    l->size = t->out.len;
    tb_release(t);
}

static inline int try_flatten(struct image_fixture *f, uint64_t size, struct cb_error *err)
{
    const struct flatten_spec spec = {.store = f->store->store,
                                      .layers = f->layers,
                                      .n_layers = f->n,
                                      .size_bytes = size,
                                      .label = "test",
                                      .out_path = f->path};
    return flatten(&spec, &f->result, err);
}

/* Runs a program to its end; its output is *@out (released by the caller). Returns its status. */
static inline int run_tool(const char *const *argv, struct cb_buf *out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_proc_result r = {0};
    const struct cb_proc_spec spec = {.argv = argv};
    assert_ok(cb_proc_run(&spec, NULL, (size_t)1 << 20, 60000, &r, &err), &err);
    cb_buf_init(out, (size_t)2 << 20);
    cb_buf_add(out, r.out.data ? r.out.data : "", r.out.len);
    cb_buf_adds(out, "");
    int status = r.status;
    cb_proc_result_release(&r);
    return status;
}

static inline void assert_clean(const char *image)
{
    const char *argv[] = {"e2fsck", "-fn", image, NULL};
    struct cb_buf out;
    int status = run_tool(argv, &out);
    if (status != 0 || strstr(out.data, "ix?") || strstr(out.data, "WARNING"))
        fail_msg("e2fsck: status %d\n%s", status, out.data);
    cb_buf_release(&out);
}

static inline void flatten_clean(struct image_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    (void)unlink(f->path);
    assert_ok(try_flatten(f, 0, &err), &err);
    assert_clean(f->path);
}

/* What debugfs prints for @command, without the end of the last line. Owned. */
static inline char *debugfs(struct image_fixture *f, const char *command)
{
    const char *argv[] = {"debugfs", "-R", command, f->path, NULL};
    struct cb_buf out;
    assert_int_equal(run_tool(argv, &out), 0);
    while (out.len > 0 && out.data[out.len - 1] == '\n')
        out.data[--out.len] = '\0';
    return cb_buf_take(&out);
}

static inline void assert_content(struct image_fixture *f, const char *path, const char *text)
{
    CB_AUTO_FREE char *command = cb_xasprintf("cat \"%s\"", path);
    CB_AUTO_FREE char *got = debugfs(f, command);
    assert_string_equal(got, text);
}

/* debugfs' "stat" of @path holds @text. */
static inline void assert_stat(struct image_fixture *f, const char *path, const char *text)
{
    CB_AUTO_FREE char *command = cb_xasprintf("stat \"%s\"", path);
    CB_AUTO_FREE char *got = debugfs(f, command);
    if (!strstr(got, text))
        fail_msg("%s: no \"%s\" in\n%s", path, text, got);
}

static inline bool in_image(struct image_fixture *f, const char *path)
{
    CB_AUTO_FREE char *command = cb_xasprintf("stat \"%s\"", path);
    CB_AUTO_FREE char *got = debugfs(f, command);
    return strstr(got, "Inode:") != NULL;
}
