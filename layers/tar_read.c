#include "layers/tar_read.h"

#include "layers/tar_type.h"
#include "support/mem.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <locale.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX ((uint64_t)16 << 40) /* ext4's largest file with 4 KiB blocks */
#define MAJOR_MAX 0xfffu
#define MINOR_MAX 0xfffffu

struct tar_reader {
    struct tar_source source;
    struct archive *a;
    struct archive_entry *entry; /* libarchive's own */
    locale_t locale;             /* "C": libarchive converts names to the thread's charset */
    struct cb_error error;       /* of the source */
    uint64_t data_end;
    bool empty;
    struct tar_seen seen;
    const void *first; /* looked at by tar_reader_open(), not yet read by libarchive */
    size_t first_len;
};

/* ---- negative times ---- */

/* libarchive (3.6) reads a PAX time "-1.5" as -1 s and +0.5 s. Whether the one at hand does is
 * found out once, with such an archive. */
static pthread_once_t probe_once = PTHREAD_ONCE_INIT;
static bool negative_fraction_is_added;

static void put_header(char *block, const char *name, char type, const char *size)
{
    memset(block, 0, 512);
    memcpy(block, name, strlen(name));
    memcpy(block + 100, "0000644", 8);
    memcpy(block + 108, "0000000", 8);
    memcpy(block + 116, "0000000", 8);
    memcpy(block + 124, size, 12);
    memcpy(block + 136, "00000000000", 12);
    memset(block + 148, ' ', 8);
    block[156] = type;
    memcpy(block + 257, "ustar\00000", 8);
    unsigned sum = 0;
    for (int i = 0; i < 512; i++)
        sum += (unsigned char)block[i];
    (void)snprintf(block + 148, 8, "%06o", sum);
}

static void probe(void)
{
    static const char record[] = "14 mtime=-1.5\n";
    char tar[2560] = {0};
    put_header(tar, "pax", 'x', "00000000016");
    memcpy(tar + 512, record, sizeof(record) - 1);
    put_header(tar + 1024, "file", '0', "00000000000");
    struct archive *a = archive_read_new();
    struct archive_entry *e;
    if (a && archive_read_support_format_tar(a) == ARCHIVE_OK &&
        archive_read_open_memory(a, tar, sizeof(tar)) == ARCHIVE_OK &&
        archive_read_next_header(a, &e) == ARCHIVE_OK)
        negative_fraction_is_added = archive_entry_mtime(e) == -1;
    archive_read_free(a);
}

/* ---- the stream ---- */

static la_ssize_t on_read(struct archive *a, void *arg, const void **data)
{
    struct tar_reader *r = arg;
    if (r->first_len > 0) {
        size_t n = r->first_len;
        *data = r->first;
        r->first_len = 0;
        tar_seen_piece(&r->seen, *data, n);
        return (la_ssize_t)n;
    }
    size_t n = 0;
    if (r->error.code != CB_OK)
        return ARCHIVE_FATAL;
    tar_seen_leave(&r->seen);
    int rc = r->source.next(r->source.arg, data, &n, &r->error);
    if (rc < 0) {
        archive_set_error(a, EIO, "the stream failed");
        return ARCHIVE_FATAL;
    }
    if (rc > 0)
        tar_seen_piece(&r->seen, *data, n);
    return rc == 0 ? 0 : (la_ssize_t)n;
}

/* What libarchive says, or the source's own error that is behind it. */
static int fail(struct tar_reader *r, struct cb_error *err)
{
    if (r->error.code != CB_OK)
        return cb_error_move(err, &r->error);
    const char *words = archive_error_string(r->a);
    return cb_fail(err, CB_E_CORRUPT, "tar: %s", words ? words : "malformed");
}

int tar_reader_open(const struct tar_source *source, struct tar_reader **out, struct cb_error *err)
{
    (void)pthread_once(&probe_once, probe);
    struct tar_reader *r = cb_xcalloc(1, sizeof(*r));
    r->source = *source;
    r->locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    r->a = archive_read_new();
    if (!r->a || !r->locale || archive_read_support_format_tar(r->a) != ARCHIVE_OK) {
        tar_reader_close(r);
        return cb_fail(err, CB_E_BUG, "libarchive cannot be set up");
    }
    int rc = source->next(source->arg, &r->first, &r->first_len, err);
    if (rc < 0) {
        tar_reader_close(r);
        return rc;
    }
    r->empty = rc == 0; /* not a tar by any standard, but the layer of nothing */
    if (!r->empty && archive_read_open(r->a, r, NULL, on_read, NULL) != ARCHIVE_OK) {
        rc = fail(r, err);
        tar_reader_close(r);
        return rc;
    }
    *out = r;
    return 0;
}

void tar_reader_close(struct tar_reader *r)
{
    if (!r)
        return;
    archive_read_free(r->a);
    if (r->locale)
        freelocale(r->locale);
    cb_error_clear(&r->error);
    free(r);
}

/* ---- entries ---- */

