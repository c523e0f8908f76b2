/* The door of builder/: one build, from a config to a published template; and booting a template.
 *
 * The builder reports through a sink and never sees the queue or a terminal. It runs in a process
 * of its own (capsule-build-job): it may block, and it is the one that reads what registries,
 * tar streams and guests say. Cancelling it is SIGTERM: build_run() then stops its machine, removes
 * its work folder and returns -CB_E_CANCELED. */
#pragma once

#include "builder/sweep.h"
#include "layers/layers.h"
#include "schemas/schemas.h"

#include <stdbool.h>
#include <stdint.h>

struct build_sink {
    /* @payload is taken. seq and time are given by who stores it. Called from any thread of the
     * build, one call at a time. */
    void (*event)(void *arg, enum event_type type, json_t *payload);
    void *arg;
};

struct build_result {
    char *name;
    uint64_t version;
    bool up_to_date; /* a version with this template key was there: no machine was started */
    char workload_key[WORKLOAD_KEY_LEN + 1];
};
void build_result_release(struct build_result *r);

/* The whole build. The error's code is its class: COMMAND (a command said no), NET, CORRUPT,
 * NOTFOUND (image), ENV (this machine), CANCELED... */
int build_run(const struct workload_config *c, struct settings *settings,
              const struct build_options *o, const struct build_sink *sink,
              struct build_result *out, struct cb_error *err);

/* plan: what build_run() would do with the same arguments, found out by the same code: names are
 * resolved, keys made, the cache asked. Starts no machine, makes no base image and downloads no
 * kernel: what is missing for that is said in "unknown", and the keys that need it are null. Keeps
 * nothing but locks and the documents that they name. @explain adds why what is not cached is not.
 * *@out is owned; docs/plan.md describes it. */
int build_look(const struct workload_config *c, struct settings *settings,
               const struct build_options *o, bool explain, json_t **out, struct cb_error *err);

/* Stops the build of this process soon: a machine that runs is stopped and build_run() returns
 * -CB_E_CANCELED; without one the process ends here and now with status 143 (the store is safe at
 * any moment, and who started us sweeps). Async-signal-safe: for a SIGTERM handler. */
void build_cancel(void);
/* For whoever starts a machine inside a build or a boot: while the count is above zero,
 * build_cancel() lets the code that runs it return. */
void build_machine_count(int change);

/* shell: a shell in what the failed command of a build left: as its user, in its folder, with its
 * environment, on a copy of its files that is thrown away. */
struct shell_request {
    const char *build_id;
    const char *work_dir;
    int input; /* what the shell reads: a terminal in raw mode, or commands */
    /* The terminal's size; NULL: there is none. Asked again when @resized is readable. */
    void (*size)(void *arg, unsigned *rows, unsigned *cols);
    int resized;      /* emptied by the call; -1: none */
    const char *term; /* the terminal's TERM, or NULL */
    void (*output)(void *arg, int stream, const void *data, size_t len);
    void (*note)(void *arg, const char *text);
    void (*ready)(void *arg, const char *text); /* the shell starts next; where it is */
    void *arg;
};
/* Returns the shell's exit code. -CB_E_NOTFOUND when no state of that build is kept. @c is the
 * build's config. build_cancel() ends it. */
int build_shell(const struct workload_config *c, struct settings *settings,
                const struct shell_request *r, struct cb_error *err);

/* boot: a published template on a throwaway overlay. */
struct port_forward {
    uint16_t host, guest; /* host 0: any free port, said on stderr */
};
struct boot_request {
    const char *name;
    uint64_t version; /* 0: current */
    const struct port_forward *forwards;
    size_t n_forwards;
    const char *const *exec_argv; /* NULL: console to the terminal until the machine powers off */
    int64_t boot_timeout_ms;      /* as above */
    bool warm;                    /* from the machine that was saved, if it can go on here */
    const char *keep_drives;      /* a folder for what is written to drives; NULL: it is dropped */
    bool once;                    /* say when it is ready (or that it is not), then power off */
    const char *work_dir;
};
/* Returns the exit status for the shell: the command's with exec_argv, else 0; or a negative code.
 */
int boot_template(struct store *s, const struct settings *settings, const struct boot_request *r,
                  struct cb_error *err);

/* doctor: what this machine has. One line each. */
struct doctor_line {
    enum { DOCTOR_OK, DOCTOR_WARN, DOCTOR_BAD } state;
    char *what;   /* "kvm", "qemu-system-x86_64", "free space" */
    char *found;  /* what there is */
    char *advice; /* the command that mends it, or NULL */
};
/* @lines is owned: doctor_free(). Probes really: boots a tiny guest on KVM, starts a container. */
int doctor_run(const struct settings *settings, struct doctor_line **lines, size_t *n,
               struct cb_error *err);
void doctor_free(struct doctor_line *lines, size_t n);
