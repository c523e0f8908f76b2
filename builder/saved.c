#include "builder/saved.h"

#include "builder/frames.h"
#include "builder/qemu.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* A file: HEAD bytes of JSON, filled up with spaces, then QEMU's state. */
enum {
    FORMAT = 1,
    HEAD = 4096,
    HASH_STEP = 1 << 20,
    MACHINES_MAX = 4,
    FILES_MAX = 1000, /* looked at when there are too many */
    RESUME_TIMEOUT_MS = 30000,
};
#define BYTES_MAX (UINT64_C(2) << 30)
#define STATE_MAX (UINT64_C(64) << 30)

CB_DEFINE_CLEANUP(json, json_t *, json_decref);

struct saved_file {
    int fd;
    uint64_t size; /* of the state */
    struct cb_digest digest;
    struct machine_identity id;
    pthread_t thread; /* hashes while QEMU reads */
    bool hashing;
    struct cb_digest got;
    bool readable;
};

static void saved_file_release(struct saved_file *f)
{
    if (f->hashing)
        (void)pthread_join(f->thread, NULL);
    f->hashing = false;
    cb_close(cb_take_fd(&f->fd));
    machine_identity_release(&f->id);
}

static void note(const struct machine_spec *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static void note(const struct machine_spec *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    CB_AUTO_FREE char *text = cb_xvasprintf(fmt, ap);
    va_end(ap);
    if (s->note)
        s->note(s->note_arg, text);
}

/* The file for machines like this one; QEMU's program by what a package's update changes. Owned,
 * NULL when there is no QEMU. */
static char *saved_path(const struct settings *settings, const struct saved_boot *boot,
                        const struct machine_spec *spec)
{
    CB_AUTO_FREE char *qemu = qemu_find(settings);
    struct stat st;
    if (!qemu || stat(qemu, &st) < 0)
        return NULL;
    char kernel[CB_HEX_LEN + 1], initramfs[CB_HEX_LEN + 1], hex[CB_HEX_LEN + 1];
    cb_digest_hex(&boot->kernel, kernel);
    cb_digest_hex(&boot->initramfs, initramfs);
    CB_AUTO_FREE char *key = cb_xasprintf(
        "%d\n%u\n%s\n%s\n%s %lld %lld.%09ld\n%u %u %zu\n%d %d\n%s\n%s", FORMAT, FRAME_VERSION,
        kernel, initramfs, qemu, (long long)st.st_size, (long long)st.st_mtim.tv_sec,
        st.st_mtim.tv_nsec, spec->vcpus, spec->memory_mib, spec->n_drives, spec->network,
        spec->allow_host_network, spec->hostname ? spec->hostname : "",
        spec->cmdline_extra ? spec->cmdline_extra : "");
    struct cb_digest d;
    cb_sha256(key, strlen(key), &d);
    cb_digest_hex(&d, hex);
    return cb_xasprintf("%s/saved/%.32s.vm", settings->home, hex);
}

/* -- reading -- */

static int parse_head(const char *text, size_t n, struct saved_file *f, struct cb_error *err)
{
    CB_AUTO(json) o = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    int format = 0;
    json_int_t size = 0, vcpus = 0, memory = 0, tsc = 0;
    const char *digest = NULL, *qemu = NULL, *machine = NULL, *cpu = NULL, *network = NULL,
               *cmdline = NULL;
    if (!o ||
        json_unpack(o, "{s:i, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I}", "format", &format,
                    "size", &size, "digest", &digest, "qemu", &qemu, "machine", &machine, "cpu",
                    &cpu, "network", &network, "cmdline", &cmdline, "vcpus", &vcpus, "memory_mib",
                    &memory, "tsc_khz", &tsc) < 0 ||
        format != FORMAT || size <= 0 || (uint64_t)size > STATE_MAX || vcpus < 1 ||
        vcpus > UINT16_MAX || memory < 1 || memory > UINT32_MAX || tsc < 0 || tsc > UINT32_MAX ||
        !cb_digest_parse(digest, &f->digest) || !cb_digest_parse(cmdline, &f->id.cmdline))
        return cb_fail(err, CB_E_CORRUPT, "its head is not one");
    f->size = (uint64_t)size;
    f->id = (struct machine_identity){.cmdline = f->id.cmdline,
                                      .qemu = cb_xstrdup(qemu),
                                      .machine = cb_xstrdup(machine),
                                      .cpu = cb_xstrdup(cpu),
                                      .network = cb_xstrdup(network),
                                      .vcpus = (uint32_t)vcpus,
                                      .memory_mib = (uint32_t)memory,
                                      .tsc_khz = (uint32_t)tsc};
    return 0;
}

/* 1 opened, 0 there is none. */
static int open_saved(const char *path, struct saved_file *f, struct cb_error *err)
{
    char head[HEAD];
    struct stat st;
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (f->fd < 0 && errno == ENOENT)
        return 0;
    if (f->fd < 0 || fstat(f->fd, &st) < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    if (st.st_uid != geteuid() || (st.st_mode & 0077))
        return cb_fail(err, CB_E_CORRUPT, "others may have written %s", path);
    int rc = cb_pread_all(f->fd, head, sizeof(head), 0, err);
    if (rc == 0)
        rc = parse_head(head, sizeof(head), f, err);
    if (rc == 0 && (uint64_t)st.st_size != HEAD + f->size)
        rc = cb_fail(err, CB_E_CORRUPT, "it is cut");
    if (rc == 0 && lseek(f->fd, HEAD, SEEK_SET) < 0)
        rc = cb_fail_sys(err, errno, "read %s", path);
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};
    if (rc == 0)
        (void)futimens(f->fd, times); /* the longest unused one goes first */
    return rc < 0 ? rc : 1;
}

/* Does not move the descriptor's position, which QEMU shares. */
static int hash_state(int fd, uint64_t size, struct cb_digest *out, struct cb_error *err)
{
    CB_AUTO_FREE char *buf = cb_xmalloc(HASH_STEP);
    struct cb_hasher *h = cb_hasher_new();
    int rc = 0;
    for (uint64_t at = 0; at < size && rc == 0;) {
        size_t n = size - at < HASH_STEP ? (size_t)(size - at) : HASH_STEP;
        rc = cb_pread_all(fd, buf, n, (off_t)(HEAD + at), err);
        if (rc == 0)
            cb_hasher_update(h, buf, n);
        at += n;
    }
    cb_hasher_final(h, out);
    cb_hasher_free(h);
    return rc;
}

static void *hash_main(void *arg)
{
    struct saved_file *f = arg;
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    f->readable = hash_state(f->fd, f->size, &f->got, &ignored) == 0;
    return NULL;
}

/* QEMU has read it, and the guest does not run yet. */
static int check_digest(void *arg, struct cb_error *err)
{
    struct saved_file *f = arg;
    if (f->hashing)
        (void)pthread_join(f->thread, NULL);
    else
        (void)hash_main(f);
    f->hashing = false;
    if (f->readable && cb_digest_eq(&f->got, &f->digest))
        return 0;
    return cb_fail(err, CB_E_CORRUPT, "its bytes are not those that were saved");
}

/* 1 it runs and answers, 0 there is none; negative: it cannot be used. */
static int try_resume(const struct settings *settings, const char *path, struct machine_spec *spec,
                      const struct session_callbacks *cb, struct machine **m, struct session **s,
                      struct cb_error *err)
{
    struct saved_file f = {.fd = -1};
    int rc = open_saved(path, &f, err);
    if (rc == 1) {
        f.hashing = pthread_create(&f.thread, NULL, hash_main, &f) == 0;
        const struct machine_saved saved = {
            .id = &f.id, .state = f.fd, .check = check_digest, .check_arg = &f};
        spec->resume = &saved;
        int64_t began = cb_monotonic_ms();
        rc = machine_vm.start(settings, spec, m, err);
        spec->resume = NULL;
        if (rc >= 0)
            rc = session_with(*m, RESUME_TIMEOUT_MS, cb, s, err);
        if (rc >= 0)
            note(spec, "a builder machine that was saved went on after %lld ms",
                 (long long)(cb_monotonic_ms() - began));
        rc = rc < 0 ? rc : 1;
    }
    saved_file_release(&f);
    return rc;
}

/* -- writing -- */

static int write_head(int fd, const struct machine_identity *id, struct cb_error *err)
{
    struct stat st;
    struct cb_digest d;
    char digest[CB_DIGEST_LEN + 1], cmdline[CB_DIGEST_LEN + 1], head[HEAD];
    if (fstat(fd, &st) < 0 || st.st_size <= HEAD)
        return cb_fail(err, CB_E_SYS, "nothing was saved");
    uint64_t size = (uint64_t)st.st_size - HEAD;
    int rc = hash_state(fd, size, &d, err);
    if (rc < 0)
        return rc;
    cb_digest_text(&d, digest);
    cb_digest_text(&id->cmdline, cmdline);
    CB_AUTO(json)
    o = json_pack("{s:i, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I}", "format", FORMAT,
                  "size", (json_int_t)size, "digest", digest, "qemu", id->qemu, "machine",
                  id->machine, "cpu", id->cpu, "network", id->network, "cmdline", cmdline, "vcpus",
                  (json_int_t)id->vcpus, "memory_mib", (json_int_t)id->memory_mib, "tsc_khz",
                  (json_int_t)id->tsc_khz);
    CB_AUTO_FREE char *text = o ? json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    if (!text || strlen(text) >= HEAD)
        return cb_fail(err, CB_E_LIMIT, "the description of the machine is too long");
    memset(head, ' ', sizeof(head));
    memcpy(head, text, strlen(text));
    return cb_pwrite_all(fd, head, sizeof(head), 0, err);
}

struct found {
    char *name;
    struct timespec used;
    uint64_t bytes;
};

static int newest_first(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    if (x->used.tv_sec != y->used.tv_sec)
        return x->used.tv_sec < y->used.tv_sec ? 1 : -1;
    return (x->used.tv_nsec < y->used.tv_nsec) - (x->used.tv_nsec > y->used.tv_nsec);
}

/* Those that were used last stay. Who has one open keeps it. */
static void trim(const char *dir)
{
    struct found *v = NULL;
    size_t n = 0, cap = 0;
    CB_AUTO_DIR d = opendir(dir);
    const struct dirent *e;
    while (d && n < FILES_MAX && (e = readdir(d))) {
        struct stat st;
        if (e->d_name[0] == '.' || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISREG(st.st_mode))
            continue;
        v = cb_xgrow(v, &cap, n, sizeof(*v));
        v[n++] = (struct found){cb_xstrdup(e->d_name), st.st_mtim, (uint64_t)st.st_blocks * 512};
    }
    if (n)
        qsort(v, n, sizeof(*v), newest_first);
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += v[i].bytes;
        if (i >= MACHINES_MAX || sum > BYTES_MAX)
            (void)unlinkat(dirfd(d), v[i].name, 0);
        free(v[i].name);
    }
    free(v);
}

