#include "layers/uki.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

/* "PE Format", Microsoft. Offsets in the optional header are those of PE32+. */
enum {
    DOS_PE_AT = 0x3c,
    COFF_SIZE = 24, /* with the signature */
    COFF_MACHINE = 4,
    COFF_SECTIONS = 6,
    COFF_OPT_SIZE = 20,
    OPT_SECTION_ALIGN = 32,
    OPT_FILE_ALIGN = 36,
    OPT_IMAGE_SIZE = 56,
    OPT_HEADERS_SIZE = 60,
    OPT_CHECKSUM = 64,
    OPT_MIN = 112,
    SECTION_SIZE = 40,
    MACHINE_X64 = 0x8664,
    MAGIC_PLUS = 0x20b,
    SECTIONS_MAX = 64,
    STUB_MAX = 4 << 20,
    PAGE = 4096,
    PIECE = 256 << 10,
};

#define FLAGS_DATA 0x40000040u  /* initialized data, readable */
#define FLAGS_LINUX 0x60000020u /* code, executable, readable */

struct pe {
    unsigned char *p;
    size_t size;
    size_t coff, opt, table; /* where the headers are */
    uint32_t n, file_align, headers_size;
    uint64_t end; /* of the image in memory */
};

static uint32_t get(const unsigned char *p, size_t bytes)
{
    uint32_t v = 0;
    for (size_t i = bytes; i-- > 0;)
        v = v << 8 | p[i];
    return v;
}

static void put(unsigned char *p, size_t bytes, uint64_t v)
{
    for (size_t i = 0; i < bytes; i++, v >>= 8)
        p[i] = (unsigned char)v;
}

static uint64_t align(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

static bool find_headers(struct pe *e)
{
    if (e->size < 64 || memcmp(e->p, "MZ", 2) != 0)
        return false;
    e->coff = get(e->p + DOS_PE_AT, 4);
    if (e->coff > e->size - COFF_SIZE || memcmp(e->p + e->coff, "PE\0\0", 4) != 0 ||
        get(e->p + e->coff + COFF_MACHINE, 2) != MACHINE_X64)
        return false;
    e->n = get(e->p + e->coff + COFF_SECTIONS, 2);
    e->opt = e->coff + COFF_SIZE;
    uint32_t opt_size = get(e->p + e->coff + COFF_OPT_SIZE, 2);
    e->table = e->opt + opt_size;
    return e->n > 0 && e->n <= SECTIONS_MAX && opt_size >= OPT_MIN &&
           e->table + (size_t)e->n * SECTION_SIZE <= e->size && get(e->p + e->opt, 2) == MAGIC_PLUS;
}

static bool read_headers(struct pe *e)
{
    if (!find_headers(e))
        return false;
    e->file_align = get(e->p + e->opt + OPT_FILE_ALIGN, 4);
    e->headers_size = get(e->p + e->opt + OPT_HEADERS_SIZE, 4);
    uint32_t section_align = get(e->p + e->opt + OPT_SECTION_ALIGN, 4);
    if (e->file_align < 512 || e->file_align > 65536 || (e->file_align & (e->file_align - 1)) ||
        section_align > PAGE || e->headers_size > e->size)
        return false;
    for (uint32_t i = 0; i < e->n; i++) {
        const unsigned char *s = e->p + e->table + (size_t)i * SECTION_SIZE;
        uint64_t end = (uint64_t)get(s + 12, 4) + get(s + 8, 4);
        e->end = end > e->end ? end : e->end;
        uint32_t raw = get(s + 20, 4);
        if (get(s + 16, 4) && raw < e->headers_size)
            return false;
    }
    return true;
}

static int load_stub(int fd, struct pe *e, struct cb_error *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "read the EFI stub");
    if (st.st_size < 1 || st.st_size > STUB_MAX)
        return cb_fail(err, CB_E_CORRUPT, "the EFI stub has %lld bytes", (long long)st.st_size);
    e->size = (size_t)st.st_size;
    e->p = cb_xmalloc(e->size);
    int rc = cb_pread_all(fd, e->p, e->size, 0, err);
    if (rc == 0 && !read_headers(e))
        rc = cb_fail(err, CB_E_CORRUPT, "the EFI stub is not a PE file for x86-64");
    return rc;
}

static int copy_in(const struct uki_section *s, int to, uint64_t at, struct cb_error *err)
{
    if (s->fd < 0)
        return cb_pwrite_all(to, s->text, (size_t)s->size, (off_t)at, err);
    CB_AUTO_FREE char *buf = cb_xmalloc(PIECE);
    for (uint64_t done = 0; done < s->size;) {
        size_t n = s->size - done < PIECE ? (size_t)(s->size - done) : PIECE;
        int rc = cb_pread_all(s->fd, buf, n, (off_t)done, err);
        if (rc == 0)
            rc = cb_pwrite_all(to, buf, n, (off_t)(at + done), err);
        if (rc < 0)
            return rc;
        done += n;
    }
    return 0;
}

/* Describes the section, which lies at @raw in the file, behind all others in memory. */
static void add_header(struct pe *e, const struct uki_section *s, uint64_t raw)
{
    unsigned char *h = e->p + e->table + (size_t)e->n++ * SECTION_SIZE;
    uint64_t at = align(e->end, PAGE);
    memset(h, 0, SECTION_SIZE);
    memcpy(h, s->name, strnlen(s->name, 8));
    put(h + 8, 4, s->size);
    put(h + 12, 4, at);
    put(h + 16, 4, align(s->size, e->file_align));
    put(h + 20, 4, raw);
    put(h + 36, 4, strcmp(s->name, ".linux") == 0 ? FLAGS_LINUX : FLAGS_DATA);
    e->end = at + s->size;
}

static int build(struct pe *e, const struct uki_section *v, size_t n, int to, struct cb_error *err)
{
    if (e->table + (e->n + n) * SECTION_SIZE > e->headers_size)
        return cb_fail(err, CB_E_CORRUPT, "the EFI stub has no room for %zu more sections", n);
    uint64_t raw = align(e->size, e->file_align);
    for (size_t i = 0; i < n; i++) {
        if (v[i].size == 0 || v[i].size > (UINT64_C(1) << 30) || raw > (UINT64_C(3) << 30))
            return cb_fail(err, CB_E_LIMIT, "%s of %llu bytes does not fit into an EFI program",
                           v[i].name, (unsigned long long)v[i].size);
        int rc = copy_in(&v[i], to, raw, err);
        if (rc < 0)
            return cb_wrap(err, "%s", v[i].name);
        add_header(e, &v[i], raw);
        raw += align(v[i].size, e->file_align);
    }
    put(e->p + e->coff + COFF_SECTIONS, 2, e->n);
    put(e->p + e->opt + OPT_IMAGE_SIZE, 4, align(e->end, PAGE));
    put(e->p + e->opt + OPT_CHECKSUM, 4, 0); /* none: nobody looks at it in EFI programs */
    int rc = cb_pwrite_all(to, e->p, e->size, 0, err);
    if (rc == 0 && ftruncate(to, (off_t)raw) < 0)
        rc = cb_fail_sys(err, errno, "write the EFI program");
    return rc;
}

int uki_make(int stub, const struct uki_section *sections, size_t n, int to, struct cb_error *err)
{
    struct pe e = {0};
    int rc = load_stub(stub, &e, err);
    if (rc == 0)
        rc = build(&e, sections, n, to, err);
    free(e.p);
    return rc;
}
