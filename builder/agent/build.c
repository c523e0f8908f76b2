/* build: the main loop of build mode. It answers the host, keeps the heartbeat going, and leaves
 * what takes time to children: the layer's init (layer.c), and a process that takes a diff out.
 * What they say comes as frames and is passed on. When the host is gone, so are they. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define OUTPUT_ALIGN 4096u
#define BLOCK_SIZE_64 0x80081272ul /* BLKGETSIZE64 of linux/fs.h */

struct build {
    const struct build_mode *mode;
    struct chan *host;
    struct setup setup;
    struct stack stack;
    struct layer_spec layer;
    struct groups groups;
    bool ready, in_layer, first_done;
    struct chan child; /* the layer's init, or the process that takes the diff out; fd -1: none */
    pid_t child_pid;
    struct stubs stubs;
    bool beginning; /* the init has not said that it is ready */
    bool waiting;   /* the host waits for what the child answers */
    bool taking;    /* the child takes a diff out */
    uint32_t step;
    int output;
    uint64_t output_at, output_limit;
    int64_t beat_at;
};

static void end_child(struct build *b)
{
    if (b->child_pid > 0) {
        (void)kill(b->child_pid, SIGKILL);
        while (waitpid(b->child_pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    b->child_pid = 0;
    if (b->child.fd >= 0)
        chan_release(&b->child);
    b->taking = false;
    groups_sweep(&b->groups);
}

static int open_output(struct build *b, const char *path, struct fail *f)
{
    b->output = open(path, O_RDWR | O_CLOEXEC);
    struct stat st;
    if (b->output < 0 || fstat(b->output, &st) < 0)
        return fail_sys(f, errno, "output %s", path);
    uint64_t size = 0;
    if (S_ISBLK(st.st_mode) && ioctl(b->output, (int)BLOCK_SIZE_64, &size) < 0)
        return fail_sys(f, errno, "size of %s", path);
    b->output_limit = size;
    return 0;
}

/* Where there are none a build goes on, and says so. */
static void open_groups(struct build *b)
{
    struct fail f;
    if (b->mode->groups && groups_open(&b->groups, b->mode->groups, &f) < 0)
        chan_note(b->host, "what a command takes is limited by the builder alone: %s", f.text);
}

static int do_setup(struct build *b, const uint8_t *p, size_t n, struct fail *f)
{
    if (b->ready)
        return fail_set(f, FAIL_PROTOCOL, "SETUP came twice");
    if (setup_parse(&b->setup, p, n, f) < 0)
        return -1;
    const struct setup *s = &b->setup;
    if (b->mode->machine && s->time_ms)
        clock_set_ms(s->time_ms);
    if (b->mode->machine && s->hostname)
        (void)!sethostname(s->hostname, strlen(s->hostname));
    if (open_output(b, s->output ? s->output : b->mode->output, f) < 0 ||
        stack_open(&b->stack, s->lower ? s->lower : b->mode->lower,
                   s->scratch ? s->scratch : b->mode->scratch, s->used ? (int)s->stack_layers : -1,
                   f) < 0 ||
        stack_own_files(&b->stack, s->hostname, s->dns, f) < 0)
        return -1;
    open_groups(b);
    b->ready = true;
    return 0;
}

static int do_authorities(struct build *b, const uint8_t *p, size_t n, struct fail *f)
{
    if (!b->ready || b->in_layer)
        return fail_set(f, FAIL_PROTOCOL, "AUTHORITIES out of order");
    return authorities_take(&b->setup.authorities, p, n, f);
}

/* The layer's init in its namespaces; it answers when it is ready for steps. */
static int start_init(struct build *b, struct fail *f)
{
    int fd;
    if (layer_start(&b->setup, &b->layer, b->mode, &b->child_pid, &fd, f) < 0)
        return -1;
    chan_init(&b->child, fd, FRAME_REPLY_MAX);
    b->layer.first = false;
    b->waiting = b->beginning = true;
    return 0;
}

/* No process of the layer runs any more after this, and nothing keeps its mount busy. */
static void end_init(struct build *b)
{
    end_child(b);
    stubs_remove(&b->stubs);
}

/* Both restack: what the layer's processes left running ends, as at the end of a layer. */
static int do_try(struct build *b, bool keep, struct fail *f)
{
    if (!b->in_layer || (keep && !b->stack.trying))
        return fail_set(f, FAIL_PROTOCOL, "%s out of order", keep ? "TRY_KEEP" : "TRY");
    end_init(b);
    if (stack_freeze(&b->stack, f) < 0)
        return -1;
    int rc = keep ? stack_keep(&b->stack, f) : stack_try(&b->stack, f);
    return rc < 0 ? rc : start_init(b, f);
}

/* The layer's init anew, with drives in their places; what the layer's processes left running ends.
 */
static int do_drives(struct build *b, const uint8_t *p, size_t n, struct fail *f)
{
    if (!b->in_layer || b->stack.trying || b->layer.n_drives)
        return fail_set(f, FAIL_PROTOCOL, "DRIVES out of order");
    end_init(b);
    if (drives_parse(&b->layer, p, n, f) < 0 ||
        drives_attach(&b->layer, b->mode->drives, b->mode->machine, f) < 0)
        return -1;
    return start_init(b, f);
}

static int do_layer_begin(struct build *b, const uint8_t *p, size_t n, struct fail *f)
{
    if (!b->ready || b->in_layer)
        return fail_set(f, FAIL_PROTOCOL, "LAYER_BEGIN out of order");
    layer_spec_release(&b->layer);
    if (layer_parse(&b->layer, p, n, f) < 0)
        return -1;
    b->layer.first = !b->first_done;
    if (stack_begin(&b->stack, b->layer.previous, f) < 0)
        return -1;
    if (start_init(b, f) < 0)
        return -1;
    b->in_layer = true;
    return 0;
}

static int do_step(struct build *b, const struct frame_head *h, const uint8_t *p, struct fail *f)
{
    if (!b->in_layer)
        return fail_set(f, FAIL_PROTOCOL, "STEP outside a layer");
    if (b->child.fd < 0)
        return fail_set(
            f, FAIL_SYSTEM,
            "the layer's init ended before the command: what earlier ones did ended it");
    /* The frame goes on as it is: its header lies right before its payload. */
    if (chan_send_bytes(&b->child, p - FRAME_HEAD, FRAME_HEAD + (size_t)h->length) < 0)
        return fail_set(f, FAIL_SYSTEM, "the layer's init is gone");
    b->step = h->step;
    b->waiting = true;
    return 0;
}

static void takeout_note(void *arg, const char *text)
{
    chan_note(arg, "%s", text);
}

static _Noreturn void takeout_main(struct build *b, int fd)
{
    struct chan up;
    struct fail f;
    struct tar_out tar = {.fd = -1};
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0UL, 0UL, 0UL);
    chan_init(&up, fd, 0);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) { /* three descriptors a level of folders */
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    struct takeout t = {.tar = &tar, .note = takeout_note, .arg = &up};
    int rc = 0;
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        rc = fail_sys(&f, errno, "a mount namespace for the diff");
    if (rc == 0)
        rc = stack_views(&b->stack, &t, &f);
    if (rc == 0)
        rc = tar_open(&tar, b->output, b->output_at, b->output_limit, &f);
    if (rc == 0)
        rc = takeout_run(&t, &f);
    if (rc == 0)
        rc = tar_close(&tar, &f);
    if (rc < 0) {
        (void)chan_send_fail(&up, 0, &f);
        _exit(1);
    }
    struct frame_out o;
    frame_begin(&o, up.out, FRAME_HEAD + FRAME_REPLY_MAX, FRAME_LAYER_DONE, 0);
    frame_put_number(&o, TAG_OFFSET, b->output_at);
    frame_put_number(&o, TAG_LENGTH, tar.at - b->output_at);
    frame_put_number(&o, TAG_ENTRIES, tar.entries);
    frame_put_number(&o, TAG_WHITEOUTS, t.whiteouts);
    _exit(chan_send(&up, &o) < 0);
}

static int do_layer_end(struct build *b, struct fail *f)
{
    if (!b->in_layer || b->stack.trying)
        return fail_set(f, FAIL_PROTOCOL, "LAYER_END out of order");
    /* With its init every process of the namespace dies, and they are all gone when it is reaped.
     * The same kernel reads the upper next, so nothing has to reach the scratch disk for that. */
    end_init(b);
    b->in_layer = false;
    if (stack_freeze(&b->stack, f) < 0 ||
        drives_detach(&b->layer, b->mode->drives, b->mode->machine, f) < 0)
        return -1;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return fail_sys(f, errno, "socketpair");
    pid_t pid = fork();
    if (pid == 0)
        takeout_main(b, pair[1]);
    int saved = errno;
    (void)close(pair[1]);
    if (pid < 0) {
        (void)close(pair[0]);
        return fail_sys(f, saved, "start the diff");
    }
    chan_init(&b->child, pair[0], FRAME_REPLY_MAX);
    b->child_pid = pid;
    b->waiting = b->taking = true;
    return 0;
}

static void layer_done(struct build *b, const uint8_t *p, size_t n)
{
    struct frame_field x;
    uint64_t length = 0;
    for (const uint8_t *end = p + n; frame_next(&p, end, &x) > 0;)
        if (x.tag == TAG_LENGTH)
            (void)frame_number(&x, &length);
    b->output_at = (b->output_at + length + OUTPUT_ALIGN - 1) & ~(uint64_t)(OUTPUT_ALIGN - 1);
    stack_push(&b->stack);
    b->first_done = true;
}

static const char *end_text(pid_t pid, char *out, size_t size)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status))
        (void)snprintf(out, size, "was killed by signal %d", WTERMSIG(status));
    else
        (void)snprintf(out, size, "ended with status %d", WEXITSTATUS(status));
    return out;
}

