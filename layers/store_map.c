/* What is there of images as chunks, without reading a chunk. */
#include "layers/store_private.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <sys/stat.h>

void store_chunk_rel(const struct cb_digest *d, char *rel, size_t size)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(d, hex);
    (void)snprintf(rel, size, "chunks/%s.zst", hex);
}

bool store_chunk_has(struct store *s, const struct cb_digest *d)
{
    char rel[CHUNK_REL_SIZE];
    struct stat st;
    store_chunk_rel(d, rel, sizeof(rel));
    return fstatat(s->root, rel, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode);
}

char *store_map_rel(const struct cb_digest *image)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(image, hex);
    return cb_xasprintf("images/%s.chunks", hex);
}

bool store_map_has(struct store *s, const struct cb_digest *image)
{
    CB_AUTO_FREE char *rel = store_map_rel(image);
    return faccessat(s->root, rel, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

int store_map_get(struct store *s, const struct cb_digest *image, struct chunk_map *out,
                  struct cb_error *err)
{
    CB_AUTO_FREE char *rel = store_map_rel(image);
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return cb_fail(err, CB_E_NOTFOUND, "%s/%s: no such file", s->dir, rel);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s/%s", s->dir, rel);
    CB_AUTO_CHUNK_MAP map = {0};
    int rc = cb_read_fd(fd, rel, STORE_MAP_MAX, &text, err);
    if (rc == 0)
        rc = chunk_map_parse(text.data ? text.data : "", text.len, &map, err);
    if (rc < 0)
        return cb_wrap(err, "%s/%s", s->dir, rel);
    struct cb_digest d;
    chunk_map_digest(&map, &d);
    if (!cb_digest_eq(&d, image))
        return cb_fail(err, CB_E_CORRUPT, "%s/%s: is the map of another image", s->dir, rel);
    *out = map;
    map = (struct chunk_map){0};
    return 0;
}

int store_chunks_check(struct store *s, const struct cb_digest *image, struct cb_error *err)
{
    CB_AUTO_CHUNK_MAP map = {0};
    int rc = store_map_get(s, image, &map, err);
    for (size_t i = 0; i < map.n && rc == 0; i++)
        if (!store_chunk_has(s, &map.v[i].digest))
            rc = cb_fail(err, CB_E_NOTFOUND, "chunk %llu of the image is not in the store",
                         (unsigned long long)map.v[i].index);
    return rc;
}
