/* Files that the host sends into a layer: a pack through a session into a real agent. */
#include "builder/agent_fixture.h"
#include "builder/pack.h"

#include <fcntl.h>

/* What one pack holds: paths that end in "/" are folders, "a>b" is a link, others are files that
 * hold their own path. */
static int pack_names(const char *const *names)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct pack_sum sum;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/pack", fixture_work);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    struct pack *p = pack_new(fd);
    for (size_t i = 0; names[i]; i++) {
        CB_AUTO_FREE char *name = cb_xstrdup(names[i]);
        char *target = strchr(name, '>');
        size_t len = strlen(name);
        struct frame_entry e = {.kind = ENTRY_FILE, .mode = 0640, .mtime = 1000, .path = name};
        if (target) {
            *target++ = '\0';
            e.kind = ENTRY_LINK;
            e.mode = 0777;
            e.target = target;
            e.target_len = (uint32_t)strlen(target);
        } else if (name[len - 1] == '/') {
            name[len - 1] = '\0';
            e.kind = ENTRY_FOLDER;
            e.mode = 0750;
        } else {
            e.size = len;
        }
        e.path_len = (uint16_t)strlen(name);
        assert_ok(pack_entry(p, &e, &err), &err);
        if (e.kind == ENTRY_FILE)
            assert_ok(pack_data(p, name, len, &err), &err);
    }
    assert_ok(pack_end(p, &sum, &err), &err);
    pack_free(p);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

static int copy(struct agent_fixture *f, struct guest_copy g, const char *const *names,
                struct cb_error *err)
{
    CB_AUTO_FD fd = pack_names(names);
    g.fd = fd;
    g.step = 1;
    return session_copy(f->s, &g, err);
}

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

static void look(struct agent_fixture *f, const char *script, const char *want)
{
    struct step_result r = fixture_run(f, script);
    assert_int_equal(r.exit_code, 0);
    assert_string_equal(f->out.data ? f->out.data : "", want);
}

static void test_files_folders_and_links(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    const struct guest_copy g = {.to = "/new/place", .folder = true, .mode = -1, .owner = "app"};
    assert_ok(copy(&f, g, NAMES("a/", "a/b", "c", "l>a/b"), &err), &err);
    look(&f,
         "cd /new; find . -mindepth 1 -printf '%p %M %U:%G %l\\n' | sort; cat place/l; stat -c %Y "
         "place/c",
         "./place drwxr-xr-x 1234:1234 \n./place/a drwxr-x--- 1234:1234 \n"
         "./place/a/b -rw-r----- 1234:1234 \n./place/c -rw-r----- 1234:1234 \n"
         "./place/l lrwxrwxrwx 1234:1234 a/b\na/b1000\n");
    CB_AUTO_FREE char *diff = fixture_diff(&f);
    assert_non_null(strstr(diff, "new/place/a/b"));
    fixture_stop(&f);
}

static void test_one_file_and_its_name(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    struct guest_copy g = {.to = "/data/sub", .mode = 0604, .owner = "0"};
    assert_ok(copy(&f, g, NAMES("x"), &err), &err); /* a folder is there: into it */
    g.to = "/data/one";                             /* a file: in its place */
    assert_ok(copy(&f, g, NAMES("x"), &err), &err);
    g.to = "/data/link"; /* a link to a file is replaced, not written through */
    assert_ok(copy(&f, g, NAMES("x"), &err), &err);
    g.to = "/deep/er/y";
    assert_ok(copy(&f, g, NAMES("x"), &err), &err);
    look(&f,
         "cat /data/sub/x /data/one /data/link /deep/er/y; cat /data/hard1; stat -c '%a %F' "
         "/data/link",
         "xxxxhard\n604 regular file\n");
    fixture_stop(&f);
}

