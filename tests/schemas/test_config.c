/* The config: files that are right (tests/data/config/good), files that are wrong with the words
 * said about each (tests/data/config/bad; CB_REFRESH=1 writes them anew), and single rules. */
#include "check.h"

#include "schemas/schemas.h"

#include <dirent.h>
#include <stdio.h>

#define DATA CB_SOURCE_DIR "/tests/data/config/"

/* Sorted names in @dir that end with @suffix or @other. */
static void list(const char *dir, struct cb_strv *out)
{
    struct dirent **entries = NULL;
    int n = scandir(dir, &entries, NULL, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        const char *dot = strrchr(entries[i]->d_name, '.');
        if (dot && (strcmp(dot, ".yaml") == 0 || strcmp(dot, ".json") == 0))
            cb_strv_add(out, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
}

static char *print(const struct config_problems *p)
{
    CB_AUTO_BUF out = CB_BUF_INIT(1u << 20);
    config_problems_print(p, &out);
    char *said = cb_buf_take(&out);
    check_said(said);
    return said;
}

static struct workload_config *parse_flags(const char *text, enum config_format format,
                                           unsigned flags)
{
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (config_parse(text, strlen(text), "test.yaml", format, flags, &c, &p, &err) < 0) {
        CB_AUTO_FREE char *said = print(&p);
        print_error("%s", said);
    }
    config_problems_release(&p);
    assert_non_null(c);
    return c;
}

static struct workload_config *parse(const char *text)
{
    return parse_flags(text, CONFIG_YAML, 0);
}

/* Asserts that @text is refused, and returns what is said about it. */
static char *refused(const char *text, enum config_format format)
{
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = config_parse(text, strlen(text), "f", format, 0, &c, &p, &err);
    assert_int_equal(rc, -CB_E_CONFIG);
    assert_null(c);
    assert_true(p.n_errors > 0);
    assert_non_null(err.msg);
    char *said = print(&p);
    config_problems_release(&p);
    return said;
}

static void assert_says(const char *text, enum config_format format, const char *words)
{
    CB_AUTO_FREE char *said = refused(text, format);
    if (!strstr(said, words))
        fail_msg("%s\nsaid: %s\nnot: %s", text, said, words);
}

static void check_keys(const struct workload_config *a, const struct workload_config *b,
                       const char *name)
{
    assert_int_equal(a->n_layers, b->n_layers);
    struct cb_digest da[64], db[64];
    assert_true(a->n_layers < 63);
    keys_declared(a, da);
    keys_declared(b, db);
    if (memcmp(da, db, (a->n_layers + 1) * sizeof(*da)) != 0)
        fail_msg("%s: other declared hashes after a dump", name);
    for (size_t i = 0; i < a->n_layers; i++) {
        struct cache_key ka = {0}, kb = {0};
        keys_cache_layer(a, &a->layers[i], NULL, &da[0], &ka);
        keys_cache_layer(b, &b->layers[i], NULL, &da[0], &kb);
        assert_string_equal(ka.inputs, kb.inputs);
        assert_true(cb_digest_eq(&ka.digest, &kb.digest));
        cache_key_release(&ka);
        cache_key_release(&kb);
    }
    struct template_inputs in = {.last_cache = da[0]};
    struct cache_key ta = {0}, tb = {0};
    keys_template(a, &in, &ta);
    keys_template(b, &in, &tb);
    assert_string_equal(ta.inputs, tb.inputs);
    cache_key_release(&ta);
    cache_key_release(&tb);
}

static void check_same(const struct workload_config *a, const struct workload_config *b,
                       const char *name)
{
    check_keys(a, b, name);
    struct cb_digest ra, rb;
    keys_request(a, "{}", &ra);
    keys_request(b, "{}", &rb);
    assert_true(cb_digest_eq(&ra, &rb));
    assert_int_equal(a->n_unsupported, b->n_unsupported);
    for (size_t i = 0; i < a->n_unsupported; i++) { /* the dump's order is another */
        size_t k = 0;
        while (k < b->n_unsupported &&
               strcmp(a->unsupported[i].field, b->unsupported[k].field) != 0)
            k++;
        if (k == b->n_unsupported)
            fail_msg("%s: %s is lost in the dump", name, a->unsupported[i].field);
    }
}

static void test_good_files_survive_a_dump(void **state)
{
    (void)state;
    CB_AUTO_STRV names = {0};
    list(DATA "good", &names);
    assert_true(names.n >= 40);
    for (size_t i = 0; i < names.n; i++) {
        CB_AUTO_FREE char *path = cb_xasprintf(DATA "good/%s", names.v[i]);
        struct workload_config *c = NULL, *again = NULL;
        struct config_problems p = {0};
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        if (config_load(path, 0, &c, &p, &err) < 0) {
            CB_AUTO_FREE char *said = print(&p);
            fail_msg("%s", said);
        }
        assert_int_equal(p.n, 0);
        CB_AUTO_FREE char *dump = config_dump(c);
        if (config_parse(dump, strlen(dump), "dump.json", CONFIG_JSON, CONFIG_NO_ENV, &again, &p,
                         &err) < 0) {
            CB_AUTO_FREE char *said = print(&p);
            fail_msg("%s: %s\n%s", path, said, dump);
        }
        CB_AUTO_FREE char *second = config_dump(again);
        assert_string_equal(dump, second);
        check_same(c, again, names.v[i]);
        config_free(again);
        CB_AUTO_FREE char *full = config_dump_full(c); /* defaults said aloud change nothing */
        if (config_parse(full, strlen(full), "full.json", CONFIG_JSON, CONFIG_NO_ENV, &again, &p,
                         &err) < 0) {
            CB_AUTO_FREE char *said = print(&p);
            fail_msg("%s: %s\n%s", path, said, full);
        }
        check_keys(c, again, names.v[i]);
        config_free(c);
        config_free(again);
        config_problems_release(&p);
    }
}

static void test_examples_are_right(void **state)
{
    (void)state;
    struct dirent **entries = NULL;
    int n = scandir(CB_SOURCE_DIR "/examples", &entries, NULL, alphasort);
    assert_true(n > 0);
    size_t read = 0;
    for (int i = 0; i < n; i++) {
        CB_AUTO_FREE char *path =
            cb_xasprintf(CB_SOURCE_DIR "/examples/%s/onboard.yaml", entries[i]->d_name);
        free(entries[i]);
        if (!cb_path_exists(path))
            continue;
        struct workload_config *c = NULL;
        struct config_problems p = {0};
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        if (config_load(path, 0, &c, &p, &err) < 0) {
            CB_AUTO_FREE char *said = print(&p);
            fail_msg("%s", said);
        }
        /* the first one that is tried is no place for what does not work yet */
        if (c->n_unsupported && strstr(path, "/hello/"))
            fail_msg("%s uses %s, which is not acted on", path, c->unsupported[0].field);
        config_free(c);
        config_problems_release(&p);
        read++;
    }
    free(entries);
    assert_true(read > 0);
}

static void test_bad_files_are_explained(void **state)
{
    (void)state;
    CB_AUTO_STRV names = {0};
    list(DATA "bad", &names);
    assert_true(names.n >= 120);
    for (size_t i = 0; i < names.n; i++) {
        CB_AUTO_FREE char *path = cb_xasprintf(DATA "bad/%s", names.v[i]);
        CB_AUTO_FREE char *expect = cb_xasprintf("%s.expect", path);
        CB_AUTO_BUF text = CB_BUF_INIT(0), want = CB_BUF_INIT(0);
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        assert_ok(cb_read_file(path, 1u << 21, &text, &err), &err);
        struct workload_config *c = NULL;
        struct config_problems p = {0};
        int rc = config_parse(text.data ? text.data : "", text.len, names.v[i], CONFIG_AUTO, 0, &c,
                              &p, &err);
        CB_AUTO_FREE char *said = print(&p);
        config_problems_release(&p);
        config_free(c);
        if (rc != -CB_E_CONFIG)
            fail_msg("%s is accepted", path);
        cb_error_clear(&err);
        if (getenv("CB_REFRESH")) {
            assert_ok(cb_write_file(expect, said, strlen(said), 0644, &err), &err);
            continue;
        }
        assert_ok(cb_read_file(expect, 1u << 20, &want, &err), &err);
        if (strcmp(said, want.data ? want.data : "") != 0)
            fail_msg("%s: said\n%s\nexpected\n%s", names.v[i], said, want.data);
    }
}

static void test_the_model_of_a_small_service(void **state)
{
    (void)state;
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(config_load(DATA "good/hello.yaml", 0, &c, &p, &err), &err);
    assert_string_equal(c->display_name, "hello-world");
    assert_string_equal(c->base_image, "minimal-debian");
    assert_int_equal(c->n_layers, 2);
    assert_string_equal(c->layers[0].name, "deps");
    assert_int_equal(c->layers[0].init_commands.n, 2);
    assert_string_equal(c->layers[0].init_commands.v[0].script, "apt-get update");
    assert_string_equal(c->layers[0].init_commands.v[1].script,
                        "set -e\napt-get install -y --no-install-recommends python3\n");
    assert_string_equal(c->layers[0].init_commands.v[1].loc.path, "layers[0].init_commands[1]");
    assert_int_equal(c->layers[0].init_commands.v[1].loc.line, 8);
    const struct layer *app = &c->layers[1];
    assert_string_equal(app->workdir, "/srv/app");
    assert_string_equal(app->user, "www-data:www-data");
    assert_string_equal(app->env.v[0].value, "hello");
    const struct command *install = &app->init_commands.v[0];
    assert_int_equal(install->type, COMMAND_EXEC);
    assert_null(install->script);
    assert_true(install->run_as_root);
    assert_int_equal(install->args.n, 5);
    assert_string_equal(install->args.v[3], "0755");
    const struct command *page = &app->init_commands.v[1];
    assert_int_equal(page->timeout_ms, 300000);
    assert_string_equal(page->args.v[2], "echo $GREETING > index.html");
    assert_string_equal(page->env_variables.v[0].key, "LANG");
    assert_int_equal(c->tier, TIER_S);
    assert_string_equal(c->runner_user, "app");
    assert_int_equal(c->rootfs_size_gb, 4);
    assert_int_equal(c->auto_rollout, AUTO_TRUE);
    assert_int_equal(c->auto_pause, AUTO_UNSET);
    assert_true(c->start.present && !c->start.from_image);
    assert_int_equal(c->start.port, 8080);
    assert_string_equal(c->start.health_path, "/index.html");
    assert_string_equal(c->start.env.v[1].value, "4");
    assert_string_equal(c->start.env.v[2].value, "false");
    assert_string_equal(c->start.run_as, "app");
    assert_int_equal(c->n_unsupported, 0);
    config_free(c);
    config_problems_release(&p);
}

static void test_limits_of_a_command_are_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *compute, *ram;
        uint32_t cpus; /* of a machine with 4 */
        uint64_t bytes;
    } rows[] = {
        {"LOW", "512MB", 100, 512000000},     {"medium", "512MiB", 200, UINT64_C(512) << 20},
        {"HIGH", "2G", 0, UINT64_C(2) << 30}, {"150", "64k", 150, 65536},
        {"400", "1GB", 0, 1000000000},        {"1", "999999999GiB", 1, UINT64_C(999999999) << 30},
        {"99999999999", "1KB", 0, 1000},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_FREE char *text =
            cb_xasprintf("base_image: debian\nlayers: [{name: a, init_commands: [{args: [x], "
                         "compute: %s, ram: %s}, x]}]",
                         rows[i].compute, rows[i].ram);
        struct workload_config *c = parse(text);
        CB_AUTO_FREE char *dump = config_dump(c);
        struct workload_config *again = parse(dump); /* as a job reads it */
        const struct command *x = &again->layers[0].init_commands.v[0];
        assert_int_equal(command_cpus(x, 4), rows[i].cpus);
        assert_int_equal(command_ram(x), rows[i].bytes);
        assert_int_equal(command_cpus(x + 1, 4), 0);
        assert_int_equal(command_ram(x + 1), 0);
        config_free(c);
        config_free(again);
    }
}