static void child_gone(struct build *b)
{
    char how[64];
    struct fail f;
    const char *what = b->taking ? "the process that takes the diff out" : "the layer's init";
    pid_t pid = b->child_pid;
    b->child_pid = 0;
    (void)fail_set(&f, FAIL_SYSTEM, "%s %s", what, end_text(pid, how, sizeof how));
    end_child(b);
    if (b->waiting) {
        (void)chan_send_fail(b->host, b->step, &f);
        b->waiting = false;
    }
}

/* The init is ready, and has made the user that may own a home: now there is room for secrets. It
 * mounts them before it carries anything out. */
static int make_room(struct build *b, struct fail *f)
{
    bool begun = b->beginning;
    b->beginning = false;
    return begun ? stubs_make(&b->stubs, "m", &b->layer.secrets, f) : 0;
}

/* What a child said goes to the host; an answer ends the request. */
static void on_child(struct build *b)
{
    struct frame_head h;
    struct fail f;
    const uint8_t *p;
    bool gone = chan_fill(&b->child) < 0;
    int got;
    while (b->child.fd >= 0 && (got = chan_peek(&b->child, &h, &p)) != 0) {
        if (got < 0) {
            gone = true;
            break;
        }
        if (h.type == FRAME_DONE && make_room(b, &f) < 0)
            (void)chan_send_fail(b->host, h.step, &f);
        else
            (void)chan_send_bytes(b->host, p - FRAME_HEAD, FRAME_HEAD + (size_t)h.length);
        bool answer = h.type != FRAME_OUTPUT && h.type != FRAME_NOTE && h.type != FRAME_TAKEN &&
                      h.type != FRAME_METADATA;
        if (h.type == FRAME_LAYER_DONE)
            layer_done(b, p, h.length);
        chan_pop(&b->child, &h);
        if (!answer)
            continue;
        b->waiting = false;
        if (b->taking) {
            end_child(b);
            return;
        }
    }
    if (gone)
        child_gone(b);
}

