#include "layers/flatten.h"

#include "layers/ext4_fs.h"
#include "layers/ext4_load.h"
#include "layers/ext4_super.h"
#include "layers/ext4_writer.h"
#include "layers/inflate.h"
#include "layers/store_coming.h"
#include "layers/tar_apply.h"
#include "support/cleanup.h"
#include "support/limits.h"
#include "support/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define LAYER_TAR_MAX ((uint64_t)1 << 40) /* bytes inside one layer */
#define PROGRESS_STEP ((uint64_t)1 << 20)
#define LABEL_MAX 16u

CB_DEFINE_CLEANUP(writer, struct writer *, writer_free);
CB_DEFINE_CLEANUP(tree, struct tree *, tree_free);
CB_DEFINE_CLEANUP(inflate, struct inflate *, inflate_free);
CB_DEFINE_CLEANUP(coming, struct coming_reader *, coming_reader_free);
CB_DEFINE_CLEANUP(index_writer, struct index_writer *, index_writer_free);
CB_DEFINE_CLEANUP(index, struct index_reader *, index_free);
CB_DEFINE_CLEANUP(place, struct place_reader *, place_free);

/* What a try relies on; when it fails for that, the next one relies on less. */
enum effort {
    USE_ALL,   /* whatever the store has */
    USE_WHOLE, /* no layer of which some bytes are lost */
    USE_BLOBS, /* the blobs alone */
    EFFORTS
};

static const char too_small[] =
    "Raise rootfs_size_gb, or leave it out for the smallest size that fits.";

/* One image on its way. */
struct job {
    const struct flatten_spec *spec;
    const struct flatten_parent *parent; /* or NULL */
    enum effort effort;
    struct writer *w;
    struct tree *t;
    size_t copied;
};

/* What the tar reader reads from: the inflater, with a word to the progress now and then. */
struct feed {
    struct inflate *z; /* NULL: the bytes come from an image */
    const struct layers_progress *progress;
    uint64_t before, total, shown; /* compressed bytes: of earlier layers, of all, last told */
};

static void tell(struct feed *f, uint64_t now, bool last)
{
    if (!f->progress || !f->progress->bytes || (!last && now - f->shown < PROGRESS_STEP))
        return;
    f->shown = now;
    f->progress->bytes(f->progress->arg, now, f->total, "bytes");
}

static int feed_next(void *arg, const void **data, size_t *len, struct cb_error *err)
{
    struct feed *f = arg;
    int rc = inflate_next(f->z, data, len, err);
    tell(f, f->before + inflate_consumed(f->z), rc == 0);
    return rc;
}

static int check_digest(struct inflate *z, const struct layer_blob *l, struct cb_error *err)
{
    struct cb_digest got;
    uint64_t bytes;
    int rc = inflate_finish(z, &got, &bytes, err);
    if (rc < 0)
        return rc;
    if (cb_digest_eq(&got, &l->diff_id))
        return 0;
    char want[CB_DIGEST_LEN + 1], have[CB_DIGEST_LEN + 1];
    cb_digest_text(&l->diff_id, want);
    cb_digest_text(&got, have);
    return cb_fail(err, CB_E_CORRUPT, "its content is %s, the image's config says %s", have, want);
}

static int64_t wait_bytes(void *arg, uint64_t upto, struct cb_error *err)
{
    return coming_wait(arg, upto, err);
}

/* From the blob; what is learned on the way is kept. */
static int inflate_layer(struct job *j, size_t i, struct feed *f, struct cb_error *err)
{
    const struct layer_blob *l = &j->spec->layers[i];
    struct store *s = j->spec->store;
    uint64_t size = l->size;
    CB_AUTO(coming) coming = NULL;
    CB_AUTO_FD fd = store_coming_open(s, &l->digest, &size, &coming, err);
    if (fd < 0)
        return fd;
    CB_AUTO(inflate) z = NULL; /* goes before the reader that its thread waits for */
    int rc =
        inflate_start_growing(fd, size, LAYER_TAR_MAX, coming ? wait_bytes : NULL, coming, &z, err);
    if (rc < 0)
        return rc;
    f->z = z;
    const struct tar_source source = {feed_next, f};
    CB_AUTO(index_writer) index = j->spec->places ? index_writer_new(s, &l->diff_id) : NULL;
    const struct layer_input in = {
        .tar = &source, .keep_index = index, .keep_places = index ? j->spec->places : NULL};
    if (index)
        places_begin(j->spec->places, j->w, &l->diff_id);
    rc = tar_apply_input(j->w, j->t, (uint16_t)(i + 1), &in, err);
    if (rc == 0)
        rc = check_digest(z, l, err);
    if (rc == 0)
        (void)index_publish(index);
    if (rc < 0 && coming)
        coming_reader_stop(coming); /* the inflater may be waiting for bytes */
    return rc;
}

