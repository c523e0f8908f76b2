#include "check.h"

#include "schemas/oci.h"
#include "support/limits.h"

#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define DIG "\"sha256:" HEX "\""
#define DESC(type) "{\"mediaType\":\"" type "\",\"digest\":" DIG ",\"size\":7}"
#define ENTRY(platform)                                                                            \
    "{\"mediaType\":\"" OCI_MANIFEST "\",\"digest\":" DIG ",\"size\":7,\"platform\":" platform "}"

static int parse(const char *text, const char *type, struct oci_manifest *m, struct cb_error *err)
{
    return oci_manifest_parse(text, strlen(text), type, m, err);
}

static void test_manifest_is_read(void **state)
{
    (void)state;
    static const char text[] =
        "{\"schemaVersion\":2,\"mediaType\":\"" OCI_MANIFEST
        "\",\"config\":" DESC(OCI_CONFIG) ",\"layers\":[" DESC(OCI_LAYER_GZIP) "," DESC(
            OCI_LAYER_ZSTD) "],\"annotations\":null,"
                            "\"something\":{\"new\":1}}";
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct oci_manifest m;
    static const char *const types[] = {OCI_MANIFEST, OCI_MANIFEST "; charset=utf-8",
                                        "application/json", NULL};
    for (size_t i = 0; i < 4; i++) {
        assert_ok(parse(text, types[i], &m, &err), &err);
        assert_int_equal(m.kind, OCI_KIND_MANIFEST);
        assert_int_equal(m.n_layers, 2);
        assert_string_equal(m.config.media_type, OCI_CONFIG);
        assert_string_equal(m.layers[1].media_type, OCI_LAYER_ZSTD);
        assert_int_equal(m.layers[0].size, 7);
        assert_int_equal(m.layers[0].digest.b[1], 0x23);
        oci_manifest_release(&m);
    }
}

static void test_bad_manifests_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *type;
        enum cb_code code;
        const char *why;
    } cases[] = {
        {"", NULL, CB_E_CORRUPT, "is not JSON"},
        {"[]", NULL, CB_E_CORRUPT, "not a JSON object"},
        {"{}", NULL, CB_E_CORRUPT, "schemaVersion"},
        {"{\"schemaVersion\":2}", NULL, CB_E_CORRUPT, "neither image index nor manifest"},
        {"{\"schemaVersion\":2,\"schemaVersion\":1}", NULL, CB_E_CORRUPT, "is not JSON"},
        {"{\"schemaVersion\":1,\"fsLayers\":[]}", NULL, CB_E_CORRUPT, "schema 1"},
        {"{\"schemaVersion\":2}", "application/vnd.docker.distribution.manifest.v1+prettyjws",
         CB_E_CORRUPT, "schema 1"},
        {"{\"schemaVersion\":2,\"manifests\":[],\"layers\":[]}", NULL, CB_E_UNTRUSTED, "at once"},
        {"{\"schemaVersion\":2,\"manifests\":[],\"config\":{}}", OCI_INDEX, CB_E_UNTRUSTED,
         "at once"},
        {"{\"schemaVersion\":2,\"manifests\":[]}", OCI_MANIFEST, CB_E_UNTRUSTED, "does not fit"},
        {"{\"schemaVersion\":2,\"mediaType\":\"" OCI_MANIFEST "\",\"manifests\":[]}", NULL,
         CB_E_UNTRUSTED, "does not fit"},
        {"{\"schemaVersion\":2,\"mediaType\":\"" DOCKER_LIST "\",\"manifests\":[]}", OCI_INDEX,
         CB_E_UNTRUSTED, "but says it is"},
        {"{\"schemaVersion\":2,\"mediaType\":\"text/html\",\"manifests\":[]}", NULL, CB_E_CORRUPT,
         "text/html is no image"},
        {"{\"schemaVersion\":2,\"layers\":[]}", NULL, CB_E_CORRUPT, "no config"},
        {"{\"schemaVersion\":2,\"config\":" DESC(OCI_CONFIG) "}", NULL, CB_E_CORRUPT,
         "\"layers\" is not a list"},
        {"{\"schemaVersion\":2,\"config\":" DESC(OCI_CONFIG) ",\"layers\":[1]}", NULL, CB_E_CORRUPT,
         "layers[0] is not an object"},
        {"{\"schemaVersion\":2,\"config\":{\"digest\":" DIG ",\"size\":1},\"layers\":[]}", NULL,
         CB_E_CORRUPT, "config has no mediaType"},
        {"{\"schemaVersion\":2,\"config\":{\"mediaType\":\"a/b\",\"digest\":\"sha256:../x\","
         "\"size\":1},\"layers\":[]}",
         NULL, CB_E_CORRUPT, "64 hex digits"},
        {"{\"schemaVersion\":2,\"config\":{\"mediaType\":\"a/b\",\"digest\":" DIG
         ",\"size\":-1},\"layers\":[]}",
         NULL, CB_E_CORRUPT, "size is not a number"},
        {"{\"schemaVersion\":2,\"config\":{\"mediaType\":\"a/b\",\"digest\":" DIG
         ",\"size\":1.5},\"layers\":[]}",
         NULL, CB_E_CORRUPT, "size is not a number"},
        {"{\"schemaVersion\":2,\"config\":{\"mediaType\":\"a\\u001bb\",\"digest\":" DIG
         ",\"size\":1},\"layers\":[]}",
         NULL, CB_E_CORRUPT, "control character"},
        {"{\"schemaVersion\":2,\"manifests\":[" ENTRY("[]") "]}", NULL, CB_E_CORRUPT,
         "\"platform\" is not an object"},
        {"{\"schemaVersion\":2,\"manifests\":[" ENTRY("{\"os\":1}") "]}", NULL, CB_E_CORRUPT,
         "\"os\" is not a string"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct oci_manifest m;
        assert_fails(parse(cases[i].text, cases[i].type, &m, &err), &err, cases[i].code,
                     cases[i].why);
    }
}

