/* Keys: golden values, worked out beside this program from the rule in schemas/keys.h (JSON with
 * sorted keys and no white space, SHA-256), and what each key depends on. */
#include "check.h"

#include "schemas/schemas.h"

#include <dirent.h>
#include <stdio.h>

static const char base[] =
    "{\"display_name\":\"hello\",\"base_image\":\"debian:bookworm\","
    "\"config\":{\"tier\":\"s\",\"runner_user\":\"app\"},"
    "\"layers\":[{\"name\":\"deps\",\"env\":{\"B\":\"2\",\"A\":\"\\u00fc\\n\\\"\"},"
    "\"init_commands\":[\"apt-get update\",{\"type\":\"exec\",\"args\":[\"true\"],"
    "\"run_as_root\":true,\"timeout\":\"5m\",\"name\":\"t\"}]}],"
    "\"start_command\":{\"command\":[\"srv\"],\"port\":80}}";

static struct workload_config *parse(const char *text)
{
    struct workload_config *c = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(config_parse(text, strlen(text), "x", CONFIG_AUTO, 0, &c, &p, &err), &err);
    config_problems_release(&p);
    return c;
}

static void assert_hex(const struct cb_digest *d, const char *want)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(d, hex);
    assert_string_equal(hex, want);
}

static void test_golden_values(void **state)
{
    (void)state;
    struct workload_config *c = parse(base);
    struct cb_digest declared[2], manifest, request;
    keys_declared(c, declared);
    assert_hex(&declared[0], "ada07a73c39a2ee9492b97f24ad1789214d482c16061c0878f508e2a431394d6");
    assert_hex(&declared[1], "c7f5ef433d789f086439159472a3b4cf65b8f83812dcdb743d1a022cd0cf8bcb");
    char key[WORKLOAD_KEY_LEN + 1];
    keys_workload(c, key);
    assert_string_equal(key, "a164020b24c5ea31");
    cb_sha256("manifest", 8, &manifest);
    struct cache_key platform = {0}, layer = {0}, template = {0};
    keys_cache_base(&manifest, "amd64", &platform);
    assert_hex(&platform.digest,
               "3d29baa20915cac50a3a24ccecbaa9b3737184df806ac386b95b7cd6ee863498");
    keys_cache_layer(c, &c->layers[0], NULL, &platform.digest, &layer);
    assert_string_equal(
        layer.inputs,
        "{\"commands\":[{\"script\":\"apt-get "
        "update\"},{\"args\":[\"true\"],\"run_as_root\":true}],"
        "\"env\":{\"A\":\"\xc3\xbc\\n\\\"\",\"B\":\"2\"},"
        "\"parent\":\"sha256:3d29baa20915cac50a3a24ccecbaa9b3737184df806ac386b95b7cd6ee863498\","
        "\"platform_version\":2,\"runner_user\":\"app\"}");
    assert_hex(&layer.digest, "51e40026a6b45de30bacdd612961226abb186316ae145635abed6556f20217e4");
    struct cache_key once = {0}, twice = {0};
    keys_cache_refresh(&layer, &c->layers[0], &manifest, &once);
    keys_cache_refresh(&layer, &c->layers[0], &once.digest, &twice);
    assert_false(cb_digest_eq(&once.digest, &layer.digest));
    assert_false(cb_digest_eq(&once.digest, &twice.digest));
    assert_non_null(strstr(once.inputs, "\"refreshed\":{\"previous\":\"sha256:"));
    assert_non_null(strstr(once.inputs, "\"parent\":\"sha256:3d29baa2"));
    cache_key_release(&once);
    cache_key_release(&twice);
    struct template_inputs in = {.last_cache = layer.digest, .size_bytes_asked = 1};
    keys_template(c, &in, &template);
    assert_hex(&template.digest,
               "0471263f5bfb1cdf085b08a1c6515008d8fc74f083771c825a9b5169d96f1569");
    keys_request(c, "{\"force\":true}", &request);
    assert_hex(&request, "44c64b0af376b5e3d92ee36c4d171eb376e4f17aac7b2a336ff992fe03ae02e2");
    cache_key_release(&platform);
    cache_key_release(&layer);
    cache_key_release(&template);
    config_free(c);
}

