/* agent: what the files of the guest program share.
 *
 * The agent uses libc alone, is single-threaded, and is a program that may be PID 1: it never
 * aborts on input. Errors are a struct fail that the caller owns; a function that can fail returns
 * -1 and fills it. Its parts are also built natively as a library for the tests. */
#pragma once

#include "builder/frames.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* --- util.c: errors, memory, texts, files --- */

struct fail {
    enum fail_kind kind;
    char text[1024];
};
int fail_set(struct fail *f, enum fail_kind kind, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* "<what>: <strerror>"; a full disk is FAIL_SPACE. */
int fail_sys(struct fail *f, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Small allocations; the agent ends ("out of memory") when there is none. */
void *ag_alloc(size_t n) __attribute__((returns_nonnull));
void *ag_realloc(void *p, size_t n) __attribute__((returns_nonnull));
char *ag_strndup(const void *p, size_t n);
char *ag_strdup(const char *s);

/* A NULL-terminated list of owned strings. A zeroed struct is an empty one. */
struct words {
    char **v;
    size_t n, cap;
};
void words_add(struct words *w, const char *s);
void words_take(struct words *w, char *s);
void words_release(struct words *w);

/* A growing text, always NUL-terminated once something was added. */
struct text {
    char *p;
    size_t n, cap;
};
void text_add(struct text *t, const void *p, size_t n);
void text_puts(struct text *t, const char *s);
void text_release(struct text *t);

int64_t now_ms(void); /* monotonic */
int write_all(int fd, const void *p, size_t n);
/* The whole file, at most @max bytes; -1 with errno (EFBIG above @max). */
int read_file(const char *path, size_t max, struct text *out);
/* Truncates and writes. -1 with errno. */
int write_file(const char *path, const void *p, size_t n, mode_t mode);
/* One word into a file of proc or sysfs; what the kernel says is ignored on purpose. */
void poke(const char *path, const char *word);
/* mkdir -p of an absolute or relative path. -1 with errno. */
int make_dirs(const char *path, mode_t mode);
/* Decimal digits and nothing else, at most @max. */
bool parse_number(const char *s, uint64_t max, uint64_t *v);
void close_from(int first, int keep1, int keep2);
/* Copies owner, mode, xattrs and times of folder @from to folder @to (both open). */
int copy_dir_attributes(int from, int to);

/* --- chan.c: frames over a stream --- */

struct chan {
    int fd;
    bool hungup;  /* the other side is gone */
    uint32_t max; /* largest payload taken */
    uint8_t *in;
    size_t in_len, in_cap;
    uint8_t *out; /* FRAME_HEAD + FRAME_REPLY_MAX, for the frame being written */
};
void chan_init(struct chan *c, int fd, uint32_t max);
void chan_release(struct chan *c); /* closes the fd */
/* Reads what is there (one read). 0, or -1 when the other side is gone. */
int chan_fill(struct chan *c);
/* Takes one whole frame: 1 and *@h and *@payload (borrowed until the next call of chan_fill or
 * chan_pop), 0 when there is none yet, -1 when the bytes are no frame. */
int chan_peek(struct chan *c, struct frame_head *h, const uint8_t **payload);
void chan_pop(struct chan *c, const struct frame_head *h);
/* Waits until the whole frame is written. A peer that is gone is remembered in hungup. */
int chan_send(struct chan *c, const struct frame_out *o);
int chan_send_bytes(struct chan *c, const void *p, size_t n);
int chan_send_empty(struct chan *c, enum frame_type type, uint32_t step);
int chan_send_text(struct chan *c, enum frame_type type, uint32_t step, const char *text);
int chan_send_fail(struct chan *c, uint32_t step, const struct fail *f);
int chan_send_output(struct chan *c, uint32_t step, int stream, const void *p, size_t n);
void chan_note(struct chan *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* --- users.c: /etc/passwd and /etc/group, parsed by hand --- */

struct ident {
    uid_t uid;
    gid_t gid;
    gid_t groups[64]; /* supplementary */
    size_t n_groups;
    char name[256];  /* or the number */
    char home[256];  /* "/" when unknown */
    char shell[256]; /* may be "" */
};
/* @spec as in an image config: "", "user", "uid", "user:group", "uid:gid" and mixed. @passwd and
 * @group are the files' texts, NULL when missing. */
int ident_resolve(const char *spec, const char *passwd, const char *group, struct ident *out,
                  struct fail *f);
/* The same with the files of the root folder that we are in. */
int ident_load(const char *spec, struct ident *out, struct fail *f);
bool user_name_ok(const char *name);
/* Makes the user (passwd, group, shadow, home, sudo) unless passwd has the name. 1: made, 0: was
 * there. */
int user_ensure(const char *name, struct fail *f);

/* --- env.c: environments and login shells --- */

/* Adds "K=V", replacing an earlier K. Anything without a name is dropped. */
void env_set(struct words *env, const char *pair);
const char *env_get(const struct words *env, const char *name);
void env_default(struct words *env, const char *name, const char *value);
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
/* The program @name in @path is there and executable (a name with a slash is taken as it is). */
bool program_exists(const char *name, const char *path);
/* SCRIPT with a line in front that puts back what a login profile dropped from @path. Owned. */
char *login_script(const char *path, const char *script);
/* argv for a script: bash -lc, or sh -lc where there is no bash in @path (NULL: the default). */
void script_argv(struct words *argv, const char *script, const char *path);
/* Gives ["bash"|"sh", "-lc", STRING...] the same treatment; others stay. */
void mend_login_argv(struct words *argv, const char *path);

/* --- confine.c: the files of a command --- */

/* This kernel can do it. */
bool confine_works(void);
/* From here on this process and what it starts may open @files (and what is below those that are
 * folders) and, to read, where programs and their settings are; the devices and /proc as ever. -1
 * with errno and *@what, the path that was the matter (borrowed from @files). */
int confine(const struct words *files, const char **what);

/* --- group.c: control groups --- */

enum group_kind { GROUP_MEMORY, GROUP_PIDS, GROUP_CPU, GROUP_CPUACCT, GROUP_KINDS };
/* Where groups are made: one folder (the first), or one a controller. A zeroed struct is closed. */
struct groups {
    bool open, unified;
    int dirs[GROUP_KINDS];
    uint64_t memory;    /* bytes that a command may have when it says nothing */
    uint64_t processes; /* and how many processes and threads */
    unsigned next;
};
/* The kernel's own, in a machine that is ours. */
int groups_mount(const char *at, struct fail *f);
/* What @path holds: a mounted hierarchy, or folders named after controllers. */
int groups_open(struct groups *g, const char *path, struct fail *f);
void groups_close(struct groups *g);
/* @text, of /proc/self/cgroup, says that the one hierarchy's root as we see it is our own group. */
bool groups_are_ours(const char *text);
/* Removes the groups of commands in which nothing runs any more. */
void groups_sweep(struct groups *g);

struct cgroup {
    char name[16];
    bool unified;
    int dirs[GROUP_KINDS];
    uint64_t memory, processes; /* its limits */
};
struct group_use {
    uint64_t memory; /* bytes now, without what is only cached of files */
    uint64_t cpu_ms;
    uint64_t processes;         /* now */
    uint64_t refused_processes; /* how often it reached that limit */
    uint64_t killed;            /* processes that were killed for want of memory */
};
/* @memory, @cpu_percent (of one CPU): 0 says nothing. End it with group_end(). */
int group_make(struct groups *g, uint64_t memory, unsigned cpu_percent, struct cgroup *out,
               struct fail *f);
/* The process that calls goes there: between fork and exec. -1 with errno. */
int group_join(const struct cgroup *g);
void group_look(const struct cgroup *g, struct group_use *u);
void group_kill(const struct cgroup *g);
/* Removes it, or lets go of it when something runs on in it. */
void group_end(struct groups *g, struct cgroup *out);

/* --- job.c: one running command --- */

struct stream {
    int fd; /* -1: closed */
    int number;
    size_t len;
    int64_t since; /* when the oldest byte in buf came */
    uint8_t buf[FRAME_OUTPUT_MAX];
};
struct job_spec {
    const struct words *argv;
    const struct words *env;
    const struct ident *who;
    const char *workdir; /* made when missing; NULL: / */
    bool secretive;      /* it has secrets: it may leave no core file */
    bool contained;      /* the capabilities of a container, not all of them */
    bool console;        /* stdin, stdout and stderr are the console: nothing is captured */
    int input;           /* becomes stdin; 0: /dev/null does */
    int terminal;        /* its slave becomes all three and the controlling one; 0: none */
    int64_t timeout_ms;  /* 0: none */
    uint32_t step;
    const struct cgroup *group; /* where it runs; NULL: where we are */
    const struct words *files;  /* what it may open (confine()); NULL: everything */
};
struct job {
    pid_t pid; /* 0: no job */
    uint32_t step;
    bool exited, timed_out, contained;
    bool eager; /* output is handed on as it comes, not by lines */
    int status;
    int64_t started, ended;
    int64_t term_at, kill_at, drain_until; /* 0: not set */
    int64_t cpu_ms;
    uint64_t max_rss_kib;
    enum limit_kind limit; /* which it reached */
    uint64_t limit_value;
    struct stream out[2];
};
typedef void job_sink(void *arg, uint32_t step, int stream, const void *p, size_t n);
int job_start(struct job *j, const struct job_spec *spec, struct fail *f);
/* waitpid() gave us its end. */
struct rusage;
void job_exited(struct job *j, int status, const struct rusage *ru);
/* Reads what is there, hands on what is due, sends the signals that are due. True when it is over:
 * ended, and its output drained. */
bool job_work(struct job *j, int64_t now, job_sink *sink, void *arg);
/* Milliseconds until job_work() has something to do; -1: nothing by itself. */
int job_timeout(const struct job *j, int64_t now);
void job_close(struct job *j);
/* STEP_DONE of it. */
int job_report(const struct job *j, struct chan *c);
int exit_code_of(int status);
struct pollfd;
size_t job_pollfds(const struct job *j, struct pollfd *p);

/* --- shell.c: input for a command --- */

struct shell_input {
    int fd; /* the pipe, or the terminal's master; -1: nobody reads */
    bool terminal;
    bool owed; /* the host waits for TAKEN */
    bool end;  /* close it when all of buf is written */
    size_t at, len;
    uint8_t buf[FRAME_INPUT_MAX];
};
/* Opens a pipe (@rows 0) or a terminal of that size for the command of @spec, and names its end in
 * @spec; *@child is that end, for the caller to close when the command was started. */
int shell_open(struct shell_input *in, uint64_t rows, uint64_t cols, struct job_spec *spec,
               int *child, struct fail *f);
/* The command was started: what it writes to a terminal is @j's output. */
void shell_started(struct shell_input *in, struct job *j);
/* INPUT came. What cannot be handed on at once is kept for shell_work(). */
void shell_take(struct shell_input *in, const uint8_t *p, size_t n);
void shell_work(struct shell_input *in, struct chan *up);
void shell_close(struct shell_input *in);
size_t shell_pollfds(const struct shell_input *in, struct pollfd *p);

/* --- metadata.c: tokens for commands --- */

#define METADATA_CLIENTS 8
#define METADATA_REQUEST_MAX 8192
#define METADATA_TARGET_MAX 1024
struct metadata_request {
    unsigned status; /* 0: it is one for the host; else how it is answered */
    bool flavor, forwarded;
    char target[METADATA_TARGET_MAX + 1];
};
/* 1 when @text holds a whole request (or never will), 0 when more has to come. */
int metadata_parse(const char *text, size_t n, struct metadata_request *r);

struct metadata_client {
    enum { METADATA_FREE, METADATA_READING, METADATA_ASKING, METADATA_TELLING } state;
    int fd;
    uint32_t id;
    int64_t until;
    size_t n, at;
    struct text out;
    char in[METADATA_REQUEST_MAX];
};
struct metadata {
    int listener;
    uint16_t port; /* 0: nobody may ask */
    uint32_t last_id;
    struct metadata_client clients[METADATA_CLIENTS];
};
/* Listens on the loopback, if it does not yet. */
int metadata_open(struct metadata *m, struct fail *f);
/* The variables by which programs find it. */
void metadata_env(const struct metadata *m, struct words *env);
/* Reads and writes what can be; asks the host. */
void metadata_work(struct metadata *m, struct chan *up, int64_t now);
/* METADATA_ANSWER came. */
void metadata_answer(struct metadata *m, const uint8_t *p, size_t n);
size_t metadata_pollfds(const struct metadata *m, struct pollfd *p);

/* --- tar.c: an OCI layer tar, written in order --- */

struct xattr {
    char *name;
    uint8_t *value;
    size_t len;
};
struct tar_entry {
    const char *path; /* relative to the root, no leading slash; folders without a trailing one */
    char type; /* '0' file, '1' hardlink, '2' symlink, '3' char, '4' block, '5' folder, '6' fifo */
    mode_t mode;
    uint32_t uid, gid;
    int64_t mtime;
    uint32_t mtime_ns;
    uint64_t size; /* '0' alone */
    const char *link;
    unsigned major, minor;
    const struct xattr *xattrs;
    size_t n_xattrs;
};
struct tar_out {
    int fd;
    uint64_t start, at; /* where this tar begins, and the next byte goes */
    uint64_t limit;     /* size of the output, 0: none known */
    uint8_t *buf;
    size_t len;
    uint64_t entries;
};
int tar_open(struct tar_out *t, int fd, uint64_t offset, uint64_t limit, struct fail *f);
/* The content of a file ('0') follows from @fd; holes above 1 MiB are kept as a sparse entry. */
int tar_add(struct tar_out *t, const struct tar_entry *e, int fd, struct fail *f);
/* The end marks, and everything on the disk. */
int tar_close(struct tar_out *t, struct fail *f);
void tar_release(struct tar_out *t);

/* --- takeout.c: the diff of a frozen upper --- */

struct takeout {
    int upper; /* folder */
    int below; /* merged view of the lowers, the agent's own files included */
    int image; /* the same without the agent's own files */
    struct tar_out *tar;
    void (*note)(void *arg, const char *text);
    void *arg;
    uint64_t whiteouts;
};
int takeout_run(struct takeout *t, struct fail *f);

/* --- overlay.c: the stack of layers in the scratch folder --- */

struct stack {
    int scratch;        /* folder; the agent's current folder too */
    unsigned layers;    /* frozen uppers */
    unsigned works;     /* work folders so far: each mount has its own */
    bool trying;        /* an upper of its own lies on the layer's */
    bool plain_options; /* this kernel does not know `volatile` */
    bool used;          /* before, by another agent: what it left of the next layer is there */
    bool user_xattrs;   /* in a user namespace */
};
/* @layers: so many finished ones are on it, and perhaps one that was not; -1: it is new. */
int stack_open(struct stack *s, const char *lower, const char *scratch, int layers, struct fail *f);
/* Everything that was written is on the disk. Unmounted before. */
int stack_sync(struct stack *s, struct fail *f);
/* The agent's own lower: mount points, and resolv.conf, hosts, hostname. */
int stack_own_files(struct stack *s, const char *hostname, const char *dns, struct fail *f);
/* Mounts the overlay for a new layer at "m" below scratch. @previous: the folder of the scratch
 * that is its upper (the host made it, layers/tar_apply.h), NULL: an empty one. */
int stack_begin(struct stack *s, const char *previous, struct fail *f);
/* Unmounts it for real. */
int stack_freeze(struct stack *s, struct fail *f);
/* In a process of its own: read-only views of what is below the frozen upper. */
int stack_views(struct stack *s, struct takeout *t, struct fail *f);
void stack_push(struct stack *s);
/* All three while nothing is mounted. For a command that may be tried again: an upper of its own
 * ("r") on the layer's, and what it holds becomes part of the layer's, or is dropped. */
int stack_try(struct stack *s, struct fail *f);
int stack_keep(struct stack *s, struct fail *f);
int stack_drop(struct stack *s, struct fail *f);

/* --- fold.c: two uppers become one --- */

/* Moves what is in upper @from (a folder, like @to) into upper @to, which lay below it, so that @to
 * shows what both showed. @from is empty then, or both are in pieces when it failed. */
int fold_upper(int from, int to, struct fail *f);
/* Removes folder @name of folder @at with all that is in it; one that is not there is fine. */
int remove_below(int at, const char *name, struct fail *f);

/* --- adopt.c: an upper that the host made --- */

/* Folders of @upper that are there for what is in them alone get the description of those of
 * @below, the merged view of what lies under it. */
int adopt_folders(int upper, int below, struct fail *f);

/* --- layer.c: the init of a layer's namespace --- */

struct setup {
    struct words env;
    char *user, *workdir, *runner, *hostname, *dns, *lower, *scratch, *output;
    uint64_t time_ms;
    bool used;               /* the scratch disk was, and has */
    uint64_t stack_layers;   /* so many finished layers */
    struct text authorities; /* what commands trust besides the image's; empty: nothing */
};
void setup_release(struct setup *s);

/* --- authorities.c --- */

/* Adds a piece of FRAME_AUTHORITIES. */
int authorities_take(struct text *t, const uint8_t *p, size_t n, struct fail *f);
/* In a layer's root: makes the read-only place of FRAME_AUTHORITIES_PATH. *@out can be written
 * through; -1 when there is nothing to trust. */
int authorities_open(const struct text *t, int *out, struct fail *f);
/* Writes the file there anew: what the image trusts now, and @t. */
int authorities_renew(const struct text *t, int dir, struct fail *f);

int setup_parse(struct setup *s, const uint8_t *p, size_t n, struct fail *f);
#define AG_DRIVES_MAX 16
#define DRIVE_PATH_MAX 4000
struct drive_place {
    unsigned disk; /* it is at DRIVES/DISK */
    char *path;    /* where it belongs */
};
/* A file that the layer's commands see and its diff does not (secret.c). */
enum { SECRET_FILES_MAX = 64 };
struct secret_file {
    char *path; /* absolute */
    uint8_t *data;
    size_t len;
};
struct secret_files {
    struct secret_file *v;
    size_t n;
};
struct layer_spec {
    char *name, *user, *workdir;
    char *previous; /* the folder that becomes its upper; NULL: an empty one */
    struct words env;
    struct secret_files secrets;
    bool secretive; /* its commands have secrets, in files or not */
    bool first;
    struct drive_place drives[AG_DRIVES_MAX];
    size_t n_drives;
    char *drives_user; /* whose they are; NULL: whoever runs the layer's commands */
};
void layer_spec_release(struct layer_spec *l);
int layer_parse(struct layer_spec *l, const uint8_t *p, size_t n, struct fail *f);
struct step_spec {
    char *script;
    struct words argv, env;
    char *user, *workdir; /* NULL: the layer's */
    bool root;
    bool shell;   /* it is given input */
    bool tokens;  /* it may ask for tokens */
    bool goes_on; /* a boot command whose end is not waited for */
    uint64_t timeout_ms;
    uint64_t wait_ms;             /* START: how long it has to live */
    uint64_t rows, cols;          /* SHELL: of its terminal; 0: it has none */
    uint64_t memory, cpu_percent; /* limits; 0: the usual */
    struct words files;           /* that it may open; none: all */
};
void step_release(struct step_spec *s);
int step_parse(struct step_spec *s, const uint8_t *p, size_t n, struct fail *f);

/* --- secret.c --- */

void secret_files_release(struct secret_files *s); /* and overwrites them */
/* A field TAG_SECRET_PATH or TAG_SECRET_DATA, which come in pairs. */
int secret_files_take(struct secret_files *s, const struct frame_field *x, struct fail *f);
/* A file, or a folder on the way to it, that was made so that a secret can be mounted there. */
struct stub {
    int folder; /* in which */
    char *name;
    bool is_folder;
    ino_t ino;
    struct timespec before, after; /* times of the folder, when it was made */
};
struct stubs {
    struct stub *v;
    size_t n;
};
/* In the layer's files, which are mounted at @at; no process of the layer runs. */
int stubs_make(struct stubs *s, const char *at, const struct secret_files *secrets, struct fail *f);
/* None runs any more. What commands put into such a folder stays. */
void stubs_remove(struct stubs *s);
/* In the process whose root is the layer's: mounts them. Each descriptor in @fds stays open for: */
int secret_files_place(const struct secret_files *s, int *fds, struct fail *f);
/* From now on they are @who's. */
int secret_files_give(const struct secret_files *s, const int *fds, const struct ident *who,
                      struct fail *f);

/* --- copy.c: files from the host --- */

struct copy_spec {
    char *to;           /* absolute */
    char *owner, *user; /* NULL: not said */
    bool folder, root, mounts;
    int mode; /* of what is copied; negative: its own */
};
void copy_spec_release(struct copy_spec *s);
int copy_parse(struct copy_spec *s, const uint8_t *p, size_t n, struct fail *f);
/* One COPY on its way. A zeroed struct is none. */
struct copying {
    bool open, mounts;
    uid_t uid;
    gid_t gid;
    int mode;
    char *to, *as; /* the folder that it goes to; the name that its one entry gets, or NULL */
    int root, parent, file; /* 0: none */
    char *parent_path;
    uint64_t left; /* of the file */
    mode_t file_mode;
    struct timespec mtime;
};
/* In the process whose root is the layer's. Ends the one before. */
int copy_begin(struct copying *c, const struct copy_spec *s, const struct ident *who,
               struct fail *f);
int copy_data(struct copying *c, const uint8_t *p, size_t n, struct fail *f);
void copy_end(struct copying *c);

/* --- layer.c --- */

/* Starts it; *@fd is our end of its stream. It answers DONE or FAILED first. */
struct build_mode;
int layer_start(const struct setup *s, const struct layer_spec *l, const struct build_mode *mode,
                pid_t *pid, int *fd, struct fail *f);

/* --- drives.c: file systems of their own --- */

void drives_release(struct drive_place *v, size_t n);
/* FRAME_DRIVES, into @l. */
int drives_parse(struct layer_spec *l, const uint8_t *p, size_t n, struct fail *f);
/* The main loop's part. @root: the folder with the drives, which a machine of ours mounts there. */
int drives_attach(const struct layer_spec *l, const char *root, bool machine, struct fail *f);
/* From then on what is on the disks is complete and does not change. */
int drives_detach(const struct layer_spec *l, const char *root, bool machine, struct fail *f);
/* The layer's init's: takes hold of them (@fds has room for all), and in the layer's root puts them
 * in their places. */
int drives_open(const struct layer_spec *l, const char *root, int *fds, struct fail *f);
int drives_place(const struct layer_spec *l, const int *fds, const struct ident *who,
                 struct fail *f);
/* A booted machine's: mounts what is there of the image's drives, waiting for the others at most
 * @wait_ms; and before its end. What is wrong is said on the console. */
struct boot_conf;
void drives_boot(struct boot_conf *c, int64_t wait_ms);
void drives_end(const struct boot_conf *c);
/* @super: 256 bytes from 1024 on of a disk. */
bool drive_has_label(const uint8_t *super, const char *label);

/* --- watch.c: what a running command takes --- */

/* A zeroed struct watches nothing. */
struct watch {
    struct groups *groups;
    struct cgroup group;
    bool has_group, growing;
    enum limit_kind limit;
    uint64_t limit_value;
    uint64_t memory_peak, cpu_ms, processes;
    uint64_t disk_low, disk_size; /* bytes: free at the fullest, and in all */
    int64_t look_at, ending_until;
};
/* Before the command starts; with its group when @g is open. */
int watch_begin(struct watch *w, struct groups *g, const struct step_spec *s, struct fail *f);
/* When it wants to look again (now_ms()); -1: it does not. */
int64_t watch_due(const struct watch *w);
void watch_look(struct watch *w, int64_t now);
/* The command is over: false while what it left running grows so fast that it will end badly. */
bool watch_settled(struct watch *w, int64_t now);
/* Tells @j what was seen, and watches nothing any more. */
void watch_end(struct watch *w, struct job *j);

/* mounts.c: what a root folder needs. In a layer: in the current folder, which then becomes the
 * root. */
int mounts_for_layer(struct fail *f);
/* proc, sys, dev, and a root that can be written to: what another init expects to find as well. */
void mounts_of_kernel(void);
/* The others. */
void mounts_for_boot(void);

/* --- park.c: being saved, and going on --- */

struct resume {
    uint8_t nonce[FRAME_NONCE_LEN], entropy[FRAME_ENTROPY_LEN];
    uint64_t time_ms; /* 0: leave the clock */
};
int resume_parse(struct resume *r, const uint8_t *p, size_t n, struct fail *f);
/* Says PARKED and waits for RESUME, which may be heard by any number of copies of this machine. */
int park(struct chan *c, struct resume *r, struct fail *f);
/* Sets the clock and makes this copy's random numbers its own. */
void resume_apply(const struct resume *r);
/* HELLO; @r: it answers that RESUME, NULL: it is the first word. */
int chan_send_hello(struct chan *c, const char *mode, const struct resume *r);
void clock_set_ms(uint64_t ms);

/* --- build.c: the main loop of build mode --- */

struct build_mode {
    const char *lower, *scratch, *output; /* mounted folders, and the output's path */
    const char *drives;                   /* the folder with the drives */
    const char *groups; /* control groups (groups_open()); NULL: limits of commands do not hold */
    bool machine;       /* we own the machine: set the clock, power off at the end */
    const struct resume *resumed; /* HELLO answers it; NULL: it is the first word */
};
/* Until SHUTDOWN or the end of the stream. @c is the caller's. Returns the exit status. */
int build_loop(const struct build_mode *m, struct chan *c);

/* --- guest.c: a machine of our own --- */

/* What the kernel's command line tells us ("capsule.mode=build"). */
struct cmdline {
    char mode[16], ip[24], gw[16], dns[64], hostname[65];
    char root[80]; /* root=: "PARTLABEL=NAME" or "/dev/NAME"; empty: the disk with that serial */
    unsigned prefix, mtu; /* mtu 0: as it is */
    bool reboot_ends;     /* capsule.poweroff=reboot: a machine without a power switch */
    bool no_shell;        /* capsule.shell=0 */
    bool park;            /* capsule.park=1: before anything of a disk is read */
};
void cmdline_parse(const char *text, struct cmdline *c);
void cmdline_read(struct cmdline *c);
/* Says it on the console, which is our stderr. */
void console_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void machine_end(const struct cmdline *c);

/* --- dhcp.c --- */

struct dhcp_lease {
    char ip[24], gw[16], dns[64]; /* as in struct cmdline; empty: not given */
    unsigned prefix, mtu;         /* mtu 0: not given */
    uint32_t address, server, seconds;
    uint8_t type;
};
/* An IP packet that answers our question @xid. False: it is none, or is malformed. */
bool dhcp_parse(const uint8_t *p, size_t n, uint32_t xid, const uint8_t mac[6],
                struct dhcp_lease *out);
/* Asks on @interface, which is up, for at most 16 seconds. */
int dhcp_get(const char *interface, struct dhcp_lease *out, struct fail *f);

/* capsule.ip=dhcp: asks, and puts the answer in the place of that word. What is wrong is said on
 * the console; then, or without an interface, there is no address. */
void network_ask(struct cmdline *c);
/* "a.b.c.d" to an address in network order. */
bool ipv4_parse(const char *s, uint32_t *out);
/* lo, and the first other interface with the address of the command line. */
int network_up(const struct cmdline *c, struct fail *f);
/* An open virtio-serial port of our name, or -1. Waits up to @wait_ms for it. */
int port_open(int64_t wait_ms);
bool port_connected(int fd);
/* Mounts the disk with the virtio serial @serial, which may still have to appear, at folder @at. */
int disk_mount(const char *serial, const char *at, unsigned long flags, const char *options,
               struct fail *f);
/* PID 1 of the initramfs. */
_Noreturn void guest_main(void);

/* --- bootconf.c: /.capsule/boot.conf, which builder/boot_conf.c writes --- */

struct boot_drive {
    char *label, *path;
    bool read_only;
    bool own;     /* its root folder is given to the default user */
    bool mounted; /* by drives_boot() */
};
struct boot_conf {
    char *hostname, *health, *user, *workdir, *default_user, *default_workdir;
    char *init; /* who is process 1: NULL: the agent; "systemd", "openrc" */
    uint16_t port;
    struct words env, start_argv, start_env;
    struct step_spec *commands;
    size_t n_commands;
    struct boot_drive drives[AG_DRIVES_MAX];
    size_t n_drives;
};
#define BOOT_CONF_PATH "/.capsule/boot.conf"
#define BOOT_CONF_MAX (1u << 20)
int boot_conf_parse(const char *text, size_t n, struct boot_conf *b, struct fail *f);
void boot_conf_release(struct boot_conf *b);

/* --- probe.c: is it ready? --- */

struct probe {
    pid_t pid; /* 0: none runs */
    int fd;    /* its words */
    int64_t next_at, started, connected_at;
    char last[256];
};
/* Is it time to ask? It is once somebody listens on @port, which is looked for every 20 ms and
 * disturbs nobody; and each second all the same. */
bool probe_is_due(struct probe *p, uint16_t port, int64_t now);
/* Does /proc/net/tcp or tcp6 (@sockets) have one that listens on @port? */
bool probe_listens_in(const char *sockets, uint16_t port);
/* One look: GET @path, or just a connection when it is NULL or "". True when ready; @text says what
 * was found. Takes at most about two seconds. */
bool probe_once(uint16_t port, const char *path, char *text, size_t size);
/* The status code of an answer's first line; 0 when it is none. */
unsigned http_status(const char *line, size_t n);
int probe_start(struct probe *p, uint16_t port, const char *path);
/* It was reaped: true when ready; p->last is what it said, *@changed whether that is news. */
bool probe_reaped(struct probe *p, int status, bool *changed);

/* --- init.c: an image whose own init is process 1 --- */

bool init_is_ours(const char *name);
/* Becomes that init; returns only when it cannot. */
int init_become(const char *name, struct fail *f);
/* The name server, for a resolver that has its own files in /run. */
void init_tell_resolver(const char *dns);
/* Asks the init to end the machine, by a reboot where it has no power switch. False: it did not
 * take it. */
bool init_end_machine(const char *name, bool by_reboot);
/* Is all started that starts at boot? A program of systemd's waits for that; OpenRC starts us last.
 */
bool init_up_is_asked(const char *name);
struct init_up {
    pid_t pid; /* 0: none waits */
    int fd;
    int64_t next_at;
};
int init_up_start(struct init_up *u);
/* It was reaped: true when all is started; @how says in what state. */
bool init_up_reaped(struct init_up *u, char *how, size_t size);
/* The same of the word that it said: "running", "degraded", "starting"... */
bool init_up_word(const char *word, char *how, size_t size);

/* --- boot.c: PID 1 of the finished image, or a service of its init --- */

_Noreturn void boot_main(void);
_Noreturn void boot_service(void);
