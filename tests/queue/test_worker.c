/* The worker and its child. The child is this program again: "test_queue_worker child MODE". */
#include "check.h"

#include "queue/queue.h"
#include "queue/wire.h"
#include "support/clock.h"
#include "support/limits.h"
#include "support/proc.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define FLOOD 100000

/* ---- the child ---- */

static void die(const char *what)
{
    fprintf(stderr, "child: %s\n", what);
    _exit(99);
}

static void say(struct job_channel *ch, const char *text)
{
    if (job_channel_event(ch, EVENT_NOTE, event_text("%s", text), NULL) < 0)
        die("event");
}

static void end(struct job_channel *ch, enum cb_code code, const char *msg)
{
    CB_AUTO_ERROR failure = CB_ERROR_INIT;
    if (code != CB_OK) {
        cb_fail(&failure, code, "%s", msg);
        cb_hint(&failure, "Do it another way.");
    }
    json_auto_t *result = json_pack("{s:i}", "version", 7);
    if (job_channel_finish(ch, code == CB_OK ? NULL : &failure, code == CB_OK ? result : NULL,
                           NULL) < 0)
        die("finish");
}

static void flood(struct job_channel *ch)
{
    for (int i = 0; i < FLOOD; i++) {
        char line[64];
        int n = snprintf(line, sizeof(line), "line %d\n", i);
        if (job_channel_event(ch, EVENT_OUTPUT, event_output(1, "stdout", line, (size_t)n), NULL) <
            0)
            die("event");
    }
}

static void send_raw(const void *p, size_t n)
{
    if (send(3, p, n, MSG_NOSIGNAL) != (ssize_t)n)
        die("send");
}

/* Says that it runs, by opening the fifo that the test reads; the test sees its end there. */
static void hold_fifo(void)
{
    const char *path = getenv("TEST_FIFO");
    if (!path || open(path, O_WRONLY | O_CLOEXEC) < 0)
        die("fifo");
}

static void wait_for_ever(void)
{
    for (;;)
        pause();
}

static int child_main(const char *mode)
{
    struct job_channel *ch = NULL;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (job_channel_open(3, &ch, &err) < 0)
        die(err.msg);
    fprintf(stderr, "first line\nthe last words of %s\n", mode);
    if (strcmp(mode, "ok") == 0) {
        say(ch, job_channel_config(ch));
        say(ch, job_channel_options(ch));
        say(ch, job_channel_build_id(ch));
        end(ch, CB_OK, NULL);
    } else if (strcmp(mode, "fail") == 0) {
        end(ch, CB_E_COMMAND, "the command said no");
    } else if (strcmp(mode, "net") == 0) {
        end(ch, CB_E_NET, "the registry is down");
    } else if (strcmp(mode, "flood") == 0) {
        flood(ch);
        end(ch, CB_OK, NULL);
    } else if (strcmp(mode, "flood-and-crash") == 0) {
        flood(ch);
        (void)kill(getpid(), SIGKILL);
    } else if (strcmp(mode, "sigkill") == 0) {
        say(ch, "before the end");
        (void)kill(getpid(), SIGKILL);
    } else if (strcmp(mode, "sigsegv") == 0) {
        say(ch, "before the end");
        (void)signal(SIGSEGV, SIG_DFL);
        (void)kill(getpid(), SIGSEGV);
    } else if (strcmp(mode, "exit7") == 0) {
        say(ch, "before the end");
        _exit(7);
    } else if (strcmp(mode, "hang-up") == 0) {
        say(ch, "before the end");
        job_channel_free(ch);
        wait_for_ever();
    } else if (strcmp(mode, "garbage") == 0) {
        say(ch, "before the end");
        send_raw("GET / HTTP/1.1\r\n\r\n", 18);
        wait_for_ever();
    } else if (strcmp(mode, "bad-event") == 0) {
        send_raw("\0\0\0\x0a\x02\x01{\"a\":1 }", 14);
        wait_for_ever();
    } else if (strcmp(mode, "forged") == 0) {
        static const char text[] = "{\"type\":\"build-status\",\"ts\":1,\"payload\":"
                                   "{\"status\":\"success\",\"attempt\":1}}";
        char h[6] = {0, 0, 0, (char)(sizeof(text) - 1 + 2), WIRE_EVENT, 1};
        send_raw(h, 6);
        send_raw(text, sizeof(text) - 1);
        wait_for_ever();
    } else if (strcmp(mode, "ignore-term") == 0) {
        (void)signal(SIGTERM, SIG_IGN);
        hold_fifo();
        say(ch, "deaf");
        wait_for_ever();
    } else if (strcmp(mode, "cancel-well") == 0) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigprocmask(SIG_BLOCK, &set, NULL);
        hold_fifo();
        int sig;
        sigwait(&set, &sig);
        say(ch, "tidied up");
        end(ch, CB_E_CANCELED, "stopped as asked");
    } else if (strcmp(mode, "wait") == 0) {
        hold_fifo();
        say(ch, "waiting");
        wait_for_ever();
    } else {
        die("mode");
    }
    job_channel_free(ch);
    return 0;
}

