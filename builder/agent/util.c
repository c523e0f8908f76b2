#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

int fail_set(struct fail *f, enum fail_kind kind, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    f->kind = kind;
    (void)vsnprintf(f->text, sizeof f->text, fmt, ap);
    va_end(ap);
    return -1;
}

int fail_sys(struct fail *f, int err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    f->kind = err == ENOSPC || err == EDQUOT ? FAIL_SPACE : FAIL_SYSTEM;
    int n = vsnprintf(f->text, sizeof f->text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof f->text)
        (void)snprintf(f->text + n, sizeof f->text - (size_t)n, ": %s", strerror(err));
    return -1;
}

void *ag_realloc(void *p, size_t n)
{
    p = realloc(p, n ? n : 1);
    if (!p) {
        static const char msg[] = "capsule-agent: out of memory\n";
        (void)!write(2, msg, sizeof msg - 1);
        _exit(70);
    }
    return p;
}

void *ag_alloc(size_t n)
{
    void *p = ag_realloc(NULL, n);
    memset(p, 0, n ? n : 1);
    return p;
}

char *ag_strndup(const void *p, size_t n)
{
    char *s = ag_alloc(n + 1);
    if (n)
        memcpy(s, p, n);
    return s;
}

char *ag_strdup(const char *s)
{
    return ag_strndup(s, strlen(s));
}

void words_take(struct words *w, char *s)
{
    if (w->n + 2 > w->cap) {
        w->cap = w->cap ? w->cap * 2 : 16;
        w->v = ag_realloc(w->v, w->cap * sizeof *w->v);
    }
    w->v[w->n++] = s;
    w->v[w->n] = NULL;
}

void words_add(struct words *w, const char *s)
{
    words_take(w, ag_strdup(s));
}

void words_release(struct words *w)
{
    for (size_t i = 0; i < w->n; i++)
        free(w->v[i]);
    free(w->v);
    *w = (struct words){0};
}

void text_add(struct text *t, const void *p, size_t n)
{
    if (t->n + n + 1 > t->cap) {
        t->cap = (t->n + n + 1) * 2;
        t->p = ag_realloc(t->p, t->cap);
    }
    if (n)
        memcpy(t->p + t->n, p, n);
    t->n += n;
    t->p[t->n] = 0;
}

void text_puts(struct text *t, const char *s)
{
    text_add(t, s, strlen(s));
}

void text_release(struct text *t)
{
    free(t->p);
    *t = (struct text){0};
}

int64_t now_ms(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int write_all(int fd, const void *p, size_t n)
{
    const uint8_t *b = p;
    while (n) {
        ssize_t w = write(fd, b, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return -1;
        b += w;
        n -= (size_t)w;
    }
    return 0;
}

int read_file(const char *path, size_t max, struct text *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return -1;
    char buf[4096];
    int rc = 0;
    text_add(out, "", 0);
    for (;;) {
        ssize_t n = read(fd, buf, sizeof buf);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            rc = n < 0 ? -1 : 0;
            break;
        }
        if ((size_t)n > max - out->n) {
            errno = EFBIG;
            rc = -1;
            break;
        }
        text_add(out, buf, (size_t)n);
    }
    int saved = errno;
    (void)close(fd);
    errno = saved;
    return rc;
}

int write_file(const char *path, const void *p, size_t n, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return -1;
    int rc = write_all(fd, p, n);
    if (rc == 0)
        rc = fchmod(fd, mode);
    int saved = errno;
    (void)close(fd);
    errno = saved;
    return rc;
}

void poke(const char *path, const char *word)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)!write(fd, word, strlen(word));
    (void)close(fd);
}

int make_dirs(const char *path, mode_t mode)
{
    char *copy = ag_strdup(path);
    int rc = 0;
    for (char *p = copy + 1; rc == 0; p++) {
        if (*p != '/' && *p != 0)
            continue;
        bool last = *p == 0;
        *p = 0;
        struct stat st;
        if (mkdir(copy, mode) < 0 &&
            (errno != EEXIST || stat(copy, &st) < 0 || !S_ISDIR(st.st_mode))) {
            if (errno == EEXIST)
                errno = ENOTDIR;
            rc = -1;
        }
        if (last)
            break;
        *p = '/';
    }
    int saved = errno;
    free(copy);
    errno = saved;
    return rc;
}

bool parse_number(const char *s, uint64_t max, uint64_t *v)
{
    uint64_t n = 0;
    if (!*s)
        return false;
    for (; *s; s++) {
        if (*s < '0' || *s > '9')
            return false;
        uint64_t d = (uint64_t)(*s - '0');
        if (d > max || n > (max - d) / 10)
            return false;
        n = n * 10 + d;
    }
    *v = n;
    return true;
}

static void close_range_by_hand(unsigned first, unsigned last)
{
#ifdef SYS_close_range
    if (first > last || syscall(SYS_close_range, first, last, 0) == 0)
        return;
#endif
    long max = sysconf(_SC_OPEN_MAX);
    if (max < 0 || max > 65536)
        max = 65536;
    for (unsigned fd = first; fd <= last && fd < (unsigned)max; fd++)
        (void)close((int)fd);
}

/* Closes everything from @first on but @keep1 and @keep2 (either may be -1). */
void close_from(int first, int keep1, int keep2)
{
    int lo = keep1 < keep2 ? keep1 : keep2, hi = keep1 < keep2 ? keep2 : keep1;
    int at = first;
    if (lo >= at) {
        close_range_by_hand((unsigned)at, (unsigned)lo - 1);
        at = lo + 1;
    }
    if (hi >= at) {
        if (hi > at)
            close_range_by_hand((unsigned)at, (unsigned)hi - 1);
        at = hi + 1;
    }
    close_range_by_hand((unsigned)at, ~0u);
}

static void copy_xattrs(int from, int to)
{
    char names[8192];
    ssize_t n = flistxattr(from, names, sizeof names);
    for (ssize_t i = 0; i < n;) {
        const char *name = names + i;
        i += (ssize_t)strlen(name) + 1;
        if (strncmp(name, "trusted.", 8) == 0)
            continue;
        char value[8192];
        ssize_t len = fgetxattr(from, name, value, sizeof value);
        if (len >= 0)
            (void)fsetxattr(to, name, value, (size_t)len, 0);
    }
}

int copy_dir_attributes(int from, int to)
{
    struct stat st;
    if (fstat(from, &st) < 0)
        return -1;
    copy_xattrs(from, to);
    if (fchown(to, st.st_uid, st.st_gid) < 0 || fchmod(to, st.st_mode & 07777) < 0)
        return -1;
    struct timespec times[2] = {st.st_atim, st.st_mtim};
    return futimens(to, times);
}
