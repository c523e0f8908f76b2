/* Settings: files one over the other, the environment over them, and what is said about wrong ones.
 */
#include "check.h"

#include "schemas/schemas.h"

#include <dirent.h>
#include <stdio.h>
#include <unistd.h>

static const char *const variables[] = {"CAPSULE_BUILD_HOME",
                                        "CAPSULE_BUILD_DEBIAN_MIRROR",
                                        "CAPSULE_BUILD_UBUNTU_MIRROR",
                                        "CAPSULE_BUILD_KERNEL",
                                        "CAPSULE_BUILD_QEMU",
                                        "CAPSULE_BUILD_SIGNING_KEY",
                                        "CAPSULE_BUILD_ISOLATION",
                                        "CAPSULE_BUILD_PULL",
                                        "CAPSULE_BUILD_PROXY",
                                        "CAPSULE_BUILD_CA_BUNDLE",
                                        "CAPSULE_BUILD_REGISTRY_MIRRORS",
                                        "CAPSULE_BUILD_STORE_MAX_GB",
                                        "CAPSULE_BUILD_ALLOW_HOST_NETWORK"};

static void clean_environment(void)
{
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++)
        unsetenv(variables[i]);
}

static char *file(const char *dir, const char *name, const char *text)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char *path = cb_xasprintf("%s/%s", dir, name);
    assert_ok(cb_write_file(path, text, strlen(text), 0600, &err), &err);
    return path;
}

static char *print(const struct config_problems *p)
{
    CB_AUTO_BUF out = CB_BUF_INIT(1u << 20);
    config_problems_print(p, &out);
    char *said = cb_buf_take(&out);
    check_said(said);
    return said;
}

static void test_defaults(void **state)
{
    (void)state;
    clean_environment();
    struct settings *s = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(settings_load_files(NULL, 0, false, &s, &p, &err), &err);
    assert_string_equal(s->debian_mirror, "http://deb.debian.org/debian");
    assert_string_equal(s->ubuntu_mirror, "http://archive.ubuntu.com/ubuntu");
    assert_string_equal(s->isolation, "auto");
    assert_string_equal(s->pull, "always");
    assert_null(s->kernel);
    assert_null(s->qemu);
    assert_null(s->signing_key);
    assert_false(s->allow_host_network);
    assert_int_equal(s->n_registries, 0);
    assert_int_equal(s->home[0], '/');
    if (geteuid() == 0)
        assert_string_equal(s->home, "/var/lib/capsule-build");
    settings_free(s);
}

static void test_proxy_and_authorities(void **state)
{
    (void)state;
    clean_environment();
    setenv("CAPSULE_BUILD_PROXY", "http://proxy:3128/", 1);
    setenv("CAPSULE_BUILD_CA_BUNDLE", "/etc/ssl/company.pem", 1);
    setenv("http_proxy", "http://other:1", 1);
    unsetenv("no_proxy");
    struct settings *s = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(settings_load_files(NULL, 0, false, &s, &p, &err), &err);
    assert_string_equal(s->proxy, "http://proxy:3128");
    assert_string_equal(s->ca_bundle, "/etc/ssl/company.pem");
    settings_export(s);
    assert_string_equal(getenv("http_proxy"), "http://proxy:3128");
    assert_string_equal(getenv("https_proxy"), "http://proxy:3128");
    assert_string_equal(getenv("no_proxy"), "localhost,127.0.0.1,::1");
    assert_string_equal(getenv("CURL_CA_BUNDLE"), "/etc/ssl/company.pem");
    settings_free(s);
    unsetenv("http_proxy");
    unsetenv("https_proxy");
    unsetenv("no_proxy");
    unsetenv("CURL_CA_BUNDLE");
    setenv("CAPSULE_BUILD_PROXY", "http://me:secret@proxy", 1);
    assert_fails(settings_load_files(NULL, 0, false, &s, &p, &err), &err, CB_E_CONFIG,
                 "the settings");
    CB_AUTO_FREE char *said = print(&p);
    assert_non_null(strstr(said, "CAPSULE_BUILD_PROXY: expected the URL of a proxy"));
    assert_null(strstr(said, "secret"));
    config_problems_release(&p);
    clean_environment();
}