/* Links of the image lead where they lead in the image; nothing leaves it. */
static void test_links_of_the_image(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    fixture_run(&f, "mkdir /usr /usr/lib; ln -s usr/lib /lib64x; ln -s /../../usr /abs; "
                    "ln -s ../../../../../.. /up; ln -s loop /loop; ln -s nowhere /dangling");
    struct guest_copy g = {.to = "/", .folder = true, .mode = -1, .owner = "0"};
    assert_ok(copy(&f, g, NAMES("lib64x/", "lib64x/a", "abs/", "abs/b", "up/", "up/c"), &err),
              &err);
    look(&f, "cat /usr/lib/a /usr/b /c; test -L /lib64x && echo still", "lib64x/aabs/bup/cstill\n");
    /* a link that was copied before is one of the image */
    assert_ok(copy(&f, g, NAMES("mine>/usr"), &err), &err);
    assert_ok(copy(&f, g, NAMES("mine/", "mine/d"), &err), &err);
    look(&f, "cat /usr/d", "mine/d");
    static const struct {
        const char *to, *says;
    } bad[] = {
        {"/loop/x", "symbolic links"},
        {"/dangling", "is not a folder in the image"},
        {"/data/one/x", "is not a folder in the image"},
        {"/run/x", "is not part of the image"},
        {"/proc", "is not part of the image"},
        {"/dev/shm/x", "is not part of the image"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        g.to = bad[i].to;
        assert_fails(copy(&f, g, NAMES("x"), &err), &err, CB_E_COMMAND, bad[i].says);
    }
    g.to = "/";
    assert_fails(copy(&f, g, NAMES("data"), &err), &err, CB_E_COMMAND,
                 "/data: there is a folder of that name in the image");
    assert_fails(copy(&f, g, NAMES("data/", "data/one/"), &err), &err, CB_E_COMMAND,
                 "is not a folder in the image");
    g.owner = "nosuch:x";
    assert_fails(copy(&f, g, NAMES("x"), &err), &err, CB_E_COMMAND, "user \"nosuch\"");
    /* the layer goes on after each of them */
    g.owner = "0:extra";
    assert_ok(copy(&f, g, NAMES("x"), &err), &err);
    look(&f, "stat -c %u:%g /x", "0:77\n");
    fixture_stop(&f);
}

/* More than a request holds, of one file and of many. */
static void test_sizes(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    struct pack_sum sum;
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/big", fixture_work);
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    struct pack *p = pack_new(fd);
    CB_AUTO_FREE char *bytes = cb_xcalloc(1, 3 << 20);
    for (size_t i = 0; i < 3 << 20; i++)
        bytes[i] = (char)(i * 7 + i / 251);
    for (int i = 0; i < 3000; i++) {
        char name[32];
        (void)snprintf(name, sizeof(name), "many-%d", i);
        const struct frame_entry e = {.kind = ENTRY_FILE,
                                      .mode = 0644,
                                      .path = name,
                                      .path_len = (uint16_t)strlen(name),
                                      .size = (uint64_t)i};
        assert_ok(pack_entry(p, &e, &err), &err);
        assert_ok(pack_data(p, bytes, (size_t)i, &err), &err);
    }
    const struct frame_entry big = {
        .kind = ENTRY_FILE, .mode = 0644, .path = "big", .path_len = 3, .size = 3 << 20};
    assert_ok(pack_entry(p, &big, &err), &err);
    assert_ok(pack_data(p, bytes, 3 << 20, &err), &err);
    assert_ok(pack_end(p, &sum, &err), &err);
    pack_free(p);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    const struct guest_copy g = {
        .step = 1, .to = "/big", .folder = true, .mode = -1, .owner = "0", .fd = fd};
    assert_ok(session_copy(f.s, &g, &err), &err);
    look(&f, "ls /big | wc -l; stat -c %s /big/big /big/many-0 /big/many-2999",
         "3001\n3145728\n0\n2999\n");
    assert_ok(cb_write_file(path, bytes, 3 << 20, 0600, &err), &err);
    struct step_result r = fixture_run(&f, "cat /big/big");
    assert_int_equal(r.exit_code, 0);
    assert_int_equal(f.out.len, 3 << 20);
    assert_memory_equal(f.out.data, bytes, 3 << 20);
    fixture_stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files_folders_and_links),
        cmocka_unit_test(test_one_file_and_its_name),
        cmocka_unit_test(test_links_of_the_image),
        cmocka_unit_test(test_sizes),
    };
    return fixture_run_tests("copy", tests);
}
