#include "layers/tar_read.h"

#include "layers/tar_pax.h"
#include "support/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX ((uint64_t)16 << 40) /* ext4's largest file with 4 KiB blocks */
#define SPECIAL_MAX ((size_t)1 << 20) /* an extended header or a long name, as Go has it */
#define ID_MAX 0xfffffffeu            /* the one above means "none" to Linux */
#define MAJOR_MAX 0xfff
#define MINOR_MAX 0xfffff

enum {
    BLOCK = 512,
    /* Where the fields of a header are; NAME, LINK and PREFIX end at a NUL or their length. */
    NAME_AT = 0,
    NAME_LEN = 100,
    MODE_AT = 100,
    UID_AT = 108,
    GID_AT = 116,
    SIZE_AT = 124,
    MTIME_AT = 136,
    SUM_AT = 148,
    TYPE_AT = 156,
    LINK_AT = 157,
    MAGIC_AT = 257,
    MAJOR_AT = 329,
    MINOR_AT = 337,
    PREFIX_AT = 345,
    PREFIX_LEN = 155,
    STAR_PREFIX_LEN = 131,
    STAR_AT = 508,
    ID_LEN = 8, /* of mode, owners, devices and the sum */
    SIZE_LEN = 12,
    /* GNU's old format of sparse files */
    GNU_ATIME_AT = 345,
    GNU_CTIME_AT = 357,
    GNU_MAP_AT = 386,
    GNU_MAP_N = 4,
    GNU_MORE_AT = 482,
    GNU_REALSIZE_AT = 483,
    GNU_BLOCK_N = 21,
    GNU_BLOCK_MORE_AT = 504,
};

enum format { V7, USTAR, STAR, GNU };

struct tar_reader {
    struct tar_source source;
    const unsigned char *piece; /* what is left of the piece at hand; borrowed */
    size_t left;
    uint64_t at; /* bytes of the tar used */
    unsigned char bounce[BLOCK];
    bool ended, marked;

    /* About the next entry; texts with their NUL */
    struct tar_pax pax;
    struct cb_buf gnu_name, gnu_link;
    bool pending; /* there was something about the next entry */

    /* The entry */
    struct cb_buf path;
    char link[NAME_LEN + 1];
    uint64_t body; /* bytes stored and not yet used */
    size_t pad;    /* behind them */
    struct tar_map map;
    size_t map_i;
    uint64_t map_done; /* bytes of that piece */
    size_t xattr_i;
};

/* ---- bytes ---- */

/* 1 when there is at least a byte at hand, 0 at the end. */
static int fetch(struct tar_reader *r, struct cb_error *err)
{
    while (r->left == 0) {
        const void *p;
        int rc = r->source.next(r->source.arg, &p, &r->left, err);
        if (rc <= 0) {
            r->left = 0;
            return rc;
        }
        r->piece = p;
    }
    return 1;
}

static void use(struct tar_reader *r, size_t n)
{
    r->piece += n;
    r->left -= n;
    r->at += n;
}

static int cut_short(struct cb_error *err, const char *where)
{
    return cb_fail(err, CB_E_CORRUPT, "tar: ends in the middle of %s", where);
}

/* The next block, valid until the next call. 0 at the end of the bytes, if that is between two
 * blocks. */
static int next_block(struct tar_reader *r, const unsigned char **out, struct cb_error *err)
{
    int rc = fetch(r, err);
    if (rc <= 0)
        return rc;
    if (r->left >= BLOCK) {
        *out = r->piece;
        use(r, BLOCK);
        return 1;
    }
    for (size_t have = 0; have < BLOCK;) {
        rc = fetch(r, err);
        if (rc < 0)
            return rc;
        if (rc == 0)
            return cut_short(err, "a header");
        size_t n = r->left < BLOCK - have ? r->left : BLOCK - have;
        memcpy(r->bounce + have, r->piece, n);
        use(r, n);
        have += n;
    }
    *out = r->bounce;
    return 1;
}

