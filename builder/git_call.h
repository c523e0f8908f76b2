/* git_call: what libgit2 is asked over a network, in a thread, so that a repository that says
 * nothing can be given up. Such a thread goes on and nobody waits for it, so this is for programs
 * that end soon. Private to builder/git_*.c. */
#pragma once

#include "schemas/settings.h"
#include "support/error.h"

#include <git2.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* The first member of what a call asks and answers. The thread and the caller share it; the last of
 * both frees it. */
struct git_call {
    int (*run)(struct git_call *call, struct cb_error *err); /* in the thread */
    void (*release)(struct git_call *call);                  /* frees all of it */

    char *url, *proxy;
    unsigned logins; /* only the thread: ways to log in that were tried */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t answered;
    bool done, alone; /* alone: the other one has gone */
    int64_t heard_ms; /* monotonic: when the other side last said something */
    struct cb_error error;
};

/* Prepares libgit2 for this process: authorities, and no other owner's veto. */
void git_prepare(const struct settings *settings);
/* Zeroed memory of @size with a call in front. @url: for messages and logins. */
void *git_call_new(size_t size, const struct settings *settings, const char *url,
                   int (*run)(struct git_call *call, struct cb_error *err),
                   void (*release)(struct git_call *call));
/* Starts it and waits: 0, or its error, or -CB_E_TIMEOUT when nothing was heard for @silence_ms.
 * What it answered may be read after 0. git_call_leave() follows in any case. */
int git_call_wait(struct git_call *call, int64_t silence_ms, struct cb_error *err);
void git_call_leave(struct git_call *call);

/* In the thread: how to log in, that bytes came, and the proxy. */
void git_call_options(struct git_call *call, git_remote_callbacks *calls, git_proxy_options *proxy);
/* @rc of libgit2 as an error of ours. */
int git_fail(struct cb_error *err, int rc);
