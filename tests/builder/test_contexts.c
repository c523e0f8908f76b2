/* Packs, and the files beside a config that go into them. */
#include "builder/context_files.h"
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

/* "f 644 3 a/b" a line for each entry of a pack, and of a link its target. Owned. */
static char *list_pack(int fd)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF all = CB_BUF_INIT(64 << 20);
    CB_AUTO_BUF out = CB_BUF_INIT(1 << 20);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_ok(cb_read_fd(fd, "pack", 64 << 20, &all, &err), &err);
    const uint8_t *p = (const uint8_t *)all.data, *end = p + all.len;
    struct frame_field f = {0};
    uint64_t left = 0;
    int got;
    while (p && (got = frame_next(&p, end, &f)) != 0) {
        assert_int_equal(got, 1);
        if (f.tag == TAG_DATA) {
            assert_true(f.len <= left);
            left -= f.len;
            continue;
        }
        struct frame_entry e = {0};
        assert_int_equal(f.tag, TAG_ENTRY);
        assert_int_equal(left, 0);
        assert_true(frame_entry_parse(f.data, f.len, &e));
        left = e.size;
        (void)cb_buf_addf(&out, "%c %o %llu %.*s%s%.*s\n", (char)e.kind, e.mode,
                          (unsigned long long)e.size, e.path_len, e.path, e.target_len ? " " : "",
                          (int)e.target_len, e.target);
    }
    assert_int_equal(left, 0);
    return cb_buf_take(&out);
}

/* Packs @sources of folder @dir; the listing, or NULL when it fails. */
static char *pack_of(const char *dir, const char *const *sources, struct pack_sum *sum,
                     bool *folder, struct cb_error *err)
{
    struct context_folder c;
    struct context_place place = {0};
    CB_AUTO_FREE char *path = cb_xasprintf("%s.pack", dir);
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    int rc = context_folder_open(&c, dir, err);
    struct pack *p = pack_new(fd);
    for (size_t i = 0; rc >= 0 && sources[i]; i++)
        rc = context_pack_wild(&c, sources[i], p, &place, err);
    if (rc >= 0)
        rc = pack_end(p, sum, err);
    pack_free(p);
    context_folder_close(&c);
    if (folder)
        *folder = place.folder;
    char *text = rc < 0 ? NULL : list_pack(fd);
    (void)unlink(path);
    return text;
}

#define SOURCES(...) ((const char *const[]){__VA_ARGS__, NULL})

static void put(const char *dir, const char *name, const char *content)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, name);
    CB_AUTO_FREE char *up = cb_xstrndup(path, (size_t)(strrchr(path, '/') - path));
    assert_ok(cb_mkdir_p(up, 0755, &err), &err);
    assert_ok(cb_write_file(path, content, strlen(content), 0644, &err), &err);
}

static void put_link(const char *dir, const char *name, const char *target)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, name);
    assert_int_equal(symlink(target, path), 0);
}

static void expect(const char *dir, const char *const *sources, bool folder, const char *want)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct pack_sum sum;
    bool is_folder = false;
    CB_AUTO_FREE char *got = pack_of(dir, sources, &sum, &is_folder, &err);
    if (!got)
        fail_msg("%s: %s", sources[0], err.msg);
    assert_string_equal(got, want);
    assert_int_equal(is_folder, folder);
}

static void expect_error(const char *dir, const char *source, enum cb_code code, const char *text)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct pack_sum sum;
    CB_AUTO_FREE char *got = pack_of(dir, SOURCES(source), &sum, NULL, &err);
    if (got)
        fail_msg("%s gave\n%s", source, got);
    assert_fails(-(int)err.code, &err, code, text);
}

static char *project(void **state)
{
    char *dir = cb_xasprintf("%s/project", (char *)*state);
    put(dir, "app/main.py", "one");
    put(dir, "app/a/b/c", "");
    put(dir, "app/a.txt", "text");
    put(dir, "top.conf", "t");
    put(dir, "other.conf", "o");
    put_link(dir, "app/link", "../../../../etc/passwd");
    put_link(dir, "dirlink", "app/a");
    return dir;
}

