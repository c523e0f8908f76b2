#include "builder/qmp.h"

#include "builder/machine.h"
#include "support/buf.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum {
    TICK_MS = 100, /* until machine_cancel() is noticed */
    WORDS_MAX = 512,
    STATUS_PAUSE_NS = 1000000,
};

struct qmp {
    int fd;
    struct cb_buf in;
    char *version;   /* owned */
    char *migration; /* the last status that an event told; owned */
    unsigned id;
};

CB_DEFINE_CLEANUP(json, json_t *, json_decref);

static int not_qmp(struct cb_error *err, const char *what)
{
    return cb_fail(err, CB_E_UNTRUSTED, "QEMU's monitor sent %s", what);
}

/* QEMU's words for people: one line, no control characters, not endless. */
static char *words(const json_t *text)
{
    const char *s = json_string_value(text);
    char *copy = cb_xstrndup(s ? s : "no reason", WORDS_MAX);
    for (char *p = copy; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = ' ';
    return copy;
}

static int fill(struct qmp *q, int64_t end, struct cb_error *err)
{
    char tmp[4096];
    for (;;) {
        struct pollfd w = {.fd = q->fd, .events = POLLIN};
        if (machine_canceled())
            return cb_fail(err, CB_E_CANCELED, "stopped");
        int64_t left = end - cb_monotonic_ms();
        if (left <= 0)
            return cb_fail(err, CB_E_TIMEOUT, "QEMU's monitor did not answer in time");
        if (poll(&w, 1, left < TICK_MS ? (int)left : TICK_MS) <= 0)
            continue;
        ssize_t n = recv(q->fd, tmp, sizeof(tmp), MSG_DONTWAIT);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            return cb_fail(err, CB_E_SYS, "QEMU closed its monitor");
        if (cb_buf_add(&q->in, tmp, (size_t)n) < 0)
            return not_qmp(err, "a line that does not end");
        return 0;
    }
}

/* The next line as an object. *@out is owned. */
static int next_object(struct qmp *q, int64_t end, json_t **out, struct cb_error *err)
{
    char *nl;
    while (!q->in.len || !(nl = memchr(q->in.data, '\n', q->in.len))) {
        int rc = fill(q, end, err);
        if (rc < 0)
            return rc;
    }
    size_t n = (size_t)(nl - q->in.data);
    *out = json_loadb(q->in.data, n, JSON_REJECT_DUPLICATES, NULL);
    cb_buf_drop(&q->in, n + 1);
    if (json_is_object(*out))
        return 0;
    json_decref(*out);
    *out = NULL;
    return not_qmp(err, "a line that is no JSON object");
}

static void note_event(struct qmp *q, const json_t *o)
{
    const char *name = json_string_value(json_object_get(o, "event"));
    const char *status = json_string_value(json_object_get(json_object_get(o, "data"), "status"));
    if (!name || strcmp(name, "MIGRATION") != 0 || !status)
        return;
    free(q->migration);
    q->migration = cb_xstrndup(status, 64);
}

/* One event taken in, or an answer in *@out (owned). */
static int next_answer(struct qmp *q, int64_t end, json_t **out, struct cb_error *err)
{
    for (int n = 0; n < QMP_EVENTS_MAX; n++) {
        CB_AUTO(json) o = NULL;
        int rc = next_object(q, end, &o, err);
        if (rc < 0)
            return rc;
        if (!json_object_get(o, "event")) {
            *out = json_incref(o);
            return 0;
        }
        note_event(q, o);
    }
    return not_qmp(err, "events without end");
}

static int take_greeting(struct qmp *q, int64_t end, struct cb_error *err)
{
    CB_AUTO(json) o = NULL;
    int rc = next_object(q, end, &o, err);
    if (rc < 0)
        return rc;
    const json_t *version = json_object_get(json_object_get(o, "QMP"), "version");
    const json_t *qemu = json_object_get(version, "qemu");
    json_int_t v[3];
    static const char *const parts[] = {"major", "minor", "micro"};
    for (int i = 0; i < 3; i++) {
        const json_t *n = json_object_get(qemu, parts[i]);
        v[i] = json_integer_value(n);
        if (!json_is_integer(n) || v[i] < 0 || v[i] > 9999)
            return not_qmp(err, "no greeting");
    }
    CB_AUTO_FREE char *package = words(json_object_get(version, "package"));
    bool named = json_is_string(json_object_get(version, "package")) && package[0];
    q->version = cb_xasprintf("%d.%d.%d%s%s%s", (int)v[0], (int)v[1], (int)v[2], named ? " (" : "",
                              named ? package : "", named ? ")" : "");
    return 0;
}

int qmp_open(int fd, int64_t timeout_ms, struct qmp **out, struct cb_error *err)
{
    struct qmp *q = cb_xcalloc(1, sizeof(*q));
    q->fd = fd;
    cb_buf_init(&q->in, QMP_LINE_MAX);
    int64_t end = cb_monotonic_ms() + timeout_ms;
    int rc = take_greeting(q, end, err);
    /* The greeting comes at once; the answer to this when the machine is set up. */
    if (rc == 0)
        rc = qmp_run(q, "qmp_capabilities", NULL, -1, end - cb_monotonic_ms(), NULL, err);
    if (rc < 0) {
        qmp_close(q);
        return rc;
    }
    *out = q;
    return 0;
}

void qmp_close(struct qmp *q)
{
    if (!q)
        return;
    cb_buf_release(&q->in);
    free(q->version);
    free(q->migration);
    free(q);
}

const char *qmp_version(const struct qmp *q)
{
    return q->version;
}

/* A command is smaller than a socket's buffer, and QEMU reads all that it is sent. */
static int send_line(struct qmp *q, const char *line, size_t n, int fd, struct cb_error *err)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec io = {.iov_base = (char *)(uintptr_t)line, .iov_len = n};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1};
    if (fd >= 0) {
        m.msg_control = &control;
        m.msg_controllen = sizeof(control.room);
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    }
    ssize_t sent;
    do
        sent = sendmsg(q->fd, &m, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
        return cb_fail(err, CB_E_SYS, "QEMU closed its monitor");
    if (sent != (ssize_t)n)
        return cb_fail_sys(err, sent < 0 ? errno : EIO, "write to QEMU's monitor");
    return 0;
}

