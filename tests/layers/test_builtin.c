/* minimal-debian, made from the archive: what is in it, and that it is made once. */
#include "layers/registry_check.h"

#include <archive.h>
#include <archive_entry.h>

static char mirror[] = "http://deb.debian.org/debian";

/* The layer's entries by name: what must be there, what must not. */
static void check_entries(struct world *w, const struct layer_blob *layer)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static const char *const none[] = {"etc/resolv.conf", "etc/hostname", "etc/apt/sources.list",
                                       "var/log/dpkg.log", "var/cache/ldconfig/aux-cache"};
    static const char *const empty[] = {"var/lib/apt/lists/",
                                        "var/cache/apt/archives/",
                                        "var/log/",
                                        "etc/machine-id",
                                        "proc/",
                                        "sys/",
                                        "run/",
                                        "tmp/"};
    CB_AUTO_FD fd = store_blob_open(w->store, &layer->digest, NULL, &err);
    assert_ok(fd, &err);
    struct archive *a = archive_read_new();
    assert_int_equal(archive_read_support_filter_zstd(a), ARCHIVE_OK);
    assert_int_equal(archive_read_support_format_tar(a), ARCHIVE_OK);
    assert_int_equal(archive_read_open_fd(a, fd, 1 << 16), ARCHIVE_OK);
    struct archive_entry *e;
    size_t n = 0;
    bool bash = false, sources = false, machine = false;
    while (archive_read_next_header(a, &e) == ARCHIVE_OK) {
        const char *name = archive_entry_pathname(e);
        name += strncmp(name, "./", 2) == 0 ? 2 : 0;
        n++;
        for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++)
            assert_string_not_equal(name, none[i]);
        for (size_t i = 0; i < sizeof(empty) / sizeof(empty[0]); i++)
            if (strncmp(name, empty[i], strlen(empty[i])) == 0 &&
                archive_entry_filetype(e) == AE_IFREG && archive_entry_size(e) != 0)
                fail_msg("%s is not empty", name);
        bash = bash || strcmp(name, "bin/bash") == 0 || strcmp(name, "usr/bin/bash") == 0;
        machine = machine || strcmp(name, "etc/machine-id") == 0;
        if (strcmp(name, "etc/apt/sources.list.d/debian.sources") == 0) {
            char text[2048] = "";
            assert_true(archive_read_data(a, text, sizeof(text) - 1) > 0);
            assert_non_null(strstr(text, "URIs: http://deb.debian.org/debian\n"));
            assert_non_null(strstr(text, "Suites: bookworm bookworm-updates\n"));
            assert_int_equal(archive_entry_perm(e), 0644);
            sources = true;
        }
    }
    assert_true(bash && sources && machine && n > 5000);
    archive_read_free(a);
}

/* Another process that wants it at the same time. Its status: 0 it waited, 1 it made it, 2 it
 * failed. */
static pid_t start_rival(const char *dir)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct world w;
    struct base_image b;
    world_open(&w, dir);
    w.settings.debian_mirror = mirror;
    if (world_resolve(&w, "minimal-debian", PULL_MISSING, &b, &err) < 0)
        _exit(2);
    _exit(w.notes.data && strstr(w.notes.data, "making minimal-debian from") ? 1 : 0);
}

