/* What an image has to have when its own init is process 1, and the files that make the agent one
 * of its services. */
#include "layers/flatten_check.h"

#include "builder/image_init.h"

static void add_program(struct tar_build *t, const char *path)
{
    t->mode = 0755;
    tb_file(t, path, "program");
    t->mode = 0;
}

static void check(struct image_fixture *f, const char *init, const char *lacks)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    flatten_clean(f);
    if (!lacks) {
        assert_ok(image_init_check(f->path, init, &err), &err);
        return;
    }
    assert_fails(image_init_check(f->path, init, &err), &err, CB_E_CONFIG, lacks);
}

static void test_the_agent_needs_nothing(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    size_t n = 1;
    assert_true(image_init_is_agent(NULL));
    assert_true(image_init_is_agent("agent"));
    assert_ok(image_init_check("/nowhere", NULL, &err), &err);
    assert_null(image_init_files(NULL, &n));
    assert_int_equal(n, 0);
}

static void test_systemd_is_looked_for(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    tb_dir(&t, "usr");
    tb_dir(&t, "usr/lib");
    tb_link(&t, '2', "lib", "usr/lib");
    add_layer(f, &t);
    check(f, "systemd", "init: systemd: the image has no /usr/lib/systemd/systemd");

    tb_init(&t); /* a circle of links, a folder and a file that cannot be run are no programs */
    tb_link(&t, '2', "usr/lib/systemd/systemd", "systemd");
    tb_dir(&t, "usr/bin/systemctl");
    add_layer(f, &t);
    check(f, "systemd", "the image has no /usr/lib/systemd/systemd");

    tb_init(&t);
    tb_file(&t, "usr/lib/systemd/systemd", "not for running");
    add_layer(f, &t);
    check(f, "systemd", "the image has no /usr/lib/systemd/systemd");

    tb_init(&t); /* by a link with an absolute path, which is the image's */
    tb_link(&t, '2', "usr/lib/systemd/systemd", "/opt/init");
    add_program(&t, "opt/init");
    add_layer(f, &t);
    check(f, "systemd", "the image has no /usr/bin/systemctl");

    tb_init(&t);
    add_program(&t, "bin/systemctl");
    add_layer(f, &t);
    check(f, "systemd", NULL);
}

static void test_openrc_is_looked_for(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    add_program(&t, "sbin/init");
    add_program(&t, "usr/bin/start-stop-daemon");
    add_layer(f, &t);
    check(f, "openrc", "init: openrc: the image has no /sbin/openrc-run");
    tb_init(&t);
    add_program(&t, "sbin/openrc-run");
    tb_file(&t, "sbin/.wh.init", "");
    add_layer(f, &t);
    check(f, "openrc", "the image has no /sbin/init");
    tb_init(&t);
    add_program(&t, "sbin/openrc-init");
    add_layer(f, &t);
    check(f, "openrc", NULL);
}

static void test_the_service_starts_the_agent(void **state)
{
    (void)state;
    size_t n = 0;
    const struct image_init_file *f = image_init_files("systemd", &n);
    bool unit = false, wanted = false, id = false;
    for (size_t i = 0; i < n; i++) {
        assert_true(f[i].path[0] != '/');
        unit |= f[i].text && strstr(f[i].text, "\nExecStart=/.capsule/agent service\n");
        wanted |= f[i].target && strcmp(f[i].target, "../capsule-agent.service") == 0;
        id |= strcmp(f[i].path, "etc/machine-id") == 0 && f[i].text && !*f[i].text;
    }
    assert_true(unit && wanted && id);
    f = image_init_files("openrc", &n);
    assert_int_equal(n, 2);
    assert_int_equal(f[0].mode, 0755);
    assert_non_null(strstr(f[0].text, "--exec /.capsule/agent -- service\n"));
    assert_string_equal(f[1].path, "etc/runlevels/default/capsule-agent");
    CB_AUTO_FREE char *target = cb_xasprintf("/%s", f[0].path);
    assert_string_equal(f[1].target, target);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_agent_needs_nothing),
        test_image(test_systemd_is_looked_for),
        test_image(test_openrc_is_looked_for),
        cmocka_unit_test(test_the_service_starts_the_agent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
