#include "check.h"

#include "schemas/reference.h"

#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define S50 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define S250 S50 S50 S50 S50 S50

static void test_good_names_are_normalised(void **state)
{
    (void)state;
    static const struct {
        const char *text, *canonical;
        enum source_kind kind;
    } cases[] = {
        {"debian", "docker.io/library/debian:latest", SOURCE_REGISTRY},
        {"debian:bookworm", "docker.io/library/debian:bookworm", SOURCE_REGISTRY},
        {"docker.io/debian", "docker.io/library/debian:latest", SOURCE_REGISTRY},
        {"index.docker.io/debian", "docker.io/library/debian:latest", SOURCE_REGISTRY},
        {"docker.io/org/app", "docker.io/org/app:latest", SOURCE_REGISTRY},
        {"org/app:1", "docker.io/org/app:1", SOURCE_REGISTRY},
        {"localhost", "docker.io/library/localhost:latest", SOURCE_REGISTRY},
        {"localhost/app", "localhost/app:latest", SOURCE_REGISTRY},
        {"localhost:5000/app:1", "localhost:5000/app:1", SOURCE_REGISTRY},
        {"127.0.0.1:5000/a/b/c:v1.2-x", "127.0.0.1:5000/a/b/c:v1.2-x", SOURCE_REGISTRY},
        {"[::1]:5000/app", "[::1]:5000/app:latest", SOURCE_REGISTRY},
        {"Example/app", "Example/app:latest", SOURCE_REGISTRY},
        {"example.com:5000", "docker.io/library/example.com:5000", SOURCE_REGISTRY},
        {"ghcr.io/a-b/c__d/e.f-g--h:T_1", "ghcr.io/a-b/c__d/e.f-g--h:T_1", SOURCE_REGISTRY},
        {"debian@sha256:" HEX, "docker.io/library/debian@sha256:" HEX, SOURCE_REGISTRY},
        {"debian:12@sha256:" HEX, "docker.io/library/debian:12@sha256:" HEX, SOURCE_REGISTRY},
        {"minimal-debian", "minimal-debian", SOURCE_BUILTIN},
        {"scratch", "scratch", SOURCE_SCRATCH},
        {"oci:/srv/x", "oci:/srv/x", SOURCE_OCI_LAYOUT},
        {"oci:../x:1.0", "oci:../x:1.0", SOURCE_OCI_LAYOUT},
        {"oci:/a:b/c", "oci:/a:b/c", SOURCE_OCI_LAYOUT},
        {"docker-archive:/tmp/a.tar", "docker-archive:/tmp/a.tar", SOURCE_DOCKER_ARCHIVE},
        {"docker-archive:a.tar:app", "docker-archive:a.tar:app", SOURCE_DOCKER_ARCHIVE},
        {"docker-archive:/a.tar:localhost:5000/app:1", "docker-archive:/a.tar:localhost:5000/app:1",
         SOURCE_DOCKER_ARCHIVE},
        {"docker-archive:a.tar:@12", "docker-archive:a.tar:@12", SOURCE_DOCKER_ARCHIVE},
        {"template:web", "template:web", SOURCE_TEMPLATE},
        {"template:web:12", "template:web:12", SOURCE_TEMPLATE},
        {"template:project~web@3", "template:project~web:3", SOURCE_TEMPLATE},
        {"minimal-debian:bookworm", "minimal-debian:bookworm", SOURCE_BUILTIN},
        {"minimal-debian:trixie", "minimal-debian:trixie", SOURCE_BUILTIN},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct image_ref r;
        assert_ok(image_ref_parse(cases[i].text, &r, &err), &err);
        CB_AUTO_FREE char *canonical = image_ref_canonical(&r);
        assert_string_equal(canonical, cases[i].canonical);
        assert_string_equal(r.text, cases[i].text);
        assert_int_equal(r.kind, cases[i].kind);
        image_ref_release(&r);

        /* reading the canonical form again changes nothing */
        if (cases[i].kind == SOURCE_REGISTRY) {
            assert_ok(image_ref_parse(canonical, &r, &err), &err);
            CB_AUTO_FREE char *again = image_ref_canonical(&r);
            assert_string_equal(again, canonical);
            image_ref_release(&r);
        }
    }
}

