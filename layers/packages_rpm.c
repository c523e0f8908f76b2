/* rpm's database: headers (a table of tags and a store of their values) in a table of SQLite. */
#include "layers/packages.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <limits.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <string.h>

/* ---- one header ---- */

/* rpm's own limits (lib/header.c). */
#define ENTRIES_MAX 0xffffu
#define ENTRY_SIZE 16u

enum {
    TAG_NAME = 1000,
    TAG_VERSION = 1001,
    TAG_RELEASE = 1002,
    TAG_EPOCH = 1003,
    TAG_VENDOR = 1011,
    TAG_LICENSE = 1014,
    TAG_PACKAGER = 1015,
    TAG_ARCH = 1022,
    TAG_SOURCERPM = 1044,
};
enum { TYPE_INT32 = 4, TYPE_STRING = 6, TYPE_STRING_ARRAY = 8, TYPE_I18NSTRING = 9 };

struct header {
    const unsigned char *entries;
    uint32_t n;
    const unsigned char *data;
    uint32_t data_len;
};

static uint32_t be32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static int damaged(struct cb_error *err, const char *what)
{
    return cb_fail(err, CB_E_CORRUPT, "a damaged package header: %s", what);
}

static int open_header(const void *data, size_t len, struct header *h, struct cb_error *err)
{
    const unsigned char *p = data;
    if (len < 8)
        return damaged(err, "it ends early");
    h->n = be32(p);
    h->data_len = be32(p + 4);
    if (h->n == 0 || h->n > ENTRIES_MAX || len > PACKAGE_HEADER_MAX)
        return damaged(err, "its size");
    if ((uint64_t)8 + (uint64_t)h->n * ENTRY_SIZE + h->data_len != len)
        return damaged(err, "its parts do not add up to its length");
    h->entries = p + 8;
    h->data = h->entries + (size_t)h->n * ENTRY_SIZE;
    return 0;
}

/* The place of @tag's value: 1, 0 when it is absent, or an error when it does not lie inside. */
static int find(const struct header *h, uint32_t tag, uint32_t *type, const unsigned char **at,
                struct cb_error *err)
{
    for (uint32_t i = 0; i < h->n; i++) {
        const unsigned char *e = h->entries + (size_t)i * ENTRY_SIZE;
        if (be32(e) != tag)
            continue;
        uint32_t offset = be32(e + 8);
        if (be32(e + 12) == 0 || offset >= h->data_len)
            return damaged(err, "a value lies outside of it");
        *type = be32(e + 4);
        *at = h->data + offset;
        return 1;
    }
    return 0;
}

/* The first string of @tag. Borrowed; 1, 0 or an error. */
static int find_string(const struct header *h, uint32_t tag, const char **text, size_t *len,
                       struct cb_error *err)
{
    uint32_t type = 0;
    const unsigned char *at = NULL;
    int rc = find(h, tag, &type, &at, err);
    if (rc <= 0)
        return rc;
    if (type != TYPE_STRING && type != TYPE_STRING_ARRAY && type != TYPE_I18NSTRING)
        return damaged(err, "a text of another type");
    const unsigned char *end = memchr(at, 0, (size_t)(h->data + h->data_len - at));
    if (!end)
        return damaged(err, "a text without an end");
    *text = (const char *)at;
    *len = (size_t)(end - at);
    return 1;
}

static int read_word(const struct header *h, uint32_t tag, char **out, struct cb_error *err)
{
    const char *text = NULL;
    size_t len = 0;
    int rc = find_string(h, tag, &text, &len, err);
    if (rc <= 0)
        return rc;
    *out = package_word(text, len);
    return *out ? 1 : damaged(err, "a name or version that cannot be one");
}

static int read_text(const struct header *h, uint32_t tag, char **out, struct cb_error *err)
{
    const char *text = NULL;
    size_t len = 0;
    int rc = find_string(h, tag, &text, &len, err);
    if (rc > 0)
        *out = package_text(text, len);
    return rc;
}

static int read_epoch(const struct header *h, char **out, struct cb_error *err)
{
    uint32_t type = 0;
    const unsigned char *at = NULL;
    int rc = find(h, TAG_EPOCH, &type, &at, err);
    if (rc <= 0)
        return rc;
    if (type != TYPE_INT32 || h->data + h->data_len - at < 4)
        return damaged(err, "an epoch that is no number");
    *out = cb_xasprintf("%u", be32(at));
    return 1;
}