static void test_what_is_not_acted_on_is_named_once(void **state)
{
    (void)state;
    static const char *const expected[] = {"refresh_interval",
                                           "ttl",
                                           "session_max_age_seconds",
                                           "refresh_idle_ttl_seconds",
                                           "memory_request_mb",
                                           "memory_limit_mb",
                                           "auto_pause",
                                           "auth",
                                           "tenant_gcp_project",
                                           "tenant_gcp_zone",
                                           "tenant_network",
                                           "tenant_subnet",
                                           "tenant_service_account",
                                           "host_dirs"};
    enum { N = sizeof(expected) / sizeof(expected[0]) };
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(config_load(DATA "good/every-field.yaml", 0, &c, &p, &err), &err);
    for (size_t i = 0; i < c->n_unsupported && i < N; i++) {
        check_said(c->unsupported[i].field);
        assert_string_equal(c->unsupported[i].field, expected[i]);
        if (strcmp(expected[i], "context from git") == 0)
            assert_string_equal(c->unsupported[i].loc.path, "layers[0].context[1]");
    }
    assert_int_equal(c->n_unsupported, N);
    config_free(c);
    assert_ok(config_load(DATA "good/full-shape.yaml", 0, &c, &p, &err), &err);
    assert_int_equal(c->n_unsupported, 4); /* empty credentials drop nothing */
    assert_string_equal(c->unsupported[0].field, "platform");
    assert_string_equal(c->unsupported[3].field, "session");
    assert_string_equal(c->hosts, "{\"machine_type\":\"n2-standard-64\",\"min_count\":2}");
    config_free(c);
    static const struct {
        const char *config, *command;
        size_t notes;
        bool without;
    } nets[] = {
        {"network_policy_preset: none", "x", 0, true},
        {"network_policy_preset: open", "x", 0, false},
        {"network_policy_preset: packages-only", "x", 0, false},
        {"network_policy_preset: none", "{args: [x], allowed_hosts: [a.example]}", 0, false},
        {"network_policy_preset: none, network_policy: {default: deny}", "x", 0, false},
        {"ttl: 0", "x", 0, false},
    };
    for (size_t i = 0; i < sizeof(nets) / sizeof(nets[0]); i++) {
        CB_AUTO_FREE char *text = cb_xasprintf(
            "base_image: debian\nconfig: {%s}\nlayers: [{name: a, init_commands: [%s]}]",
            nets[i].config, nets[i].command);
        c = parse(text);
        assert_int_equal(c->n_unsupported, nets[i].notes);
        assert_int_equal(config_without_network(c), nets[i].without);
        config_free(c);
    }
    c = parse("base_image: debian\nconfig: {ttl: 0, auto_pause: false, init: agent}\n"
              "layers: [{name: a, init_commands: [x], drives: []}]");
    assert_int_equal(c->n_unsupported, 0);
    config_free(c);
}

