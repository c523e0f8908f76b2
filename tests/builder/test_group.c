/* Control groups of commands: what is read of them, and what they hold a process to. */
#include "builder/agent/agent.h"
#include "check.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void put(const char *dir, const char *name, const char *text)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, name);
    assert_ok(cb_write_file(path, text, strlen(text), 0644, &err), &err);
}

static void test_both_versions_are_read(void **state)
{
    const char *dir = *state;
    struct group_use u;
    struct cgroup g = {.unified = true, .dirs = {-1, -1, -1, -1}};
    g.dirs[0] = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    group_look(&g, &u); /* nothing is there */
    assert_int_equal(u.memory + u.cpu_ms + u.processes + u.refused_processes + u.killed, 0);
    put(dir, "pids.current", "17\n");
    put(dir, "pids.events", "max 3\n");
    put(dir, "memory.events", "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 1\n");
    put(dir, "memory.stat", "anon 4096\nfile 999999\nkernel 5\nshmem 8192\nanon_thp 77\n");
    put(dir, "cpu.stat", "usage_usec 1234567\nuser_usec 1\nsystem_usec 2\n");
    group_look(&g, &u);
    assert_int_equal(u.processes, 17);
    assert_int_equal(u.refused_processes, 3);
    assert_int_equal(u.killed, 1);
    assert_int_equal(u.memory, 12288);
    assert_int_equal(u.cpu_ms, 1234);

    g.unified = false;
    for (int i = 1; i < GROUP_KINDS; i++)
        g.dirs[i] = dup(g.dirs[0]);
    put(dir, "memory.stat", "cache 999\nrss 4096\nrss_huge 1\nshmem 1\n");
    put(dir, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n");
    put(dir, "cpuacct.usage", "2500000000\n");
    group_look(&g, &u);
    assert_int_equal(u.memory, 4097);
    assert_int_equal(u.killed, 4);
    assert_int_equal(u.cpu_ms, 2500);
    for (int i = 0; i < GROUP_KINDS; i++)
        close(g.dirs[i]);
}

static void test_a_folder_without_groups_is_refused(void **state)
{
    struct groups g;
    struct fail f;
    assert_int_equal(groups_open(&g, *state, &f), -1);
    assert_non_null(strstr(f.text, "control groups: "));
    assert_false(g.open);
}

static void test_the_one_hierarchy_has_to_be_ours(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool ours;
    } rows[] = {
        {"0::/\n", true},
        {"0::/agent\n", true},
        {"9:memory:/x\n1:name=systemd:/\n0::/\n", true},
        {"0::/system.slice/capsule-build-1\n", false},
        {"0::/agent2\n", false},
        {"0::/../..\n", false},
        {"10::/\n", false},
        {"5:pids:/\n", false},
        {"", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(groups_are_ours(rows[i].text), rows[i].ours);
}

/* This machine's groups of the first version, as a container's runtime hands them on. */
struct real {
    char *dir;
    char name[32];
};

static const char *const kinds[] = {"memory", "pids", "cpu", "cpuacct"};

static bool real_open(struct real *r, const char *dir, struct groups *g)
{
    struct fail f;
    r->dir = cb_xasprintf("%s/groups", dir);
    (void)snprintf(r->name, sizeof r->name, "cb-test-%d", (int)getpid());
    assert_int_equal(mkdir(r->dir, 0755), 0);
    for (size_t i = 0; i < 4; i++) {
        CB_AUTO_FREE char *at = cb_xasprintf("/sys/fs/cgroup/%s/%s", kinds[i], r->name);
        CB_AUTO_FREE char *link = cb_xasprintf("%s/%s", r->dir, kinds[i]);
        if (mkdir(at, 0755) < 0 && errno != EEXIST)
            return false;
        assert_int_equal(symlink(at, link), 0);
    }
    if (groups_open(g, r->dir, &f) < 0)
        fail_msg("%s", f.text);
    return true;
}

static void real_close(struct real *r, struct groups *g)
{
    if (g->open) {
        groups_sweep(g);
        groups_close(g);
    }
    for (size_t i = 0; i < 4; i++) {
        CB_AUTO_FREE char *at = cb_xasprintf("/sys/fs/cgroup/%s/%s", kinds[i], r->name);
        if (rmdir(at) < 0 && errno != ENOENT)
            fail_msg("%s is left: %s", at, strerror(errno));
    }
    free(r->dir);
}

static int run_in(const struct cgroup *c, void (*body)(void))
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        if (group_join(c) < 0)
            _exit(99);
        body();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void eat(void)
{
    enum { BLOCK = 1 << 20 };
    for (int i = 0; i < 256; i++) {
        char *p = malloc(BLOCK);
        if (!p)
            _exit(3);
        memset(p, i, BLOCK);
    }
}

static void fork_many(void)
{
    for (int i = 0; i < 5000; i++) {
        pid_t pid = fork();
        if (pid < 0)
            _exit(42);
        if (pid == 0)
            for (;;)
                pause();
    }
}

static void test_a_real_group_holds(void **state)
{
    struct real r = {0};
    struct groups g = {0};
    struct cgroup c;
    struct group_use u;
    struct fail f;
    if (geteuid() != 0 || access("/sys/fs/cgroup/memory/memory.limit_in_bytes", F_OK) < 0)
        skip(); /* the other version is what a virtual machine has: tests/e2e/test_limits.py */
    if (!real_open(&r, *state, &g)) {
        real_close(&r, &g);
        skip();
    }
    assert_true(g.memory > 0 && g.processes >= 1024);
    if (group_make(&g, UINT64_C(64) << 20, 50, &c, &f) < 0)
        fail_msg("%s", f.text);
    assert_int_equal(c.memory, UINT64_C(64) << 20);
    assert_int_equal(WTERMSIG(run_in(&c, eat)), SIGKILL);
    group_look(&c, &u);
    assert_int_equal(u.killed, 1);
    assert_int_equal(u.processes, 0);
    CB_AUTO_FREE char *first = cb_xstrdup(c.name);
    group_end(&g, &c);

    g.processes = 20;
    assert_int_equal(group_make(&g, 0, 0, &c, &f), 0);
    assert_string_not_equal(c.name, first);
    assert_int_equal(WEXITSTATUS(run_in(&c, fork_many)), 42);
    group_look(&c, &u);
    assert_int_equal(u.processes, 19); /* who started them ended */
    assert_int_equal(u.refused_processes, 1);
    group_kill(&c);
    for (int i = 0; i < 500 && u.processes; i++) {
        group_look(&c, &u);
        (void)usleep(10000);
    }
    assert_int_equal(u.processes, 0);
    group_end(&g, &c);
    real_close(&r, &g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_both_versions_are_read, check_dir_setup,
                                        check_dir_teardown),
        cmocka_unit_test_setup_teardown(test_a_folder_without_groups_is_refused, check_dir_setup,
                                        check_dir_teardown),
        cmocka_unit_test(test_the_one_hierarchy_has_to_be_ours),
        cmocka_unit_test_setup_teardown(test_a_real_group_holds, check_dir_setup,
                                        check_dir_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
