/* worker: runs one claimed build in a child process and stores what it says.
 *
 * One loop over the child's socket, its pidfd, the cancel descriptor and a few deadlines. What
 * arrives is stored in groups: at once after a quiet time, then every 10 ms or 64 KiB. The child is
 * not trusted: a message that is not as it must be ends the build. */
#include "queue/queue.h"
#include "queue/store.h"
#include "queue/wire.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"
#include "support/proc.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum {
    GROUP_MS = 10,
    GROUP_BYTES = 64 << 10,
    RENEW_MS = 10000,
    GRACE_MS = 1500, /* from SIGTERM to SIGKILL */
    EXIT_MS = 10000, /* from the stored result to the child's exit */
    READ_PIECE = 32 << 10,
    TAIL_BYTES = 16 << 10,
    TAIL_LINES = 20,
};
#define NEVER INT64_MAX

struct worker {
    struct queue *q;
    const struct claim *c;
    const struct worker_options *o;
    pid_t pid;
    int pidfd, sock, cancel_fd;
    struct wire_reader in;
    struct cb_buf out; /* frames that the child has to take */
    struct event_in *batch;
    size_t n_batch, cap_batch, batch_bytes;
    uint64_t taken, acked; /* bytes of event frames: stored, told to the child */
    int64_t last_commit, renew_at, kill_at;
    bool canceled;
    bool settled; /* the build has its final state (or went back to the queue) */
    enum build_status reached;
    struct cb_error fault; /* what the child did wrong */
};

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void tell(struct worker *w)
{
    w->last_commit = cb_monotonic_ms();
    if (w->o->committed)
        w->o->committed(w->o->arg);
}

/* ---- storing ---- */

static void batch_clear(struct worker *w)
{
    for (size_t i = 0; i < w->n_batch; i++) {
        union {
            const json_t *in;
            json_t *out;
        } p = {w->batch[i].payload};
        json_decref(p.out);
    }
    w->n_batch = 0;
    w->batch_bytes = 0;
}

static int commit(struct worker *w, struct cb_error *err)
{
    if (w->n_batch == 0)
        return 0;
    uint64_t last;
    int rc = queue_append(w->q, w->c, w->batch, w->n_batch, &last, err);
    if (rc < 0)
        return rc;
    w->taken += w->batch_bytes;
    batch_clear(w);
    tell(w);
    return 0;
}

static int settle(struct worker *w, const struct build_outcome *o, struct cb_error *err)
{
    int rc = commit(w, err);
    if (rc >= 0)
        rc = queue_finish_outcome(w->q, w->c, o, &w->reached, err);
    if (rc < 0)
        return rc;
    w->settled = true;
    tell(w);
    return 0;
}

static int settle_finish(struct worker *w, const struct wire_finish *f, struct cb_error *err)
{
    bool canceled = !f->ok && strcmp(f->code, cb_code_name(CB_E_CANCELED)) == 0;
    struct build_outcome o = {
        .status = f->ok                     ? BUILD_SUCCESS
                  : canceled || w->canceled ? BUILD_CANCELLED
                                            : BUILD_FAILED,
        .error = f->ok ? NULL : f->message,
        .error_class = f->ok ? NULL : f->code,
        .hint = f->ok ? NULL : f->hint,
        .result = f->result,
    };
    o.may_retry = o.status == BUILD_FAILED && (strcmp(f->code, cb_code_name(CB_E_NET)) == 0 ||
                                               strcmp(f->code, cb_code_name(CB_E_TIMEOUT)) == 0);
    return settle(w, &o, err);
}

/* ---- the child ---- */

/* Every process of the child's session, also those that left its process group. */
static void kill_session(pid_t session)
{
    (void)kill(-session, SIGKILL);
    CB_AUTO_DIR d = opendir("/proc");
    struct dirent *e;
    while (d && (e = readdir(d)) != NULL) {
        char *end;
        long pid = strtol(e->d_name, &end, 10);
        if (*end == '\0' && pid > 1 && pid != session && getsid((pid_t)pid) == session)
            (void)kill((pid_t)pid, SIGKILL);
    }
}

static void kill_now(struct worker *w)
{
    w->kill_at = NEVER;
    if (w->pid > 0)
        kill_session(w->pid);
}

static void ask_to_stop(struct worker *w)
{
    if (w->pid > 0)
        (void)kill(-w->pid, SIGTERM);
    w->kill_at = cb_monotonic_ms() + GRACE_MS;
}

