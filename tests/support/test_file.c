#include "check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void test_write_then_read(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/a", (char *)*state);
    assert_ok(cb_write_file(path, "hello", 5, 0640, &err), &err);
    CB_AUTO_BUF b = CB_BUF_INIT(0);
    assert_ok(cb_read_file(path, 5, &b, &err), &err);
    assert_string_equal(b.data, "hello");
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    assert_fails(cb_read_file(path, 4, &b, &err), &err, CB_E_LIMIT, "larger than 4 bytes");
    CB_AUTO_FREE char *none = cb_xasprintf("%s/none", (char *)*state);
    assert_fails(cb_read_file(none, 4, &b, &err), &err, CB_E_NOTFOUND, "no such file");
}

static void test_remove_tree_follows_no_link(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *keep = cb_xasprintf("%s/keep", (char *)*state);
    CB_AUTO_FREE char *deep = cb_xasprintf("%s/tree/x/y", (char *)*state);
    CB_AUTO_FREE char *tree = cb_xasprintf("%s/tree", (char *)*state);
    CB_AUTO_FREE char *link = cb_xasprintf("%s/tree/link", (char *)*state);
    CB_AUTO_FREE char *file = cb_xasprintf("%s/f", keep);
    assert_ok(cb_mkdir_p(keep, 0755, &err), &err);
    assert_ok(cb_write_file(file, "x", 1, 0600, &err), &err);
    assert_ok(cb_mkdir_p(deep, 0755, &err), &err);
    assert_int_equal(symlink(keep, link), 0);
    assert_ok(cb_remove_tree(tree, &err), &err);
    assert_false(cb_path_exists(tree));
    assert_true(cb_path_exists(file));
    assert_ok(cb_remove_tree(tree, &err), &err); /* a missing one is fine */
}

static void test_mkdir_over_a_file_fails(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/a", (char *)*state);
    assert_ok(cb_write_file(path, "", 0, 0600, &err), &err);
    assert_fails(cb_mkdir_p(path, 0755, &err), &err, CB_E_SYS, "Not a directory");
}

static void test_clone_keeps_holes_and_bytes(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *a = cb_xasprintf("%s/a", (char *)*state);
    CB_AUTO_FREE char *b = cb_xasprintf("%s/b", (char *)*state);
    CB_AUTO_FD from = open(a, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CB_AUTO_FD to = open(b, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(from, 64 << 20), 0);
    assert_ok(cb_pwrite_all(from, "middle", 6, 32 << 20, &err), &err);
    assert_ok(cb_clone_file(from, to, &err), &err);
    struct stat st;
    assert_int_equal(fstat(to, &st), 0);
    assert_int_equal(st.st_size, 64 << 20);
    assert_true(st.st_blocks < (1 << 20) / 512);
    char text[7] = "";
    assert_ok(cb_pread_all(to, text, 6, 32 << 20, &err), &err);
    assert_string_equal(text, "middle");
    assert_fails(cb_copy_range(from, 64 << 20, to, 0, 10, &err), &err, CB_E_CORRUPT,
                 "10 bytes early");
}

static void test_lock_is_exclusive_and_dies_with_its_process(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/lock", (char *)*state);
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        int fd = cb_lock_file(path, false, NULL);
        if (write(ready[1], "x", 1) != 1 || fd < 0)
            _exit(1);
        pause();
        _exit(0);
    }
    char c;
    assert_int_equal(read(ready[0], &c, 1), 1);
    assert_fails(cb_lock_file(path, false, &err), &err, CB_E_CONFLICT, "locked by another process");
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    CB_AUTO_FD fd = cb_lock_file(path, true, &err);
    assert_true(fd >= 0);
    cb_close(ready[0]);
    cb_close(ready[1]);
}

static void test_human_bytes(void **state)
{
    (void)state;
    char t[32];
    cb_human_bytes(0, t, sizeof(t));
    assert_string_equal(t, "0 B");
    cb_human_bytes(1536, t, sizeof(t));
    assert_string_equal(t, "1.5 KiB");
    cb_human_bytes(UINT64_MAX, t, sizeof(t));
    assert_string_equal(t, "16384.0 PiB");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_write_then_read),
        test_in_dir(test_remove_tree_follows_no_link),
        test_in_dir(test_mkdir_over_a_file_fails),
        test_in_dir(test_clone_keeps_holes_and_bytes),
        test_in_dir(test_lock_is_exclusive_and_dies_with_its_process),
        cmocka_unit_test(test_human_bytes),
    };
    return cmocka_run_group_tests_name("support/file", tests, NULL, NULL);
}
