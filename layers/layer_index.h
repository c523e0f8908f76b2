/* layer_index: what a layer's tar holds without the bytes of its files: every entry in the order of
 * the stream, as the reader gave it, and the blocks that each file's data takes. It is written
 * while the layer is inflated and verified for the first time, and lies in the store under the
 * layer's diff_id (layers/HEX.index). With it and with a place that has the bytes
 * (layers/layer_places.h) the layer can be applied again, to whatever lies below it, without its
 * blob.
 *
 * The file is ours: a header with the SHA-256 of what follows, then records. One that is damaged,
 * of another version or of another layer is none. It is read as a stream. */
#pragma once

#include "layers/store.h"
#include "layers/tar_read.h"

struct extents;

/* What all entries of a layer take together. */
struct index_sums {
    uint64_t entries;
    uint64_t inodes;      /* that are no folder's */
    uint64_t data_blocks; /* of files */
    uint64_t link_blocks; /* of symbolic links that do not fit into an inode */
};

/* ---- writing ---- */

struct index_writer; /* opaque */
/* NULL when the store cannot be written: an index is a convenience. */
struct index_writer *index_writer_new(struct store *s, const struct cb_digest *diff_id);
void index_writer_free(struct index_writer *x); /* also when not published; NULL is fine */
/* An entry begins; its attributes and blocks may follow, then its end. All are fine with NULL. */
void index_entry(struct index_writer *x, const struct tar_entry *e);
void index_xattr(struct index_writer *x, const char *name, const void *value, size_t len);
void index_blocks(struct index_writer *x, const struct extents *blocks);
void index_link_block(struct index_writer *x);
void index_inode(struct index_writer *x); /* it gets one of its own */
void index_entry_end(struct index_writer *x);
/* The layer was all that and its diff_id is right. False when it is too odd to be kept. */
bool index_publish(struct index_writer *x);

/* ---- reading ---- */

struct index_reader; /* opaque */
/* NULL when there is none that is sound. */
struct index_reader *index_open(struct store *s, const struct cb_digest *diff_id);
void index_free(struct index_reader *x); /* NULL is fine */
const struct index_sums *index_sums(const struct index_reader *x);
/* As tar_reader_next() and tar_reader_xattr(). */
int index_next(struct index_reader *x, struct tar_entry *e, struct cb_error *err);
bool index_next_xattr(struct index_reader *x, const char **name, const void **value, size_t *len);
/* The entry's next run of blocks: they lie at @logical in the file and at @stream of all blocks of
 * the layer's files. False at the end. */
bool index_next_blocks(struct index_reader *x, uint32_t *logical, uint32_t *count,
                       uint64_t *stream);
