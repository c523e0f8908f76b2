/* push_private: a session of pushing. Private to registry_push*.c. */
#pragma once

#include "layers/registry_private.h"
#include "layers/registry_push.h"

struct push {
    struct registry *r;
    struct http_client *client; /* of who calls */
    char *from;                 /* repository to mount from, or NULL */
    size_t max_threads;
    const struct layers_progress *to; /* the caller's */
    struct layers_progress notes;     /* the session's way to it */
    pthread_mutex_t lock; /* guards what follows, and serialises the caller's functions */
    uint64_t total, done;
    int64_t shown_ms;
    bool stop;
};
void push_note(void *arg, const char *text);

enum push_end { PUSH_SENT, PUSH_MOUNTED, PUSH_THERE };
/* Brings one blob there. @s may be NULL for one in memory. */
int push_one(struct push *p, struct http_client *c, struct store *s, const struct push_blob *blob,
             enum push_end *end, struct cb_error *err);
