/* Logins: the files of docker and podman, helpers good and bad, the metadata server; and the
 * headers that a registry client must read. */
#include "layers/registry_check.h"

#include <sys/stat.h>

static struct server fake;
static int port;

static char *put(const char *dir, const char *name, const char *text, mode_t mode)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char *path = cb_xasprintf("%s/%s", dir, name);
    CB_AUTO_FREE char *parent = cb_xstrndup(path, (size_t)(strrchr(path, '/') - path));
    assert_ok(cb_mkdir_p(parent, 0700, &err), &err);
    assert_ok(cb_write_file(path, text, strlen(text), mode, &err), &err);
    return path;
}

static void test_what_a_file_says(void **state)
{
    (void)state;
    static const struct {
        enum auth_file_kind kind;
        const char *text, *host, *path;
        const char *user, *password, *identity, *token, *helper;
    } cases[] = {
        /* dXNlcjpw = user:p */
        {AUTH_FILE_DOCKER, "{\"auths\":{\"h\":{\"auth\":\"dXNlcjpw\"}}}", "h", "a", "user", "p", 0,
         0, 0},
        {AUTH_FILE_DOCKER, "{\"auths\":{\"https://h/v1/\":{\"auth\":\"dXNlcjpw\"}}}", "h", "a",
         "user", "p", 0, 0, 0},
        {AUTH_FILE_DOCKER, "{\"auths\":{\"h\":{\"auth\":\"dXNlcjpw\"}}}", "h:5000", "a", 0, 0, 0, 0,
         0},
        /* padded with NULs, as some tools do; without padding of base64, as others do */
        {AUTH_FILE_DOCKER, "{\"auths\":{\"h\":{\"auth\":\"dTpwAAAA\"}}}", "h", "a", "u", "p", 0, 0,
         0},
        {AUTH_FILE_DOCKER, "{\"auths\":{\"h\":{\"auth\":\"dTpw\"}}}", "h", "a", "u", "p", 0, 0, 0},
        {AUTH_FILE_DOCKER, "{\"auths\":{\"h\":{\"auth\":\"dTpwYQ\"}}}", "h", "a", "u", "pa", 0, 0,
         0},
        {AUTH_FILE_DOCKER, "{\"auths\":{\"h\":{\"username\":\"u\",\"password\":\"p:q\"}}}", "h",
         "a", "u", "p:q", 0, 0, 0},
        /* the exact key wins over one that merely fits */
        {AUTH_FILE_DOCKER,
         "{\"auths\":{\"https://h\":{\"auth\":\"eDp5\"},\"h\":{\"auth\":\"dTpw\"}}}", "h", "a", "u",
         "p", 0, 0, 0},
        {AUTH_FILE_DOCKER, "{\"auths\":{\"https://index.docker.io/v1/\":{\"auth\":\"dTpw\"}}}",
         "docker.io", "library/x", "u", "p", 0, 0, 0},
        {AUTH_FILE_DOCKER, "{\"auths\":{\"h\":{}}}", "h", "a", 0, 0, 0, 0, 0},
        {AUTH_FILE_DOCKER, "{\"auths\":{\"h\":{\"auth\":\"dTpw\",\"identitytoken\":\"id\"}}}", "h",
         "a", "u", "p", "id", 0, 0},
        {AUTH_FILE_DOCKER, "{\"auths\":{\"h\":{\"registrytoken\":\"t\"}}}", "h", "a", 0, 0, 0, "t",
         0},
        /* helpers: the host's own, then the store, then nobody */
        {AUTH_FILE_DOCKER, "{\"credsStore\":\"pass\",\"credHelpers\":{\"h\":\"gcloud\"}}", "h", "a",
         0, 0, 0, 0, "gcloud"},
        {AUTH_FILE_DOCKER, "{\"credsStore\":\"pass\",\"credHelpers\":{\"h\":\"gcloud\"}}", "other",
         "a", 0, 0, 0, 0, "pass"},
        {AUTH_FILE_DOCKER, "{\"credsStore\":\"\"}", "h", "a", 0, 0, 0, 0, 0},
        /* podman's keys may hold the beginning of a path; the longest wins */
        {AUTH_FILE_PODMAN, "{\"auths\":{\"h\":{\"auth\":\"eDp5\"},\"h/team\":{\"auth\":\"dTpw\"}}}",
         "h", "team/app", "u", "p", 0, 0, 0},
        {AUTH_FILE_PODMAN, "{\"auths\":{\"h\":{\"auth\":\"eDp5\"},\"h/team\":{\"auth\":\"dTpw\"}}}",
         "h", "teams/app", "x", "y", 0, 0, 0},
        {AUTH_FILE_PODMAN, "{\"auths\":{\"h/team/app\":{\"auth\":\"dTpw\"}}}", "h", "team", 0, 0, 0,
         0, 0},
        {AUTH_FILE_OLD, "{\"https://h/v1/\":{\"auth\":\"dTpw\"}}", "h", "a", "u", "p", 0, 0, 0},
        {AUTH_FILE_OLD, "[]", "h", "a", 0, 0, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct auth_file_answer a;
        assert_ok(auth_file_read(cases[i].text, strlen(cases[i].text), cases[i].kind, "file",
                                 cases[i].host, cases[i].path, &a, &err),
                  &err);
        const char *want[] = {cases[i].user, cases[i].password, cases[i].identity, cases[i].token,
                              cases[i].helper};
        const char *got[] = {a.credentials.username, a.credentials.password, a.credentials.identity,
                             a.credentials.token, a.helper};
        for (size_t k = 0; k < 5; k++)
            if (!want[k] != !got[k] || (want[k] && strcmp(want[k], got[k]) != 0))
                fail_msg("%s for %s: value %zu is %s", cases[i].text, cases[i].host, k,
                         got[k] ? got[k] : "missing");
        auth_file_answer_release(&a);
    }
}

static void test_files_that_are_wrong(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "file:1:"},
        {"{\"auths\":{\"h\":{\"auth\":\"***\"}}}", "the entry for h cannot be read"},
        {"{\"auths\":{\"h\":{\"auth\":\"dXNlcg==\"}}}", "the entry for h cannot be read"},
        {"{\"auths\":{\"h\":{\"auth\":7}}}", "the entry for h cannot be read"},
        {"{\"auths\":{\"h\":{\"auth\":\"dTphCmI=\"}}}", "the entry for h cannot be read"},
        {"{\"auths\":{\"h\":{\"registrytoken\":\"a\\r\\nb\"}}}", "cannot be read"},
        {"{\"auths\":{\"h\":\"dTpw\"}}", "cannot be read"},
        {"{\"credHelpers\":{\"h\":\"../bin/sh\"}}", "no usable name"},
        {"{\"credsStore\":\"a b\"}", "no usable name"},
        {"{\"credsStore\":[]}", "no usable name"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct auth_file_answer a;
        assert_fails(auth_file_read(cases[i].text, strlen(cases[i].text), AUTH_FILE_DOCKER, "file",
                                    "h", "a", &a, &err),
                     &err, CB_E_CONFIG, cases[i].words);
    }
}

