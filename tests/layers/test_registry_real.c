/* The registry client against Debian's docker-registry, over HTTP and over HTTPS with an authority
 * of our own. */
#include "layers/registry_check.h"

#include "layers/registry_push.h"

#include <sys/stat.h>

struct fixture {
    char *dir;
    struct server server;
    struct world world;
    int port;
};

/* Runs a program to its end and returns the first line of its output (owned). */
static char *run(const char *const *argv)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_proc_result res = {0};
    struct cb_proc_spec spec = {.argv = argv};
    assert_ok(cb_proc_run(&spec, NULL, 1 << 20, 60000, &res, &err), &err);
    assert_ok(cb_proc_check(&res, argv[0], &err), &err);
    char *line = cb_xstrndup(res.out.data ? res.out.data : "",
                             res.out.data ? strcspn(res.out.data, "\n") : 0);
    cb_proc_result_release(&res);
    return line;
}

/* A certificate that is its own authority, for 127.0.0.1. */
static void make_certificate(const char *key, const char *cert, const char *subject)
{
    const char *const make[] = {"openssl",
                                "req",
                                "-x509",
                                "-newkey",
                                "ec",
                                "-pkeyopt",
                                "ec_paramgen_curve:prime256v1",
                                "-nodes",
                                "-keyout",
                                key,
                                "-out",
                                cert,
                                "-days",
                                "2",
                                "-subj",
                                subject,
                                "-addext",
                                "subjectAltName=IP:127.0.0.1",
                                NULL};
    free(run(make));
}

static void start(struct fixture *f, const char *more)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *config = cb_xasprintf("%s/registry.yml", f->dir);
    CB_AUTO_FREE char *text = cb_xasprintf("version: 0.1\n"
                                           "log: {level: info, formatter: text}\n"
                                           "storage: {filesystem: {rootdirectory: %s/data}}\n"
                                           "http:\n  addr: 127.0.0.1:0\n%s",
                                           f->dir, more);
    assert_ok(cb_write_file(config, text, strlen(text), 0600, &err), &err);
    const char *const argv[] = {"docker-registry", "serve", config, NULL};
    static const char *const env[] = {"PATH=/usr/bin:/bin", "OTEL_TRACES_EXPORTER=none", NULL};
    server_start(&f->server, argv, env, 2, "listening on ");
    f->port = server_number(&f->server, "listening on 127.0.0.1:");
}

static int setup(void **state)
{
    void *dir = NULL;
    if (check_dir_setup(&dir) < 0)
        return -1;
    struct fixture *f = cb_xcalloc(1, sizeof(*f));
    f->dir = dir;
    *state = f;
    world_open(&f->world, f->dir);
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    server_stop(&f->server);
    world_close(&f->world);
    void *dir = f->dir;
    free(f);
    return check_dir_teardown(&dir);
}

static void assert_pulled(struct fixture *f, const char *ref, const char *digest)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct base_image b;
    char got[CB_DIGEST_LEN + 1];
    assert_ok(world_pull(&f->world, ref, &b, &err), &err);
    cb_digest_text(&b.manifest, got);
    assert_string_equal(got, digest);
    assert_all_there(&f->world, &b);
    base_image_release(&b);
}

static void test_http(void **state)
{
    struct fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct base_image b;
    start(f, "");
    CB_AUTO_FREE char *base = cb_xasprintf("http://127.0.0.1:%d", f->port);
    const char *const push[] = {
        "python3", CB_SOURCE_DIR "/tests/fakes/push_image.py", base, "team/app", "1", NULL};
    CB_AUTO_FREE char *digest = run(push);
    CB_AUTO_FREE char *ref = cb_xasprintf("127.0.0.1:%d/team/app:1", f->port);
    CB_AUTO_FREE char *tag = cb_xasprintf("127.0.0.1:%d/team/app:2", f->port);
    CB_AUTO_FREE char *name = cb_xasprintf("127.0.0.1:%d/team/other:1", f->port);
    assert_pulled(f, ref, digest);
    int rc = world_pull(&f->world, tag, &b, &err);
    assert_non_null(err.hint);
    assert_fails(rc, &err, CB_E_NOTFOUND,
                 "team/app:2: the registry answered 404 MANIFEST_UNKNOWN: manifest unknown");
    assert_fails(world_pull(&f->world, name, &b, &err), &err, CB_E_NOTFOUND,
                 "the registry answered 404");

    /* stopped: what was resolved before is still good */
    server_stop(&f->server);
    assert_ok(world_resolve(&f->world, ref, PULL_ALWAYS, &b, &err), &err);
    assert_true(b.from_lock);
    base_image_release(&b);
}