enum { DECLARED = 1, CACHE = 2, TEMPLATE = 4 };

/* Each row changes one thing of the config; `moves` are the keys that must follow, and no others.
 */
static void test_keys_depend_on_what_matters_to_them(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to;
        unsigned moves;
    } rows[] = {
        {"\"hello\"", "\"other\"", 0},
        {"\"deps\"", "\"tools\"", 0},
        {"debian:bookworm", "debian:trixie", DECLARED}, /* resolved: by its digest */
        {"apt-get update", "apt-get  update", DECLARED | CACHE},
        {"\"apt-get update\"", "{\"args\":[\"bash\",\"-lc\",\"apt-get update\"]}",
         DECLARED | CACHE},
        {"\"exec\"", "\"shell\"", DECLARED}, /* they run alike */
        {"\"run_as_root\":true", "\"run_as_root\":false", DECLARED | CACHE},
        {"[\"true\"]", "[\"true\",\"\"]", DECLARED | CACHE},
        {"\"5m\"", "\"6m\"", DECLARED},
        {"\"name\":\"t\"", "\"name\":\"u\"", DECLARED},
        {"\"name\":\"t\"", "\"env_variables\":{\"X\":\"y\"}", DECLARED | CACHE},
        {"\"B\":\"2\"", "\"B\":\"3\"", DECLARED | CACHE},
        {"\"B\":\"2\"", "\"C\":\"2\"", DECLARED | CACHE},
        {"\"env\":", "\"workdir\":\"/w\",\"env\":", DECLARED | CACHE},
        {"\"env\":", "\"user\":\"u\",\"env\":", DECLARED | CACHE},
        {"\"env\":", "\"secrets\":[{\"id\":\"s\",\"env\":\"S\"}],\"env\":", DECLARED},
        {"\"env\":", "\"secrets\":[{\"id\":\"s\",\"env\":\"S\",\"version\":\"1\"}],\"env\":",
         DECLARED | CACHE},
        {"\"env\":", "\"drives\":[{\"drive_id\":\"d\"}],\"env\":", DECLARED | CACHE | TEMPLATE},
        {"\"env\":", "\"context\":[{\"src\":\"a\",\"dst\":\"/a\"}],\"env\":", DECLARED | CACHE},
        {"\"env\":", "\"refresh_interval\":\"daily\",\"env\":", 0},
        {"\"env\":", "\"refresh_commands\":[\"x\"],\"env\":", 0},
        {"\"name\":\"t\"", "\"max_retries\":1", DECLARED},
        {"\"name\":\"t\"", "\"compute\":\"HIGH\"", DECLARED},
        {"\"name\":\"t\"", "\"ram\":\"1GB\"", DECLARED},
        {"\"name\":\"t\"", "\"allowed_hosts\":[\"a\"]", DECLARED},
        {"\"name\":\"t\"", "\"allowed_files\":[\"a\"]", DECLARED},
        {"\"runner_user\":\"app\"", "\"runner_user\":\"web\"", CACHE | TEMPLATE},
        {"\"tier\":\"s\"", "\"tier\":\"m\"", DECLARED | TEMPLATE},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"ttl\":5", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"auto_rollout\":true", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"init\":\"systemd\"", TEMPLATE},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"init\":\"agent\"", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"snapshot\":\"warm\"", TEMPLATE},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"kernel\":\"image\"", TEMPLATE},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"auto_pause\":true", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"session_max_age_seconds\":1", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"refresh_idle_ttl_seconds\":1", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"memory_request_mb\":1", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"memory_limit_mb\":1", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"network_policy_preset\":\"none\"", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"network_policy\":{\"default\":\"deny\"}", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"auth\":{\"a\":1}", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"tenant_gcp_project\":\"my-project\"", 0},
        {"\"tier\":\"s\"", "\"tier\":\"s\",\"workspace_size_gb\":5", TEMPLATE},
        {"\"port\":80", "\"port\":81", TEMPLATE},
        {"\"port\":80", "\"port\":80,\"health_path\":\"/\"", TEMPLATE},
        {"\"port\":80", "\"port\":80,\"env\":{\"A\":\"b\"}", TEMPLATE},
        {"\"port\":80", "\"port\":80,\"run_as\":\"web\"", TEMPLATE},
        {"[\"srv\"]", "[\"srv2\"]", TEMPLATE},
        {"\"start_command\"", "\"init_commands\":[\"x\"],\"start_command\"", TEMPLATE},
        {"\"start_command\"", "\"healthcheck\":\"x\",\"start_command\"", TEMPLATE},
        {"\"start_command\"", "\"credentials\":{\"env\":{\"A\":\"b\"}},\"start_command\"", 0},
        {"\"start_command\"", "\"task\":{\"entrypoint\":\"a.py\"},\"start_command\"",
         TEMPLATE}, /* and more: test_a_task_counts() */
    };
    struct workload_config *a = parse(base);
    struct cb_digest parent;
    cb_sha256("parent", 6, &parent);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *at = strstr(base, rows[i].from);
        assert_non_null(at);
        CB_AUTO_FREE char *text =
            cb_xasprintf("%.*s%s%s", (int)(at - base), base, rows[i].to, at + strlen(rows[i].from));
        struct workload_config *b = parse(text);
        struct cb_digest da[2], db[2], ra, rb;
        keys_declared(a, da);
        keys_declared(b, db);
        struct cache_key ca = {0}, cb = {0}, ta = {0}, tb = {0};
        keys_cache_layer(a, &a->layers[0], NULL, &parent, &ca);
        keys_cache_layer(b, &b->layers[0], NULL, &parent, &cb);
        struct template_inputs in = {.last_cache = parent};
        keys_template(a, &in, &ta);
        keys_template(b, &in, &tb);
        keys_request(a, "", &ra);
        keys_request(b, "", &rb);
        unsigned moved = (cb_digest_eq(&da[1], &db[1]) ? 0 : DECLARED) |
                         (cb_digest_eq(&ca.digest, &cb.digest) ? 0 : CACHE) |
                         (cb_digest_eq(&ta.digest, &tb.digest) ? 0 : TEMPLATE);
        bool same_request = cb_digest_eq(&ra, &rb);
        if (moved != rows[i].moves)
            fail_msg("%s to %s moves %u, not %u", rows[i].from, rows[i].to, moved, rows[i].moves);
        assert_int_equal(same_request, strstr(rows[i].to, "\"init\":\"agent\"") != NULL);
        cache_key_release(&ca);
        cache_key_release(&cb);
        cache_key_release(&ta);
        cache_key_release(&tb);
        config_free(b);
    }
    config_free(a);
}

