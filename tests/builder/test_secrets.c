/* Where secrets come from, what is said of one that cannot be had, and what of them is left. */
#include "builder/secrets.h"
#include "check.h"

#include "builder/emit.h"
#include "builder/leaks.h"
#include "support/cleanup.h"
#include "support/mem.h"
#include "support/proc.h"

#include <fcntl.h>
#include <jansson.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static struct workload_config *config(const char *text)
{
    struct workload_config *c = NULL;
    struct config_problems problems = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(
        config_parse(text, strlen(text), "t.yaml", CONFIG_YAML, CONFIG_NO_ENV, &c, &problems, &err),
        &err);
    config_problems_release(&problems);
    return c;
}

#define LAYER(name, secrets) "  - {name: " name ", init_commands: [x], secrets: [" secrets "]}\n"
#define CONFIG(layers, credentials)                                                                \
    "base_image: debian\nlayers:\n" layers "credentials: {" credentials "}\n"

static const char *value_of(const struct secrets *s, size_t layer, const char *name)
{
    const struct layer_secrets *l = secrets_of(s, layer);
    for (size_t i = 0; l && i < l->env.n; i++)
        if (strcmp(l->env.v[i].key, name) == 0)
            return l->env.v[i].value;
    return NULL;
}

static void write_text(const char *path, const char *text, size_t n)
{
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void test_where_values_come_from(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *file = cb_xasprintf("%s/key", (char *)*state);
    CB_AUTO_FREE char *text = cb_xasprintf(
        CONFIG(LAYER("one", "{id: plain, env: T_PLAIN}, {id: braces, env: '${T_BRACES}'}")
                   LAYER("two", "{id: api, env: KEY}, {id: file, env: FILE_VALUE}, "
                                "{id: braces, env: T_BRACES}, {id: same, path: '%s/key'}, "
                                "{id: plain, path: /root/.token}"),
               "secrets: [{name: api, env: T_API}, {name: file, path: '/${T_DIR}/key'}, "
               "{name: plain, env: T_PLAIN}], "
               "env: {ALL: 'Bearer ${T_ALL}', WORD: '$${x}'}"),
        (char *)*state);
    setenv("T_PLAIN", "plain value", 1);
    setenv("T_BRACES", "value in braces", 1);
    setenv("T_API", "api value", 1);
    setenv("T_ALL", "token of all", 1);
    setenv("T_DIR", *state, 1);
    write_text(file, "from a file\n", 12);
    struct workload_config *c = config(text);
    struct secrets *s = NULL;
    assert_ok(secrets_load(c, 0, &s, &err), &err);
    assert_string_equal(value_of(s, 0, "T_PLAIN"), "plain value");
    assert_string_equal(value_of(s, 0, "T_BRACES"), "value in braces");
    assert_null(value_of(s, 0, "KEY")); /* a layer has its own alone */
    assert_null(value_of(s, 1, "T_PLAIN"));
    assert_string_equal(value_of(s, 1, "KEY"), "api value");
    assert_string_equal(value_of(s, 1, "FILE_VALUE"), "from a file");
    assert_string_equal(value_of(s, 0, "ALL"), "Bearer token of all");
    assert_string_equal(value_of(s, 1, "ALL"), "Bearer token of all");
    assert_string_equal(value_of(s, 0, "WORD"), "${x}");
    assert_null(secrets_of(s, 2));
    const struct layer_secrets *two = secrets_of(s, 1);
    assert_int_equal(secrets_of(s, 0)->n_files, 0);
    assert_int_equal(two->n_files, 2);
    assert_string_equal(two->files[0].path, file); /* as it is, with its line end */
    assert_int_equal(two->files[0].len, 12);
    assert_memory_equal(two->files[0].data, "from a file\n", 12);
    assert_string_equal(two->files[1].path, "/root/.token");
    assert_memory_equal(two->files[1].data, "plain value", 11);
    assert_int_equal(s->unmasked.n, 0);
    CB_AUTO_FREE char *said =
        mask_text(s->mask, "plain value, value in braces, api value, from a file, token of all");
    assert_string_equal(said, "***, ***, ***, ***, ***");
    CB_AUTO_FREE char *dir = mask_text(s->mask, *state);
    assert_null(dir);
    secrets_free(s);
    static const char *const gone[] = {"T_PLAIN", "T_BRACES", "T_API", "T_ALL"};
    for (size_t i = 0; i < 4; i++)
        assert_null(getenv(gone[i]));
    assert_string_equal(getenv("T_DIR"), *state); /* a part of a path is no secret */
    struct rlimit core;
    assert_int_equal(getrlimit(RLIMIT_CORE, &core), 0);
    assert_true(core.rlim_max <= 1);
    config_free(c);
}

static void test_what_we_need_ourselves_stays_in_the_environment(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct workload_config *c = config(CONFIG(LAYER("one", "{id: p, env: PATH}"), ""));
    CB_AUTO_FREE char *path = cb_xstrdup(getenv("PATH"));
    struct secrets *s = NULL;
    assert_ok(secrets_load(c, 0, &s, &err), &err);
    assert_string_equal(getenv("PATH"), path);
    secrets_free(s);
    config_free(c);
}

static void test_only_layers_that_run_need_theirs(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct workload_config *c =
        config(CONFIG(LAYER("one", "{id: a, env: T_UNSET}") LAYER("two", ""), ""));
    struct secrets *s = NULL;
    assert_fails(secrets_load(c, 0, &s, &err), &err, CB_E_CONFIG,
                 "layer one: secret a: the variable T_UNSET is not set");
    assert_null(s);
    assert_ok(secrets_load(c, 1, &s, &err), &err);
    assert_null(s);
    assert_ok(secrets_load(c, 2, &s, &err), &err);
    assert_null(s);
    config_free(c);
}

static void test_what_cannot_be_had_is_named(void **state)
{
    const char *dir = *state;
    static const struct {
        const char *secret, *credentials;
        enum cb_code code;
        const char *said;
    } cases[] = {
        {"{id: a, env: T_A}", "", CB_E_CONFIG, "layer one: secret a: the variable T_A is not set"},
        {"{id: a, env: T_A}", "secrets: [{name: a, env: T_B}]", CB_E_CONFIG,
         "secret a: the variable T_B is not set"},
        {"{id: a, env: A}", "secrets: [{name: a, secret_name: x/y}]", CB_E_CONFIG,
         "secret a: it is a secret manager's"},
        {"{id: a, env: A}", "secrets: [{name: a, path: /no/such/file}]", CB_E_CONFIG,
         "secret a: the file /no/such/file cannot be read: No such file"},
        {"{id: a, env: A}", "secrets: [{name: a, path: /}]", CB_E_CONFIG, "/ is not a file"},
        {"{id: a, env: A}", "secrets: [{name: a, path: /dev/zero}]", CB_E_CONFIG,
         "/dev/zero is not a file"},
        {"{id: a, env: A}", "secrets: [{name: a, path: '/${T_DIR}/nul'}]", CB_E_CONFIG,
         "it holds a NUL"},
        {"{id: a, env: A}", "secrets: [{name: a, path: '/${T_DIR}/nul-at-its-end'}]", CB_E_CONFIG,
         "it holds a NUL"},
        {"{id: a, env: A}", "secrets: [{name: a, path: '/${T_DIR}/large'}]", CB_E_LIMIT,
         "secret a: "},
        {"{id: a, env: T_LARGE}", "", CB_E_LIMIT, "secret a: the variable T_LARGE holds more"},
        {"{id: a, env: A}, {id: b, env: B}, {id: c, env: C}",
         "secrets: [{name: a, path: '/${T_DIR}/most'}, {name: b, path: '/${T_DIR}/most'}, {name: "
         "c, path: '/${T_DIR}/most'}]",
         CB_E_LIMIT, "layer one: its secrets are larger than 128 KiB"},
        {"{id: a, path: /no/such/file}", "", CB_E_CONFIG,
         "secret a: the file /no/such/file cannot be read"},
        {"{id: a, env: A}, {id: b, path: /b}, {id: c, path: /c}",
         "secrets: [{name: a, path: '/${T_DIR}/most'}, {name: b, path: '/${T_DIR}/most'}, {name: "
         "c, "
         "path: '/${T_DIR}/most'}]",
         CB_E_LIMIT, "layer one: its secrets are larger than 128 KiB"},
        {"", "env: {X: 'a${T_A}'}", CB_E_CONFIG, "credentials.env.X: the variable T_A is not set"},
    };
    CB_AUTO_FREE char *large = cb_xcalloc(1, SECRET_MAX + 2);
    memset(large, 'x', SECRET_MAX + 1);
    setenv("T_LARGE", large, 1);
    assert_int_equal(chdir(dir), 0);
    write_text("nul", "a\0bcd", 5);
    write_text("nul-at-its-end", "abcd\0", 5);
    write_text("large", large, SECRET_MAX + 1);
    write_text("most", large, SECRET_MAX - 100);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *text =
            cb_xasprintf(CONFIG(LAYER("one", "%s"), "%s"), cases[i].secret, cases[i].credentials);
        struct workload_config *c = config(text);
        struct secrets *s = NULL;
        setenv("T_DIR", dir, 1);
        assert_fails(secrets_load(c, 0, &s, &err), &err, cases[i].code, cases[i].said);
        assert_null(s);
        config_free(c);
    }
    unsetenv("T_LARGE");
    assert_int_equal(chdir("/"), 0);
}

