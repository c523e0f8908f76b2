/* cli: what the subcommands share. Private to cli/.
 *
 * Two programs are made of this folder: capsule-build, which parses no image and talks to no
 * registry, and of job/ capsule-build-job, which does. What stands here is for both. */
#pragma once

#include "layers/store.h"
#include "queue/queue.h"
#include "schemas/schemas.h"

#include <stdio.h>

enum cli_exit {
    EXIT_DONE = 0,
    EXIT_BUILD_FAILED = 1,
    EXIT_BAD_INPUT = 2,
    EXIT_ENVIRONMENT = 3,
    EXIT_INTERRUPTED = 130,
};

enum progress_mode { PROGRESS_AUTO, PROGRESS_PLAIN, PROGRESS_TTY, PROGRESS_JSON };

/* What the command line said, whatever the subcommand; each reads what is its own. */
struct cli_args {
    const char *program; /* argv[0] */
    const char *command;
    struct cb_strv words; /* positional arguments */
    const char *config_file;
    struct cb_strv mirrors;
    struct cb_strv refresh;
    const char *keep_drives;
    const char *kernel;
    const char *isolation, *pull;
    enum progress_mode progress;
    bool force, clean, no_boot_check, allow_unknown, allow_host_network;
    bool follow, json, once, warm, explain, locked;
    int64_t boot_timeout_ms;
    uint16_t forwards[32][2]; /* host (0: any free one), guest */
    size_t n_forwards;
    char **exec_argv; /* borrowed from argv */
    uint64_t version;
    uint64_t max_bytes, keep; /* gc; 0: what the settings say */
    int64_t min_age_s;        /* gc; -1: not given */
    bool sbom, provenance, stat, sizes;
    unsigned depth, top; /* 0: the defaults */
    const char *verify_key;
    bool dry_run, repair;
    const char *format, *output, *with_kernel, *drive; /* export */
    uint64_t size;                                     /* bytes; 0: not given */
    bool compress, keep_zstd;
};

/* Each returns the exit status. main.c says in which program it is. */
int cmd_build(struct cli_args *a);
int cmd_run_job(struct cli_args *a);
/* run-job when this program is not of the supervisor's build: tells it so. The exit status. */
int run_job_refuse(const struct cb_error *why);
int cmd_validate(struct cli_args *a);
int cmd_resume(struct cli_args *a);
int cmd_shell(struct cli_args *a);
int cmd_plan(struct cli_args *a);
int cmd_logs(struct cli_args *a);
int cmd_builds(struct cli_args *a);
int cmd_templates(struct cli_args *a);
int cmd_show(struct cli_args *a);
int cmd_boot(struct cli_args *a);
int cmd_export(struct cli_args *a);
int cmd_push(struct cli_args *a);
int cmd_doctor(struct cli_args *a);
int cmd_gc(struct cli_args *a);
int cmd_df(struct cli_args *a);
int cmd_verify(struct cli_args *a);
int cmd_diff(struct cli_args *a);
int cmd_show_sizes(struct cli_args *a);

/* Enqueues a build of @c with @o, runs it and shows it, or attaches to the same one that runs. The
 * exit status, after printing. */
int cli_run_build(const struct cli_args *a, struct settings *s, const struct workload_config *c,
                  struct queue *q, const struct build_options *o);

/* show --sbom, --provenance, --verify-signature. The exit status, after printing. */
int cli_show_documents(struct cli_args *a, struct store *store, const struct template_manifest *m);
/* NAME or NAME:VERSION. The exit status, after printing. */
int cli_remove_template(struct store *store, const char *word);

/* @text up to the first @end of "" (all of it) or of one of its characters, with its newlines and
 * tabs and without other control characters, also those of C1: what people read holds text of the
 * user's, of registries and of guests, which must not be able to move a reader's cursor. */
void cli_put_text(FILE *out, const char *text, const char *end);
/* Prints "capsule-build: <message>" and the hint on stderr; returns the exit status of the class.
 */
