/* What a layer's diff holds: real commands over a real overlay, the tar read back by Python. */
#include "builder/agent/agent.h"
#include "builder/agent_fixture.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/xattr.h>

#define N10 "0123456789"
#define N100 N10 N10 N10 N10 N10 N10 N10 N10 N10 N10

struct diff_case {
    const char *name;
    const char *before; /* a layer of its own in front, or NULL */
    const char *script;
    const char *diff;
};
static const struct diff_case cases[] = {
    {"nothing", NULL, "true", ""},
    {"copied up without a change", NULL,
     "chmod 644 /data/one; : >>/data/two; chown 0:0 /data/sub/file", ""},
    {"written with the same bytes and time", NULL,
     "cp -p /data/one /tmp/one; cat /tmp/one >/data/one; touch -r /tmp/one /data/one; rm /tmp/one",
     "dir 1777 0:0 tmp\n"},
    {"changed", NULL, "echo changed >/data/one", "file 0644 0:0 data/one 'changed'\n"},
    {"appended", NULL, "echo more >>/data/one", "file 0644 0:0 data/one 'one\nmore'\n"},
    {"mode alone", NULL, "chmod 4711 /data/one", "file 4711 0:0 data/one 'one'\n"},
    {"owner alone, large", NULL, "chown 3000000:4000000000 /data/one",
     "file 0644 3000000:4000000000 data/one 'one'\n"},
    {"owner of a link", NULL, "chown -h 7:8 /data/link", "symlink 0777 7:8 data/link -> one\n"},
    {"time alone", NULL, "touch -d '2001-02-03 04:05:06.789 UTC' /data/one",
     "file 0644 0:0 data/one 'one'\n"},
    {"deleted", NULL, "rm /data/two", "dir 0755 0:0 data\nfile 0000 0:0 data/.wh.two ''\n"},
    {"deleted folder", NULL, "rm -r /data/sub",
     "dir 0755 0:0 data\nfile 0000 0:0 data/.wh.sub ''\n"},
    {"made and deleted", NULL, "touch /data/x; mkdir /data/y; rm -r /data/x /data/y",
     "dir 0755 0:0 data\n"},
    {"new tree", NULL, "mkdir -p /new/a/b; echo x >/new/a/b/c",
     "dir 0755 0:0 .\ndir 0755 0:0 new\ndir 0755 0:0 new/a\ndir 0755 0:0 new/a/b\nfile 0644 0:0 "
     "new/a/b/c 'x'\n"},
    {"deleted in a later layer", "mkdir /data/n; echo x >/data/n/a", "rm -r /data/n",
     "dir 0755 0:0 data\nfile 0000 0:0 data/.wh.n ''\n"},
    {"deleted and made again in later layers", "rm /data/two", "echo new >/data/two",
     "dir 0755 0:0 data\nfile 0644 0:0 data/two 'new'\n"},
    {"replaced folder", NULL, "rm -r /opaque/x; mkdir /opaque/x; echo n >/opaque/x/new",
     "dir 0755 0:0 opaque\ndir 0755 0:0 opaque/x\nfile 0000 0:0 opaque/x/.wh..wh..opq ''\n"
     "file 0644 0:0 opaque/x/new 'n'\n"},
    {"folder becomes a file", NULL, "rm -r /data/sub; echo f >/data/sub",
     "dir 0755 0:0 data\nfile 0644 0:0 data/sub 'f'\n"},
    {"file becomes a folder", NULL, "rm /data/one; mkdir /data/one; echo f >/data/one/f",
     "dir 0755 0:0 data\ndir 0755 0:0 data/one\nfile 0644 0:0 data/one/f 'f'\n"},
    {"folder becomes a link", NULL, "rm -r /data/sub; ln -s /etc /data/sub",
     "dir 0755 0:0 data\nsymlink 0777 0:0 data/sub -> /etc\n"},
    {"renamed", NULL, "mv /data/two /data/zwei",
     "dir 0755 0:0 data\nfile 0000 0:0 data/.wh.two ''\nfile 0644 0:0 data/zwei 'two'\n"},
    {"renamed folder", NULL, "mv /data/sub /data/moved",
     "dir 0755 0:0 data\ndir 0755 0:0 data/moved\nfile 0644 0:0 data/moved/file 'sub'\n"
     "file 0000 0:0 data/.wh.sub ''\n"},
    {"hardlink to a file of the image", NULL, "ln /data/one /data/uno",
     "dir 0755 0:0 data\nfile 0644 0:0 data/one 'one'\nlink 0644 0:0 data/uno -> data/one\n"},
    {"one name of a hardlink written", NULL, "echo x >>/data/hard1",
     "file 0644 0:0 data/hard1 'hard\nx'\n"},
    {"hardlinks, setuid, fifo, devices", NULL,
     "cd /data; echo h >b; ln b a; ln b sub/c; mkfifo -m 600 p; mknod d c 5 1; mknod e b 8 300;"
     "chmod 6755 b",
     "dir 0755 0:0 data\nfile 6755 0:0 data/a 'h'\nlink 6755 0:0 data/b -> data/a\n"
     "char 0644 0:0 data/d 5,1\nblock 0644 0:0 data/e 8,300\nfifo 0600 0:0 data/p\n"
     "dir 0755 0:0 data/sub\nlink 6755 0:0 data/sub/c -> data/a\n"},
    {"hardlinked links", NULL, "cd /data; ln -s x l1; ln l1 l2",
     "dir 0755 0:0 data\nsymlink 0777 0:0 data/l1 -> x\nlink 0777 0:0 data/l2 -> data/l1\n"},
    {"capabilities", NULL, "setcap cap_net_raw+ep /data/one",
     "file 0644 0:0 data/one 'one' SCHILY.xattr.security.capability="
     "'\\x01\\x00\\x00\\x02\\x00 \\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00"
     "\\x00\\x00'\n"},
    {"sparse", NULL,
     "cd /data; truncate -s 10M hole; printf end | dd of=hole bs=1 seek=5000000 "
     "conv=notrunc 2>/dev/null; truncate -s 1000 small",
     "dir 0755 0:0 data\nfile 0644 0:0 data/hole 10485760 3a1b4a60 GNU.sparse.realsize='10485760'\n"
     "file 0644 0:0 data/small 1000 541b3e9d\n"},
    {"long and odd names", NULL,
     "cd /data; mkdir -p " N100 "/" N100 "; echo x >" N100 "/" N100 "/" N100 N100 N10
     "; ln -s " N100 N100 " l; echo q >'a b'; echo q >$'\\xff\\n'; echo u >\xc3\xa9",
     "dir 0755 0:0 data\ndir 0755 0:0 data/" N100 "\ndir 0755 0:0 data/" N100 "/" N100
     "\nfile 0644 0:0 data/" N100 "/" N100 "/" N100 N100 N10 " 'x'\n"
     "file 0644 0:0 data/a b 'q'\nsymlink 0777 0:0 data/l -> " N100 N100
     "\nfile 0644 0:0 data/\xc3\xa9 'u'\nfile 0644 0:0 data/\xff\n 'q'\n"},
    {"agent's own files unread", NULL, "cat /etc/resolv.conf /etc/hosts >/dev/null; ls /proc", ""},
    {"resolv.conf changed", NULL, "echo options edns0 >>/etc/resolv.conf",
     "file 0644 0:0 etc/resolv.conf 'nameserver 10.0.2.3\noptions edns0'\n"},
    {"resolv.conf deleted, not in the image", NULL, "rm /etc/resolv.conf", "dir 0755 0:0 etc\n"},
    {"passwd deleted", NULL, "rm /etc/passwd",
     "dir 0755 0:0 etc\nfile 0000 0:0 etc/.wh.passwd ''\n"},
    {"tmpfs is not the layer's", NULL, "touch /run/x /dev/shm/y", ""},
};

