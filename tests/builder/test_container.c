#include "machine_check.h"
#include "machine_net.h"

#include "builder/builder.h"
#include "builder/container.h"
#include "support/proc.h"

#include <dirent.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { DISK = 16 << 20 };

struct place {
    char *dir, *lower, *scratch, *output, *work;
    struct settings settings;
    struct machine *m;
};

static void make_ext4(const char *path)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const char *const argv[] = {"mke2fs", "-q", "-F", "-t", "ext4", path, NULL};
    const struct cb_proc_spec spec = {.argv = argv};
    struct cb_proc_result res;
    assert_ok(cb_proc_run(&spec, NULL, 4096, 60000, &res, &err), &err);
    assert_ok(cb_proc_check(&res, "mke2fs", &err), &err);
    cb_proc_result_release(&res);
}

static int place_setup(void **state)
{
    void *dir;
    if (check_dir_setup(&dir) < 0)
        return -1;
    struct place *p = cb_xcalloc(1, sizeof(*p));
    p->dir = dir;
    p->lower = machine_disk_file(dir, "lower", DISK);
    p->scratch = machine_disk_file(dir, "scratch", DISK);
    p->output = machine_disk_file(dir, "output", DISK);
    make_ext4(p->lower);
    make_ext4(p->scratch);
    p->work = cb_xasprintf("%s/work", p->dir);
    p->settings = machine_settings();
    free(p->settings.home);
    p->settings.home = cb_xasprintf("%s/home", p->dir);
    *state = p;
    return 0;
}

static int place_teardown(void **state)
{
    struct place *p = *state;
    machine_container.stop(p->m, 0);
    void *dir = p->dir;
    free(p->lower);
    free(p->scratch);
    free(p->output);
    free(p->work);
    machine_settings_release(&p->settings);
    free(p);
    return check_dir_teardown(&dir);
}

static void start(struct place *p, bool network)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct machine_spec spec = {.mode = MACHINE_BUILD,
                                .work_dir = p->work,
                                .agent_path = STUB_AGENT,
                                .lower = p->lower,
                                .scratch = p->scratch,
                                .output = p->output,
                                .network = network,
                                .hostname = "builder-2",
                                .memory_mib = 512,
                                .console_fd = -1};
    assert_ok(machine_container.start(&p->settings, &spec, &p->m, &err), &err);
    CB_AUTO_FREE char *hello = machine_line(p->m->stream);
    assert_string_equal(hello, "hello");
}

/* Does @text occur in the file? */
static bool file_holds(const char *path, const char *text)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF b = CB_BUF_INIT(4 << 20);
    return cb_read_file(path, 4 << 20, &b, &err) == 0 && b.data && strstr(b.data, text);
}

/* A loop device whose file is in @dir. */
static bool has_loop(const char *dir)
{
    bool found = false;
    CB_AUTO_DIR d = opendir("/sys/block");
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        CB_AUTO_FREE char *path = cb_xasprintf("/sys/block/%s/loop/backing_file", e->d_name);
        found |= file_holds(path, dir);
    }
    return found;
}

/* A control group of the container in any hierarchy. */
static bool has_cgroup(const char *work)
{
    char id[CONTAINER_ID_LEN + 1], line[4096], at[512];
    bool found = false;
    CB_AUTO_FREE char *real = realpath(work, NULL);
    container_id(real ? real : work, id);
    CB_AUTO_FILE f = fopen("/proc/self/mountinfo", "re");
    while (f && fgets(line, sizeof(line), f)) {
        if (!strstr(line, " - cgroup") || sscanf(line, "%*d %*d %*s %*s %511s", at) != 1)
            continue;
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%s", at, id);
        found |= cb_path_exists(dir);
    }
    return found;
}