/* Every key of every right file of the corpus, which uses every field of the language: a change of
 * any hash shows here. CB_REFRESH=1 writes them anew, for those that were meant to change. */
static void test_keys_of_the_corpus_are_as_written_down(void **state)
{
    (void)state;
    static const char folder[] = CB_SOURCE_DIR "/tests/data/config/good";
    static const char golden[] = CB_SOURCE_DIR "/tests/data/config/keys.golden";
    CB_AUTO_BUF out = CB_BUF_INIT(1u << 20), want = CB_BUF_INIT(1u << 20);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct dirent **entries = NULL;
    int n = scandir(folder, &entries, NULL, alphasort);
    assert_true(n > 40);
    for (int i = 0; i < n; i++) {
        CB_AUTO_FREE char *name = cb_xstrdup(entries[i]->d_name);
        free(entries[i]);
        const char *dot = strrchr(name, '.');
        if (!dot || (strcmp(dot, ".yaml") != 0 && strcmp(dot, ".json") != 0))
            continue;
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", folder, name);
        struct workload_config *c = NULL;
        struct config_problems p = {0};
        assert_ok(config_load(path, 0, &c, &p, &err), &err);
        struct cb_digest declared[64], parent, request;
        char hex[CB_HEX_LEN + 1], key[WORKLOAD_KEY_LEN + 1];
        assert_true(c->n_layers < 63);
        keys_workload(c, key);
        (void)cb_buf_addf(&out, "%s workload %s\n", name, key);
        keys_declared(c, declared);
        cb_sha256("base", 4, &parent);
        struct cache_key k = {0};
        keys_cache_base(&parent, "amd64", &k);
        for (size_t l = 0; l <= c->n_layers; l++) {
            if (l) {
                parent = k.digest;
                cache_key_release(&k);
                keys_cache_layer(c, &c->layers[l - 1], NULL, &parent, &k);
            }
            cb_digest_hex(&declared[l], hex);
            (void)cb_buf_addf(&out, "%s declared %zu %s\n", name, l, hex);
            cb_digest_hex(&k.digest, hex);
            (void)cb_buf_addf(&out, "%s cache %zu %s\n", name, l, hex);
        }
        if (c->task) {
            parent = k.digest;
            cache_key_release(&k);
            keys_declared_task(c, &declared[c->n_layers], &declared[c->n_layers + 1]);
            keys_cache_task(c, &parent, &k);
            cb_digest_hex(&declared[c->n_layers + 1], hex);
            (void)cb_buf_addf(&out, "%s declared task %s\n", name, hex);
            cb_digest_hex(&k.digest, hex);
            (void)cb_buf_addf(&out, "%s cache task %s\n", name, hex);
        }
        struct template_inputs in = {.last_cache = k.digest, .size_bytes_asked = 1u << 30};
        cache_key_release(&k);
        keys_template(c, &in, &k);
        cb_digest_hex(&k.digest, hex);
        (void)cb_buf_addf(&out, "%s template %s\n", name, hex);
        cache_key_release(&k);
        keys_request(c, "{}", &request);
        cb_digest_hex(&request, hex);
        (void)cb_buf_addf(&out, "%s request %s\n", name, hex);
        config_free(c);
        config_problems_release(&p);
    }
    free(entries);
    if (getenv("CB_REFRESH")) {
        assert_ok(cb_write_file(golden, out.data, out.len, 0644, &err), &err);
        return;
    }
    assert_ok(cb_read_file(golden, 1u << 20, &want, &err), &err);
    const char *a = out.data, *b = want.data ? want.data : "";
    while (*a && *b) { /* line by line, so that the first that moved is named */
        size_t la = strcspn(a, "\n"), lb = strcspn(b, "\n");
        if (la != lb || memcmp(a, b, la) != 0)
            fail_msg("now %.*s, was %.*s", (int)la, a, (int)lb, b);
        a += la + 1;
        b += lb + 1;
    }
    assert_string_equal(a, b);
}

