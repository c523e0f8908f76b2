#include "check.h"

#include "schemas/manifest.h"

#include <jansson.h>

#define SAMPLE CB_SOURCE_DIR "/tests/fuzz/corpus/template_manifest/full.json"
#define OLDER CB_SOURCE_DIR "/tests/fuzz/corpus/template_manifest/full-without-chunks.json"

static void test_a_manifest_goes_round(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    assert_ok(cb_read_file(SAMPLE, 1 << 20, &text, &err), &err);
    struct template_manifest *m = NULL;
    assert_ok(template_manifest_parse(text.data, text.len, &m, &err), &err);
    assert_string_equal(m->name, "hello");
    assert_int_equal(m->version, 3);
    assert_string_equal(m->workload_key, "0123456789abcdef");
    assert_int_equal(m->created_ms, INT64_C(1767323045678));
    assert_int_equal(m->n_layers, 2);
    assert_string_equal(m->layer_names[1], "tools");
    assert_int_equal(m->layers[0].size, 48500000);
    assert_int_equal(m->image_size, UINT64_C(8) << 30);
    assert_int_equal(m->chunk_size, 1 << 20);
    assert_int_equal(m->n_chunks, 162);
    assert_int_equal(m->chunk_map.b[0], 0x99);
    assert_int_equal(m->kernel.b[0], 0x33);
    assert_string_equal(m->kernel_from, "/boot/vmlinuz-6.1.0-18-amd64");
    assert_int_equal(m->tier, TIER_M);
    assert_int_equal(m->default_env.n, 2);
    assert_string_equal(m->boot.start_env.v[0].key, "MODE");
    assert_string_equal(m->boot.start_env.v[0].value, "a=b");
    assert_string_equal(m->boot.start_env.v[1].value, "");
    assert_int_equal(m->boot.port, 8080);
    assert_string_equal(m->boot.init, "systemd");
    assert_true(m->boot_checked);
    assert_int_equal(m->sbom.b[0], 0x55);
    assert_int_equal(m->provenance_signed.b[31], 0x88);
    assert_int_equal(m->boot.boot_commands.n, 2);
    assert_true(m->boot.boot_commands.v[0].run_as_root);
    assert_int_equal(m->boot.boot_commands.v[1].type, COMMAND_EXEC);
    assert_string_equal(m->boot.boot_commands.v[1].args.v[1], "");
    assert_int_equal(m->n_drives, 2);
    assert_string_equal(m->drives[0].made_in, "vm");
    assert_true(m->drives[0].read_only && m->drives[0].filled && !m->drives[1].filled);
    assert_int_equal(m->drives[1].chunk_map.b[0], 0xa4);
    assert_null(m->drives[1].made_in);
    assert_int_equal(m->workspace_gb, 50);
    assert_int_equal(m->warm.drives.b[0], 0xa5);
    assert_string_equal(m->config,
                        "{\"base_image\":\"debian:bookworm\",\"display_name\":\"hello\"}");
    CB_AUTO_FREE char *again = template_manifest_dump(m);
    assert_string_equal(again, text.data); /* sorted, indented by two, nothing lost */
    template_manifest_free(m);
    template_manifest_free(NULL);
}

/* A version that was published before there were chunks. */
static void test_an_older_manifest_goes_round(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    assert_ok(cb_read_file(OLDER, 1 << 20, &text, &err), &err);
    struct template_manifest *m = NULL;
    assert_ok(template_manifest_parse(text.data, text.len, &m, &err), &err);
    assert_int_equal(m->chunk_size, 0);
    assert_int_equal(m->n_chunks, 0);
    CB_AUTO_FREE char *again = template_manifest_dump(m);
    assert_string_equal(again, text.data);
    template_manifest_free(m);
}

