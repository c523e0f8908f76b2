#include "layers/export_private.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"
#include "support/proc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define TMP_PREFIX ".capsule-export-"

enum {
    PIECE = 8 << 20, /* copied between two looks at whether to stop */
    STDERR_MAX = 64 << 10,
    POLL_MS = 200,
    TOOL_GRACE_MS = 1000,
};

static const char *const names[EXPORT_N] = {
    [EXPORT_EXT4] = "ext4", [EXPORT_RAW] = "raw", [EXPORT_QCOW2] = "qcow2",
    [EXPORT_GCE] = "gce",   [EXPORT_OCI] = "oci", [EXPORT_DIR_TAR] = "dir-tar",
};

const char *export_format_name(enum export_format f)
{
    return names[f];
}

int export_format_from_name(const char *name)
{
    for (int i = 0; i < EXPORT_N; i++)
        if (strcmp(name, names[i]) == 0)
            return i;
    return -1;
}

/* ---- what is unfinished ---- */

bool export_to_stdout(const struct export *x)
{
    return strcmp(x->s->out, "-") == 0;
}

char *export_tmp(const struct export *x, const char *name)
{
    return cb_xasprintf("%s/%s", x->tmp, name);
}

int export_create(const struct export *x, const char *name, struct cb_error *err)
{
    CB_AUTO_FREE char *path = export_tmp(x, name);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return fd < 0 ? cb_fail_sys(err, errno, "make %s", path) : fd;
}

int export_open_out(const struct export *x, struct cb_error *err)
{
    if (!export_to_stdout(x))
        return export_create(x, "out", err);
    int fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    return fd < 0 ? cb_fail_sys(err, errno, "standard output") : fd;
}

/* The folder that @path is or will be in. Owned. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return cb_xstrdup(".");
    return cb_xstrndup(path, slash == path ? 1 : (size_t)(slash - path));
}

/* Those of exports that were killed: nobody has their lock. */
static void sweep(const char *dir)
{
    CB_AUTO_DIR d = opendir(dir);
    struct dirent *e;
    while (d && (e = readdir(d)) != NULL) {
        if (strncmp(e->d_name, TMP_PREFIX, sizeof(TMP_PREFIX) - 1) != 0)
            continue;
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, e->d_name);
        CB_AUTO_FD fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        struct stat st;
        if (fd < 0 || fstat(fd, &st) < 0 || st.st_uid != geteuid() ||
            flock(fd, LOCK_EX | LOCK_NB) < 0)
            continue;
        (void)cb_remove_tree(path, NULL);
    }
}

/* Between its making and its lock a sweep may take it: then another is made. */
int export_begin(struct export *x, const char *out, struct cb_error *err)
{
    CB_AUTO_FREE char *dir = NULL;
    x->lock = -1;
    if (strcmp(out, "-") != 0)
        dir = folder_of(out);
    else if ((dir = store_tmp_path(x->s->store, "export")) == NULL || mkdir(dir, 0700) < 0)
        return cb_fail_sys(err, errno, "make a folder in %s/tmp", store_dir(x->s->store));
    sweep(dir);
    for (int tries = 0; tries < 16; tries++) {
        CB_AUTO_FREE char *path = cb_xasprintf("%s/" TMP_PREFIX "XXXXXX", dir);
        if (!mkdtemp(path))
            return cb_fail_sys(err, errno, "write to %s", dir);
        CB_AUTO_FD fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        struct stat held, named;
        if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0 || fstat(fd, &held) < 0 ||
            stat(path, &named) < 0 || held.st_ino != named.st_ino)
            continue;
        x->lock = cb_take_fd(&fd);
        x->tmp = cb_take_ptr(&path);
        return 0;
    }
    return cb_fail(err, CB_E_CONFLICT, "write to %s: our folder vanishes again and again", dir);
}

void export_end(struct export *x)
{
    if (x->tmp)
        (void)cb_remove_tree(x->tmp, NULL);
    cb_close(x->lock);
    free(x->tmp);
}

/* ---- going on, or not ---- */

static bool canceled(const struct export *x)
{
    return x->s->canceled && x->s->canceled();
}

int export_advance(struct export *x, uint64_t n, struct cb_error *err)
{
    x->done += n;
    if (x->done > x->total)
        x->total = x->done;
    if (canceled(x))
        return cb_fail(err, CB_E_CANCELED, "interrupted; nothing was left");
    const struct layers_progress *p = x->s->progress;
    if (p && p->bytes)
        p->bytes(p->arg, x->done, x->total, "bytes");
    return 0;
}