/* Passes over the rest of an entry. The padding of the last one may be missing. */
static int finish_entry(struct tar_reader *r, struct cb_error *err)
{
    while (r->body + r->pad > 0) {
        int rc = fetch(r, err);
        if (rc < 0)
            return rc;
        if (rc == 0 && r->body > 0)
            return cut_short(err, "an entry's data");
        if (rc == 0)
            break;
        uint64_t *what = &r->body, pad = r->pad;
        bool padding = r->body == 0;
        if (padding)
            what = &pad;
        size_t n = r->left < *what ? r->left : (size_t)*what;
        use(r, n);
        *what -= n;
        if (padding)
            r->pad = (size_t)pad;
    }
    r->pad = 0;
    return 0;
}

/* The @size bytes that follow a special header, into @out with a NUL behind. */
static int read_special(struct tar_reader *r, int64_t size, struct cb_buf *out,
                        struct cb_error *err)
{
    cb_buf_clear(out);
    if (size < 0 || (uint64_t)size > SPECIAL_MAX)
        return cb_fail(err, CB_E_LIMIT, "tar: an extended header of %lld bytes", (long long)size);
    for (size_t left = (size_t)size, pad = -(size_t)size % BLOCK; left + pad > 0;) {
        int rc = fetch(r, err);
        if (rc < 0)
            return rc;
        if (rc == 0)
            return cut_short(err, "an extended header");
        size_t *what = left ? &left : &pad, n = r->left < *what ? r->left : *what;
        if (left)
            cb_buf_add(out, r->piece, n);
        use(r, n);
        *what -= n;
    }
    return cb_buf_add(out, "", 0);
}

/* ---- headers ---- */

static bool is_zero(const unsigned char *block)
{
    return block[0] == 0 && memcmp(block, block + 1, BLOCK - 1) == 0;
}

/* The sum is of unsigned bytes, in old tars of signed ones, its own field read as blanks. */
static bool sum_is_right(const unsigned char *block)
{
    uint32_t plain = 0, high = 0;
    int64_t stored;
    for (int i = 0; i < BLOCK; i++) {
        plain += block[i];
        high += block[i] >> 7;
    }
    for (int i = SUM_AT; i < SUM_AT + ID_LEN; i++) {
        plain = plain + ' ' - block[i];
        high -= block[i] >> 7;
    }
    return tar_field(block + SUM_AT, ID_LEN, &stored) &&
           (stored == plain || stored == (int64_t)plain - 256 * (int64_t)high);
}

/* 1 and a header, 0 at the end. */
static int next_header(struct tar_reader *r, const unsigned char **out, struct cb_error *err)
{
    uint64_t at = r->at;
    int rc = next_block(r, out, err);
    if (rc <= 0)
        return rc;
    if (is_zero(*out)) {
        rc = next_block(r, out, err);
        if (rc > 0 && !is_zero(*out))
            return cb_fail(err, CB_E_CORRUPT,
                           "tar: a lone block of zeros at byte %llu, and more behind it",
                           (unsigned long long)at);
        r->marked = rc > 0;
        return rc < 0 ? rc : 0;
    }
    if (sum_is_right(*out))
        return 1;
    return cb_fail(err, CB_E_CORRUPT, "tar: %s",
                   at == 0 ? "this is none: its first header has no valid checksum"
                           : "a damaged header: its checksum is wrong");
}

static enum format format_of(const unsigned char *h)
{
    if (memcmp(h + MAGIC_AT, "ustar  ", 8) == 0)
        return GNU;
    if (memcmp(h + MAGIC_AT, "ustar\00000", 8) != 0)
        return V7;
    return memcmp(h + STAR_AT, "tar", 4) == 0 ? STAR : USTAR;
}

/* Before version 1.8 Go wrote a prefix into GNU headers too, where times belong. */
static bool has_gnu_prefix(const unsigned char *h)
{
    int64_t t;
    bool times = (h[GNU_ATIME_AT] == 0 || tar_field(h + GNU_ATIME_AT, SIZE_LEN, &t)) &&
                 (h[GNU_CTIME_AT] == 0 || tar_field(h + GNU_CTIME_AT, SIZE_LEN, &t));
    if (times)
        return false;
    for (int i = 0; i < PREFIX_LEN && h[PREFIX_AT + i]; i++)
        if (h[PREFIX_AT + i] >= 0x80)
            return false;
    return true;
}