/* Absent fields stay absent, and text that is not canonical JSON comes back with the same bytes. */
static void test_what_is_absent_stays_absent(void **state)
{
    (void)state;
    static const char *const texts[] = {"{\"b\": 1,  \"a\":2}",
                                        "{\"a\":1,\"a\":2}",
                                        "not JSON",
                                        "\"a string\"",
                                        "[1,2.5,null]",
                                        "",
                                        "null"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct layer_blob blob = {.media_type = NULL};
        char media[] = "m", layer[] = "_base", name[] = "x";
        char *names[] = {layer};
        blob.media_type = media;
        CB_AUTO_FREE char *lock = cb_xstrdup(texts[i]);
        struct template_manifest m = {.name = name,
                                      .workload_key = "0000000000000000",
                                      .version = 1,
                                      .layers = &blob,
                                      .layer_names = names,
                                      .n_layers = 1,
                                      .lock = lock};
        CB_AUTO_FREE char *text = template_manifest_dump(&m);
        assert_non_null(text);
        assert_null(strstr(text, "modules"));
        assert_null(strstr(text, "documents"));
        struct template_manifest *back = NULL;
        assert_ok(template_manifest_parse(text, strlen(text), &back, &err), &err);
        assert_string_equal(back->lock, texts[i]);
        assert_null(back->config);
        assert_null(back->boot.health_path);
        assert_int_equal(back->boot.start_argv.n, 0);
        template_manifest_free(back);
        name[0] = '\xff'; /* not UTF-8: refused, not written in another way */
        assert_null(template_manifest_dump(&m));
    }
}

/* Puts @value (JSON text, or NULL: nothing) at @path ("layers/0/size") of the sample. Owned. */
static char *sample_with(const char *path, const char *value)
{
    json_auto_t *doc = json_load_file(SAMPLE, 0, NULL);
    assert_non_null(doc);
    json_t *at = doc;
    CB_AUTO_FREE char *copy = cb_xstrdup(path);
    char *rest = copy, *part = strsep(&rest, "/");
    for (; rest; part = strsep(&rest, "/"))
        at = json_is_array(at) ? json_array_get(at, (size_t)(part[0] - '0'))
                               : json_object_get(at, part);
    json_t *v = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    if (json_is_array(at))
        (void)json_array_set_new(at, (size_t)(part[0] - '0'), v);
    else if (v)
        (void)json_object_set_new(at, part, v);
    else
        (void)json_object_del(at, part);
    return json_dumps(doc, 0);
}

