/* shell: look at what a failed command left. Its supervisor's part is a look into the queue; the
 * rest talks to a guest, so it is here. */
#include "builder/builder.h"
#include "cli/cli.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static int resize_pipe[2] = {-1, -1};

struct screen {
    bool terminal; /* stdin and stdout are one */
    bool raw;
    struct termios before;
};

static void on_stop(int sig)
{
    (void)sig;
    build_cancel();
}

static void on_resize(int sig)
{
    int saved = errno;
    (void)sig;
    (void)!write(resize_pipe[1], "x", 1);
    errno = saved;
}

static void give_size(void *arg, unsigned *rows, unsigned *cols)
{
    struct winsize w;
    (void)arg;
    if (ioctl(STDIN_FILENO, TIOCGWINSZ, &w) == 0) {
        *rows = w.ws_row;
        *cols = w.ws_col;
    }
}

static void on_output(void *arg, int stream, const void *data, size_t len)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    (void)arg;
    if (cb_write_all(stream == 2 ? STDERR_FILENO : STDOUT_FILENO, data, len, &err) < 0)
        build_cancel(); /* nobody reads us any more */
}

static void on_note(void *arg, const char *text)
{
    const struct screen *s = arg;
    fputs("capsule-build: ", stderr);
    cli_put_text(stderr, text, "");
    fputs(s->raw ? "\r\n" : "\n", stderr);
}

/* From here on every key is the guest's: Ctrl-C too. */
static void on_ready(void *arg, const char *text)
{
    struct screen *s = arg;
    if (!s->terminal)
        return;
    on_note(s, text);
    if (tcgetattr(STDIN_FILENO, &s->before) < 0)
        return;
    struct termios t = s->before;
    cfmakeraw(&t);
    s->raw = tcsetattr(STDIN_FILENO, TCSADRAIN, &t) == 0;
}

static void catch_signals(void)
{
    struct sigaction stop = {.sa_handler = on_stop}, resize = {.sa_handler = on_resize};
    (void)sigaction(SIGINT, &stop, NULL);
    (void)sigaction(SIGTERM, &stop, NULL);
    (void)sigaction(SIGHUP, &stop, NULL);
    if (pipe2(resize_pipe, O_CLOEXEC | O_NONBLOCK) == 0)
        (void)sigaction(SIGWINCH, &resize, NULL);
}

static int run(const struct workload_config *c, struct settings *s, const char *id)
{
    CB_AUTO_FREE char *unique = cb_xasprintf("shell-%d", (int)getpid());
    CB_AUTO_FREE char *work = cli_work_dir(s, unique);
    struct screen screen = {.terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    catch_signals();
    const struct shell_request r = {.build_id = id,
                                    .work_dir = work,
                                    .input = STDIN_FILENO,
                                    .size = screen.terminal ? give_size : NULL,
                                    .resized = resize_pipe[0],
                                    .term = getenv("TERM"),
                                    .output = on_output,
                                    .note = on_note,
                                    .ready = on_ready,
                                    .arg = &screen};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = build_shell(c, s, &r, &err);
    if (screen.raw)
        (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &screen.before);
    if (rc >= 0)
        return rc;
    return err.code == CB_E_CANCELED ? EXIT_INTERRUPTED : cli_fail(&err);
}

/* Why there is nothing to look at. */
static int refuse(const struct settings *s, const struct build_record *r, struct cb_error *err)
{
    switch (r->status) {
    case BUILD_QUEUED:
    case BUILD_RUNNING:
        cb_fail(err, CB_E_CONFLICT, "build %s of %s is not over yet", r->id, r->name);
        return cb_hint(err, "`capsule-build logs -f %s` follows it", r->id);
    case BUILD_SUCCESS:
        cb_fail(err, CB_E_CONFIG, "build %s of %s did not fail", r->id, r->name);
        return cb_hint(err, "`capsule-build boot %s` boots what it made", r->name);
    case BUILD_CANCELLED:
        return cb_fail(err, CB_E_NOTFOUND,
                       "build %s of %s was interrupted: a state is kept when a command fails",
                       r->id, r->name);
    case BUILD_FAILED: break;
    }
    if (kept_is_there(s->home, r->id))
        return 0;
    cb_fail(err, CB_E_NOTFOUND,
            "of build %s of %s no state is kept: no command failed in it, or the state is gone (%u "
            "are kept, for a week)",
            r->id, r->name, (unsigned)s->keep_failed);
    return cb_hint(err, "`capsule-build logs %s` has what it said", r->id);
}

static int shell(struct cli_args *a, struct settings *s, struct queue *q)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct build_record r = {0};
    struct workload_config *c = NULL;
    char id[BUILD_ID_LEN + 1];
    if (queue_find(q, a->words.v[0], id, &err) < 0 || queue_get(q, id, &r, &err) < 0)
        return cli_fail(&err);
    int rc = refuse(s, &r, &err);
    if (rc == 0)
        rc = cli_config_of(&r, &c, &err);
    rc = rc < 0 ? cli_fail(&err) : run(c, s, id);
    config_free(c);
    build_record_release(&r);
    return rc;
}

int cmd_shell(struct cli_args *a)
{
    return cli_with_queue(a, shell);
}
