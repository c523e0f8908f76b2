/* The kernel that an image brings itself: which one is taken, and what is said when there is none.
 */
#include "builder/module_build.h"
#include "layers/flatten_check.h"

#include "builder/bzimage.h"
#include "builder/image_kernel.h"

#define RELEASE "6.1.0-9-amd64"
#define BUILTIN                                                                                    \
    "kernel/fs/ext4/ext4.ko\nkernel/net/virtio_net.ko\nkernel/x/virtio_mmio.ko\n"                  \
    "kernel/x/virtio_console.ko\nkernel/x/overlay.ko\n"

static void add_kernel(struct tar_build *t, const char *path, const char *release)
{
    unsigned char image[1024];
    tb_raw(t, '0', path, NULL, image, make_bzimage(release, image));
}

static void add_module(struct tar_build *t, const char *path, const char *depends)
{
    unsigned char elf[1024];
    tb_raw(t, '0', path, NULL, elf, make_module(depends, elf));
}

static void add_modules(struct tar_build *t, const char *release)
{
    CB_AUTO_FREE char *builtin = cb_xasprintf("usr/lib/modules/%s/modules.builtin", release);
    CB_AUTO_FREE char *disk = cb_xasprintf("usr/lib/modules/%s/kernel/virtio_blk.ko", release);
    CB_AUTO_FREE char *bus = cb_xasprintf("usr/lib/modules/%s/kernel/virtio.ko", release);
    tb_file(t, builtin, BUILTIN);
    add_module(t, disk, "virtio");
    add_module(t, bus, "");
}

static void add_base(struct image_fixture *f)
{
    struct tar_build t;
    tb_init(&t);
    tb_dir(&t, "usr");
    tb_dir(&t, "usr/lib");
    tb_link(&t, '2', "lib", "usr/lib");
    tb_dir(&t, "boot");
    add_layer(f, &t);
}

static int take(struct image_fixture *f, struct image_kernel *k, struct cb_error *err)
{
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/kernel", f->store->base);
    CB_AUTO_FREE char *agent = cb_xasprintf("%s/agent", f->store->base);
    CB_AUTO_ERROR mine = CB_ERROR_INIT;
    assert_ok(cb_write_file(agent, "the agent", 9, 0644, &mine), &mine);
    flatten_clean(f);
    return image_kernel_take(f->path, agent, dir, k, err);
}

static void takes(struct image_fixture *f, const char *from, const char *release)
{
    struct image_kernel k = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(take(f, &k, &err), &err);
    assert_string_equal(k.from, from);
    assert_string_equal(k.kernel.release, release);
    image_kernel_release(&k);
}

static void fails(struct image_fixture *f, const char *text)
{
    struct image_kernel k = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_fails(take(f, &k, &err), &err, CB_E_CONFIG, text);
    assert_null(k.from);
}

static void test_what_is_missing_is_said(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    add_base(f);
    fails(f, "kernel: image: the image has no kernel, neither /boot/vmlinuz* nor "
             "/lib/modules/RELEASE/vmlinuz");
    tb_init(&t);
    tb_file(&t, "boot/vmlinuz-arm", "MZ: a kernel of another machine");
    tb_file(&t, "boot/other/vmlinuz-1", "not looked at");
    add_layer(f, &t);
    fails(f, "kernel: image: /boot/vmlinuz-arm is not a Linux bzImage");
    tb_init(&t);
    add_kernel(&t, "boot/vmlinuz-" RELEASE, RELEASE);
    add_layer(f, &t);
    fails(f, "kernel: image: /boot/vmlinuz-" RELEASE " is kernel " RELEASE
             ", and the image has no /lib/modules/" RELEASE);
    tb_init(&t);
    tb_file(&t, "usr/lib/modules/" RELEASE "/modules.builtin", BUILTIN);
    add_layer(f, &t);
    fails(f, "kernel: image: make the initramfs: kernel " RELEASE
             " has no virtio_blk, built in or as a module");
}