static void test_what_is_packed(void **state)
{
    CB_AUTO_FREE char *dir = project(state);
    /* a folder's content by its name there, in the order of bytes; links as links */
    expect(dir, SOURCES("app"), true,
           "d 755 0 a\nd 755 0 a/b\nf 644 0 a/b/c\nf 644 4 a.txt\n"
           "l 777 0 link ../../../../etc/passwd\nf 644 3 main.py\n");
    expect(dir, SOURCES("./app//a/"), true, "d 755 0 b\nf 644 0 b/c\n");
    expect(dir, SOURCES("app/main.py"), false, "f 644 3 main.py\n");
    expect(dir, SOURCES("dirlink"), false, "l 777 0 dirlink app/a\n");
    expect(dir, SOURCES("*.conf"), true, "f 644 1 other.conf\nf 644 1 top.conf\n");
    expect(dir, SOURCES("t*.conf"), false, "f 644 1 top.conf\n");
    expect(dir, SOURCES("app/*/b"), true, "f 644 0 c\n");
    expect(dir, SOURCES("app/[m]*", "app/a?txt"), false, /* who calls knows that there are two */
           "f 644 3 main.py\nf 644 4 a.txt\n");
    expect(dir, SOURCES("."), true,
           "d 755 0 app\nd 755 0 app/a\nd 755 0 app/a/b\nf 644 0 app/a/b/c\nf 644 4 app/a.txt\n"
           "l 777 0 app/link ../../../../etc/passwd\nf 644 3 app/main.py\nl 777 0 dirlink app/a\n"
           "f 644 1 other.conf\nf 644 1 top.conf\n");
}

static void test_what_dockerignore_leaves_out(void **state)
{
    CB_AUTO_FREE char *dir = project(state);
    put(dir, ".dockerignore", "**\n!app/a/b\n!*.conf\nother.conf\n");
    /* folders on the way to what is taken back in come too */
    expect(dir, SOURCES("."), true,
           "d 755 0 app\nd 755 0 app/a\nd 755 0 app/a/b\nf 644 0 app/a/b/c\nf 644 1 top.conf\n");
    expect(dir, SOURCES("app"), true, "d 755 0 a\nd 755 0 a/b\nf 644 0 a/b/c\n");
    expect(dir, SOURCES("*.conf"), false, "f 644 1 top.conf\n");
    expect_error(dir, "app/main.py", CB_E_CONFIG, "app/main.py: .dockerignore leaves it out");
    expect_error(dir, "o*.conf", CB_E_CONFIG,
                 "nothing beside the config fits but what .dockerignore leaves out");
    put(dir, ".dockerignore", "app\n");
    expect_error(dir, "app", CB_E_CONFIG, "app: .dockerignore leaves it out");
    expect_error(dir, "app/a/b", CB_E_CONFIG, "app/a/b: .dockerignore leaves it out");
    CB_AUTO_FREE char *rules = cb_xasprintf("%s/.dockerignore", dir);
    assert_int_equal(unlink(rules), 0);
    put_link(dir, ".dockerignore", "top.conf");
    expect_error(dir, "app", CB_E_CONFIG, ".dockerignore: a symbolic link is not followed");
    assert_int_equal(unlink(rules), 0);
    put(dir, ".dockerignore", "a[\n");
    expect_error(dir, "app", CB_E_CONFIG, ".dockerignore:1: a[: a bracket that is not closed");
}