/* From an image that has the bytes: 1, 0 when there is none, or an error. */
static int copy_layer(struct job *j, size_t i, struct cb_error *err)
{
    const struct layer_blob *l = &j->spec->layers[i];
    if (j->effort == USE_BLOBS || j->spec->flags & FLATTEN_INFLATE)
        return 0;
    CB_AUTO(index) index = index_open(j->spec->store, &l->diff_id);
    CB_AUTO(place)
    place = index ? place_open(j->spec->store, &l->diff_id, index_sums(index)->data_blocks,
                               j->effort == USE_WHOLE)
                  : NULL;
    if (!place)
        return 0;
    const struct layer_input in = {.index = index, .place = place};
    int rc = tar_apply_input(j->w, j->t, (uint16_t)(i + 1), &in, err);
    if (rc == 0)
        rc = writer_flush_copies(j->w, err); /* before the files are closed */
    return rc < 0 ? rc : 1;
}

static int apply_layer(struct job *j, size_t i, struct feed *f, struct cb_error *err)
{
    int rc = copy_layer(j, i, err);
    j->copied += rc != 0;
    if (rc == 0)
        rc = inflate_layer(j, i, f, err);
    if (j->spec->places)
        places_end(j->spec->places);
    f->before += j->spec->layers[i].size;
    if (rc > 0)
        tell(f, f->before, true);
    return rc < 0 ? rc : 0;
}

/* What the layers from @first on that are known need at the least, behind the first free block and
 * inode. Every data block of every layer gets a place behind the one before, whatever a later layer
 * takes away again, and a layer with files ends with a folder behind them that stays: so this never
 * says no to what fits. It lacks the other folders, and what extents and attributes need. */
static int check_room(const struct flatten_spec *spec, size_t first, uint64_t block, uint32_t ino,
                      struct cb_error *err)
{
    uint64_t max = layout_size_down(spec->size_bytes / EXT4_BLOCK), blocks = 0, inodes = 0;
    size_t known = 0;
    for (size_t i = first; i < spec->n_layers && max > 0; i++) {
        CB_AUTO(index) x = index_open(spec->store, &spec->layers[i].diff_id);
        if (!x)
            continue;
        uint64_t files = index_sums(x)->data_blocks + index_sums(x)->link_blocks;
        uint64_t from = i == first ? ino : INO_FIRST; /* a layer may give numbers back at its end */
        blocks += files + (files > 0);
        inodes =
            from - 1 + index_sums(x)->inodes > inodes ? from - 1 + index_sums(x)->inodes : inodes;
        known++;
    }
    uint64_t end = layout_data_end(block, blocks);
    uint64_t group = (inodes + GROUP_INODES - 1) / GROUP_INODES;
    if (known == 0 || (end <= max && group <= layout_groups(max)))
        return 0;
    if (end < (group - 1) * GROUP_BLOCKS + 1)
        end = (group - 1) * GROUP_BLOCKS + 1;
    cb_fail(err, CB_E_LIMIT,
            "%llu MiB of files and %llu inodes in %zu of %zu layers need a file system of at least "
            "%llu MiB, it is to have %llu",
            (unsigned long long)(blocks + 255) / 256, (unsigned long long)inodes, known,
            spec->n_layers, (unsigned long long)(layout_size_up(end) + 255) / 256,
            (unsigned long long)(spec->size_bytes >> 20));
    return cb_hint(err, "%s", too_small);
}

static int apply_layers(struct job *j, struct cb_error *err)
{
    const struct flatten_spec *spec = j->spec;
    struct feed f = {.progress = spec->progress};
    size_t first = j->parent ? j->parent->n_layers : 0;
    for (size_t i = first; i < spec->n_layers; i++)
        f.total += spec->layers[i].size;
    for (size_t i = first; i < spec->n_layers; i++) {
        if (apply_layer(j, i, &f, err) < 0) {
            char hex[CB_HEX_LEN + 1];
            cb_digest_hex(&spec->layers[i].digest, hex);
            return cb_wrap(err, "layer %zu of %zu (%.12s)", i + 1, spec->n_layers, hex);
        }
    }
    return 0;
}