static void test_counts_and_sizes_have_ceilings(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF b = CB_BUF_INIT(8u << 20);
    struct oci_manifest m;
    struct oci_image_config c;
    cb_buf_adds(&b, "{\"schemaVersion\":2,\"manifests\":[0");
    for (unsigned i = 0; i < CB_LAYERS_MAX; i++)
        cb_buf_adds(&b, ",0");
    cb_buf_adds(&b, "]}");
    assert_fails(parse(b.data, NULL, &m, &err), &err, CB_E_LIMIT, "at most 1024");
    cb_buf_clear(&b);
    cb_buf_adds(&b, "{\"config\":{\"Env\":[\"A=1\"");
    for (unsigned i = 0; i < 5000; i++)
        cb_buf_addf(&b, ",\"V%u=\"", i);
    cb_buf_adds(&b, "]},\"rootfs\":{\"type\":\"layers\"}}");
    assert_fails(oci_config_parse(b.data, b.len, &c, &err), &err, CB_E_LIMIT, "\"Env\"");
    cb_buf_clear(&b);
    cb_buf_adds(&b, "{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[0");
    for (unsigned i = 0; i < CB_LAYERS_MAX; i++)
        cb_buf_adds(&b, ",0");
    cb_buf_adds(&b, "]}}");
    assert_fails(oci_config_parse(b.data, b.len, &c, &err), &err, CB_E_LIMIT, "at most 1024");
    cb_buf_clear(&b);
    cb_buf_adds(&b, "{\"architecture\":\"");
    for (unsigned i = 0; i < 300000; i++)
        cb_buf_adds(&b, "x");
    cb_buf_adds(&b, "\"}");
    assert_fails(oci_config_parse(b.data, b.len, &c, &err), &err, CB_E_LIMIT, "is longer than");
    while (b.len <= CB_JSON_MAX)
        cb_buf_adds(&b, "          ");
    assert_fails(parse(b.data, NULL, &m, &err), &err, CB_E_LIMIT, "larger than 4 MiB");
    assert_fails(oci_config_parse(b.data, b.len, &c, &err), &err, CB_E_LIMIT, "larger than 4 MiB");
}