int export_write(const struct export *x, int fd, const void *p, size_t n, struct cb_error *err)
{
    struct stat st;
    bool file = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    for (size_t done = 0; done < n;) {
        size_t part = n - done;
        struct pollfd w = {.fd = fd, .events = POLLOUT};
        if (!file && part > PIPE_BUF)
            part = PIPE_BUF; /* what poll() promises not to wait for */
        int ready = file ? 1 : poll(&w, 1, POLL_MS);
        if (canceled(x))
            return cb_fail(err, CB_E_CANCELED, "interrupted; nothing was left");
        if (ready <= 0)
            continue;
        ssize_t k = write(fd, (const char *)p + done, part);
        if (k < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (k < 0 && errno == EPIPE)
            return cb_fail_sys(err, errno, "who reads the export is gone");
        if (k < 0)
            return cb_fail_sys(err, errno, "write the export");
        done += (size_t)k;
    }
    return 0;
}

void export_note(const struct export *x, const char *fmt, ...)
{
    const struct layers_progress *p = x->s->progress;
    if (!p || !p->note)
        return;
    va_list ap;
    va_start(ap, fmt);
    CB_AUTO_FREE char *text = cb_xvasprintf(fmt, ap);
    va_end(ap);
    p->note(p->arg, text);
}

/* ---- bytes ---- */

/* The image's digest: the template's, or that of the drive that is asked for. NULL: no such drive.
 */
static const struct cb_digest *wanted(const struct export_spec *s)
{
    const struct cb_digest *found = s->drive ? NULL : &s->t->image;
    for (size_t i = 0; s->drive && i < s->t->n_drives; i++)
        if (strcmp(s->t->drives[i].drive_id, s->drive) == 0)
            found = &s->t->drives[i].image;
    return found;
}

/* Where drives are to be had, "a, b". Owned. */
static char *drive_ids(const struct template_manifest *t)
{
    struct cb_buf b = CB_BUF_INIT(65536);
    for (size_t i = 0; i < t->n_drives; i++)
        (void)cb_buf_addf(&b, "%s%s", i ? ", " : "", t->drives[i].drive_id);
    return cb_buf_take(&b);
}

int export_open_image(const struct export *x, char **path, struct cb_error *err)
{
    CB_AUTO_FREE char *image = NULL;
    int rc = store_image_path(x->s->store, wanted(x->s), &image, err);
    if (rc < 0)
        return cb_wrap(err, "the image of %s version %llu", x->s->t->name,
                       (unsigned long long)x->s->t->version);
    int fd = open(image, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", image);
    if (path)
        *path = cb_take_ptr(&image);
    return fd;
}

/* The next part of @from that holds data, from *@at on: 1 and [*@at, *@end), 0 behind the last. */
static int next_data(int from, off_t size, off_t *at, off_t *end)
{
    off_t data = lseek(from, *at, SEEK_DATA);
    if (*at >= size || (data < 0 && errno == ENXIO))
        return 0;
    if (data < 0)
        data = *at; /* no SEEK_DATA here: all of it */
    off_t hole = lseek(from, data, SEEK_HOLE);
    *at = data;
    *end = hole <= data ? size : hole;
    return 1;
}

int export_copy(struct export *x, int from, int to, uint64_t at, struct cb_error *err)
{
    struct stat st;
    if (fstat(from, &st) < 0)
        return cb_fail_sys(err, errno, "read the image");
    struct file_clone_range all = {.src_fd = from, .dest_offset = at};
    if (ioctl(to, FICLONERANGE, &all) == 0)
        return export_advance(x, (uint64_t)st.st_size, err);
    off_t pos = 0, end;
    int rc = 0;
    while (rc == 0 && next_data(from, st.st_size, &pos, &end)) {
        for (; rc == 0 && pos < end; pos += PIECE) {
            uint64_t n = (uint64_t)(end - pos < PIECE ? end - pos : PIECE);
            rc = cb_copy_range(from, pos, to, (off_t)at + pos, n, err);
            if (rc == 0)
                rc = export_advance(x, n, err);
        }
        pos = end;
    }
    return rc;
}

int export_stream(struct export *x, int from, int to, struct cb_error *err)
{
    struct stat st;
    if (fstat(from, &st) < 0)
        return cb_fail_sys(err, errno, "read the image");
    CB_AUTO_FREE char *buf = cb_xmalloc(PIECE);
    for (off_t at = 0; at < st.st_size;) {
        size_t n = (size_t)(st.st_size - at < PIECE ? st.st_size - at : PIECE);
        int rc = cb_pread_all(from, buf, n, at, err);
        if (rc == 0)
            rc = export_write(x, to, buf, n, err);
        if (rc == 0)
            rc = export_advance(x, n, err);
        if (rc < 0)
            return rc;
        at += (off_t)n;
    }
    return 0;
}

/* ---- programs ---- */

int export_missing(const struct export *x, const char *what, const char *package,
                   struct cb_error *err)
{
    cb_fail(err, CB_E_ENV, "--format %s needs %s, which is not here", names[x->s->format], what);
    return cb_hint(err, "install it (Debian: apt-get install %s)", package);
}

/* The last line that the program said, in the error. */
static int tool_failed(struct export *x, const char *program, int status, struct cb_error *err)
{
    CB_AUTO_FREE char *path = export_tmp(x, "stderr");
    struct cb_proc_result r = {.status = status, .err = CB_BUF_INIT(STDERR_MAX)};
    (void)cb_read_file(path, STDERR_MAX, &r.err, NULL);
    int rc = cb_proc_check(&r, program, err);
    cb_proc_result_release(&r);
    return rc;
}

int export_tool(struct export *x, const char *const *argv, int input, const char *package,
                struct cb_error *err)
{
    /* The same bytes whoever runs it, wherever and whenever: FAT's times begin in 1980. */
    static const char *const env[] = {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL=C",
        "TZ=UTC",
        "HOME=/",
        "MTOOLSRC=/dev/null",
        "SOURCE_DATE_EPOCH=315532800",
        NULL};
    CB_AUTO_FREE char *program = cb_find_program(argv[0]);
    if (!program)
        return export_missing(x, argv[0], package, err);
    CB_AUTO_FREE char *said = export_tmp(x, "stderr");
    CB_AUTO_FD log = open(said, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (log < 0)
        return cb_fail_sys(err, errno, "make %s", said);
    if (input >= 0 && lseek(input, 0, SEEK_SET) < 0)
        return cb_fail_sys(err, errno, "rewind");
    const struct cb_proc_fd fds[] = {{log, 2}, {input, 0}};
    const struct cb_proc_spec spec = {
        .argv = argv, .env = env, .fds = fds, .n_fds = input >= 0 ? 2 : 1, .cwd = x->tmp};
    pid_t pid = cb_proc_start(&spec, err);
    if (pid < 0)
        return (int)pid;
    int status = 0, rc;
    while ((rc = cb_proc_wait(pid, POLL_MS, &status, err)) == 0 && !canceled(x))
        ;
    if (rc == 0)
        cb_proc_stop(pid, false, TOOL_GRACE_MS);
    if (canceled(x) && rc >= 0)
        return cb_fail(err, CB_E_CANCELED, "interrupted; nothing was left");
    return rc < 0 ? rc : tool_failed(x, argv[0], status, err);
}

/* ---- ext4 ---- */

static int make_ext4(struct export *x, struct cb_error *err)
{
    struct stat st;
    CB_AUTO_FD image = export_open_image(x, NULL, err);
    if (image < 0)
        return image;
    if (fstat(image, &st) < 0)
        return cb_fail_sys(err, errno, "read the image");
    if (x->s->size && x->s->size < (uint64_t)st.st_size) {
        char asked[32], has[32];
        cb_human_bytes(x->s->size, asked, sizeof(asked));
        cb_human_bytes((uint64_t)st.st_size, has, sizeof(has));
        cb_fail(err, CB_E_CONFIG, "--size %s: the file system has %s", asked, has);
        return cb_hint(err, "it can grow, not shrink; config.rootfs_size_gb decides what it has");
    }
    uint64_t size = x->s->size ? x->s->size : (uint64_t)st.st_size;
    x->total = (uint64_t)st.st_blocks * 512;
    CB_AUTO_FD out = export_open_out(x, err);
    if (out < 0)
        return out;
    if (export_to_stdout(x)) {
        x->total = (uint64_t)st.st_size;
        return export_stream(x, image, out, err);
    }
    if (ftruncate(out, (off_t)size) < 0)
        return cb_fail_sys(err, errno, "make a file of %llu bytes", (unsigned long long)size);
    return export_copy(x, image, out, 0, err);
}

/* ---- the whole ---- */

static int check_drive(const struct export_spec *s, struct cb_error *err)
{
    if (s->format != EXPORT_EXT4)
        return cb_fail(err, CB_E_CONFIG, "--drive belongs to --format ext4");
    if (s->kernel_dir)
        return cb_fail(err, CB_E_CONFIG, "--drive has no kernel: --with-kernel goes with the root");
    if (s->size)
        return cb_fail(err, CB_E_CONFIG, "--size: a drive has the size that the config gave it");
    if (wanted(s))
        return 0;
    cb_fail(err, CB_E_NOTFOUND, "%s version %llu has no drive %s", s->t->name,
            (unsigned long long)s->t->version, s->drive);
    CB_AUTO_FREE char *ids = drive_ids(s->t);
    return s->t->n_drives ? cb_hint(err, "it has %s", ids) : -(int)err->code;
}

/* What somebody would miss who moves the template elsewhere by the one file. */
static void note_drives(const struct export *x)
{
    CB_AUTO_FREE char *ids = drive_ids(x->s->t);
    if (x->s->t->n_drives && !x->s->drive)
        export_note(x, "its drives (%s) are not part of it: --format ext4 --drive ID writes one",
                    ids);
}

static int check(const struct export_spec *s, struct cb_error *err)
{
    bool disk = s->format == EXPORT_RAW || s->format == EXPORT_QCOW2 || s->format == EXPORT_GCE;
    struct stat st;
    int rc = s->drive ? check_drive(s, err) : 0;
    if (rc < 0)
        return rc;
    if (s->size && !disk && s->format != EXPORT_EXT4)
        return cb_fail(err, CB_E_CONFIG, "--size: --format %s has none", names[s->format]);
    if (s->kernel_dir && s->format != EXPORT_EXT4)
        return cb_fail(err, CB_E_CONFIG, "--with-kernel belongs to --format ext4");
    if (s->kernel_dir && lstat(s->kernel_dir, &st) == 0)
        return cb_fail(err, CB_E_CONFIG, "--with-kernel %s: is there already", s->kernel_dir);
    if (strcmp(s->out, "-") == 0) {
        if (s->size && s->format == EXPORT_EXT4)
            return cb_fail(err, CB_E_CONFIG,
                           "--size: a file system that is streamed does not grow");
        return 0;
    }
    size_t n = strlen(s->out);
    if (n == 0 || s->out[n - 1] == '/')
        return cb_fail(err, CB_E_CONFIG, "-o %s: not the name of a file", s->out);
    if (lstat(s->out, &st) == 0 && !S_ISREG(st.st_mode)) {
        cb_fail(err, CB_E_CONFIG, "-o %s: is there, and is not a file", s->out);
        return cb_hint(err, "files are replaced, folders are not: remove it, or give another name");
    }
    return 0;
}

int export_publish(struct export *x, const char *to, uint64_t *size, struct cb_error *err)
{
    CB_AUTO_FREE char *from = export_tmp(x, "out");
    CB_AUTO_FREE char *dir = folder_of(to);
    struct stat st;
    CB_AUTO_FD fd = open(from, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "open %s", from);
    if (S_ISREG(st.st_mode))
        *size = (uint64_t)st.st_size;
    if (fsync(fd) < 0)
        return cb_fail_sys(err, errno, "sync %s", from);
    if (rename(from, to) < 0)
        return cb_fail_sys(err, errno, "rename to %s", to);
    return cb_fsync_dir(dir, err);
}

int export_run(const struct export_spec *spec, uint64_t *size, struct cb_error *err)
{
    static int (*const make[EXPORT_N])(struct export *, struct cb_error *) = {
        [EXPORT_EXT4] = make_ext4,         [EXPORT_RAW] = export_make_disk,
        [EXPORT_QCOW2] = export_make_disk, [EXPORT_GCE] = export_make_disk,
        [EXPORT_OCI] = export_make_oci,    [EXPORT_DIR_TAR] = export_make_tar,
    };
    struct export x = {.s = spec, .lock = -1};
    uint64_t ignored = 0;
    int rc = check(spec, err);
    if (rc < 0)
        return rc;
    note_drives(&x);
    rc = export_begin(&x, spec->out, err);
    if (rc == 0)
        rc = make[spec->format](&x, err);
    if (rc == 0 && spec->kernel_dir) /* first: what is there without it would look whole */
        rc = export_make_kernel_dir(&x, err);
    if (rc == 0 && !export_to_stdout(&x))
        rc = export_publish(&x, spec->out, size ? size : &ignored, err);
    export_end(&x);
    return rc;
}
