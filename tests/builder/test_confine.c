/* A command that may open only what it names. */
#include "builder/agent/agent.h"
#include "check.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

struct place {
    char *allowed, *other, *file; /* folders, and a file in neither */
};

static void make(struct place *p, const char *dir)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    p->allowed = cb_xasprintf("%s/allowed", dir);
    p->other = cb_xasprintf("%s/other", dir);
    p->file = cb_xasprintf("%s/file", dir);
    assert_int_equal(mkdir(p->allowed, 0755), 0);
    assert_int_equal(mkdir(p->other, 0755), 0);
    assert_ok(cb_write_file(p->file, "x", 1, 0644, &err), &err);
}

static void place_release(struct place *p)
{
    free(p->allowed);
    free(p->other);
    free(p->file);
}

static int try_open(const char *dir, const char *name, int flags)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s%s%s", dir, name ? "/" : "", name ? name : "");
    int fd = open(path, flags | O_CLOEXEC, 0644);
    int saved = errno;
    if (fd >= 0)
        (void)close(fd);
    return fd >= 0 ? 0 : saved;
}

/* 0, or the number of what was not as it should be. */
static int confined(const struct place *p)
{
    struct words files = {0};
    const char *what = NULL;
    words_add(&files, p->allowed);
    words_add(&files, p->file);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || confine(&files, &what) < 0)
        return 1;
    words_release(&files);
    if (try_open(p->allowed, "new", O_RDWR | O_CREAT) != 0 ||
        try_open(p->allowed, "new", O_WRONLY | O_TRUNC) != 0)
        return 2;
    if (try_open(p->file, NULL, O_RDWR) != 0)
        return 3;
    if (try_open(p->other, "new", O_RDWR | O_CREAT) != EACCES ||
        try_open(p->other, NULL, O_RDONLY | O_DIRECTORY) != EACCES)
        return 4;
    if (try_open("/usr", NULL, O_RDONLY | O_DIRECTORY) != 0 ||
        try_open("/usr", "forbidden", O_RDWR | O_CREAT) != EACCES)
        return 5;
    if (try_open("/dev", "null", O_RDWR) != 0 || try_open("/root", NULL, O_RDONLY) != EACCES)
        return 6;
    CB_AUTO_FREE char *node = cb_xasprintf("%s/node", p->allowed);
    if (mknod(node, S_IFBLK | 0600, makedev(254, 0)) == 0 || errno != EACCES ||
        mknod(node, S_IFCHR | 0600, makedev(1, 1)) == 0 || errno != EACCES ||
        mknod(node, S_IFIFO | 0600, 0) != 0)
        return 8;
    pid_t pid = fork(); /* what it starts is held to the same */
    if (pid == 0) {
        (void)execl("/bin/sh", "sh", "-c", "test -r /etc/passwd && ! ls /root", (char *)NULL);
        _exit(99);
    }
    int status = 0;
    return waitpid(pid, &status, 0) == pid && status == 0 ? 0 : 7;
}

static void test_what_is_not_named_is_shut(void **state)
{
    if (!confine_works())
        skip();
    struct place p;
    int status = 0;
    make(&p, *state);
    pid_t pid = fork();
    if (pid == 0)
        _exit(confined(&p));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    place_release(&p);
}

static void test_what_is_not_there_is_named(void **state)
{
    if (!confine_works())
        skip();
    struct words files = {0};
    const char *what = NULL;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/nothing", (char *)*state);
    words_add(&files, path);
    assert_int_equal(confine(&files, &what), -1); /* before anything is shut */
    assert_int_equal(errno, ENOENT);
    assert_string_equal(what, path);
    words_release(&files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_is_not_named_is_shut, check_dir_setup,
                                        check_dir_teardown),
        cmocka_unit_test_setup_teardown(test_what_is_not_there_is_named, check_dir_setup,
                                        check_dir_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