static int kind_of(struct archive_entry *a, struct tar_entry *e, struct cb_error *err)
{
    e->link = archive_entry_hardlink(a);
    if (e->link) {
        e->kind = TAR_HARDLINK;
        return 0;
    }
    switch (archive_entry_filetype(a)) {
    case AE_IFREG: e->kind = TAR_FILE; return 0;
    case AE_IFDIR: e->kind = TAR_DIR; return 0;
    case AE_IFCHR: e->kind = TAR_CHAR; return 0;
    case AE_IFBLK: e->kind = TAR_BLOCK; return 0;
    case AE_IFIFO: e->kind = TAR_FIFO; return 0;
    case AE_IFLNK:
        e->kind = TAR_SYMLINK;
        e->link = archive_entry_symlink(a);
        if (!e->link)
            return cb_fail(err, CB_E_CORRUPT, "a symbolic link without a target");
        return 0;
    default: return cb_fail(err, CB_E_CORRUPT, "an entry of a type that a layer cannot have");
    }
}

static int owner_of(struct archive_entry *a, struct tar_entry *e, struct cb_error *err)
{
    int64_t uid = archive_entry_uid(a), gid = archive_entry_gid(a);
    if (uid < 0 || uid > UINT32_MAX || gid < 0 || gid > UINT32_MAX)
        return cb_fail(err, CB_E_CORRUPT, "owner %lld:%lld is out of range", (long long)uid,
                       (long long)gid);
    e->uid = (uint32_t)uid;
    e->gid = (uint32_t)gid;
    return 0;
}

static int device_of(struct archive_entry *a, struct tar_entry *e, struct cb_error *err)
{
    uint64_t major = archive_entry_rdevmajor(a), minor = archive_entry_rdevminor(a);
    if (major > MAJOR_MAX || minor > MINOR_MAX)
        return cb_fail(err, CB_E_CORRUPT, "device number %llu:%llu is out of range",
                       (unsigned long long)major, (unsigned long long)minor);
    e->major = (uint32_t)major;
    e->minor = (uint32_t)minor;
    return 0;
}

static void time_of(struct archive_entry *a, struct tar_entry *e)
{
    e->mtime = archive_entry_mtime(a);
    long ns = archive_entry_mtime_nsec(a);
    e->mtime_ns = ns < 0 || ns > 999999999 ? 0 : (uint32_t)ns;
    if (negative_fraction_is_added && e->mtime < 0 && e->mtime_ns > 0) {
        e->mtime--;
        e->mtime_ns = 1000000000u - e->mtime_ns;
    }
}

static int describe(struct tar_reader *r, struct tar_entry *e, struct cb_error *err)
{
    struct archive_entry *a = r->entry;
    e->path = archive_entry_pathname(a);
    if (!e->path)
        return cb_fail(err, CB_E_CORRUPT, "tar: an entry without a name");
    int rc = tar_type_check(&r->seen, r->a, err);
    if (rc == 0)
        rc = kind_of(a, e, err);
    if (rc == 0 && e->kind != TAR_HARDLINK)
        rc = owner_of(a, e, err);
    if (rc == 0 && (e->kind == TAR_CHAR || e->kind == TAR_BLOCK))
        rc = device_of(a, e, err);
    if (rc < 0)
        return rc;
    e->mode = archive_entry_perm(a) & 07777;
    time_of(a, e);
    int64_t size = archive_entry_size(a);
    if (size < 0 || (uint64_t)size >= FILE_MAX)
        return cb_fail(err, CB_E_LIMIT, "a file of %lld bytes", (long long)size);
    e->size = e->kind == TAR_FILE ? (uint64_t)size : 0;
    return 1;
}

/* In the locale "C" every name that is not ASCII makes libarchive warn; it keeps the bytes. */
static bool is_harmless(struct archive *a)
{
    const char *words = archive_error_string(a);
    return words && strstr(words, "can't be converted");
}

int tar_reader_next(struct tar_reader *r, struct tar_entry *e, struct cb_error *err)
{
    memset(e, 0, sizeof(*e));
    if (r->empty)
        return 0;
    r->data_end = 0;
    locale_t before = uselocale(r->locale);
    int rc = archive_read_next_header(r->a, &r->entry);
    if (rc == ARCHIVE_EOF)
        rc = 0;
    else if (rc != ARCHIVE_OK && !(rc == ARCHIVE_WARN && is_harmless(r->a)))
        rc = fail(r, err);
    else
        rc = describe(r, e, err);
    if (rc > 0)
        (void)archive_entry_xattr_reset(r->entry); /* tar_reader_xattr() starts at the first */
    (void)uselocale(before);
    return rc;
}

int tar_reader_data(struct tar_reader *r, const void **data, size_t *len, uint64_t *at,
                    struct cb_error *err)
{
    for (;;) {
        la_int64_t offset = 0;
        int rc = archive_read_data_block(r->a, data, len, &offset);
        if (rc == ARCHIVE_EOF)
            return 0;
        if (rc != ARCHIVE_OK)
            return fail(r, err);
        if (*len == 0)
            continue;
        uint64_t size = (uint64_t)archive_entry_size(r->entry);
        if (offset < 0 || (uint64_t)offset < r->data_end || (uint64_t)offset > size ||
            *len > size - (uint64_t)offset)
            return cb_fail(err, CB_E_CORRUPT, "tar: the map of a sparse file is out of order");
        r->data_end = (uint64_t)offset + *len;
        *at = (uint64_t)offset;
        return 1;
    }
}

bool tar_reader_xattr(struct tar_reader *r, const char **name, const void **value, size_t *len)
{
    return archive_entry_xattr_next(r->entry, name, value, len) == ARCHIVE_OK && *name;
}