static void test_platform_is_chosen_strictly(void **state)
{
    (void)state;
    static const char attest[] =
        "{\"mediaType\":\"" OCI_MANIFEST "\",\"digest\":" DIG ",\"size\":7,\"platform\":{\"os\":"
        "\"linux\",\"architecture\":\"amd64\"},\"annotations\":{\"vnd.docker.reference.type\":"
        "\"attestation-manifest\"}}";
    static const char arm[] = ENTRY("{\"os\":\"linux\",\"architecture\":\"arm64\",\"variant\":"
                                    "\"v8\"}");
    static const char i386[] = ENTRY("{\"os\":\"linux\",\"architecture\":\"386\"}");
    static const char v3[] = ENTRY("{\"os\":\"linux\",\"architecture\":\"amd64\",\"variant\":"
                                   "\"v3\"}");
    static const char amd[] = ENTRY("{\"os\":\"Linux\",\"architecture\":\"x86_64\",\"variant\":"
                                    "\"v1\"}");
    static const char windows[] = ENTRY("{\"os\":\"windows\",\"architecture\":\"amd64\"}");
    static const char feature[] = ENTRY("{\"os\":\"linux\",\"architecture\":\"amd64\","
                                        "\"os.features\":[\"sse4\"]}");
    static const char none[] = ENTRY("null");
    static const char other[] = DESC("application/vnd.wasm");
    static const struct {
        const char *entry[6];
        int chosen; /* -1: none */
        const char *why;
    } cases[] = {
        {{attest, windows, i386, arm, v3, amd}, 5, NULL},
        {{amd}, 0, NULL},
        {{feature, amd}, 1, NULL},
        {{feature}, -1, "there is linux/amd64 with os.features"},
        {{other, none, attest}, 1, NULL},
        {{none, none}, -1, "there is no platform, no platform"},
        {{windows, i386, arm, v3},
         -1,
         "no image for linux/amd64; there is windows/amd64, linux/386, linux/arm64/v8, "
         "linux/amd64/v3"},
        {{attest, other}, -1, "there is none at all"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_BUF b = CB_BUF_INIT(64 << 10);
        cb_buf_adds(&b, "{\"schemaVersion\":2,\"manifests\":[");
        for (size_t k = 0; k < 6 && cases[i].entry[k]; k++)
            cb_buf_addf(&b, "%s%s", k ? "," : "", cases[i].entry[k]);
        cb_buf_adds(&b, "]}");
        struct oci_manifest m;
        size_t at = 99;
        assert_ok(parse(b.data, OCI_INDEX, &m, &err), &err);
        if (cases[i].chosen >= 0) {
            assert_ok(oci_index_select(&m, "amd64", &at, &err), &err);
            assert_int_equal(at, cases[i].chosen);
        } else {
            assert_fails(oci_index_select(&m, "amd64", &at, &err), &err, CB_E_NOTFOUND,
                         cases[i].why);
        }
        oci_manifest_release(&m);
    }
}

static void test_config_is_read(void **state)
{
    (void)state;
    static const char text[] =
        "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"Env\":[\"PATH=/bin\",\"A=1\","
        "\"A=2=3\",\"B\"],\"User\":\"app:100\",\"WorkingDir\":\"srv\",\"Entrypoint\":null,"
        "\"Cmd\":[\"a\",\"b c\"],\"StopSignal\":\"SIGRTMIN+3\"},\"rootfs\":{\"type\":\"layers\","
        "\"diff_ids\":[" DIG "]},\"history\":[{}]}";
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct oci_image_config c;
    assert_ok(oci_config_parse(text, strlen(text), &c, &err), &err);
    assert_string_equal(c.architecture, "amd64");
    assert_string_equal(c.os, "linux");
    assert_int_equal(c.env.n, 3);
    assert_string_equal(c.env.v[0], "PATH=/bin");
    assert_string_equal(c.env.v[1], "A=2=3");
    assert_string_equal(c.env.v[2], "B=");
    assert_string_equal(c.user, "app:100");
    assert_string_equal(c.workdir, "/srv");
    assert_int_equal(c.entrypoint.n, 0);
    assert_int_equal(c.cmd.n, 2);
    assert_string_equal(c.cmd.v[1], "b c");
    assert_string_equal(c.stop_signal, "SIGRTMIN+3");
    assert_int_equal(c.n_diff_ids, 1);
    oci_config_release(&c);

    static const char least[] = "{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":null},"
                                "\"config\":{\"Cmd\":\"run\"}}";
    assert_ok(oci_config_parse(least, strlen(least), &c, &err), &err);
    assert_string_equal(c.user, "");
    assert_string_equal(c.workdir, "/");
    assert_null(c.stop_signal);
    assert_string_equal(c.cmd.v[0], "run");
    assert_int_equal(c.n_diff_ids, 0);
    oci_config_release(&c);
}