static void test_numbers_and_booleans_of_the_environment(void **state)
{
    clean_environment();
    CB_AUTO_FREE char *a =
        file(*state, "n.yaml", "store_max_gb: 1\nallow_host_network: true\nstall_seconds: 7\n");
    const char *files[] = {a};
    setenv("CAPSULE_BUILD_STORE_MAX_GB", "40", 1);
    setenv("CAPSULE_BUILD_ALLOW_HOST_NETWORK", "false", 1);
    struct settings *s = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(settings_load_files(files, 1, true, &s, &p, &err), &err);
    assert_int_equal(s->store_max_gb, 40);
    assert_false(s->allow_host_network);
    assert_int_equal(s->stall_seconds, 7);
    settings_free(s);
    static const char *const bad[] = {"0", "-1", "1e3", "40G", " 4", "1048577", "99999999999"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        setenv("CAPSULE_BUILD_STORE_MAX_GB", bad[i], 1);
        setenv("CAPSULE_BUILD_ALLOW_HOST_NETWORK", "yes", 1);
        assert_fails(settings_load_files(files, 1, true, &s, &p, &err), &err, CB_E_CONFIG,
                     "2 errors");
        CB_AUTO_FREE char *said = print(&p);
        CB_AUTO_FREE char *want = cb_xasprintf(
            "environment: CAPSULE_BUILD_ALLOW_HOST_NETWORK: expected true or false, found \"yes\"\n"
            "environment: CAPSULE_BUILD_STORE_MAX_GB: expected a whole number from 1 to 1048576, "
            "found \"%s\"\n",
            bad[i]);
        assert_string_equal(said, want);
        config_problems_release(&p);
    }
    clean_environment();
}

static void test_a_misspelt_variable_is_a_warning(void **state)
{
    (void)state;
    clean_environment();
    setenv("CAPSULE_BUILD_ISOLATE", "vm", 1);
    setenv("CAPSULE_BUILD_SOMETHING_ELSE", "x", 1); /* somebody else's */
    struct settings *s = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(settings_load_files(NULL, 0, false, &s, &p, &err), &err);
    unsetenv("CAPSULE_BUILD_ISOLATE");
    unsetenv("CAPSULE_BUILD_SOMETHING_ELSE");
    CB_AUTO_FREE char *said = print(&p);
    assert_non_null(strstr(said, "warning: there is no variable \"CAPSULE_BUILD_ISOLATE\", it is "
                                 "ignored; did you mean CAPSULE_BUILD_ISOLATION?"));
    assert_null(strstr(said, "SOMETHING"));
    assert_int_equal(p.n_errors, 0);
    assert_string_equal(s->isolation, "auto");
    config_problems_release(&p);
    settings_free(s);
}

static void test_later_files_win_field_by_field(void **state)
{
    clean_environment();
    CB_AUTO_FREE char *a =
        file(*state, "a.yaml",
             "home: /a\npull: never\nallow_host_network: true\n"
             "registries:\n  docker.io: {mirror: \"http://one:5000/\", username: u, "
             "password: 12345, insecure: true}\n");
    CB_AUTO_FREE char *b = file(*state, "b.yaml",
                                "# over a\nhome: /b\nisolation: vm\nallow_host_network: false\n"
                                "registries:\n  docker.io: {mirror: https://two/cache}\n"
                                "  \"[::1]:5000\": {ca_file: /ca.pem}\n");
    CB_AUTO_FREE char *none = cb_xasprintf("%s/none.yaml", (char *)*state);
    CB_AUTO_FREE char *empty = file(*state, "empty.yaml", "# nothing yet\n\n");
    const char *files[] = {a, none, empty, b};
    struct settings *s = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(settings_load_files(files, 4, true, &s, &p, &err), &err);
    assert_string_equal(s->home, "/b");
    assert_string_equal(s->pull, "never");
    assert_string_equal(s->isolation, "vm");
    assert_false(s->allow_host_network);
    assert_int_equal(s->n_registries, 2);
    const struct registry_settings *d = settings_find_registry(s, "docker.io");
    assert_string_equal(d->mirror, "https://two/cache");
    assert_string_equal(d->username, "u");
    assert_string_equal(d->password, "12345");
    assert_true(d->insecure);
    assert_string_equal(settings_find_registry(s, "[::1]:5000")->ca_file, "/ca.pem");
    assert_null(settings_find_registry(s, "ghcr.io"));
    settings_free(s);
    const char *missing[] = {a, none};
    assert_fails(settings_load_files(missing, 2, true, &s, &p, &err), &err, CB_E_CONFIG,
                 "no such file");
    config_problems_release(&p);
}

