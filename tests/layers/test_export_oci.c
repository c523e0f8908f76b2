/* A template as an OCI image: the documents, read back by the parser for everybody's documents. */
#include "check.h"

#include "layers/export_oci.h"
#include "schemas/oci.h"

#include <jansson.h>

static void digest_of(const char *text, struct cb_digest *d)
{
    cb_sha256(text, strlen(text), d);
}

static void pair(struct config_pairs *p, const char *key, const char *value)
{
    p->v = cb_xgrow(p->v, &p->cap, p->n, sizeof(*p->v));
    p->v[p->n++] = (struct config_pair){cb_xstrdup(key), cb_xstrdup(value)};
}

static struct template_manifest *make_template(bool with_start)
{
    static const char *const names[] = {"_base", "tools", "_agent"};
    static const char *const types[] = {DOCKER_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_LAYER_ZSTD};
    struct template_manifest *t = cb_xcalloc(1, sizeof(*t));
    t->name = cb_xstrdup("web");
    memcpy(t->workload_key, "0123456789abcdef", 17);
    t->version = 3;
    t->created_ms = 1700000000123;
    t->base_ref = cb_xstrdup("debian:12");
    digest_of("base", &t->base_digest);
    digest_of("key", &t->template_key);
    t->n_layers = 3;
    t->layers = cb_xcalloc(3, sizeof(*t->layers));
    t->layer_names = cb_xcalloc(3, sizeof(*t->layer_names));
    for (size_t i = 0; i < 3; i++) {
        t->layers[i].media_type = cb_xstrdup(types[i]);
        t->layers[i].size = 100 + i;
        digest_of(names[i], &t->layers[i].digest);
        digest_of(types[i], &t->layers[i].diff_id);
        t->layer_names[i] = cb_xstrdup(names[i]);
    }
    pair(&t->default_env, "PATH", "/bin");
    pair(&t->default_env, "A", "1");
    t->default_user = cb_xstrdup("app");
    t->workdir = cb_xstrdup("/srv");
    cb_strv_add(&t->entrypoint, "/entry");
    cb_strv_add(&t->cmd, "arg");
    t->boot.start_user = cb_xstrdup("web");
    t->boot.start_workdir = cb_xstrdup("/srv/web");
    if (with_start) {
        cb_strv_add(&t->boot.start_argv, "serve");
        cb_strv_add(&t->boot.start_argv, "--all");
        pair(&t->boot.start_env, "A", "2");
        pair(&t->boot.start_env, "AB", "3");
        t->boot.port = 8080;
    }
    return t;
}

static void make_image(const struct template_manifest *t, struct oci_image *im)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(oci_image_layers(t, im, &err), &err);
    assert_ok(oci_image_documents(t, im, &err), &err);
}

static void test_start_command_is_the_command(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *t = make_template(true);
    struct oci_image im;
    make_image(t, &im);
    struct oci_image_config c;
    assert_ok(oci_config_parse(im.config.text, im.config.len, &c, &err), &err);
    assert_string_equal(c.architecture, "amd64");
    assert_string_equal(c.os, "linux");
    assert_string_equal(c.user, "web");
    assert_string_equal(c.workdir, "/srv/web");
    assert_int_equal(c.entrypoint.n, 0);
    assert_int_equal(c.cmd.n, 2);
    assert_string_equal(c.cmd.v[0], "serve");
    assert_int_equal(c.env.n, 3);
    assert_string_equal(c.env.v[0], "PATH=/bin");
    assert_string_equal(c.env.v[1], "A=2");
    assert_string_equal(c.env.v[2], "AB=3");
    assert_int_equal(c.n_diff_ids, 2); /* without the agent's */
    assert_true(cb_digest_eq(&c.diff_ids[0], &t->layers[0].diff_id));
    oci_config_release(&c);
    assert_non_null(strstr(im.config.text, "\"ExposedPorts\":{\"8080/tcp\":{}}"));
    assert_non_null(strstr(im.config.text, "\"created_by\":\"capsule-build layer tools\""));
    assert_non_null(strstr(im.config.text, "\"created\":\"2023-11-14T22:13:20.123Z\""));
    oci_image_release(&im);
    template_manifest_free(t);
}

static void test_without_start_command_as_the_base_image(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *t = make_template(false);
    struct oci_image im;
    make_image(t, &im);
    struct oci_image_config c;
    assert_ok(oci_config_parse(im.config.text, im.config.len, &c, &err), &err);
    assert_string_equal(c.user, "app");
    assert_string_equal(c.workdir, "/srv");
    assert_string_equal(c.entrypoint.v[0], "/entry");
    assert_string_equal(c.cmd.v[0], "arg");
    assert_string_equal(c.env.v[1], "A=1");
    oci_config_release(&c);
    oci_image_release(&im);
    template_manifest_free(t);
}

static void test_manifest_names_layers_and_config(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *t = make_template(true);
    struct oci_image im;
    make_image(t, &im);
    struct oci_manifest m;
    assert_ok(oci_manifest_parse(im.manifest.text, im.manifest.len, OCI_MANIFEST, &m, &err), &err);
    assert_int_equal(m.kind, OCI_KIND_MANIFEST);
    assert_string_equal(m.config.media_type, OCI_CONFIG);
    assert_true(cb_digest_eq(&m.config.digest, &im.config.digest));
    assert_int_equal(m.config.size, im.config.len);
    assert_int_equal(m.n_layers, 2);
    assert_string_equal(m.layers[0].media_type, OCI_LAYER_GZIP); /* Docker's name for it is gone */
    assert_string_equal(m.layers[1].media_type, OCI_LAYER_ZSTD);
    assert_int_equal(m.layers[1].size, 101);
    assert_true(cb_digest_eq(&m.layers[1].digest, &t->layers[1].digest));
    oci_manifest_release(&m);
    json_auto_t *j = json_loads(im.manifest.text, 0, NULL);
    json_t *a = json_object_get(j, "annotations");
    assert_string_equal(json_string_value(json_object_get(a, "org.opencontainers.image.version")),
                        "3");
    assert_string_equal(json_string_value(json_object_get(a, "org.opencontainers.image.base.name")),
                        "debian:12");
    oci_image_release(&im);
    template_manifest_free(t);
}

static void test_same_template_same_documents(void **state)
{
    (void)state;
    struct template_manifest *t = make_template(true), *u = make_template(true);
    struct oci_image a, b;
    make_image(t, &a);
    make_image(u, &b);
    assert_true(cb_digest_eq(&a.manifest.digest, &b.manifest.digest));
    oci_image_release(&a);
    oci_image_release(&b);
    template_manifest_free(t);
    template_manifest_free(u);
}

static void test_a_type_that_no_layer_has(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *t = make_template(true);
    free(t->layers[1].media_type);
    t->layers[1].media_type = cb_xstrdup("application/wasm");
    struct oci_image im;
    assert_fails(oci_image_layers(t, &im, &err), &err, CB_E_CORRUPT,
                 "layer tools of web is of the type application/wasm, which no layer has");
    template_manifest_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_start_command_is_the_command),
        cmocka_unit_test(test_without_start_command_as_the_base_image),
        cmocka_unit_test(test_manifest_names_layers_and_config),
        cmocka_unit_test(test_same_template_same_documents),
        cmocka_unit_test(test_a_type_that_no_layer_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