static void test_diff_holds_what_changed(void **state)
{
    (void)state;
    int failed = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct diff_case *c = &cases[i];
        struct agent_fixture f;
        fixture_begin(&f, fixture_image, NULL);
        if (c->before) {
            fixture_layer(&f);
            fixture_ok(&f, c->before);
            free(fixture_diff(&f));
        }
        fixture_layer(&f);
        fixture_ok(&f, c->script);
        CB_AUTO_FREE char *diff = fixture_diff(&f);
        if (strcmp(diff, c->diff) != 0) {
            print_error("%s:\n--- expected\n%s--- found\n%s---\n", c->name, c->diff, diff);
            failed++;
        }
        fixture_stop(&f);
    }
    assert_int_equal(failed, 0);
}

static void test_many_layers_are_stacked(void **state)
{
    (void)state;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    for (int i = 0; i < 40; i++) {
        CB_AUTO_FREE char *script =
            cb_xasprintf("test $(ls /data | grep -c ^layer) = %d; echo %d >/data/layer%d", i, i, i);
        CB_AUTO_FREE char *want =
            cb_xasprintf("dir 0755 0:0 data\nfile 0644 0:0 data/layer%d '%d'\n", i, i);
        fixture_layer(&f);
        fixture_ok(&f, script);
        CB_AUTO_FREE char *diff = fixture_diff(&f);
        assert_string_equal(diff, want);
    }
    fixture_stop(&f);
}

