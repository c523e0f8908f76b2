/* session: the host's side of the talk with the agent, over a machine's stream (builder/frames.h is
 * the wire format, which the agent shares). The guest is hostile: every frame is bounded and
 * checked; a bad one ends the session with -CB_E_UNTRUSTED, silence with -CB_E_TIMEOUT, the end of
 * the stream with -CB_E_SYS ("the builder ended"). Calls block, poll the stream, and return
 * -CB_E_CANCELED soon after session_cancel() was called from a signal handler. */
#pragma once

#include "builder/frames.h"
#include "schemas/config.h"
#include "support/error.h"

#include <stdbool.h>
#include <stdint.h>

enum { STREAM_STDOUT = 1, STREAM_STDERR = 2 };

/* An answer of the metadata server. */
struct metadata_reply {
    unsigned status; /* 503 until it is set */
    const char *type;
    char *body; /* owned by who asked; or NULL */
};

struct session_callbacks {
    /* Output as it comes, in lines where the program wrote lines: a piece ends at a newline, after
     * 20 ms without one, or at 32 KiB. */
    void (*output)(void *arg, uint32_t step, int stream, const void *data, size_t len);
    void (*note)(void *arg, const char *text); /* something the agent wants said in the log */
    void (*tick)(void *arg);                   /* about once a second while waiting; may be NULL */
    /* A command asks the metadata server for @target ("/computeMetadata/v1/..."); NULL: none may.
     * Called while a request is open, and may take some seconds. */
    void (*metadata)(void *arg, const char *target, bool flavor, bool forwarded,
                     struct metadata_reply *out);
    void *arg;
};

struct session;
/* Waits for the agent's hello. @fd is taken. */
int session_open(int fd, int64_t timeout_ms, const struct session_callbacks *cb,
                 struct session **out, struct cb_error *err);
/* With a machine that was resumed from a saved state, whose agent waits for us. */
int session_open_resumed(int fd, int64_t timeout_ms, const struct session_callbacks *cb,
                         struct session **out, struct cb_error *err);
/* With an agent that was told to let itself be saved before it starts: 1 when it waits for that and
 * for session_resume(), 0 when it cannot and has said hello. */
int session_open_parking(int fd, int64_t timeout_ms, const struct session_callbacks *cb,
                         struct session **out, struct cb_error *err);
void session_free(struct session *s); /* NULL is fine */
/* Makes a booted agent write what it has to its disk and be silent: the machine can be saved when
 * this returns. Afterwards session_resume() alone may be called. */
int session_park(struct session *s, int64_t timeout_ms, struct cb_error *err);
/* Gives one that is parked the time and random numbers of its own, and waits for its hello. */
int session_resume(struct session *s, int64_t timeout_ms, struct cb_error *err);
struct machine;
/* The same with the agent of a machine that was just started: its stream is taken. The first word
 * may take 30 s and at most @most_ms (0: no such limit); every limit of the session, this one too,
 * is five times as long where the guest is emulated. One that was resumed is given what
 * session_resume() says; 1 when it parked (session_open_parking()), else 0. */
int session_with(struct machine *m, int64_t most_ms, const struct session_callbacks *cb,
                 struct session **out, struct cb_error *err);
/* Sets the session's own limits to @factor times the usual: silence after which the agent counts as
 * dead (30 s), answers to a request (5 min), taking out a layer (1 h). */
void session_scale(struct session *s, int factor);
/* How long the agent may be silent before it counts as dead. */
void session_set_silence(struct session *s, int64_t ms);
/* Async-signal-safe, process-wide: all sessions return -CB_E_CANCELED. */
void session_cancel(void);
/* Sessions work again (a process that goes on after it was canceled, tests). */
void session_cancel_reset(void);

/* Once, before the first layer. Borrowed for the call. */
struct guest_setup {
    const char *hostname;
    const struct cb_strv *image_env; /* "K=V" of the image's config */
    const char *image_user;          /* "" = root */
    const char *image_workdir;
    const char *runner_user; /* NULL: none; else made when missing */
    const char *dns;         /* nameserver to write into resolv.conf, or NULL: leave it */
    int64_t time_ms;         /* the wall clock to set, 0: leave it */
    const char *lower_dev, *scratch_dev, *output_dev; /* NULL: the driver's usual places */
    /* The scratch disk was used before, until session_shutdown_keeping(), and has @stack_layers
     * finished layers; the layer that begins next goes on where it was. */
    bool scratch_used;
    uint64_t stack_layers;
};
int session_setup(struct session *s, const struct guest_setup *g, struct cb_error *err);

struct guest_secret {
    const char *path; /* of the file that holds it, absolute */
    char *data;
    size_t len;
};
struct guest_layer {
    const char *name;
    const char *previous; /* a folder of the scratch disk with the layer's result (an upper), which
                           * its commands go on from and which is used up; NULL: they begin anew */
    bool secretive;       /* its steps get secrets, also if there is no file */
    const struct guest_secret *secrets;
    size_t n_secrets;
    const struct config_pairs *env; /* or NULL */
    const char *workdir, *user;     /* or NULL: from the setup */
};
int session_layer_begin(struct session *s, const struct guest_layer *l, struct cb_error *err);

