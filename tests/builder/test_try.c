/* Commands that may be tried again work on an upper of their own. What they leave must be what they
 * would have left without one, and nothing when they are dropped; what `start` keeps goes on. */
#include "builder/agent_fixture.h"

/* Two scripts of one layer: the second one is what may be tried again. */
struct pair {
    const char *first, *second;
};
static const struct pair pairs[] = {
    {"true", "true"},
    {"echo a >/data/new", "echo b >>/data/new"},
    {"echo a >/data/new", "rm /data/new"},
    {"rm /data/one", "echo again >/data/one"},
    {"rm /data/one", "mkdir /data/one; echo f >/data/one/f"},
    {"rm -r /data/sub", "mkdir /data/sub; echo n >/data/sub/n"},
    {"rm -r /data/sub", "echo file >/data/sub"},
    {"rm -r /data/sub; mkdir /data/sub; echo n >/data/sub/n", "echo m >/data/sub/m"},
    {"rm -r /data/sub; mkdir /data/sub; echo n >/data/sub/n", "rm -r /data/sub"},
    {"rm -r /data/sub; mkdir /data/sub; echo n >/data/sub/n",
     "rm -r /data/sub; mkdir /data/sub; echo m >/data/sub/m"},
    {"mkdir -p /data/a/b/c; echo 1 >/data/a/b/c/f", "rm -r /data/a/b; echo 2 >/data/a/b"},
    {"mkdir -p /data/a/b/c; echo 1 >/data/a/b/c/f", "rm -r /data/a; mkdir -p /data/a/b"},
    {"mkdir -p /data/a/b/c; echo 1 >/data/a/b/c/f", "echo 2 >/data/a/b/c/g; chmod 700 /data/a/b"},
    {"mkdir -p /data/a/b/c; echo 1 >/data/a/b/c/f", "mv /data/a /data/z"},
    {"echo x >/data/sub/more", "rm -r /data/sub"},
    {"chmod 700 /data/sub", "chmod 755 /data/sub; chown 5:6 /data/sub"},
    {"chmod 600 /data/one", "chmod 644 /data/one; touch -d @1 /data/one"},
    {"setfattr -n user.a -v 1 /data/sub; setfattr -n user.b -v 2 /data/sub",
     "setfattr -x user.a /data/sub; setfattr -n user.c -v 3 /data/sub"},
    {"ln -s one /data/l", "rm /data/l; mkdir /data/l; ln -s ../two /data/l/l"},
    {"cd /data; echo h >a; ln a b", "cd /data; ln b c; rm a"}, /* writing would part the names */
    {"mkfifo /data/p; mknod /data/d c 5 1", "rm /data/p /data/d; mkfifo /data/d; touch /data/p"},
    {"rm -r /opaque/x", "mkdir -p /opaque/x/y; echo 1 >/opaque/x/y/z"},
    {"rm -r /opaque", "mkdir /opaque; mkdir /opaque/x"},
    {"rm /etc/resolv.conf", "echo nameserver 192.0.2.1 >/etc/resolv.conf"},
    {"for i in $(seq 40); do mkdir -p /data/t/$i/$i; echo $i >/data/t/$i/$i/f; done",
     "for i in $(seq 1 2 40); do rm -r /data/t/$i; done; for i in $(seq 1 4 40); do "
     "mkdir /data/t/$i; done"},
};

static void start_in(struct agent_fixture *f, const char *dir)
{
    fixture_begin_in(f, dir, fixture_image, NULL);
    fixture_layer(f);
}

static void try_again(struct agent_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(session_try(f->s, &err), &err);
}

static void keep(struct agent_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(session_try_keep(f->s, &err), &err);
}

#define LOOK "cd / && find data opaque etc -printf '%M %U:%G %p %l %s\\n' | grep -v ' 4096$' | sort"

/* What the layer shows, and its diff; one agent at a time: a second one would hold the first one's
 * stream open. Owned. */
static char *outcome(const struct pair *p, bool tries)
{
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    fixture_ok(&f, p->first);
    if (tries) {
        try_again(&f);
        fixture_ok(&f, "rm -rf /data /opaque /etc/passwd; mkdir /data; echo half >/data/done");
        try_again(&f); /* what the first attempt did is gone */
    }
    fixture_ok(&f, p->second);
    if (tries)
        keep(&f);
    cb_buf_clear(&f.out);
    fixture_ok(&f, LOOK);
    CB_AUTO_FREE char *diff = fixture_diff(&f);
    char *text = cb_xasprintf("%s%s", f.out.data, diff);
    fixture_stop(&f);
    return text;
}

static void test_what_is_kept_is_what_would_have_been_there(void **state)
{
    (void)state;
    int failed = 0;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        CB_AUTO_FREE char *want = outcome(&pairs[i], false);
        CB_AUTO_FREE char *got = outcome(&pairs[i], true);
        if (strcmp(want, got) != 0) {
            print_error("%s | %s:\n--- without a try\n%s--- with one\n%s---\n", pairs[i].first,
                        pairs[i].second, want, got);
            failed++;
        }
    }
    assert_int_equal(failed, 0);
}