static int start_child(struct worker *w, struct cb_error *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return cb_fail_sys(err, errno, "make a socket pair");
    w->sock = pair[0];
    CB_AUTO_FD theirs = pair[1];
    if (fcntl(w->sock, F_SETFL, O_NONBLOCK) < 0)
        return cb_fail_sys(err, errno, "make a socket non-blocking");
    const char *log = w->o->child_log ? w->o->child_log : "/dev/null";
    CB_AUTO_FD log_fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        return cb_fail_sys(err, errno, "make the log %s", log);
    CB_AUTO_STRV env = {0};
    for (char **e = environ; *e; e++)
        if (strncmp(*e, "CAPSULE_BUILD_JOB_FD=", 21) != 0)
            cb_strv_add(&env, *e);
    cb_strv_add(&env, "CAPSULE_BUILD_JOB_FD=3");
    const struct cb_proc_fd fds[] = {{log_fd, 1}, {log_fd, 2}, {theirs, 3}};
    struct cb_proc_spec spec = {.argv = w->o->child_argv,
                                .env = (const char *const *)env.v,
                                .fds = fds,
                                .n_fds = 3,
                                .own_session = true};
    w->pid = cb_proc_start(&spec, err);
    if (w->pid < 0)
        return (int)w->pid;
    w->pidfd = (int)syscall(SYS_pidfd_open, w->pid, 0);
    return w->pidfd < 0 ? cb_fail_sys(err, errno, "watch the build process") : 0;
}

static int queue_job(struct worker *w, struct cb_error *err)
{
    struct build_record r;
    int rc = queue_get(w->q, w->c->id, &r, err);
    if (rc < 0)
        return rc;
    json_auto_t *job = json_pack("{s:s, s:i, s:s, s:s}", "id", r.id, "attempt", w->c->attempt,
                                 "config", r.config, "options", r.options);
    build_record_release(&r);
    if (!job)
        return cb_fail(err, CB_E_CONFIG, "the config or options of the build are not UTF-8");
    return wire_put(&w->out, WIRE_JOB, job, err);
}

/* Writes what the socket takes. A child that hung up is noticed when it is read. */
static void flush(struct worker *w)
{
    if (w->taken > w->acked && w->out.len == 0) {
        json_auto_t *ack = json_pack("{s:I}", "bytes", (json_int_t)w->taken);
        if (wire_put(&w->out, WIRE_ACK, ack, NULL) == 0)
            w->acked = w->taken;
    }
    while (w->out.len > 0) {
        ssize_t n = send(w->sock, w->out.data, w->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            if (errno != EAGAIN)
                cb_buf_clear(&w->out);
            return;
        }
        cb_buf_drop(&w->out, (size_t)n);
    }
    if (w->out.cap > WIRE_MAX)
        cb_buf_release(&w->out); /* the job was large, nothing later is */
}

/* ---- what the child says ---- */

static int take_event(struct worker *w, const struct wire_msg *m, struct cb_error *err)
{
    struct wire_event e;
    if (wire_event_parse(m, &e, &w->fault) < 0)
        return 0;
    w->batch = cb_xgrow(w->batch, &w->cap_batch, w->n_batch, sizeof(*w->batch));
    w->batch[w->n_batch++] = (struct event_in){e.type, e.payload, e.ts_ms};
    w->batch_bytes += m->frame;
    return w->batch_bytes >= GROUP_BYTES ? commit(w, err) : 0;
}

static int take_finish(struct worker *w, const struct wire_msg *m, struct cb_error *err)
{
    struct wire_finish f;
    if (wire_finish_parse(m, &f, &w->fault) < 0)
        return 0;
    int rc = settle_finish(w, &f, err);
    wire_finish_release(&f);
    if (rc < 0)
        return rc;
    json_auto_t *done = json_object();
    (void)wire_put(&w->out, WIRE_DONE, done, NULL);
    w->kill_at = min64(w->kill_at, cb_monotonic_ms() + EXIT_MS);
    return 0;
}

/* The messages that are whole. A fault of the child is in w->fault; an error is the database's. */
static int take_messages(struct worker *w, struct cb_error *err)
{
    struct wire_msg m;
    int rc = 0;
    while (rc >= 0 && !w->settled && w->fault.code == CB_OK &&
           wire_next(&w->in, &m, &w->fault) > 0) {
        if (m.type == WIRE_EVENT)
            rc = take_event(w, &m, err);
        else if (m.type == WIRE_FINISH)
            rc = take_finish(w, &m, err);
        else
            cb_fail(&w->fault, CB_E_CORRUPT, "a message of a type that a build cannot send");
    }
    return rc;
}

