/* proc: children. argv arrays (no shell), explicit environment, explicit descriptors, and a
 * parent-death signal so that nothing outlives us, also after kill -9.
 *
 * The parent-death signal belongs to the *thread* that starts the child: start long-lived children
 * from the main thread only. */
#pragma once

#include "support/buf.h"
#include "support/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct cb_proc_fd {
    int ours;   /* open in this process; stays open here */
    int theirs; /* its number in the child */
};

struct cb_proc_spec {
    const char *const
        *argv; /* NULL-terminated; argv[0] without a slash is looked up by cb_find_program */
    const char *const *env; /* NULL-terminated "K=V"; NULL: ours */
    const char *cwd;        /* NULL: ours */
    const struct cb_proc_fd *fds;
    size_t n_fds;        /* 0, 1 and 2 are /dev/null unless named here; all others are closed */
    bool own_session;    /* setsid: a terminal's Ctrl-C does not reach it */
    bool outlive_parent; /* no parent-death signal */
    unsigned unshare;    /* CLONE_NEW* flags for unshare(2) in the child before exec; 0: none.
                            With CLONE_NEWUSER our uid and gid are mapped to 0. */
    const int *setns;    /* namespaces to join in the child before that, in this order */
    size_t n_setns;
};

/* Starts it. Returns its pid, or -CB_E_ENV when the program does not exist (the message names it),
 * or -CB_E_SYS; exec's own error is reported here, not by an exit status. The caller reaps it. */
pid_t cb_proc_start(const struct cb_proc_spec *spec, struct cb_error *err);

/* Waits up to @timeout_ms (-1: for ever). Returns 1 and *@status (as waitpid's) when it ended,
 * 0 when the time ran out. */
int cb_proc_wait(pid_t pid, int64_t timeout_ms, int *status, struct cb_error *err);

/* SIGTERM to the process (to its group when @group), @grace_ms later SIGKILL; reaps it. pid <= 0 is
 * fine. */
void cb_proc_stop(pid_t pid, bool group, int64_t grace_ms);

struct cb_proc_result {
    int status;        /* as waitpid's */
    struct cb_buf out; /* stdout, up to the ceiling; the rest is read and dropped */
    struct cb_buf err; /* stderr, its last 64 KiB */
};
void cb_proc_result_release(struct cb_proc_result *r);

/* Runs to the end with @input (may be NULL) on stdin. Returns 0 when it ran, whatever its exit
 * status; -CB_E_TIMEOUT when it was killed for taking longer than @timeout_ms. The spec's own
 * descriptors 0 to 2 must be unset. */
int cb_proc_run(const struct cb_proc_spec *spec, const char *input, size_t max_out,
                int64_t timeout_ms, struct cb_proc_result *res, struct cb_error *err);

/* Raises CB_E_SYS "<what>: exit status 1: <last line of stderr>" unless it exited with 0. */
int cb_proc_check(const struct cb_proc_result *r, const char *what, struct cb_error *err);

/* "exit status 3", "killed by SIGSEGV". @out holds at least 64 bytes. */
void cb_status_text(int status, char *out, size_t size);
/* "SIGKILL"; "signal 63" for one without a name. Static storage for the known ones. */
const char *cb_signal_name(int sig);
