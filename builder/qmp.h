/* qmp: QEMU's monitor, one command at a time.
 *
 * QEMU runs a hostile guest, so what it says is checked and bounded like a stranger's: a line of at
 * most QMP_LINE_MAX bytes, one JSON object each, an answer within the time given. Calls block, and
 * return -CB_E_CANCELED soon after machine_cancel(). Errors: -CB_E_SYS when the monitor was closed
 * (QEMU ended), -CB_E_TIMEOUT, -CB_E_UNTRUSTED for what is not QMP, -CB_E_CONFLICT with QEMU's
 * words when it refuses a command. After any but the last the monitor is of no more use. */
#pragma once

#include "support/error.h"

#include <jansson.h>
#include <stdint.h>

enum {
    QMP_LINE_MAX = 64 << 10,
    QMP_EVENTS_MAX = 10000, /* that come while one answer is waited for */
};

struct qmp;
/* Takes the greeting and enters command mode, which QEMU does when the machine is set up. @fd is
 * borrowed: a connected Unix socket that must stay open until qmp_close(). *@out is owned. */
int qmp_open(int fd, int64_t timeout_ms, struct qmp **out, struct cb_error *err);
void qmp_close(struct qmp *q); /* NULL is fine */
/* "7.2.22 (Debian 1:7.2+dfsg-7)": version and package as the greeting gave them. Borrowed. */
const char *qmp_version(const struct qmp *q);

/* Runs @command with @arguments (taken; NULL: none). @fd goes with it unless it is -1. *@answer
 * (owned, may be NULL) gets what "return" holds. */
int qmp_run(struct qmp *q, const char *command, json_t *arguments, int fd, int64_t timeout_ms,
            json_t **answer, struct cb_error *err);

/* The whole state of the stopped machine (memory and devices, not disks), into @fd; it must be
 * possible to write it without waiting for somebody. The machine stays stopped. */
int qmp_save(struct qmp *q, int fd, int64_t timeout_ms, struct cb_error *err);
/* The reverse, in a QEMU that was started with `-incoming defer -S`: the machine is paused after
 * it. */
int qmp_load(struct qmp *q, int fd, int64_t timeout_ms, struct cb_error *err);
