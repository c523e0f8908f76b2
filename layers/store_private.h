/* store_private: what the files of the store share. Not for anybody else. */
#pragma once

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