static void add_text(struct cb_buf *b, const unsigned char *field, size_t max)
{
    cb_buf_add(b, field, strnlen((const char *)field, max));
}

static void name_of(struct tar_reader *r, const unsigned char *h, enum format f,
                    struct tar_entry *e)
{
    cb_buf_clear(&r->path);
    size_t prefix = f == USTAR || (f == GNU && has_gnu_prefix(h)) ? PREFIX_LEN
                    : f == STAR                                   ? STAR_PREFIX_LEN
                                                                  : 0;
    if (r->pax.name) {
        cb_buf_adds(&r->path, r->pax.name);
    } else if (r->gnu_name.len > 0 && r->gnu_name.data[0]) {
        cb_buf_adds(&r->path, r->gnu_name.data);
    } else if (r->pax.path) {
        cb_buf_adds(&r->path, r->pax.path);
    } else {
        add_text(&r->path, h + PREFIX_AT, prefix);
        if (r->path.len > 0)
            cb_buf_adds(&r->path, "/");
        add_text(&r->path, h + NAME_AT, NAME_LEN);
    }
    cb_buf_add(&r->path, "", 0);
    e->path = r->path.data;
}

static const char *link_of(struct tar_reader *r, const unsigned char *h)
{
    if (r->gnu_link.len > 0 && r->gnu_link.data[0])
        return r->gnu_link.data;
    if (r->pax.link)
        return r->pax.link;
    size_t n = strnlen((const char *)h + LINK_AT, NAME_LEN);
    memcpy(r->link, h + LINK_AT, n);
    r->link[n] = '\0';
    return r->link;
}

static int bad_number(struct cb_error *err, const char *what)
{
    return cb_fail(err, CB_E_CORRUPT, "tar: its %s is not a number", what);
}

static int kind_of(struct tar_reader *r, const unsigned char *h, enum format f, struct tar_entry *e,
                   struct cb_error *err)
{
    unsigned char type = h[TYPE_AT];
    size_t len = strlen(e->path);
    bool shown = type > ' ' && type < 0x7f;
    switch (type) {
    case '\0':
    case '0':
        /* V7 has no type for folders; ustar has, and there the name's slash says nothing */
        e->kind =
            len > 0 && e->path[len - 1] == '/' && (type == '\0' || f == V7) ? TAR_DIR : TAR_FILE;
        return 0;
    case '7':
    case 'S': e->kind = TAR_FILE; return 0;
    case '1': e->kind = TAR_HARDLINK; break;
    case '2': e->kind = TAR_SYMLINK; break;
    case '3': e->kind = TAR_CHAR; return 0;
    case '4': e->kind = TAR_BLOCK; return 0;
    case '5': e->kind = TAR_DIR; return 0;
    case '6': e->kind = TAR_FIFO; return 0;
    default:
        return cb_fail(
            err, CB_E_CORRUPT, "its tar type is 0x%02x%s%.1s%s, which a layer cannot have", type,
            shown ? " ('" : "", shown ? (const char *)h + TYPE_AT : "", shown ? "')" : "");
    }
    e->link = link_of(r, h);
    return 0;
}

static int id_of(const unsigned char *field, const char *pax, const char *what, int64_t *out,
                 struct cb_error *err)
{
    uint64_t x;
    if (!tar_field(field, ID_LEN, out))
        return bad_number(err, what);
    if (!pax)
        return 0;
    if (!tar_decimal(pax, &x))
        return bad_number(err, what);
    *out = x > INT64_MAX ? INT64_MAX : (int64_t)x;
    return 0;
}

static int owner_of(struct tar_reader *r, const unsigned char *h, struct tar_entry *e,
                    struct cb_error *err)
{
    int64_t uid, gid;
    int rc = id_of(h + UID_AT, r->pax.uid, "owner", &uid, err);
    if (rc == 0)
        rc = id_of(h + GID_AT, r->pax.gid, "group", &gid, err);
    if (rc < 0 || e->kind == TAR_HARDLINK) /* which has none of its own */
        return rc;
    if (uid < 0 || uid > ID_MAX || gid < 0 || gid > ID_MAX)
        return cb_fail(err, CB_E_CORRUPT, "owner %lld:%lld is out of range", (long long)uid,
                       (long long)gid);
    e->uid = (uint32_t)uid;
    e->gid = (uint32_t)gid;
    return 0;
}