static void test_order_and_borders_count(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{\"base_image\":\"a\",\"layers\":[{\"name\":\"x\",\"init_commands\":[\"A\",\"B\"]}]}",
        "{\"base_image\":\"a\",\"layers\":[{\"name\":\"x\",\"init_commands\":[\"B\",\"A\"]}]}",
        "{\"base_image\":\"a\",\"layers\":[{\"name\":\"x\",\"init_commands\":[\"A\\nB\"]}]}",
        "{\"base_image\":\"a\",\"layers\":[{\"name\":\"x\",\"init_commands\":[\"A\\\",\\\"B\"]}]}",
        "{\"base_image\":\"a\",\"layers\":[{\"name\":\"x\",\"init_commands\":[\"A\"]},"
        "{\"name\":\"y\",\"init_commands\":[\"B\"]}]}",
        "{\"base_image\":\"a\",\"layers\":[{\"name\":\"x\",\"init_commands\":[{\"args\":[\"A\","
        "\"B\"]}]}]}",
        "{\"base_image\":\"a\",\"layers\":[{\"name\":\"x\",\"init_commands\":[{\"args\":[\"AB\"]}]}"
        "]}",
    };
    enum { N = sizeof(texts) / sizeof(texts[0]) };
    char keys[N][WORKLOAD_KEY_LEN + 1];
    for (size_t i = 0; i < N; i++) {
        struct workload_config *c = parse(texts[i]);
        keys_workload(c, keys[i]);
        assert_int_equal(strlen(keys[i]), WORKLOAD_KEY_LEN);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(keys[k], keys[i]);
        config_free(c);
    }
}