/* What is found for @host when DOCKER_CONFIG is @dir. */
static int find(const char *dir, const char *host, struct auth_credentials *c, struct cb_error *err)
{
    struct settings settings = {0};
    assert_int_equal(setenv("DOCKER_CONFIG", dir, 1), 0);
    int rc = auth_find_credentials(&settings, host, "team/app", c, err);
    assert_int_equal(unsetenv("DOCKER_CONFIG"), 0);
    return rc;
}

/* Helpers are programs in PATH; each test has a folder of them. */
static void helper(const char *dir, const char *name, const char *script)
{
    CB_AUTO_FREE char *file = cb_xasprintf("bin/docker-credential-%s", name);
    CB_AUTO_FREE char *text = cb_xasprintf("#!/bin/sh\n%s\n", script);
    free(put(dir, file, text, 0755));
}

static void test_helpers(void **state)
{
    const char *dir = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *before = cb_xstrdup(getenv("PATH"));
    CB_AUTO_FREE char *path = cb_xasprintf("%s/bin:%s", dir, before);
    struct auth_credentials c;
    helper(dir, "good",
           "[ \"$1\" = get ] && [ $# = 1 ] || exit 9\nread -r url\n"
           "printf '{\"ServerURL\":\"%s\",\"Username\":\"u\",\"Secret\":\"for %s\"}' \"$url\" "
           "\"$url\"");
    helper(dir, "token", "echo '{\"Username\":\"<token>\",\"Secret\":\"refresh me\"}'");
    helper(dir, "nobody", "echo 'credentials not found in native keychain'; exit 1");
    helper(dir, "locked", "printf 'the vault is \\033[1mlocked\\nmore\\n'; exit 1");
    helper(dir, "silent", "exit 3");
    helper(dir, "nonsense", "echo nonsense");
    helper(dir, "lines", "printf '{\"Username\":\"u\",\"Secret\":\"a\\\\r\\\\nb\"}'");
    helper(dir, "endless", "while :; do echo '{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{'; done");
    free(
        put(dir, "config.json",
            "{\"auths\":{\"both\":{\"auth\":\"dTpw\"},\"docker.io\":{}},"
            "\"credHelpers\":{\"good:5000\":\"good\",\"docker.io\":\"good\",\"token\":\"token\","
            "\"nobody\":\"nobody\",\"both\":\"nobody\",\"locked\":\"locked\",\"silent\":\"silent\","
            "\"nonsense\":\"nonsense\",\"lines\":\"lines\",\"endless\":\"endless\","
            "\"missing\":\"missing\"}}",
            0600));
    assert_int_equal(setenv("PATH", path, 1), 0);

    assert_ok(find(dir, "good:5000", &c, &err), &err);
    assert_string_equal(c.username, "u");
    assert_string_equal(c.password, "for good:5000");
    assert_true(c.renewable);
    auth_credentials_release(&c);
    assert_ok(find(dir, "docker.io", &c, &err), &err);
    assert_string_equal(c.password, "for https://index.docker.io/v1/");
    auth_credentials_release(&c);
    assert_ok(find(dir, "token", &c, &err), &err);
    assert_null(c.username);
    assert_string_equal(c.identity, "refresh me");
    auth_credentials_release(&c);
    assert_ok(find(dir, "nobody", &c, &err), &err);
    assert_false(auth_has_credentials(&c));
    auth_credentials_release(&c);
    assert_ok(find(dir, "both", &c, &err), &err); /* then what the file has */
    assert_string_equal(c.username, "u");
    auth_credentials_release(&c);

    assert_fails(find(dir, "locked", &c, &err), &err, CB_E_AUTH,
                 "failed for locked: the vault is ?");
    assert_fails(find(dir, "silent", &c, &err), &err, CB_E_AUTH, "failed for silent: nothing");
    assert_fails(find(dir, "nonsense", &c, &err), &err, CB_E_AUTH, "not JSON");
    assert_fails(find(dir, "lines", &c, &err), &err, CB_E_AUTH, "no usable login");
    assert_fails(find(dir, "missing", &c, &err), &err, CB_E_ENV, "docker-credential-missing");
    auth_helper_ms = 500; /* it never ends by itself */
    assert_fails(find(dir, "endless", &c, &err), &err, CB_E_TIMEOUT, "docker-credential-endless");
    auth_helper_ms = 30000;

    /* one for all hosts that does not work is no reason not to pull what is public */
    free(put(dir, "config.json", "{\"credsStore\":\"locked\"}", 0600));
    assert_ok(find(dir, "h", &c, &err), &err);
    assert_false(auth_has_credentials(&c));
    assert_non_null(strstr(c.trouble, "credsStore: docker-credential-locked failed"));
    auth_credentials_release(&c);

    struct registry_settings own = {.host = (char[]){"h"}, .credential_helper = (char[]){"good"}};
    struct settings settings = {.registries = &own, .n_registries = 1};
    assert_ok(auth_find_credentials(&settings, "h", "a", &c, &err), &err);
    assert_string_equal(c.password, "for h");
    auth_credentials_release(&c);
    assert_int_equal(setenv("PATH", before, 1), 0);
}

