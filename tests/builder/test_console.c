#include "check.h"

#include "builder/console.h"
#include "builder/machine.h"

#include <fcntl.h>
#include <sys/stat.h>

static void put(int fd, const char *text)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(cb_write_all(fd, text, strlen(text), &err), &err);
}

static void test_console_tail_is_what_was_just_written(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/console.log", (char *)*state);
    struct machine m = {.console = path};
    CB_AUTO_FD fd = -1;
    assert_ok(console_open(path, &m.console_log, &fd, &err), &err);
    put(fd, "one\r\ntwo\r\n\x1b[31mthree\x07\r\n\r\n");
    static const struct {
        unsigned lines;
        const char *tail;
    } cases[] = {
        {0, ""}, {1, "^[[31mthree^G"}, {2, "two\n^[[31mthree^G"}, {9, "one\ntwo\n^[[31mthree^G"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_FREE char *tail = machine_console_tail(&m, cases[i].lines);
        assert_string_equal(tail, cases[i].tail);
    }
    put(fd, "[ 3.0] Kernel panic - not syncing: no init\r\n[ 3.1] CPU: 0\r\n[ 3.2] ?\r\n"
            "[ 3.3] Call Trace:\r\n[ 3.4] rest\r\n");
    static const struct {
        unsigned lines;
        const char *tail;
    } panics[] = {
        {1, "[ 3.4] rest"}, /* one line is the last one, whatever it says */
        {3, "\n[ 3.0] Kernel panic - not syncing: no init\n[ 3.1] CPU: 0"},
        {5, "[ 3.0] Kernel panic - not syncing: no init\n[ 3.1] CPU: 0\n[ 3.2] ?\n"
            "[ 3.3] Call Trace:\n[ 3.4] rest"},
    };
    for (size_t i = 0; i < sizeof(panics) / sizeof(panics[0]); i++) {
        CB_AUTO_FREE char *why = machine_console_tail(&m, panics[i].lines);
        assert_string_equal(why, panics[i].tail);
    }
    put(fd, "the end\n");
    console_close(m.console_log); /* while somebody still could write */
    m.console_log = NULL;
    CB_AUTO_FREE char *tail = machine_console_tail(&m, 1);
    assert_string_equal(tail, "the end");
}

static void test_console_that_is_flooded_stays_small_and_keeps_the_end(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/console.log", (char *)*state);
    struct machine m = {.console = path};
    CB_AUTO_FD fd = -1;
    assert_ok(console_open(path, &m.console_log, &fd, &err), &err);
    char line[1024];
    memset(line, 'x', sizeof(line) - 2);
    line[sizeof(line) - 2] = '\n';
    line[sizeof(line) - 1] = '\0';
    for (int i = 0; i < 9000; i++)
        put(fd, line);
    put(fd, "last words\n");
    cb_close(cb_take_fd(&fd));
    CB_AUTO_FREE char *tail = machine_console_tail(&m, 1);
    assert_string_equal(tail, "last words");
    console_close(m.console_log);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size > 0 && st.st_size <= 4 << 20);
}

static void test_of_a_panic_the_reason_is_shown(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/console.log", (char *)*state);
    static const char text[] = "one\r\nI am no init\r\n"
                               "[  1.2] Kernel panic - not syncing: Attempted to kill init! "
                               "exitcode=0x00000700\r\n[  1.3] CPU: 0 PID: 1\r\n  <TASK>\r\n";
    struct machine m = {.console = path, .program = "QEMU", .ended = true};
    assert_ok(cb_write_file(path, text, strlen(text), 0644, &err), &err);
    CB_AUTO_FREE char *tail = machine_console_tail(&m, 2);
    assert_string_equal(tail, "I am no init\n[  1.2] Kernel panic - not syncing: Attempted to kill "
                              "init! exitcode=0x00000700");
    CB_AUTO_FREE char *end = machine_end_text(&m);
    assert_string_equal(end, "QEMU: the guest's kernel panicked: Attempted to kill init! "
                             "exitcode=0x00000700");
    assert_ok(cb_write_file(path, text, 5, 0644, &err), &err);
    CB_AUTO_FREE char *plain = machine_end_text(&m);
    assert_string_equal(plain, "QEMU: powered off");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_console_tail_is_what_was_just_written),
        test_in_dir(test_console_that_is_flooded_stays_small_and_keeps_the_end),
        test_in_dir(test_of_a_panic_the_reason_is_shown),
    };
    return cmocka_run_group_tests_name("console", tests, NULL, NULL);
}