static void test_the_environment_is_over_files(void **state)
{
    clean_environment();
    CB_AUTO_FREE char *a =
        file(*state, "a.yaml", "home: /a\nregistries: {docker.io: {mirror: http://one}}\n");
    const char *files[] = {a};
    setenv("CAPSULE_BUILD_HOME", "/env", 1);
    setenv("CAPSULE_BUILD_PULL", "missing", 1);
    setenv("CAPSULE_BUILD_ISOLATION", "container", 1);
    setenv("CAPSULE_BUILD_KERNEL", "/boot/vmlinuz", 1);
    setenv("CAPSULE_BUILD_QEMU", "/opt/qemu/bin/qemu-system-x86_64", 1);
    setenv("CAPSULE_BUILD_SIGNING_KEY", "/k/key.pem", 1);
    setenv("CAPSULE_BUILD_DEBIAN_MIRROR", "http://127.0.0.1:3142/debian/", 1);
    setenv("CAPSULE_BUILD_UBUNTU_MIRROR", "http://127.0.0.1:3142/ubuntu", 1);
    setenv("CAPSULE_BUILD_REGISTRY_MIRRORS", "docker.io=http://127.0.0.1:5000,,ghcr.io=https://m",
           1);
    struct settings *s = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(settings_load_files(files, 1, true, &s, &p, &err), &err);
    assert_string_equal(s->home, "/env");
    assert_string_equal(s->pull, "missing");
    assert_string_equal(s->isolation, "container");
    assert_string_equal(s->kernel, "/boot/vmlinuz");
    assert_string_equal(s->qemu, "/opt/qemu/bin/qemu-system-x86_64");
    assert_string_equal(s->signing_key, "/k/key.pem");
    assert_string_equal(s->debian_mirror, "http://127.0.0.1:3142/debian");
    assert_string_equal(s->ubuntu_mirror, "http://127.0.0.1:3142/ubuntu");
    assert_string_equal(settings_find_registry(s, "docker.io")->mirror, "http://127.0.0.1:5000");
    assert_string_equal(settings_find_registry(s, "ghcr.io")->mirror, "https://m");
    settings_free(s);
    setenv("CAPSULE_BUILD_HOME", "state", 1); /* relative: from here */
    assert_ok(settings_load_files(files, 1, true, &s, &p, &err), &err);
    CB_AUTO_FREE char *here = realpath(".", NULL);
    CB_AUTO_FREE char *want = cb_xasprintf("%s/state", here);
    assert_string_equal(s->home, want);
    settings_free(s);
    setenv("CAPSULE_BUILD_PULL", "often", 1);
    setenv("CAPSULE_BUILD_ISOLATION", "", 1); /* as not set */
    setenv("CAPSULE_BUILD_REGISTRY_MIRRORS", "docker.io", 1);
    assert_fails(settings_load_files(files, 1, true, &s, &p, &err), &err, CB_E_CONFIG, "2 errors");
    CB_AUTO_FREE char *said = print(&p);
    assert_string_equal(said,
                        "environment: CAPSULE_BUILD_PULL: expected one of always, missing, never, "
                        "found \"often\"\n"
                        "environment: CAPSULE_BUILD_REGISTRY_MIRRORS: expected HOST=URL such as "
                        "docker.io=http://127.0.0.1:5000, found \"docker.io\"\n");
    config_problems_release(&p);
    clean_environment();
}