static void test_which_file_comes_first(void **state)
{
    static const char *const variables[] = {"XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HOME"};
    static const char *const files[] = {"XDG_RUNTIME_DIR/containers/auth.json",
                                        "XDG_CONFIG_HOME/containers/auth.json",
                                        "HOME/.docker/config.json", "HOME/.dockercfg"};
    static const char *const texts[] = {"{\"auths\":{\"h\":{\"auth\":\"MTpw\"}}}", /* 1:p and on */
                                        "{\"auths\":{\"h\":{\"auth\":\"Mjpw\"}}}",
                                        "{\"auths\":{\"h\":{\"auth\":\"Mzpw\"}}}",
                                        "{\"h\":{\"auth\":\"NDpw\"}}"};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct settings settings = {0};
    struct auth_credentials c;
    for (size_t i = 0; i < 3; i++) {
        CB_AUTO_FREE char *value = cb_xasprintf("%s/%s", (char *)*state, variables[i]);
        assert_int_equal(setenv(variables[i], value, 1), 0);
    }
    for (size_t i = 4; i-- > 0;) {
        free(put(*state, files[i], texts[i], 0600));
        assert_ok(auth_find_credentials(&settings, "h", "a", &c, &err), &err);
        assert_int_equal(c.username[0] - '1', i);
        auth_credentials_release(&c);
    }
    assert_int_equal(unsetenv("XDG_RUNTIME_DIR"), 0);
    assert_int_equal(unsetenv("XDG_CONFIG_HOME"), 0);
    assert_int_equal(setenv("HOME", "/nonexistent", 1), 0);
}

