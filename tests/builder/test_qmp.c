#include "check.h"

#include "builder/qmp.h"
#include "support/file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define GREETING                                                                                   \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, "             \
    "\"package\": \"Debian 1:7.2\\u0007\"}, \"capabilities\": [\"oob\"]}}\n"
#define SET_UP GREETING "{\"return\": {}, \"id\": 1}\n"

enum { SOON_MS = 20000 };

/* A monitor whose every word is known from the start: the socket's buffer holds them. */
static int monitor(int *theirs, const char *text)
{
    int pair[2];
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_ok(cb_write_all(pair[1], text, strlen(text), &err), &err);
    *theirs = pair[1];
    return pair[0];
}

static void test_a_greeting_tells_the_version(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int theirs;
    CB_AUTO_FD fd = monitor(&theirs, SET_UP "{\"event\": \"STOP\"}\n"
                                            "{\"return\": {\"status\": \"paused\"}, \"id\": 2}\n");
    struct qmp *q = NULL;
    assert_ok(qmp_open(fd, SOON_MS, &q, &err), &err);
    assert_string_equal(qmp_version(q), "7.2.22 (Debian 1:7.2 )");
    json_t *answer = NULL;
    assert_ok(qmp_run(q, "query-status", NULL, -1, SOON_MS, &answer, &err), &err);
    assert_string_equal(json_string_value(json_object_get(answer, "status")), "paused");
    json_decref(answer);
    char said[256] = "";
    assert_true(read(theirs, said, sizeof(said) - 1) > 0);
    assert_string_equal(said, "{\"execute\":\"qmp_capabilities\",\"id\":1}\n"
                              "{\"execute\":\"query-status\",\"id\":2}\n");
    qmp_close(q);
    cb_close(theirs);
}

static void test_what_is_not_a_monitor_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *said;
        enum cb_code code;
        const char *why;
    } table[] = {
        {"", CB_E_SYS, "QEMU closed its monitor"},
        {"{}\n", CB_E_UNTRUSTED, "QEMU's monitor sent no greeting"},
        {"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": -1, \"minor\": 2, \"major\": 7}}}}\n",
         CB_E_UNTRUSTED, "QEMU's monitor sent no greeting"},
        {"[1]\n", CB_E_UNTRUSTED, "QEMU's monitor sent a line that is no JSON object"},
        {"hello\n", CB_E_UNTRUSTED, "QEMU's monitor sent a line that is no JSON object"},
        {"{\"a\": 1, \"a\": 2}\n", CB_E_UNTRUSTED,
         "QEMU's monitor sent a line that is no JSON object"},
        {GREETING, CB_E_SYS, "QEMU closed its monitor"},
        {GREETING "{\"return\": {}}\n", CB_E_UNTRUSTED, "QEMU's monitor sent an answer to nothing"},
        {GREETING "{\"return\": {}, \"id\": 7}\n", CB_E_UNTRUSTED,
         "QEMU's monitor sent an answer to nothing"},
        {GREETING "{\"id\": 1}\n", CB_E_UNTRUSTED,
         "QEMU's monitor sent an answer without a result"},
        {GREETING "{\"error\": {\"desc\": \"not\\ntoday\"}, \"id\": 1}\n", CB_E_CONFLICT,
         "QEMU refuses qmp_capabilities: not today"},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        int theirs;
        CB_AUTO_FD fd = monitor(&theirs, table[i].said);
        assert_int_equal(shutdown(theirs, SHUT_WR), 0);
        struct qmp *q = NULL;
        assert_fails(qmp_open(fd, SOON_MS, &q, &err), &err, table[i].code, table[i].why);
        assert_null(q);
        cb_close(theirs);
    }
}