/* Reads once. 1: there may be more, 0: nothing now, or *@end: the other side is closed. */
static int read_socket(struct worker *w, bool *end, struct cb_error *err)
{
    char piece[READ_PIECE];
    ssize_t n = recv(w->sock, piece, sizeof(piece), MSG_DONTWAIT);
    if (n < 0 && errno == EINTR)
        return 1;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (n <= 0) {
        *end = true; /* without a result it has nothing more to do */
        w->kill_at = min64(w->kill_at, cb_monotonic_ms() + (w->settled ? EXIT_MS : GRACE_MS));
        return 0;
    }
    if (w->settled || w->fault.code != CB_OK)
        return 1; /* nothing that it says counts any more */
    if (wire_feed(&w->in, piece, (size_t)n) < 0)
        return cb_fail(err, CB_E_BUG, "the message buffer is full");
    int rc = take_messages(w, err);
    if (rc >= 0 && w->fault.code != CB_OK)
        kill_now(w);
    return rc < 0 ? rc : 1;
}

/* ---- the end of the child ---- */

/* The last lines of its log, or "". Owned. */
static char *log_tail(const char *path)
{
    CB_AUTO_FD fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    if (size <= 0)
        return cb_xstrdup("");
    size_t n = size < TAIL_BYTES ? (size_t)size : TAIL_BYTES;
    CB_AUTO_FREE char *text = cb_xcalloc(1, n + 1);
    if (cb_pread_all(fd, text, n, size - (off_t)n, NULL) < 0)
        return cb_xstrdup("");
    for (size_t i = 0; i < n;
         i++) /* so that it is text to its end, and does nothing to a terminal */
        if ((text[i] >= 0 && text[i] < ' ' && text[i] != '\n' && text[i] != '\t') || text[i] == 127)
            text[i] = ' ';
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == ' '))
        text[--n] = '\0';
    size_t at = n;
    for (int lines = 0; at > 0; at--)
        if (text[at - 1] == '\n' && ++lines == TAIL_LINES)
            break;
    return cb_xstrdup(text + at);
}

static int settle_died(struct worker *w, int status, struct cb_error *err)
{
    char how[64];
    cb_status_text(status, how, sizeof(how));
    CB_AUTO_FREE char *tail = log_tail(w->o->child_log);
    CB_AUTO_FREE char *text = NULL;
    if (w->fault.code != CB_OK)
        text = cb_xasprintf("the build process sent %s and was stopped", w->fault.msg);
    else if (WIFSIGNALED(status))
        text = cb_xasprintf("the build process was %s", how);
    else
        text = cb_xasprintf("the build process ended without a result (%s)", how);
    /* the log may hold any bytes: event_text() makes them text */
    json_auto_t *o =
        event_text("%s%s%s", text, *tail ? "; the last lines of its log:\n" : "", tail);
    struct build_outcome out = {.status = BUILD_FAILED,
                                .error = json_string_value(json_object_get(o, "text")),
                                .error_class = "host",
                                .may_retry = true};
    if (w->canceled && w->fault.code == CB_OK)
        out = (struct build_outcome){.status = BUILD_CANCELLED,
                                     .error = "cancelled",
                                     .error_class = cb_code_name(CB_E_CANCELED)};
    return settle(w, &out, err);
}

/* The child has ended (it is a zombie still, so that its number is nobody else's): what it said
 * first, then how it ended. */
static int child_ended(struct worker *w, struct cb_error *err)
{
    if (w->settled)
        (void)kill(-w->pid, SIGKILL);
    else
        kill_session(w->pid);
    (void)shutdown(w->sock, SHUT_RD); /* what is in it stays readable, nothing is added */
    bool end = false;
    int rc = 1;
    while (rc > 0 && !end)
        rc = read_socket(w, &end, err);
    int status = 0;
    (void)cb_proc_wait(w->pid, -1, &status, NULL);
    w->pid = -1;
    if (rc < 0 || w->settled)
        return rc;
    return settle_died(w, status, err);
}

/* ---- the loop ---- */

static int run_timers(struct worker *w, struct cb_error *err)
{
    int64_t now = cb_monotonic_ms();
    if (w->n_batch && now >= w->last_commit + GROUP_MS) {
        int rc = commit(w, err);
        if (rc < 0)
            return rc;
    }
    if (now >= w->kill_at)
        kill_now(w);
    if (now >= w->renew_at && !w->settled) {
        int rc = queue_renew(w->q, w->c, QUEUE_LEASE_MS, err);
        if (rc < 0 && rc != -CB_E_TIMEOUT)
            return rc;
        if (rc < 0)
            cb_error_clear(err); /* busy: again soon, the lease lasts longer than this */
        w->renew_at = now + (rc < 0 ? RENEW_MS / 10 : RENEW_MS);
    }
    return 0;
}