static void test_the_highest_with_modules_is_taken(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    add_base(f);
    tb_init(&t);
    add_kernel(&t, "boot/vmlinuz-6.1.0-9-amd64", "6.1.0-9-amd64");
    add_modules(&t, "6.1.0-9-amd64");
    add_kernel(&t, "boot/vmlinuz-6.1.0-7-amd64", "6.1.0-7-amd64");
    add_modules(&t, "6.1.0-7-amd64");
    add_kernel(&t, "boot/vmlinuz-6.9", "6.9"); /* without modules */
    add_layer(f, &t);
    takes(f, "/boot/vmlinuz-6.1.0-9-amd64", "6.1.0-9-amd64");
    tb_init(&t);
    add_kernel(&t, "boot/vmlinuz-6.1.0-10-amd64", "6.1.0-10-amd64");
    add_modules(&t, "6.1.0-10-amd64");
    add_layer(f, &t);
    takes(f, "/boot/vmlinuz-6.1.0-10-amd64", "6.1.0-10-amd64");
    tb_init(&t); /* beside its modules, as some distributions have it; links are not followed */
    add_kernel(&t, "usr/lib/modules/6.2.1/vmlinuz", "6.2.1");
    add_modules(&t, "6.2.1");
    tb_link(&t, '2', "boot/vmlinuz-9", "/usr/lib/modules/6.2.1/vmlinuz");
    add_layer(f, &t);
    takes(f, "/usr/lib/modules/6.2.1/vmlinuz", "6.2.1");
}

static void assert_same_file(const char *a, const char *b)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF x = CB_BUF_INIT(1 << 20);
    CB_AUTO_BUF y = CB_BUF_INIT(1 << 20);
    assert_ok(cb_read_file(a, 1 << 20, &x, &err), &err);
    assert_ok(cb_read_file(b, 1 << 20, &y, &err), &err);
    assert_int_equal(x.len, y.len);
    assert_memory_equal(x.data, y.data, x.len);
}

static void write_below(const char *dir, const char *name, const void *p, size_t n)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, name);
    CB_AUTO_FREE char *folder = cb_xstrndup(path, (size_t)(strrchr(path, '/') - path));
    assert_ok(cb_mkdir_p(folder, 0755, &err), &err);
    assert_ok(cb_write_file(path, p, n, 0644, &err), &err);
}

/* The initramfs is the one that the same modules in a folder give, byte for byte. */
static void test_its_modules_are_used(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    struct image_kernel k = {0};
    unsigned char bytes[1024];
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    add_base(f);
    tb_init(&t);
    add_kernel(&t, "boot/vmlinuz-" RELEASE, RELEASE);
    add_modules(&t, RELEASE);
    add_layer(f, &t);
    assert_ok(take(f, &k, &err), &err);
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/same", f->store->base);
    CB_AUTO_FREE char *agent = cb_xasprintf("%s/agent", f->store->base);
    CB_AUTO_FREE char *out = cb_xasprintf("%s/same.img", f->store->base);
    write_below(dir, "modules.builtin", BUILTIN, strlen(BUILTIN));
    write_below(dir, "kernel/virtio_blk.ko", bytes, make_module("virtio", bytes));
    write_below(dir, "kernel/virtio.ko", bytes, make_module("", bytes));
    struct kernel same = {.image = k.kernel.image, .modules = dir, .release = k.kernel.release};
    assert_ok(initramfs_make(&same, agent, out, &err), &err);
    assert_same_file(out, k.initramfs);
    CB_AUTO_FREE char *image = cb_xasprintf("%s/vmlinuz", f->store->base);
    assert_ok(cb_write_file(image, bytes, make_bzimage(RELEASE, bytes), 0644, &err), &err);
    assert_same_file(image, k.kernel.image);
    image_kernel_release(&k);
}

static void test_heads_of_kernels(void **state)
{
    (void)state;
    unsigned char b[1024];
    char text[KERNEL_RELEASE_MAX + 1];
    size_t n = make_bzimage("6.1.0-9-amd64", b);
    assert_true(bzimage_release(b, n, text));
    assert_string_equal(text, "6.1.0-9-amd64");
    assert_true(bzimage_release(b, 0x300 + 3, text)); /* cut: what is there */
    assert_string_equal(text, "6.1");
    assert_false(bzimage_release(b, 0x300, text));
    assert_false(bzimage_release(b, 0x20f, text));
    static const char *const bad[] = {
        "", "../../etc", ".6", "6.1;reboot",
        "a-release-that-is-longer-than-any-name-of-a-folder-should-ever-be-1234567"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        n = make_bzimage(bad[i], b);
        assert_false(bzimage_release(b, n, text));
    }
    n = make_bzimage("6.1", b);
    b[0x20e] = b[0x20f] = 0;
    assert_false(bzimage_release(b, n, text));
    b[0x20e] = b[0x20f] = 0xff;
    assert_false(bzimage_release(b, n, text));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_what_is_missing_is_said),
        test_image(test_the_highest_with_modules_is_taken),
        test_image(test_its_modules_are_used),
        cmocka_unit_test(test_heads_of_kernels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
