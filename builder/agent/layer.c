/* layer: the init of a layer. It lives in namespaces of its own (processes, mounts, IPC, host
 * name), has the overlay as its root, runs steps one at a time, and takes everything with it when
 * it is killed. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEFT_OPEN_MAX 64
#define STARTS_MAX 32
#define START_TAIL 2048

/* A process that `start` keeps: it goes on while later steps run. */
struct started {
    struct job job; /* pid 0: it ended */
    struct watch watch;
    char name[128];
    int64_t due;           /* when it has lived long enough to be answered for; 0: it was */
    char tail[START_TAIL]; /* what it said last; before `due` that is in the log */
    size_t tail_len;
};

struct init {
    const struct setup *setup;
    const struct layer_spec *layer;
    struct chan up; /* to the main loop */
    int sigfd;
    struct groups groups;
    struct job job;
    struct shell_input input; /* of the job, when it is a shell */
    struct metadata metadata;
    struct watch watch; /* what it takes */
    /* Pipes that a daemon of an earlier step still writes to: read and dropped, so that it does not
     * die of SIGPIPE or block. */
    int left_open[LEFT_OPEN_MAX];
    size_t n_left_open;
    struct started *starts[STARTS_MAX];
    size_t n_starts;
    struct copying copying;
    int authorities;               /* the folder of their file, or -1 */
    int secrets[SECRET_FILES_MAX]; /* the layer's secret files, in their order */
    bool placed;                   /* they are mounted */
};

static void drop_left_open(struct init *in, size_t i)
{
    (void)close(in->left_open[i]);
    in->left_open[i] = in->left_open[--in->n_left_open];
}

static void keep_pipes_of(struct init *in)
{
    for (int i = 0; i < 2; i++) {
        if (in->job.out[i].fd < 0)
            continue;
        if (in->n_left_open == LEFT_OPEN_MAX)
            drop_left_open(in, 0);
        in->left_open[in->n_left_open++] = in->job.out[i].fd;
        in->job.out[i].fd = -1;
    }
}

static void read_left_open(struct init *in)
{
    static char trash[16384];
    for (size_t i = in->n_left_open; i-- > 0;) {
        ssize_t n = read(in->left_open[i], trash, sizeof trash);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            drop_left_open(in, i);
    }
}

static void sink(void *arg, uint32_t step, int stream, const void *p, size_t n)
{
    (void)chan_send_output(arg, step, stream, p, n);
}

/* Who runs the layer's commands when they do not say. */
static const char *usual_user(const struct setup *s, const struct layer_spec *l)
{
    if (l->user)
        return l->user;
    if (s->runner)
        return s->runner;
    return s->user ? s->user : "";
}

static const char *pick_user(const struct init *in, bool root, const char *user)
{
    if (root)
        return "0";
    return user ? user : usual_user(in->setup, in->layer);
}

static void merge_env(struct words *env, const struct words *from)
{
    for (size_t i = 0; i < from->n; i++)
        env_set(env, from->v[i]);
}

static void say_no_limits(struct init *in, const struct step_spec *s)
{
    if (!in->groups.open && (s->memory || s->cpu_percent))
        chan_note(&in->up, "`ram` and `compute` do not hold here: there are no control groups");
    else if (s->memory > in->groups.memory && in->groups.open)
        chan_note(&in->up, "`ram` of %llu MiB is more than this builder can give: %llu MiB",
                  (unsigned long long)s->memory >> 20, (unsigned long long)in->groups.memory >> 20);
}

/* What of the files it may open can be held to. */
static const struct words *files_of(struct init *in, const struct step_spec *s)
{
    if (!s->files.n || confine_works())
        return s->files.n ? &s->files : NULL;
    chan_note(&in->up, "`allowed_files` does not hold here: the kernel has no Landlock");
    return NULL;
}

