/* store_private: what the files of the store share. Not for anybody else. */
#pragma once

#include "layers/chunk_map.h"
#include "layers/digest_set.h"
#include "layers/store.h"

#include <pthread.h>
#include <sys/types.h>

#define STORE_SMALL_MAX                                                                            \
    (4u << 20) /* a JSON document of our own: record, manifest, note, pointer                      \
                */

struct store {
    char *dir; /* absolute */
    int root;  /* the folder, opened */

    /* A folder of our own in tmp/, made at first use and held by flock: whoever can take its lock
     * knows that its owner is gone. Works after kill -9 and between pid namespaces, where pids do
     * not. */
    pthread_mutex_t lock; /* guards what follows */
    int session;          /* -1: none yet */
    char *session_rel;    /* "tmp/NAME" */
    pid_t session_pid;    /* a forked child must not remove its parent's */
    unsigned counter;
    struct coming *coming; /* blobs on their way (store_coming.h) */
    pthread_cond_t grown;  /* one of them has more bytes, or will not get any more */

    pthread_mutex_t share_lock; /* guards what follows; taken before `lock` */
    int share_fd;               /* the file `lock`, -1: not opened yet */
    pid_t share_pid;
    unsigned sharers;         /* threads that hold it shared */
    pid_t pins_pid;           /* whose folder has the file `pins`, 0: none yet */
    struct digest_set pinned; /* what stands in it */
};

/* A new, empty file in our folder of tmp/. Returns its owned fd, and its path below the store in
 * *@rel (owned). */
int store_tmp_open(struct store *s, const char *what, char **rel, struct cb_error *err);
/* Replaces the file @rel atomically and durably. */
int store_replace(struct store *s, const char *rel, const void *p, size_t n, struct cb_error *err);
/* Reads the small file @rel, or -CB_E_NOTFOUND. */
int store_read(struct store *s, const char *rel, struct cb_buf *out, struct cb_error *err);
/* Makes the names in the folder @rel durable. */
int store_sync_dir(struct store *s, const char *rel, struct cb_error *err);
/* mkdir for one folder whose parent is there; one that is there is fine. */
int store_mkdir(struct store *s, const char *rel, struct cb_error *err);

/* The path below the store of a file in our folder of tmp/ (made when there is none). Owned, or
 * NULL. */
char *store_session_path(struct store *s, const char *name);

/* layers/store_pin.c: see there. Shared holds may nest and may be of several threads. */
void store_share(struct store *s);
void store_unshare(struct store *s);
/* Waits for all who share it. Returns an owned fd that holds the lock until it is closed; not while
 * this thread shares it. */
int store_lock_alone(struct store *s, struct cb_error *err);

enum store_pin { PIN_BLOB, PIN_IMAGE, PIN_LOWER };
/* Writes down that this process uses it. Called with the lock shared, before looking whether it is
 * there. */
void store_pin(struct store *s, enum store_pin kind, const struct cb_digest *d);
void store_pin_version(struct store *s, const char *name, uint64_t version);
/* What all living processes use: lines such as "blob HEX", and maps of images that are being
 * stored. Called with the lock alone, after listing what is there. */
typedef void (*store_pin_fn)(void *arg, const char *line);
typedef void (*store_map_fn)(void *arg, const struct chunk_map *map);
void store_read_pins(struct store *s, store_pin_fn fn, store_map_fn map_fn, void *arg);

/* layers/store_map.c. @rel: chunks/HEX.zst. */
#define CHUNK_REL_SIZE (sizeof("chunks/.zst") + CB_HEX_LEN)
void store_chunk_rel(const struct cb_digest *d, char *rel, size_t size);
bool store_chunk_has(struct store *s, const struct cb_digest *d);
char *store_map_rel(const struct cb_digest *image); /* "images/HEX.chunks", owned */
bool store_map_has(struct store *s, const struct cb_digest *image);
/* The map of an image, checked against the image's digest. *@out is owned. -CB_E_NOTFOUND. */
int store_map_get(struct store *s, const struct cb_digest *image, struct chunk_map *out,
                  struct cb_error *err);
/* All chunks of the image's map are there, or -CB_E_NOTFOUND. */
int store_chunks_check(struct store *s, const struct cb_digest *image, struct cb_error *err);

/* layers/store_chunk.c. Reads a chunk of at most @max bytes into @out (which holds as many), and
 * checks it. @z and @scratch are the caller's, for use again. */
struct ZSTD_DCtx_s;
int store_chunk_read(struct store *s, const struct cb_digest *d, uint32_t max,
                     struct ZSTD_DCtx_s *z, struct cb_buf *scratch, unsigned char *out, size_t *len,
                     struct cb_error *err);

/* layers/store_template.c: the versions of @name in *@v (owned), unordered, and which is in use (0:
 * none that can be told). Several may be there while nobody publishes. */
int store_template_versions(struct store *s, const char *name, uint64_t **v, size_t *n,
                            uint64_t *current, struct cb_error *err);

/* Removes a version and its lookup by key, durably. Called with the lock alone. */
int store_version_unlink(struct store *s, const char *name, uint64_t version, struct cb_error *err);

/* What a map that is pinned is called in tmp/, behind its number. */
#define STORE_PINNED_MAP "pinned-map"
#define STORE_MAP_MAX ((size_t)256 << 20) /* bytes of a map's document */

/* For tests of what a crash leaves: called before each thing that changes the store's content. */
extern void (*store_step_hook)(const char *what);
static inline void store_step(const char *what)
{
    if (store_step_hook)
        store_step_hook(what);
}

/* Marks @rel as used now: its modification time says when something was last used. */
void store_touch(struct store *s, const char *rel);
