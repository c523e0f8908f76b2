/* tar: POSIX ustar headers with PAX records for what they cannot hold: long names, big numbers,
 * times below a second, extended attributes. Same entries, same bytes. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK 512u
#define TAR_BUFFER (1u << 20)
#define SPARSE_MIN (1u << 20) /* bytes of holes that are worth a sparse entry */
#define SPARSE_MAPS 65536u    /* more pieces than that: written out as zeros */

struct piece {
    uint64_t at, len;
};

int tar_open(struct tar_out *t, int fd, uint64_t offset, uint64_t limit, struct fail *f)
{
    *t = (struct tar_out){.fd = fd, .start = offset, .at = offset, .limit = limit};
    if (lseek(fd, (off_t)offset, SEEK_SET) < 0)
        return fail_sys(f, errno, "output disk: seek");
    t->buf = ag_alloc(TAR_BUFFER);
    return 0;
}

void tar_release(struct tar_out *t)
{
    free(t->buf);
    t->buf = NULL;
}

static int flush(struct tar_out *t, struct fail *f)
{
    if (t->limit && (t->at > t->limit || t->len > t->limit - t->at))
        return fail_set(f, FAIL_SPACE, "the layer's changes do not fit the output disk");
    if (write_all(t->fd, t->buf, t->len) < 0)
        return fail_sys(f, errno, "output disk: write");
    t->at += t->len;
    t->len = 0;
    return 0;
}

static int put(struct tar_out *t, const void *p, size_t n, struct fail *f)
{
    const uint8_t *b = p;
    while (n) {
        size_t k = TAR_BUFFER - t->len < n ? TAR_BUFFER - t->len : n;
        if (b) {
            memcpy(t->buf + t->len, b, k);
            b += k;
        } else {
            memset(t->buf + t->len, 0, k);
        }
        t->len += k;
        n -= k;
        if (t->len == TAR_BUFFER && flush(t, f) < 0)
            return -1;
    }
    return 0;
}

static int pad(struct tar_out *t, uint64_t size, struct fail *f)
{
    return put(t, NULL, (size_t)(-size & (BLOCK - 1)), f);
}

/* "LEN key=value\n", where LEN counts itself. */
static void pax(struct text *t, const char *key, const void *value, size_t len)
{
    size_t body = strlen(key) + len + 3, digits = 1, total;
    char head[32];
    for (;;) {
        total = body + digits;
        int n = snprintf(head, sizeof head, "%zu", total);
        if ((size_t)n == digits)
            break;
        digits = (size_t)n;
    }
    text_puts(t, head);
    text_puts(t, " ");
    text_puts(t, key);
    text_puts(t, "=");
    text_add(t, value, len);
    text_puts(t, "\n");
}

static void pax_number(struct text *t, const char *key, uint64_t v)
{
    char s[32];
    int n = snprintf(s, sizeof s, "%llu", (unsigned long long)v);
    pax(t, key, s, (size_t)n);
}

/* Seconds with a fraction. Before 1970 the value counts down: -1.25 is a second and a quarter
 * before. */
static void pax_time(struct text *t, int64_t sec, uint32_t ns)
{
    char s[48];
    bool minus = sec < 0;
    uint64_t whole = minus ? (uint64_t) - (sec + 1) + 1 : (uint64_t)sec;
    if (minus && ns) {
        whole--;
        ns = 1000000000u - ns;
    }
    int n = snprintf(s, sizeof s, "%s%llu.%09u", minus ? "-" : "", (unsigned long long)whole, ns);
    while (n > 0 && s[n - 1] == '0')
        n--;
    if (n > 0 && s[n - 1] == '.')
        n--;
    pax(t, "mtime", s, (size_t)n);
}

static bool is_utf8(const char *s)
{
    const uint8_t *p = (const uint8_t *)s;
    while (*p) {
        unsigned more = *p < 0x80                 ? 0
                        : *p >= 0xc2 && *p < 0xe0 ? 1
                        : *p >= 0xe0 && *p < 0xf0 ? 2
                        : *p >= 0xf0 && *p < 0xf5 ? 3
                                                  : 9;
        if (more == 9)
            return false;
        uint8_t first = *p++;
        for (unsigned i = 0; i < more; i++, p++) {
            if ((*p & 0xc0) != 0x80)
                return false;
            if (i == 0 && ((first == 0xe0 && *p < 0xa0) || (first == 0xed && *p > 0x9f) ||
                           (first == 0xf0 && *p < 0x90) || (first == 0xf4 && *p > 0x8f)))
                return false;
        }
    }
    return true;
}