/* ---- the tests ---- */

struct run {
    struct queue *q;
    char *db, *log;
    struct claim claim;
    enum build_status status;
    struct build_record record;
    int commits;
};

static void count_commit(void *arg)
{
    ((struct run *)arg)->commits++;
}

static void run_setup(struct run *r, const char *dir, int max_attempts)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    *r = (struct run){.db = cb_xasprintf("%s/queue.db", dir), .log = cb_xasprintf("%s/log", dir)};
    assert_ok(queue_open(r->db, &r->q, &err), &err);
    struct build_spec spec = {.name = "web",
                              .config = "{\"a\":\"\xc3\xa4\"}",
                              .options = "{\"b\":2}",
                              .max_attempts = max_attempts};
    bool existing;
    char id[BUILD_ID_LEN + 1];
    assert_ok(queue_enqueue(r->q, &spec, id, &existing, &err), &err);
    CB_AUTO_FREE char *self = queue_owner_self();
    assert_ok(queue_claim(r->q, id, self, QUEUE_LEASE_MS, &r->claim, &err), &err);
}

static int run_worker(struct run *r, const char *mode, int cancel_fd, struct cb_error *err)
{
    const char *argv[] = {"/proc/self/exe", "child", mode, NULL};
    struct worker_options o = {.child_argv = argv,
                               .child_log = r->log,
                               .cancel_fd = cancel_fd,
                               .committed = count_commit,
                               .arg = r};
    return worker_run(r->q, &r->claim, &o, &r->status, err);
}

static void run_teardown(struct run *r)
{
    build_record_release(&r->record);
    queue_free(r->q);
    free(r->db);
    free(r->log);
}

static void run_mode(struct run *r, const char *dir, const char *mode)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    run_setup(r, dir, 1);
    assert_ok(run_worker(r, mode, -1, &err), &err);
    assert_ok(queue_get(r->q, r->claim.id, &r->record, &err), &err);
    assert_int_equal(r->record.status, r->status);
}

struct texts {
    struct cb_buf b; /* "type text|" for each event */
    uint64_t last;
};

static int collect(void *arg, const struct event_out *ev)
{
    struct texts *t = arg;
    assert_int_equal(ev->seq, t->last + 1);
    t->last = ev->seq;
    const char *text = json_string_value(json_object_get(ev->payload, "text"));
    const char *status = json_string_value(json_object_get(ev->payload, "status"));
    (void)cb_buf_addf(&t->b, "%s %s|", event_type_name(ev->type),
                      text     ? text
                      : status ? status
                               : "");
    return 0;
}

static void assert_events(struct run *r, const char *expected)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct texts t = {.b = CB_BUF_INIT(1 << 20)};
    assert_ok(queue_events(r->q, r->claim.id, 0, 0, collect, &t, &err), &err);
    assert_string_equal(t.b.data, expected);
    cb_buf_release(&t.b);
}

static int last_payload(void *arg, const struct event_out *ev)
{
    json_t **p = arg;
    json_decref(*p);
    *p = json_incref(ev->payload);
    return 0;
}

static void test_build_that_succeeds(void **state)
{
    struct run r;
    run_mode(&r, *state, "ok");
    assert_int_equal(r.status, BUILD_SUCCESS);
    assert_null(r.record.error);
    CB_AUTO_FREE char *expected =
        cb_xasprintf("build-status queued|build-status running|note {\"a\":\"\xc3\xa4\"}|"
                     "note {\"b\":2}|note %s|build-status success|",
                     r.claim.id);
    assert_events(&r, expected);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    json_auto_t *last = NULL;
    assert_ok(queue_events(r.q, r.claim.id, 5, 0, last_payload, &last, &err), &err);
    CB_AUTO_FREE char *text = json_dumps(last, JSON_COMPACT);
    assert_string_equal(text, "{\"status\":\"success\",\"attempt\":1,\"result\":{\"version\":7}}");
    assert_true(r.commits >= 2);
    run_teardown(&r);
}