static void test_values_that_are_not_masked_are_named(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct workload_config *c = config(
        CONFIG(LAYER("one", "{id: pin, env: T_PIN}"), "env: {EMPTY: '', LEVEL: 3, RATIO: 1.10}"));
    struct secrets *s = NULL;
    setenv("T_PIN", "123", 1);
    assert_ok(secrets_load(c, 0, &s, &err), &err);
    assert_int_equal(s->unmasked.n, 2); /* there is nothing to be seen of an empty one */
    assert_string_equal(s->unmasked.v[0], "credentials.env.LEVEL");
    assert_string_equal(s->unmasked.v[1], "secret pin");
    assert_string_equal(value_of(s, 0, "RATIO"), "1.10");
    secrets_free(s);
    config_free(c);
}

/* ---- what a layer leaves ---- */

static void on_leak(void *arg, const char *secret, const char *path)
{
    (void)cb_buf_addf(arg, "%s: %s\n", path, secret);
}

static void run(const char *dir, const char *script)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_proc_result res = {0};
    const struct cb_proc_spec spec = {.argv = (const char *const[]){"sh", "-ec", script, NULL},
                                      .cwd = dir};
    assert_ok(cb_proc_run(&spec, NULL, 4096, 60000, &res, &err), &err);
    assert_ok(cb_proc_check(&res, script, &err), &err);
    cb_proc_result_release(&res);
}

