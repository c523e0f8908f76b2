#include "layers/prefix.h"

#include "layers/store_private.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define FOLDER "prefixes"
#define RECORD_MAX ((size_t)256 << 20) /* above the largest map: 4 TiB in pieces of 1 MiB */

/* A record: this, and the map as a document. Little-endian as the machines that make images. */
struct head {
    char magic[16]; /* "capsule prefix 1" */
    uint32_t folder, zero;
    struct cb_digest name;
    uint64_t ino, size;   /* of the file: another one may have its name by now */
    struct cb_digest map; /* SHA-256 of what follows */
};
static const char magic[] = "capsule prefix 1";
static const char *const folders[PREFIX_FOLDER_N] = {"images", "lowers"};

static void key_of(const struct layer_blob *layers, size_t n, char *rel, size_t size)
{
    static const char what[] = "capsule-build: layers of an ext4 image";
    const uint32_t format = PREFIX_FORMAT;
    struct cb_hasher *h = cb_hasher_new();
    struct cb_digest d;
    char hex[CB_HEX_LEN + 1];
    cb_hasher_update(h, what, sizeof(what));
    cb_hasher_update(h, &format, sizeof(format));
    for (size_t i = 0; i < n; i++)
        cb_hasher_update(h, layers[i].diff_id.b, sizeof(layers[i].diff_id.b));
    cb_hasher_final(h, &d);
    cb_hasher_free(h);
    cb_digest_hex(&d, hex);
    (void)snprintf(rel, size, FOLDER "/%s", hex);
}

void prefix_release(struct prefix *p)
{
    cb_close(p->fd);
    chunk_map_release(&p->chunks);
    *p = (struct prefix)PREFIX_INIT;
}

static char *image_rel(const struct head *h)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&h->name, hex);
    return cb_xasprintf("%s/%s.ext4", folders[h->folder], hex);
}

/* The image of a record, locked as store_lower_open() does, or -1. */
static int open_image(struct store *s, const struct head *h, struct stat *st)
{
    CB_AUTO_FREE char *rel = image_rel(h);
    CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB) < 0 || fstat(fd, st) < 0 || !S_ISREG(st->st_mode))
        return -1;
    store_touch(s, rel);
    return cb_take_fd(&fd);
}

static bool read_head(const char *data, size_t len, struct head *h)
{
    if (len < sizeof(*h))
        return false;
    memcpy(h, data, sizeof(*h));
    return memcmp(h->magic, magic, sizeof(h->magic)) == 0 && h->zero == 0 &&
           h->folder < PREFIX_FOLDER_N;
}

static bool take_record(struct store *s, const struct cb_buf *b, struct prefix *out)
{
    struct head h;
    struct stat st;
    struct cb_digest sum;
    if (!read_head(b->data, b->len, &h))
        return false;
    cb_sha256(b->data + sizeof(h), b->len - sizeof(h), &sum);
    if (!cb_digest_eq(&sum, &h.map) ||
        chunk_map_parse(b->data + sizeof(h), b->len - sizeof(h), &out->chunks, NULL) < 0)
        return false;
    out->fd = open_image(s, &h, &st);
    return out->fd >= 0 && st.st_ino == h.ino && (uint64_t)st.st_size == h.size &&
           out->chunks.length == h.size;
}

static int read_record(struct store *s, const char *rel, struct cb_buf *out)
{
    CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -1 : cb_read_fd(fd, rel, RECORD_MAX, out, NULL);
}

int prefix_find(struct store *s, const struct layer_blob *layers, size_t n, struct prefix *out)
{
    char rel[sizeof(FOLDER) + 1 + CB_HEX_LEN + 1];
    for (; n > 0; n--) {
        CB_AUTO_BUF b = CB_BUF_INIT(RECORD_MAX);
        key_of(layers, n, rel, sizeof(rel));
        if (read_record(s, rel, &b) < 0)
            continue;
        *out = (struct prefix)PREFIX_INIT;
        out->n_layers = n;
        if (take_record(s, &b, out))
            return 1;
        prefix_release(out);
        (void)unlinkat(s->root, rel, 0);
    }
    *out = (struct prefix)PREFIX_INIT;
    return 0;
}

int prefix_put(struct store *s, const struct layer_blob *layers, size_t n,
               enum prefix_folder folder, const struct cb_digest *name,
               const struct chunk_map *chunks, struct cb_error *err)
{
    char rel[sizeof(FOLDER) + 1 + CB_HEX_LEN + 1];
    struct head h = {.folder = folder, .name = *name, .size = chunks->length};
    struct stat st;
    memcpy(h.magic, magic, sizeof(h.magic));
    CB_AUTO_FD fd = open_image(s, &h, &st);
    if (fd < 0 || (uint64_t)st.st_size != chunks->length)
        return cb_fail(err, CB_E_NOTFOUND, "an image that was published a moment ago is gone");
    h.ino = st.st_ino;
    CB_AUTO_BUF map = CB_BUF_INIT(RECORD_MAX);
    CB_AUTO_BUF all = CB_BUF_INIT(RECORD_MAX);
    int rc = chunk_map_dump(chunks, &map, err);
    if (rc < 0)
        return rc;
    cb_sha256(map.data, map.len, &h.map);
    if (cb_buf_add(&all, &h, sizeof(h)) < 0 || cb_buf_add(&all, map.data, map.len) < 0)
        return cb_fail(err, CB_E_LIMIT, "the map of an image is too large");
    key_of(layers, n, rel, sizeof(rel));
    return store_replace(s, rel, all.data, all.len, err);
}

void prefix_trim(struct store *s)
{
    CB_AUTO_FREE char *folder = cb_xasprintf("%s/" FOLDER, s->dir);
    CB_AUTO_DIR d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        struct head h;
        struct stat st;
        CB_AUTO_FD fd = e->d_name[0] == '.'
                            ? -1
                            : openat(dirfd(d), e->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            continue;
        char raw[sizeof(h)];
        bool good =
            cb_pread_all(fd, raw, sizeof(raw), 0, NULL) == 0 && read_head(raw, sizeof(raw), &h);
        CB_AUTO_FREE char *rel = good ? image_rel(&h) : NULL;
        if (!good || fstatat(s->root, rel, &st, AT_SYMLINK_NOFOLLOW) < 0 || st.st_ino != h.ino)
            (void)unlinkat(dirfd(d), e->d_name, 0);
    }
}