static int start_step(struct init *in, struct job *job, struct watch *watch,
                      const struct step_spec *s, uint32_t number, struct fail *f)
{
    struct words env = {0}, argv = {0};
    struct ident who;
    if (ident_load(pick_user(in, s->root, s->user), &who, f) < 0 ||
        authorities_renew(&in->setup->authorities, in->authorities, f) < 0 ||
        (s->tokens && metadata_open(&in->metadata, f) < 0) ||
        watch_begin(watch, &in->groups, s, f) < 0)
        return -1;
    say_no_limits(in, s);
    merge_env(&env, &in->setup->env);
    merge_env(&env, &in->layer->env);
    if (s->tokens)
        metadata_env(&in->metadata, &env);
    merge_env(&env, &s->env);
    const char *declared_path = env_get(&env, "PATH");
    if (s->script) {
        script_argv(&argv, s->script, declared_path);
    } else {
        for (size_t i = 0; i < s->argv.n; i++)
            words_add(&argv, s->argv.v[i]);
        mend_login_argv(&argv, declared_path);
    }
    env_default(&env, "PATH", DEFAULT_PATH);
    env_default(&env, "HOME", who.home);
    env_default(&env, "USER", who.name);
    env_default(&env, "LOGNAME", who.name);
    env_default(&env, "SHELL", who.shell[0] ? who.shell : "/bin/sh");
    env_default(&env, "TERM", "dumb");
    const char *dir = in->layer->workdir ? in->layer->workdir : in->setup->workdir;
    if (s->workdir)
        dir = s->workdir;
    struct job_spec spec = {.argv = &argv,
                            .env = &env,
                            .who = &who,
                            .workdir = dir,
                            .contained = true,
                            .secretive = in->layer->secretive,
                            .timeout_ms = (int64_t)s->timeout_ms,
                            .step = number,
                            .group = watch->has_group ? &watch->group : NULL,
                            .files = files_of(in, s)};
    int end = -1;
    int rc = s->shell ? shell_open(&in->input, s->rows, s->cols, &spec, &end, f) : 0;
    if (rc == 0)
        rc = job_start(job, &spec, f);
    if (s->shell && rc == 0)
        shell_started(&in->input, job);
    else if (s->shell)
        shell_close(&in->input);
    if (end >= 0)
        (void)close(end);
    if (rc < 0)
        watch_end(watch, job);
    words_release(&env);
    words_release(&argv);
    return rc;
}

/* --- start --- */

static void keep_tail(struct started *s, const uint8_t *p, size_t n)
{
    if (n > sizeof s->tail) {
        p += n - sizeof s->tail;
        n = sizeof s->tail;
    }
    size_t drop = s->tail_len + n > sizeof s->tail ? s->tail_len + n - sizeof s->tail : 0;
    memmove(s->tail, s->tail + drop, s->tail_len - drop);
    s->tail_len -= drop;
    memcpy(s->tail + s->tail_len, p, n);
    s->tail_len += n;
}

struct start_output {
    struct init *in;
    struct started *s;
};

static void start_sink(void *arg, uint32_t step, int stream, const void *p, size_t n)
{
    struct start_output *o = arg;
    if (o->s->due && step) /* 0: it was started before, and said this then */
        (void)chan_send_output(&o->in->up, step, stream, p, n);
    keep_tail(o->s, p, n);
}

static int start_process(struct init *in, const struct step_spec *s, uint32_t number,
                         struct fail *f)
{
    if (in->n_starts == STARTS_MAX)
        return fail_set(f, FAIL_COMMAND, "more than %d commands of type start", STARTS_MAX);
    struct started *st = ag_alloc(sizeof *st);
    *st = (struct started){.job.out = {{.fd = -1}, {.fd = -1}}};
    (void)snprintf(st->name, sizeof st->name, "%s", s->script ? s->script : s->argv.v[0]);
    if (start_step(in, &st->job, &st->watch, s, number, f) < 0) {
        free(st);
        return -1;
    }
    st->job.contained = false; /* what ends it is its own session's end */
    st->due = now_ms() + (int64_t)s->wait_ms;
    in->starts[in->n_starts++] = st;
    return 0;
}