static int keep(int fd, const char *tmp, const char *path, const struct machine_identity *id,
                struct cb_error *err)
{
    CB_AUTO_FREE char *dir = cb_xstrndup(path, (size_t)(strrchr(path, '/') - path));
    int rc = write_head(fd, id, err);
    if (rc == 0)
        rc = cb_mkdir_p(dir, 0700, err);
    if (rc == 0 && rename(tmp, path) < 0)
        rc = cb_fail_sys(err, errno, "keep %s", path);
    if (rc == 0)
        trim(dir);
    return rc;
}

/* The machine @m is parked: saves it, and lets it go on. Negative when it does not go on; that it
 * could not be saved is a note. */
static int save_and_go_on(const char *path, const struct machine_spec *spec, struct machine *m,
                          struct session *s, struct cb_error *err)
{
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    CB_AUTO_FREE char *tmp = cb_xasprintf("%s/machine.vm", spec->work_dir);
    CB_AUTO_FD fd = open(tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int rc = fd < 0 || lseek(fd, HEAD, SEEK_SET) < 0 ? cb_fail_sys(&why, errno, "make %s", tmp) : 0;
    if (rc == 0)
        rc = machine_vm_save(m, fd, &why);
    if (rc == -(int)CB_E_CANCELED)
        return cb_error_move(err, &why);
    int go = machine_vm_go_on(m, err);
    if (go == 0)
        go = session_resume(s, machine_limit(m, RESUME_TIMEOUT_MS), err);
    if (go == 0 && rc == 0)
        rc = keep(fd, tmp, path, machine_vm_identity(m), &why);
    if (go == 0 && rc < 0)
        note(spec, "the builder machine was not saved for later builds: %s", why.msg);
    (void)unlink(tmp);
    return go;
}

static void stop(struct machine **m, struct session **s)
{
    session_free(*s);
    if (*m)
        (*m)->driver->stop(*m, 0);
    *s = NULL;
    *m = NULL;
}

static int boot(const struct settings *settings, const struct machine_driver *driver,
                struct machine_spec *spec, const struct session_callbacks *cb, struct machine **m,
                struct session **s, struct cb_error *err)
{
    int rc = driver->start(settings, spec, m, err);
    if (rc < 0)
        return cb_wrap(err, "start the %s", driver->name);
    rc = session_with(*m, 0, cb, s, err);
    return rc < 0 ? cb_wrap(err, "the builder's agent did not answer") : rc;
}

int saved_start(const struct settings *settings, const struct machine_driver *driver,
                const struct saved_boot *of, struct machine_spec *spec,
                const struct session_callbacks *cb, struct machine **m, struct session **s,
                struct cb_error *err)
{
    CB_AUTO_FREE char *path = driver == &machine_vm ? saved_path(settings, of, spec) : NULL;
    *m = NULL;
    *s = NULL;
    if (!path)
        return boot(settings, driver, spec, cb, m, s, err);
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    int rc = try_resume(settings, path, spec, cb, m, s, &why);
    if (rc == 1)
        return 0;
    if (rc < 0) {
        stop(m, s);
        if (rc == -(int)CB_E_CANCELED)
            return cb_error_move(err, &why);
        note(spec, "the saved builder machine is not used, it is booted: %s", why.msg);
        (void)unlink(path); /* the next one is saved again */
        cb_error_clear(&why);
    }
    spec->parks = true;
    rc = boot(settings, driver, spec, cb, m, s, err);
    spec->parks = false;
    if (rc <= 0)
        return rc;
    rc = save_and_go_on(path, spec, *m, *s, &why);
    if (rc == 0)
        return 0;
    stop(m, s);
    if (rc == -(int)CB_E_CANCELED)
        return cb_error_move(err, &why);
    note(spec, "the builder machine did not go on after it was saved, it is booted again: %s",
         why.msg);
    return boot(settings, driver, spec, cb, m, s, err);
}
