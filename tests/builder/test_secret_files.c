/* Secrets as files: what commands see of them, and that a layer's diff has nothing of them,
 * whatever the image has at their places and whatever the commands do there. */
#include "builder/agent_fixture.h"

#include <sys/stat.h>

static char token[] = "the secret\n", other[] = "another\0with a NUL";

static int begin(struct agent_fixture *f, const char *const *paths, struct cb_error *err)
{
    struct guest_secret s[8] = {{0}};
    struct guest_layer l = {.name = "layer", .secretive = true, .secrets = s};
    for (size_t i = 0; paths[i]; i++) {
        s[i] = i == 0 ? (struct guest_secret){paths[i], token, sizeof(token) - 1}
                      : (struct guest_secret){paths[i], other, sizeof(other) - 1};
        l.n_secrets = i + 1;
    }
    return session_layer_begin(f->s, &l, err);
}

#define BEGIN(f, ...)                                                                              \
    do {                                                                                           \
        CB_AUTO_ERROR begin_err = CB_ERROR_INIT;                                                   \
        assert_ok(begin(f, (const char *const[]){__VA_ARGS__, NULL}, &begin_err), &begin_err);     \
    } while (0)

static void run_as(struct agent_fixture *f, const char *user, const char *script)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct step_result r = {0};
    const struct guest_step st = {.step = 1, .script = script, .user = user, .timeout_ms = 60000};
    cb_buf_clear(&f->out);
    cb_buf_clear(&f->err);
    assert_ok(session_step(f->s, &st, &r, &err), &err);
    if (r.exit_code != 0)
        fail_msg("%s as %s: exit %d: %s%s", script, user, r.exit_code,
                 f->out.data ? f->out.data : "", f->err.data ? f->err.data : "");
}

static void diff_is(struct agent_fixture *f, const char *want)
{
    CB_AUTO_FREE char *diff = fixture_diff(f);
    assert_string_equal(diff, want);
}

/* One with a name of its own below /run, one over a file of the image, one in a folder of the
 * image, and one in folders that there are not. */
static const char *const everywhere[] = {"/run/secrets/token", "/data/one", "/data/sub/new",
                                         "/root/.config/deep/er/token", NULL};
#define READ_ALL                                                                                   \
    "test \"$(cat /run/secrets/token)\" = 'the secret'; "                                          \
    "for f in /data/one /data/sub/new /root/.config/deep/er/token; do "                            \
    "test \"$(tail -c 10 $f)\" = 'with a NUL' || test \"$(wc -c <$f)\" = 18 || exit 3; done"

static void test_files_are_seen_and_not_kept(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    for (int layer = 0; layer < 2; layer++) {
        assert_ok(begin(&f, everywhere, &err), &err);
        fixture_ok(&f, "set -e; " READ_ALL);
        fixture_ok(&f,
                   "set -e; for f in /run/secrets/token /data/one /root/.config/deep/er/token; do "
                   "test \"$(stat -c %a:%u:%g $f)\" = 400:0:0; ! rm $f; ! (echo x >$f); done "
                   "2>/dev/null; test ! -e /run/.secret");
        diff_is(&f, "");
        fixture_layer(&f); /* the next layer has none */
        fixture_ok(
            &f, "set -e; test ! -e /run/secrets; test ! -e /root/.config; test ! -e /data/sub/new; "
                "test \"$(cat /data/one)\" = one");
        diff_is(&f, "");
    }
    fixture_stop(&f);
}

static void test_times_of_folders_are_as_they_were(void **state)
{
    (void)state;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    fixture_ok(
        &f,
        "stat -c %y /root /data /data/sub >/tmp/times; touch -d @5 /data/sub; touch /var/lib/x");
    free(fixture_diff(&f)); /* the layer ends */
    BEGIN(&f, "/root/new/token", "/data/sub/b", "/data/sub/a", "/data/c");
    fixture_ok(&f, "true");
    diff_is(&f, "");
    fixture_layer(&f);
    fixture_ok(&f,
               "test \"$(stat -c %Y /data/sub)\" = 5; stat -c %y /root /data >/tmp/now; "
               "head -n 2 /tmp/times >/tmp/then 2>/dev/null || sed -n 1,2p /tmp/times >/tmp/then; "
               "test \"$(cat /tmp/now)\" = \"$(cat /tmp/then)\"");
    fixture_stop(&f);
}

static void test_what_commands_make_there_is_kept(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    assert_ok(begin(&f, everywhere, &err), &err);
    fixture_ok(&f, "set -e; echo mine >/root/.config/deep/mine; echo x >/data/sub/x");
    diff_is(&f, "dir 0755 0:0 data/sub\nfile 0644 0:0 data/sub/x 'x'\n"
                "dir 0755 0:0 root\ndir 0755 0:0 root/.config\n"
                "dir 0755 0:0 root/.config/deep\nfile 0644 0:0 root/.config/deep/mine 'mine'\n");
    fixture_stop(&f);
}

static void test_tries_have_them_each(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    assert_ok(begin(&f, everywhere, &err), &err);
    fixture_ok(&f, "set -e; " READ_ALL);
    for (int i = 0; i < 3; i++) {
        assert_ok(session_try(f.s, &err), &err);
        fixture_ok(&f, "set -e; " READ_ALL "; echo $$ >/data/sub/tried");
    }
    assert_ok(session_try_keep(f.s, &err), &err);
    fixture_ok(&f, "set -e; " READ_ALL "; echo done >/data/sub/tried");
    diff_is(&f, "dir 0755 0:0 data/sub\n"
                "file 0644 0:0 data/sub/tried 'done'\n");
    fixture_stop(&f);
}