static void test_defaults_are_filled_in(void **state)
{
    (void)state;
    struct workload_config *c =
        parse("base_image: debian\nlayers: [{name: a, init_commands: [x], drives: [{drive_id: "
              "a-very-long-name}, {drive_id: b, label: bb, size_gb: 3, mount_path: /b}]}]");
    CB_AUTO_FREE char *full = config_dump_full(c);
    assert_non_null(strstr(full,
                           "{\"drive_id\":\"a-very-long-name\",\"label\":\"cb-a-very-long-n\","
                           "\"size_gb\":10,\"mount_path\":\"/drives/a-very-long-name\","
                           "\"read_only\":false}"));
    assert_non_null(strstr(full, "\"label\":\"bb\",\"mount_path\":\"/b\",\"size_gb\":3,"));
    assert_null(strstr(full, "workspace_size_gb"));
    assert_int_equal(config_workspace_size_gb(c), 0);
    config_free(c);
    c = parse("base_image: debian");
    CB_AUTO_FREE char *bare = config_dump_full(c);
    assert_non_null(strstr(bare, "\"workspace_size_gb\":50"));
    assert_int_equal(config_workspace_size_gb(c), 50);
    char before[WORKLOAD_KEY_LEN + 1], after[WORKLOAD_KEY_LEN + 1];
    keys_workload(c, before);
    config_free(c);
    c = parse("base_image: debian\nconfig: {workspace_size_gb: 50}");
    assert_int_equal(c->workspace_size_gb, 0); /* said or not, it is the same */
    keys_workload(c, after);
    assert_string_equal(before, after);
    config_free(c);
    c = parse("base_image: debian\nconfig: {workspace_size_gb: 7}");
    assert_int_equal(config_workspace_size_gb(c), 7);
    config_free(c);
}

