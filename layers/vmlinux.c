#include "layers/vmlinux.h"

#include "support/cleanup.h"
#include "support/file.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

/* Linux' boot protocol: Documentation/arch/x86/boot.rst. */
enum {
    SETUP_SECTS_AT = 0x1f1,
    MAGIC_AT = 0x202,
    VERSION_AT = 0x206,
    PAYLOAD_AT = 0x248, /* from the end of the setup code, since version 2.08 */
    HEAD_SIZE = 0x250,
    SECTOR = 512,
    PIECE = 256 << 10,
};

CB_DEFINE_CLEANUP(archive, struct archive *, archive_read_free);

struct payload {
    int fd;
    uint64_t at, end;
    char buf[PIECE];
};

static la_ssize_t on_read(struct archive *a, void *arg, const void **p)
{
    struct payload *in = arg;
    uint64_t left = in->end - in->at;
    size_t n = left < PIECE ? (size_t)left : PIECE;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (cb_pread_all(in->fd, in->buf, n, (off_t)in->at, &err) < 0) {
        archive_set_error(a, EIO, "%s", err.msg);
        return -1;
    }
    in->at += n;
    *p = in->buf;
    return (la_ssize_t)n;
}

static uint32_t number(const unsigned char *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static int find_payload(struct payload *in, struct cb_error *err)
{
    unsigned char head[HEAD_SIZE];
    struct stat st;
    if (fstat(in->fd, &st) < 0)
        return cb_fail_sys(err, errno, "read the kernel");
    if (st.st_size < HEAD_SIZE || cb_pread_all(in->fd, head, sizeof(head), 0, NULL) < 0 ||
        memcmp(head + MAGIC_AT, "HdrS", 4) != 0 || head[VERSION_AT + 1] < 2 ||
        (head[VERSION_AT + 1] == 2 && head[VERSION_AT] < 8))
        return cb_fail(err, CB_E_CORRUPT, "the kernel is not a Linux bzImage");
    uint64_t setup = head[SETUP_SECTS_AT] ? head[SETUP_SECTS_AT] : 4;
    uint64_t at = (setup + 1) * SECTOR + number(head + PAYLOAD_AT);
    uint64_t len = number(head + PAYLOAD_AT + 4);
    if (len < 4 || at > (uint64_t)st.st_size || len > (uint64_t)st.st_size - at)
        return cb_fail(err, CB_E_CORRUPT, "the kernel says that it lies outside its file");
    in->at = at;
    in->end = at + len - 4; /* the last 4 bytes are its size, for the boot loader */
    return 0;
}

static int copy_out(struct archive *a, int to, struct cb_error *err)
{
    static const unsigned char magic[] = {0x7f, 'E', 'L', 'F'};
    char buf[16384];
    uint64_t done = 0;
    la_ssize_t n;
    while ((n = archive_read_data(a, buf, sizeof(buf))) > 0) {
        if (done == 0 && ((size_t)n < sizeof(magic) || memcmp(buf, magic, sizeof(magic)) != 0))
            return cb_fail(err, CB_E_CORRUPT, "what is inside the kernel is no ELF file");
        if ((done += (uint64_t)n) > VMLINUX_MAX)
            return cb_fail(err, CB_E_LIMIT, "the kernel has more than %u MiB", VMLINUX_MAX >> 20);
        int rc = cb_write_all(to, buf, (size_t)n, err);
        if (rc < 0)
            return rc;
    }
    if (n < 0 || done == 0)
        return cb_fail(err, CB_E_CORRUPT, "uncompress the kernel: %s",
                       n < 0 ? archive_error_string(a) : "nothing is in it");
    return 0;
}

int vmlinux_extract(int from, int to, struct cb_error *err)
{
    static _Thread_local struct payload in;
    in.fd = from;
    int rc = find_payload(&in, err);
    if (rc < 0)
        return rc;
    CB_AUTO(archive) a = archive_read_new();
    struct archive_entry *e;
    if (archive_read_support_format_raw(a) != ARCHIVE_OK ||
        archive_read_support_filter_xz(a) < ARCHIVE_WARN ||
        archive_read_support_filter_gzip(a) < ARCHIVE_WARN ||
        archive_read_support_filter_zstd(a) < ARCHIVE_WARN ||
        archive_read_support_filter_lz4(a) < ARCHIVE_WARN || /* Debian's */
        archive_read_open(a, &in, NULL, on_read, NULL) != ARCHIVE_OK ||
        archive_read_next_header(a, &e) != ARCHIVE_OK)
        return cb_fail(err, CB_E_CORRUPT, "uncompress the kernel: %s", archive_error_string(a));
    return copy_out(a, to, err);
}
