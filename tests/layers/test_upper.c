/* A layer as an upper folder of overlayfs. */
#include "flatten_check.h"

#include "layers/tar_apply.h"

/* Publishes the tar as a layer and makes the file system of it. */
static int make(struct image_fixture *f, struct tar_build *t, struct cb_error *err)
{
    f->n = 0;
    add_layer(f, t);
    (void)unlink(f->path);
    return ext4_make_upper(f->store->store, &f->layers[0], "p0", f->path, UINT64_C(1) << 30,
                           "scratch", err);
}

static void assert_mark(struct image_fixture *f, const char *path, const char *name, bool there)
{
    CB_AUTO_FREE char *command = cb_xasprintf("ea_list \"%s\"", path);
    CB_AUTO_FREE char *got = debugfs(f, command);
    if ((strstr(got, name) != NULL) != there)
        fail_msg("%s: %s%s in\n%s", path, there ? "no " : "", name, got);
}

static void test_whiteouts_become_devices(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, "etc/.wh.passwd", "");
    tb_file(&t, "etc/shells", "more\n");
    tb_dir(&t, "opt/");
    tb_file(&t, "opt/.wh..wh..opq", "");
    tb_file(&t, "opt/new", "new\n");
    tb_link(&t, '1', "opt/hard", "etc/shells");
    tb_file(&t, ".wh.gone", "");
    assert_ok(make(f, &t, &err), &err);
    assert_clean(f->path);
    assert_content(f, "/p0/etc/shells", "more");
    assert_content(f, "/p0/opt/hard", "more");
    assert_stat(f, "/p0/etc/passwd", "Type: character special");
    assert_stat(f, "/p0/etc/passwd", "Device major/minor number: 00:00");
    assert_stat(f, "/p0/gone", "Type: character special");
    assert_mark(f, "/p0/opt", UPPER_OPAQUE, true);
    assert_mark(f, "/p0/opt", UPPER_IMPLICIT, false);
    assert_mark(f, "/p0/etc", UPPER_IMPLICIT, true);
    assert_mark(f, "/p0/etc", UPPER_OPAQUE, false);
    assert_mark(f, "/p0", UPPER_IMPLICIT, true);
    assert_false(in_image(f, "/p0/lost+found"));
}

static void test_what_comes_back_hides_what_was_there(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static const bool first[] = {true, false};
    for (size_t i = 0; i < 2; i++) {
        struct tar_build t;
        tb_init(&t);
        tb_dir(&t, "./");
        if (first[i]) {
            tb_file(&t, ".wh.folder", "");
            tb_file(&t, ".wh.file", "");
        }
        tb_dir(&t, "folder/");
        tb_file(&t, "folder/x", "x");
        tb_file(&t, "file", "again");
        if (!first[i]) {
            tb_file(&t, ".wh.folder", "");
            tb_file(&t, ".wh.file", "");
        }
        assert_ok(make(f, &t, &err), &err);
        assert_clean(f->path);
        assert_content(f, "/p0/file", "again");
        assert_content(f, "/p0/folder/x", "x");
        assert_mark(f, "/p0/folder", UPPER_OPAQUE, true);
        assert_mark(f, "/p0", UPPER_IMPLICIT, false);
    }
}

/* Its paths stay below its folder, and it cannot bring marks of its own. */
static void test_it_stays_in_its_folder(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_build t;
    tb_init(&t);
    tb_link(&t, '2', "up", "../../..");
    tb_link(&t, '2', "root", "/");
    tb_file(&t, "up/a", "a");
    tb_file(&t, "root/b", "b");
    tb_pax_text(&t, "SCHILY.xattr." UPPER_OPAQUE, "y");
    tb_dir(&t, "claims/");
    assert_ok(make(f, &t, &err), &err);
    assert_clean(f->path);
    assert_content(f, "/p0/a", "a");
    assert_content(f, "/p0/b", "b");
    assert_false(in_image(f, "/a") || in_image(f, "/b"));
    assert_mark(f, "/p0/claims", UPPER_OPAQUE, false);
    tb_init(&t);
    tb_file(&t, "../b", "b");
    assert_fails(make(f, &t, &err), &err, CB_E_CORRUPT, "a path with \"..\"");
    assert_false(cb_path_exists(f->path));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_whiteouts_become_devices),
        test_image(test_what_comes_back_hides_what_was_there),
        test_image(test_it_stays_in_its_folder),
    };
    return cmocka_run_group_tests_name("upper", tests, NULL, NULL);
}
