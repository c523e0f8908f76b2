#include "builder/agent_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void setup_guest(struct agent_fixture *f, const char *user, const char *workdir,
                        const char *runner)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_STRV env = {0};
    cb_strv_add(&env, "PATH=/opt/go/bin:/usr/local/sbin:/usr/bin:/bin");
    cb_strv_add(&env, "FROM_IMAGE=yes");
    const struct guest_setup g = {.hostname = "capsule",
                                  .image_env = &env,
                                  .image_user = user,
                                  .image_workdir = workdir,
                                  .runner_user = runner,
                                  .dns = "10.0.2.3"};
    assert_ok(session_setup(f->s, &g, &err), &err);
}

static void expect_out(struct agent_fixture *f, const char *script, const char *out)
{
    struct step_result r = fixture_run(f, script);
    if (r.exit_code != 0)
        fail_msg("\"%s\": exit %d: %s", script, r.exit_code, f->err.data ? f->err.data : "");
    assert_string_equal(f->out.data ? f->out.data : "", out);
}

static void run_commands(enum agent_kind kind)
{
    CB_AUTO_FREE char *dir = fixture_dir();
    struct agent_fixture f;
    fixture_start(&f, dir, fixture_image, kind);
    setup_guest(&f, "app", "/work/here", NULL);
    fixture_layer(&f);

    static const struct {
        const char *script, *out;
    } table[] = {
        {"echo hello", "hello\n"},
        {"printf partial", "partial"},
        {"id -u; id -g; id -G", "1234\n1234\n1234 77\n"},
        {"pwd", "/work/here\n"},
        {"echo $PATH", "/opt/go/bin:/usr/local/sbin:/usr/bin:/bin\n"},
        {"echo $HOME $USER $LOGNAME $SHELL $TERM $FROM_IMAGE $LANG",
         "/home/app app app /bin/sh dumb yes\n"},
        {"echo $0 $-", "bash hBc\n"},
        {"hostname; umask; cat", "capsule\n0022\n"},
        {"cat /etc/resolv.conf /etc/hostname", "nameserver 10.0.2.3\ncapsule\n"},
        {"ls /dev", "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\n"
                    "urandom\nzero\n"},
        {"ls -A /run /dev/shm; ls /proc/self/fd", "/dev/shm:\n\n/run:\nlock\n0\n1\n2\n3\n"},
        {"grep -c . /proc/self/mountinfo >/dev/null; grep Cap /proc/self/status | sort | sed -n 2p",
         "CapBnd:\t00000000a80425fb\n"},
        {"grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj", "NoNewPrivs:\t0\n0\n"},
        {"touch /sys/x 2>/dev/null || echo ro; touch /proc/sys/x 2>/dev/null || echo ro",
         "ro\nro\n"},
        {"ls / | grep -c scratch; true", "0\n"},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        expect_out(&f, table[i].script, table[i].out);

    struct step_result r = fixture_run(&f, "echo to stderr >&2; exit 3");
    assert_int_equal(r.exit_code, 3);
    assert_int_equal(r.signal, 0);
    assert_string_equal(f.err.data, "to stderr\n");
    r = fixture_run(&f, "kill -9 $$");
    assert_int_equal(r.exit_code, 137);
    assert_int_equal(r.signal, SIGKILL);
    r = fixture_run(&f, "sleep 1000 & echo started");
    assert_int_equal(r.exit_code, 0);
    assert_string_equal(f.out.data, "started\n");
    free(fixture_diff(&f));
    fixture_stop(&f);
}

static void test_commands_run_native(void **state)
{
    (void)state;
    run_commands(AGENT_NATIVE);
}

static void test_commands_run_static(void **state)
{
    (void)state;
    run_commands(AGENT_STATIC);
}

static void test_output_is_whole_however_much(void **state)
{
    (void)state;
    CB_AUTO_FREE char *dir = fixture_dir();
    struct agent_fixture f;
    fixture_start(&f, dir, fixture_image, AGENT_NATIVE);
    setup_guest(&f, "", "/", NULL);
    fixture_layer(&f);
    struct step_result r = fixture_run(
        &f, "for i in {1..200000}; do echo \"line $i of the output\"; done; printf end");
    assert_int_equal(r.exit_code, 0);
    assert_true(f.out.len > 4000000);
    size_t lines = 0;
    for (size_t i = 0; i < f.out.len; i++)
        lines += f.out.data[i] == '\n';
    assert_int_equal(lines, 200000);
    assert_string_equal(f.out.data + f.out.len - 4, "\nend");
    fixture_stop(&f);
}

static void test_step_out_of_time_is_ended(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *dir = fixture_dir();
    struct agent_fixture f;
    struct step_result r = {0};
    fixture_start(&f, dir, fixture_image, AGENT_NATIVE);
    setup_guest(&f, "", "/", NULL);
    fixture_layer(&f);
    const struct guest_step st = {
        .step = 900, .script = "(sleep 1000; echo late) & sleep 1000", .timeout_ms = 50};
    assert_ok(session_step(f.s, &st, &r, &err), &err);
    assert_true(r.timed_out);
    assert_int_equal(r.signal, SIGTERM);
    assert_int_equal(r.exit_code, 128 + SIGTERM);
    assert_null(f.out.data);
    /* The one in the background was told as well. */
    expect_out(&f, "while grep -qs ^sleep /proc/[0-9]*/comm; do :; done", "");
    fixture_stop(&f);
}

static void test_daemon_lives_until_its_layer_ends(void **state)
{
    (void)state;
    CB_AUTO_FREE char *dir = fixture_dir();
    struct agent_fixture f;
    fixture_start(&f, dir, fixture_image, AGENT_NATIVE);
    setup_guest(&f, "", "/", NULL);
    fixture_layer(&f);
    expect_out(&f,
               "mkfifo /run/p; (read x </run/p; echo noise; echo got $x >/run/q) & echo started",
               "started\n");
    expect_out(&f, "echo word >/run/p; until [ -s /run/q ]; do :; done; cat /run/q", "got word\n");
    expect_out(&f, "sleep 1000 & true", "");
    free(fixture_diff(&f));
    fixture_layer(&f);
    /* The shell itself expands the pattern: with `ls | wc` the count hung on which was forked
     * first. */
    expect_out(&f, "set -- /proc/[0-9]*; echo $#; ls -A /run", "2\nlock\n");
    fixture_stop(&f);
}

static void test_what_cannot_run_is_said(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *dir = fixture_dir();
    struct agent_fixture f;
    struct step_result r = {0};
    fixture_start(&f, dir, fixture_image, AGENT_NATIVE);
    setup_guest(&f, "", "/", NULL);

    const struct guest_step early = {.step = 1, .script = "true"};
    assert_fails(session_step(f.s, &early, &r, &err), &err, CB_E_BUG, "STEP outside a layer");
    const struct guest_layer ghost = {.name = "ghost", .user = "casper"};
    assert_ok(session_layer_begin(f.s, &ghost, &err), &err);
    assert_fails(session_step(f.s, &early, &r, &err), &err, CB_E_COMMAND,
                 "user \"casper\" is not in the image's /etc/passwd");

    CB_AUTO_STRV argv = {0};
    cb_strv_add(&argv, "no-such-program");
    const struct guest_step missing = {.step = 2, .argv = &argv, .as_root = true};
    assert_ok(session_step(f.s, &missing, &r, &err), &err);
    assert_int_equal(r.exit_code, 127);
    assert_string_equal(f.err.data, "capsule: no-such-program: No such file or directory\n");

    free(argv.v[0]);
    argv.v[0] = cb_xstrdup("/etc/passwd");
    cb_buf_clear(&f.err);
    assert_ok(session_step(f.s, &missing, &r, &err), &err);
    assert_int_equal(r.exit_code, 126);
    assert_string_equal(f.err.data, "capsule: /etc/passwd: Permission denied\n");
    fixture_stop(&f);
}

static void test_layer_and_step_say_how(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *dir = fixture_dir();
    struct agent_fixture f;
    struct step_result r = {0};
    fixture_start(&f, dir, fixture_image, AGENT_NATIVE);
    setup_guest(&f, "app", "/", NULL);
    struct config_pair layer_env[] = {{(char[]){"A"}, (char[]){"layer"}},
                                      {(char[]){"B"}, (char[]){"layer"}},
                                      {(char[]){"PATH"}, (char[]){"/of/layer:/bin"}}};
    struct config_pair step_env[] = {{(char[]){"B"}, (char[]){"a b=c"}}};
    const struct config_pairs layer_pairs = {.v = layer_env, .n = 3};
    const struct config_pairs step_pairs = {.v = step_env, .n = 1};
    const struct guest_layer l = {
        .name = "l", .env = &layer_pairs, .workdir = "/made/here", .user = "77:app"};
    assert_ok(session_layer_begin(f.s, &l, &err), &err);
    const struct guest_step st = {
        .step = 1, .script = "echo $A,$B,$FROM_IMAGE,$PATH; id -u; id -g; pwd", .env = &step_pairs};
    assert_ok(session_step(f.s, &st, &r, &err), &err);
    assert_string_equal(f.out.data, "layer,a b=c,yes,/of/layer:/usr/bin:/bin\n77\n1234\n"
                                    "/made/here\n");
    CB_AUTO_FREE char *diff = fixture_diff(&f);
    assert_string_equal(diff, "dir 0755 0:0 .\ndir 0755 0:0 made\ndir 0755 0:0 made/here\n");
    fixture_stop(&f);
}

static void test_agent_ends_with_its_host(void **state)
{
    (void)state;
    CB_AUTO_FREE char *dir = fixture_dir();
    struct agent_fixture f;
    fixture_start(&f, dir, fixture_image, AGENT_STATIC);
    setup_guest(&f, "", "/", NULL);
    fixture_layer(&f);
    expect_out(&f, "sleep 1000 & true", "");
    fixture_stop(&f); /* closes the stream and waits for the agent: it does not hang */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commands_run_native),
        cmocka_unit_test(test_commands_run_static),
        cmocka_unit_test(test_output_is_whole_however_much),
        cmocka_unit_test(test_step_out_of_time_is_ended),
        cmocka_unit_test(test_daemon_lives_until_its_layer_ends),
        cmocka_unit_test(test_what_cannot_run_is_said),
        cmocka_unit_test(test_layer_and_step_say_how),
        cmocka_unit_test(test_agent_ends_with_its_host),
    };
    return fixture_run_tests("session", tests);
}