static void test_it_is_made_once(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct world w;
    struct base_image b, again;
    world_open(&w, *state);
    w.settings.debian_mirror = mirror;
    pid_t rival = start_rival(*state);
    assert_true(rival > 0);
    int rc = world_resolve(&w, "minimal-debian", PULL_MISSING, &b, &err);
    int status = 0;
    assert_int_equal(waitpid(rival, &status, 0), rival);
    if (rc == -CB_E_NET || rc == -CB_E_TIMEOUT) {
        printf("skipped: the archive cannot be reached: %s\n", err.msg);
        world_close(&w);
        skip();
    }
    assert_ok(rc, &err);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 2);
    bool mine = w.notes.data && strstr(w.notes.data, "making minimal-debian from");
    assert_int_equal(mine, WEXITSTATUS(status) == 0); /* one of the two, not both */
    if (mine)
        assert_notes(&w, "mmdebstrap: installing essential packages");
    assert_int_equal(b.n_layers, 1);
    assert_string_equal(b.layers[0].media_type, OCI_LAYER_ZSTD);
    assert_string_equal(b.config.cmd.v[0], "bash");
    assert_string_equal(b.config.architecture, "amd64");
    assert_true(strncmp(b.config.env.v[0], "PATH=/usr/local/sbin:", 21) == 0);
    assert_ok(world_fetch(&w, &b, &err), &err);
    check_entries(&w, &b.layers[0]);

    /* from then on nobody is asked, whatever the policy */
    cb_buf_clear(&w.notes);
    static char nowhere[] = "http://127.0.0.1:1/debian";
    w.settings.debian_mirror = nowhere;
    assert_ok(world_resolve(&w, "minimal-debian", PULL_ALWAYS, &again, &err), &err);
    assert_true(cb_digest_eq(&again.manifest, &b.manifest));
    assert_int_equal(w.notes.len, 0);
    base_image_release(&again);
    assert_ok(world_resolve(&w, "minimal-debian", PULL_NEVER, &again, &err), &err);
    base_image_release(&again);

    /* a renewal that fails leaves what there is */
    assert_fails(image_builtin_renew(w.store, &w.settings, "minimal-debian", &w.progress, &err),
                 &err, CB_E_NET, "image minimal-debian: 127.0.0.1:1 cannot be reached");
    assert_ok(world_resolve(&w, "minimal-debian", PULL_ALWAYS, &again, &err), &err);
    base_image_release(&again);
    base_image_release(&b);
    world_close(&w);
}

static void test_failures(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct world w;
    struct base_image b;
    static char nowhere[] = "http://127.0.0.1:1/debian", no_url[] = "/srv/debian";
    world_open(&w, *state);
    w.settings.debian_mirror = nowhere;
    assert_fails(world_resolve(&w, "minimal-debian", PULL_ALWAYS, &b, &err), &err, CB_E_NET,
                 "image minimal-debian: 127.0.0.1:1 cannot be reached");
    w.settings.debian_mirror = no_url;
    assert_fails(world_resolve(&w, "minimal-debian", PULL_ALWAYS, &b, &err), &err, CB_E_CONFIG,
                 "no http or https address");

    /* a program of that name that fails as mmdebstrap does */
    CB_AUTO_FREE char *bin = cb_xasprintf("%s/mmdebstrap", (char *)*state);
    CB_AUTO_FREE char *path = cb_xasprintf("%s:%s", (char *)*state, getenv("PATH"));
    CB_AUTO_FREE char *old = cb_xstrdup(getenv("PATH"));
    static const struct {
        const char *says;
        enum cb_code code;
        const char *hint;
    } cases[] = {
        {"E: Failed to fetch http://x/y  Could not resolve 'x'", CB_E_NET, "network"},
        {"E: cannot write: No space left on device", CB_E_ENV, "Free about"},
        {"W: GPG error: NO_PUBKEY 1234", CB_E_ENV, "debian-archive-keyring"},
        {"E: cannot find an entry for the user in /etc/subuid", CB_E_ENV, "uidmap"},
        {"E: something else", CB_E_SYS, NULL},
    };
    assert_int_equal(setenv("PATH", path, 1), 0);
    w.settings.debian_mirror = mirror;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_FREE char *script = cb_xasprintf(
            "#!/bin/sh\necho 'I: trying'>&2\necho \"%s\" >&2\nexit 1\n", cases[i].says);
        assert_ok(cb_write_file(bin, script, strlen(script), 0755, &err), &err);
        int rc = world_resolve(&w, "minimal-debian", PULL_ALWAYS, &b, &err);
        if (rc == -CB_E_NET && !strstr(err.msg, "mmdebstrap"))
            break; /* no archive to begin with */
        if (cases[i].hint && (!err.hint || !strstr(err.hint, cases[i].hint)))
            fail_msg("%s: hint \"%s\"", cases[i].says, err.hint ? err.hint : "");
        assert_non_null(strstr(err.msg, cases[i].says));
        assert_fails(rc, &err, cases[i].code, "mmdebstrap: exit status 1");
        assert_notes(&w, "mmdebstrap: trying");
    }
    assert_int_equal(setenv("PATH", old, 1), 0);
    cb_error_clear(&err);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_it_is_made_once),
        test_in_dir(test_failures),
    };
    CB_AUTO_FREE char *program = cb_find_program("mmdebstrap");
    if (!program) {
        printf("skipped: mmdebstrap is not installed\n");
        return 77;
    }
    return cmocka_run_group_tests_name("layers/builtin", tests, NULL, NULL);
}