static void test_build_that_fails(void **state)
{
    struct run r;
    run_mode(&r, *state, "fail");
    assert_int_equal(r.status, BUILD_FAILED);
    assert_string_equal(r.record.error, "the command said no");
    assert_string_equal(r.record.error_class, "COMMAND");
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    json_auto_t *last = NULL;
    assert_ok(queue_events(r.q, r.claim.id, 2, 0, last_payload, &last, &err), &err);
    assert_string_equal(json_string_value(json_object_get(last, "hint")), "Do it another way.");
    run_teardown(&r);
}

static void test_child_that_dies(void **state)
{
    static const struct {
        const char *mode, *error;
    } rows[] = {
        {"sigkill", "the build process was killed by SIGKILL; the last lines of its log:\n"
                    "first line\nthe last words of sigkill"},
        {"sigsegv", "the build process was killed by SIGSEGV; the last lines of its log:\n"
                    "first line\nthe last words of sigsegv"},
        {"hang-up", "the build process was killed by SIGKILL; the last lines of its log:\n"
                    "first line\nthe last words of hang-up"},
        {"exit7", "the build process ended without a result (exit status 7); the last lines of its "
                  "log:\nfirst line\nthe last words of exit7"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%zu", (char *)*state, i);
        struct run r;
        run_mode(&r, dir, rows[i].mode);
        assert_int_equal(r.status, BUILD_FAILED);
        assert_string_equal(r.record.error, rows[i].error);
        assert_string_equal(r.record.error_class, "host");
        assert_events(&r, "build-status queued|build-status running|note before the end|"
                          "build-status failed|");
        run_teardown(&r);
    }
}

static void test_child_that_lies(void **state)
{
    static const struct {
        const char *mode, *error, *events;
    } rows[] = {
        {"garbage", "the build process sent a message of 1195725856 bytes", "note before the end|"},
        {"bad-event", "the build process sent a bad event message", ""},
        {"forged", "the build process sent an event of type \"build-status\"", ""},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%zu", (char *)*state, i);
        struct run r;
        run_mode(&r, dir, rows[i].mode);
        assert_int_equal(r.status, BUILD_FAILED);
        assert_non_null(strstr(r.record.error, rows[i].error));
        assert_string_equal(r.record.error_class, "host");
        CB_AUTO_FREE char *events = cb_xasprintf(
            "build-status queued|build-status running|%sbuild-status failed|", rows[i].events);
        assert_events(&r, events);
        run_teardown(&r);
    }
}

static void test_program_that_does_not_exist(void **state)
{
    struct run r;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    run_setup(&r, *state, 1);
    const char *argv[] = {"/nonexistent/program", NULL};
    struct worker_options o = {.child_argv = argv, .cancel_fd = -1};
    assert_fails(worker_run(r.q, &r.claim, &o, &r.status, &err), &err, CB_E_ENV, "no such program");
    assert_ok(queue_get(r.q, r.claim.id, &r.record, &err), &err);
    assert_int_equal(r.record.status, BUILD_FAILED);
    assert_string_equal(r.record.error_class, "ENV");
    run_teardown(&r);
}

static void test_attempts_left_go_back_to_the_queue(void **state)
{
    static const char *const modes[] = {"sigkill", "net"};
    for (size_t i = 0; i < 2; i++) {
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%zu", (char *)*state, i);
        struct run r;
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        run_setup(&r, dir, 2);
        assert_ok(run_worker(&r, modes[i], -1, &err), &err);
        assert_int_equal(r.status, BUILD_QUEUED);
        assert_ok(queue_get(r.q, r.claim.id, &r.record, &err), &err);
        assert_int_equal(r.record.status, BUILD_QUEUED);
        assert_null(r.record.owner);
        run_teardown(&r);
    }
}

struct flood_state {
    uint64_t seq;
    int line;
};

static int check_flood(void *arg, const struct event_out *ev)
{
    struct flood_state *f = arg;
    if (ev->seq != ++f->seq)
        return -CB_E_BUG;
    if (ev->type != EVENT_OUTPUT)
        return 0;
    char line[64];
    (void)snprintf(line, sizeof(line), "line %d\n", f->line++);
    return strcmp(json_string_value(json_object_get(ev->payload, "data")), line) ? -CB_E_BUG : 0;
}

static void assert_flood(struct run *r)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct flood_state f = {0};
    assert_ok(queue_events(r->q, r->claim.id, 0, 0, check_flood, &f, &err), &err);
    assert_int_equal(f.line, FLOOD);
    assert_int_equal(f.seq, FLOOD + 3);
    assert_int_equal(r->record.last_seq, FLOOD + 3);
}