static void octal(char *field, size_t size, uint64_t v)
{
    field[size - 1] = 0;
    for (size_t i = size - 1; i-- > 0; v >>= 3)
        field[i] = (char)('0' + (v & 7));
}

/* The largest number that @size bytes hold in octal. */
static bool fits(uint64_t v, size_t size)
{
    return v >> (3 * (size - 1)) == 0;
}

struct head {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100];
    char magic[6], version[2], uname[32], gname[32], major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct head) == BLOCK, "a tar header is one block");

static int put_head(struct tar_out *t, struct head *h, struct fail *f)
{
    memcpy(h->magic, "ustar", 6);
    memcpy(h->version, "00", 2);
    memset(h->sum, ' ', sizeof h->sum);
    unsigned sum = 0;
    for (size_t i = 0; i < sizeof *h; i++)
        sum += ((const unsigned char *)h)[i];
    octal(h->sum, 7, sum);
    return put(t, h, sizeof *h, f);
}

/* At most @size bytes of @s; not NUL-terminated when it fills the field, as the format has it. */
static void field(char *to, size_t size, const char *s, size_t len)
{
    memcpy(to, s, len < size ? len : size);
}

static int put_pax(struct tar_out *t, const struct text *records, const char *path, struct fail *f)
{
    struct head h = {.type = 'x'};
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    char name[100];
    int n = snprintf(name, sizeof name, "./PaxHeaders/%.80s", base);
    field(h.name, sizeof h.name, name, (size_t)n);
    octal(h.mode, sizeof h.mode, 0644);
    octal(h.uid, sizeof h.uid, 0);
    octal(h.gid, sizeof h.gid, 0);
    octal(h.size, sizeof h.size, records->n);
    octal(h.mtime, sizeof h.mtime, 0);
    octal(h.major, sizeof h.major, 0);
    octal(h.minor, sizeof h.minor, 0);
    if (put_head(t, &h, f) < 0 || put(t, records->p, records->n, f) < 0)
        return -1;
    return pad(t, records->n, f);
}

/* Where @fd has data, when its holes are worth keeping. NULL: write it whole. */
static struct piece *sparse_map(int fd, uint64_t size, size_t *count)
{
    struct stat st;
    *count = 0;
    if (size < SPARSE_MIN || fstat(fd, &st) < 0 || (uint64_t)st.st_blocks * 512 >= size)
        return NULL;
    struct piece *map = NULL;
    size_t n = 0, cap = 0;
    uint64_t at = 0, data = 0;
    while (at < size && n < SPARSE_MAPS) {
        off_t from = lseek(fd, (off_t)at, SEEK_DATA);
        if (from < 0 && errno == ENXIO)
            break;
        off_t to = from < 0 ? -1 : lseek(fd, from, SEEK_HOLE);
        if (from < 0 || to < 0) {
            free(map);
            return NULL;
        }
        if ((uint64_t)to > size)
            to = (off_t)size;
        if (n == cap) {
            cap = cap ? cap * 2 : 64;
            map = ag_realloc(map, cap * sizeof *map);
        }
        map[n++] = (struct piece){(uint64_t)from, (uint64_t)(to - from)};
        data += (uint64_t)(to - from);
        at = (uint64_t)to;
    }
    if (n >= SPARSE_MAPS || size - data < SPARSE_MIN) {
        free(map);
        return NULL;
    }
    /* An empty piece at the end says how long the file is. */
    map = ag_realloc(map, (n + 1) * sizeof *map);
    map[n++] = (struct piece){size, 0};
    *count = n;
    return map;
}

