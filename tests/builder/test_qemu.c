/* QEMU: which program, and how large the guest is. */
#include "check.h"

#include "builder/qemu.h"
#include "schemas/config.h"

#include <sys/stat.h>

static bool has_pair(const struct cb_strv *argv, const char *option, const char *value)
{
    for (size_t i = 0; i + 1 < argv->n; i++)
        if (strcmp(argv->v[i], option) == 0 && strcmp(argv->v[i + 1], value) == 0)
            return true;
    return false;
}

static void test_each_tier_has_its_size(void **state)
{
    (void)state;
    static const struct {
        enum tier tier;
        const char *cpus, *memory;
    } sizes[] = {{TIER_XS, "1", "512M"},
                 {TIER_S, "1", "1024M"},
                 {TIER_M, "4", "4096M"},
                 {TIER_L, "8", "8192M"},
                 {TIER_XL, "16", "16384M"}};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        CB_AUTO_STRV argv = {0};
        const struct machine_spec spec = {.mode = MACHINE_BOOT};
        const struct qemu_spec q = {.spec = &spec,
                                    .kernel = "k",
                                    .initramfs = "i",
                                    .mode = "boot",
                                    .vcpus = tier_vcpus(sizes[i].tier),
                                    .memory_mib = tier_memory_mib(sizes[i].tier)};
        qemu_command(&q, &argv);
        assert_true(has_pair(&argv, "-smp", sizes[i].cpus));
        assert_true(has_pair(&argv, "-m", sizes[i].memory));
        assert_string_equal(argv.v[0], QEMU_PROGRAM);
    }
}

static void test_the_program_is_the_one_named(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/my-qemu", (char *)*state);
    struct settings s = {.qemu = path};
    const struct machine_spec spec = {.mode = MACHINE_BOOT};
    const struct qemu_spec q = {
        .spec = &spec, .program = path, .kernel = "k", .initramfs = "i", .mode = "boot"};
    CB_AUTO_STRV argv = {0};
    qemu_command(&q, &argv);
    assert_string_equal(argv.v[0], path);

    assert_null(qemu_find(&s));
    assert_fails(qemu_missing(&s, &err), &err, CB_E_ENV, "my-qemu: No such file or directory");
    assert_fails(machine_vm.probe(&s, NULL, &err), &err, CB_E_ENV, "my-qemu: No such file");
    assert_ok(cb_write_file(path, "#!/bin/sh\nexit 3\n", 17, 0644, &err), &err);
    assert_null(qemu_find(&s));
    assert_int_equal(chmod(path, 0755), 0);
    CB_AUTO_FREE char *found = qemu_find(&s);
    assert_string_equal(found, path);
    assert_false(qemu_has_sandbox(path)); /* it is asked, not the one of PATH */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_tier_has_its_size),
        test_in_dir(test_the_program_is_the_one_named),
    };
    return cmocka_run_group_tests_name("qemu", tests, NULL, NULL);
}