/* The leaks in bytes of @file from @offset on. Owned. */
static char *leaks(const struct secrets *s, const char *dir, const char *file, uint64_t offset)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, file);
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    struct cb_buf out = CB_BUF_INIT(4096);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    assert_ok(leaks_find(s, fd, offset, (uint64_t)st.st_size - offset, on_leak, &out, &err), &err);
    return cb_buf_take(&out);
}

static void test_values_in_a_layer_are_found(void **state)
{
    const char *dir = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct workload_config *c = config(CONFIG(
        LAYER("one", "{id: token, env: T_TOKEN}, {id: far, env: T_FAR}, {id: none, env: T_NONE}, "
                     "{id: short, env: T_SHORT}, {id: again, env: T_TOKEN}"),
        "env: {ALL: 'Bearer ${T_ALL}'}"));
    struct secrets *s = NULL;
    setenv("T_TOKEN", "token-of-one", 1);
    setenv("T_FAR", "far-behind-in-it", 1);
    setenv("T_NONE", "is-nowhere-at-all", 1);
    setenv("T_SHORT", "seven77", 1);
    setenv("T_ALL", "token-of-all", 1);
    assert_ok(secrets_load(c, 0, &s, &err), &err);
    run(dir, "mkdir -p t/etc/deep; echo seven77 >t/a; head -c 1048560 /dev/zero >t/b; "
             "printf far-behind-in-it >>t/b; echo 'x=token-of-one' >t/etc/deep/conf; "
             "echo token-of-one >t/z; printf token-of-all >t/etc/all; "
             "tar --sort=name -C t -cf plain.tar a b etc z; "
             "(head -c 4096 /dev/zero; cat plain.tar) >shifted; echo token-of-one >broken");
    static const char want[] = "etc/all: credentials.env.ALL\n"
                               "etc/deep/conf: secret token\nb: secret far\n";
    CB_AUTO_FREE char *plain = leaks(s, dir, "plain.tar", 0);
    assert_string_equal(plain, want);
    CB_AUTO_FREE char *shifted = leaks(s, dir, "shifted", 4096);
    assert_string_equal(shifted, want);
    CB_AUTO_FREE char *broken = leaks(s, dir, "broken", 0); /* a stranger wrote it */
    assert_string_equal(broken, "?: secret token\n");
    secrets_free(s);
    config_free(c);
}

/* ---- what a build says ---- */

struct said {
    struct cb_buf events; /* a line each, output apart */
    struct cb_buf out[2];
    int pieces;
};

static void on_event(void *arg, enum event_type type, json_t *payload)
{
    struct said *s = arg;
    if (type == EVENT_OUTPUT) {
        const char *data = json_string_value(json_object_get(payload, "data"));
        const char *stream = json_string_value(json_object_get(payload, "stream"));
        assert_null(json_object_get(payload, "encoding"));
        assert_true(json_integer_value(json_object_get(payload, "step")) > 0);
        (void)cb_buf_adds(&s->out[strcmp(stream, "stderr") == 0], data);
        s->pieces++;
    } else {
        CB_AUTO_FREE char *text = json_dumps(payload, JSON_SORT_KEYS);
        (void)cb_buf_addf(&s->events, "%s %s\n", event_type_name(type), text);
    }
    json_decref(payload);
}