static void test_https(void **state)
{
    struct fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct base_image b;
    CB_AUTO_FREE char *key = cb_xasprintf("%s/key.pem", f->dir);
    CB_AUTO_FREE char *cert = cb_xasprintf("%s/cert.pem", f->dir);
    make_certificate(key, cert, "/CN=127.0.0.1");
    CB_AUTO_FREE char *tls = cb_xasprintf("  tls: {certificate: %s, key: %s}\n", cert, key);
    start(f, tls);
    CB_AUTO_FREE char *host = cb_xasprintf("127.0.0.1:%d", f->port);
    CB_AUTO_FREE char *base = cb_xasprintf("https://%s", host);
    const char *const push[] = {
        "python3", CB_SOURCE_DIR "/tests/fakes/push_image.py", base, "team/app", "1", cert, NULL};
    CB_AUTO_FREE char *digest = run(push);
    CB_AUTO_FREE char *ref = cb_xasprintf("%s/team/app:1", host);

    /* an authority that nobody named is not trusted */
    CB_AUTO_ERROR asked = CB_ERROR_INIT;
    struct http_client *c = http_client_new(0);
    struct http_request req = {.url = base, .body_max = 1000};
    struct http_response res = HTTP_RESPONSE_INIT;
    assert_fails(http_exchange(c, &req, &res, &asked), &asked, CB_E_UNTRUSTED, "is not trusted");
    http_response_release(&res);
    http_client_free(c);

    struct registry_settings *own = world_host(&f->world, host);
    own->ca_file = cb_xstrdup("/nonexistent/ca.pem");
    assert_fails(world_pull(&f->world, ref, &b, &err), &err, CB_E_CONFIG,
                 "ca_file /nonexistent/ca.pem");
    free(own->ca_file);
    own->ca_file = cb_xstrdup(cert);
    assert_pulled(f, ref, digest);

    /* the same as a mirror of the hub */
    struct registry_settings *hub = world_host(&f->world, "docker.io");
    hub->mirror = cb_xstrdup(base);
    assert_pulled(f, "team/app:1", digest);
}

static void put(const char *dir, const char *name, const char *text)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, name);
    assert_ok(cb_mkdir_p(dir, 0700, &err), &err);
    assert_ok(cb_write_file(path, text, strlen(text), 0600, &err), &err);
}

static void copy(const char *from, const char *dir, const char *name)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    assert_ok(cb_read_file(from, 1 << 20, &text, &err), &err);
    put(dir, name, text.data);
}