static void test_flood_keeps_order_and_memory(void **state)
{
    struct rusage before, after;
    assert_int_equal(getrusage(RUSAGE_SELF, &before), 0);
    struct run r;
    run_mode(&r, *state, "flood");
    assert_int_equal(getrusage(RUSAGE_SELF, &after), 0);
    assert_int_equal(r.status, BUILD_SUCCESS);
    assert_flood(&r);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
    assert_true(after.ru_maxrss - before.ru_maxrss < 32 << 10); /* KiB; a quarantine is no leak */
#endif
    run_teardown(&r);
}

static void test_all_that_a_dead_child_said_is_kept(void **state)
{
    struct run r;
    run_mode(&r, *state, "flood-and-crash");
    assert_int_equal(r.status, BUILD_FAILED);
    assert_flood(&r);
    run_teardown(&r);
}

/* Reads one event and then nothing for as long as it lives, in the middle of its delivery. */
static int stop_here(void *arg, const struct event_out *ev)
{
    (void)ev;
    (void)cb_write_all(*(int *)arg, "x", 1, NULL);
    for (;;)
        pause();
    return 0;
}

static void test_stuck_reader_does_not_hold_the_worker(void **state)
{
    struct run r;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int p[2];
    assert_int_equal(pipe(p), 0);
    run_setup(&r, *state, 1);
    queue_free(r.q); /* a handle does not go through a fork */
    pid_t reader = fork();
    if (reader == 0) {
        struct queue *q;
        if (queue_open(r.db, &q, NULL) == 0)
            (void)queue_events(q, r.claim.id, 0, 0, stop_here, &p[1], NULL);
        _exit(1);
    }
    char c;
    close(p[1]);
    assert_int_equal(read(p[0], &c, 1), 1);
    close(p[0]);
    assert_ok(queue_open(r.db, &r.q, &err), &err);
    assert_ok(run_worker(&r, "flood", -1, &err), &err);
    assert_int_equal(r.status, BUILD_SUCCESS);
    (void)kill(reader, SIGKILL);
    assert_int_equal(waitpid(reader, NULL, 0), reader);
    run_teardown(&r);
}

/* A fifo whose other end the child holds while it lives. */
static int make_fifo(const char *dir)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/fifo", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(setenv("TEST_FIFO", path, 1), 0);
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

/* Waits until somebody held the fifo and all who did are gone. */
static void wait_gone(int fifo)
{
    struct pollfd p = {.fd = fifo, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 60000), 1);
    assert_true(p.revents & POLLHUP);
}

/* Cancels once the child runs: opens the fifo for reading with blocking until it has a writer. */
static pid_t cancel_when_running(const char *dir, int cancel_fd)
{
    pid_t pid = fork();
    if (pid == 0) {
        CB_AUTO_FREE char *path = cb_xasprintf("%s/fifo", dir);
        int fd = open(path, O_RDONLY);
        _exit(fd >= 0 && write(cancel_fd, "x", 1) == 1 ? 0 : 1);
    }
    return pid;
}

static void cancel_mode(struct run *r, const char *dir, const char *mode)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int p[2];
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    int fifo = make_fifo(dir);
    pid_t canceller = cancel_when_running(dir, p[1]);
    run_setup(r, dir, 3);
    assert_ok(run_worker(r, mode, p[0], &err), &err);
    assert_ok(queue_get(r->q, r->claim.id, &r->record, &err), &err);
    assert_int_equal(r->record.status, BUILD_CANCELLED);
    assert_int_equal(waitpid(canceller, NULL, 0), canceller);
    wait_gone(fifo);
    close(fifo);
    close(p[0]);
    close(p[1]);
}

static void test_cancel_of_a_child_that_ignores_it(void **state)
{
    struct run r;
    cancel_mode(&r, *state, "ignore-term");
    assert_string_equal(r.record.error, "cancelled");
    assert_string_equal(r.record.error_class, "CANCELED");
    run_teardown(&r);
}

static void test_cancel_of_a_child_that_tidies_up(void **state)
{
    struct run r;
    cancel_mode(&r, *state, "cancel-well");
    assert_string_equal(r.record.error, "stopped as asked");
    assert_events(&r, "build-status queued|build-status running|note tidied up|"
                      "build-status cancelled|");
    run_teardown(&r);
}