static void test_a_task_counts(void **state)
{
    (void)state;
    static const struct {
        const char *task;
        bool files; /* its files change, and with them the cache key */
    } cases[] = {{"", true},
                 {",\"task\":{\"entrypoint\":\"main.py\"}", true},
                 {",\"task\":{\"entrypoint\":\"main.py\",\"timeout\":\"30s\"}", false},
                 {",\"task\":{\"entrypoint\":\"main.ts\"}", true}};
    enum { N = sizeof(cases) / sizeof(cases[0]) };
    char keys[N][WORKLOAD_KEY_LEN + 1];
    struct cb_digest template[N], cache[N];
    for (size_t i = 0; i < N; i++) {
        CB_AUTO_FREE char *text = cb_xasprintf("{\"base_image\":\"a\"%s}", cases[i].task);
        struct workload_config *c = parse(text);
        struct cache_key k = {0};
        struct template_inputs in = {0};
        keys_workload(c, keys[i]);
        cb_sha256("base", 4, &cache[i]);
        if (c->task) {
            struct cb_digest below = cache[i];
            keys_cache_task(c, &below, &k);
            cache[i] = k.digest;
            cache_key_release(&k);
        }
        keys_template(c, &in, &k);
        template[i] = k.digest;
        cache_key_release(&k);
        config_free(c);
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(keys[i], keys[j]);
            assert_false(cb_digest_eq(&template[i], &template[j]));
        }
        if (i)
            assert_int_equal(cb_digest_eq(&cache[i], &cache[i - 1]), !cases[i].files);
    }
}

static void test_template_inputs_count(void **state)
{
    (void)state;
    struct workload_config *c = parse(base);
    struct template_inputs variants[6];
    memset(variants, 0, sizeof(variants));
    variants[1].last_cache.b[0] = 1;
    variants[2].kernel.b[0] = 1;
    variants[3].agent.b[0] = 1;
    variants[4].initramfs.b[0] = 1;
    variants[5].size_bytes_asked = 1;
    struct cache_key keys[6] = {0};
    for (size_t i = 0; i < 6; i++) {
        keys_template(c, &variants[i], &keys[i]);
        for (size_t k = 0; k < i; k++)
            assert_false(cb_digest_eq(&keys[k].digest, &keys[i].digest));
    }
    for (size_t i = 0; i < 6; i++)
        cache_key_release(&keys[i]);
    config_free(c);
}

/* The image's own kernel follows from its layers: which one builders boot does not count. */
static void test_the_kernel_of_an_image_is_in_its_layers(void **state)
{
    (void)state;
    struct workload_config *c = parse("{\"base_image\":\"a\",\"config\":{\"kernel\":\"image\"}}");
    struct template_inputs variants[4];
    memset(variants, 0, sizeof(variants));
    variants[1].kernel.b[0] = 1;
    variants[2].initramfs.b[0] = 1;
    variants[3].last_cache.b[0] = 1;
    struct cache_key keys[4] = {0};
    for (size_t i = 0; i < 4; i++) {
        keys_template(c, &variants[i], &keys[i]);
        assert_int_equal(cb_digest_eq(&keys[0].digest, &keys[i].digest), i < 3);
    }
    for (size_t i = 0; i < 4; i++)
        cache_key_release(&keys[i]);
    config_free(c);
}

