/* error: what failed, where, and whether it is worth another try.
 *
 * A function that can fail takes a `struct cb_error *` last and returns a negative code
 * (-CB_E_...) or a non-negative result. The error is raised once, where it happens, with words a
 * user understands; every caller on the way up may put what *it* was doing in front of it
 * (cb_wrap); a main or an API prints it once. Passing NULL for the error is allowed: the code is
 * still returned. An error object belongs to one thread at a time. */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

enum cb_code {
    CB_OK = 0,
    CB_E_CONFIG,   /* the user's input is wrong: final, exit status 2 */
    CB_E_NOTFOUND, /* a named thing does not exist: final */
    CB_E_CONFLICT, /* somebody else was first (lease, pointer, lock): final for this attempt */
    CB_E_LIMIT,    /* a size or count is above what we accept: final */
    CB_E_CORRUPT,  /* bytes are not what they claim to be (digest, truncated): final for this source
                    */
    CB_E_UNTRUSTED, /* input that looks like an attack, or TLS that does not verify: final */
    CB_E_AUTH,      /* not allowed, or the credentials were refused: final */
    CB_E_NET,       /* the network or a remote server failed: worth another try */
    CB_E_TIMEOUT,   /* nothing happened for too long: worth another try */
    CB_E_CANCELED,  /* somebody asked us to stop */
    CB_E_SYS,       /* the operating system said no; `sys` holds the errno */
    CB_E_ENV,       /* this machine lacks something (tool, kernel, space, right): exit status 3 */
    CB_E_COMMAND,   /* a command of the user failed: final, never retried by itself */
    CB_E_BUG,       /* our own mistake */
    CB_E_N
};

/* Where in a file of the user's; line and column count from 1, 0 means unknown. */
struct cb_loc {
    char *file; /* owned, may be NULL */
    char *path; /* owned, may be NULL: "layers[0].name" */
    int line;
    int column;
};

struct cb_error {
    enum cb_code code; /* CB_OK: the slot is empty */
    int sys;           /* errno behind it, or 0 */
    struct cb_loc loc;
    char *msg;  /* owned; grows outward: "build web: layer 3: fetch blob: ..." */
    char *hint; /* owned, may be NULL: what to do next, a whole sentence */
};

/* clang-format off */
#define CB_ERROR_INIT {CB_OK, 0, {NULL, NULL, 0, 0}, NULL, NULL}
/* clang-format on */

/* Frees what the error holds and makes it empty and reusable. NULL is fine. */
void cb_error_clear(struct cb_error *err);

/* Raises. The slot must be empty (asserted): an error is never lost under another one.
 * Returns -code, so that raising is one statement: `return cb_fail(err, CB_E_NET, "...")`. */
int cb_fail(struct cb_error *err, enum cb_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The same for a failed system call: code CB_E_SYS (CB_E_ENV for ENOSPC, EROFS and EDQUOT), with
 * strerror(@sys) at the end. */
int cb_fail_sys(struct cb_error *err, int sys, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int cb_vfail(struct cb_error *err, enum cb_code code, const char *fmt, va_list ap)
    __attribute__((format(printf, 3, 0)));

/* Puts "<fmt>: " in front of the message and returns -code of the error it holds. */
int cb_wrap(struct cb_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Sets what the user should do next, unless a hint is there already. Returns -code. */
int cb_hint(struct cb_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Moves @from into the empty @to; @from is empty afterwards. Returns -code. */
int cb_error_move(struct cb_error *to, struct cb_error *from);

/* True when the same thing may work a moment later (NET, TIMEOUT). */
bool cb_error_is_transient(const struct cb_error *err);

/* "NET", "CONFIG"...: stable words for records and logs. Never NULL. */
const char *cb_code_name(enum cb_code code);

void cb_error_cleanup(struct cb_error *err);
#define CB_AUTO_ERROR __attribute__((cleanup(cb_error_cleanup))) struct cb_error
