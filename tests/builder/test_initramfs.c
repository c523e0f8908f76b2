#include "builder/module_build.h"
#include "check.h"

#include "builder/machine.h"
#include "builder/modinfo.h"

#include <archive.h>
#include <archive_entry.h>
#include <elf.h>
#include <sys/stat.h>

static void write_file(const char *dir, const char *name, const void *p, size_t n)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, name);
    CB_AUTO_FREE char *folder = cb_xstrdup(path);
    *strrchr(folder, '/') = '\0';
    assert_ok(cb_mkdir_p(folder, 0755, &err), &err);
    assert_ok(cb_write_file(path, p, n, 0644, &err), &err);
}

static void add_module(const char *dir, const char *name, const char *depends)
{
    unsigned char elf[1024];
    write_file(dir, name, elf, make_module(depends, elf));
}

/* A small lib/modules: overlay and virtio_blk with their dependencies, the rest built in. */
static void make_tree(const char *dir)
{
    static const char builtin[] = "kernel/fs/ext4/ext4.ko\nkernel/net/virtio_net.ko\n"
                                  "kernel/x/virtio_mmio.ko\nkernel/x/virtio_console.ko\n";
    write_file(dir, "m/modules.builtin", builtin, sizeof(builtin) - 1);
    add_module(dir, "m/kernel/b/virtio_blk.ko", "virtio-ring,virtio");
    add_module(dir, "m/kernel/a/virtio-ring.ko", "virtio");
    add_module(dir, "m/kernel/z/virtio.ko", "");
    add_module(dir, "m/kernel/fs/overlay.ko", "");
    add_module(dir, "m/kernel/fs/unrelated.ko", "virtio");
    add_module(dir, "m/kernel/scsi/sd_mod.ko", "scsi_mod,virtio");
    add_module(dir, "m/kernel/scsi/scsi_mod.ko", "");
    write_file(dir, "agent", "I am the agent", 14);
}

static int make(const char *dir, const char *out, struct cb_error *err)
{
    CB_AUTO_FREE char *modules = cb_xasprintf("%s/m", dir);
    CB_AUTO_FREE char *agent = cb_xasprintf("%s/agent", dir);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, out);
    char release[] = "6.0-test", image[] = "unused";
    struct kernel k = {.image = image, .modules = modules, .release = release};
    return initramfs_make(&k, agent, path, err);
}

static void test_initramfs_reads_back_with_modules_in_load_order(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    make_tree(*state);
    assert_ok(make(*state, "out", &err), &err);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/out", (char *)*state);
    struct archive *a = archive_read_new();
    assert_int_equal(archive_read_support_format_cpio(a), ARCHIVE_OK);
    assert_int_equal(archive_read_open_filename(a, path, 65536), ARCHIVE_OK);
    struct archive_entry *e;
    CB_AUTO_BUF names = CB_BUF_INIT(4096);
    while (archive_read_next_header(a, &e) == ARCHIVE_OK) {
        char text[512] = "";
        const char *name = archive_entry_pathname(e);
        (void)cb_buf_addf(&names, "%s:%o ", name, (unsigned)archive_entry_mode(e));
        assert_int_equal(archive_entry_mtime(e), 0);
        la_ssize_t n = archive_read_data(a, text, sizeof(text) - 1);
        if (strcmp(name, "init") == 0)
            assert_string_equal(text, "I am the agent");
        if (strcmp(name, "modules.list") == 0)
            assert_string_equal(text, "/modules/virtio.ko\n/modules/virtio_ring.ko\n"
                                      "/modules/virtio_blk.ko\n/modules/overlay.ko\n");
        if (strcmp(name, "modules.hardware") == 0)
            assert_string_equal(text, "/modules/scsi_mod.ko\n/modules/sd_mod.ko\n");
        if (strcmp(name, "modules/overlay.ko") == 0)
            assert_true(n > 0 && memcmp(text, ELFMAG, SELFMAG) == 0);
    }
    assert_int_equal(archive_read_free(a), ARCHIVE_OK);
    assert_string_equal(names.data,
                        "dev:40755 proc:40755 sys:40755 run:40755 tmp:40755 mnt:40755 root:40755 "
                        "dev/console:20600 init:100755 modules:40755 modules/virtio.ko:100644 "
                        "modules/virtio_ring.ko:100644 modules/virtio_blk.ko:100644 "
                        "modules/overlay.ko:100644 modules/scsi_mod.ko:100644 "
                        "modules/sd_mod.ko:100644 modules.list:100644 modules.hardware:100644 ");
}

static void test_initramfs_is_the_same_for_the_same_input(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *other = cb_xasprintf("%s/other", (char *)*state);
    make_tree(*state);
    make_tree(other); /* other inodes, other times, another order in the folders */
    assert_ok(make(*state, "out", &err), &err);
    assert_ok(make(other, "out", &err), &err);
    CB_AUTO_FREE char *a = cb_xasprintf("%s/out", (char *)*state);
    CB_AUTO_FREE char *b = cb_xasprintf("%s/out", other);
    CB_AUTO_BUF first = CB_BUF_INIT(1 << 20);
    CB_AUTO_BUF second = CB_BUF_INIT(1 << 20);
    assert_ok(cb_read_file(a, 1 << 20, &first, &err), &err);
    assert_ok(cb_read_file(b, 1 << 20, &second, &err), &err);
    assert_int_equal(first.len, second.len);
    assert_memory_equal(first.data, second.data, first.len);
}

static void test_initramfs_names_a_module_that_is_missing(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    make_tree(*state);
    CB_AUTO_FREE char *gone = cb_xasprintf("%s/m/kernel/fs/overlay.ko", (char *)*state);
    assert_int_equal(unlink(gone), 0);
    assert_fails(make(*state, "out", &err), &err, CB_E_ENV,
                 "make the initramfs: kernel 6.0-test has no overlay, built in or as a module");
}

static void test_initramfs_refuses_a_circle_of_modules(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    make_tree(*state);
    add_module(*state, "m/kernel/z/virtio.ko", "virtio_ring");
    assert_fails(make(*state, "out", &err), &err, CB_E_CORRUPT, "in a circle");
}

static void test_modinfo_refuses_what_is_no_module(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_STRV depends = {0};
    unsigned char elf[1024];
    size_t n = make_module("a,b-c", elf);
    assert_ok(modinfo_depends(elf, n, &depends, &err), &err);
    assert_int_equal(depends.n, 2);
    assert_string_equal(depends.v[1], "b_c");
    for (size_t cut = 0; cut < n; cut++) { /* never reads beyond, whatever is cut off */
        CB_AUTO_FREE void *copy = cb_xmemdup(elf, cut + !cut);
        CB_AUTO_STRV some = {0};
        CB_AUTO_ERROR why = CB_ERROR_INIT;
        assert_int_equal(modinfo_depends(copy, cut, &some, &why), -CB_E_CORRUPT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_initramfs_reads_back_with_modules_in_load_order),
        test_in_dir(test_initramfs_is_the_same_for_the_same_input),
        test_in_dir(test_initramfs_names_a_module_that_is_missing),
        test_in_dir(test_initramfs_refuses_a_circle_of_modules),
        cmocka_unit_test(test_modinfo_refuses_what_is_no_module),
    };
    return cmocka_run_group_tests_name("initramfs", tests, NULL, NULL);
}