static void test_bad_configs_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"{", "is not JSON"},
        {"{}", "\"rootfs\" is missing"},
        {"{\"rootfs\":{}}", "rootfs.type is \"\""},
        {"{\"rootfs\":{\"type\":\"tarball\"}}", "rootfs.type is \"tarball\""},
        {"{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":{}}}", "\"diff_ids\" is not a list"},
        {"{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:x\"]}}", "diff_ids[0]"},
        {"{\"config\":[],\"rootfs\":{\"type\":\"layers\"}}", "\"config\" is not an object"},
        {"{\"config\":{\"Env\":[1]},\"rootfs\":{\"type\":\"layers\"}}", "Env[0] is not a string"},
        {"{\"config\":{\"Env\":[\"=x\"]},\"rootfs\":{\"type\":\"layers\"}}", "Env[0] has no name"},
        {"{\"config\":{\"Cmd\":{}},\"rootfs\":{\"type\":\"layers\"}}", "\"Cmd\" is not a list"},
        {"{\"config\":{\"User\":1},\"rootfs\":{\"type\":\"layers\"}}", "\"User\" is not a string"},
        {"{\"config\":{\"User\":\"a\\nb\"},\"rootfs\":{\"type\":\"layers\"}}", "control character"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct oci_image_config c;
        assert_fails(oci_config_parse(cases[i].text, strlen(cases[i].text), &c, &err), &err,
                     CB_E_CORRUPT, cases[i].why);
    }
}

static void test_layouts_say_their_version(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static const char good[] = "{\"imageLayoutVersion\": \"1.0.0\", \"more\": 1}";
    assert_ok(oci_layout_check(good, strlen(good), &err), &err);
    static const char *const bad[] = {"{\"imageLayoutVersion\": \"2.0.0\"}", "{}",
                                      "{\"imageLayoutVersion\": null}"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_fails(oci_layout_check(bad[i], strlen(bad[i]), &err), &err, CB_E_CORRUPT,
                     "not 1.0.0");
    assert_fails(oci_layout_check("[]", 2, &err), &err, CB_E_CORRUPT, "oci-layout is not a JSON");
    assert_fails(oci_layout_check("{\"imageLayoutVersion\": 1}", 25, &err), &err, CB_E_CORRUPT,
                 "is not a string");
}

#define D "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

/* The names of a layout's images; what no name can be counts as none. */
static void test_entries_have_names(void **state)
{
    (void)state;
    static const char *const notes[] = {
        ("\"org.opencontainers.image.ref.name\":\"v1\","
         "\"io.containerd.image.name\":\"docker.io/o/app:v1\""),
        "",
        "\"org.opencontainers.image.ref.name\":\"a b\"",
        "\"org.opencontainers.image.ref.name\":7",
    };
    CB_AUTO_BUF b = CB_BUF_INIT(1 << 16);
    cb_buf_adds(&b, "{\"schemaVersion\":2,\"manifests\":[");
    for (size_t i = 0; i < 4; i++)
        cb_buf_addf(&b,
                    "%s{\"mediaType\":\"" OCI_MANIFEST "\",\"digest\":\"" D
                    "\",\"size\":1,\"annotations\":{%s}}",
                    i ? "," : "", notes[i]);
    cb_buf_adds(&b, "]}");
    const char *text = b.data;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct oci_manifest m;
    assert_ok(oci_manifest_parse(text, strlen(text), NULL, &m, &err), &err);
    assert_string_equal(m.layers[0].ref_name, "v1");
    assert_string_equal(m.layers[0].image_name, "docker.io/o/app:v1");
    assert_true(oci_entry_is_image(&m.layers[0]));
    for (size_t i = 1; i < m.n_layers; i++)
        assert_null(m.layers[i].ref_name);
    oci_manifest_release(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_manifest_is_read),
        cmocka_unit_test(test_bad_manifests_are_refused),
        cmocka_unit_test(test_counts_and_sizes_have_ceilings),
        cmocka_unit_test(test_platform_is_chosen_strictly),
        cmocka_unit_test(test_layouts_say_their_version),
        cmocka_unit_test(test_entries_have_names),
        cmocka_unit_test(test_config_is_read),
        cmocka_unit_test(test_bad_configs_are_refused),
    };
    return cmocka_run_group_tests_name("schemas/oci", tests, NULL, NULL);
}