/* Takes what made a descriptor readable, once: a signal that comes later is another one. */
static void take_one(int fd)
{
    char heard[sizeof(struct signalfd_siginfo)];
    (void)!read(fd, heard, sizeof(heard));
}

static int loop(struct worker *w, struct cb_error *err)
{
    bool closed = false;
    for (;;) {
        flush(w);
        int64_t wake = min64(w->kill_at, w->settled ? NEVER : w->renew_at);
        if (w->n_batch)
            wake = min64(wake, w->last_commit + GROUP_MS);
        int64_t left = wake == NEVER ? -1 : wake - cb_monotonic_ms();
        if (wake != NEVER && left < 0)
            left = 0;
        struct pollfd p[3] = {
            {.fd = closed ? -1 : w->sock, .events = (short)(POLLIN | (w->out.len ? POLLOUT : 0))},
            {.fd = w->pidfd, .events = POLLIN},
            {.fd = w->cancel_fd, .events = POLLIN},
        };
        if (poll(p, 3, left > 60000 ? 60000 : (int)left) < 0 && errno != EINTR)
            return cb_fail_sys(err, errno, "poll");
        if (p[2].revents) {
            if (p[2].revents & POLLIN && !w->settled) {
                w->canceled = true;
                take_one(w->cancel_fd);
                ask_to_stop(w);
            }
            w->cancel_fd = -1;
        }
        int rc = p[0].revents & (POLLIN | POLLHUP | POLLERR) ? read_socket(w, &closed, err) : 0;
        if (rc >= 0 && p[1].revents)
            return child_ended(w, err);
        if (rc >= 0)
            rc = run_timers(w, err);
        if (rc < 0)
            return rc;
    }
}

/* The database failed or the claim is lost: nothing of the build may go on. Says so in the record
 * when that is possible. */
static void give_up(struct worker *w, const struct cb_error *err)
{
    if (w->pid > 0) {
        (void)shutdown(w->sock, SHUT_RDWR);
        (void)kill(-w->pid, SIGTERM);
        struct pollfd p = {.fd = w->pidfd, .events = POLLIN};
        int64_t end = cb_monotonic_ms() + GRACE_MS, now;
        while ((now = cb_monotonic_ms()) < end && poll(&p, 1, (int)(end - now)) < 0) {
        }
        kill_session(w->pid); /* it is not reaped yet: its number is still its own */
        cb_proc_stop(w->pid, true, 0);
        w->pid = -1;
    }
    if (!w->settled && err && err->code != CB_E_CONFLICT) {
        json_auto_t *text = event_text("%s", err->msg);
        struct build_outcome o = {.status = BUILD_FAILED,
                                  .error = json_string_value(json_object_get(text, "text")),
                                  .error_class = cb_code_name(err->code)};
        enum build_status reached;
        (void)queue_finish_outcome(w->q, w->c, &o, &reached, NULL);
    }
}

int worker_run(struct queue *q, const struct claim *c, const struct worker_options *o,
               enum build_status *status, struct cb_error *err)
{
    CB_AUTO_ERROR own = CB_ERROR_INIT;
    struct worker w = {.q = q,
                       .c = c,
                       .o = o,
                       .pid = -1,
                       .pidfd = -1,
                       .sock = -1,
                       .cancel_fd = o->cancel_fd,
                       .renew_at = cb_monotonic_ms() + RENEW_MS,
                       .kill_at = NEVER};
    wire_reader_init(&w.in, WIRE_MAX);
    cb_buf_init(&w.out, WIRE_JOB_MAX + WIRE_HEADER);
    int rc = queue_job(&w, &own);
    if (rc >= 0)
        rc = start_child(&w, &own);
    if (rc >= 0)
        rc = loop(&w, &own);
    if (rc < 0)
        give_up(&w, &own);
    else
        *status = w.reached;
    batch_clear(&w);
    free(w.batch);
    cb_close(w.pidfd);
    cb_close(w.sock);
    wire_reader_release(&w.in);
    cb_buf_release(&w.out);
    cb_error_clear(&w.fault);
    if (rc < 0 && err)
        return cb_error_move(err, &own);
    return rc < 0 ? rc : 0;
}
