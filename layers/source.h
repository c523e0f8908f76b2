/* source: base images that lie on this machine: an OCI layout (a folder, or a tar of one), an
 * archive of `docker save`, a template. Private to layers/.
 *
 * What comes from them is as foreign as what a registry sends. Names are looked up below the folder
 * alone (openat2) or in an index of the archive that we made ourselves; a blob is read once, into
 * the store, and has its digest there or does not appear. */
#pragma once

#include "layers/image.h"

#include <stdbool.h>
#include <stdint.h>

/* --- a tar as a folder of members (source_tar.c) --- */

/* Where the members of an uncompressed tar lie. Links are kept as such. */
struct tar_index;
/* Reads every header in @fd (@size bytes; borrowed for the call). -CB_E_CORRUPT for what no tar is
 * and for a member that reaches beyond the end, -CB_E_LIMIT for more members than any image needs.
 */
int tar_index_read(int fd, uint64_t size, struct tar_index **out, struct cb_error *err);
void tar_index_free(struct tar_index *t); /* NULL is fine */
/* The member @name (as archive_member_name() makes it), links inside the archive followed; of two
 * of one name the later. -CB_E_NOTFOUND; -CB_E_UNTRUSTED for a link that leads out. */
int tar_index_find(const struct tar_index *t, const char *name, uint64_t *offset, uint64_t *size,
                   struct cb_error *err);

/* --- a folder or an archive (source.c) --- */

struct source {
    char *path; /* for messages; owned */
    int fd;     /* the folder (O_PATH), or the archive, unpacked when it was compressed */
    struct tar_index *tar;
    bool unpacked; /* @fd is a temporary file: opening the source again costs as much again */
};
/* @path is absolute. -CB_E_NOTFOUND when there is nothing. */
int source_open(struct store *s, const char *path, struct source *out, struct cb_error *err);
void source_close(struct source *src);

struct source_file {
    int fd; /* owned */
    uint64_t offset, size;
};
int source_find(const struct source *src, const char *name, struct source_file *out,
                struct cb_error *err);
void source_file_close(struct source_file *f);
/* A whole small file. */
int source_read(const struct source *src, const char *name, struct cb_buf *out,
                struct cb_error *err);
/* The same when it must have this digest and size; then also into the store. */
int source_read_blob(struct store *s, const struct source *src, const char *name,
                     const struct cb_digest *digest, uint64_t size, struct cb_buf *out,
                     struct cb_error *err);

/* How an import goes on; @p may be NULL. */
struct source_progress {
    const struct layers_progress *p;
    uint64_t done, total;
    int64_t shown_ms;
};
/* Brings @f into the store as the blob @digest. */
int source_import(struct store *s, const struct source_file *f, const struct cb_digest *digest,
                  struct source_progress *sp, struct cb_error *err);

/* By its first bytes: an OCI layer media type, or "xz". */
int source_sniff(const struct source_file *f, const char **type, struct cb_error *err);
/* The digest of its bytes as they are. */
int source_digest(const struct source_file *f, struct cb_digest *out, struct cb_error *err);
/* Brings what is inside an xz file into the store as the blob @digest, and says its size. */
int source_import_xz(struct store *s, const struct source_file *f, const struct cb_digest *digest,
                     uint64_t *size, struct cb_error *err);

/* Writes an image manifest into the store for a source that has none. The same config and layers
 * give the same one. */
int source_put_manifest(struct store *s, const struct cb_digest *config, uint64_t config_size,
                        const struct layer_blob *layers, size_t n, struct cb_digest *out,
                        struct cb_error *err);

/* --- the three kinds --- */

/* Finds the image that @ref means and loads it (image_load()); the documents are then in the store,
 * of an archive that is compressed the layers too. */
int oci_layout_resolve(struct store *s, const struct image_ref *ref, const char *arch,
                       struct base_image *out, struct cb_error *err);
int docker_archive_resolve(struct store *s, const struct image_ref *ref, const char *arch,
                           const struct layers_progress *p, struct base_image *out,
                           struct cb_error *err);
int template_resolve(struct store *s, const struct image_ref *ref, const char *arch,
                     struct base_image *out, struct cb_error *err);
/* The same by a lock. Of an OCI layout the manifest with that digest, whatever its index says. */
int oci_layout_resolve_locked(struct store *s, const struct image_ref *ref,
                              const struct cb_digest *manifest, const char *arch,
                              struct base_image *out, struct cb_error *err);
/* The version of the template, newest first, that has this manifest. */
int template_resolve_locked(struct store *s, const struct image_ref *ref,
                            const struct cb_digest *manifest, const char *arch,
                            struct base_image *out, struct cb_error *err);
/* Brings the layers that the store lacks. */
int oci_layout_fetch(struct store *s, const struct base_image *b, const struct layers_progress *p,
                     struct cb_error *err);
int docker_archive_fetch(struct store *s, const struct base_image *b,
                         const struct layers_progress *p, struct cb_error *err);

/* --- all of them (source_any.c) --- */

bool source_is_local(enum source_kind kind);
/* Reads the source. When it is gone and @policy is not PULL_ALWAYS: what it last was, from the
 * store, with a note. */
int source_resolve(struct store *s, const struct image_ref *ref, const char *arch,
                   enum pull_policy policy, const struct layers_progress *p, struct base_image *out,
                   struct cb_error *err);
int source_resolve_locked(struct store *s, const struct image_ref *ref,
                          const struct cb_digest *manifest, const char *arch,
                          const struct layers_progress *p, struct base_image *out,
                          struct cb_error *err);
int source_fetch(struct store *s, const struct base_image *b, const struct layers_progress *p,
                 struct cb_error *err);