/* For what runs in the layer; what comes when it has just ended is nobody's. */
static void pass_on(struct build *b, const struct frame_head *h, const uint8_t *p)
{
    if ((b->waiting || h->type == FRAME_METADATA_ANSWER) && !b->taking && b->child.fd >= 0)
        (void)chan_send_bytes(&b->child, p - FRAME_HEAD, FRAME_HEAD + (size_t)h->length);
}

static int do_shutdown(struct build *b, const uint8_t *p, size_t n, struct fail *f)
{
    struct frame_field x;
    bool keep = false;
    end_init(b);
    for (const uint8_t *end = p + n; frame_next(&p, end, &x) > 0;)
        keep = keep || x.tag == TAG_KEEP;
    if (!keep || !b->ready)
        return 0;
    if (b->in_layer && stack_freeze(&b->stack, f) < 0)
        return -1;
    b->in_layer = false;
    return stack_sync(&b->stack, f);
}

/* 1: SHUTDOWN was answered. */
static int on_host(struct build *b)
{
    struct frame_head h;
    const uint8_t *p;
    struct fail f;
    int got, rc;
    while ((got = chan_peek(b->host, &h, &p)) != 0) {
        if (got < 0)
            return -1;
        if (h.type == FRAME_INPUT || h.type == FRAME_METADATA_ANSWER) {
            pass_on(b, &h, p);
            chan_pop(b->host, &h);
            continue;
        }
        if (b->waiting) {
            rc = fail_set(&f, FAIL_PROTOCOL, "a request while another one is open");
        } else {
            switch ((enum frame_type)h.type) {
            case FRAME_SETUP: rc = do_setup(b, p, h.length, &f); break;
            case FRAME_AUTHORITIES: rc = do_authorities(b, p, h.length, &f); break;
            case FRAME_LAYER_BEGIN: rc = do_layer_begin(b, p, h.length, &f); break;
            case FRAME_STEP:
            case FRAME_COPY:
            case FRAME_COPY_DATA:
            case FRAME_SHELL:
            case FRAME_START: rc = do_step(b, &h, p, &f); break;
            case FRAME_TRY: rc = do_try(b, false, &f); break;
            case FRAME_TRY_KEEP: rc = do_try(b, true, &f); break;
            case FRAME_DRIVES: rc = do_drives(b, p, h.length, &f); break;
            case FRAME_LAYER_END: rc = do_layer_end(b, &f); break;
            case FRAME_SHUTDOWN:
                rc = do_shutdown(b, p, h.length, &f);
                chan_pop(b->host, &h);
                if (rc < 0)
                    (void)chan_send_fail(b->host, 0, &f);
                else
                    (void)chan_send_empty(b->host, FRAME_DONE, 0);
                return 1;
            default: rc = fail_set(&f, FAIL_PROTOCOL, "unknown request %u", h.type); break;
            }
        }
        if (rc < 0)
            (void)chan_send_fail(b->host, h.step, &f);
        else if (h.type == FRAME_SETUP || h.type == FRAME_AUTHORITIES)
            (void)chan_send_empty(b->host, FRAME_DONE, 0);
        chan_pop(b->host, &h);
    }
    return 0;
}