static void say_ended(struct init *in, const struct started *s)
{
    int status = s->job.status;
    size_t at = s->tail_len > 400 ? s->tail_len - 400 : 0;
    chan_note(&in->up, "%s, which was started, %s %d%s%s%.*s", s->name,
              WIFSIGNALED(status) ? "was killed by signal" : "ended with exit code",
              WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
              s->job.limit == LIMIT_MEMORY      ? ", out of memory"
              : s->job.limit == LIMIT_PROCESSES ? ", at the limit of processes"
                                                : "",
              s->tail_len ? "; it said last: " : "", (int)(s->tail_len - at), s->tail + at);
}

/* Answers for what was started, and reads what it says; what ended is said once. */
static void work_starts(struct init *in, int64_t now)
{
    for (size_t i = 0; i < in->n_starts; i++) {
        struct started *s = in->starts[i];
        struct start_output o = {in, s};
        if (!s->job.pid)
            continue;
        bool over = job_work(&s->job, now, start_sink, &o);
        watch_look(&s->watch, now);
        if (over) {
            watch_end(&s->watch, &s->job);
            if (s->due)
                (void)job_report(&s->job, &in->up);
            else
                say_ended(in, s);
            s->due = 0;
            job_close(&s->job);
        } else if (s->due && !s->job.exited && now >= s->due) {
            s->due = 0;
            (void)chan_send_empty(&in->up, FRAME_DONE, s->job.step);
        }
    }
}

static bool is_starting(const struct init *in)
{
    for (size_t i = 0; i < in->n_starts; i++)
        if (in->starts[i]->job.pid && in->starts[i]->due)
            return true;
    return false;
}

/* @t: milliseconds until then, -1: never; sooner when @w wants to look sooner. */
static int sooner_look(int t, const struct watch *w, int64_t now)
{
    int64_t due = watch_due(w);
    int64_t left = due > now ? due - now : 0;
    return due < 0 || (t >= 0 && t <= left) ? t : (int)left;
}

static int next_wake(const struct init *in, int64_t now)
{
    int t = job_timeout(&in->job, now);
    if (in->job.pid)
        t = sooner_look(t, &in->watch, now);
    for (size_t i = 0; i < in->n_starts; i++) {
        const struct started *s = in->starts[i];
        int64_t own = job_timeout(&s->job, now);
        if (s->job.pid && s->due && (own < 0 || s->due - now < own))
            own = s->due > now ? s->due - now : 0;
        if (own >= 0 && (t < 0 || own < t))
            t = (int)own;
        if (s->job.pid)
            t = sooner_look(t, &s->watch, now);
    }
    return t;
}

/* Secret files are the user's of the command that runs; those of what was started stay as they are.
 */
static int give_secrets(struct init *in, const struct step_spec *s, struct fail *f)
{
    const struct secret_files *files = &in->layer->secrets;
    struct ident who;
    if (files->n == 0)
        return 0;
    if (!in->placed && secret_files_place(files, in->secrets, f) < 0)
        return -1;
    in->placed = true;
    return ident_load(pick_user(in, s->root, s->user), &who, f) < 0
               ? -1
               : secret_files_give(files, in->secrets, &who, f);
}

static int run_request(struct init *in, const struct frame_head *h, const uint8_t *p,
                       struct fail *f)
{
    struct step_spec s = {.shell = h->type == FRAME_SHELL};
    int rc = step_parse(&s, p, h->length, f);
    if (rc == 0 && h->type == FRAME_STEP)
        rc = give_secrets(in, &s, f);
    if (rc == 0)
        rc = h->type == FRAME_START ? start_process(in, &s, h->step, f)
                                    : start_step(in, &in->job, &in->watch, &s, h->step, f);
    step_release(&s);
    return rc;
}