/* A process whose command line holds @text. */
static bool has_process(const char *text)
{
    bool found = false;
    CB_AUTO_DIR d = opendir("/proc");
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] < '0' || e->d_name[0] > '9' || strtol(e->d_name, NULL, 10) == getpid())
            continue;
        CB_AUTO_FREE char *path = cb_xasprintf("/proc/%s/cmdline", e->d_name);
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_BUF b = CB_BUF_INIT(1 << 20);
        found |= cb_read_file(path, 1 << 20, &b, &err) == 0 && b.data &&
                 memmem(b.data, b.len, text, strlen(text));
    }
    return found;
}

/* @number of a system call and its arguments, as the stub is asked for it. */
#define CALL(number, arguments) "call " CALL_TEXT(number) " " arguments
#define CALL_TEXT(number) CALL_DIGITS(number)
#define CALL_DIGITS(number) #number

/* What the filter refuses, and what it must not. Bits that the kernel does not look at change
 * nothing. */
static void test_calls_past_the_capabilities(void **state)
{
    struct place *p = *state;
    start(p, false);
    int fd = p->m->stream;
    assert_answer(fd, CALL(__NR_socket, "1 1 0"), "done"); /* AF_UNIX */
    assert_answer(fd, CALL(__NR_socket, "17 3 0"), "errno 1");
    assert_answer(fd, CALL(__NR_socket, "0x100000011 3 0"), "errno 1");        /* AF_PACKET */
    assert_answer(fd, CALL(__NR_socket, "0x8000000000000028 1 0"), "errno 1"); /* AF_VSOCK */
    assert_answer(fd, CALL(__NR_socket, "44 3 0"), "errno 1");                 /* AF_XDP */
    assert_answer(fd, CALL(__NR_io_uring_setup, "4 0"), "errno 1");
    assert_answer(fd, CALL(__NR_unshare, "0x10000000"), "errno 1"); /* CLONE_NEWUSER */
    assert_answer(fd, CALL(__NR_unshare, "0x50000000"), "errno 1"); /* and a network */
    assert_answer(fd, CALL(__NR_unshare, "0x200"), "done");         /* CLONE_FS */
    assert_answer(fd, CALL(__NR_clone, "0x10000011"), "errno 1");
    assert_answer(fd, CALL(__NR_clone, "0x11"), "done"); /* SIGCHLD */
    assert_answer(fd, CALL(__NR_clone3, "0 0"), "errno 38");
    assert_answer(fd, CALL(__NR_keyctl, "0 0"), "errno 1");
    assert_answer(fd, CALL(__NR_request_key, "0 0"), "errno 1");
}

static void test_container_has_its_disks_and_a_sandboxed_network(void **state)
{
    struct place *p = *state;
    start(p, true);
    int fd = p->m->stream;
    assert_string_equal(p->m->dns, "10.0.2.3");
    assert_answer(fd, "uid", "uid 0 pid 1");
    assert_answer(fd, "read /proc/sys/kernel/hostname", "builder-2");
    assert_answer(fd, "write /scratch/new something", "ok");
    assert_answer(fd, "write /output here I am", "ok");
    assert_answer(fd, "write /lower/new something", "errno 30 Read-only file system");
    assert_answer(fd, "mkdir /new", "errno 30");
    assert_answer(fd, "packet", "errno 1");
    assert_answer(fd, "packet32", "errno 1");
    char text[10] = "";
    CB_AUTO_FD out = open(p->output, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(out, text, 9, 0), 9);
    assert_string_equal(text, "here I am");
    assert_true(has_cgroup(p->work));
    assert_true(has_loop(p->dir));
    assert_false(file_holds("/proc/self/mountinfo", p->work)); /* mounts are the hop's own */
    machine_check_network(fd, &p->settings, p->m->dns, false);
    machine_container.stop(p->m, 0);
    p->m = NULL;
    assert_false(has_cgroup(p->work));
    assert_false(has_loop(p->dir));
    assert_false(has_process(p->work));
    CB_AUTO_FREE char *state_dir = cb_xasprintf("%s/runtime", p->work);
    assert_false(cb_path_exists(state_dir));
}