static struct said said_of_nothing(void)
{
    return (struct said){.events = CB_BUF_INIT(1 << 20),
                         .out = {CB_BUF_INIT(1 << 20), CB_BUF_INIT(1 << 20)}};
}

static void said_release(struct said *s)
{
    cb_buf_release(&s->events);
    cb_buf_release(&s->out[0]);
    cb_buf_release(&s->out[1]);
}

static void test_nothing_that_is_said_holds_a_secret(void **state)
{
    (void)state;
    struct said said = said_of_nothing();
    const struct build_sink sink = {on_event, &said};
    struct mask *m = mask_new();
    struct emitter em;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    mask_add(m, "hunter2", 7);
    emitter_init(&em, &sink);
    emit_note(&em, "before");
    emit_set_mask(&em, m);
    emit_note(&em, "the note of %s", "hunter2");
    emit_warning(&em, "the warning of hunter2");
    emit(&em, EVENT_NOTE,
         json_pack("{s:s, s:[s,{s:s}]}", "text", "t", "more", "hunter2", "x", "aHVudGVyMg=="));
    emit_step_start(&em, PHASE_RECIPE, "hunter2-layer", "curl -H hunter2");
    emit_step_output(&em, 1, "one hun", 7);
    emit_step_output(&em, 2, "two hunte", 9);
    emit_step_output(&em, 1, "ter2 end\nhunt", 13);
    emit_step_output(&em, 2, "r3\n", 3);
    CB_AUTO_FREE char *tail = emit_tail(&em);
    cb_fail(&err, CB_E_COMMAND, "it printed hunter2");
    cb_hint(&err, "do not print hunter2");
    emit_step_end(&em, 1, &err);
    emit_mask_error(&em, &err);
    emit_step_start(&em, PHASE_RECIPE, "next", "x");
    emit_step_output(&em, 1, "er2\n", 4); /* of another step: the beginning was shown */
    emit_step_end(&em, 0, NULL);
    emitter_release(&em);
    assert_string_equal(err.msg, "it printed ***");
    assert_string_equal(err.hint, "do not print ***");
    assert_string_equal(said.out[0].data, "one *** end\nhunter2\n");
    assert_string_equal(said.out[1].data, "two hunter3\n");
    assert_null(strstr(said.events.data, "hunter2"));
    assert_null(strstr(said.events.data, "aHVudGVyMg"));
    assert_non_null(strstr(said.events.data, "the note of ***"));
    assert_non_null(strstr(said.events.data, "the warning of ***"));
    assert_non_null(strstr(said.events.data, "***-layer"));
    assert_non_null(strstr(said.events.data, "curl -H ***"));
    assert_non_null(strstr(said.events.data, "it printed ***"));
    assert_string_equal(tail, "one two *** end\nhunter3\nhunt\n"); /* as it came */
    mask_free(m);
    said_release(&said);
}

/* What is held back may grow to more than an event takes. */
static void test_long_values_come_in_events_of_their_size(void **state)
{
    (void)state;
    struct said said = said_of_nothing();
    const struct build_sink sink = {on_event, &said};
    struct mask *m = mask_new();
    struct emitter em;
    CB_AUTO_FREE char *value = cb_xcalloc(1, SECRET_MAX + 1);
    memset(value, 'v', SECRET_MAX);
    mask_add(m, value, SECRET_MAX);
    emitter_init(&em, &sink);
    emit_set_mask(&em, m);
    emit_step_start(&em, PHASE_RECIPE, "l", "c");
    emit_step_output(&em, 1, value, SECRET_MAX / 2);
    emit_step_output(&em, 1, value, SECRET_MAX / 2 - 1);
    assert_int_equal(said.pieces, 0);
    emit_step_end(&em, 0, NULL);
    assert_int_equal(said.out[0].len, SECRET_MAX - 1);
    assert_int_equal(said.pieces, 2);
    emitter_release(&em);
    mask_free(m);
    said_release(&said);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_where_values_come_from),
        cmocka_unit_test(test_what_we_need_ourselves_stays_in_the_environment),
        cmocka_unit_test(test_only_layers_that_run_need_theirs),
        test_in_dir(test_what_cannot_be_had_is_named),
        cmocka_unit_test(test_values_that_are_not_masked_are_named),
        test_in_dir(test_values_in_a_layer_are_found),
        cmocka_unit_test(test_nothing_that_is_said_holds_a_secret),
        cmocka_unit_test(test_long_values_come_in_events_of_their_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