static int put_data(struct tar_out *t, int fd, const char *path, struct piece p, struct fail *f)
{
    static uint8_t buf[256u << 10];
    while (p.len) {
        size_t want = p.len < sizeof buf ? (size_t)p.len : sizeof buf;
        ssize_t n = pread(fd, buf, want, (off_t)p.at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_sys(f, errno, "read %s", path);
        if (n == 0)
            return fail_set(f, FAIL_SYSTEM, "%s became shorter while it was read", path);
        if (put(t, buf, (size_t)n, f) < 0)
            return -1;
        p.at += (uint64_t)n;
        p.len -= (uint64_t)n;
    }
    return 0;
}

static void sparse_records(const struct piece *map, size_t n, struct text *out, uint64_t *stored)
{
    char line[64];
    (void)snprintf(line, sizeof line, "%zu\n", n);
    text_puts(out, line);
    *stored = 0;
    for (size_t i = 0; i < n; i++) {
        (void)snprintf(line, sizeof line, "%llu\n%llu\n", (unsigned long long)map[i].at,
                       (unsigned long long)map[i].len);
        text_puts(out, line);
        *stored += map[i].len;
    }
    static const char zeros[BLOCK];
    text_add(out, zeros, (size_t)(-out->n & (BLOCK - 1)));
    *stored += out->n;
}

static void entry_records(const struct tar_entry *e, const char *name, struct text *r)
{
    bool long_name = strlen(name) > 100, long_link = e->link && strlen(e->link) > 100;
    if ((long_name && !is_utf8(name)) || (long_link && !is_utf8(e->link)))
        pax(r, "hdrcharset", "BINARY", 6);
    if (long_name)
        pax(r, "path", name, strlen(name));
    if (long_link)
        pax(r, "linkpath", e->link, strlen(e->link));
    if (!fits(e->uid, 8))
        pax_number(r, "uid", e->uid);
    if (!fits(e->gid, 8))
        pax_number(r, "gid", e->gid);
    if (e->mtime_ns || e->mtime < 0 || !fits((uint64_t)e->mtime, 12))
        pax_time(r, e->mtime, e->mtime_ns);
    for (size_t i = 0; i < e->n_xattrs; i++) {
        char key[300];
        (void)snprintf(key, sizeof key, "SCHILY.xattr.%s", e->xattrs[i].name);
        pax(r, key, e->xattrs[i].value, e->xattrs[i].len);
    }
}

static void fill_head(struct head *h, const struct tar_entry *e, const char *name, uint64_t stored)
{
    h->type = e->type;
    field(h->name, sizeof h->name, name, strlen(name));
    if (e->link)
        field(h->link, sizeof h->link, e->link, strlen(e->link));
    octal(h->mode, sizeof h->mode, e->mode & 07777);
    octal(h->uid, sizeof h->uid, fits(e->uid, 8) ? e->uid : 0);
    octal(h->gid, sizeof h->gid, fits(e->gid, 8) ? e->gid : 0);
    octal(h->size, sizeof h->size, fits(stored, 12) ? stored : 0);
    octal(h->mtime, sizeof h->mtime,
          e->mtime >= 0 && fits((uint64_t)e->mtime, 12) ? (uint64_t)e->mtime : 0);
    octal(h->major, sizeof h->major, e->major);
    octal(h->minor, sizeof h->minor, e->minor);
}

int tar_add(struct tar_out *t, const struct tar_entry *e, int fd, struct fail *f)
{
    struct text records = {0}, map_text = {0};
    size_t pieces = 0;
    uint64_t stored = e->type == '0' ? e->size : 0;
    struct piece *map = e->type == '0' ? sparse_map(fd, e->size, &pieces) : NULL;
    size_t len = strlen(e->path);
    char *name = ag_alloc(len + 2);
    memcpy(name, e->path, len);
    if (e->type == '5')
        name[len] = '/';

    entry_records(e, name, &records);
    if (map) {
        sparse_records(map, pieces, &map_text, &stored);
        pax_number(&records, "GNU.sparse.major", 1);
        pax_number(&records, "GNU.sparse.minor", 0);
        pax(&records, "GNU.sparse.name", name, strlen(name));
        pax_number(&records, "GNU.sparse.realsize", e->size);
    }
    if (!fits(stored, 12))
        pax_number(&records, "size", stored);

    struct head h = {.type = 0};
    fill_head(&h, e, name, stored);
    int rc = records.n ? put_pax(t, &records, e->path, f) : 0;
    if (rc == 0)
        rc = put_head(t, &h, f);
    if (rc == 0 && map) {
        rc = put(t, map_text.p, map_text.n, f);
        for (size_t i = 0; rc == 0 && i < pieces; i++)
            rc = put_data(t, fd, e->path, map[i], f);
    } else if (rc == 0 && stored) {
        rc = put_data(t, fd, e->path, (struct piece){0, e->size}, f);
    }
    if (rc == 0)
        rc = pad(t, stored, f);
    t->entries += rc == 0;
    free(name);
    free(map);
    text_release(&records);
    text_release(&map_text);
    return rc;
}

int tar_close(struct tar_out *t, struct fail *f)
{
    if (put(t, NULL, (size_t)2 * BLOCK, f) < 0 || flush(t, f) < 0)
        return -1;
    if (fsync(t->fd) < 0 && errno != EINVAL)
        return fail_sys(f, errno, "output disk: write");
    return 0;
}