static int device_of(const unsigned char *h, enum format f, struct tar_entry *e,
                     struct cb_error *err)
{
    int64_t major = 0, minor = 0;
    if (f != V7 &&
        (!tar_field(h + MAJOR_AT, ID_LEN, &major) || !tar_field(h + MINOR_AT, ID_LEN, &minor)))
        return bad_number(err, "device");
    if (major < 0 || major > MAJOR_MAX || minor < 0 || minor > MINOR_MAX)
        return cb_fail(err, CB_E_CORRUPT, "device number %lld:%lld is out of range",
                       (long long)major, (long long)minor);
    e->major = (uint32_t)major;
    e->minor = (uint32_t)minor;
    return 0;
}

static int attributes_of(struct tar_reader *r, const unsigned char *h, enum format f,
                         struct tar_entry *e, struct cb_error *err)
{
    int64_t mode;
    if (!tar_field(h + MODE_AT, ID_LEN, &mode))
        return bad_number(err, "mode");
    e->mode = (uint32_t)mode & 07777;
    if (!tar_field(h + MTIME_AT, SIZE_LEN, &e->mtime) ||
        (r->pax.mtime && !tar_time(r->pax.mtime, &e->mtime, &e->mtime_ns)))
        return bad_number(err, "time");
    int rc = owner_of(r, h, e, err);
    if (rc == 0 && (e->kind == TAR_CHAR || e->kind == TAR_BLOCK))
        rc = device_of(h, f, e, err);
    return rc;
}

/* ---- data ---- */

static int check_size(uint64_t size, struct cb_error *err)
{
    return size < FILE_MAX
               ? 0
               : cb_fail(err, CB_E_LIMIT, "a file of %llu bytes", (unsigned long long)size);
}

/* Pairs of fields; the first without an offset is the end. Returns 1 when they went on to the last.
 */
static int read_pairs(struct tar_reader *r, const unsigned char *p, int n, struct cb_error *err)
{
    for (; n > 0 && p[0] != 0; n--, p += (size_t)2 * SIZE_LEN) {
        int64_t at, len;
        if (!tar_field(p, SIZE_LEN, &at) || !tar_field(p + SIZE_LEN, SIZE_LEN, &len) || at < 0 ||
            len < 0)
            return cb_fail(err, CB_E_CORRUPT, "tar: the map of a sparse file is malformed");
        int rc = tar_map_add(&r->map, (uint64_t)at, (uint64_t)len, err);
        if (rc < 0)
            return rc;
    }
    return n == 0;
}

/* GNU's old format: a part of the map in the header, the rest in blocks behind it. */
static int read_old_map(struct tar_reader *r, const unsigned char *h, uint64_t *size,
                        struct cb_error *err)
{
    int64_t real;
    bool more = h[GNU_MORE_AT] != 0;
    if (format_of(h) != GNU || !tar_field(h + GNU_REALSIZE_AT, SIZE_LEN, &real) || real < 0)
        return cb_fail(err, CB_E_CORRUPT, "tar: the map of a sparse file is malformed");
    *size = (uint64_t)real;
    int rc = read_pairs(r, h + GNU_MAP_AT, GNU_MAP_N, err);
    while (rc >= 0 && more) {
        const unsigned char *b;
        rc = next_block(r, &b, err);
        if (rc == 0)
            return cut_short(err, "the map of a sparse file");
        if (rc > 0) {
            more = b[GNU_BLOCK_MORE_AT] != 0;
            rc = read_pairs(r, b, GNU_BLOCK_N, err);
        }
    }
    return rc < 0 ? rc : 0;
}

/* Format 1.0: lines in front of the data, their number first, in whole blocks. */
struct map_lines {
    uint64_t number, pair, count;
    int digits;
    uint64_t lines; /* read so far */
};