static int check_spec(const struct flatten_spec *spec, struct cb_error *err)
{
    if (spec->n_layers > CB_LAYERS_MAX)
        return cb_fail(err, CB_E_LIMIT, "an image of %zu layers; the most is %u", spec->n_layers,
                       CB_LAYERS_MAX);
    if (spec->label && strlen(spec->label) > LABEL_MAX)
        return cb_fail(err, CB_E_CONFIG, "the label \"%.64s\" is longer than %u bytes", spec->label,
                       LABEL_MAX);
    if (spec->size_bytes && layout_size_down(spec->size_bytes / EXT4_BLOCK) == 0)
        return cb_fail(err, CB_E_LIMIT, "a file system of %llu MiB; the least is %llu MiB",
                       (unsigned long long)spec->size_bytes >> 20,
                       (unsigned long long)layout_size_up(0) / 256 + 1);
    return 0;
}

/* Everything but the end. *@blocks is the size that the file system will have. */
static int fill(struct job *j, uint64_t *blocks, struct cb_error *err)
{
    int rc = j->parent ? ext4_load(j->w, j->t, err) : image_begin(j->w, j->t, err);
    if (rc == 0 && j->parent)
        rc = check_room(j->spec, j->parent->n_layers, writer_next_block(j->w),
                        writer_next_inode(j->w), err);
    if (rc == 0)
        rc = apply_layers(j, err);
    if (rc == 0)
        rc = image_write_dirs(j->w, j->t, err); /* without layers there are still two folders */
    if (rc == 0 && writer_owes(j->w))
        rc = cb_fail(err, CB_E_CORRUPT, "a file's bytes are in no image any more");
    bool full = writer_is_full(j->w);
    if (rc == 0) {
        rc = image_size(j->w, j->spec->size_bytes, blocks, err);
        full = rc < 0;
    }
    if (full)
        (void)cb_hint(err, "%s", too_small);
    return rc;
}

/* What is in the file now: all of it, or what the parent's map does not tell. */
static int make_map(struct writer *w, const struct chunk_map *parent, struct chunk_map *map,
                    struct cb_error *err)
{
    if (!parent || parent->chunk_size != CHUNK_SIZE_DEFAULT)
        return chunk_map_make(writer_fd(w), CHUNK_SIZE_DEFAULT, map, err);
    struct byte_range *v = NULL;
    size_t n = 0, cap = 0;
    uint64_t at = 0, len;
    while ((len = writer_dirty(w, at, &at)) > 0) {
        v = cb_xgrow(v, &cap, n, sizeof(*v));
        v[n++] = (struct byte_range){at, len};
        at += len;
    }
    int rc = chunk_map_update(writer_fd(w), parent, v, n, map, err);
    free(v);
    return rc;
}

static int digest(struct writer *w, const struct flatten_spec *spec,
                  const struct flatten_parent *parent, struct flatten_result *r,
                  struct cb_error *err)
{
    CB_AUTO_CHUNK_MAP map = {0};
    struct stat st;
    int rc = make_map(w, parent ? parent->chunks : NULL, &map, err);
    if (rc < 0)
        return rc;
    if (fstat(writer_fd(w), &st) < 0)
        return cb_fail_sys(err, errno, "look at the image");
    chunk_map_digest(&map, &r->digest);
    r->allocated = (uint64_t)st.st_blocks * 512;
    if (spec->chunks) {
        *spec->chunks = map;
        map = (struct chunk_map){0};
    }
    return 0;
}

static int finish(struct job *j, uint64_t blocks, struct flatten_result *out, struct cb_error *err)
{
    const struct flatten_spec *spec = j->spec;
    uint64_t length = spec->size_bytes / EXT4_BLOCK * EXT4_BLOCK;
    int rc = image_finish(j->w, blocks, length, image_uuid, spec->label, err);
    if (rc < 0)
        return rc;
    struct flatten_result r = {.size = length ? length : blocks * EXT4_BLOCK,
                               .entries = tree_count(j->t),
                               .inherited = j->parent ? j->parent->n_layers : 0,
                               .copied = j->copied};
    rc = digest(j->w, spec, j->parent, &r, err);
    if (rc < 0)
        (void)unlink(spec->out_path);
    else
        *out = r;
    return rc;
}

/* *@again: it failed in a way that the next try may not. */
static int make(const struct flatten_spec *spec, enum effort effort, struct flatten_result *out,
                bool *again, struct cb_error *err)
{
    CB_AUTO(writer) w = NULL;
    CB_AUTO(tree) t = tree_new(INO_ROOT);
    struct job j = {.spec = spec, .t = t, .effort = effort};
    const struct flatten_parent *parent = spec->parent;
    if (effort != USE_BLOBS && parent && parent->n_layers > 0 && parent->n_layers <= spec->n_layers)
        j.parent = parent;
    uint64_t blocks, max = layout_size_down(spec->size_bytes / EXT4_BLOCK);
    int rc = j.parent ? writer_clone(spec->out_path, parent->fd, max, &w, err)
                      : writer_open(spec->out_path, max, &w, err);
    j.w = w;
    if (rc == 0)
        rc = fill(&j, &blocks, err);
    if (rc == 0)
        rc = finish(&j, blocks, out, err);
    if (spec->places)
        rc < 0 ? places_clear(spec->places) : places_detach(spec->places);
    *again = (rc == -CB_E_CORRUPT || rc == -CB_E_BUG) && (j.parent || j.copied > 0);
    return rc;
}

