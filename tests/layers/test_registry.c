/* The registry client against tests/fakes/registry.py, whose repositories misbehave each in their
 * way. */
#include "layers/registry_check.h"

#include "layers/flatten.h"

static struct server fake;
static int port, cdn;

static char *ref_of(const char *how)
{
    return cb_xasprintf("127.0.0.1:%d/%s/app:1", port, how);
}

static size_t count_of(const char *in, const char *text)
{
    size_t n = 0;
    for (const char *at = in; at && (at = strstr(at, text)) != NULL; at++)
        n++;
    return n;
}

/* How often the log of a repository holds @text. */
static size_t log_count(const char *how, const char *text)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *url = cb_xasprintf("http://127.0.0.1:%d/_log/%s/app", port, how);
    struct http_request req = {.url = url, .body_max = 1 << 20};
    struct http_response res = {.length = -1};
    struct http_client *c = http_client_new(0);
    assert_ok(http_exchange(c, &req, &res, &err), &err);
    assert_non_null(res.body.data);
    size_t n = count_of(res.body.data, text);
    http_response_release(&res);
    http_client_free(c);
    return n;
}

static void test_every_true_shape_is_pulled(void **state)
{
    static const char *const shapes[] = {"ok",    "index",    "docker", "nohead",    "nodigest",
                                         "token", "expiring", "scoped", "ping",      "flaky",
                                         "limit", "redirect", "warned", "limitdate", "cutmib"};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%s", (char *)*state, shapes[i]);
        CB_AUTO_FREE char *ref = ref_of(shapes[i]);
        struct world w;
        struct base_image b;
        assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
        world_open(&w, dir);
        assert_ok(world_pull(&w, ref, &b, &err), &err);
        assert_all_there(&w, &b);
        assert_false(b.from_lock);
        assert_string_equal(b.config.architecture, "amd64");
        assert_string_equal(b.config.env.v[0], "PATH=/bin");
        assert_string_equal(b.config.cmd.v[0], "sh");
        assert_true(w.total > 3 << 20);
        assert_int_equal(w.bytes, w.total);
        assert_store_is_good(&w);
        if (strcmp(shapes[i], "warned") == 0) /* once in each session: resolving, fetching */
            assert_int_equal(count_of(w.notes.data, "says: this registry moves on Friday"), 2);
        base_image_release(&b);
        world_close(&w);
    }
    assert_int_equal(log_count("flaky", "\"HEAD\""), 3);
    /* eight connections of 1 MiB each */
    assert_int_equal(log_count("cutmib", "\"bytes=7340032-\""), 1);
    assert_int_equal(log_count("token", "\"TOKEN\""), 2); /* one to resolve, one to fetch */
    assert_true(log_count("expiring", "\"TOKEN\"") > 2);
    assert_int_equal(log_count("ok", "Bearer"), 0);
}