static int begin_copy(struct init *in, const uint8_t *p, size_t n, struct fail *f)
{
    struct copy_spec s;
    struct ident who;
    int rc = copy_parse(&s, p, n, f);
    if (rc == 0)
        rc = ident_load(s.owner ? s.owner : pick_user(in, s.root, s.user), &who, f);
    if (rc == 0)
        rc = copy_begin(&in->copying, &s, &who, f);
    copy_spec_release(&s);
    return rc;
}

static int copy_request(struct init *in, const struct frame_head *h, const uint8_t *p,
                        struct fail *f)
{
    int rc = h->type == FRAME_COPY ? begin_copy(in, p, h->length, f)
                                   : copy_data(&in->copying, p, h->length, f);
    if (rc < 0)
        copy_end(&in->copying);
    else
        (void)chan_send_empty(&in->up, FRAME_DONE, h->step);
    return rc;
}

/* False when there is no whole request. */
static bool on_request(struct init *in)
{
    struct frame_head h;
    const uint8_t *p;
    struct fail f;
    int got = chan_peek(&in->up, &h, &p);
    if (got < 0)
        _exit(71);
    if (got == 0)
        return false;
    if (h.type == FRAME_INPUT || h.type == FRAME_METADATA_ANSWER) {
        if (h.type == FRAME_METADATA_ANSWER)
            metadata_answer(&in->metadata, p, h.length);
        else if (in->job.pid)
            shell_take(&in->input, p, h.length);
        chan_pop(&in->up, &h);
        return true;
    }
    int rc;
    if (in->job.pid || is_starting(in))
        rc = fail_set(&f, FAIL_PROTOCOL, "a request while a step runs");
    else if (h.type == FRAME_STEP || h.type == FRAME_START || h.type == FRAME_SHELL)
        rc = run_request(in, &h, p, &f);
    else if (h.type == FRAME_COPY || h.type == FRAME_COPY_DATA)
        rc = copy_request(in, &h, p, &f);
    else
        rc = fail_set(&f, FAIL_PROTOCOL, "unexpected request %u", h.type);
    if (rc < 0)
        (void)chan_send_fail(&in->up, h.step, &f);
    chan_pop(&in->up, &h);
    return true;
}

static void reap(struct init *in)
{
    struct signalfd_siginfo si;
    while (read(in->sigfd, &si, sizeof si) > 0)
        ;
    int status;
    struct rusage ru;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &ru)) > 0) {
        if (pid == in->job.pid)
            job_exited(&in->job, status, &ru);
        for (size_t i = 0; i < in->n_starts; i++)
            if (pid == in->starts[i]->job.pid)
                job_exited(&in->starts[i]->job, status, &ru);
    }
}

static void work_job(struct init *in, int64_t now)
{
    if (!in->job.pid)
        return;
    watch_look(&in->watch, now);
    if (!job_work(&in->job, now, sink, &in->up))
        return;
    if (!watch_settled(&in->watch, now)) {
        in->job.drain_until = watch_due(&in->watch);
        return;
    }
    watch_end(&in->watch, &in->job);
    shell_close(&in->input);
    keep_pipes_of(in);
    (void)job_report(&in->job, &in->up);
    job_close(&in->job);
}

static _Noreturn void init_loop(struct init *in)
{
    for (;;) {
        struct pollfd pfds[6 + METADATA_CLIENTS + 2 * STARTS_MAX + LEFT_OPEN_MAX];
        size_t n = 0;
        pfds[n++] = (struct pollfd){.fd = in->up.fd, .events = POLLIN};
        pfds[n++] = (struct pollfd){.fd = in->sigfd, .events = POLLIN};
        n += job_pollfds(&in->job, pfds + n);
        n += shell_pollfds(&in->input, pfds + n);
        n += metadata_pollfds(&in->metadata, pfds + n);
        for (size_t i = 0; i < in->n_starts; i++)
            n += job_pollfds(&in->starts[i]->job, pfds + n);
        for (size_t i = 0; i < in->n_left_open; i++)
            pfds[n++] = (struct pollfd){.fd = in->left_open[i], .events = POLLIN};
        if (poll(pfds, n, next_wake(in, now_ms())) < 0 && errno != EINTR)
            _exit(71);
        if (pfds[0].revents && chan_fill(&in->up) < 0)
            _exit(0);
        reap(in);
        read_left_open(in);
        work_job(in, now_ms());
        work_starts(in, now_ms());
        while (on_request(in))
            ;
        metadata_work(&in->metadata, &in->up, now_ms());
        if (in->input.owed)
            shell_work(&in->input, &in->up);
        if (in->up.hungup)
            _exit(0);
    }
}