int build_loop(const struct build_mode *m, struct chan *c)
{
    struct build b = {
        .mode = m, .host = c, .stack = {.scratch = -1}, .child = {.fd = -1}, .output = -1};
    int rc = chan_send_hello(c, "build", m->resumed);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGCHLD, SIG_DFL);
    poke("/proc/self/oom_score_adj", "-1000");
    while (rc == 0 && !c->hungup) {
        int64_t now = now_ms();
        if (now >= b.beat_at) {
            (void)chan_send_empty(c, FRAME_HEARTBEAT, 0);
            b.beat_at = now + FRAME_HEARTBEAT_MS;
        }
        struct pollfd pfds[2] = {{.fd = c->fd, .events = POLLIN},
                                 {.fd = b.child.fd, .events = POLLIN}};
        if (poll(pfds, 2, (int)(b.beat_at - now)) < 0 && errno != EINTR)
            break;
        if (pfds[1].revents)
            on_child(&b);
        if (pfds[0].revents) {
            if (chan_fill(c) < 0)
                break;
            rc = on_host(&b);
        }
        /* As init of a machine or a container we inherit orphans; children of ours are waited for
         * by pid, and only while they run. */
        if (getpid() == 1 && b.child_pid == 0)
            while (waitpid(-1, NULL, WNOHANG) > 0)
                ;
    }
    end_child(&b);
    if (b.output >= 0)
        (void)close(b.output);
    stubs_remove(&b.stubs);
    if (b.stack.scratch >= 0) {
        (void)umount2("m", 0); /* a layer that did not end */
        (void)close(b.stack.scratch);
    }
    layer_spec_release(&b.layer);
    setup_release(&b.setup);
    if (b.groups.open)
        groups_close(&b.groups);
    return rc == 1 ? 0 : 1;
}