static void test_what_a_template_keeps_of_credentials(void **state)
{
    (void)state;
    static const char text[] =
        "base_image: debian\ncredentials:\n  secrets: [{name: 5, env: T_A}]\n"
        "  env: {A: '${T_A}', B: written-out, C: '', D: '$${T}', E: 1.10}\n";
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(config_parse(text, strlen(text), "t", CONFIG_YAML, CONFIG_NO_ENV, &c, &p, &err),
              &err);
    config_problems_release(&p);
    CB_AUTO_FREE char *job = config_dump(c);
    CB_AUTO_FREE char *kept = config_dump_published(c);
    check_said(kept);
    assert_non_null(strstr(job, "\"env\":{\"A\":\"${T_A}\",\"B\":\"written-out\",\"C\":\"\","
                                "\"D\":\"$${T}\",\"E\":\"1.10\"},"
                                "\"secrets\":[{\"env\":\"T_A\",\"name\":\"5\"}]"));
    assert_non_null(strstr(kept, "\"env\":{\"A\":\"${T_A}\",\"B\":\"(left out)\",\"C\":\"\","
                                 "\"D\":\"(left out)\",\"E\":\"(left out)\"}"));
    config_free(c);
}

static void test_variables_are_expanded_where_the_language_says(void **state)
{
    (void)state;
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(config_load(DATA "good/expansion.yaml", 0, &c, &p, &err), &err);
    static const char *const values[] = {
        "<v a l>", "v a lv a l", "${CB_TEST_VAR} $CB_TEST_VAR $ $$ $$${X} $", "", "a ${b} c"};
    const struct layer *l = &c->layers[0];
    for (size_t i = 0; i < 5; i++)
        assert_string_equal(l->env.v[i].value, values[i]);
    assert_string_equal(l->init_commands.v[0].script, "echo ${HOME} $HOME");
    assert_string_equal(l->secrets[0].env, "${CB_TEST_VAR}"); /* the value stays outside */
    assert_string_equal(c->start.env.v[0].value, "av a lb");
    assert_string_equal(c->start.command.v[2], "echo ${NOT_EXPANDED}");
    assert_string_equal(c->credentials, "{\"env\":{\"KEY\":\"${CB_TEST_VAR}\"}}");
    CB_AUTO_FREE char *dump = config_dump(c);
    config_free(c);
    c = parse_flags(dump, CONFIG_JSON, CONFIG_NO_ENV);
    for (size_t i = 0; i < 5; i++) /* sorted by name now */
        for (size_t k = 0; k < 5; k++)
            if (strcmp(c->layers[0].env.v[k].key, "HOLDS") == 0)
                assert_string_equal(c->layers[0].env.v[k].value, "a ${b} c");
    config_free(c);
}

