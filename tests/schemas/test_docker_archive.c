#include "check.h"

#include "schemas/schemas.h"
#include "support/limits.h"

static const char good[] =
    "[{\"Config\":\"./abc.json\",\"RepoTags\":[\"app:1\",\"ghcr.io/o/app:2\"],"
    "\"Layers\":[\"one/layer.tar\",\"./two//layer.tar\"],\"Extra\":1},"
    "{\"Config\":\"blobs/sha256/x\",\"RepoTags\":null,\"Layers\":null},"
    "{\"Config\":\"c\",\"RepoTags\":[\"Not A Name\",\"scratch\"]}]";

static void test_an_archive_is_read(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct docker_archive a;
    assert_ok(docker_archive_parse(good, strlen(good), &a, &err), &err);
    assert_int_equal(a.n, 3);
    assert_string_equal(a.images[0].config, "abc.json");
    assert_int_equal(a.images[0].tags.n, 2);
    assert_int_equal(a.images[0].files.n, 2);
    assert_string_equal(a.images[0].files.v[1], "two/layer.tar");
    assert_int_equal(a.images[1].files.n, 0);
    assert_int_equal(a.images[2].tags.n, 0); /* nothing that anybody could ask for */
    docker_archive_release(&a);
}

static void test_an_image_is_chosen(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct docker_archive a;
    static const struct {
        const char *selector;
        int at; /* or a code */
        const char *says;
    } cases[] = {
        {"app:1", 0, NULL},
        {"docker.io/library/app:1", 0, NULL},
        {"ghcr.io/o/app:2", 0, NULL},
        {"@0", 0, NULL},
        {"@2", 2, NULL},
        {"@3", -CB_E_NOTFOUND, "the archive has no image @3"},
        {"app", -CB_E_NOTFOUND, "the archive has no image app"},
        {NULL, -CB_E_CONFIG,
         "the archive holds 3 images: app:1, @1 (without a name), @2 (without a name)"},
    };
    assert_ok(docker_archive_parse(good, strlen(good), &a, &err), &err);
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        size_t at = 99;
        int rc = docker_archive_select(&a, cases[i].selector, &at, &err);
        if (cases[i].at < 0)
            assert_fails(rc, &err, -cases[i].at, cases[i].says);
        else
            assert_int_equal(at, cases[i].at);
    }
    size_t at = 99;
    a.n = 1; /* one alone needs no name */
    assert_ok(docker_archive_select(&a, NULL, &at, &err), &err);
    assert_int_equal(at, 0);
    a.n = 3;
    docker_archive_release(&a);
}

static void test_bad_archives_are_refused(void **state)
{
    (void)state;
    CB_AUTO_BUF images = CB_BUF_INIT(1 << 20), layers = CB_BUF_INIT(1 << 20),
                tags = CB_BUF_INIT(1 << 20);
    cb_buf_adds(&layers, "[{\"Config\":\"c\",\"Layers\":[\"x\"");
    cb_buf_adds(&tags, "[{\"Config\":\"c\",\"RepoTags\":[\"x\"");
    for (int i = 0; i < 1024; i++) {
        cb_buf_adds(&images, i ? ",{}" : "[{}");
        cb_buf_adds(&layers, ",\"x\"");
        cb_buf_adds(&tags, ",\"x\"");
    }
    cb_buf_adds(&images, ",{}]");
    cb_buf_adds(&layers, "]}]");
    cb_buf_adds(&tags, "]}]");
    const struct {
        const char *text;
        enum cb_code code;
        const char *says;
    } cases[] = {
        {"", CB_E_CORRUPT, "manifest.json is not JSON"},
        {"{}", CB_E_CORRUPT, "not a list of images"},
        {"[]", CB_E_CORRUPT, "not a list of images"},
        {"[1]", CB_E_CORRUPT, "an image is not an object"},
        {"[{}]", CB_E_CORRUPT, "Config is not the name of a member"},
        {"[{\"Config\":\"\"}]", CB_E_CORRUPT, "Config is not the name of a member"},
        {"[{\"Config\":\"a\\u0007\"}]", CB_E_CORRUPT, "Config holds a control character"},
        {"[{\"Config\":\"/etc/passwd\"}]", CB_E_UNTRUSTED, "leads out of the archive"},
        {"[{\"Config\":\"../x\"}]", CB_E_UNTRUSTED, "Config \"../x\" leads out of the archive"},
        {"[{\"Config\":\"a/../../x\"}]", CB_E_UNTRUSTED, "leads out of the archive"},
        {"[{\"Config\":\".\"}]", CB_E_UNTRUSTED, "leads out of the archive"},
        {"[{\"Config\":\"a\",\"Config\":\"b\"}]", CB_E_CORRUPT, "not JSON"},
        {"[{\"Config\":\"c\",\"RepoTags\":1}]", CB_E_CORRUPT, "RepoTags is not a list"},
        {"[{\"Config\":\"c\",\"RepoTags\":[1]}]", CB_E_CORRUPT, "RepoTags[0] is not a string"},
        {"[{\"Config\":\"c\",\"Layers\":{}}]", CB_E_CORRUPT, "Layers is not a list"},
        {"[{\"Config\":\"c\",\"Layers\":[\"a\",1]}]", CB_E_CORRUPT, "Layers[1] is not the name"},
        {images.data, CB_E_LIMIT, "1025 images; at most 1024"},
        {layers.data, CB_E_LIMIT, "1025 layers; at most 1024"},
        {tags.data, CB_E_LIMIT, "more than 1024 names of one image"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct docker_archive a;
        assert_fails(docker_archive_parse(cases[i].text, strlen(cases[i].text), &a, &err), &err,
                     cases[i].code, cases[i].says);
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct docker_archive a;
    CB_AUTO_FREE char *huge = cb_xcalloc(1, CB_JSON_MAX + 1u);
    assert_fails(docker_archive_parse(huge, CB_JSON_MAX + 1u, &a, &err), &err, CB_E_LIMIT,
                 "larger than 4 MiB");
}

static void test_names_of_members(void **state)
{
    (void)state;
    static const struct {
        const char *base, *name, *is;
    } cases[] = {
        {NULL, "a/b", "a/b"},
        {NULL, "./a//b/", "a/b"},
        {NULL, "/a", "a"},
        {NULL, "a/../b", NULL},
        {NULL, "..", NULL},
        {NULL, "", NULL},
        {NULL, "./.", NULL},
        {"x", "../y/l.tar", "y/l.tar"},
        {"x", "l.tar", "x/l.tar"},
        {"x", "../../y", NULL},
        {"x/z", "../../y", "y"},
        {"x", "/y", "y"},
        {"", "y", "y"},
        {"x", "..", NULL},
        {"x", "a/../..", NULL},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        CB_AUTO_FREE char *got = archive_member_name(cases[i].base, cases[i].name);
        if (cases[i].is)
            assert_string_equal(got, cases[i].is);
        else
            assert_null(got);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_archive_is_read),
        cmocka_unit_test(test_an_image_is_chosen),
        cmocka_unit_test(test_bad_archives_are_refused),
        cmocka_unit_test(test_names_of_members),
    };
    return cmocka_run_group_tests_name("schemas/docker_archive", tests, NULL, NULL);
}