int cli_fail(const struct cb_error *err);
/* The same for a file whose @p are printed already: a single one is not said twice. */
int cli_refuse(const struct config_problems *p, const struct cb_error *err);
/* The exit status for an error class by its name ("CONFIG", "ENV"...), EXIT_BUILD_FAILED otherwise.
 */
int cli_exit_of_class(const char *class_name);

/* Settings from files and environment, then the flags. 0, or the exit status, after printing. */
int cli_settings(const struct cli_args *a, struct settings **out);
/* The flags that made the settings, for a child that must come to the same. */
void cli_settings_argv(const struct cli_args *a, struct cb_strv *argv);
/* 0, or the exit status after printing. */
int cli_open_queue(const struct settings *s, struct queue **out);
int cli_open_store(const struct settings *s, struct store **out);
/* The first word, NAME or NAME:VERSION, with --version; version 0 is the current one. *@name is
 * owned. 0, or the exit status after printing. */
int cli_template_name(const struct cli_args *a, char **name, uint64_t *version);
/* The path of capsule-build-job, and the environment in which it will start. Owned, or NULL after
 * printing (then the exit status is EXIT_ENVIRONMENT). */
char *cli_job_program(void);
/* The version, and with it the sources that this program was made from (cmake/BuildId.cmake). */
extern const char cli_version[], cli_build_id[];
#define CLI_BUILD_ID_VARIABLE "CAPSULE_BUILD_FRONT"

/* home/work/NAME. Owned. */
char *cli_work_dir(const struct settings *s, const char *name);
/* Marks builds whose process is gone as failed, and removes what they left. Errors are only logged:
 * cleaning up must not stand in the way of new work. */
void cli_clean_up_after_the_dead(const struct settings *s, struct queue *q);
/* Calls @fn with the settings and the queue, after what the dead left was removed. Its exit status,
 * or that of what could not be opened. */
int cli_with_queue(struct cli_args *a,
                   int (*fn)(struct cli_args *, struct settings *, struct queue *));
/* The config that a build was of. Owned: config_free(). */
int cli_config_of(const struct build_record *r, struct workload_config **out, struct cb_error *err);
void cli_print_problems(const struct config_problems *p);

/* render: events as a person or a program reads them. What it shows comes from stored events alone.
 */
struct render;
struct render *render_new(enum progress_mode mode, FILE *out, const char *build_id);
void render_free(struct render *r);
void render_event(struct render *r, const struct event_out *ev);
/* What the end of the build says to do next, or NULL. Borrowed. */
const char *render_hint(const struct render *r);
/* Once in a while, while nothing comes: turns the spinner. */
void render_tick(struct render *r);
/* Reads what is new in @q and shows it; returns the last status seen or -1. */
int render_catch_up(struct render *r, struct queue *q, const char *build_id, uint64_t *seq);
/* Follows @build_id until it is over, or until @stop_fd is readable (then returns -1 with
 * @interrupted set). Returns the final status. */
int render_follow(struct render *r, struct queue *q, const char *build_id, uint64_t *seq,
                  int stop_fd, bool *interrupted);
/* viewer: shows a build's events from a thread of its own, so that who runs the build never waits
 * for a terminal. 0 and an owned *@out, or an exit status after printing. @render and @build_id are
 * borrowed until viewer_finish() returned true. */
struct viewer;
int viewer_start(const struct settings *s, struct render *render, const char *build_id,
                 struct viewer **out);
/* There is something new. (A worker's `committed`; @viewer is a struct viewer.) */
void viewer_wake(void *viewer);
/* Shows what is left and frees it: true. False when @stop_fd became readable first, because nobody
 * reads our output: then the thread is still at it, and the process can only end. */
bool viewer_finish(struct viewer *v, int stop_fd);

/* A signalfd for SIGINT, SIGTERM and SIGHUP, which are blocked from then on. */
int cli_signal_fd(void);