static void test_what_stands_in_variables_is_checked(void **state)
{
    (void)state;
    static const char text[] = "start_command: {command: [x], env: {A: '${CB_TEST_BAD}'}}\n";
    setenv("CB_TEST_BAD", "\xff", 1);
    assert_says(text, CONFIG_YAML, "the value of the variable CB_TEST_BAD is not UTF-8");
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_fails(config_parse(text, strlen(text), NULL, CONFIG_YAML, CONFIG_NO_ENV, &c, &p, &err),
                 &err, CB_E_CONFIG, "the config has 2 errors"); /* and nothing to build */
    CB_AUTO_FREE char *said = print(&p);
    assert_non_null(strstr(said, "${CB_TEST_BAD} is not expanded here"));
    config_problems_release(&p);
}

static void test_network_policies(void **state)
{
    (void)state;
    static const char text[] = "default: deny\n"
                               "egress:\n"
                               "  - {host: '*.example.com', ports: [80, 8000-8100]}\n"
                               "  - {cidr: 10.0.0.0/8, protocol: udp, action: deny}\n"
                               "  - {ports: [53]}\n";
    struct network_policy n = {0};
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(network_policy_parse(text, strlen(text), "p", &n, &p, &err), &err);
    assert_int_equal(n.otherwise, POLICY_DENY);
    assert_int_equal(n.n_rules, 3);
    assert_string_equal(n.rules[0].host, "*.example.com");
    assert_int_equal(n.rules[0].action, POLICY_ALLOW);
    assert_int_equal(n.rules[0].n_ports, 2);
    assert_int_equal(n.rules[0].ports[1].from, 8000);
    assert_int_equal(n.rules[0].ports[1].to, 8100);
    assert_string_equal(n.rules[1].cidr, "10.0.0.0/8");
    assert_int_equal(n.rules[1].protocol, POLICY_UDP);
    assert_int_equal(n.rules[1].action, POLICY_DENY);
    assert_null(n.rules[2].host);
    network_policy_release(&n);
    assert_fails(network_policy_parse("[]", 2, NULL, &n, &p, &err), &err, CB_E_CONFIG,
                 "the network policy: expected a map");
    config_problems_release(&p);
    static const char *const good[] = {"*", "a", "a.b-c.d_e", "*.a.b", "127.0.0.1", "::1", "_x.y"};
    static const char *const bad[] = {"",    ".",        "a.",   ".a",   "a..b",    "-a",    "a-",
                                      "*.*", "a.*.b",    "*a",   "a b",  "a:80",    "[::1]", "a/b",
                                      "*.",  "\xc3\xbc", "a-.b", "a.-b", "http://a"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_true(host_pattern_valid(good[i]));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (host_pattern_valid(bad[i]))
            fail_msg("%s is accepted", bad[i]);
    char label[66];
    memset(label, 'a', sizeof(label));
    label[64] = '\0';
    assert_false(host_pattern_valid(label));
    label[63] = '\0';
    assert_true(host_pattern_valid(label));
}

static void test_durations(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t ms;
    } good[] = {{"90s", 90000},
                {"1h30m", 5400000},
                {"2d", 172800000},
                {"500ms", 500},
                {"1m500ms", 60500},
                {"0s", 0},
                {"366d", INT64_C(31622400000)}};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        int64_t ms = duration_parse(good[i].text, &err);
        assert_int_equal(ms, good[i].ms);
    }
    static const char *const bad[] = {"",      "1",   "h",   "1h1h", "30m1h", "-1s",  "1.5h", "1 h",
                                      "daily", "+1s", "1s ", " 1s",  "1ms1s", "1min", "1H"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        assert_fails(duration_parse(bad[i], &err), &err, CB_E_CONFIG, "is not a duration");
    }
    static const char *const big[] = {"367d", "366d1ms", "999999999999d", "999999999999h"};
    for (size_t i = 0; i < sizeof(big) / sizeof(big[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        assert_fails(duration_parse(big[i], &err), &err, CB_E_CONFIG, "longer than a year");
    }
}

static void test_unknown_keys_can_be_allowed(void **state)
{
    (void)state;
    static const char text[] = "base_image: debian\nfrobnicate: 1\nlayer: []\n";
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(
        config_parse(text, strlen(text), "f", CONFIG_YAML, CONFIG_ALLOW_UNKNOWN, &c, &p, &err),
        &err);
    CB_AUTO_FREE char *said = print(&p);
    assert_int_equal(p.n, 2);
    assert_int_equal(p.n_errors, 0);
    assert_non_null(
        strstr(said, "f:2:1: warning: frobnicate: unknown key \"frobnicate\" is ignored"));
    assert_non_null(strstr(said, "did you mean \"layers\"?"));
    config_free(c);
    config_problems_release(&p);
    assert_fails(config_parse(text, strlen(text), "f", CONFIG_YAML, 0, &c, &p, &err), &err,
                 CB_E_CONFIG, "f has 2 errors");
    config_problems_release(&p);
}

static void test_names_come_from_the_folder(void **state)
{
    static const struct {
        const char *dir, *name;
    } rows[] = {{"my-app", "my-app"}, {"My App (2)", "my-app-2"}, {"_x_", "x-image"},
                {"...a..b", "a-b"},   {"---", "image"},           {"\xc3\xbc", "image"}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%s", (char *)*state, rows[i].dir);
        CB_AUTO_FREE char *file = cb_xasprintf("%s/onboard.yaml", dir);
        assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
        assert_ok(cb_write_file(file, "base_image: debian\n", 19, 0644, &err), &err);
        struct workload_config *c = NULL;
        struct config_problems p = {0};
        assert_ok(config_load(file, 0, &c, &p, &err), &err);
        CB_AUTO_FREE char *name = config_name(c);
        assert_string_equal(name, rows[i].name);
        config_free(c);
        config_problems_release(&p);
    }
}

static void test_a_missing_file_is_a_problem_too(void **state)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/none.yaml", (char *)*state);
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_fails(config_load(path, 0, &c, &p, &err), &err, CB_E_CONFIG, "no such file");
    assert_int_equal(p.n, 1);
    config_problems_release(&p);
    assert_fails(config_load(*state, 0, &c, &p, &err), &err, CB_E_CONFIG, "irectory");
    assert_int_equal(p.n, 1);
    config_problems_release(&p);
}