static void test_the_user_file_follows_xdg(void **state)
{
    clean_environment();
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/capsule-build", (char *)*state);
    assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
    free(file(dir, "config.yaml", "kernel: /from/xdg\n"));
    CB_AUTO_FREE char *over = file(dir, "over.yaml", "pull: never\n");
    const char *before = getenv("XDG_CONFIG_HOME");
    CB_AUTO_FREE char *saved = cb_xstrdup0(before);
    setenv("XDG_CONFIG_HOME", *state, 1);
    struct settings *s = NULL;
    struct config_problems p = {0};
    assert_ok(settings_load(over, &s, &p, &err), &err);
    assert_string_equal(s->kernel, "/from/xdg");
    assert_string_equal(s->pull, "never");
    settings_free(s);
    if (saved)
        setenv("XDG_CONFIG_HOME", saved, 1);
    else
        unsetenv("XDG_CONFIG_HOME");
    config_problems_release(&p);
}

static void test_wrong_settings_are_explained(void **state)
{
    clean_environment();
    CB_AUTO_FREE char *a =
        file(*state, "a.yaml",
             "home: relative\n"
             "debian_miror: http://x\n"
             "debian_mirror: ftp://x\n"
             "isolation: docker\n"
             "pull: yes\n"
             "allow_host_network: on\n"
             "registries:\n"
             "  \"http://x\": {}\n"
             "  docker.io: {mirror: \"http://user:pw@x\", ca_file: x, password: [s3cret]}\n"
             "  ghcr.io: mirror\n");
    CB_AUTO_FREE char *b = file(*state, "b.yaml", "- a\n");
    const char *files[] = {a, b};
    static const char *const words[] = {
        "a.yaml:1:7: home: expected an absolute path, found relative",
        "a.yaml:2:1: debian_miror: unknown key \"debian_miror\"; did you mean \"debian_mirror\"?",
        "a.yaml:3:16: debian_mirror: expected a URL",
        "a.yaml:4:12: isolation: expected one of auto, vm, container, found docker",
        "a.yaml:5:7: pull: expected one of always, missing, never, found yes",
        "a.yaml:6:21: allow_host_network: expected true or false, found on; write true",
        "a.yaml:8:3: registries[\"http://x\"]: expected a registry's host",
        "a.yaml:9:23: registries[\"docker.io\"].mirror: expected a URL",
        "a.yaml:9:52: registries[\"docker.io\"].ca_file: expected an absolute path, found x",
        "a.yaml:9:65: registries[\"docker.io\"].password: expected a text\n",
        "a.yaml:10:12: registries[\"ghcr.io\"]: expected a map, found mirror",
        "b.yaml:1:1: expected a map of settings, found a list"};
    struct settings *s = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_fails(settings_load_files(files, 2, true, &s, &p, &err), &err, CB_E_CONFIG, "12 errors");
    CB_AUTO_FREE char *said = print(&p);
    const char *at = said;
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        const char *found = strstr(at, words[i]); /* in the order of the files */
        if (!found)
            fail_msg("not said: %s\nbut: %s", words[i], said);
        at = found;
    }
    assert_null(strstr(said, "s3cret"));
    assert_null(strstr(said, ":pw"));
    config_problems_release(&p);
}