static int map_char(struct tar_reader *r, struct map_lines *m, unsigned char c,
                    struct cb_error *err)
{
    if (c >= '0' && c <= '9' && m->digits < 18) {
        m->number = m->number * 10 + (uint64_t)(c - '0');
        m->digits++;
        return 0;
    }
    if (c != '\n' || m->digits == 0)
        return cb_fail(err, CB_E_CORRUPT, "tar: the map of a sparse file is malformed");
    int rc = 0;
    if (m->lines == 0)
        m->count = m->number;
    else if (m->lines % 2 == 1)
        m->pair = m->number;
    else
        rc = tar_map_add(&r->map, m->pair, m->number, err);
    m->lines++;
    m->number = 0;
    m->digits = 0;
    return rc;
}

static int read_lines(struct tar_reader *r, struct cb_error *err)
{
    struct map_lines m = {0};
    while (m.lines == 0 || m.lines < 2 * m.count + 1) {
        const unsigned char *b;
        if (r->body < BLOCK)
            return cb_fail(err, CB_E_CORRUPT, "tar: the map of a sparse file is malformed");
        int rc = next_block(r, &b, err);
        if (rc == 0)
            return cut_short(err, "the map of a sparse file");
        r->body -= BLOCK;
        for (int i = 0; rc > 0 && i < BLOCK && (m.lines == 0 || m.lines < 2 * m.count + 1); i++)
            if (map_char(r, &m, b[i], err) < 0)
                rc = -(int)err->code;
        if (rc < 0)
            return rc;
    }
    return 0;
}

static bool is_text(const char *a, const char *b)
{
    return a && strcmp(a, b) == 0;
}

static int read_pax_map(struct tar_reader *r, uint64_t *size, struct cb_error *err)
{
    const struct tar_pax *p = &r->pax;
    if (p->realsize && !tar_decimal(p->realsize, size))
        return bad_number(err, "size");
    if (is_text(p->major, "1") && is_text(p->minor, "0"))
        return read_lines(r, err);
    if ((p->major || p->minor) &&
        !(is_text(p->major, "0") && (is_text(p->minor, "0") || is_text(p->minor, "1"))))
        return cb_fail(err, CB_E_CORRUPT, "tar: a sparse file of an unknown format");
    if (p->map)
        return tar_map_parse(&r->map, p->map, err);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < p->pieces.n; i++)
        rc = tar_map_add(&r->map, p->pieces.v[i].at, p->pieces.v[i].len, err);
    return rc;
}

/* What the header of an entry of another kind says about its size is nobody's business; Go's reader
 * takes no data for it, and so nothing can hide there. */
static int data_of(struct tar_reader *r, const unsigned char *h, struct tar_entry *e,
                   struct cb_error *err)
{
    bool old = h[TYPE_AT] == 'S';
    int64_t stored;
    uint64_t size;
    r->map.n = r->map_i = 0;
    r->map_done = 0;
    if (!tar_field(h + SIZE_AT, SIZE_LEN, &stored) ||
        (r->pax.size && (!tar_decimal(r->pax.size, &size) || size > INT64_MAX)))
        return bad_number(err, "size");
    if (r->pax.size)
        stored = (int64_t)size;
    if (stored < 0)
        return cb_fail(err, CB_E_CORRUPT, "tar: a size below zero");
    if (e->kind != TAR_FILE)
        return 0;
    size = (uint64_t)stored;
    int rc = check_size(size, err);
    if (rc < 0)
        return rc;
    r->body = size;
    r->pad = (size_t)(-size % BLOCK);
    if (!old && !r->pax.sparse) {
        e->size = size;
        return tar_map_add(&r->map, 0, size, err);
    }
    rc = old ? read_old_map(r, h, &size, err) : read_pax_map(r, &size, err);
    if (rc == 0)
        rc = check_size(size, err);
    if (rc == 0)
        rc = tar_map_check(&r->map, size, r->body, err);
    e->size = size;
    return rc;
}

int tar_reader_data(struct tar_reader *r, const void **data, size_t *len, uint64_t *at,
                    struct cb_error *err)
{
    while (r->map_i < r->map.n && r->map_done == r->map.v[r->map_i].len) {
        r->map_i++;
        r->map_done = 0;
    }
    if (r->map_i == r->map.n)
        return 0;
    int rc = fetch(r, err);
    if (rc < 0)
        return rc;
    if (rc == 0)
        return cut_short(err, "an entry's data");
    const struct tar_piece *p = &r->map.v[r->map_i];
    uint64_t left = p->len - r->map_done;
    size_t n = r->left < left ? r->left : (size_t)left;
    *data = r->piece;
    *len = n;
    *at = p->at + r->map_done;
    use(r, n);
    r->map_done += n;
    r->body -= n;
    return 1;
}