/* Two small blobs and a manifest of them, sent to @text. */
static int push_something(struct fixture *f, const char *text, struct push_result *r,
                          struct cb_digest *digest, struct cb_error *err)
{
    static const char layer[] = "as good as a tar here";
    struct cb_digest d[2];
    char names[2][CB_DIGEST_LEN + 1];
    struct image_ref ref;
    struct push *p = NULL;
    assert_ok(store_blob_put(f->world.store, layer, sizeof(layer), &d[0], err), err);
    cb_digest_text(&d[0], names[0]);
    CB_AUTO_FREE char *config = cb_xasprintf("{\"os\":\"linux\",\"architecture\":\"amd64\","
                                             "\"rootfs\":{\"type\":\"layers\","
                                             "\"diff_ids\":[\"%s\",\"%s\"]}}",
                                             names[0], names[0]);
    cb_sha256(config, strlen(config), &d[1]);
    cb_digest_text(&d[1], names[1]);
    struct push_blob blobs[] = {
        {.media_type = OCI_LAYER_TAR, .digest = d[0], .size = sizeof(layer)},
        {.media_type = OCI_CONFIG, .digest = d[1], .size = strlen(config), .mem = config},
        {.media_type = OCI_LAYER_TAR, .digest = d[0], .size = sizeof(layer)}};
    CB_AUTO_FREE char *manifest =
        cb_xasprintf("{\"schemaVersion\":2,\"mediaType\":\"%s\",\"config\":{\"mediaType\":\"%s\","
                     "\"digest\":\"%s\",\"size\":%zu},\"layers\":[{\"mediaType\":\"%s\",\"digest\":"
                     "\"%s\",\"size\":%zu},{\"mediaType\":\"%s\",\"digest\":\"%s\",\"size\":%zu}]}",
                     OCI_MANIFEST, OCI_CONFIG, names[1], strlen(config), OCI_LAYER_TAR, names[0],
                     sizeof(layer), OCI_LAYER_TAR, names[0], sizeof(layer));
    assert_ok(image_ref_parse(text, &ref, err), err);
    *r = (struct push_result){0};
    int rc = push_open(&f->world.settings, &ref, "team/app", &f->world.progress, &p, err);
    if (rc == 0)
        rc = push_blobs(p, f->world.store, blobs, 3, r, err);
    if (rc == 0)
        rc = push_manifest(p, OCI_MANIFEST, manifest, strlen(manifest), ref.tag, digest, err);
    push_free(p);
    image_ref_release(&ref);
    return rc;
}

/* Certificates of both sides in certs.d, a login in config.json: as an administrator sets it up. */
static void test_login_and_client_certificate(void **state)
{
    struct fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct push_result r;
    struct cb_digest digest;
    struct base_image b;
    char text[CB_DIGEST_LEN + 1];
    CB_AUTO_FREE char *key = cb_xasprintf("%s/key.pem", f->dir);
    CB_AUTO_FREE char *cert = cb_xasprintf("%s/cert.pem", f->dir);
    CB_AUTO_FREE char *our_key = cb_xasprintf("%s/our.key", f->dir);
    CB_AUTO_FREE char *our_cert = cb_xasprintf("%s/our.pem", f->dir);
    make_certificate(key, cert, "/CN=127.0.0.1");
    make_certificate(our_key, our_cert, "/CN=builder");
    put(f->dir, "htpasswd", /* love:lace */
        "ada:$2b$05$abcdefghijklmnopqrstuujuOr2/oZU0c8EgP1YXR/DGy/5z8WNzi\n");
    CB_AUTO_FREE char *more = cb_xasprintf("  tls: {certificate: %s, key: %s, clientcas: [%s]}\n"
                                           "auth: {htpasswd: {realm: tests, path: %s/htpasswd}}\n",
                                           cert, key, our_cert, f->dir);
    start(f, more);
    CB_AUTO_FREE char *ref = cb_xasprintf("127.0.0.1:%d/team/app:1", f->port);
    CB_AUTO_FREE char *other = cb_xasprintf("127.0.0.1:%d/team/other:1", f->port);
    CB_AUTO_FREE char *all = cb_xasprintf("%s/certs.d", f->dir);
    CB_AUTO_FREE char *certs = cb_xasprintf("%s/127.0.0.1:%d", all, f->port);
    registry_certs_dirs[0] = all;
    registry_certs_dirs[1] = NULL;

    copy(cert, certs, "ca.crt"); /* whom to trust, but not yet who we are */
    assert_fails(push_something(f, ref, &r, &digest, &err), &err, CB_E_NET, "127.0.0.1");
    copy(our_cert, certs, "client.cert");
    assert_fails(push_something(f, ref, &r, &digest, &err), &err, CB_E_CONFIG, "has no key beside");
    copy(our_key, certs, "client.key");
    assert_fails(push_something(f, ref, &r, &digest, &err), &err, CB_E_AUTH,
                 "wants a user name and a password");
    CB_AUTO_FREE char *config =
        cb_xasprintf("{\"auths\":{\"127.0.0.1:%d\":{\"auth\":\"YWRhOmxvdmU6bGFjZQ==\"}}}", f->port);
    put(f->dir, "config.json", config);
    assert_int_equal(setenv("DOCKER_CONFIG", f->dir, 1), 0);
    assert_ok(push_something(f, ref, &r, &digest, &err), &err);
    assert_int_equal(r.sent, 2);
    assert_ok(push_something(f, ref, &r, &digest, &err), &err);
    assert_int_equal(r.there, 2);
    assert_ok(push_something(f, other, &r, &digest, &err), &err);
    assert_int_equal(r.mounted, 2);
    cb_digest_text(&digest, text);
    assert_pulled(f, ref, text);
    assert_pulled(f, other, text);

    /* the same from the settings, which go before the folders */
    char user[] = "ada", password[] = "wrong";
    CB_AUTO_FREE char *host = cb_xasprintf("127.0.0.1:%d", f->port);
    struct registry_settings *own = world_host(&f->world, host);
    own->ca_file = cb_xstrdup(cert);
    own->client_cert = our_cert;
    own->client_key = our_key;
    own->username = user;
    own->password = password;
    assert_fails(world_pull(&f->world, other, &b, &err), &err, CB_E_AUTH, "user ada");
    assert_int_equal(unsetenv("DOCKER_CONFIG"), 0);
    registry_certs_dirs[0] = NULL;
}

