/* A command that is given input, by a pipe and by a terminal; and a builder whose disk was used
 * before: the layer goes on where it was, and its diff is what it would have been. */
#include "builder/agent_fixture.h"

#include <fcntl.h>

static void start_on(struct agent_fixture *f, const char *dir, const struct guest_setup *more)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_STRV env = {0};
    struct guest_setup g = *more;
    assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
    fixture_start(f, dir, fixture_image, AGENT_NATIVE);
    g.hostname = "capsule";
    g.image_env = &env;
    g.image_user = "";
    g.image_workdir = "/";
    g.dns = "10.0.2.3";
    assert_ok(session_setup(f->s, &g, &err), &err);
    fixture_layer(f);
}

static void start(struct agent_fixture *f)
{
    const struct guest_setup g = {0};
    CB_AUTO_FREE char *dir = fixture_dir();
    start_on(f, dir, &g);
}

/* A file that can be read from its start, with @text in it. */
static int file_of(const char *text)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/input", fixture_work);
    assert_ok(cb_write_file(path, text, strlen(text), 0600, &err), &err);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static struct step_result shell(struct agent_fixture *f, const char *script,
                                const struct shell_io *io)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct step_result r = {0};
    const struct guest_step st = {.step = 900, .script = script};
    cb_buf_clear(&f->out);
    cb_buf_clear(&f->err);
    assert_ok(session_shell(f->s, &st, io, &r, &err), &err);
    return r;
}

static struct step_result shell_text(struct agent_fixture *f, const char *script, const char *text)
{
    CB_AUTO_FD in = file_of(text);
    const struct shell_io io = {.input = in, .resized = -1};
    return shell(f, script, &io);
}

static void test_it_reads_what_is_given_to_its_end(void **state)
{
    (void)state;
    struct agent_fixture f;
    start(&f);
    struct step_result r = shell_text(&f, "cat; echo over >&2; exit 3", "one\ntwo");
    assert_int_equal(r.exit_code, 3);
    assert_string_equal(f.out.data, "one\ntwo");
    assert_string_equal(f.err.data, "over\n");
    fixture_ok(&f, "cat"); /* steps after it have none, as always */
    fixture_stop(&f);
}

static void test_much_input_is_not_lost(void **state)
{
    (void)state;
    struct agent_fixture f;
    enum { MANY = 1 << 20 };
    CB_AUTO_FREE char *text = cb_xcalloc(1, MANY + 1);
    for (size_t i = 0; i < MANY; i++)
        text[i] = (char)('a' + i * 7 % 26);
    start(&f);
    (void)shell_text(&f, "cat", text);
    assert_int_equal(f.out.len, MANY);
    assert_memory_equal(f.out.data, text, MANY);
    fixture_stop(&f);
}

static void test_one_that_reads_nothing_ends_all_the_same(void **state)
{
    (void)state;
    struct agent_fixture f;
    CB_AUTO_FREE char *text = cb_xcalloc(1, (1 << 20) + 1);
    memset(text, 'x', 1 << 20);
    start(&f);
    assert_int_equal(shell_text(&f, "exec <&-; sleep 0.1; exit 4", text).exit_code, 4);
    assert_int_equal(shell_text(&f, "sleep 0.1; exit 5", text).exit_code, 5);
    fixture_ok(&f, "true");
    fixture_stop(&f);
}

static void small(void *arg, unsigned *rows, unsigned *cols)
{
    unsigned *asked = arg;
    *rows = 20 + (*asked)++;
    *cols = 70;
}

static void test_a_terminal_has_a_size_and_an_owner(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    unsigned asked = 0;
    int keys[2], resized[2];
    assert_int_equal(pipe2(keys, O_CLOEXEC), 0);
    assert_int_equal(pipe2(resized, O_CLOEXEC | O_NONBLOCK), 0);
    start(&f);
    const struct shell_io io = {
        .input = keys[0], .size = small, .resized = resized[0], .arg = &asked};
    assert_int_equal(write(keys[1], "typed\n", 6), 6);
    assert_int_equal(write(resized[1], "x", 1), 1);
    const struct guest_step st = {
        .step = 901,
        .script = "test -t 0 && test -t 1 && test -t 2 && test -O /dev/stdin && stty size && "
                  "read a && while [ \"$(stty size)\" != '21 70' ]; do sleep 0.02; done && "
                  "echo got $a",
        .user = "12:34"};
    struct step_result r = {0};
    assert_ok(session_shell(f.s, &st, &io, &r, &err), &err);
    if (r.exit_code != 0)
        fail_msg("exit %d: %s", r.exit_code, f.out.data ? f.out.data : "");
    assert_non_null(strstr(f.out.data, "got typed\r\n"));
    fixture_stop(&f);
    for (int i = 0; i < 2; i++) {
        cb_close(keys[i]);
        cb_close(resized[i]);
    }
}