static void test_bad_fields_are_named(void **state)
{
    (void)state;
    const struct {
        const char *path, *value, *text;
    } bad[] = {
        {"name", NULL, "template manifest: name: is missing"},
        {"name", "7", "template manifest: name: must be a string"},
        {"name", "null", "name: must be a string"},
        {"schema_version", NULL, "schema_version: must be a number from 1"},
        {"schema_version", "\"1\"", "schema_version: must be a number from 1"},
        {"version", "0", "version: must be a number from 1"},
        {"version", "-1", "version: must be a number that is not negative"},
        {"version", "1.0", "version: must be a number that is not negative"},
        {"workload_key", "\"0123\"", "workload_key: must be 16 hex digits"},
        {"workload_key", "\"0123456789ABCDEF\"", "workload_key: must be 16 hex digits"},
        {"template_key", "\"sha512:00\"", "template_key: must be sha256:"},
        {"template_key", "\"../../../etc/passwd\"", "template_key: must be sha256:"},
        {"created", "\"2026-02-30T00:00:00.000Z\"", "created: must be a time"},
        {"created", "\"2026-02-03T00:00:00Z\"", "created: must be a time"},
        {"created", "\"2026-02-03T24:00:00.000Z\"", "created: must be a time"},
        {"created", "1767323045", "created: must be a string"},
        {"tier", "\"huge\"", "tier: is not a tier"},
        {"default_env", "[\"NOVALUE\"]", "default_env: must be an array of NAME=VALUE"},
        {"default_env", "[\"=x\"]", "default_env: must be an array of NAME=VALUE"},
        {"default_env", "{\"A\":\"1\"}", "default_env: must be an array of strings"},
        {"cmd", "[1]", "cmd: must be an array of strings"},
        {"config", "null", "config: must not be null"},
        {"image", "7", "image.digest: must lie in an object"},
        {"image/size", "\"8G\"", "image.size: must be a number"},
        {"kernel", NULL, "kernel.digest: is missing"},
        {"layers", "[]", "layers: must be an array of 1 to"},
        {"layers", "{}", "layers: must be an array of 1 to"},
        {"layers/1", "7", "layers[1].media_type: is missing"},
        {"layers/1/size", "-5", "layers[1].size: must be a number"},
        {"layers/1/name", NULL, "layers[1].name: is missing"},
        {"drives", "{}", "drives: must be an array of at most 16 drives"},
        {"drives", "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", "drives: must be an array of at"},
        {"drives/1", "7", "drives[1].drive_id: is missing"},
        {"drives/1/image", "\"sha256:0\"", "drives[1].image: must be sha256:"},
        {"drives/1/size", "0", "drives[1].size, mount_path or label is impossible"},
        {"drives/1/mount_path", "\"data\"", "drives[1].size, mount_path or label is impossible"},
        {"drives/1/label", "\"12345678901234567\"", "mount_path or label is impossible"},
        {"boot", "[]", "boot: must be an object"},
        {"boot/port", "65536", "boot.port: must be a number from 0 to 65535"},
        {"boot/commands/0/type", "\"magic\"", "boot.commands[0].type: is not a command type"},
        {"boot/commands/0/run_as_root", "1", "run_as_root: must be true or false"},
        {"boot/commands/0/max_retries", "4294967296", "max_retries: must be a number from 0 to"},
        {"boot/commands", "{}", "boot.commands: must be an array of commands"},
        {"boot/commands/1/args", "[]", "boot.commands[1].args: must not be empty without a script"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *text = sample_with(bad[i].path, bad[i].value);
        struct template_manifest *m = NULL;
        assert_fails(template_manifest_parse(text, strlen(text), &m, &err), &err, CB_E_CORRUPT,
                     bad[i].text);
        assert_null(m);
    }
}

static void test_other_documents_are_refused(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *m = NULL;
    static const char *const bad[] = {
        "", "[]", "7", "{", "{\"a\":1,\"a\":2}", "{\"schema_version\":1}x"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_fails(template_manifest_parse(bad[i], strlen(bad[i]), &m, &err), &err, CB_E_CORRUPT,
                     "template manifest: ");
    CB_AUTO_FREE char *newer = sample_with("schema_version", "2");
    int rc = template_manifest_parse(newer, strlen(newer), &m, &err);
    assert_non_null(strstr(err.hint, "newer"));
    assert_fails(rc, &err, CB_E_ENV, "schema_version 2 is newer than this program");
    /* what a later version may add is no reason to refuse */
    CB_AUTO_FREE char *more = sample_with("image/chunk_size", "262144");
    assert_ok(template_manifest_parse(more, strlen(more), &m, &err), &err);
    template_manifest_free(m);
}

static void test_a_cache_record_goes_round(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char layer[] = "tools", inputs[] = "{\"parent\":\"x\"}", media[] = "m";
    struct cache_record r = {
        .layer_name = layer,
        .inputs = inputs,
        .below = {{3}},
        .diff = {.media_type = media, .digest = {{1}}, .diff_id = {{2}}, .size = 9},
        .refreshed = {{4}},
        .refreshes = 2,
        .created_ms = -1,
        .watched = true};
    cb_strv_add(&r.hosts, "pypi.org:443/tcp");
    CB_AUTO_FREE char *text = cache_record_dump(&r);
    cb_strv_release(&r.hosts);
    assert_non_null(strstr(text, "  \"created\": \"1969-12-31T23:59:59.999Z\",\n"));
    struct cache_record back = {0};
    assert_ok(cache_record_parse(text, strlen(text), &back, &err), &err);
    assert_string_equal(back.layer_name, "tools");
    assert_string_equal(back.inputs, inputs);
    assert_int_equal(back.diff.size, 9);
    assert_int_equal(back.created_ms, -1);
    assert_true(back.watched);
    assert_int_equal(back.hosts.n, 1);
    assert_string_equal(back.hosts.v[0], "pypi.org:443/tcp");
    assert_int_equal(back.refreshes, 2);
    assert_int_equal(back.refreshed.b[0], 4);
    assert_true(cb_digest_eq(&back.diff.diff_id, &r.diff.diff_id));
    assert_true(cb_digest_eq(&back.below, &r.below));
    cache_record_release(&back);
    assert_null(back.inputs);
    assert_fails(cache_record_parse(text, strlen(text) / 2, &back, &err), &err, CB_E_CORRUPT,
                 "cache record: ");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_manifest_goes_round),
        cmocka_unit_test(test_an_older_manifest_goes_round),
        cmocka_unit_test(test_what_is_absent_stays_absent),
        cmocka_unit_test(test_bad_fields_are_named),
        cmocka_unit_test(test_other_documents_are_refused),
        cmocka_unit_test(test_a_cache_record_goes_round),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