static void test_mirrors_of_the_command_line(void **state)
{
    (void)state;
    struct settings *s = cb_xcalloc(1, sizeof(*s));
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(settings_add_mirror(s, "docker.io=http://127.0.0.1:5000", &err), &err);
    assert_ok(settings_add_mirror(s, "Docker.io=https://m.example/cache/", &err), &err);
    assert_int_equal(s->n_registries, 1);
    assert_string_equal(s->registries[0].mirror, "https://m.example/cache");
    static const char *const bad[] = {"",
                                      "docker.io",
                                      "=http://x",
                                      "docker.io=",
                                      "docker.io=x",
                                      "docker.io=ftp://x",
                                      "docker.io=http://",
                                      "docker.io=http://a b",
                                      "docker.io=http://u@x",
                                      "docker.io=http://x/?q",
                                      "docker.io=http://x:99999",
                                      "docker.io=http://x:0",
                                      "docker.io=http://x:",
                                      "a/b=http://x"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_fails(settings_add_mirror(s, bad[i], &err), &err, CB_E_CONFIG, "expected HOST=URL");
    settings_free(s);
}

static void test_a_home_is_needed(void **state)
{
    (void)state;
    clean_environment();
    if (geteuid() != 0)
        skip(); /* an account without a home can only be tried on by root */
    CB_AUTO_FREE char *home = cb_xstrdup0(getenv("HOME"));
    CB_AUTO_FREE char *xdg = cb_xstrdup0(getenv("XDG_DATA_HOME"));
    unsetenv("HOME");
    unsetenv("XDG_DATA_HOME");
    struct settings *s = NULL;
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_int_equal(seteuid(54321), 0);
    int rc = settings_load_files(NULL, 0, false, &s, &p, &err);
    assert_int_equal(seteuid(0), 0);
    if (home)
        setenv("HOME", home, 1);
    if (xdg)
        setenv("XDG_DATA_HOME", xdg, 1);
    CB_AUTO_FREE char *said = print(&p);
    config_problems_release(&p);
    assert_fails(rc, &err, CB_E_CONFIG, "set CAPSULE_BUILD_HOME to the folder");
    assert_non_null(strstr(said, "HOME: not set"));
}

/* Files of tests/data/settings: which are right, and what is said about the wrong ones
 * (CB_REFRESH=1 writes that anew). */
static void test_the_corpus(void **state)
{
    (void)state;
    clean_environment();
    assert_int_equal(chdir(CB_SOURCE_DIR "/tests/data/settings"), 0);
    static const char *const folders[] = {"good", "bad"};
    for (size_t k = 0; k < 2; k++) {
        struct dirent **entries = NULL;
        int n = scandir(folders[k], &entries, NULL, alphasort);
        assert_true(n > 5);
        for (int i = 0; i < n; i++) {
            CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", folders[k], entries[i]->d_name);
            const char *dot = strrchr(entries[i]->d_name, '.');
            bool of_corpus = dot && (strcmp(dot, ".yaml") == 0 || strcmp(dot, ".json") == 0);
            free(entries[i]);
            if (!of_corpus)
                continue;
            const char *files[] = {path};
            struct settings *s = NULL;
            struct config_problems p = {0};
            CB_AUTO_ERROR err = CB_ERROR_INIT;
            int rc = settings_load_files(files, 1, true, &s, &p, &err);
            CB_AUTO_FREE char *said = print(&p);
            config_problems_release(&p);
            settings_free(s);
            if (rc != (k ? -CB_E_CONFIG : 0))
                fail_msg("%s: %s", path, k ? "is accepted" : said);
            if (!k)
                continue;
            cb_error_clear(&err);
            CB_AUTO_FREE char *expect = cb_xasprintf("%s.expect", path);
            CB_AUTO_BUF want = CB_BUF_INIT(0);
            if (getenv("CB_REFRESH")) {
                assert_ok(cb_write_file(expect, said, strlen(said), 0644, &err), &err);
                continue;
            }
            assert_ok(cb_read_file(expect, 1u << 20, &want, &err), &err);
            assert_string_equal(said, want.data ? want.data : "");
        }
        free(entries);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_proxy_and_authorities),
        cmocka_unit_test(test_a_misspelt_variable_is_a_warning),
        test_in_dir(test_numbers_and_booleans_of_the_environment),
        test_in_dir(test_later_files_win_field_by_field),
        test_in_dir(test_the_environment_is_over_files),
        test_in_dir(test_the_user_file_follows_xdg),
        test_in_dir(test_wrong_settings_are_explained),
        cmocka_unit_test(test_mirrors_of_the_command_line),
        cmocka_unit_test(test_a_home_is_needed),
        cmocka_unit_test(test_the_corpus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