int flatten(const struct flatten_spec *spec, struct flatten_result *out, struct cb_error *err)
{
    int rc = check_spec(spec, err);
    if (rc == 0 && !(spec->flags & FLATTEN_INFLATE)) /* before a byte is written */
        rc = check_room(spec, 0, layout_data_start(), INO_FIRST, err);
    for (enum effort e = USE_ALL; rc == 0; e++) {
        CB_AUTO_ERROR why = CB_ERROR_INIT;
        bool again;
        if (make(spec, e, out, &again, &why) == 0)
            break;
        if (!again || e + 1 == EFFORTS)
            rc = cb_error_move(err, &why);
    }
    return rc;
}

/* What an empty file system gets. */
struct content {
    struct store *s;
    const struct layer_blob *layer;
    const char *name;
};

static int fill_upper(struct writer *w, struct tree *t, const struct content *c,
                      struct cb_error *err)
{
    uint64_t size = 0;
    CB_AUTO_FD fd = store_blob_open(c->s, &c->layer->digest, &size, err);
    if (fd < 0)
        return fd;
    struct feed f = {.total = size};
    CB_AUTO(inflate) z = NULL;
    int rc = inflate_start(fd, size, LAYER_TAR_MAX, &z, err);
    if (rc < 0)
        return rc;
    f.z = z;
    const struct tar_source source = {feed_next, &f};
    rc = tar_apply_upper(w, t, 1, c->name, &source, err);
    return rc < 0 ? rc : check_digest(z, c->layer, err);
}

static int make_fs(const char *path, uint64_t size_bytes, const char *label, const uint8_t uuid[16],
                   const struct content *content, struct cb_error *err)
{
    const struct flatten_spec spec = {.size_bytes = size_bytes, .label = label};
    uint64_t blocks;
    int rc = check_spec(&spec, err);
    if (rc < 0)
        return rc;
    CB_AUTO(writer) w = NULL;
    CB_AUTO(tree) t = tree_new(INO_ROOT);
    rc = writer_open(path, 0, &w, err);
    if (rc == 0)
        rc = image_begin(w, t, err);
    if (rc == 0 && content)
        rc = fill_upper(w, t, content, err);
    if (rc == 0)
        rc = image_write_dirs(w, t, err);
    if (rc == 0)
        rc = image_size(w, size_bytes, &blocks, err);
    if (rc == 0)
        rc = image_finish(w, blocks, size_bytes / EXT4_BLOCK * EXT4_BLOCK, uuid, label, err);
    return rc;
}

static int random_uuid(uint8_t uuid[16], struct cb_error *err)
{
    if (getrandom(uuid, 16, 0) != 16)
        return cb_fail_sys(err, errno, "random bytes for a UUID");
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40); /* RFC 4122: version 4 */
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
    return 0;
}

int ext4_make_empty(const char *path, uint64_t size_bytes, const char *label, struct cb_error *err)
{
    uint8_t uuid[16];
    int rc = random_uuid(uuid, err);
    return rc < 0 ? rc : make_fs(path, size_bytes, label, uuid, NULL, err);
}

int ext4_make_upper(struct store *s, const struct layer_blob *layer, const char *name,
                    const char *path, uint64_t size_bytes, const char *label, struct cb_error *err)
{
    uint8_t uuid[16];
    const struct content c = {s, layer, name};
    int rc = random_uuid(uuid, err);
    return rc < 0 ? rc : make_fs(path, size_bytes, label, uuid, &c, err);
}

int ext4_make_drive(const char *path, uint64_t size_bytes, const char *label, struct cb_error *err)
{
    struct cb_digest d;
    CB_AUTO_FREE char *name =
        cb_xasprintf("capsule drive %s %llu", label, (unsigned long long)size_bytes);
    cb_sha256(name, strlen(name), &d);
    d.b[6] = (uint8_t)((d.b[6] & 0x0f) | 0x80); /* RFC 9562: version 8, of our own making */
    d.b[8] = (uint8_t)((d.b[8] & 0x3f) | 0x80);
    return make_fs(path, size_bytes, label, d.b, NULL, err);
}