static void cache_with(const struct workload_config *c, const struct layer_contents *in,
                       struct cb_digest *out)
{
    struct cache_key k = {0};
    struct cb_digest parent = {0};
    keys_cache_layer(c, &c->layers[0], in, &parent, &k);
    check_said(k.inputs);
    *out = k.digest;
    cache_key_release(&k);
}

/* What is copied counts by its content and by where it goes, not by where it lies. */
static void test_what_is_taken_from_outside_counts(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "base_image: debian\nlayers:\n- name: a\n  init_commands: [x, {type: copy, args: [p, "
        "/q]}]\n"
        "  context: [{src: a, dst: /a}, {src: b, dst: /b}]\n",
        "base_image: debian\nlayers:\n- name: a\n  init_commands: [x, {type: copy, args: [p, "
        "/q]}]\n"
        "  context: [{src: other, dst: /a}, {git: 'https://h.example/r', ref: v1, dst: /b}]\n",
        "base_image: debian\nlayers:\n- name: a\n  init_commands: [x, {type: copy, args: [p, "
        "/q]}]\n"
        "  context: [{src: a, dst: /a}, {src: b, dst: /c}]\n",
    };
    struct cb_digest context[2] = {{{1}}, {{2}}}, copied[2] = {{{0}}, {{3}}}, d[6];
    const struct layer_contents in = {.context = context, .copied = copied};
    for (size_t i = 0; i < 3; i++) {
        struct workload_config *c = parse(texts[i]);
        cache_with(c, &in, &d[i]);
        if (i == 0) {
            context[1].b[0] = 9;
            cache_with(c, &in, &d[3]);
            context[1].b[0] = 2;
            copied[1].b[0] = 9;
            cache_with(c, &in, &d[4]);
            copied[1].b[0] = 3;
            copied[0].b[0] = 9; /* of a command that copies nothing */
            cache_with(c, &in, &d[5]);
            copied[0].b[0] = 0;
        }
        config_free(c);
    }
    assert_true(cb_digest_eq(&d[0], &d[1]));
    assert_true(cb_digest_eq(&d[0], &d[5]));
    assert_false(cb_digest_eq(&d[0], &d[2]));
    assert_false(cb_digest_eq(&d[0], &d[3]));
    assert_false(cb_digest_eq(&d[0], &d[4]));
    struct workload_config *c =
        parse("base_image: debian\nlayers:\n- name: a\n  init_commands: [x]\n  drives:\n"
              "  - {drive_id: c}\n  - {drive_id: d, commands: [y, {type: copy, args: [p, /q]}]}\n");
    struct cb_digest filled[2] = {{{0}}, {{7}}};
    const struct layer_contents with = {.copied = copied,
                                        .drives = (const struct cb_digest *const[]){NULL, filled}};
    cache_with(c, &with, &d[0]);
    filled[0].b[0] = 1; /* of a command that copies nothing */
    cache_with(c, &with, &d[1]);
    filled[1].b[0] = 8;
    cache_with(c, &with, &d[2]);
    assert_true(cb_digest_eq(&d[0], &d[1]));
    assert_false(cb_digest_eq(&d[0], &d[2]));
    config_free(c);
}

int main(void)
{
    setenv("CB_TEST_VAR", "v a l", 1); /* as in test_config.c */
    setenv("CB_TEST_EMPTY", "", 1);
    setenv("CB_TEST_BRACE", "a ${b} c", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_values),
        cmocka_unit_test(test_keys_depend_on_what_matters_to_them),
        cmocka_unit_test(test_keys_of_the_corpus_are_as_written_down),
        cmocka_unit_test(test_order_and_borders_count),
        cmocka_unit_test(test_a_task_counts),
        cmocka_unit_test(test_what_is_taken_from_outside_counts),
        cmocka_unit_test(test_template_inputs_count),
        cmocka_unit_test(test_the_kernel_of_an_image_is_in_its_layers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