static void test_child_dies_with_its_worker(void **state)
{
    const char *dir = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int fifo = make_fifo(dir);
    pid_t supervisor = fork();
    if (supervisor == 0) {
        struct run r;
        run_setup(&r, dir, 1);
        (void)run_worker(&r, "wait", -1, NULL);
        _exit(1);
    }
    CB_AUTO_FREE char *db = cb_xasprintf("%s/queue.db", dir);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/fifo", dir);
    pid_t watcher = fork(); /* ends when the child runs */
    if (watcher == 0)
        _exit(open(path, O_RDONLY) >= 0 ? 0 : 1);
    int status;
    assert_int_equal(waitpid(watcher, &status, 0), watcher);
    assert_int_equal(status, 0);
    assert_int_equal(kill(supervisor, SIGKILL), 0);
    assert_int_equal(waitpid(supervisor, NULL, 0), supervisor);
    wait_gone(fifo);
    close(fifo);

    struct queue *q = NULL;
    struct build_record rec;
    char id[BUILD_ID_LEN + 1];
    assert_ok(queue_open(db, &q, &err), &err);
    assert_ok(queue_abandon_dead(q, NULL, NULL, &err), &err);
    assert_ok(queue_find(q, "web", id, &err), &err);
    assert_ok(queue_get(q, id, &rec, &err), &err);
    assert_int_equal(rec.status, BUILD_FAILED);
    assert_string_equal(rec.error, "abandoned: the process that ran it is gone");
    build_record_release(&rec);
    queue_free(q);
}

/* The worker's half is played by the test: it hands out the job, then is gone. */
static void test_child_learns_that_its_worker_is_gone(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int p[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
    CB_AUTO_BUF b = CB_BUF_INIT(4096);
    json_auto_t *job = json_pack("{s:s,s:i,s:s,s:s}", "id", "01J00000000000000000000000", "attempt",
                                 1, "config", "{}", "options", "{}");
    assert_ok(wire_put(&b, WIRE_JOB, job, &err), &err);
    assert_ok(cb_write_all(p[0], b.data, b.len, &err), &err);
    struct job_channel *ch = NULL;
    assert_ok(job_channel_open(p[1], &ch, &err), &err);
    assert_fails(job_channel_event(ch, EVENT_NOTE, json_object(), &err), &err, CB_E_CORRUPT,
                 "note event: text");
    assert_ok(job_channel_event(ch, EVENT_NOTE, event_text("heard"), &err), &err);
    close(p[0]);
    assert_fails(job_channel_event(ch, EVENT_NOTE, event_text("not"), &err), &err, CB_E_CANCELED,
                 "is gone");
    assert_fails(job_channel_finish(ch, NULL, NULL, &err), &err, CB_E_CANCELED, "is gone");
    job_channel_free(ch);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
    close(p[0]);
    assert_fails(job_channel_open(p[1], &ch, &err), &err, CB_E_CANCELED, "receive the job");
}

/* Files may not grow beyond a size: the database cannot either, as on a full disk. */
static void test_full_disk_stops_the_child(void **state)
{
    struct run r;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int fifo = make_fifo(*state);
    run_setup(&r, *state, 1);
    (void)signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 1 << 20;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int rc = run_worker(&r, "flood", -1, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    (void)signal(SIGXFSZ, SIG_DFL);
    assert_true(rc == -CB_E_ENV || rc == -CB_E_SYS);
    assert_non_null(strstr(err.msg, "queue database"));
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left */
    close(fifo);
    run_teardown(&r);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "child") == 0)
        return child_main(argv[2]);
    const struct CMUnitTest tests[] = {
        test_in_dir(test_build_that_succeeds),
        test_in_dir(test_build_that_fails),
        test_in_dir(test_child_that_dies),
        test_in_dir(test_child_that_lies),
        test_in_dir(test_program_that_does_not_exist),
        test_in_dir(test_attempts_left_go_back_to_the_queue),
        test_in_dir(test_flood_keeps_order_and_memory),
        test_in_dir(test_all_that_a_dead_child_said_is_kept),
        test_in_dir(test_stuck_reader_does_not_hold_the_worker),
        test_in_dir(test_cancel_of_a_child_that_ignores_it),
        test_in_dir(test_cancel_of_a_child_that_tidies_up),
        test_in_dir(test_child_dies_with_its_worker),
        cmocka_unit_test(test_child_learns_that_its_worker_is_gone),
        test_in_dir(test_full_disk_stops_the_child),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