struct guest_step {
    uint32_t step;
    const char *script; /* or NULL: argv */
    const struct cb_strv *argv;
    bool as_root;
    const struct config_pairs *env;        /* or NULL */
    bool tokens;                           /* it may ask the metadata server */
    const struct config_pairs *secret_env; /* the same, later: wins; not kept here; or NULL */
    const struct config_pairs *over_env;   /* the same, later: wins; or NULL */
    const char *user, *workdir;            /* or NULL: the layer's */
    int64_t timeout_ms;
    uint64_t memory;             /* bytes that it may have; 0: as much as there is */
    uint64_t cpu_percent;        /* of one CPU; 0: all there are */
    const struct cb_strv *files; /* that it may open; NULL or empty: all */
};
struct step_result {
    int exit_code; /* 0 to 255, or 128 + signal */
    int signal;    /* 0, or what killed it */
    bool timed_out;
    int64_t elapsed_ms, cpu_ms;
    uint64_t max_rss_kib;
    enum limit_kind limit; /* which it reached: it did not succeed, whatever its exit code is */
    uint64_t limit_value;  /* bytes, or how many */
};
int session_step(struct session *s, const struct guest_step *st, struct step_result *out,
                 struct cb_error *err);

/* Starts a process that goes on: 1 when it lived for @wait_ms, 0 and *@out when it ended before.
 * What it says until then is output of the step; that it ended later is a note. */
int session_start(struct session *s, const struct guest_step *st, int64_t wait_ms,
                  struct step_result *out, struct cb_error *err);

/* Files come into the layer: a pack (builder/pack.h), from @fd's position to its end. -CB_E_COMMAND
 * when they do not fit what is there. */
struct guest_copy {
    uint32_t step;
    const char *to;    /* absolute and clean */
    bool folder;       /* a folder, made when it is missing; else where the one file goes, or the
                        * folder that it goes into */
    int mode;          /* of what is copied, -1: its own */
    const char *owner; /* "user:group", or NULL: who runs the layer's commands */
    const char *user;  /* or NULL: the layer's */
    bool as_root;
    bool into_mounts; /* what is mounted can be the place: a drive */
    int fd;
    void (*sent)(void *arg, uint64_t bytes); /* so many of the pack were taken in; may be NULL */
    void *sent_arg;
};
int session_copy(struct session *s, const struct guest_copy *c, struct cb_error *err);

/* The steps from here on work on an upper of their own, which the next session_try() drops and
 * session_try_keep() makes part of the layer. Both end every process of the layer. */
int session_try(struct session *s, struct cb_error *err);
int session_try_keep(struct session *s, struct cb_error *err);
/* The layer's steps from here on have drives mounted: those of the machine from @first on, one at
 * each of @paths. Ends every process of the layer. What is on them is complete when the layer ends.
 * @user: whose root folders they get, NULL: who runs the layer's commands. */
int session_drives(struct session *s, size_t first, const struct cb_strv *paths, const char *user,
                   struct cb_error *err);
/* Takes in what the guest says while nothing is asked of it. */
int session_pause(struct session *s, int64_t ms, struct cb_error *err);

/* Ends the layer: kills what it left running, takes its diff out, restacks. The tar lies in the
 * output file at [offset, offset + length) when this returns. */
struct guest_diff {
    uint64_t offset, length;
    uint64_t entries, whiteouts;
};
int session_layer_end(struct session *s, struct guest_diff *out, struct cb_error *err);

/* Booted images: 1 ready (@how: "GET /health on port 8080 answered 200"; owned), 0 not within
 * @timeout_ms or the start command ended (@how says which and what the last probe gave). */
int session_wait_ready(struct session *s, int64_t timeout_ms, char **how, struct cb_error *err);
/* Keeps the talk going (output, notes, heartbeats) until the guest ends it: 0 when the stream
 * ended, -CB_E_CANCELED, or what was wrong. */
int session_attend(struct session *s, struct cb_error *err);
/* One command in the booted image, output by the callback (step 1; the start command's is step 0).
 */
int session_exec(struct session *s, const char *const *argv, struct step_result *out,
                 struct cb_error *err);
/* The same with a time limit, at which it is ended. */
int session_exec_within(struct session *s, const char *const *argv, int64_t timeout_ms,
                        struct step_result *out, struct cb_error *err);
/* Asks for sync, unmount and power-off; waits for the answer up to @timeout_ms. */
int session_shutdown(struct session *s, int64_t timeout_ms, struct cb_error *err);
/* The same in the middle of a layer, with everything on the scratch disk, to be used again
 * (guest_setup.scratch_used). */
int session_shutdown_keeping(struct session *s, struct cb_error *err);

/* A command that is given input (builder/session_shell.c). What it writes is output of its step. */
struct shell_io {
    int input; /* readable: what it gets on its stdin, until the end of file */
    /* With a terminal, its size at the moment; NULL: it gets a pipe. Asked again when @resized (a
     * descriptor, -1: none) is readable, which the call reads empty. */
    void (*size)(void *arg, unsigned *rows, unsigned *cols);
    int resized;
    void *arg;
};
/* Runs until the command ends. */
int session_shell(struct session *s, const struct guest_step *st, const struct shell_io *io,
                  struct step_result *out, struct cb_error *err);
