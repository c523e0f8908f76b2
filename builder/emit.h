/* emit: how one build speaks. Numbers the steps, keeps the last lines of output for error texts,
 * and shows a sign of life each second while a step says nothing. Nothing that it says holds what
 * its mask looks for. Safe to call from any thread; the sink is called under the emitter's lock,
 * one call at a time. */
#pragma once

#include "builder/builder.h"
#include "builder/mask.h"
#include "builder/outlog.h"

#include <pthread.h>

enum { EMIT_TAIL_LINES = 20, EMIT_TAIL_LINE_MAX = 2000 };
/* Of one step's output; settings.step_output_mib. */
#define EMIT_OUTPUT_MAX (UINT64_C(16) << 20)

struct emitter {
    const struct build_sink *sink;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t wake;
    pthread_t ticker;
    bool stopping;
    int last_step;      /* number of the newest step */
    int open_step;      /* the step that is running, 0: none */
    int64_t started_ms; /* of the open step, monotonic */
    int64_t spoke_ms;   /* when something was last said */
    uint64_t current, total;
    char unit[16];
    char *tail[EMIT_TAIL_LINES]; /* ring of the open step's last output lines */
    unsigned tail_next;
    struct cb_buf partial;           /* a line that has not ended yet */
    struct outlog *log;              /* what is kept of its output; owned */
    json_t *record;                  /* what the open step used; owned, NULL: nothing is known */
    struct layers_progress progress; /* hand this to layers/ */
    struct mask *mask;               /* borrowed; NULL: nothing is masked */
    struct mask *own;                /* the same, when nobody lent one; owned */
    struct mask_stream streams[2];   /* stdout and stderr of the open step */
};

void emitter_init(struct emitter *e, const struct build_sink *sink);
void emitter_release(struct emitter *e);
/* How many bytes of a step's output are handed on; what is above it is left out of its middle.
 * Before the first step. */
void emit_output_limit(struct emitter *e, uint64_t bytes);

/* From here on everything is masked. @mask is borrowed until emitter_release(). No step is open. */
void emit_set_mask(struct emitter *e, struct mask *mask);
/* One more thing to mask, at any time. */
void emit_mask_more(struct emitter *e, const char *secret);
/* An error that is on its way out of the build: masks its texts. */
void emit_mask_error(struct emitter *e, struct cb_error *err);

/* @text (taken, may be NULL) as it may be said and kept. Owned. */
char *emit_masked(struct emitter *e, char *text);

/* @payload is taken. */
void emit(struct emitter *e, enum event_type type, json_t *payload);
void emit_note(struct emitter *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void emit_warning(struct emitter *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Opens a step and returns its number. Steps do not nest. */
int emit_step_start(struct emitter *e, enum phase phase, const char *layer, const char *cmd);
void emit_step_output(struct emitter *e, int stream, const void *data, size_t len);
/* What the open step used: its end tells it. */
void emit_step_used(struct emitter *e, const struct event_execution *x);
/* Ends the open step; @failure NULL: it went well. */
void emit_step_end(struct emitter *e, int exit_code, const struct cb_error *failure);
/* A step that the cache answered: started and ended at once. */
void emit_step_cached(struct emitter *e, enum phase phase, const char *layer, const char *cmd);
/* The open (or last) step's last lines of output, newline-ended; owned, "" when there were none. */
char *emit_tail(struct emitter *e);
