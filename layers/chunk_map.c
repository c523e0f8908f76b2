#include "layers/chunk_map.h"

#include "layers/parallel.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char magic[16] = {'c', 'a', 'p', 's', 'u', 'l', 'e', ' ',
                               'c', 'h', 'u', 'n', 'k', 's', ' ', '1'};
enum { HEAD = 40, ENTRY = 8 + CB_SHA256_LEN };

void chunk_map_release(struct chunk_map *m)
{
    free(m->v);
    *m = (struct chunk_map){0};
}

bool chunk_size_ok(uint64_t size)
{
    return size >= CHUNK_SIZE_MIN && size <= CHUNK_SIZE_MAX && (size & (size - 1)) == 0;
}

uint32_t chunk_length(const struct chunk_map *m, uint64_t index)
{
    uint64_t left = m->length - index * m->chunk_size;
    return left < m->chunk_size ? (uint32_t)left : m->chunk_size;
}

static uint64_t chunks_in(uint64_t length, uint32_t chunk_size)
{
    return length / chunk_size + (length % chunk_size != 0);
}

/* -- hashing -- */

static bool all_zero(const unsigned char *p, size_t n)
{
    static const unsigned char zero[16];
    return n < 16 ? memcmp(p, zero, n) == 0
                  : memcmp(p, zero, 16) == 0 && memcmp(p, p + 16, n - 16) == 0;
}

/* Chunks to read: what of them is all zero is marked, and taken out at the end. */
struct reading {
    int fd;
    struct chunk_map *map;
    size_t *todo; /* places in map->v */
    bool *zero;   /* one an entry of map->v */
    unsigned char *buf[PARALLEL_MAX];
};

static int read_chunk(void *arg, unsigned worker, size_t item, struct cb_error *err)
{
    struct reading *r = arg;
    size_t i = r->todo[item];
    struct chunk *c = &r->map->v[i];
    size_t n = chunk_length(r->map, c->index);
    unsigned char *buf = r->buf[worker];
    int rc = cb_pread_all(r->fd, buf, n, (off_t)(c->index * r->map->chunk_size), err);
    if (rc < 0)
        return rc;
    r->zero[i] = all_zero(buf, n);
    if (!r->zero[i])
        cb_sha256(buf, n, &c->digest);
    return 0;
}

/* Fills in the digests of the entries @todo, and drops those that turn out to be zeros. */
static int read_chunks(int fd, struct chunk_map *m, size_t *todo, size_t n_todo,
                       struct cb_error *err)
{
    struct reading r = {.fd = fd, .map = m, .todo = todo};
    unsigned workers = parallel_workers(n_todo);
    size_t most = m->length < m->chunk_size ? (size_t)m->length : m->chunk_size;
    r.zero = cb_xcalloc(m->n ? m->n : 1, sizeof(*r.zero));
    for (unsigned i = 0; i < workers && n_todo; i++)
        r.buf[i] = cb_xmalloc(most);
    int rc = parallel_run(n_todo, read_chunk, &r, err);
    for (unsigned i = 0; i < workers; i++)
        free(r.buf[i]);
    size_t kept = 0;
    for (size_t i = 0; i < m->n; i++)
        if (!r.zero[i])
            m->v[kept++] = m->v[i];
    m->n = kept;
    free(r.zero);
    return rc;
}

/* -- which chunks -- */