static void test_every_lie_is_found(void **state)
{
    static const struct {
        const char *how;
        enum cb_code code;
        const char *words;
    } cases[] = {
        {"missing", CB_E_NOTFOUND,
         "/missing/app:1: the registry answered 404 MANIFEST_UNKNOWN: manifest unknown"},
        {"plain404", CB_E_NOTFOUND, "the registry answered 404"},
        {"denied", CB_E_AUTH,
         "the registry answered 403 DENIED: requested access to the resource is?[31m denied"},
        {"basic", CB_E_AUTH, "wants a user name and a password"},
        {"private", CB_E_AUTH, "answered 401"},
        {"badtoken", CB_E_UNTRUSTED, "a token server that is no web address"},
        {"notoken", CB_E_AUTH, "no usable token"},
        {"broken", CB_E_NET, "the registry answered 503 UNAVAILABLE: closed for today"},
        {"limitlong", CB_E_NET, "rate limit, to be asked again in 21600 s"},
        {"wrongmanifest", CB_E_CORRUPT, "sent a manifest with the digest"},
        {"wrongdigest", CB_E_CORRUPT, "have the digest"},
        {"short", CB_E_CORRUPT, "sends a blob of 1000 bytes; the manifest says it has 3145728"},
        {"long", CB_E_CORRUPT, "more than the 3145728 bytes"},
        {"cutbadrange", CB_E_CORRUPT, "another part of the blob"},
        {"cutalways", CB_E_NET, "transfer closed with"},
        {"loop", CB_E_NET, "redirects more than 10 times"},
        {"tofile", CB_E_UNTRUSTED, "redirects away from HTTPS"},
        {"schema1", CB_E_CORRUPT, "schema 1"},
        {"foreign", CB_E_CORRUPT, "layer 2 is a foreign layer"},
        {"unknown", CB_E_CORRUPT, "layer 2 is of the unknown type application/vnd.wasm"},
        {"artifact", CB_E_CORRUPT, "no container image"},
        {"arm", CB_E_NOTFOUND, "for linux/arm64, not for linux/amd64"},
        {"newer", CB_E_NOTFOUND, "for linux/amd64/v3, not for linux/amd64"},
        {"both", CB_E_UNTRUSTED, "index and manifest at once"},
        {"nodiff", CB_E_CORRUPT, "has 2 layers, its config names 0"},
        {"big", CB_E_LIMIT, "larger than 4194304 bytes"},
        {"huge", CB_E_LIMIT, "larger than 4194304 bytes"},
        {"endless", CB_E_LIMIT, "larger than 4194304 bytes"},
        {"selfindex", CB_E_CORRUPT, "sent a manifest with the digest"},
        {"deep", CB_E_LIMIT, "nested too deeply"},
        {"wrongsize", CB_E_CORRUPT, "where the index says"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%s", (char *)*state, cases[i].how);
        CB_AUTO_FREE char *ref = ref_of(cases[i].how);
        CB_AUTO_FREE char *begin = cb_xasprintf("image %s: ", ref);
        struct world w;
        struct base_image b;
        assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
        world_open(&w, dir);
        int rc = world_pull(&w, ref, &b, &err);
        if (rc >= 0)
            fail_msg("%s was accepted", cases[i].how);
        if (strncmp(err.msg, begin, strlen(begin)) != 0)
            fail_msg("\"%s\" does not begin with \"%s\"", err.msg, begin);
        if (rc != -(int)cases[i].code)
            fail_msg("%s: %s, %s", cases[i].how, cb_code_name(err.code), err.msg);
        assert_fails(rc, &err, cases[i].code, cases[i].words);
        assert_store_is_good(&w);
        world_close(&w);
    }
}

/* What is sent is the blob that the manifest names; what is in it is not what the config says. */
static void test_a_layer_with_another_diff_id_is_no_image(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *ref = ref_of("wrongdiff");
    CB_AUTO_FREE char *out = cb_xasprintf("%s/image.ext4", (char *)*state);
    struct world w;
    struct base_image b;
    struct flatten_result result;
    world_open(&w, *state);
    assert_ok(world_pull(&w, ref, &b, &err), &err);
    struct flatten_spec spec = {
        .store = w.store, .layers = b.layers, .n_layers = b.n_layers, .out_path = out};
    assert_fails(flatten(&spec, &result, &err), &err, CB_E_CORRUPT, "layer 1");
    assert_false(cb_path_exists(out));
    assert_store_is_good(&w);
    base_image_release(&b);
    world_close(&w);
}

/* Resolving is given all the time it wants: only the transfer is what is looked at. */
static void test_a_byte_a_second_is_no_progress(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *ref = ref_of("trickle");
    struct world w;
    struct base_image b;
    world_open(&w, *state);
    assert_ok(world_resolve(&w, ref, PULL_ALWAYS, &b, &err), &err);
    w.settings.stall_seconds = 1;
    assert_fails(world_fetch(&w, &b, &err), &err, CB_E_TIMEOUT, "nothing came for too long");
    assert_notes(&w, "trying again");
    assert_store_is_good(&w);
    base_image_release(&b);
    world_close(&w);
}

static void test_an_identity_token_is_exchanged(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/config.json", (char *)*state);
    CB_AUTO_FREE char *ref = ref_of("identity");
    static const char *const tokens[] = {"wrong", "refresh+me/please"};
    struct world w;
    struct base_image b;
    world_open(&w, *state);
    assert_int_equal(setenv("DOCKER_CONFIG", *state, 1), 0);
    for (size_t i = 0; i < 2; i++) {
        CB_AUTO_FREE char *text = cb_xasprintf(
            "{\"auths\":{\"127.0.0.1:%d\":{\"identitytoken\":\"%s\"}}}", port, tokens[i]);
        assert_ok(cb_write_file(path, text, strlen(text), 0600, &err), &err);
        int rc = world_pull(&w, ref, &b, &err);
        if (i == 0)
            assert_fails(rc, &err, CB_E_AUTH, "answered 401 to the identity token");
        else
            assert_ok(rc, &err);
    }
    assert_int_equal(unsetenv("DOCKER_CONFIG"), 0);
    assert_int_equal(log_count("identity", "Basic"), 0);
    base_image_release(&b);
    world_close(&w);
}

static void test_mirrors_are_asked_in_order(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct world w;
    struct base_image b;
    world_open(&w, *state);
    struct registry_settings *hub = world_host(&w, "docker.io");
    CB_AUTO_FREE char *good = cb_xasprintf("http://127.0.0.1:%d", port);
    hub->mirror = cb_xstrdup("http://127.0.0.1:1");
    cb_strv_add(&hub->mirrors, "http://127.0.0.1:2/hub");
    cb_strv_add(&hub->mirrors, good);
    size_t before = log_count("docker", "?ns=docker.io");
    assert_ok(world_pull(&w, "docker/app:1", &b, &err), &err);
    assert_notes(&w, "127.0.0.1:1 cannot be reached");
    assert_notes(&w, "127.0.0.1:2 cannot be reached");
    assert_true(log_count("docker", "?ns=docker.io") > before);
    base_image_release(&b);
    world_close(&w);
}

static void test_a_cut_download_goes_on(void **state)
{
    static const struct {
        const char *how, *log;
    } cases[] = {
        {"cut", "\"bytes=1572864-\""},
        {"cutnorange", "\"bytes=1572864-\""},
        {"norange416", "\"bytes=1572864-\""},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%s", (char *)*state, cases[i].how);
        CB_AUTO_FREE char *ref = ref_of(cases[i].how);
        struct world w;
        struct base_image b;
        assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
        world_open(&w, dir);
        assert_ok(world_pull(&w, ref, &b, &err), &err);
        assert_all_there(&w, &b);
        assert_int_equal(log_count(cases[i].how, cases[i].log), 1);
        assert_notes(&w, "trying again");
        base_image_release(&b);
        world_close(&w);
    }
}

static void test_a_repeat_takes_up_what_is_there(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *ref = ref_of("cutalways");
    struct world w;
    struct base_image b;
    world_open(&w, *state);
    size_t before = log_count("cutalways", "blobs");
    assert_fails(world_pull(&w, ref, &b, &err), &err, CB_E_NET, "cutalways");
    assert_fails(world_pull(&w, ref, &b, &err), &err, CB_E_NET, "cutalways");
    /* four requests each, a thousand bytes further every time; the config and small layer were
     * whole */
    assert_int_equal(log_count("cutalways", "blobs") - before, 2 + 8);
    assert_true(log_count("cutalways", "\"bytes=7000-\"") >= 1);
    world_close(&w);
}

static void test_credentials_go_where_they_belong(void **state)
{
    CB_AUTO_FREE char *host = cb_xasprintf("127.0.0.1:%d", port);
    static const char *const hows[] = {"private", "basic"};
    for (size_t i = 0; i < 2; i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%s", (char *)*state, hows[i]);
        CB_AUTO_FREE char *ref = ref_of(hows[i]);
        char user[] = "ada", good[] = "love:lace", bad[] = "wrong";
        struct world w;
        struct base_image b;
        assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
        world_open(&w, dir);
        struct registry_settings *own = world_host(&w, host);
        own->username = user;
        own->password = bad;
        int rc = world_pull(&w, ref, &b, &err);
        assert_null(strstr(err.msg, "wrong"));
        assert_fails(rc, &err, CB_E_AUTH, "user ada");
        own->password = good;
        assert_ok(world_pull(&w, ref, &b, &err), &err);
        base_image_release(&b);
        world_close(&w);
    }
    /* the token's user and password are for the token server alone */
    assert_int_equal(
        log_count("private", "\"GET\", \"/v2/private/app/manifests/1\", null, \"Basic"), 0);
}

static void test_docker_config_is_read(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/config.json", (char *)*state);
    CB_AUTO_FREE char *text =
        cb_xasprintf("{\"auths\":{\"https://127.0.0.1:%d/v1/\":{\"auth\":\"YWRhOmxvdmU6bGFjZQ==\"},"
                     "\"https://index.docker.io/v1/\":{\"auth\":\"aHViOnB3\"},\"empty\":{},"
                     "\"bad\":{\"auth\":\"***\"}}}",
                     port);
    CB_AUTO_FREE char *ref = ref_of("basic");
    struct world w;
    struct base_image b;
    struct auth_credentials c;
    world_open(&w, *state);
    assert_ok(cb_write_file(path, text, strlen(text), 0600, &err), &err);
    assert_int_equal(setenv("DOCKER_CONFIG", *state, 1), 0);
    assert_ok(world_pull(&w, ref, &b, &err), &err);
    base_image_release(&b);
    assert_ok(auth_find_credentials(&w.settings, "registry-1.docker.io", NULL, &c, &err), &err);
    assert_string_equal(c.username, "hub");
    assert_string_equal(c.password, "pw");
    auth_credentials_release(&c);
    assert_ok(auth_find_credentials(&w.settings, "empty", NULL, &c, &err), &err);
    assert_null(c.username);
    assert_fails(auth_find_credentials(&w.settings, "bad", NULL, &c, &err), &err, CB_E_CONFIG,
                 "cannot be read");
    assert_ok(cb_write_file(path, "{", 1, 0600, &err), &err);
    assert_fails(auth_find_credentials(&w.settings, "x", NULL, &c, &err), &err, CB_E_CONFIG,
                 "config.json:1:");
    assert_int_equal(unsetenv("DOCKER_CONFIG"), 0);
    world_close(&w);
}

static void test_mirror_is_asked_first_and_the_host_after_it(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct world w;
    struct base_image b;
    world_open(&w, *state);
    struct registry_settings *hub = world_host(&w, "docker.io");
    hub->mirror = cb_xasprintf("http://127.0.0.1:%d/", port);
    assert_ok(world_pull(&w, "ok/app:1", &b, &err), &err);
    assert_all_there(&w, &b);
    base_image_release(&b);

    /* a mirror that is not there: a note, then the host itself (port 1 of loopback answers nobody)
     */
    struct registry_settings *dead = world_host(&w, "127.0.0.1:1");
    dead->mirror = cb_xasprintf("http://127.0.0.1:%d", port);
    int rc = world_pull(&w, "127.0.0.1:1/missing/app:1", &b, &err);
    assert_non_null(strstr(err.msg, "127.0.0.1:1 cannot be reached"));
    assert_fails(rc, &err, CB_E_NET, "answered 404 MANIFEST_UNKNOWN");
    assert_notes(&w, "asking 127.0.0.1:1");

    CB_AUTO_FREE char *host = cb_xasprintf("127.0.0.1:%d", port);
    CB_AUTO_FREE char *ref = ref_of("nohead");
    struct registry_settings *own = world_host(&w, host);
    own->mirror = cb_xstrdup("http://127.0.0.1:1");
    assert_ok(world_pull(&w, ref, &b, &err), &err);
    assert_notes(&w, "127.0.0.1:1 cannot be reached");
    base_image_release(&b);
    CB_AUTO_FREE char *gone = ref_of("missing");
    rc = world_pull(&w, gone, &b, &err);
    assert_non_null(strstr(err.msg, "before that, 127.0.0.1:1 cannot be reached"));
    assert_fails(rc, &err, CB_E_NOTFOUND, "the registry answered 404");
    world_close(&w);
}

static void test_policies_and_the_lock(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *ref = ref_of("index");
    struct world w;
    struct base_image first, b;
    world_open(&w, *state);
    assert_fails(world_resolve(&w, ref, PULL_NEVER, &b, &err), &err, CB_E_NOTFOUND, "--pull never");
    assert_ok(world_pull(&w, ref, &first, &err), &err);

    size_t asked = log_count("index", "manifests");
    assert_ok(world_resolve(&w, ref, PULL_NEVER, &b, &err), &err);
    assert_true(cb_digest_eq(&b.manifest, &first.manifest));
    assert_false(b.from_lock);
    base_image_release(&b);
    assert_ok(world_resolve(&w, ref, PULL_MISSING, &b, &err), &err);
    base_image_release(&b);
    assert_int_equal(log_count("index", "manifests"), asked);

    /* the tag still points there: one HEAD is all */
    assert_ok(world_resolve(&w, ref, PULL_ALWAYS, &b, &err), &err);
    base_image_release(&b);
    assert_int_equal(log_count("index", "manifests"), asked + 1);

    /* by digest, nobody is asked at all */
    char digest[CB_DIGEST_LEN + 1];
    cb_digest_text(&first.manifest, digest);
    CB_AUTO_FREE char *pinned = cb_xasprintf("127.0.0.1:%d/index/app@%s", port, digest);
    assert_ok(world_resolve(&w, pinned, PULL_ALWAYS, &b, &err), &err);
    assert_true(cb_digest_eq(&b.manifest, &first.manifest));
    assert_ok(world_fetch(&w, &b, &err), &err);
    base_image_release(&b);
    assert_int_equal(log_count("index", "manifests"), asked + 1);
    base_image_release(&first);
    world_close(&w);
}

static void test_lock_helps_when_the_registry_is_away(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct world w;
    struct base_image b;
    world_open(&w, *state);
    struct registry_settings *own = world_host(&w, "127.0.0.1:1");
    own->mirror = cb_xasprintf("http://127.0.0.1:%d", port);
    assert_ok(world_pull(&w, "127.0.0.1:1/ok/app:1", &b, &err), &err);
    base_image_release(&b);
    free(own->mirror);
    own->mirror = NULL;
    assert_ok(world_resolve(&w, "127.0.0.1:1/ok/app:1", PULL_ALWAYS, &b, &err), &err);
    assert_true(b.from_lock);
    assert_notes(&w, "warning: 127.0.0.1:1/ok/app:1: 127.0.0.1:1 cannot be reached");
    assert_ok(world_fetch(&w, &b, &err), &err);
    base_image_release(&b);
    assert_fails(world_resolve(&w, "127.0.0.1:1/ok/other:1", PULL_ALWAYS, &b, &err), &err, CB_E_NET,
                 "cannot be reached");
    world_close(&w);
}

static void test_redirect_leaves_authorization_behind(void **state)
{
    /* the repository demands a token, the place it redirects to answers 400 to any Authorization */
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *ref = ref_of("redirect");
    struct world w;
    struct base_image b;
    world_open(&w, *state);
    assert_ok(world_pull(&w, ref, &b, &err), &err);
    assert_true(log_count("redirect", "Bearer tok-redirect.app") > 0);
    base_image_release(&b);
    world_close(&w);
}

static void test_other_sources(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct world w;
    struct base_image b, again;
    world_open(&w, *state);
    assert_ok(world_pull(&w, "scratch", &b, &err), &err);
    assert_int_equal(b.n_layers, 0);
    assert_string_equal(b.config.os, "linux");
    assert_ok(world_resolve(&w, "scratch", PULL_NEVER, &again, &err), &err);
    assert_true(cb_digest_eq(&b.manifest, &again.manifest));
    base_image_release(&b);
    base_image_release(&again);
    assert_fails(world_resolve(&w, "No Good", PULL_ALWAYS, &b, &err), &err, CB_E_CONFIG, "No Good");
    assert_fails(world_resolve(&w, "minimal-debian", PULL_NEVER, &b, &err), &err, CB_E_NOTFOUND,
                 "not made yet");
    world_close(&w);
}

static void test_challenges(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool ok, bearer;
        const char *realm, *service, *scope;
    } cases[] = {
        {"Bearer realm=\"https://a/t\",service=\"s\",scope=\"r:a:pull,push\"", true, true,
         "https://a/t", "s", "r:a:pull,push"},
        {"bearer REALM = \"a\\\"b\\\\\" , scope=x", true, true, "a\"b\\", NULL, "x"},
        {"Basic realm=\"x\", Bearer realm=\"y\"", true, true, "y", NULL, NULL},
        {"Bearer realm=\"y\", Basic realm=\"x\"", true, true, "y", NULL, NULL},
        {"Basic", true, false, NULL, NULL, NULL},
        {"Basic realm=\"x, Bearer realm=y\"", true, false, "x, Bearer realm=y", NULL, NULL},
        {"Negotiate YWJj==, Basic realm=\"x\"", true, false, "x", NULL, NULL},
        {"Bearer realm=https://a/t?x=1,service=s", true, true, "https://a/t?x=1", "s", NULL},
        {"Bearer realm=\"one\",realm=\"two\"", true, true, "one", NULL, NULL},
        {"Bearer service=\"s\"", false, false, NULL, NULL, NULL},
        {"Bearer realm=\"never closed", false, false, NULL, NULL, NULL},
        {"Digest realm=\"x\"", false, false, NULL, NULL, NULL},
        {"", false, false, NULL, NULL, NULL},
        {",,,", false, false, NULL, NULL, NULL},
        {"=\"x\"", false, false, NULL, NULL, NULL},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct auth_challenge c = {0};
        if (auth_challenge_parse(cases[i].text, &c) != cases[i].ok)
            fail_msg("%s", cases[i].text);
        if (!cases[i].ok)
            continue;
        assert_int_equal(c.bearer, cases[i].bearer);
        const char *want[] = {cases[i].realm, cases[i].service, cases[i].scope};
        const char *got[] = {c.realm, c.service, c.scope};
        for (size_t k = 0; k < 3; k++) {
            assert_int_equal(!want[k], !got[k]);
            if (want[k])
                assert_string_equal(got[k], want[k]);
        }
        auth_challenge_release(&c);
    }
}