static void test_many_tries_in_many_layers(void **state)
{
    (void)state;
    struct agent_fixture f;
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    for (int l = 0; l < 12; l++) {
        CB_AUTO_BUF want = CB_BUF_INIT(4096);
        (void)cb_buf_adds(&want, "dir 0755 0:0 data\n");
        for (int c = 0; c < 4; c++) {
            CB_AUTO_FREE char *script = cb_xasprintf("test $(ls /data | grep -c ^f-) = %d && "
                                                     "echo %d >/data/f-%02d-%d",
                                                     l * 4 + c, c, l, c);
            try_again(&f);
            fixture_ok(&f, script);
            keep(&f);
            (void)cb_buf_addf(&want, "file 0644 0:0 data/f-%02d-%d '%d'\n", l, c, c);
        }
        CB_AUTO_FREE char *diff = fixture_diff(&f);
        assert_string_equal(diff, want.data);
        if (l < 11)
            fixture_layer(&f);
    }
    fixture_stop(&f);
}

static void test_order_is_kept(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    struct guest_diff d;
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    assert_fails(session_try_keep(f.s, &err), &err, CB_E_BUG, "TRY_KEEP out of order");
    cb_error_clear(&err);
    try_again(&f);
    assert_fails(session_layer_end(f.s, &d, &err), &err, CB_E_BUG, "LAYER_END out of order");
    fixture_stop(&f);
}

static int started(struct agent_fixture *f, const char *script, uint32_t step,
                   struct step_result *r)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const struct guest_step g = {.step = step, .script = script};
    int rc = session_start(f->s, &g, 200, r, &err);
    assert_ok(rc, &err);
    return rc;
}

static void test_what_was_started_goes_on(void **state)
{
    (void)state;
    struct agent_fixture f;
    struct step_result r = {0};
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    assert_int_equal(started(&f,
                             "echo began; trap 'echo over; exit 3' TERM; echo $$ >/run/pid; "
                             "while :; do sleep 0.05; done",
                             7, &r),
                     1);
    assert_string_equal(f.out.data, "began\n");
    fixture_ok(&f, "kill -0 $(cat /run/pid)");
    fixture_ok(
        &f, "kill $(cat /run/pid); while kill -0 $(cat /run/pid) 2>/dev/null; do sleep 0.02; done");
    fixture_ok(&f, "true"); /* its end came before this one's */
    assert_non_null(f.notes.data);
    assert_non_null(strstr(f.notes.data, "which was started, ended with exit code 3"));
    assert_non_null(strstr(f.notes.data, "over"));
    fixture_stop(&f);
}

static void test_what_ends_at_once_did_not_start(void **state)
{
    (void)state;
    struct agent_fixture f;
    struct step_result r = {0};
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    assert_int_equal(started(&f, "echo no >&2; exit 9", 3, &r), 0);
    assert_int_equal(r.exit_code, 9);
    assert_string_equal(f.err.data, "no\n");
    assert_int_equal(started(&f, "/no/such/program", 4, &r), 0);
    assert_int_equal(r.exit_code, 127);
    fixture_stop(&f);
}

static void test_a_step_has_its_own_user_and_folder(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    struct step_result r;
    struct config_pair one[] = {{(char[]){"A"}, (char[]){"1"}}, {(char[]){"B"}, (char[]){"1"}}};
    struct config_pair two[] = {{(char[]){"B"}, (char[]){"2"}}};
    const struct config_pairs env = {.v = one, .n = 2}, over = {.v = two, .n = 1};
    fixture_begin(&f, fixture_image, NULL);
    fixture_layer(&f);
    struct guest_step g = {.step = 5,
                           .script = "echo $(id -u) $(pwd) $A $B",
                           .env = &env,
                           .over_env = &over,
                           .user = "12:34",
                           .workdir = "/srv/new"};
    assert_ok(session_step(f.s, &g, &r, &err), &err);
    assert_string_equal(f.out.data, "12 /srv/new 1 2\n");
    g.as_root = true;
    cb_buf_clear(&f.out);
    assert_ok(session_step(f.s, &g, &r, &err), &err);
    assert_string_equal(f.out.data, "0 /srv/new 1 2\n");
    fixture_stop(&f);
}

