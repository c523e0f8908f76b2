/* The registry client against Debian's docker-registry, over HTTP and over HTTPS with an authority
 * of our own. */
#include "layers/registry_check.h"

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
                                "/CN=127.0.0.1",
                                "-addext",
                                "subjectAltName=IP:127.0.0.1",
                                NULL};
    free(run(make));
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_http, setup, teardown),
        cmocka_unit_test_setup_teardown(test_https, setup, teardown),
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