static void test_silence_and_endless_lines_end(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_ERROR late = CB_ERROR_INIT;
    int theirs;
    struct qmp *q = NULL;
    CB_AUTO_FD fd = monitor(&theirs, GREETING);
    assert_fails(qmp_open(fd, 1, &q, &late), &late, CB_E_TIMEOUT,
                 "QEMU's monitor did not answer in time");
    cb_close(theirs);
    CB_AUTO_FREE char *endless = cb_xmalloc(QMP_LINE_MAX + 2);
    memset(endless, ' ', QMP_LINE_MAX + 1);
    endless[QMP_LINE_MAX + 1] = '\0';
    CB_AUTO_FD other = monitor(&theirs, endless);
    assert_fails(qmp_open(other, SOON_MS, &q, &err), &err, CB_E_UNTRUSTED,
                 "QEMU's monitor sent a line that does not end");
    cb_close(theirs);
}

#define OK(n) "{\"return\": {}, \"id\": " #n "}\n"
#define STATUS(s) "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"" s "\"}}\n"

#define RUN_STATE(n, s) "{\"return\": {\"status\": \"" s "\"}, \"id\": " #n "}\n"

/* The descriptor arrives, and the call waits for the end of what it started. */
static void test_saving_passes_a_file_and_waits_for_the_event(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int theirs;
    CB_AUTO_FD fd = monitor(&theirs, SET_UP OK(2) OK(3) OK(4) STATUS("setup") OK(5) STATUS("active")
                                         STATUS("completed") RUN_STATE(6, "finish-migrate")
                                             RUN_STATE(7, "postmigrate"));
    CB_AUTO_FD file = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    assert_true(file >= 0);
    struct qmp *q = NULL;
    assert_ok(qmp_open(fd, SOON_MS, &q, &err), &err);
    assert_ok(qmp_save(q, file, SOON_MS, &err), &err);
    char said[1024] = "";
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    int got = -1;
    size_t n = 0;
    while (n < sizeof(said) - 1 && !strstr(said, "\"migrate\"")) {
        struct iovec io = {said + n, sizeof(said) - 1 - n};
        struct msghdr m = {.msg_iov = &io,
                           .msg_iovlen = 1,
                           .msg_control = &control,
                           .msg_controllen = sizeof(control)};
        ssize_t r = recvmsg(theirs, &m, 0);
        assert_true(r > 0);
        n += (size_t)r;
        const struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        if (c && c->cmsg_type == SCM_RIGHTS)
            memcpy(&got, CMSG_DATA(c), sizeof(got));
    }
    assert_non_null(strstr(said, "\"getfd\""));
    assert_non_null(strstr(said, "{\"uri\":\"fd:state\"}"));
    assert_true(got >= 0);
    CB_AUTO_ERROR also = CB_ERROR_INIT;
    assert_ok(cb_write_all(got, "state", 5, &also), &also);
    char text[6] = "";
    assert_int_equal(pread(file, text, 5, 0), 5);
    assert_string_equal(text, "state");
    cb_close(got);
    qmp_close(q);
    cb_close(theirs);
}

static void test_a_load_that_fails_says_so(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_ERROR refused = CB_ERROR_INIT;
    int theirs;
    CB_AUTO_FD fd = monitor(&theirs, SET_UP OK(2) OK(3) OK(4) OK(5) STATUS("failed") OK(6)
                                         OK(7) "{\"error\": {\"desc\": \"no file\"}, \"id\": 8}\n");
    CB_AUTO_FD file = open("/dev/null", O_RDONLY | O_CLOEXEC);
    struct qmp *q = NULL;
    assert_ok(qmp_open(fd, SOON_MS, &q, &err), &err);
    assert_fails(qmp_load(q, file, SOON_MS, &err), &err, CB_E_CONFLICT,
                 "load the saved machine: QEMU failed");
    assert_fails(qmp_load(q, file, SOON_MS, &refused), &refused, CB_E_CONFLICT,
                 "load the saved machine: QEMU refuses getfd: no file");
    qmp_close(q);
    cb_close(theirs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_greeting_tells_the_version),
        cmocka_unit_test(test_what_is_not_a_monitor_is_refused),
        cmocka_unit_test(test_silence_and_endless_lines_end),
        cmocka_unit_test(test_saving_passes_a_file_and_waits_for_the_event),
        cmocka_unit_test(test_a_load_that_fails_says_so),
    };
    return cmocka_run_group_tests_name("qmp", tests, NULL, NULL);
}