static void test_container_without_network_has_a_loopback_alone(void **state)
{
    struct place *p = *state;
    start(p, false);
    assert_string_equal(p->m->dns, "");
    assert_answer(p->m->stream, "tcp 10.0.2.3 53", "errno 101 Network unreachable");
    assert_null(machine_end_text(p->m));
    assert_answer(p->m->stream, "bye", "");
    machine_container.stop(p->m, 10000); /* ends by itself */
    p->m = NULL;
}

/* kill -9 of whoever started it: processes, mounts and loop devices go with it, the sweep takes the
 * rest. */
static void test_container_killed_with_its_owner_leaves_nothing_after_the_sweep(void **state)
{
    struct place *p = *state;
    int up[2], hold[2];
    assert_int_equal(pipe2(up, O_CLOEXEC), 0);
    assert_int_equal(pipe2(hold, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        start(p, true);
        char c;
        cb_close(hold[1]);
        if (write(up[1], &p->m->pid, sizeof(p->m->pid)) > 0)
            (void)!read(hold[0], &c, 1);
        _exit(0);
    }
    cb_close(up[1]);
    pid_t hop = 0;
    assert_int_equal(read(up[0], &hop, sizeof(hop)), sizeof(hop));
    assert_true(has_process(p->work));
    assert_true(has_loop(p->dir));
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(build_sweep(p->work, &err), &err);
    assert_false(has_cgroup(p->work));
    assert_false(cb_path_exists(p->work));
    for (int64_t end = cb_monotonic_ms() + 20000; cb_monotonic_ms() < end;) /* the kernel reaps */
        if (!has_process(p->work) && !has_loop(p->dir))
            break;
    assert_false(has_process(p->work));
    assert_false(has_loop(p->dir));
    cb_close(up[0]);
    cb_close(hold[0]);
    cb_close(hold[1]);
    assert_ok(build_sweep(p->work, &err), &err); /* again is fine */
}

static void test_container_start_says_what_is_wrong(void **state)
{
    struct place *p = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct machine_spec spec = {.mode = MACHINE_BUILD,
                                .work_dir = p->work,
                                .agent_path = STUB_AGENT,
                                .lower = p->output, /* zeros */
                                .console_fd = -1};
    /* what a trial found is not believed any more */
    CB_AUTO_FREE char *probe = cb_xasprintf("%s/container-probe", p->settings.home);
    assert_ok(cb_mkdir_p(p->settings.home, 0755, &err), &err);
    assert_ok(cb_write_file(probe, "x", 1, 0600, &err), &err);
    assert_fails(machine_container.start(&p->settings, &spec, &p->m, &err), &err, CB_E_SYS,
                 "start the builder container: mount the lower image: Invalid argument");
    assert_false(cb_path_exists(probe));
    spec.lower = "/nowhere/at/all";
    assert_fails(machine_container.start(&p->settings, &spec, &p->m, &err), &err, CB_E_SYS,
                 "start the builder container: open /nowhere/at/all: No such file");
    assert_false(has_cgroup(p->work));
    assert_false(has_loop(p->dir));
}

int main(void)
{
    struct settings s = {.home = cb_xstrdup(CB_BINARY_DIR "/test-home")};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = container_probe(&s, STUB_AGENT, NULL, &err);
    free(s.home);
    if (rc < 0) {
        print_message("skipped: %s\n", err.msg);
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_container_has_its_disks_and_a_sandboxed_network,
                                        place_setup, place_teardown),
        cmocka_unit_test_setup_teardown(test_calls_past_the_capabilities, place_setup,
                                        place_teardown),
        cmocka_unit_test_setup_teardown(test_container_without_network_has_a_loopback_alone,
                                        place_setup, place_teardown),
        cmocka_unit_test_setup_teardown(
            test_container_killed_with_its_owner_leaves_nothing_after_the_sweep, place_setup,
            place_teardown),
        cmocka_unit_test_setup_teardown(test_container_start_says_what_is_wrong, place_setup,
                                        place_teardown),
    };
    return cmocka_run_group_tests_name("container", tests, NULL, NULL);
}
