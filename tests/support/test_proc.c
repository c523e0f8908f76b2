#include "check.h"

#include "support/clock.h"
#include "support/proc.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

static int run(const char *script, const char *input, int64_t timeout_ms, struct cb_proc_result *r,
               struct cb_error *err)
{
    const char *argv[] = {"sh", "-c", script, NULL};
    struct cb_proc_spec spec = {.argv = argv, .own_session = true};
    return cb_proc_run(&spec, input, 1000, timeout_ms, r, err);
}

static void test_run_passes_input_and_output(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_proc_result r;
    assert_ok(run("cat; echo bad >&2; exit 3", "hello", 10000, &r, &err), &err);
    assert_string_equal(r.out.data, "hello");
    assert_int_equal(WEXITSTATUS(r.status), 3);
    assert_fails(cb_proc_check(&r, "try", &err), &err, CB_E_SYS, "try: exit status 3: bad");
    cb_proc_result_release(&r);
}

static void test_run_drops_what_is_above_the_ceiling(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_proc_result r;
    assert_ok(run("head -c 1000000 /dev/zero", NULL, 10000, &r, &err), &err);
    assert_int_equal(r.out.len, 1000);
    assert_int_equal(r.status, 0);
    cb_proc_result_release(&r);
}

static void test_run_stops_at_the_time_limit(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_proc_result r;
    assert_fails(run("sleep 1000 & sleep 1000", NULL, 50, &r, &err), &err, CB_E_TIMEOUT,
                 "took longer");
    cb_proc_result_release(&r);
}

static void test_missing_program_is_named(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const char *argv[] = {"no-such-program-here", NULL};
    struct cb_proc_spec spec = {.argv = argv};
    assert_fails(cb_proc_start(&spec, &err), &err, CB_E_ENV,
                 "no-such-program-here: no such program");
}

static void test_exec_error_is_reported_at_start(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/bad", (char *)*state);
    assert_ok(cb_write_file(path, "#!/no/such/interpreter\n", 23, 0755, &err), &err);
    const char *argv[] = {path, NULL};
    struct cb_proc_spec spec = {.argv = argv};
    assert_fails(cb_proc_start(&spec, &err), &err, CB_E_SYS, "exec: No such file");
}

static void test_only_named_descriptors_reach_the_child(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int leak = dup(0); /* not close-on-exec */
    int p[2];
    assert_int_equal(pipe(p), 0);
    const char *argv[] = {"sh", "-c", "ls /proc/self/fd | tr '\\n' ' ' >&7", NULL};
    struct cb_proc_fd fds[] = {{p[1], 7}};
    struct cb_proc_spec spec = {.argv = argv, .fds = fds, .n_fds = 1};
    pid_t pid = cb_proc_start(&spec, &err);
    assert_ok(pid, &err);
    close(p[1]);
    char out[64] = "";
    assert_true(read(p[0], out, sizeof(out) - 1) > 0);
    assert_string_equal(out, "0 1 2 3 7 "); /* 3 is ls reading the folder */
    int st;
    assert_int_equal(cb_proc_wait(pid, -1, &st, &err), 1);
    close(p[0]);
    close(leak);
}

static void test_child_dies_with_its_parent(void **state)
{
    (void)state;
    int p[2];
    assert_int_equal(pipe(p), 0);
    pid_t parent = fork();
    if (parent == 0) {
        const char *argv[] = {"sleep", "1000", NULL};
        struct cb_proc_spec spec = {.argv = argv, .own_session = true};
        pid_t pid = cb_proc_start(&spec, NULL);
        if (write(p[1], &pid, sizeof(pid)) != (ssize_t)sizeof(pid))
            _exit(1);
        pause();
        _exit(0);
    }
    pid_t child = -1;
    assert_int_equal(read(p[0], &child, sizeof(child)), sizeof(child));
    assert_true(child > 0);
    kill(parent, SIGKILL);
    waitpid(parent, NULL, 0);
    CB_AUTO_FREE char *stat = cb_xasprintf("/proc/%d/stat", (int)child);
    int64_t end = cb_monotonic_ms() + 10000;
    for (;;) { /* gone, or a zombie that nobody reaps here */
        CB_AUTO_BUF b = CB_BUF_INIT(0);
        if (cb_read_file(stat, 4096, &b, NULL) < 0 || strstr(b.data, ") Z "))
            break;
        if (cb_monotonic_ms() > end)
            fail_msg("the child lives on");
    }
    close(p[0]);
    close(p[1]);
}

static void test_status_text(void **state)
{
    (void)state;
    char t[64];
    cb_status_text(9, t, sizeof(t));
    assert_string_equal(t, "killed by SIGKILL");
    cb_status_text(2 << 8, t, sizeof(t));
    assert_string_equal(t, "exit status 2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run_passes_input_and_output),
        cmocka_unit_test(test_run_drops_what_is_above_the_ceiling),
        cmocka_unit_test(test_run_stops_at_the_time_limit),
        cmocka_unit_test(test_missing_program_is_named),
        test_in_dir(test_exec_error_is_reported_at_start),
        cmocka_unit_test(test_only_named_descriptors_reach_the_child),
        cmocka_unit_test(test_child_dies_with_its_parent),
        cmocka_unit_test(test_status_text),
    };
    return cmocka_run_group_tests_name("support/proc", tests, NULL, NULL);
}
