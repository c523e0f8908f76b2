/* Templates for tests of the store: small images in chunks, with everything that they need. */
#pragma once

#include "store_check.h"

#include "layers/chunk_map.h"
#include "layers/store_gc.h"

#include <fcntl.h>
#include <sys/stat.h>

CB_DEFINE_CLEANUP(manifest, struct template_manifest *, template_manifest_free);

#define BUILD_MIB ((off_t)1 << 20)

/* An image of 8 MiB in the store's tmp/: two chunks that all have and one of @seed. Owned path. */
static inline char *build_image(struct store *s, int seed, struct chunk_map *map)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char *path = store_tmp_path(s, "image");
    CB_AUTO_FD fd = path ? open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
    CB_AUTO_FREE char *own = cb_xasprintf("image %d", seed);
    if (fd < 0 || ftruncate(fd, 8 * BUILD_MIB) < 0 || pwrite(fd, "base", 4, 77) != 4 ||
        pwrite(fd, "more of it", 10, 3 * BUILD_MIB - 5) != 10 ||
        pwrite(fd, own, strlen(own), 6 * BUILD_MIB) != (ssize_t)strlen(own) ||
        chunk_map_make(fd, CHUNK_SIZE_DEFAULT, map, &err) < 0) {
        free(path);
        return NULL;
    }
    return path;
}

/* Publishes @name with the image of @seed as the next version, as a build does: 0 and *@version
 * (may be NULL), or what failed. */
static inline int build_template(struct store *s, const char *name, int seed, uint64_t *version,
                                 struct cb_error *err)
{
    static const char sample[] =
        CB_SOURCE_DIR "/tests/fuzz/corpus/template_manifest/full-without-chunks.json";
    CB_AUTO_CHUNK_MAP map = {0};
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO(manifest) m = NULL;
    CB_AUTO_FREE char *layer = cb_xasprintf("layer %d", seed);
    CB_AUTO_FREE char *path = build_image(s, seed, &map);
    if (!path)
        return cb_fail(err, CB_E_ENV, "no image could be made");
    int rc = cb_read_file(sample, 1 << 20, &text, err);
    if (rc == 0)
        rc = template_manifest_parse(text.data, text.len, &m, err);
    if (rc < 0)
        return rc;
    free(m->name);
    m->name = cb_xstrdup(name);
    memset(&m->template_key, seed + 1, sizeof(m->template_key));
    memset(&m->modules, 0, sizeof(m->modules));
    chunk_map_digest(&map, &m->image);
    m->image_size = map.length;
    m->chunk_size = map.chunk_size;
    m->n_chunks = map.n;
    struct store_chunks chunks = {0};
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    rc = store_chunks_put(s, fd, &map, NULL, &chunks, err);
    m->chunk_map = chunks.map;
    if (rc == 0)
        rc = store_blob_put(s, "kernel", 6, &m->kernel, err);
    if (rc == 0)
        rc = store_blob_put(s, "initramfs", 9, &m->initramfs, err);
    for (size_t i = 0; i < m->n_layers && rc == 0; i++)
        rc =
            store_blob_put(s, i ? layer : "base", i ? strlen(layer) : 4, &m->layers[i].digest, err);
    if (rc == 0)
        rc = store_image_publish(s, path, &m->image, err);
    if (rc == 0)
        rc = store_template_publish(s, m, true, err);
    if (rc == 0 && version)
        *version = m->version;
    return rc;
}

/* A new handle: what the old one pinned is free. */
static inline void store_again(struct store_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    store_free(cb_take_ptr(&f->store));
    assert_ok(store_open(f->dir, &f->store, &err), &err);
}

/* Sets the last use of every file in a folder, in seconds from 1970. */
static inline void used_at(const struct store_fixture *f, const char *rel, time_t when)
{
    const struct timespec t[2] = {{.tv_sec = when}, {.tv_sec = when}};
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", f->dir, rel);
    assert_int_equal(utimensat(AT_FDCWD, path, t, 0), 0);
}