static void test_what_cannot_be_packed(void **state)
{
    CB_AUTO_FREE char *dir = project(state);
    put(*state, "outside/secret", "s");
    put_link(dir, "up", "../outside");
    expect_error(dir, "nothing", CB_E_CONFIG, "nothing: there is no such file or folder beside");
    expect_error(dir, "top.conf/x", CB_E_CONFIG, "no such file or folder beside the config");
    expect_error(dir, "up/secret", CB_E_CONFIG, "up/secret: the way there goes through a symbolic");
    expect_error(dir, "dirlink/b", CB_E_CONFIG, "goes through a symbolic link");
    expect_error(dir, "../outside/secret", CB_E_CONFIG, "it is not in the config's folder");
    expect_error(dir, "..", CB_E_CONFIG, "it is not in the config's folder");
    expect_error(dir, "app/../../outside", CB_E_CONFIG, "it is not in the config's folder");
    expect_error(dir, "/etc/passwd", CB_E_CONFIG, "it is not in the config's folder");
    expect_error(dir, "u*/secret", CB_E_CONFIG, "nothing beside the config fits");
    expect_error(dir, "*/..", CB_E_CONFIG, "");
    CB_AUTO_FREE char *fifo = cb_xasprintf("%s/app/fifo", dir);
    assert_int_equal(mkfifo(fifo, 0644), 0);
    expect_error(dir, "app", CB_E_CONFIG, "app/fifo: a named pipe cannot be copied");
    put(dir, ".dockerignore", "app/f*\n");
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct pack_sum sum;
    CB_AUTO_FREE char *got = pack_of(dir, SOURCES("app"), &sum, NULL, &err);
    assert_non_null(got);
}

struct flipping {
    char *folder, *link, *file, *file_link;
    atomic_bool stop;
};

/* While it is read, a folder of the project becomes a link to one outside and back, all the time:
 * what is outside never gets in. */
static void *flip(void *arg)
{
    struct flipping *f = arg;
    while (!atomic_load(&f->stop)) {
        (void)renameat2(AT_FDCWD, f->folder, AT_FDCWD, f->link, RENAME_EXCHANGE);
        (void)renameat2(AT_FDCWD, f->file, AT_FDCWD, f->file_link, RENAME_EXCHANGE);
    }
    return NULL;
}

static void test_nothing_from_outside_in_a_race(void **state)
{
    CB_AUTO_FREE char *dir = project(state);
    put(*state, "outside/secret", "s");
    put(dir, "app/sub/secret", "mine!");
    put(dir, "app/one", "mine!");
    put_link(dir, "link", "../outside");
    put_link(dir, "app/other", "../../outside/secret");
    struct flipping f = {.folder = cb_xasprintf("%s/app/sub", dir),
                         .link = cb_xasprintf("%s/link", dir),
                         .file = cb_xasprintf("%s/app/one", dir),
                         .file_link = cb_xasprintf("%s/app/other", dir)};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, flip, &f), 0);
    unsigned whole = 0;
    for (int i = 0; i < 2000; i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct pack_sum sum;
        const char *source = i % 2 ? "app" : "app/sub/secret";
        CB_AUTO_FREE char *got = pack_of(dir, SOURCES(source), &sum, NULL, &err);
        if (got)
            assert_null(strstr(got, "f 644 1 ")); /* "s" is one byte */
        whole += got != NULL;
    }
    atomic_store(&f.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(whole > 0);
    free(f.folder);
    free(f.link);
    free(f.file);
    free(f.file_link);
}

static void test_the_digest_is_of_content(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *a = project(state);
    CB_AUTO_FREE char *b = cb_xasprintf("%s/twin", (char *)*state);
    CB_AUTO_FREE char *link = cb_xasprintf("%s/app/link", a);
    struct pack_sum one, two;
    CB_AUTO_FREE char *main_py = cb_xasprintf("%s/app/main.py", a);
    /* the same tree made in another order, at another time */
    put(b, "top.conf", "t");
    put(b, "app/main.py", "one");
    put(b, "app/a.txt", "text");
    put(b, "app/a/b/c", "");
    put_link(b, "app/link", "../../../../etc/passwd");
    const struct timespec old[2] = {{.tv_sec = 5}, {.tv_sec = -5}};
    assert_int_equal(utimensat(AT_FDCWD, main_py, old, 0), 0);
    free(pack_of(a, SOURCES("app"), &one, NULL, &err));
    free(pack_of(b, SOURCES("app"), &two, NULL, &err));
    assert_true(cb_digest_eq(&one.digest, &two.digest));
    assert_int_equal(one.entries, 6);
    assert_int_equal(one.bytes, 7);
    /* each of these is another one */
    assert_int_equal(chmod(main_py, 0755), 0);
    free(pack_of(a, SOURCES("app"), &two, NULL, &err));
    assert_false(cb_digest_eq(&one.digest, &two.digest));
    assert_int_equal(chmod(main_py, 0644), 0);
    put(a, "app/main.py", "onE");
    free(pack_of(a, SOURCES("app"), &two, NULL, &err));
    assert_false(cb_digest_eq(&one.digest, &two.digest));
    put(a, "app/main.py", "one");
    assert_int_equal(unlink(link), 0);
    put_link(a, "app/link", "../../../../etc/passwe");
    free(pack_of(a, SOURCES("app"), &two, NULL, &err));
    assert_false(cb_digest_eq(&one.digest, &two.digest));
}

