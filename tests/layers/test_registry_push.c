/* Pushing to tests/fakes/registry.py: every way in which blobs and manifests go up, and every way
 * in which that goes wrong. What was pushed is pulled again and compared. */
#include "layers/registry_check.h"

#include "layers/registry_push.h"

static struct server fake;
static int port;

static size_t log_count(const char *repository, const char *text)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *url = cb_xasprintf("http://127.0.0.1:%d/_log/%s", port, repository);
    struct http_request req = {.url = url, .body_max = 1 << 20};
    struct http_response res = HTTP_RESPONSE_INIT;
    struct http_client *c = http_client_new(0);
    assert_ok(http_exchange(c, &req, &res, &err), &err);
    size_t n = 0;
    for (const char *at = res.body.data; (at = strstr(at, text)) != NULL; at++)
        n++;
    http_response_release(&res);
    http_client_free(c);
    return n;
}

/* An image in a store: two layers of 3 MiB and less, as the fake has them in ok/app. */
struct image {
    struct world w;
    struct base_image b;
    struct cb_buf manifest;
    struct oci_manifest m;
    struct push_blob blobs[3];
    struct push_result result;
};

static void image_open(struct image *im, const char *dir)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *own = cb_xasprintf("%s/source", dir);
    CB_AUTO_FREE char *ref = cb_xasprintf("127.0.0.1:%d/ok/app:1", port);
    assert_ok(cb_mkdir_p(own, 0755, &err), &err);
    *im = (struct image){.manifest = CB_BUF_INIT(1 << 20)};
    world_open(&im->w, own);
    assert_ok(world_pull(&im->w, ref, &im->b, &err), &err);
    assert_ok(image_read_small(im->w.store, &im->b.manifest, &im->manifest, &err), &err);
    assert_ok(oci_manifest_parse(im->manifest.data, im->manifest.len, NULL, &im->m, &err), &err);
    const struct oci_descriptor *d[] = {&im->m.config, &im->m.layers[0], &im->m.layers[1]};
    for (size_t i = 0; i < 3; i++)
        im->blobs[i] = (struct push_blob){
            .media_type = d[i]->media_type, .digest = d[i]->digest, .size = d[i]->size};
}

static void image_close(struct image *im)
{
    base_image_release(&im->b);
    oci_manifest_release(&im->m);
    cb_buf_release(&im->manifest);
    world_close(&im->w);
}

/* Opens a session to HOST/@repository:1, mounting from @from unless that is NULL. */
static struct push *session(struct image *im, const char *repository, const char *from)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *text = cb_xasprintf("127.0.0.1:%d/%s:1", port, repository);
    struct image_ref ref;
    struct push *p = NULL;
    assert_ok(image_ref_parse(text, &ref, &err), &err);
    assert_ok(push_open(&im->w.settings, &ref, from, &im->w.progress, &p, &err), &err);
    image_ref_release(&ref);
    return p;
}

static int push_image(struct image *im, const char *repository, const char *from,
                      struct cb_error *err)
{
    struct push *p = session(im, repository, from);
    struct cb_digest d;
    im->result = (struct push_result){0};
    im->w.bytes = im->w.total = 0;
    int rc = push_blobs(p, im->w.store, im->blobs, 3, &im->result, err);
    if (rc == 0)
        rc = push_manifest(p, OCI_MANIFEST, im->manifest.data, im->manifest.len, "1", &d, err);
    if (rc == 0)
        assert_true(cb_digest_eq(&d, &im->b.manifest));
    push_free(p);
    return rc;
}

/* What is there now is what we have. */
static void assert_pushed(const struct image *im, const char *dir, const char *repository)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *own = cb_xasprintf("%s/%s", dir, repository);
    CB_AUTO_FREE char *ref = cb_xasprintf("127.0.0.1:%d/%s:1", port, repository);
    struct world w;
    struct base_image b;
    assert_ok(cb_mkdir_p(own, 0755, &err), &err);
    world_open(&w, own);
    assert_ok(world_pull(&w, ref, &b, &err), &err);
    assert_true(cb_digest_eq(&b.manifest, &im->b.manifest));
    assert_all_there(&w, &b);
    base_image_release(&b);
    world_close(&w);
}