/* ---- entries ---- */

/* A header about the next entry, or about all of them. */
static int special(struct tar_reader *r, const unsigned char *h, struct cb_error *err)
{
    char type = (char)h[TYPE_AT];
    int64_t size;
    if (!tar_field(h + SIZE_AT, SIZE_LEN, &size))
        return bad_number(err, "size");
    if (type == 'L' || type == 'K') {
        struct cb_buf *b = type == 'L' ? &r->gnu_name : &r->gnu_link;
        r->pending = true;
        return read_special(r, size, b, err);
    }
    /* A global one is only looked at: what it would change for all entries, Docker passes over. A
     * second one for an entry takes the place of the first. */
    struct tar_pax global, *p = type == 'x' ? &r->pax : &global;
    if (type == 'x')
        tar_pax_clear(p);
    else
        tar_pax_init(p, SPECIAL_MAX);
    int rc = read_special(r, size, &p->body, err);
    if (rc == 0)
        rc = tar_pax_parse(p, err);
    if (type == 'x')
        r->pending = true;
    else
        tar_pax_release(p);
    return rc;
}

static int entry(struct tar_reader *r, const unsigned char *block, struct tar_entry *e,
                 struct cb_error *err)
{
    unsigned char h[BLOCK]; /* the map of a sparse file is read over the block */
    memcpy(h, block, BLOCK);
    enum format f = format_of(h);
    name_of(r, h, f, e);
    int rc = kind_of(r, h, f, e, err);
    if (rc == 0)
        rc = attributes_of(r, h, f, e, err);
    if (rc == 0)
        rc = data_of(r, h, e, err);
    return rc < 0 ? rc : 1;
}

int tar_reader_next(struct tar_reader *r, struct tar_entry *e, struct cb_error *err)
{
    memset(e, 0, sizeof(*e));
    if (r->ended)
        return 0;
    int rc = finish_entry(r, err);
    tar_pax_clear(&r->pax);
    cb_buf_clear(&r->gnu_name);
    cb_buf_clear(&r->gnu_link);
    r->pending = false;
    r->xattr_i = 0;
    while (rc == 0) {
        const unsigned char *h;
        rc = next_header(r, &h, err);
        if (rc < 0)
            break;
        if (rc == 0) {
            r->ended = true;
            return r->pending ? cb_fail(err, CB_E_CORRUPT,
                                        "tar: the entry behind an extended header is missing")
                              : 0;
        }
        unsigned char type = h[TYPE_AT];
        if (type != 'x' && type != 'g' && type != 'L' && type != 'K')
            return entry(r, h, e, err);
        rc = special(r, h, err);
    }
    return rc;
}

bool tar_reader_xattr(struct tar_reader *r, const char **name, const void **value, size_t *len)
{
    if (r->xattr_i == r->pax.n_xattrs)
        return false;
    const struct tar_xattr *x = &r->pax.xattrs[r->xattr_i++];
    *name = x->name;
    *value = x->value;
    *len = x->len;
    return true;
}

bool tar_reader_marked(const struct tar_reader *r, uint64_t *end)
{
    *end = r->at;
    return r->marked;
}

int tar_reader_open(const struct tar_source *source, struct tar_reader **out, struct cb_error *err)
{
    (void)err;
    struct tar_reader *r = cb_xcalloc(1, sizeof(*r));
    r->source = *source;
    tar_pax_init(&r->pax, SPECIAL_MAX);
    cb_buf_init(&r->gnu_name, SPECIAL_MAX);
    cb_buf_init(&r->gnu_link, SPECIAL_MAX);
    cb_buf_init(&r->path, SPECIAL_MAX);
    *out = r;
    return 0;
}

void tar_reader_close(struct tar_reader *r)
{
    if (!r)
        return;
    tar_pax_release(&r->pax);
    cb_buf_release(&r->gnu_name);
    cb_buf_release(&r->gnu_link);
    cb_buf_release(&r->path);
    free(r->map.v);
    free(r);
}
