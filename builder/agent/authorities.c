/* authorities: where the host's network needs it, a file with the authorities that the image trusts
 * and those of the host, for programs of the layer's commands. It lies on the layer's own /run,
 * which no diff has, and is mounted read-only there: root in a layer cannot change what the steps
 * after it trust. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIR "/run/capsule-build"
#define NAME "authorities.pem"
#define FRESH "fresh"
_Static_assert(sizeof(DIR "/" NAME) == sizeof(FRAME_AUTHORITIES_PATH), "one path");

enum { IMAGE_MAX = 4 << 20 };

int authorities_take(struct text *t, const uint8_t *p, size_t n, struct fail *f)
{
    struct frame_field x;
    int got;
    for (const uint8_t *end = p + n; (got = frame_next(&p, end, &x)) > 0;) {
        if (x.tag != TAG_DATA)
            continue;
        if (x.len > FRAME_AUTHORITIES_MAX - t->n)
            return fail_set(f, FAIL_PROTOCOL, "too many authorities");
        text_add(t, x.data, x.len);
    }
    return got < 0 ? fail_set(f, FAIL_PROTOCOL, "a field that does not end") : 0;
}

int authorities_open(const struct text *t, int *out, struct fail *f)
{
    unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    *out = -1;
    if (t->n == 0)
        return 0;
    if (mkdir(DIR, 0755) < 0)
        return fail_sys(f, errno, "make " DIR);
    *out = open(DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC); /* below what is mounted next */
    if (*out < 0 || mount(DIR, DIR, NULL, MS_BIND, NULL) < 0 ||
        mount(NULL, DIR, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | flags, NULL) < 0)
        return fail_sys(f, errno, "mount " DIR);
    return 0;
}

/* An image's file may be anything; only a file of a sane size is read. */
static int read_plain(const char *path, struct text *out)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    int rc =
        fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > IMAGE_MAX ? -1 : 0;
    static char b[65536];
    ssize_t n = 0;
    while (rc == 0 && out->n <= IMAGE_MAX && (n = read(fd, b, sizeof b)) > 0)
        text_add(out, b, (size_t)n);
    if (n < 0 || out->n > IMAGE_MAX)
        rc = -1;
    if (fd >= 0)
        (void)close(fd);
    return rc;
}

static void read_image(struct text *out)
{
    static const char *const places[] = {
        "/etc/ssl/certs/ca-certificates.crt",                /* Debian, Alpine, Arch */
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", /* Fedora and its kin */
        "/etc/ssl/ca-bundle.pem",                            /* openSUSE */
        "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"};
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        if (read_plain(places[i], out) == 0 && out->n)
            return;
        text_release(out);
    }
}

int authorities_renew(const struct text *t, int dir, struct fail *f)
{
    struct text all = {0};
    if (dir < 0)
        return 0;
    read_image(&all);
    if (all.n && all.p[all.n - 1] != '\n')
        text_puts(&all, "\n");
    text_add(&all, t->p, t->n);
    int fd = openat(dir, FRESH, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0444);
    int rc = fd < 0 || write_all(fd, all.p, all.n) < 0 || fchmod(fd, 0444) < 0 ? -1 : 0;
    if (rc < 0 || renameat(dir, FRESH, dir, NAME) < 0)
        rc = fail_sys(f, errno, "write " FRAME_AUTHORITIES_PATH);
    if (fd >= 0)
        (void)close(fd);
    text_release(&all);
    return rc;
}