static void test_runner_user_is_made_in_the_first_layer(void **state)
{
    (void)state;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, "runner");
    fixture_layer(&f);
    fixture_ok(&f, "id; cd; pwd; echo mine >file; grep runner /etc/passwd /etc/group");
    assert_string_equal(f.out.data, "uid=1000(runner) gid=1000(runner) groups=1000(runner)\n"
                                    "/home/runner\n"
                                    "/etc/passwd:runner:x:1000:1000::/home/runner:/bin/bash\n"
                                    "/etc/group:runner:x:1000:\n");
    CB_AUTO_FREE char *diff = fixture_diff(&f);
    assert_non_null(strstr(diff, "file 0644 0:0 etc/passwd "));
    assert_non_null(strstr(diff, "file 0600 0:0 etc/shadow "));
    assert_non_null(strstr(diff, "dir 0750 0:0 etc/sudoers.d\nfile 0440 0:0 "
                                 "etc/sudoers.d/90-capsule-runner "
                                 "'runner ALL=(ALL:ALL) NOPASSWD:ALL'\n"));
    assert_non_null(strstr(diff, "dir 0755 1000:1000 home/runner\n"
                                 "file 0644 1000:1000 home/runner/file 'mine'\n"));
    assert_string_equal(f.notes.data, "user runner was made\n");
    fixture_layer(&f);
    fixture_ok(&f, "id -un");
    CB_AUTO_FREE char *second = fixture_diff(&f);
    assert_string_equal(second, "");
    fixture_stop(&f);

    fixture_begin(&f, fixture_image, "app"); /* is there already */
    fixture_layer(&f);
    fixture_ok(&f, "id -un");
    CB_AUTO_FREE char *none = fixture_diff(&f);
    assert_string_equal(none, "");
    fixture_stop(&f);
}

static void test_image_without_folders_gets_none(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *bare = cb_xasprintf("%s/bare", fixture_work);
    fixture_make_image(bare);
    CB_AUTO_FREE char *etc = cb_xasprintf("%s/etc", bare);
    assert_ok(cb_remove_tree(etc, &err), &err);
    struct agent_fixture f;
    fixture_begin(&f, bare, NULL);
    fixture_layer(&f);
    fixture_ok(&f, "ls /proc /sys /dev /run /etc >/dev/null");
    CB_AUTO_FREE char *none = fixture_diff(&f);
    assert_string_equal(none, "");
    fixture_layer(&f);
    fixture_ok(&f, "touch -r /etc /tmp/t; echo x >/etc/conf; touch -r /tmp/t /etc; rm /tmp/t");
    CB_AUTO_FREE char *diff = fixture_diff(&f);
    assert_string_equal(diff, "dir 0755 0:0 etc\nfile 0644 0:0 etc/conf 'x'\ndir 1777 0:0 tmp\n");
    fixture_stop(&f);
}

static void test_file_named_like_a_whiteout_is_refused(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct guest_diff d;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    fixture_ok(&f, "echo x >/data/.wh.real");
    assert_fails(session_layer_end(f.s, &d, &err), &err, CB_E_COMMAND, "/data/.wh.real");
    fixture_stop(&f);
}

static int open_dir(const char *path)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(cb_mkdir_p(path, 0755, &err), &err);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void keep_note(void *arg, const char *text)
{
    (void)snprintf(arg, 256, "%s", text);
}

static void test_socket_is_left_out_and_times_are_exact(void **state)
{
    const char *dir = *state;
    CB_AUTO_FREE char *upper = cb_xasprintf("%s/upper", dir);
    CB_AUTO_FREE char *below = cb_xasprintf("%s/below", dir);
    CB_AUTO_FREE char *out = cb_xasprintf("%s/out", dir);
    CB_AUTO_FD up = open_dir(upper);
    CB_AUTO_FD low = open_dir(below);
    CB_AUTO_FD fd = open(out, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CB_AUTO_FD sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    (void)snprintf(addr.sun_path, sizeof addr.sun_path, "/proc/self/fd/%d/sock", up);
    assert_int_equal(bind(sock, (const struct sockaddr *)&addr, sizeof addr), 0);
    CB_AUTO_FD file = openat(up, "old", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    const struct timespec times[2] = {{-2, 500000000}, {-2, 500000000}};
    assert_int_equal(futimens(file, times), 0);
    const struct timespec root_times[2] = {{100, 1}, {100, 1}};
    assert_int_equal(futimens(up, root_times), 0);

    char note[256] = "";
    struct fail f = {0};
    struct tar_out tar;
    assert_int_equal(tar_open(&tar, fd, 0, 0, &f), 0);
    struct takeout t = {
        .upper = up, .below = low, .image = low, .tar = &tar, .note = keep_note, .arg = note};
    assert_int_equal(takeout_run(&t, &f), 0);
    assert_int_equal(tar_close(&tar, &f), 0);
    assert_string_equal(note, "/sock is a socket: left out of the layer");
    CB_AUTO_FREE char *text = fixture_list_tar(out, 0, tar.at, true);
    assert_string_equal(text,
                        "dir 0755 0:0 . mtime=100.000000001\nfile 0644 0:0 old '' mtime=-1.5\n");
    tar_release(&tar);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_diff_holds_what_changed),
        cmocka_unit_test(test_many_layers_are_stacked),
        cmocka_unit_test(test_runner_user_is_made_in_the_first_layer),
        cmocka_unit_test(test_image_without_folders_gets_none),
        cmocka_unit_test(test_file_named_like_a_whiteout_is_refused),
        test_in_dir(test_socket_is_left_out_and_times_are_exact),
    };
    return fixture_run_tests("diff", tests);
}