static void test_a_large_file_is_refused_by_its_size(void **state)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/large.yaml", (char *)*state);
    CB_AUTO_FREE char *text = cb_xmalloc(10000000);
    memset(text, '\n', 10000000);
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(cb_write_file(path, text, 10000000, 0600, &err), &err);
    assert_fails(config_load(path, 0, &c, &p, &err), &err, CB_E_CONFIG, "larger than 1 MiB");
    assert_int_equal(p.n, 1);
    config_problems_release(&p);
}

/* A text made of @n repeats between @head and @tail. */
static char *repeat(const char *head, const char *unit, size_t n, const char *tail)
{
    CB_AUTO_BUF out = CB_BUF_INIT(4u << 20);
    (void)cb_buf_adds(&out, head);
    for (size_t i = 0; i < n; i++)
        (void)cb_buf_adds(&out, unit);
    (void)cb_buf_adds(&out, tail);
    return cb_buf_take(&out);
}

static void test_hostile_sizes_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *head, *unit;
        size_t n;
        const char *tail;
        enum config_format format;
        const char *words;
    } rows[] = {
        {"a: ", "x", 1u << 20, "", CONFIG_YAML, "larger than 1 MiB"},
        {"a: ", "[", 500000, "", CONFIG_YAML, "more than 32 levels"},
        {"", "- ", 500000, "", CONFIG_YAML, "more than 32 levels"},
        {"", "[", 1000000, "", CONFIG_JSON, "more than 32 levels"},
        {"{\"a\":", "{\"a\":", 100000, "", CONFIG_JSON, "more than 32 levels"},
        {"platform: [", "a,", 500000, "]", CONFIG_YAML, "grows beyond 100000 values"},
        {"{\"a\":[", "1,", 500000, "1]}", CONFIG_JSON, "grows beyond 100000 values"},
        {"", "k: v\n", 100000, "", CONFIG_YAML, "grows beyond 100000 values"},
        {"", "k: v\n", 40000, "", CONFIG_YAML, "stands twice"},
        {"", "? [a]\n", 30000, "", CONFIG_YAML, "a key is a text here"},
        {"", "# comment\n", 100000, "", CONFIG_YAML, "the file is empty"},
        {"", "\n", 1000000, "x: [", CONFIG_YAML, "not valid YAML"},
        {"", "&a b\n", 100000, "", CONFIG_YAML, "expected a map"},
        {"a: [", "&a b,", 20000, "]", CONFIG_YAML, "more than 10000 anchors"},
        {"layers: [", "{name: x},", 250, "]", CONFIG_YAML, "duplicate layer name"},
        {"layers: [", "{name: x},", 10000, "]", CONFIG_YAML, "more than 256 layers"},
        {"init_commands: [", "x,", 1001, "]", CONFIG_YAML, "more than 1000 commands in one list"},
        {"x: &x [t,t,t,t,t,t,t,t,t,t]\nlayers: [",
         "{init_commands: *x, drives: [{drive_id: d, commands: "
         "[y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,"
         "y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,y,y]}]},",
         250, "]", CONFIG_YAML, "more than 10000 commands in one config"},
        {"layers: [{secrets: [", "{},", 65, "]}]", CONFIG_YAML, "more than 64 secrets"},
        {"config: {network_policy: {egress: [", "{},", 1001, "]}}", CONFIG_YAML,
         "more than 1000 rules"},
        {"healthcheck: ", "x", 131072, "", CONFIG_YAML, "longer than 131071 bytes"},
        {"start_command: {command: [", "x", 131072, "]}", CONFIG_YAML,
         "longer than 131071 bytes, which no program takes as one argument"},
        {"start_command: {env: {A: ", "x", 131072, "}}", CONFIG_YAML,
         "longer than 131070 bytes with its name"},
        {"start_command: {env: {A: '", "${CB_TEST_LONG}", 200, "'}}", CONFIG_YAML,
         "longer than 131071 bytes, with its variables"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_FREE char *text = repeat(rows[i].head, rows[i].unit, rows[i].n, rows[i].tail);
        assert_says(text, rows[i].format, rows[i].words);
    }
    /* each level nine times the one below it */
    static const char bomb[] =
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
        "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\n"
        "e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\n";
    assert_says(bomb, CONFIG_YAML, "grows beyond 100000 values");
    /* many problems: the first hundred, and how many more */
    CB_AUTO_FREE char *many = repeat("", "- x\n", 3, "");
    assert_says(many, CONFIG_YAML, "expected a map");
    CB_AUTO_FREE char *keys = repeat("config: {tier: m,", " tier: m,", 500, "}");
    assert_says(keys, CONFIG_YAML, "and 4");
}

