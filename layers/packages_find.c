/* Where package managers keep their databases, and how these come out of an image. */
#include "layers/ext4_read.h"
#include "layers/sbom.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_STEP (1u << 20)
#define OS_RELEASE_MAX (64u << 10)

struct finder {
    struct ext4_image *im;
    const char *scratch;
    struct image_packages *out;
    uint32_t seen[8]; /* inodes of databases: one may be found by two paths */
    size_t n_seen;
};

CB_DEFINE_CLEANUP(ext4_image, struct ext4_image *, ext4_image_close);
CB_DEFINE_CLEANUP(ext4_file, struct ext4_file *, ext4_file_close);
CB_DEFINE_CLEANUP(ext4_walk, struct ext4_walk *, ext4_walk_close);

void image_packages_release(struct image_packages *p)
{
    package_list_release(&p->list);
    free(p->distro);
    free(p->distro_version);
    cb_strv_release(&p->sources);
    cb_strv_release(&p->notes);
    *p = (struct image_packages){0};
}

/* 1 and the file behind @path, links followed; 0 when there is none. */
static int look(struct finder *f, const char *path, struct ext4_entry *e, struct cb_error *err)
{
    int rc = ext4_image_find(f->im, path, e, err);
    return rc > 0 ? S_ISREG(e->mode) : rc;
}

static int read_file(struct finder *f, const struct ext4_entry *e, struct cb_buf *out,
                     struct cb_error *err)
{
    CB_AUTO(ext4_file) file = NULL;
    int rc = ext4_file_open(f->im, e->ino, &file, err);
    if (rc < 0)
        return rc;
    uint64_t size = ext4_file_size(file);
    CB_AUTO_FREE char *step = cb_xmalloc(COPY_STEP);
    for (uint64_t at = 0; at < size;) {
        int64_t n = ext4_file_pread(file, step, COPY_STEP, at, err);
        if (n < 0)
            return (int)n;
        if (n == 0 || cb_buf_add(out, step, (size_t)n) < 0)
            return cb_fail(err, CB_E_LIMIT, "larger than %zu MiB", (size_t)PACKAGE_DB_MAX >> 20);
        at += (uint64_t)n;
    }
    return 0;
}