/* Where a name ends and a target or content begins cannot be moved. */
static void test_a_digest_knows_borders(void **state)
{
    (void)state;
    static const struct frame_entry entries[] = {
        {.kind = ENTRY_LINK,
         .mode = 0777,
         .path = "ab",
         .path_len = 2,
         .target = "c",
         .target_len = 1},
        {.kind = ENTRY_LINK,
         .mode = 0777,
         .path = "a",
         .path_len = 1,
         .target = "bc",
         .target_len = 2},
        {.kind = ENTRY_FOLDER, .mode = 0777, .path = "abc", .path_len = 3},
        {.kind = ENTRY_FILE, .mode = 0777, .path = "abc", .path_len = 3},
    };
    struct cb_digest d[4];
    for (size_t i = 0; i < 4; i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct pack_sum sum;
        struct pack *p = pack_new(-1);
        assert_ok(pack_entry(p, &entries[i], &err), &err);
        assert_ok(pack_end(p, &sum, &err), &err);
        pack_free(p);
        d[i] = sum.digest;
        for (size_t k = 0; k < i; k++)
            assert_false(cb_digest_eq(&d[k], &d[i]));
    }
}

static void test_what_no_pack_takes(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "/a", "a/", "a//b", ".", "..", "a/../b", "a/."};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct pack_sum sum;
    struct pack *p = pack_new(-1);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const struct frame_entry e = {
            .kind = ENTRY_FILE, .path = bad[i], .path_len = (uint16_t)strlen(bad[i])};
        assert_fails(pack_entry(p, &e, &err), &err, CB_E_CONFIG, "or no path");
    }
    const struct frame_entry empty_link = {.kind = ENTRY_LINK, .path = "a", .path_len = 1};
    assert_fails(pack_entry(p, &empty_link, &err), &err, CB_E_CONFIG, "target");
    const struct frame_entry huge = {
        .kind = ENTRY_FILE, .path = "a", .path_len = 1, .size = PACK_BYTES_MAX + 1};
    assert_fails(pack_entry(p, &huge, &err), &err, CB_E_LIMIT, "more than 64 GiB of files");
    const struct frame_entry file = {.kind = ENTRY_FILE, .path = "a", .path_len = 1, .size = 2};
    assert_ok(pack_entry(p, &file, &err), &err);
    assert_fails(pack_data(p, "abc", 3, &err), &err, CB_E_BUG, "more bytes than the file has");
    assert_fails(pack_end(p, &sum, &err), &err, CB_E_BUG, "not whole");
    pack_free(p);
    CB_AUTO_FREE char *shown = pack_shown("a\n\x7f\xff\xc3\xa4z");
    assert_string_equal(shown, "a???\xc3\xa4z");
}

int main(void)
{
    (void)umask(022);
    const struct CMUnitTest tests[] = {
        test_in_dir(test_what_is_packed),
        test_in_dir(test_what_dockerignore_leaves_out),
        test_in_dir(test_what_cannot_be_packed),
        test_in_dir(test_nothing_from_outside_in_a_race),
        test_in_dir(test_the_digest_is_of_content),
        cmocka_unit_test(test_a_digest_knows_borders),
        cmocka_unit_test(test_what_no_pack_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
