#include "builder/agent_fixture.h"

#include "builder/agent/agent.h"
#include "support/cleanup.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const char image_script[] =
    "set -e; umask 022; root=$1; mkdir -p $root/bin $root/etc $root/root $root/tmp $root/var/lib\n"
    "chmod 1777 $root/tmp\n"
    "for p in bash dash cat chmod chown cp dd echo env id ln ls mkdir mkfifo mknod mv printf rm "
    "rmdir \\\n"
    "         sleep sort stat touch truncate true wc hostname grep sed setcap setfattr find seq "
    "kill stty "
    "python3; do\n"
    "  f=$(command -v $p) || continue; [ -f \"$f\" ] || f=/usr/bin/$p; [ -f \"$f\" ] || continue\n"
    "  case $p in python3) continue;; esac\n"
    "  cp -L $f $root/bin/$p\n"
    "  ldd $f | grep -o '/[^ )]*' | while read l; do mkdir -p $root${l%/*}; cp -Ln $l $root$l; "
    "done\n"
    "done\n"
    "ln -s dash $root/bin/sh\n"
    "printf 'root:x:0:0:root:/root:/bin/bash\\napp:x:1234:1234::/home/app:/bin/sh\\n' "
    ">$root/etc/passwd\n"
    "printf 'root:x:0:\\napp:x:1234:\\nextra:x:77:other,app\\n' >$root/etc/group\n"
    "printf 'root:*:19000:0:99999:7:::\\n' >$root/etc/shadow; chmod 600 $root/etc/shadow\n"
    "printf 'PATH=/usr/bin:/bin\\nexport PATH\\n' >$root/etc/profile\n"
    "mkdir -p $root/data/sub $root/opaque/x; echo one >$root/data/one; echo two >$root/data/two\n"
    "echo sub >$root/data/sub/file; echo gone >$root/opaque/x/gone; ln -s one $root/data/link\n"
    "echo hard >$root/data/hard1; ln $root/data/hard1 $root/data/hard2\n";

void fixture_make_image(const char *path)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_proc_result res = {0};
    const struct cb_proc_spec spec = {
        .argv = (const char *const[]){"sh", "-c", image_script, "sh", path, NULL}};
    assert_ok(cb_proc_run(&spec, NULL, 4096, 60000, &res, &err), &err);
    assert_ok(cb_proc_check(&res, "make the image", &err), &err);
    cb_proc_result_release(&res);
}

/* In the child: what a runtime would do, then the agent. */
static _Noreturn void run_agent(const char *dir, const char *image, enum agent_kind kind, int fd)
{
    char scratch[512], output[512], drives[512], first[600];
    (void)snprintf(scratch, sizeof scratch, "%s/scratch", dir);
    (void)snprintf(output, sizeof output, "%s/output", dir);
    (void)snprintf(drives, sizeof drives, "%s/drives", dir);
    (void)snprintf(first, sizeof first, "%s/0", drives);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0UL, 0UL, 0UL);
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        _exit(77);
    if (access(first, F_OK) == 0 && mount("tmpfs", first, "tmpfs", 0, NULL) < 0)
        _exit(77);
    if (kind == AGENT_STATIC) {
        if (dup2(fd, 3) < 0)
            _exit(77);
        (void)execl(CB_BINARY_DIR "/capsule-agent", "capsule-agent", "build", "--lower", image,
                    "--scratch", scratch, "--output", output, "--fd", "3", (char *)NULL);
        _exit(77);
    }
    struct build_mode m = {.lower = image, .scratch = scratch, .output = output, .drives = drives};
    struct chan c;
    chan_init(&c, fd, FRAME_REQUEST_MAX);
    int rc = build_loop(&m, &c);
    chan_release(&c);
    _exit(rc);
}

static void on_output(void *arg, uint32_t step, int stream, const void *data, size_t len)
{
    struct agent_fixture *f = arg;
    (void)step;
    (void)cb_buf_add(stream == STREAM_STDOUT ? &f->out : &f->err, data, len);
}

static void on_note(void *arg, const char *text)
{
    struct agent_fixture *f = arg;
    (void)cb_buf_addf(&f->notes, "%s\n", text);
}