static bool exists(const struct agent_fixture *f, const char *path)
{
    CB_AUTO_FREE char *full = cb_xasprintf("%s/scratch/u0/%s", f->dir, path);
    struct stat st;
    return lstat(full, &st) == 0;
}

/* The disk of a command that failed is kept: a place for a secret is not the layer's there, either.
 */
static void test_a_disk_that_is_kept_has_none(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    assert_ok(begin(&f, everywhere, &err), &err);
    assert_int_equal(fixture_run(&f, "echo x >/data/left; exit 3").exit_code, 3);
    assert_true(exists(&f, "root/.config/deep/er/token"));
    assert_ok(session_shutdown_keeping(f.s, &err), &err);
    assert_true(exists(&f, "data/left"));
    assert_false(exists(&f, "root/.config"));
    assert_false(exists(&f, "data/sub/new"));
    assert_false(exists(&f, "run/secrets"));
    fixture_stop(&f);
}

static void test_they_are_the_users_who_runs(void **state)
{
    (void)state;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, "maker");
    BEGIN(&f, "/home/maker/.config/token");
    run_as(&f, "app", "! cat /home/maker/.config/token 2>/dev/null; test $(id -u) = 1234");
    run_as(&f, "maker", "test \"$(cat ~/.config/token)\" = 'the secret'; echo x >~/.config/own");
    run_as(&f, "0", "test \"$(cat /home/maker/.config/token)\" = 'the secret'");
    run_as(&f, "1234:77", "test \"$(stat -c %u:%g /home/maker/.config/token)\" = 1234:77");
    CB_AUTO_FREE char *diff = fixture_diff(&f);
    assert_null(strstr(diff, "token"));
    assert_non_null(strstr(diff, "home/maker/.config/own"));
    fixture_stop(&f);
}

static void test_a_command_leaves_no_core(void **state)
{
    (void)state;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    BEGIN(&f, "/run/token");
    fixture_ok(&f, "set -e; ! ulimit -c unlimited 2>/dev/null; test $(ulimit -Hc) -le 1; cd /data; "
                   "(kill -SEGV $BASHPID) || true; ls /data/core* 2>/dev/null && exit 1; true");
    diff_is(&f, "");
    fixture_stop(&f);
}

/* Links of the image lead within the image, as everywhere. */
static void test_places_that_cannot_be(void **state)
{
    (void)state;
    static const struct {
        const char *path, *said;
    } cases[] = {
        {"/data/link", "secret file /data/link: the image has something there that is no file"},
        {"/data/sub", "secret file /data/sub: the image has something there that is no file"},
        {"/data/one/x", "secret file /data/one/x: a part of this path is not a folder"},
        {"/loop/x", "secret file /loop/x: a part of this path is not a folder"},
        {"/dangling/x", "secret file /dangling/x: a part of this path is not a folder"},
        {"/data/", "a secret without an absolute path"},
        {"/", "a secret without an absolute path"},
        {"relative", "a secret without an absolute path"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct agent_fixture f;
        fixture_begin(&f, fixture_image, NULL);
        fixture_layer(&f);
        fixture_ok(&f, "ln -s loop /loop; ln -s /nowhere /dangling; ln -s /data/sub /to; "
                       "ln -s ../../../../data/sub /up");
        free(fixture_diff(&f)); /* the layer ends */
        int rc = begin(&f, (const char *const[]){cases[i].path, NULL}, &err);
        assert_true(rc == -CB_E_COMMAND || rc == -CB_E_BUG);
        assert_non_null(strstr(err.msg, cases[i].said));
        fixture_stop(&f);
    }
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    fixture_ok(
        &f,
        "ln -s /data/sub /to; ln -s ../../../../data/sub /up; mkdir -p /var; ln -s /run /var/r");
    free(fixture_diff(&f)); /* the layer ends */
    BEGIN(&f, "/to/a", "/up/b", "/var/r/c");
    fixture_ok(
        &f,
        "set -e; test \"$(cat /data/sub/a)\" = 'the secret'; test -s /data/sub/b; test -s /run/c");
    diff_is(&f, "");
    fixture_stop(&f);
}

/* What is mounted over nothing of the layer's is no place for one either. */
static void test_kernel_files_are_no_place(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct step_result r;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    BEGIN(&f, "/proc/token");
    const struct guest_step st = {.step = 1, .script = "true"};
    assert_fails(session_step(f.s, &st, &r, &err), &err, CB_E_SYS, "secret file /proc/token");
    fixture_stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files_are_seen_and_not_kept),
        cmocka_unit_test(test_times_of_folders_are_as_they_were),
        cmocka_unit_test(test_what_commands_make_there_is_kept),
        cmocka_unit_test(test_tries_have_them_each),
        cmocka_unit_test(test_a_disk_that_is_kept_has_none),
        cmocka_unit_test(test_they_are_the_users_who_runs),
        cmocka_unit_test(test_a_command_leaves_no_core),
        cmocka_unit_test(test_places_that_cannot_be),
        cmocka_unit_test(test_kernel_files_are_no_place),
    };
    return fixture_run_tests("secret files", tests);
}
