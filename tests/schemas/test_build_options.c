/* build_options: JSON and back, what is refused, and which valid configs cannot be built. */
#include "check.h"

#include "schemas/schemas.h"

static void test_options_come_back(void **state)
{
    (void)state;
    const struct build_options o = {.isolation = ISOLATION_CONTAINER,
                                    .pull = PULL_NEVER,
                                    .force = true,
                                    .renew_builtin = true,
                                    .no_boot_check = true,
                                    .boot_timeout_ms = 7000};
    CB_AUTO_FREE char *text = build_options_dump(&o);
    struct build_options back = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(build_options_parse(text, &back, &err), &err);
    CB_AUTO_FREE char *again = build_options_dump(&back);
    assert_string_equal(text, again);
    assert_int_equal(back.isolation, ISOLATION_CONTAINER);
    assert_int_equal(back.pull, PULL_NEVER);
    assert_true(back.force && back.renew_builtin && back.no_boot_check);
    assert_false(back.clean || back.locked);
    assert_int_equal(back.boot_timeout_ms, 7000);
    assert_null(back.base_dir);
}

/* Where a relative base image lies goes along; nothing else of the file's place does. */
static void test_the_place_of_a_base_image(void **state)
{
    static const struct {
        const char *base;
        bool placed;
    } cases[] = {
        {"oci:x", true},
        {"docker-archive:../x.tar", true},
        {"oci:/x", false},
        {"debian", false},
        {"debian\nlayers: [{name: a, init_commands: [{type: copy, args: [x, /x]}]}]", true},
        {"debian\nlayers: [{name: a, init_commands: [x], context: [{src: x, dst: /x}]}]", true},
        {"debian\nlayers: [{name: a, init_commands: [x], drives: [{drive_id: d, "
         "commands: [{type: copy, args: [x, /x]}]}]}]",
         true},
        {"debian\nlayers: [{name: a, init_commands: [x], context: [{git: 'file:///x', dst: /x}]}]",
         false},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct config_problems problems = {0};
        struct workload_config *c = NULL;
        struct build_options o = {0}, back = {0};
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *file = cb_xasprintf("%s/c.yaml", (char *)*state);
        CB_AUTO_FREE char *real = realpath(*state, NULL);
        CB_AUTO_FREE char *text = cb_xasprintf("name: abc\nbase_image: %s\n", cases[i].base);
        assert_ok(
            config_parse(text, strlen(text), file, CONFIG_YAML, CONFIG_NO_ENV, &c, &problems, &err),
            &err);
        build_options_place(&o, c);
        CB_AUTO_FREE char *dump = build_options_dump(&o);
        assert_ok(build_options_parse(dump, &back, &err), &err);
        if (cases[i].placed)
            assert_string_equal(back.base_dir, real);
        else
            assert_null(back.base_dir);
        build_options_release(&o);
        build_options_release(&back);
        config_problems_release(&problems);
        config_free(c);
    }
}

static void test_wrong_options_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "build options"},
        {"[]", "build options"},
        {"{\"force\": 1}", "build options"},
        {"{\"what\": true}", "build options"},
        {"{\"pull\": \"often\"}", "a value is out of range"},
        {"{\"isolation\": \"none\"}", "a value is out of range"},
        {"{\"boot_timeout_ms\": -1}", "a value is out of range"},
        {"{\"boot_timeout_ms\": 86400001}", "a value is out of range"},
        {"{\"base_dir\": \"x\"}", "a value is out of range"},
        {"{\"refresh\": [1]}", "refresh: must be names of layers"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct build_options o = {0};
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        assert_fails(build_options_parse(cases[i].text, &o, &err), &err, CB_E_CORRUPT,
                     cases[i].says);
    }
}

static void refused(const char *text, const char *says)
{
    struct config_problems problems = {0};
    struct workload_config *c = NULL;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(
        config_parse(text, strlen(text), "c.yaml", CONFIG_YAML, CONFIG_NO_ENV, &c, &problems, &err),
        &err);
    if (says)
        assert_fails(build_refuse(c, &err), &err, CB_E_CONFIG, says);
    else
        assert_ok(build_refuse(c, &err), &err);
    config_problems_release(&problems);
    config_free(c);
}

static void test_nothing_can_be_refreshed(void **state)
{
    (void)state;
    char name[] = "one", asked[] = "one";
    char *words[] = {asked, NULL};
    struct layer layer = {.name = name};
    const struct workload_config c = {.layers = &layer, .n_layers = 1};
    const struct build_options o = {.refresh = {.v = words, .n = 1}};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = build_refuse_refresh(&o, &c, &err);
    assert_string_equal(err.hint, "no layer has any");
    check_said(err.hint);
    assert_fails(rc, &err, CB_E_CONFIG, "--refresh one: the layer has no refresh_commands");
}