static void test_drives_hold_what_their_commands_left(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    CB_AUTO_FREE char *drive = cb_xasprintf("%s/case-drives/drives/0", fixture_work);
    assert_ok(cb_mkdir_p(drive, 0755, &err), &err);
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/case-drives", fixture_work);
    start_in(&f, dir);
    fixture_ok(&f, "echo layer >/data/new; ln -s /data /link");
    CB_AUTO_STRV paths = {0};
    cb_strv_add(&paths, "/link/deep/drive"); /* links are the layer's own */
    assert_ok(session_drives(f.s, 0, &paths, "app", &err), &err);
    fixture_ok(&f, "test $(stat -c %u:%g /data/deep/drive) = 1234:1234; cat /data/new; "
                   "echo drive >/data/deep/drive/file");
    try_again(&f); /* the layer is as it was, the drive is not */
    fixture_ok(&f, "echo more >>/data/deep/drive/file; echo half >/data/half");
    try_again(&f);
    fixture_ok(&f, "test ! -e /data/half; echo whole >/data/whole; cat /data/deep/drive/file");
    assert_string_equal(f.out.data, "drive\nmore\n");
    keep(&f);
    assert_fails(session_drives(f.s, 0, &paths, NULL, &err), &err, CB_E_BUG, "DRIVES out of order");
    cb_error_clear(&err);
    CB_AUTO_FREE char *diff = fixture_diff(&f);
    assert_string_equal(diff, "dir 0755 0:0 .\ndir 0755 0:0 data\ndir 0755 0:0 data/deep\n"
                              "dir 0755 0:0 data/deep/drive\nfile 0644 0:0 data/new 'layer'\n"
                              "file 0644 0:0 data/whole 'whole'\nsymlink 0777 0:0 link -> /data\n");
    fixture_layer(&f);
    fixture_ok(&f, "test -z \"$(ls /data/deep/drive)\""); /* the next layer has none */
    fixture_stop(&f);
}

/* What a layer left before, as the host makes it: its commands go on as if they were of one layer.
 */
static void test_a_layer_goes_on_from_what_it_left(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    struct cb_proc_result res = {0};
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/case-again", fixture_work);
    static const char script[] =
        "set -e; u=$1/scratch/p0; mkdir -p $u/data $u/root $u/opaque; echo new >$u/data/new\n"
        "mknod $u/data/one c 0 0; echo changed >$u/root/f\n"
        "chmod 700 $u/root; setfattr -n trusted.capsule.implicit -v y $u\n"
        "setfattr -n trusted.capsule.implicit -v y $u/data\n"
        "setfattr -n trusted.overlay.opaque -v y $u/opaque; echo o >$u/opaque/o\n";
    const struct cb_proc_spec spec = {
        .argv = (const char *const[]){"sh", "-c", script, "sh", dir, NULL}};
    assert_ok(cb_proc_run(&spec, NULL, 4096, 60000, &res, &err), &err);
    assert_ok(cb_proc_check(&res, "make the earlier result", &err), &err);
    cb_proc_result_release(&res);
    fixture_begin_in(&f, dir, fixture_image, NULL);
    const struct guest_layer bad = {.name = "layer", .previous = "../p0"};
    assert_fails(session_layer_begin(f.s, &bad, &err), &err, CB_E_BUG,
                 "cannot be an earlier result");
    cb_error_clear(&err);
    const struct guest_layer l = {.name = "layer", .previous = "p0"};
    assert_ok(session_layer_begin(f.s, &l, &err), &err);
    fixture_ok(&f, "cat /data/new; test ! -e /data/one; cat /data/two; test \"$(ls /opaque)\" = o; "
                   "test $(stat -c %a /data) = 755; echo more >>/data/new");
    CB_AUTO_FREE char *diff = fixture_diff(&f);
    assert_string_equal(diff, "file 0644 0:0 data/new 'new\nmore'\n"
                              "file 0000 0:0 data/.wh.one ''\ndir 0755 0:0 opaque\n"
                              "file 0000 0:0 opaque/.wh..wh..opq ''\nfile 0644 0:0 opaque/o 'o'\n"
                              "dir 0700 0:0 root\nfile 0644 0:0 root/f 'changed'\n");
    fixture_stop(&f);
}

static void test_a_drive_that_cannot_be_mounted_is_named(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct agent_fixture f;
    CB_AUTO_FREE char *drive = cb_xasprintf("%s/case-bad-drive/drives/0", fixture_work);
    assert_ok(cb_mkdir_p(drive, 0755, &err), &err);
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/case-bad-drive", fixture_work);
    start_in(&f, dir);
    CB_AUTO_STRV paths = {0};
    cb_strv_add(&paths, "/data/one");
    assert_fails(session_drives(f.s, 0, &paths, NULL, &err), &err, CB_E_COMMAND,
                 "mount_path /data/one: ");
    fixture_stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_kept_is_what_would_have_been_there),
        cmocka_unit_test(test_many_tries_in_many_layers),
        cmocka_unit_test(test_order_is_kept),
        cmocka_unit_test(test_what_was_started_goes_on),
        cmocka_unit_test(test_what_ends_at_once_did_not_start),
        cmocka_unit_test(test_a_step_has_its_own_user_and_folder),
        cmocka_unit_test(test_a_layer_goes_on_from_what_it_left),
        cmocka_unit_test(test_drives_hold_what_their_commands_left),
        cmocka_unit_test(test_a_drive_that_cannot_be_mounted_is_named),
    };
    return fixture_run_tests("try", tests);
}