/* This registry keeps no list of referrers. */
static void test_an_artifact(void **state)
{
    struct fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct push_result r;
    struct cb_digest subject, d;
    start(f, "");
    CB_AUTO_FREE char *text = cb_xasprintf("127.0.0.1:%d/team/app:1", f->port);
    assert_ok(push_something(f, text, &r, &subject, &err), &err);
    struct image_ref ref;
    struct push *p = NULL;
    assert_ok(image_ref_parse(text, &ref, &err), &err);
    assert_ok(push_open(&f->world.settings, &ref, NULL, &f->world.progress, &p, &err), &err);
    struct push_artifact a = {
        .type = "application/spdx+json",
        .blob = {.media_type = "application/spdx+json", .size = 2, .mem = "[]"},
        .subject = {.media_type = OCI_MANIFEST, .digest = subject, .size = 100}};
    cb_sha256("[]", 2, &a.blob.digest);
    assert_ok(push_artifact(p, f->world.store, &a, &r, &d, &err), &err);
    assert_ok(push_artifact(p, f->world.store, &a, &r, &d, &err), &err);
    push_free(p);
    image_ref_release(&ref);

    char hex[CB_HEX_LEN + 1], digest[CB_DIGEST_LEN + 1];
    cb_digest_hex(&subject, hex);
    cb_digest_text(&d, digest);
    CB_AUTO_FREE char *url =
        cb_xasprintf("http://127.0.0.1:%d/v2/team/app/manifests/sha256-%s", f->port, hex);
    struct http_client *c = http_client_new(0);
    struct http_request req = {.url = url, .accept = OCI_INDEX, .body_max = 1 << 20};
    struct http_response res = HTTP_RESPONSE_INIT;
    assert_ok(http_exchange(c, &req, &res, &err), &err);
    assert_int_equal(res.status, 200);
    assert_non_null(strstr(res.body.data, digest));
    http_response_release(&res);
    http_client_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_http, setup, teardown),
        cmocka_unit_test_setup_teardown(test_https, setup, teardown),
        cmocka_unit_test_setup_teardown(test_login_and_client_certificate, setup, teardown),
        cmocka_unit_test_setup_teardown(test_an_artifact, setup, teardown),
    };
    static const char *const needed[] = {"docker-registry", "openssl", "python3"};
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        CB_AUTO_FREE char *program = cb_find_program(needed[i]);
        if (!program) {
            printf("skipped: %s is not installed\n", needed[i]);
            return 77;
        }
    }
    check_no_logins();
    return cmocka_run_group_tests_name("layers/registry_real", tests, NULL, NULL);
}
