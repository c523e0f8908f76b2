/* rpm's databases before SQLite: ndb (SUSE), and a hash of Berkeley DB (Red Hat until 8, Amazon
 * Linux 2). Both hold the same headers. The readers look at what is stored alone, not at what finds
 * it: every blob of the one, every value of the other. All that they read together is no more than
 * the file is long, so no file of tricks takes longer than a large one. */
#include "layers/packages.h"

#include "support/buf.h"
#include "support/cleanup.h"

#include <stdbool.h>
#include <string.h>

struct old_db {
    const unsigned char *p;
    size_t len;
    size_t left; /* to be read */
    struct package_list *l;
    size_t *bad;
    struct cb_error *err;
};

static uint32_t le16(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t le32(const unsigned char *p)
{
    return le16(p) | le16(p + 2) << 16;
}

static int no_database(struct cb_error *err, const char *why)
{
    return cb_fail(err, CB_E_CORRUPT, "not a database of rpm: %s", why);
}

/* One header. What is wrong with it is counted; only a limit or a lack of memory is an error. */
static int take_header(struct old_db *d, const void *p, size_t len)
{
    CB_AUTO_ERROR one = CB_ERROR_INIT;
    int rc = packages_read_rpm_header(p, len, d->l, &one);
    if (rc == -(int)CB_E_CORRUPT) {
        ++*d->bad;
        return 0;
    }
    return rc < 0 ? cb_error_move(d->err, &one) : 0;
}

/* False when more was read than there is: parts of the file that lie over each other. */
static bool may_read(struct old_db *d, size_t n)
{
    if (n > d->left)
        return false;
    d->left -= n;
    return true;
}

/* ---- ndb: slots at the front say where the blobs are, in units of 16 bytes ---- */

enum { NDB_UNIT = 16, NDB_PAGE = 4096, NDB_FIRST_SLOT = 2 };

static int take_blob(struct old_db *d, uint64_t at, uint32_t package)
{
    if (at + NDB_UNIT > d->len) {
        ++*d->bad;
        return 0;
    }
    const unsigned char *b = d->p + at;
    size_t len = le32(b + 12);
    if (memcmp(b, "BlbS", 4) != 0 || le32(b + 4) != package || len > d->len - at - NDB_UNIT) {
        ++*d->bad;
        return 0;
    }
    if (!may_read(d, len))
        return no_database(d->err, "its blobs lie over each other");
    return take_header(d, b + NDB_UNIT, len);
}

int packages_read_rpm_ndb(const void *data, size_t len, struct package_list *l, size_t *bad,
                          struct cb_error *err)
{
    struct old_db d = {data, len, len, l, bad, err};
    *bad = 0;
    if (len < NDB_UNIT * NDB_FIRST_SLOT || memcmp(d.p, "RpmP", 4) != 0)
        return no_database(err, "it does not begin as ndb does");
    if (le32(d.p + 4) != 0)
        return no_database(err, "a version of ndb that is not known");
    uint64_t slots = (uint64_t)le32(d.p + 12) * (NDB_PAGE / NDB_UNIT);
    if (slots * NDB_UNIT > len)
        return no_database(err, "it ends early");
    int rc = 0;
    for (uint64_t i = NDB_FIRST_SLOT; i < slots && rc == 0; i++) {
        const unsigned char *s = d.p + i * NDB_UNIT;
        uint32_t package = le32(s + 4), unit = le32(s + 8);
        if (memcmp(s, "Slot", 4) != 0)
            return no_database(err, "a slot that is none");
        if (package && unit)
            rc = take_blob(&d, (uint64_t)unit * NDB_UNIT, package);
    }
    return rc;
}

/* ---- Berkeley DB: pages of pairs, and chains of pages for what is long ---- */

enum {
    BDB_HEAD = 26, /* of a page */
    BDB_MAGIC = 0x61561,
    BDB_META = 8, /* types of pages */
    BDB_HASH_UNSORTED = 2,
    BDB_HASH = 13,
    BDB_OVERFLOW = 7,
    BDB_INLINE = 1, /* types of items */
    BDB_OFF_PAGE = 3,
    BDB_OFF_PAGE_SIZE = 12,
};

/* A value that lies in pages of its own. */
static int take_chain(struct old_db *d, size_t page, uint32_t number, size_t len)
{
    CB_AUTO_BUF b = CB_BUF_INIT(PACKAGE_HEADER_MAX);
    while (b.len < len) {
        const unsigned char *h = d->p + (uint64_t)number * page;
        if (number == 0 || number >= d->len / page || h[25] != BDB_OVERFLOW)
            break;
        size_t n = le16(h + 22);
        if (n == 0 || n > page - BDB_HEAD || n > len - b.len)
            break;
        if (!may_read(d, n))
            return no_database(d->err, "its values lie over each other");
        if (cb_buf_add(&b, h + BDB_HEAD, n) < 0)
            break;
        number = le32(h + 16);
    }
    if (b.len == len)
        return take_header(d, b.data, len);
    ++*d->bad;
    return 0;
}

/* The item @i of a page: [*at, *end) of it, its type first. */
static bool item(const unsigned char *h, size_t page, uint32_t entries, uint32_t i, size_t *at,
                 size_t *end)
{
    *at = le16(h + BDB_HEAD + (size_t)2 * i);
    *end = i == 0 ? page : le16(h + BDB_HEAD + (size_t)2 * (i - 1));
    return *at >= BDB_HEAD + (size_t)2 * entries && *at < *end && *end <= page;
}

/* Package 0 is none: its value is the number that the next package gets. */
static bool is_counter(const unsigned char *h, size_t at, size_t end)
{
    return end - at == 5 && h[at] == BDB_INLINE && le32(h + at + 1) == 0;
}

static int take_pair(struct old_db *d, const unsigned char *h, size_t page, uint32_t entries,
                     uint32_t i)
{
    size_t key, key_end, at, end;
    if (!item(h, page, entries, i, &key, &key_end) || !item(h, page, entries, i + 1, &at, &end)) {
        ++*d->bad;
        return 0;
    }
    if (is_counter(h, key, key_end))
        return 0;
    if (h[at] == BDB_OFF_PAGE && end - at >= BDB_OFF_PAGE_SIZE)
        return take_chain(d, page, le32(h + at + 4), le32(h + at + 8));
    if (h[at] != BDB_INLINE) {
        ++*d->bad;
        return 0;
    }
    if (!may_read(d, end - at))
        return no_database(d->err, "its values lie over each other");
    return take_header(d, h + at + 1, end - at - 1);
}

int packages_read_rpm_bdb(const void *data, size_t len, struct package_list *l, size_t *bad,
                          struct cb_error *err)
{
    struct old_db d = {data, len, len, l, bad, err};
    *bad = 0;
    if (len < 512 || le32(d.p + 12) != BDB_MAGIC || d.p[25] != BDB_META)
        return no_database(err, "it does not begin as a hash of Berkeley DB does");
    size_t page = le32(d.p + 20);
    if (page < 512 || page > 65536 || (page & (page - 1)) != 0 || d.p[24] != 0)
        return no_database(err, "pages that cannot be read");
    int rc = 0;
    for (size_t at = page; at + page <= len && rc == 0; at += page) {
        const unsigned char *h = d.p + at;
        uint32_t entries = le16(h + 20);
        if (h[25] != BDB_HASH && h[25] != BDB_HASH_UNSORTED)
            continue;
        if (BDB_HEAD + (size_t)2 * entries > page) {
            ++*bad;
            continue;
        }
        for (uint32_t i = 0; i + 1 < entries && rc == 0; i += 2)
            rc = take_pair(&d, h, page, entries, i);
    }
    return rc;
}