static int place_drives(const struct setup *s, const struct layer_spec *l, const int *fds,
                        struct fail *f)
{
    struct ident who;
    if (l->n_drives == 0)
        return 0;
    if (ident_load(l->drives_user ? l->drives_user : usual_user(s, l), &who, f) < 0)
        return -1;
    return drives_place(l, fds, &who, f);
}

static int enter_root(const struct setup *s, const struct layer_spec *l, const char *drives,
                      struct fail *f)
{
    int fds[AG_DRIVES_MAX];
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return fail_sys(f, errno, "make the mounts private");
    if (drives_open(l, drives, fds, f) < 0)
        return -1;
    if (chdir("m") < 0)
        return fail_sys(f, errno, "enter the layer");
    if (mounts_for_layer(f) < 0)
        return -1;
    if (syscall(SYS_pivot_root, ".", ".") < 0)
        return fail_sys(f, errno, "pivot_root");
    /* The old root lies on top of the new one now. */
    if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return fail_sys(f, errno, "leave the old root");
    if (s->hostname)
        (void)!sethostname(s->hostname, strlen(s->hostname));
    return place_drives(s, l, fds, f);
}

static _Noreturn void init_main(const struct setup *s, const struct layer_spec *l,
                                const struct build_mode *mode, int fd)
{
    static struct init in;
    struct fail f;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0UL, 0UL, 0UL);
    (void)prctl(PR_SET_DUMPABLE, 0UL, 0UL, 0UL, 0UL);
    (void)setsid();
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        (void)dup2(null, 0);
        (void)dup2(null, 1);
    }
    close_from(3, fd, -1);
    in = (struct init){.setup = s, .layer = l};
    in.job.out[0].fd = in.job.out[1].fd = in.input.fd = -1;
    chan_init(&in.up, fd, FRAME_REQUEST_MAX);
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    in.sigfd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    int rc = in.sigfd < 0 ? fail_sys(&f, errno, "signalfd") : 0;
    if (rc == 0 && mode->groups) /* the main loop has said why when there are none */
        (void)groups_open(&in.groups, mode->groups, &f);
    if (rc == 0)
        rc = enter_root(s, l, mode->drives, &f);
    if (rc == 0)
        rc = authorities_open(&s->authorities, &in.authorities, &f);
    if (rc == 0 && l->first && s->runner) {
        int made = user_ensure(s->runner, &f);
        if (made > 0)
            chan_note(&in.up, "user %s was made", s->runner);
        rc = made < 0 ? -1 : 0;
    }
    if (rc < 0) {
        (void)chan_send_fail(&in.up, 0, &f);
        _exit(1);
    }
    (void)chan_send_empty(&in.up, FRAME_DONE, 0);
    init_loop(&in);
}

int layer_start(const struct setup *s, const struct layer_spec *l, const struct build_mode *mode,
                pid_t *pid, int *fd, struct fail *f)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return fail_sys(f, errno, "socketpair");
    unsigned long flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD;
    /* As fork() does it, with namespaces: no stack is given, so the child goes on here. */
    long got = syscall(SYS_clone, flags, 0, 0, 0, 0);
    if (got == 0)
        init_main(s, l, mode, pair[1]);
    int saved = errno;
    (void)close(pair[1]);
    if (got < 0) {
        (void)close(pair[0]);
        return fail_sys(f, saved, "start the layer's namespaces");
    }
    *pid = (pid_t)got;
    *fd = pair[0];
    return 0;
}