void fixture_start(struct agent_fixture *f, const char *dir, const char *image,
                   enum agent_kind kind)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    *f = (struct agent_fixture){.dir = cb_xstrdup(dir)};
    cb_buf_init(&f->out, 16u << 20);
    cb_buf_init(&f->err, 1u << 20);
    cb_buf_init(&f->notes, 1u << 20);
    CB_AUTO_FREE char *scratch = cb_xasprintf("%s/scratch", dir);
    CB_AUTO_FREE char *output = cb_xasprintf("%s/output", dir);
    assert_ok(cb_mkdir_p(scratch, 0755, &err), &err);
    assert_ok(cb_write_file(output, "", 0, 0600, &err), &err);
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    f->pid = fork();
    assert_true(f->pid >= 0);
    if (f->pid == 0) {
        cb_close(pair[0]); /* else the agent would never see the end of the stream */
        run_agent(dir, image, kind, pair[1]);
    }
    cb_close(pair[1]);
    const struct session_callbacks cb = {.output = on_output, .note = on_note, .arg = f};
    assert_ok(session_open(pair[0], 20000, &cb, &f->s, &err), &err);
}

void fixture_stop(struct agent_fixture *f)
{
    session_free(f->s);
    int status = 0;
    if (f->pid > 0)
        assert_int_equal(waitpid(f->pid, &status, 0), f->pid);
    cb_buf_release(&f->out);
    cb_buf_release(&f->err);
    cb_buf_release(&f->notes);
    free(f->dir);
}

void fixture_layer(struct agent_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const struct guest_layer l = {.name = "layer"};
    assert_ok(session_layer_begin(f->s, &l, &err), &err);
}

struct step_result fixture_run(struct agent_fixture *f, const char *script)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct step_result r = {0};
    static uint32_t step;
    const struct guest_step st = {.step = ++step, .script = script, .timeout_ms = 60000};
    cb_buf_clear(&f->out);
    cb_buf_clear(&f->err);
    assert_ok(session_step(f->s, &st, &r, &err), &err);
    return r;
}

char *fixture_list_tar(const char *file, uint64_t offset, uint64_t length, bool times)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_proc_result res = {0};
    CB_AUTO_FREE char *off = cb_xasprintf("%llu", (unsigned long long)offset);
    CB_AUTO_FREE char *len = cb_xasprintf("%llu", (unsigned long long)length);
    static const char script[] = CB_SOURCE_DIR "/tests/builder/list_tar.py";
    const struct cb_proc_spec spec = {
        .argv =
            (const char *const[]){"python3", script, file, off, len, times ? "mtime" : NULL, NULL}};
    assert_ok(cb_proc_run(&spec, NULL, 4u << 20, 60000, &res, &err), &err);
    assert_ok(cb_proc_check(&res, "list the diff", &err), &err);
    char *text = cb_buf_take(&res.out);
    cb_proc_result_release(&res);
    return text;
}

char *fixture_diff(struct agent_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct guest_diff d = {0};
    assert_ok(session_layer_end(f->s, &d, &err), &err);
    CB_AUTO_FREE char *output = cb_xasprintf("%s/output", f->dir);
    return fixture_list_tar(output, d.offset, d.length, false);
}

char *fixture_work, *fixture_image;

bool fixture_needs_root(void)
{
    if (geteuid() == 0)
        return false;
    (void)fprintf(stderr, "needs root: namespaces and overlay mounts\n");
    return true;
}

int fixture_make_work(void **state)
{
    (void)state;
    if (check_dir_setup((void **)&fixture_work) < 0)
        return -1;
    fixture_image = cb_xasprintf("%s/image", fixture_work);
    fixture_make_image(fixture_image);
    return 0;
}

int fixture_remove_work(void **state)
{
    (void)state;
    free(fixture_image);
    return check_dir_teardown((void **)&fixture_work);
}

char *fixture_dir(void)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    static int n;
    char *dir = cb_xasprintf("%s/case-%d", fixture_work, n++);
    assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
    return dir;
}

void fixture_begin_in(struct agent_fixture *f, const char *dir, const char *image,
                      const char *runner)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
    fixture_start(f, dir, image, AGENT_NATIVE);
    CB_AUTO_STRV env = {0};
    const struct guest_setup g = {.hostname = "capsule",
                                  .image_env = &env,
                                  .image_user = "",
                                  .image_workdir = "/",
                                  .runner_user = runner,
                                  .dns = "10.0.2.3"};
    assert_ok(session_setup(f->s, &g, &err), &err);
}

void fixture_begin(struct agent_fixture *f, const char *image, const char *runner)
{
    CB_AUTO_FREE char *dir = fixture_dir();
    fixture_begin_in(f, dir, image, runner);
}

void fixture_ok(struct agent_fixture *f, const char *script)
{
    struct step_result r = fixture_run(f, script);
    if (r.exit_code != 0)
        fail_msg("%s: exit %d: %s%s", script, r.exit_code, f->out.data ? f->out.data : "",
                 f->err.data ? f->err.data : "");
}