static void end_keeping(struct agent_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(session_shutdown_keeping(f->s, &err), &err);
    fixture_stop(f);
}

/* Two layers; the second one in two halves, with another agent on the same disk in between. */
static char *outcome(const char *one, const char *two, const char *three, bool interrupted)
{
    struct agent_fixture f;
    CB_AUTO_FREE char *dir = fixture_dir();
    const struct guest_setup fresh = {0}, used = {.scratch_used = true, .stack_layers = 1};
    start_on(&f, dir, &fresh);
    fixture_ok(&f, one);
    free(fixture_diff(&f));
    fixture_layer(&f);
    fixture_ok(&f, two);
    if (interrupted) {
        end_keeping(&f);
        start_on(&f, dir, &used);
    }
    fixture_ok(&f, three);
    char *diff = fixture_diff(&f);
    fixture_stop(&f);
    return diff;
}

static void test_a_layer_goes_on_where_it_was(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"echo 1 >/data/new", "rm /data/new; echo 2 >/data/two",
         "cat /data/two; echo 3 >/data/three"},
        {"rm -r /data/sub", "mkdir /data/sub; echo n >/data/sub/n", "rm /data/sub/n"},
        {"true", "chmod 700 /data/sub; chown 5:6 /data/sub", "chmod 755 /data/sub"},
        {"true", "rm /etc/resolv.conf", "test ! -e /etc/resolv.conf"},
        {"mkdir -p /data/a/b; echo 1 >/data/a/b/c", "rm -r /data/a", "mkdir /data/a"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_FREE char *want = outcome(cases[i][0], cases[i][1], cases[i][2], false);
        CB_AUTO_FREE char *got = outcome(cases[i][0], cases[i][1], cases[i][2], true);
        assert_string_equal(want, got);
    }
}

static void test_the_last_attempt_is_there_and_the_next_one_drops_it(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    CB_AUTO_FREE char *dir = fixture_dir();
    const struct guest_setup fresh = {0}, used = {.scratch_used = true};
    start_on(&f, dir, &fresh);
    fixture_ok(&f, "echo before >/data/before");
    assert_ok(session_try(f.s, &err), &err);
    fixture_ok(&f, "echo half >/data/half");
    end_keeping(&f);
    start_on(&f, dir, &used);
    fixture_ok(&f, "test -e /data/half && test -e /data/before");
    assert_ok(session_try(f.s, &err), &err);
    fixture_ok(&f, "test ! -e /data/half && test -e /data/before");
    assert_ok(session_try_keep(f.s, &err), &err);
    CB_AUTO_FREE char *diff = fixture_diff(&f);
    assert_null(strstr(diff, "half"));
    assert_non_null(strstr(diff, "data/before"));
    fixture_stop(&f);
}

static void test_a_disk_that_lacks_a_layer_is_refused(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    CB_AUTO_FREE char *dir = fixture_dir();
    CB_AUTO_STRV env = {0};
    struct guest_setup g = {.image_env = &env, .scratch_used = true, .stack_layers = 2};
    assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
    fixture_start(&f, dir, fixture_image, AGENT_NATIVE);
    assert_fails(session_setup(f.s, &g, &err), &err, CB_E_SYS, "scratch: u0 is missing");
    fixture_stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_reads_what_is_given_to_its_end),
        cmocka_unit_test(test_much_input_is_not_lost),
        cmocka_unit_test(test_one_that_reads_nothing_ends_all_the_same),
        cmocka_unit_test(test_a_terminal_has_a_size_and_an_owner),
        cmocka_unit_test(test_a_layer_goes_on_where_it_was),
        cmocka_unit_test(test_the_last_attempt_is_there_and_the_next_one_drops_it),
        cmocka_unit_test(test_a_disk_that_lacks_a_layer_is_refused),
    };
    return fixture_run_tests("shell", tests);
}