static void test_what_cannot_be_refreshed(void **state)
{
    (void)state;
    static const char text[] = "name: abc\nbase_image: debian\nlayers:\n"
                               "  - {name: one, init_commands: [x]}\n"
                               "  - {name: two, init_commands: [x], refresh_commands: [y]}\n";
    static const struct {
        const char *layer;
        bool force, clean;
        const char *says, *hint;
    } cases[] = {
        {"two", false, false, NULL, NULL},
        {"one", false, false, "--refresh one: the layer has no refresh_commands", "two"},
        {"three", false, false, "--refresh three: there is no such layer",
         "layers with refresh_commands: two"},
        {"two", true, false, "--force takes nothing of it", NULL},
        {"two", false, true, "--clean takes nothing of it", NULL},
    };
    struct config_problems problems = {0};
    struct workload_config *c = NULL;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(
        config_parse(text, strlen(text), "c", CONFIG_YAML, CONFIG_NO_ENV, &c, &problems, &err),
        &err);
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        CB_AUTO_ERROR why = CB_ERROR_INIT;
        struct build_options o = {.force = cases[i].force, .clean = cases[i].clean}, back = {0};
        cb_strv_add(&o.refresh, cases[i].layer);
        int rc = build_refuse_refresh(&o, c, &why);
        if (cases[i].hint)
            assert_non_null(strstr(why.hint, cases[i].hint));
        if (cases[i].says)
            assert_fails(rc, &why, CB_E_CONFIG, cases[i].says);
        else
            assert_ok(rc, &why);
        CB_AUTO_FREE char *dump = build_options_dump(&o);
        assert_ok(build_options_parse(dump, &back, &err), &err);
        assert_int_equal(back.refresh.n, 1);
        assert_string_equal(back.refresh.v[0], cases[i].layer);
        build_options_release(&o);
        build_options_release(&back);
    }
    config_problems_release(&problems);
    config_free(c);
}

#define HEAD "name: abc\nbase_image: minimal-debian\nlayers:\n  - name: one\n    init_commands:\n"

static void test_what_cannot_be_built_is_refused(void **state)
{
    (void)state;
    refused(HEAD "      - true\n", NULL);
    refused(HEAD "      - {type: exec, args: [ls, /]}\n", NULL);
    refused(HEAD "      - true\n    drives: [{drive_id: d, commands: [{type: exec, args: [x]}]}]\n",
            NULL);
    refused(HEAD
            "      - true\n    drives: [{drive_id: d, commands: [x, {type: env, args: [A=b]}]}]\n",
            "layer one, drive d: a command of type env cannot fill a drive; shell, "
            "exec and copy can");
    refused(HEAD "      - {type: env, args: [A=b]}\n      - {type: start, args: [x]}\n", NULL);
    refused(
        HEAD "      - x\n    refresh_commands: [x, {type: start, args: [y]}]\n",
        "c.yaml:7:27: layer one: a command of type start cannot refresh it; shell and exec can");
    refused(HEAD "      - {type: gcp-auth}\n", NULL);
    refused(HEAD "      - {type: gcp-auth, args: [--scope, a, --scope=b]}\n", NULL);
    refused(HEAD "      - true\n      - {type: gcp-auth, args: [--scope]}\n",
            "c.yaml:7:9: layer one: gcp-auth: expected `--scope NAME`, found --scope");
    refused(HEAD "      - {type: gcp-auth, args: [--scope, a, b]}\n",
            "c.yaml:6:9: layer one: gcp-auth: expected `--scope NAME`, found b");
    refused(HEAD "      - true\ninit_commands: [{type: start, args: [x]}]\n", NULL);
    refused(HEAD "      - true\ninit_commands: [{type: user, args: [x]}]\n",
            "c.yaml:7:17: workload.init_commands: a command of type user does not run at boot");
    refused(HEAD "      - {type: copy, args: [a, /b]}\n", NULL);
    refused("name: abc\nlayers:\n  - {name: one, init_commands: [x]}\n",
            "c.yaml: base_image is missing: there is nothing to build on");
    refused("name: abc\nbase_image: scratch\n", NULL);
    refused("name: abc\nbase_image: scratch\nlayers:\n  - {name: one, init_commands: [x]}\n",
            "c.yaml:4:33: layer one: base_image: scratch is an empty image");
    refused("name: abc\nbase_image: scratch\nlayers:\n  - name: one\n    init_commands: [/x]\n"
            "    context: [{src: x, dst: /x}]\n",
            NULL);
    refused("name: abc\nbase_image: scratch\nlayers:\n  - name: one\n"
            "    init_commands: [{type: copy, args: [x, /x]}, /x]\n",
            NULL);
    refused(HEAD "      - true\nconfig: {init: systemd}\n", NULL);
    refused(HEAD "      - true\nconfig: {init: openrc}\n", NULL);
    refused(HEAD "      - true\nstart_command: image\n", NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_come_back),
        test_in_dir(test_the_place_of_a_base_image),
        cmocka_unit_test(test_wrong_options_are_refused),
        cmocka_unit_test(test_what_cannot_be_built_is_refused),
        cmocka_unit_test(test_what_cannot_be_refreshed),
        cmocka_unit_test(test_nothing_can_be_refreshed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