/* *@ret (owned, may be NULL) gets the answer to command @id. */
static int take_answer(struct qmp *q, const char *command, int64_t end, json_t **ret,
                       struct cb_error *err)
{
    CB_AUTO(json) o = NULL;
    int rc = next_answer(q, end, &o, err);
    if (rc < 0)
        return rc;
    const json_t *id = json_object_get(o, "id"), *error = json_object_get(o, "error");
    if (!json_is_integer(id) || json_integer_value(id) != (json_int_t)q->id)
        return not_qmp(err, "an answer to nothing");
    if (json_is_object(error)) {
        CB_AUTO_FREE char *why = words(json_object_get(error, "desc"));
        return cb_fail(err, CB_E_CONFLICT, "QEMU refuses %s: %s", command, why);
    }
    json_t *value = json_object_get(o, "return");
    if (!value)
        return not_qmp(err, "an answer without a result");
    if (ret)
        *ret = json_incref(value);
    return 0;
}

int qmp_run(struct qmp *q, const char *command, json_t *arguments, int fd, int64_t timeout_ms,
            json_t **answer, struct cb_error *err)
{
    CB_AUTO(json) given = arguments;
    CB_AUTO(json) o = json_pack("{s:s, s:I}", "execute", command, "id", (json_int_t)++q->id);
    if (!o || (given && json_object_set(o, "arguments", given) < 0))
        return cb_fail(err, CB_E_BUG, "command %s cannot be written", command);
    CB_AUTO_FREE char *text = json_dumps(o, JSON_COMPACT);
    CB_AUTO_FREE char *line = text ? cb_xasprintf("%s\n", text) : NULL;
    if (!line || strlen(line) > QMP_LINE_MAX / 2)
        return cb_fail(err, CB_E_BUG, "command %s cannot be written", command);
    int rc = send_line(q, line, strlen(line), fd, err);
    return rc < 0 ? rc : take_answer(q, command, cb_monotonic_ms() + timeout_ms, answer, err);
}

/* Waits for the end of what `migrate` or `migrate-incoming` started. */
static int migration_end(struct qmp *q, int64_t end, struct cb_error *err)
{
    while (!q->migration ||
           (strcmp(q->migration, "completed") != 0 && strcmp(q->migration, "failed") != 0 &&
            strcmp(q->migration, "cancelled") != 0)) {
        CB_AUTO(json) o = NULL;
        int rc = next_object(q, end, &o, err);
        if (rc < 0)
            return rc;
        if (!json_object_get(o, "event"))
            return not_qmp(err, "an answer to nothing");
        note_event(q, o);
    }
    return strcmp(q->migration, "completed") == 0 ? 0 : cb_fail(err, CB_E_CONFLICT, "QEMU failed");
}

static int migrate(struct qmp *q, const char *command, int fd, int64_t timeout_ms,
                   struct cb_error *err)
{
    int64_t end = cb_monotonic_ms() + timeout_ms;
    free(cb_take_ptr(&q->migration));
    int rc =
        qmp_run(q, "migrate-set-capabilities",
                json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "events", "state", 1),
                -1, timeout_ms, NULL, err);
    if (rc == 0) /* the limit is for networks */
        rc = qmp_run(q, "migrate-set-parameters",
                     json_pack("{s:I}", "max-bandwidth", (json_int_t)INT64_C(0x7fffffffffff)), -1,
                     timeout_ms, NULL, err);
    if (rc == 0)
        rc = qmp_run(q, "getfd", json_pack("{s:s}", "fdname", "state"), fd, timeout_ms, NULL, err);
    if (rc == 0)
        rc = qmp_run(q, command, json_pack("{s:s}", "uri", "fd:state"), -1, timeout_ms, NULL, err);
    return rc < 0 ? rc : migration_end(q, end, err);
}

/* QEMU tells that a save is complete a moment before it is through with it, and takes no `cont` in
 * between. No event says when. */
static int wait_finished(struct qmp *q, int64_t end, struct cb_error *err)
{
    for (;;) {
        CB_AUTO(json) o = NULL;
        int rc = qmp_run(q, "query-status", NULL, -1, end - cb_monotonic_ms(), &o, err);
        if (rc < 0)
            return rc;
        const char *status = json_string_value(json_object_get(o, "status"));
        if (!status)
            return not_qmp(err, "no status");
        if (strcmp(status, "finish-migrate") != 0)
            return 0;
        const struct timespec pause = {.tv_nsec = STATUS_PAUSE_NS};
        (void)nanosleep(&pause, NULL);
    }
}

int qmp_save(struct qmp *q, int fd, int64_t timeout_ms, struct cb_error *err)
{
    int64_t end = cb_monotonic_ms() + timeout_ms;
    int rc = migrate(q, "migrate", fd, timeout_ms, err);
    if (rc == 0)
        rc = wait_finished(q, end, err);
    return rc < 0 ? cb_wrap(err, "save the machine") : 0;
}

int qmp_load(struct qmp *q, int fd, int64_t timeout_ms, struct cb_error *err)
{
    int rc = migrate(q, "migrate-incoming", fd, timeout_ms, err);
    return rc < 0 ? cb_wrap(err, "load the saved machine") : 0;
}