static void test_loopback_is_recognised(void **state)
{
    (void)state;
    static const char *const yes[] = {"localhost",   "localhost:5000", "127.0.0.1",
                                      "127.9.9.9:1", "[::1]",          "[::1]:5000"};
    static const char *const no[] = {"docker.io",       "localhost.example.com",
                                     "127.example.com", "10.0.0.1",
                                     "[::2]:5000",      "1270.0.0.1"};
    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++)
        if (!http_host_is_loopback(yes[i]))
            fail_msg("%s", yes[i]);
    for (size_t i = 0; i < sizeof(no) / sizeof(no[0]); i++)
        if (http_host_is_loopback(no[i]))
            fail_msg("%s", no[i]);
}

static int start_fake(void **state)
{
    (void)state;
    static const char *const argv[] = {"python3", CB_SOURCE_DIR "/tests/fakes/registry.py", NULL};
    check_no_logins();
    server_start(&fake, argv, NULL, 1, "}");
    port = server_number(&fake, "\"port\": ");
    cdn = server_number(&fake, "\"cdn\": ");
    return port > 0 && cdn > 0 ? 0 : -1;
}

static int stop_fake(void **state)
{
    (void)state;
    server_stop(&fake);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_every_true_shape_is_pulled),
        test_in_dir(test_every_lie_is_found),
        test_in_dir(test_a_layer_with_another_diff_id_is_no_image),
        test_in_dir(test_a_byte_a_second_is_no_progress),
        test_in_dir(test_an_identity_token_is_exchanged),
        test_in_dir(test_mirrors_are_asked_in_order),
        test_in_dir(test_a_cut_download_goes_on),
        test_in_dir(test_a_repeat_takes_up_what_is_there),
        test_in_dir(test_credentials_go_where_they_belong),
        test_in_dir(test_docker_config_is_read),
        test_in_dir(test_mirror_is_asked_first_and_the_host_after_it),
        test_in_dir(test_policies_and_the_lock),
        test_in_dir(test_lock_helps_when_the_registry_is_away),
        test_in_dir(test_redirect_leaves_authorization_behind),
        test_in_dir(test_other_sources),
        cmocka_unit_test(test_challenges),
        cmocka_unit_test(test_loopback_is_recognised),
    };
    return cmocka_run_group_tests_name("layers/registry", tests, start_fake, stop_fake);
}