int main(void)
{
    setenv("CB_TEST_VAR", "v a l", 1);
    setenv("CB_TEST_EMPTY", "", 1);
    setenv("CB_TEST_BRACE", "a ${b} c", 1);
    unsetenv("CB_TEST_UNSET");
    char long_value[1001];
    memset(long_value, 'x', sizeof(long_value) - 1);
    long_value[sizeof(long_value) - 1] = '\0';
    setenv("CB_TEST_LONG", long_value, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_files_survive_a_dump),
        cmocka_unit_test(test_examples_are_right),
        cmocka_unit_test(test_bad_files_are_explained),
        cmocka_unit_test(test_the_model_of_a_small_service),
        cmocka_unit_test(test_limits_of_a_command_are_numbers),
        cmocka_unit_test(test_what_is_not_acted_on_is_named_once),
        cmocka_unit_test(test_defaults_are_filled_in),
        cmocka_unit_test(test_what_a_template_keeps_of_credentials),
        cmocka_unit_test(test_variables_are_expanded_where_the_language_says),
        cmocka_unit_test(test_what_stands_in_variables_is_checked),
        cmocka_unit_test(test_network_policies),
        cmocka_unit_test(test_durations),
        cmocka_unit_test(test_unknown_keys_can_be_allowed),
        test_in_dir(test_names_come_from_the_folder),
        test_in_dir(test_a_missing_file_is_a_problem_too),
        test_in_dir(test_a_large_file_is_refused_by_its_size),
        cmocka_unit_test(test_hostile_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