static int copy_file(struct finder *f, const struct ext4_entry *e, const char *to,
                     struct cb_error *err)
{
    if (e->size > PACKAGE_RPM_DB_MAX)
        return cb_fail(err, CB_E_LIMIT, "larger than %u MiB", PACKAGE_RPM_DB_MAX >> 20);
    CB_AUTO(ext4_file) file = NULL;
    int rc = ext4_file_open(f->im, e->ino, &file, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FD fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return cb_fail_sys(err, errno, "make %s", to);
    CB_AUTO_FREE char *step = cb_xmalloc(COPY_STEP);
    for (uint64_t at = 0; at < ext4_file_size(file);) {
        int64_t n = ext4_file_pread(file, step, COPY_STEP, at, err);
        if (n < 0)
            return (int)n;
        if (n == 0)
            break;
        if ((rc = cb_pwrite_all(fd, step, (size_t)n, (off_t)at, err)) < 0)
            return rc;
        at += (uint64_t)n;
    }
    return 0;
}

static bool is_new(struct finder *f, uint32_t ino)
{
    for (size_t i = 0; i < f->n_seen; i++)
        if (f->seen[i] == ino)
            return false;
    if (f->n_seen < sizeof(f->seen) / sizeof(*f->seen))
        f->seen[f->n_seen++] = ino;
    return true;
}

static void was_read(struct finder *f, const char *path, const struct timespec *mtime)
{
    cb_strv_add(&f->out->sources, path);
    if (mtime->tv_sec > f->out->newest)
        f->out->newest = mtime->tv_sec;
}

/* What is wrong with a database is about the image and no reason to stop: it is noted. What is
 * wrong with this machine is. */
static int note_or_fail(struct finder *f, const char *path, struct cb_error *why,
                        struct cb_error *err)
{
    if (why->code != CB_E_CORRUPT && why->code != CB_E_LIMIT)
        return cb_error_move(err, why);
    CB_AUTO_FREE char *text = cb_xasprintf("%s: %s", path, why->msg);
    char *clean = package_text(text, strlen(text));
    if (clean)
        cb_strv_take(&f->out->notes, clean);
    return 0;
}

typedef int (*text_reader)(const char *, size_t, struct package_list *, struct cb_error *);

static int read_text_db(struct finder *f, const char *path, const struct ext4_entry *e,
                        text_reader read, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(PACKAGE_DB_MAX);
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    struct timespec mtime = e->mtime;
    int rc = read_file(f, e, &text, &why);
    if (rc == 0)
        rc = read(text.data ? text.data : "", text.len, &f->out->list, &why);
    was_read(f, path, &mtime);
    return rc < 0 ? note_or_fail(f, path, &why, err) : 0;
}

static int find_text_db(struct finder *f, const char *path, text_reader read, struct cb_error *err)
{
    struct ext4_entry e;
    int rc = look(f, path, &e, err);
    return rc <= 0 || !is_new(f, e.ino) ? rc : read_text_db(f, path, &e, read, err);
}

/* ---- dpkg's folder of single files ---- */

static bool leads_to_or_in(const char *path, const char *dir)
{
    size_t n = strlen(path);
    return strcmp(path, ".") == 0 || strcmp(path, dir) == 0 ||
           (strncmp(dir, path, n) == 0 && dir[n] == '/');
}

static int find_status_d(struct finder *f, struct cb_error *err)
{
    static const char dir[] = "var/lib/dpkg/status.d";
    struct ext4_entry e;
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    if (ext4_image_lookup(f->im, dir, false, &e, &miss) < 0 || !S_ISDIR(e.mode))
        return 0;
    CB_AUTO(ext4_walk) w = NULL;
    int rc = ext4_walk_open(f->im, 0, &w, err);
    while (rc >= 0 && (rc = ext4_walk_next(w, &e, err)) > 0) {
        if (S_ISDIR(e.mode)) {
            if (!leads_to_or_in(e.path, dir))
                ext4_walk_skip(w);
            continue;
        }
        size_t n = strlen(e.path), suffix = strlen(".md5sums");
        if (strncmp(e.path, dir, strlen(dir)) != 0 || !S_ISREG(e.mode) || n < suffix ||
            strcmp(e.path + n - suffix, ".md5sums") == 0)
            continue;
        CB_AUTO_FREE char *path = cb_xstrdup(e.path);
        if ((rc = read_text_db(f, path, &e, packages_read_dpkg, err)) < 0)
            break;
    }
    return rc < 0 ? rc : 0;
}

/* ---- rpm ---- */

static void note_bad_headers(struct finder *f, const char *path, size_t n)
{
    if (n)
        cb_strv_addf(&f->out->notes, "%s: %zu package headers are damaged and left out", path, n);
}

static int read_rpm_copy(struct finder *f, const char *path, const struct ext4_entry *e,
                         const char *copy, const char *log, struct cb_error *err)
{
    struct ext4_entry wal;
    CB_AUTO_FREE char *wal_path = cb_xasprintf("%s-wal", path);
    int rc = copy_file(f, e, copy, err);
    int has_log = rc < 0 ? 0 : look(f, wal_path, &wal, err);
    if (rc == 0 && has_log < 0)
        rc = has_log;
    if (rc == 0 && has_log && wal.size)
        rc = copy_file(f, &wal, log, err);
    size_t bad = 0;
    if (rc == 0)
        rc = packages_read_rpm_db(copy, &f->out->list, &bad, err);
    note_bad_headers(f, path, bad);
    return rc;
}

typedef int (*rpm_reader)(const void *, size_t, struct package_list *, size_t *, struct cb_error *);

/* Mapped, so that its size is not memory of ours. Nobody else has the file. */
static int read_mapped(struct finder *f, const char *path, const struct ext4_entry *e,
                       rpm_reader read, struct cb_error *err)
{
    int rc = copy_file(f, e, f->scratch, err);
    if (rc < 0)
        return rc;
    struct stat st;
    CB_AUTO_FD fd = open(f->scratch, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "open %s", f->scratch);
    if (st.st_size == 0)
        return 0;
    size_t bad = 0, len = (size_t)st.st_size;
    void *map = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return cb_fail_sys(err, errno, "map %s", f->scratch);
    rc = read(map, len, &f->out->list, &bad, err);
    (void)munmap(map, len);
    note_bad_headers(f, path, bad);
    return rc;
}

static int find_old_rpm(struct finder *f, const char *path, rpm_reader read, struct cb_error *err)
{
    struct ext4_entry e;
    int rc = look(f, path, &e, err);
    if (rc <= 0 || e.size == 0 || !is_new(f, e.ino))
        return rc;
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    struct timespec mtime = e.mtime;
    rc = read_mapped(f, path, &e, read, &why);
    (void)unlink(f->scratch);
    was_read(f, path, &mtime);
    return rc < 0 ? note_or_fail(f, path, &why, err) : 0;
}

static int find_rpm(struct finder *f, const char *folder, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/rpmdb.sqlite", folder);
    struct ext4_entry e;
    int rc = look(f, path, &e, err);
    if (rc > 0 && is_new(f, e.ino)) {
        CB_AUTO_FREE char *log = cb_xasprintf("%s-wal", f->scratch);
        CB_AUTO_ERROR why = CB_ERROR_INIT;
        struct timespec mtime = e.mtime;
        rc = read_rpm_copy(f, path, &e, f->scratch, log, &why);
        (void)unlink(f->scratch);
        (void)unlink(log);
        was_read(f, path, &mtime);
        if (rc < 0)
            rc = note_or_fail(f, path, &why, err);
    }
    static const struct {
        const char *file;
        rpm_reader read;
    } old[] = {{"Packages", packages_read_rpm_bdb}, {"Packages.db", packages_read_rpm_ndb}};
    for (size_t i = 0; i < sizeof(old) / sizeof(*old) && rc >= 0; i++) {
        CB_AUTO_FREE char *other = cb_xasprintf("%s/%s", folder, old[i].file);
        rc = find_old_rpm(f, other, old[i].read, err);
    }
    return rc < 0 ? rc : 0;
}

/* ---- os-release ---- */

/* The value of @key in lines of KEY=value or KEY="value", if it is a plain word. Owned. */
static char *release_value(const char *text, const char *key)
{
    size_t k = strlen(key);
    for (const char *p = text; p && *p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
        if (strncmp(p, key, k) != 0 || p[k] != '=')
            continue;
        const char *v = p + k + 1;
        if (*v == '"' || *v == '\'')
            v++;
        size_t n = strspn(v, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
        return n && strchr("\"'\r\n", v[n]) ? package_word(v, n) : NULL;
    }
    return NULL;
}

static int read_os_release(struct finder *f, struct cb_error *err)
{
    static const char *const paths[] = {"etc/os-release", "usr/lib/os-release"};
    for (size_t i = 0; i < 2; i++) {
        struct ext4_entry e;
        int rc = look(f, paths[i], &e, err);
        if (rc < 0)
            return rc;
        if (rc == 0 || e.size > OS_RELEASE_MAX)
            continue;
        CB_AUTO_BUF text = CB_BUF_INIT(OS_RELEASE_MAX);
        CB_AUTO_ERROR why = CB_ERROR_INIT;
        if (read_file(f, &e, &text, &why) < 0)
            return note_or_fail(f, paths[i], &why, err);
        f->out->distro = release_value(text.data ? text.data : "", "ID");
        f->out->distro_version = release_value(text.data ? text.data : "", "VERSION_ID");
        return 0;
    }
    return 0;
}

int image_packages_read(const char *image_path, const char *scratch, struct image_packages *out,
                        struct cb_error *err)
{
    CB_AUTO(ext4_image) im = NULL;
    *out = (struct image_packages){0};
    int rc = ext4_image_open(image_path, 0, &im, err);
    if (rc < 0)
        return rc;
    struct finder f = {.im = im, .scratch = scratch, .out = out};
    rc = read_os_release(&f, err);
    if (rc == 0)
        rc = find_text_db(&f, "var/lib/dpkg/status", packages_read_dpkg, err);
    if (rc == 0)
        rc = find_status_d(&f, err);
    if (rc == 0)
        rc = find_text_db(&f, "lib/apk/db/installed", packages_read_apk, err);
    if (rc == 0)
        rc = find_text_db(&f, "usr/lib/apk/db/installed", packages_read_apk, err);
    if (rc == 0)
        rc = find_rpm(&f, "var/lib/rpm", err);
    if (rc == 0)
        rc = find_rpm(&f, "usr/lib/sysimage/rpm", err);
    if (rc < 0)
        image_packages_release(out);
    else
        package_list_sort(&out->list);
    return rc;
}