static int read_header(const struct header *h, struct package *p, struct cb_error *err)
{
    CB_AUTO_FREE char *version = NULL, *release = NULL;
    int name = read_word(h, TAG_NAME, &p->name, err);
    if (name < 0)
        return name;
    int rc = read_word(h, TAG_VERSION, &version, err);
    if (rc < 0)
        return rc;
    if (name == 0 || rc == 0)
        return damaged(err, "no name or no version");
    if ((rc = read_word(h, TAG_RELEASE, &release, err)) < 0)
        return rc;
    p->version = release ? cb_xasprintf("%s-%s", version, release) : cb_take_ptr(&version);
    const struct {
        uint32_t tag;
        char **to;
        int (*read)(const struct header *, uint32_t, char **, struct cb_error *);
    } fields[] = {
        {TAG_ARCH, &p->arch, read_word},           {TAG_SOURCERPM, &p->source, read_word},
        {TAG_LICENSE, &p->license, read_text},     {TAG_VENDOR, &p->vendor, read_text},
        {TAG_PACKAGER, &p->maintainer, read_text},
    };
    for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++)
        if ((rc = fields[i].read(h, fields[i].tag, fields[i].to, err)) < 0)
            return rc;
    return read_epoch(h, &p->epoch, err);
}

int packages_read_rpm_header(const void *data, size_t len, struct package_list *l,
                             struct cb_error *err)
{
    struct header h;
    struct package p = {.kind = PACKAGE_RPM};
    int rc = open_header(data, len, &h, err);
    if (rc == 0)
        rc = read_header(&h, &p, err);
    if (rc >= 0 && strcmp(p.name, "gpg-pubkey") != 0)
        rc = package_list_add(l, &p, err);
    package_release(&p);
    return rc < 0 ? rc : 0;
}

/* ---- the database ---- */

CB_DEFINE_CLEANUP(db, sqlite3 *, (void)sqlite3_close);
CB_DEFINE_CLEANUP(stmt, sqlite3_stmt *, (void)sqlite3_finalize);

#define STEPS_BETWEEN 100000 /* of SQLite's machine, about a millisecond */
#define STEPS_MAX 100000     /* times that: a sane database needs a few */

static int count_steps(void *arg)
{
    unsigned *n = arg;
    return ++*n > STEPS_MAX;
}

static int db_failed(sqlite3 *db, struct cb_error *err)
{
    return cb_fail(err, CB_E_CORRUPT, "not a database of rpm: %s", sqlite3_errmsg(db));
}

/* Nothing of the schema may act, nothing may be large, and no time is without an end. */
static int open_db(const char *path, unsigned *steps, sqlite3 **out, struct cb_error *err)
{
    int rc = sqlite3_open_v2(path, out, SQLITE_OPEN_READWRITE | SQLITE_OPEN_PRIVATECACHE, NULL);
    if (rc != SQLITE_OK)
        return db_failed(*out, err);
    sqlite3 *db = *out;
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_VIEW, 0, NULL);
    (void)sqlite3_limit(db, SQLITE_LIMIT_LENGTH, (int)PACKAGE_HEADER_MAX);
    (void)sqlite3_limit(db, SQLITE_LIMIT_ATTACHED, 0);
    sqlite3_progress_handler(db, STEPS_BETWEEN, count_steps, steps);
    /* alone with the file, so that a log needs no shared memory beside it */
    if (sqlite3_exec(db,
                     "PRAGMA locking_mode=EXCLUSIVE; PRAGMA cell_size_check=ON; "
                     "PRAGMA mmap_size=0; PRAGMA cache_size=-4096;",
                     NULL, NULL, NULL) != SQLITE_OK)
        return db_failed(db, err);
    return 0;
}

int packages_read_rpm_db(const char *path, struct package_list *l, size_t *bad,
                         struct cb_error *err)
{
    unsigned steps = 0;
    CB_AUTO(db) db = NULL;
    CB_AUTO(stmt) st = NULL;
    *bad = 0;
    int rc = open_db(path, &steps, &db, err);
    if (rc < 0)
        return rc;
    if (sqlite3_prepare_v2(db, "SELECT blob FROM Packages ORDER BY hnum", -1, &st, NULL) !=
        SQLITE_OK)
        return db_failed(db, err);
    int step = 0;
    while ((step = sqlite3_step(st)) == SQLITE_ROW) {
        const void *blob = sqlite3_column_blob(st, 0);
        CB_AUTO_ERROR one = CB_ERROR_INIT;
        rc = packages_read_rpm_header(blob ? blob : "", (size_t)sqlite3_column_bytes(st, 0), l,
                                      &one);
        if (rc == -(int)CB_E_CORRUPT)
            ++*bad;
        else if (rc < 0)
            return cb_error_move(err, &one);
    }
    return step == SQLITE_DONE ? 0 : db_failed(db, err);
}