/* Moves *@index to the next chunk at or after it that has data. 1, 0 when there is none. */
static int next_data(int fd, const struct chunk_map *m, uint64_t *index, struct cb_error *err)
{
    uint64_t at = *index * m->chunk_size;
    if (at >= m->length)
        return 0;
    off_t data = lseek(fd, (off_t)at, SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        return 0;
    if (data < 0 && errno == EINVAL)
        return 1; /* a file system without holes: every chunk has data */
    if (data < 0)
        return cb_fail_sys(err, errno, "look for data");
    *index = (uint64_t)data / m->chunk_size;
    return (uint64_t)data < m->length;
}

static int begin(int fd, uint32_t chunk_size, struct chunk_map *m, struct cb_error *err)
{
    struct stat st;
    if (!chunk_size_ok(chunk_size))
        return cb_fail(err, CB_E_BUG, "chunks of %u bytes", chunk_size);
    if (fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "look at the image");
    if ((uint64_t)st.st_size > CHUNK_IMAGE_MAX)
        return cb_fail(err, CB_E_LIMIT, "an image of %llu bytes; the most is %llu",
                       (unsigned long long)st.st_size, (unsigned long long)CHUNK_IMAGE_MAX);
    *m = (struct chunk_map){.length = (uint64_t)st.st_size, .chunk_size = chunk_size};
    return 0;
}

struct picker {
    struct chunk_map *map;
    size_t cap;
    size_t *todo; /* owned */
    size_t n_todo, cap_todo;
};

static void pick(struct picker *p, uint64_t index, const struct cb_digest *known)
{
    struct chunk_map *m = p->map;
    m->v = cb_xgrow(m->v, &p->cap, m->n, sizeof(*m->v));
    m->v[m->n] = (struct chunk){.index = index};
    if (known) {
        m->v[m->n].digest = *known;
    } else {
        p->todo = cb_xgrow(p->todo, &p->cap_todo, p->n_todo, sizeof(*p->todo));
        p->todo[p->n_todo++] = m->n;
    }
    m->n++;
}

static int finish(struct picker *p, int fd, int rc, struct chunk_map *out, struct cb_error *err)
{
    if (rc >= 0)
        rc = read_chunks(fd, p->map, p->todo, p->n_todo, err);
    free(p->todo);
    if (rc < 0) {
        chunk_map_release(p->map);
        return cb_wrap(err, "hash the chunks of the image");
    }
    *out = *p->map;
    return 0;
}

int chunk_map_make(int fd, uint32_t chunk_size, struct chunk_map *out, struct cb_error *err)
{
    struct chunk_map m = {0};
    struct picker p = {.map = &m};
    int rc = begin(fd, chunk_size, &m, err);
    if (rc < 0)
        return rc;
    for (uint64_t index = 0; (rc = next_data(fd, &m, &index, err)) > 0; index++)
        pick(&p, index, NULL);
    return finish(&p, fd, rc, out, err);
}

/* One bit a chunk of the child: it may differ from the parent's. */
static unsigned char *mark_dirty(const struct chunk_map *m, const struct chunk_map *parent,
                                 const struct byte_range *dirty, size_t n_dirty)
{
    uint64_t chunks = chunks_in(m->length, m->chunk_size);
    unsigned char *bits = cb_try_alloc((size_t)(chunks / 8 + 1));
    if (!bits)
        return NULL;
    memset(bits, 0, (size_t)(chunks / 8 + 1));
    for (size_t i = 0; i < n_dirty; i++) {
        if (dirty[i].len == 0 || dirty[i].at >= m->length)
            continue;
        uint64_t left = m->length - dirty[i].at;
        uint64_t len = dirty[i].len < left ? dirty[i].len : left;
        uint64_t last = (dirty[i].at + len - 1) / m->chunk_size;
        for (uint64_t c = dirty[i].at / m->chunk_size; c <= last; c++)
            bits[c / 8] |= (unsigned char)(1u << (c % 8));
    }
    /* what lies behind the parent's end, and a last chunk that is longer or shorter now */
    uint64_t same = m->length == parent->length ? chunks
                    : m->length < parent->length
                        ? m->length / m->chunk_size
                        : parent->length / m->chunk_size; /* whole chunks that both have */
    for (uint64_t c = same; c < chunks; c++)
        bits[c / 8] |= (unsigned char)(1u << (c % 8));
    return bits;
}

int chunk_map_update(int fd, const struct chunk_map *parent, const struct byte_range *dirty,
                     size_t n_dirty, struct chunk_map *out, struct cb_error *err)
{
    struct chunk_map m = {0};
    struct picker p = {.map = &m};
    int rc = begin(fd, parent->chunk_size, &m, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE unsigned char *bits = mark_dirty(&m, parent, dirty, n_dirty);
    if (!bits)
        return cb_fail_sys(err, ENOMEM, "hash the chunks of the image");
    size_t at = 0; /* in the parent's */
    uint64_t data = 0;
    int more = next_data(fd, &m, &data, err);
    for (uint64_t c = 0; more > 0 || at < parent->n; c++) {
        /* the next chunk that either the file or the parent's map knows anything of */
        c = more > 0 && (at == parent->n || data < parent->v[at].index) ? data
                                                                        : parent->v[at].index;
        if (c * m.chunk_size >= m.length)
            break;
        bool known = at < parent->n && parent->v[at].index == c;
        bool changed = bits[c / 8] & (1u << (c % 8));
        if (!changed && known)
            pick(&p, c, &parent->v[at].digest);
        else if (changed && more > 0 && data == c)
            pick(&p, c, NULL);
        at += known;
        if (more > 0 && data == c) {
            data++;
            more = next_data(fd, &m, &data, err);
        }
    }
    return finish(&p, fd, more, out, err);
}

/* -- the digest and the document -- */

static void put64(unsigned char *p, uint64_t n)
{
    n = htole64(n);
    memcpy(p, &n, 8);
}

static void put32(unsigned char *p, uint32_t n)
{
    n = htole32(n);
    memcpy(p, &n, 4);
}

static uint64_t get64(const unsigned char *p)
{
    uint64_t n;
    memcpy(&n, p, 8);
    return le64toh(n);
}

static uint32_t get32(const unsigned char *p)
{
    uint32_t n;
    memcpy(&n, p, 4);
    return le32toh(n);
}

static void put_entry(unsigned char *p, const struct chunk *c)
{
    put64(p, c->index);
    memcpy(p + 8, c->digest.b, CB_SHA256_LEN);
}

void chunk_map_digest(const struct chunk_map *m, struct cb_digest *out)
{
    unsigned char part[ENTRY];
    struct cb_hasher *h = cb_hasher_new();
    put64(part, m->length);
    cb_hasher_update(h, part, 8);
    for (size_t i = 0; i < m->n; i++) {
        put_entry(part, &m->v[i]);
        cb_hasher_update(h, part, ENTRY);
    }
    cb_hasher_final(h, out);
    cb_hasher_free(h);
}

int chunk_map_dump(const struct chunk_map *m, struct cb_buf *out, struct cb_error *err)
{
    unsigned char part[HEAD > ENTRY ? HEAD : ENTRY];
    memcpy(part, magic, sizeof(magic));
    put32(part + 16, m->chunk_size);
    put32(part + 20, 0);
    put64(part + 24, m->length);
    put64(part + 32, m->n);
    int rc = cb_buf_add(out, part, HEAD);
    for (size_t i = 0; i < m->n && rc >= 0; i++) {
        put_entry(part, &m->v[i]);
        rc = cb_buf_add(out, part, ENTRY);
    }
    if (rc < 0)
        return cb_fail(err, CB_E_LIMIT, "a chunk map of %zu entries; at most %zu bytes are kept",
                       m->n, out->max);
    return 0;
}

static int bad(struct cb_error *err, const char *why)
{
    return cb_fail(err, CB_E_CORRUPT, "chunk map: %s", why);
}

static int parse_entries(const unsigned char *p, struct chunk_map *m, struct cb_error *err)
{
    uint64_t chunks = chunks_in(m->length, m->chunk_size);
    for (size_t i = 0; i < m->n; i++, p += ENTRY) {
        struct chunk *c = &m->v[i];
        c->index = get64(p);
        memcpy(c->digest.b, p + 8, CB_SHA256_LEN);
        if (c->index >= chunks)
            return bad(err, "a chunk lies behind the end of the image");
        if (i && c->index <= m->v[i - 1].index)
            return bad(err, "its chunks are not in order");
    }
    return 0;
}

int chunk_map_parse(const void *data, size_t len, struct chunk_map *out, struct cb_error *err)
{
    const unsigned char *p = data;
    if (len < HEAD || memcmp(p, magic, sizeof(magic)) != 0)
        return bad(err, "does not begin as one");
    struct chunk_map m = {.length = get64(p + 24), .chunk_size = get32(p + 16)};
    uint64_t n = get64(p + 32);
    if (!chunk_size_ok(m.chunk_size) || get32(p + 20) != 0)
        return bad(err, "its chunk size is not a power of two from 64 KiB to 16 MiB");
    if (m.length > CHUNK_IMAGE_MAX)
        return bad(err, "its image is longer than 4 TiB");
    if ((len - HEAD) % ENTRY != 0 || n != (len - HEAD) / ENTRY)
        return bad(err, "has another length than its number of entries says");
    m.n = (size_t)n;
    m.v = m.n ? cb_try_alloc(m.n * sizeof(*m.v)) : NULL;
    if (m.n && !m.v)
        return cb_fail_sys(err, ENOMEM, "chunk map of %zu entries", m.n);
    int rc = parse_entries(p + HEAD, &m, err);
    if (rc < 0) {
        chunk_map_release(&m);
        return rc;
    }
    *out = m;
    return 0;
}