static void test_bad_names_say_what_is_wrong(void **state)
{
    (void)state;
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"", "the name is empty"},
        {"Debian", "must be lower case"},
        {"docker.io/Debian", "must be lower case"},
        {"debian:", "the tag behind \":\" is missing"},
        {"debian:.1", "a tag is made of"},
        {"debian:a b", "a tag is made of"},
        {"debian:" S50 S50 S50, "longer than 128"},
        {"a//b", "each part of the repository's name"},
        {"/b", "each part"},
        {"a/", "each part"},
        {"a___b", "each part"},
        {"a..b", "each part"},
        {"a-", "each part"},
        {"_a", "each part"},
        {"d\303\251bian", "each part"},
        {"docker.io/", "the repository's name is missing"},
        {"ex_ample.com/a", "a character that no host name has"},
        {"-a.com/b", "not a host name"},
        {"a-.com/b", "not a host name"},
        {"a..com/b", "not a host name"},
        {":5000/b", "not a host name"},
        {"a.com:/b", "a port is a number"},
        {"a.com:0/b", "a port is a number"},
        {"a.com:65536/b", "a port is a number"},
        {"a.com:12x/b", "a port is a number"},
        {"[::1/b", "not an IPv6 address"},
        {"[:x:]/b", "not an IPv6 address"},
        {"[::1]x/b", "followed by something unknown"},
        {"docker://debian", "no \"://\""},
        {"https://a.com/b", "no \"://\""},
        {HEX, "the id of a local image"},
        {"debian@sha256:1234", "64 lower-case hex"},
        {"debian@sha512:" HEX HEX, "64 lower-case hex"},
        {"debian@", "64 lower-case hex"},
        {"@sha256:" HEX, "name is missing"},
        {"debian\n", "control character"},
        {S250 "/aaaaaa", "longer than 255"},
        {"oci:", "the folder"},
        {"oci::1", "the folder"},
        {"oci:a:", "the tag"},
        {"docker-archive:", "the file"},
        {"docker-archive::app:1", "the file"},
        {"docker-archive:a.tar:", "the name of an image"},
        {"docker-archive:a.tar:App", "the name of an image"},
        {"docker-archive:a.tar:@", "stands the number of an image"},
        {"docker-archive:a.tar:@x", "stands the number of an image"},
        {"docker-archive:a.tar:@12345", "stands the number of an image"},
        {"template:", "the name of a template"},
        {"template::1", "the name of a template"},
        {"template:web:", "the number of a version"},
        {"template:web:0", "the number of a version"},
        {"template:web@01", "the number of a version"},
        {"template:web:1234567890123456", "the number of a version"},
        {"template:web:latest", "the number of a version"},
        {"minimal-debian:buzz", "the built-in base images are minimal-debian, minimal-debian:bo"},
        {"template:../x", "the name of a template"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct image_ref r;
        int rc = image_ref_parse(cases[i].text, &r, &err);
        if (rc >= 0)
            fail_msg("\"%s\" was accepted", cases[i].text);
        assert_non_null(err.hint);
        assert_fails(rc, &err, CB_E_CONFIG, cases[i].why);
    }
}

static void test_relative_paths_are_placed(void **state)
{
    (void)state;
    static const struct {
        const char *text, *below;
        bool relative;
    } cases[] = {
        {"oci:x:1", "oci:/srv/x:1", true},
        {"oci:./x", "oci:/srv/x", true},
        {"oci:.//./x", "oci:/srv/x", true},
        {"oci:../x", "oci:/srv/../x", true},
        {"oci:/x", "oci:/x", false},
        {"docker-archive:a.tar:app:1", "docker-archive:/srv/a.tar:app:1", true},
        {"docker-archive:/a.tar", "docker-archive:/a.tar", false},
        {"template:web", "template:web", false},
        {"debian", "debian", false},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_FREE char *below = image_ref_below(cases[i].text, "/srv");
        assert_string_equal(below, cases[i].below);
        assert_int_equal(image_ref_is_relative(cases[i].text), cases[i].relative);
    }
    CB_AUTO_FREE char *root = image_ref_below("oci:x", "/");
    assert_string_equal(root, "oci:/x");
}

static void test_messages_are_short_and_carry_no_terminal_control(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct image_ref r;
    CB_AUTO_FREE char *name = cb_xmalloc(8192);
    memset(name, 'a', 8191);
    name[8191] = '\0';
    assert_fails(image_ref_parse(name, &r, &err), &err, CB_E_CONFIG, "the name is too long");
    assert_int_equal(image_ref_parse("a\033[31mb", &r, &err), -CB_E_CONFIG);
    assert_null(strchr(err.msg, '\033'));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_names_are_normalised),
        cmocka_unit_test(test_bad_names_say_what_is_wrong),
        cmocka_unit_test(test_relative_paths_are_placed),
        cmocka_unit_test(test_messages_are_short_and_carry_no_terminal_control),
    };
    return cmocka_run_group_tests_name("schemas/reference", tests, NULL, NULL);
}