static void test_an_image_goes_up_in_every_way(void **state)
{
    static const char *const ways[] = {"push/app",      "pushtoken/app", "pushflaky/app",
                                       "pushaway/app",  "pushcut/app",   "pushlimit/app",
                                       "pushforget/app"};
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *dir = cb_xasprintf("%s/%zu", (char *)*state, i);
        struct image im;
        image_open(&im, dir);
        push_piece = 512 << 10;
        if (strncmp(ways[i], "pushtoken", 9) == 0) /* whose tokens are good for two requests */
            im.w.settings.parallel_fetches = 1;
        int rc = push_image(&im, ways[i], NULL, &err);
        if (rc < 0)
            fail_msg("%s: %s", ways[i], err.msg);
        assert_int_equal(im.result.sent, 3);
        assert_true(im.w.total > 3 << 20);
        assert_int_equal(im.w.bytes, im.w.total);
        assert_pushed(&im, dir, ways[i]);
        /* again: all of it is there */
        assert_ok(push_image(&im, ways[i], NULL, &err), &err);
        assert_int_equal(im.result.there, 3);
        assert_int_equal(im.result.sent, 0);
        assert_int_equal(im.w.bytes, im.w.total);
        image_close(&im);
    }
    assert_int_equal(log_count("push/app", "\"PATCH\""), 0);
    assert_int_equal(log_count("pushlimit/app", "\"PATCH\""), 6);
    /* cut in one piece, then in pieces; the second was cut in its middle and gone on with. (curl
     * may send it again on a connection of its own; that is refused as out of order.) */
    assert_true(log_count("pushcut/app", "\"524288-1048575\"") >= 1);
    assert_int_equal(log_count("pushcut/app", "\"786432-1310719\""), 1);
    assert_true(log_count("pushtoken/app", "\"TOKEN\"") > 2);
}

static void test_blobs_are_mounted_where_possible(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct image im;
    image_open(&im, *state);
    assert_ok(push_image(&im, "push/mounted", "ok/app", &err), &err);
    assert_int_equal(im.result.mounted, 3);
    assert_int_equal(im.result.bytes, 0);
    assert_int_equal(im.w.bytes, im.w.total);
    assert_pushed(&im, *state, "push/mounted");
    /* not allowed, and not there: sent */
    assert_ok(push_image(&im, "push/two", "private/app", &err), &err);
    assert_int_equal(im.result.sent, 3);
    assert_ok(push_image(&im, "push/three", "ok/other", &err), &err);
    assert_int_equal(im.result.sent, 3);
    assert_pushed(&im, *state, "push/three");
    image_close(&im);
}

static void test_every_refusal_is_explained(void **state)
{
    static const struct {
        const char *repository;
        enum cb_code code;
        const char *words;
    } cases[] = {
        {"pushdenied/app", CB_E_AUTH, "the registry answered 403 DENIED: not yours"},
        {"pushreadonly/app", CB_E_CORRUPT, "the registry answered 405 UNSUPPORTED"},
        {"ok/app2", CB_E_CORRUPT, "the registry answered 405"},
        {"pushlie/app", CB_E_CORRUPT, "kept the manifest as sha256:"},
    };
    struct image im;
    image_open(&im, *state);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        int rc = push_image(&im, cases[i].repository, NULL, &err);
        assert_true(rc < 0);
        assert_fails(rc, &err, cases[i].code, cases[i].words);
        assert_store_is_good(&im.w);
    }
    /* a blob that the store does not have, or not in that size */
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct push *p = session(&im, "push/less", NULL);
    im.blobs[1].size++;
    assert_fails(push_blobs(p, im.w.store, im.blobs, 3, &im.result, &err), &err, CB_E_CORRUPT,
                 "bytes, not");
    im.blobs[1].size--;
    im.blobs[1].digest.b[0] ^= 1;
    assert_fails(push_blobs(p, im.w.store, im.blobs, 3, &im.result, &err), &err, CB_E_NOTFOUND,
                 "blob sha256:");
    push_free(p);
    struct cb_digest d;
    p = session(&im, "push/none", NULL); /* a manifest whose blobs are not there */
    assert_fails(push_manifest(p, OCI_MANIFEST, im.manifest.data, im.manifest.len, "1", &d, &err),
                 &err, CB_E_NOTFOUND, "MANIFEST_BLOB_UNKNOWN");
    push_free(p);
    image_close(&im);
}