static void test_the_metadata_server_is_for_googles_registries(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *server = cb_xasprintf("127.0.0.1:%d", port);
    struct settings settings = {0};
    struct auth_credentials c;
    assert_int_equal(setenv("GCE_METADATA_HOST", server, 1), 0);
    static const char *const his[] = {"gcr.io", "eu.gcr.io", "europe-docker.pkg.dev"};
    for (size_t i = 0; i < 3; i++) {
        assert_ok(auth_find_credentials(&settings, his[i], "p/r/i", &c, &err), &err);
        assert_string_equal(c.username, "oauth2accesstoken");
        assert_string_equal(c.password, "ya29.fake");
        assert_true(c.renewable);
        auth_credentials_release(&c);
    }
    static const char *const others[] = {"docker.io", "evil-docker.pkg.dev.example.com",
                                         "-docker.pkg.dev", "xgcr.io", "x-docker.pkg.dev:8080"};
    for (size_t i = 0; i < 5; i++) {
        assert_ok(auth_find_credentials(&settings, others[i], "p/r/i", &c, &err), &err);
        assert_false(auth_has_credentials(&c));
        auth_credentials_release(&c);
    }
    /* a server that is none: no login, and words about it */
    assert_int_equal(setenv("GCE_METADATA_HOST", "127.0.0.1:1", 1), 0);
    assert_ok(auth_find_credentials(&settings, "gcr.io", "p/r/i", &c, &err), &err);
    assert_false(auth_has_credentials(&c));
    assert_non_null(strstr(c.trouble, "gave no token"));
    auth_credentials_release(&c);
    assert_int_equal(unsetenv("GCE_METADATA_HOST"), 0);
}

static void test_retry_after(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t want;
    } cases[] = {
        {"0", 0},
        {"7", 7},
        {"007", 7},
        {"999999999", 999999999},
        {"99999999999999999999", INT32_MAX},
        {"-1", 0},
        {"7.5", 0},
        {"5 apples", 0},
        {"", 0},
        {"soon", 0},
        {"Thu, 01 Jan 1970 00:16:50 GMT", 10},
        {"Thu, 01 Jan 1970 00:16:40 GMT", 0},
        {"Thu, 01 Jan 1970 00:00:01 GMT", 0},
        {"Fri, 31 Dec 9999 23:59:59 GMT", INT32_MAX},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (http_retry_after(cases[i].text, 1000) != cases[i].want)
            fail_msg("%s: %lld", cases[i].text, (long long)http_retry_after(cases[i].text, 1000));
}

static void test_ranges_and_warnings(void **state)
{
    (void)state;
    uint64_t have = 0;
    assert_true(http_range_fits("bytes 5-9/10", 5, 10));
    assert_true(http_range_fits("Bytes 5-9/*", 5, 10));
    static const char *const not [] = {"bytes 4-9/10",
                                       "bytes 5-8/10",
                                       "bytes 5-9/11",
                                       "bytes 5-9/10 ",
                                       "bytes 5-9",
                                       "bytes */10",
                                       "bytes=5-9/10",
                                       "bytes +5-9/10",
                                       "bytes 5-9/",
                                       "bytes 18446744073709551621-9/10",
                                       ""};
    for (size_t i = 0; i < sizeof(not ) / sizeof(not [0]); i++)
        if (http_range_fits(not [i], 5, 10))
            fail_msg("%s", not [i]);
    assert_false(http_range_fits(NULL, 5, 10));
    assert_true(http_upload_range("0-9", &have));
    assert_int_equal(have, 10);
    assert_true(http_upload_range("bytes=0-0", &have));
    assert_int_equal(have, 1);
    static const char *const bad[] = {"1-9", "0-", "-9", "0-9,12-13", "", "0-99999999999999999999"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (http_upload_range(bad[i], &have))
            fail_msg("%s", bad[i]);
    CB_AUTO_FREE char *text = http_warning("299 - \"so\\\"on\x1b gone\" \"date\"");
    assert_string_equal(text, "so\"on? gone");
    assert_null(http_warning("199 - \"x\""));
    assert_null(http_warning("299 - \"never closed"));
    assert_null(http_warning("299 - \"\""));
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
        cmocka_unit_test(test_what_a_file_says),
        cmocka_unit_test(test_files_that_are_wrong),
        test_in_dir(test_helpers),
        test_in_dir(test_which_file_comes_first),
        cmocka_unit_test(test_the_metadata_server_is_for_googles_registries),
        cmocka_unit_test(test_retry_after),
        cmocka_unit_test(test_ranges_and_warnings),
    };
    return cmocka_run_group_tests_name("layers/registry_login", tests, start_fake, stop_fake);
}