/* What the fake answers for /v2/@repository/manifests/@name. */
static json_t *manifest_of(const char *repository, const char *name)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *url =
        cb_xasprintf("http://127.0.0.1:%d/v2/%s/manifests/%s", port, repository, name);
    struct http_request req = {.url = url, .body_max = 1 << 20};
    struct http_response res = HTTP_RESPONSE_INIT;
    struct http_client *c = http_client_new(0);
    json_error_t je;
    assert_ok(http_exchange(c, &req, &res, &err), &err);
    json_t *o = res.status == 200 ? json_loadb(res.body.data, res.body.len, 0, &je) : NULL;
    http_response_release(&res);
    http_client_free(c);
    return o;
}

static void test_artifacts_are_found_by_what_they_are_about(void **state)
{
    static const char *const ways[] = {"push/ref", "pushraced/ref", "pushreferrers/ref"};
    struct image im;
    image_open(&im, *state);
    for (size_t i = 0; i < 3; i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct cb_digest d[3];
        char hex[CB_HEX_LEN + 1], digest[CB_DIGEST_LEN + 1];
        assert_ok(push_image(&im, ways[i], NULL, &err), &err);
        struct push_artifact a = {
            .type = "application/spdx+json",
            .blob = {.media_type = "application/spdx+json", .size = 4, .mem = "{1 }"},
            .title = "app.spdx.json",
            .subject = {.media_type = OCI_MANIFEST,
                        .digest = im.b.manifest,
                        .size = im.manifest.len},
        };
        struct push *p = session(&im, ways[i], NULL);
        cb_sha256("{1 }", 4, &a.blob.digest);
        assert_ok(push_artifact(p, NULL, &a, &im.result, &d[0], &err), &err);
        assert_ok(push_artifact(p, NULL, &a, &im.result, &d[1], &err), &err); /* once more */
        a.type = a.blob.media_type = "application/vnd.in-toto+json";
        assert_ok(push_artifact(p, NULL, &a, &im.result, &d[2], &err), &err);
        push_free(p);
        assert_true(cb_digest_eq(&d[0], &d[1]));

        cb_digest_text(&d[0], digest);
        json_auto_t *artifact = manifest_of(ways[i], digest);
        assert_string_equal(json_string_value(json_object_get(artifact, "artifactType")),
                            "application/spdx+json");
        cb_digest_hex(&im.b.manifest, hex);
        CB_AUTO_FREE char *tag = cb_xasprintf("sha256-%s", hex);
        json_auto_t *index = manifest_of(ways[i], tag);
        if (i == 2) { /* this one keeps the list itself */
            assert_null(index);
            continue;
        }
        const json_t *list = json_object_get(index, "manifests");
        assert_int_equal(json_array_size(list), 2);
        assert_string_equal(json_string_value(json_object_get(json_array_get(list, 0), "digest")),
                            digest);
        assert_string_equal(
            json_string_value(json_object_get(json_array_get(list, 1), "artifactType")),
            "application/vnd.in-toto+json");
    }
    image_close(&im);
}

static int start_fake(void **state)
{
    (void)state;
    static const char *const argv[] = {"python3", CB_SOURCE_DIR "/tests/fakes/registry.py", NULL};
    check_no_logins();
    server_start(&fake, argv, NULL, 1, "}");
    port = server_number(&fake, "\"port\": ");
    return port > 0 ? 0 : -1;
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
        test_in_dir(test_an_image_goes_up_in_every_way),
        test_in_dir(test_blobs_are_mounted_where_possible),
        test_in_dir(test_every_refusal_is_explained),
        test_in_dir(test_artifacts_are_found_by_what_they_are_about),
    };
    return cmocka_run_group_tests_name("layers/registry_push", tests, start_fake, stop_fake);
}
