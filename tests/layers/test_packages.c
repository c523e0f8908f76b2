/* The databases of package managers: what is read from them, and what is refused. */
#include "check.h"

#include "layers/packages.h"
#include "layers/sbom.h"

#include <fcntl.h>
#include <sqlite3.h>

#define HEADERS CB_SOURCE_DIR "/tests/fuzz/corpus/rpm_header/"

static void test_dpkg(void **state)
{
    (void)state;
    static const char text[] =
        "Package: libc6\n"
        "Status: install ok installed\n"
        "Priority: optional\n"
        "Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>\n"
        "Architecture: amd64\n"
        "Multi-Arch: same\n"
        "Source: glibc\n"
        "Version: 2.36-9+deb12u10\n"
        "Description: GNU C Library\n"
        " Contains the standard libraries: see\n"
        " .\n"
        "  the manual\n"
        "Conffiles:\n"
        " /etc/ld.so.conf.d/x86_64-linux-gnu.conf d4e7a7b88a71b5ffd9e2644e71a0cfab\n"
        "\n"
        "Package: gone\n"
        "Status: deinstall ok config-files\n"
        "Version: 1\n"
        "\n"
        "\n"
        "Package: half\n"
        "status: install reinstreq half-configured\n"
        "Source: whole (2:1.0-1)\n"
        "Version: 1:1.0-1+b2\n"
        "\n"
        "Package: never\n"
        "Status: unknown ok not-installed\n";
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct package_list l = {0};
    assert_ok(packages_read_dpkg(text, sizeof(text) - 1, &l, &err), &err);
    assert_int_equal(l.n, 2);
    assert_string_equal(l.v[0].name, "libc6");
    assert_string_equal(l.v[0].version, "2.36-9+deb12u10");
    assert_string_equal(l.v[0].arch, "amd64");
    assert_string_equal(l.v[0].source, "glibc");
    assert_null(l.v[0].source_version);
    assert_string_equal(l.v[0].maintainer, "GNU Libc Maintainers <debian-glibc@lists.debian.org>");
    assert_string_equal(l.v[1].name, "half");
    assert_null(l.v[1].arch);
    assert_string_equal(l.v[1].source_version, "2:1.0-1");
    CB_AUTO_FREE char *one = package_purl(&l.v[0], "debian", "12");
    assert_string_equal(one, "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12"
                             "&upstream=glibc");
    CB_AUTO_FREE char *two = package_purl(&l.v[1], NULL, NULL);
    assert_string_equal(two, "pkg:deb/debian/half@1:1.0-1%2Bb2?upstream=whole%402:1.0-1");
    package_list_release(&l);
}

static void test_text_that_is_no_database(void **state)
{
    (void)state;
    static const struct {
        int (*read)(const char *, size_t, struct package_list *, struct cb_error *);
        const char *text, *why;
    } bad[] = {
        {packages_read_dpkg, "Package: a\nVersion: 1\n\nVersion: 2\n", "line 4: an entry without"},
        {packages_read_dpkg, "Package: a b\nVersion: 1\n", "line 1: an entry without"},
        {packages_read_dpkg, "Package: a\n", "line 1: an entry without"},
        {packages_read_dpkg, "Package: a\nVersion: \n", "line 1: an entry without"},
        {packages_read_dpkg, "Package: a\nwhat is this\n", "line 2 is not a field"},
        {packages_read_dpkg, ": a\n", "line 1 is not a field"},
        {packages_read_dpkg,
         "\x7f"
         "ELF\x02\x01",
         "line 1 is not a field"},
        {packages_read_apk, "P:a\nV:1\n\nP:b\n", "line 4: an entry without"},
        {packages_read_apk, "P:a\nA:x y\nV:1\n", "line 1: an entry without"},
        {packages_read_apk, "Package: a\n", "line 1 is not a field"},
        {packages_read_apk, "nothing", "line 1 is not a field"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct package_list l = {0};
        assert_fails(bad[i].read(bad[i].text, strlen(bad[i].text), &l, &err), &err, CB_E_CORRUPT,
                     bad[i].why);
        package_list_release(&l);
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct package_list l = {0};
    assert_ok(packages_read_dpkg("", 0, &l, &err), &err);
    assert_ok(packages_read_apk("\n\n", 2, &l, &err), &err);
    assert_int_equal(l.n, 0);
}

static void test_apk(void **state)
{
    (void)state;
    static const char text[] = "C:Q1qKcZ+j23xssAXmgQhkOO8dHnbWw=\n"
                               "P:musl\n"
                               "V:1.2.4-r2\n"
                               "A:x86_64\n"
                               "S:389236\n"
                               "T:the musl c library (libc) implementation\n"
                               "L:MIT\n"
                               "o:musl\n"
                               "m:Timo Ter\xc3\xa4s <timo.teras@iki.fi>\n"
                               "F:lib\n"
                               "R:ld-musl-x86_64.so.1\n"
                               "a:0:0:755\n"
                               "\n"
                               "P:busybox\n"
                               "V:1.36.1-r2\n"
                               "L:GPL-2.0-only\n";
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct package_list l = {0};
    assert_ok(packages_read_apk(text, sizeof(text) - 1, &l, &err), &err);
    package_list_sort(&l);
    assert_int_equal(l.n, 2);
    assert_string_equal(l.v[0].name, "busybox");
    assert_string_equal(l.v[0].license, "GPL-2.0-only");
    assert_string_equal(l.v[1].maintainer, "Timo Ter\xc3\xa4s <timo.teras@iki.fi>");
    CB_AUTO_FREE char *purl = package_purl(&l.v[1], "alpine", "3.18.4");
    assert_string_equal(purl, "pkg:apk/alpine/musl@1.2.4-r2?arch=x86_64&distro=alpine-3.18.4"
                              "&upstream=musl");
    package_list_release(&l);
}

static void test_text_is_made_clean(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to;
    } t[] = {{"  a \t b\x01 ", "a b"},
             {"a\xff"
              "b",
              "a\xef\xbf\xbd"
              "b"},
             {"\xc2\x9b"
              "1m\x1b[2J",
              "1m [2J"},
             {"", NULL},
             {" \n ", NULL}};
    for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
        CB_AUTO_FREE char *got = package_text(t[i].from, strlen(t[i].from));
        if (t[i].to)
            assert_string_equal(got, t[i].to);
        else
            assert_null(got);
    }
    char big[3000];
    memset(big, 'x', sizeof(big));
    CB_AUTO_FREE char *cut = package_text(big, sizeof(big));
    assert_int_equal(strlen(cut), 1024);
}

static void test_equals_are_listed_once(void **state)
{
    (void)state;
    static const char text[] = "P:b\nV:1\nL:x\n\nP:a\nV:2\n\nP:b\nV:1\nL:w\n\nP:a\nV:10\n";
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct package_list l = {0};
    package_list_sort(&l);
    assert_ok(packages_read_apk(text, sizeof(text) - 1, &l, &err), &err);
    package_list_sort(&l);
    assert_int_equal(l.n, 3);
    assert_string_equal(l.v[0].version, "10");
    assert_string_equal(l.v[2].license, "w");
    package_list_release(&l);
}

/* ---- rpm ---- */

static void read_blob(const char *name, struct cb_buf *out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf(HEADERS "%s", name);
    assert_ok(cb_read_file(path, 1 << 20, out, &err), &err);
}

/* What rpm 4.18 wrote. */
static void test_rpm_header(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF blob = CB_BUF_INIT(0);
    struct package_list l = {0};
    read_blob("real-1", &blob);
    assert_ok(packages_read_rpm_header(blob.data, blob.len, &l, &err), &err);
    assert_int_equal(l.n, 1);
    const struct package *p = &l.v[0];
    assert_string_equal(p->name, "bom-sample");
    assert_string_equal(p->version, "1.4-3.fc40");
    assert_string_equal(p->epoch, "2");
    assert_string_equal(p->arch, "noarch");
    assert_string_equal(p->license, "GPLv2+ and MIT");
    assert_string_equal(p->vendor, "Fedora Project");
    assert_string_equal(p->maintainer, "Ann Author <ann@example.com>");
    assert_string_equal(p->source, "bom-sample-1.4-3.fc40.src.rpm");
    CB_AUTO_FREE char *purl = package_purl(p, "fedora", "40");
    assert_string_equal(purl, "pkg:rpm/fedora/bom-sample@1.4-3.fc40?arch=noarch&distro=fedora-40"
                              "&epoch=2&upstream=bom-sample-1.4-3.fc40.src.rpm");
    /* each byte less, and each byte of its head another */
    for (size_t n = 0; n < blob.len; n++)
        assert_fails(packages_read_rpm_header(blob.data, n, &l, &err), &err, CB_E_CORRUPT,
                     "a damaged package header");
    for (size_t i = 0; i < 8; i++) {
        blob.data[i] ^= 0x41;
        assert_fails(packages_read_rpm_header(blob.data, blob.len, &l, &err), &err, CB_E_CORRUPT,
                     "a damaged package header");
        blob.data[i] ^= 0x41;
    }
    package_list_release(&l);
}

static void insert(sqlite3 *db, const void *p, size_t n)
{
    sqlite3_stmt *st = NULL;
    assert_int_equal(sqlite3_prepare_v2(db, "INSERT INTO Packages(blob) VALUES(?)", -1, &st, NULL),
                     SQLITE_OK);
    assert_int_equal(sqlite3_bind_blob(st, 1, p, (int)n, SQLITE_TRANSIENT), SQLITE_OK);
    assert_int_equal(sqlite3_step(st), SQLITE_DONE);
    assert_int_equal(sqlite3_finalize(st), SQLITE_OK);
}

static void copy(const char *from, const char *to)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    assert_ok(cb_read_file(from, 16 << 20, &text, &err), &err);
    assert_ok(cb_write_file(to, text.data, text.len, 0600, &err), &err);
}

static void test_rpm_database(void **state)
{
    const char *dir = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/rpmdb.sqlite", dir);
    CB_AUTO_FREE char *log = cb_xasprintf("%s/rpmdb.sqlite-wal", dir);
    CB_AUTO_FREE char *there = cb_xasprintf("%s/copy", dir);
    CB_AUTO_FREE char *there_log = cb_xasprintf("%s/copy-wal", dir);
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db,
                                  "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE "
                                  "TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT,blob "
                                  "BLOB NOT NULL)",
                                  NULL, NULL, NULL),
                     SQLITE_OK);
    CB_AUTO_BUF one = CB_BUF_INIT(0), two = CB_BUF_INIT(0);
    read_blob("real-1", &one);
    read_blob("real-2", &two);
    insert(db, one.data, one.len);
    insert(db, one.data, one.len - 1);
    assert_int_equal(sqlite3_exec(db, "PRAGMA wal_checkpoint(TRUNCATE)", NULL, NULL, NULL),
                     SQLITE_OK);
    insert(db, two.data, two.len); /* in the log alone */
    copy(path, there);
    copy(log, there_log);
    struct package_list l = {0};
    size_t bad = 0;
    assert_ok(packages_read_rpm_db(there, &l, &bad, &err), &err);
    assert_int_equal(l.n, 2);
    assert_int_equal(bad, 1);
    assert_string_equal(l.v[1].name, "bom-other");
    package_list_release(&l);

    copy(path, there); /* without its log it is what it was at the last checkpoint */
    (void)unlink(there_log);
    assert_ok(packages_read_rpm_db(there, &l, &bad, &err), &err);
    assert_int_equal(l.n, 1);
    package_list_release(&l);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

#define OLD CB_SOURCE_DIR "/tests/fuzz/corpus/rpm_old/"

typedef int (*rpm_reader)(const void *, size_t, struct package_list *, size_t *, struct cb_error *);

static void read_old(const char *name, struct cb_buf *out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf(OLD "%s", name);
    assert_ok(cb_read_file(path, 1 << 20, out, &err), &err);
}

/* The two of Berkeley DB were written by its own db_load. */
static void test_older_rpm_databases(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        rpm_reader read;
        const char *first, *second;
    } cases[] = {
        {"bdb-chains", packages_read_rpm_bdb, "bom-other", "bom-sample"},
        {"bdb-inline", packages_read_rpm_bdb, "one", "two"},
        {"ndb", packages_read_rpm_ndb, "bom-other", "bom-sample"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_BUF db = CB_BUF_INIT(0);
        struct package_list l = {0};
        size_t bad = 9;
        read_old(cases[i].file, &db);
        assert_ok(cases[i].read(db.data, db.len, &l, &bad, &err), &err);
        package_list_sort(&l);
        assert_int_equal(bad, 0);
        assert_int_equal(l.n, 2);
        assert_string_equal(l.v[0].name, cases[i].first);
        assert_string_equal(l.v[1].name, cases[i].second);
        package_list_release(&l);
        for (size_t n = 0; n < db.len; n += 61) { /* cut: an error, or fewer of them */
            CB_AUTO_ERROR cut = CB_ERROR_INIT;
            CB_AUTO_FREE char *part = cb_xcalloc(1, n + 1);
            memcpy(part, db.data, n);
            int rc = cases[i].read(part, n, &l, &bad, &cut);
            assert_true(rc == 0 || rc == -(int)CB_E_CORRUPT);
            assert_true(l.n <= 2);
            package_list_release(&l);
        }
    }
}

static void put32(struct cb_buf *b, size_t at, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        b->data[at + (size_t)i] = (char)(v >> 8 * i);
}

static void test_hostile_older_rpm_databases(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct package_list l = {0};
    size_t bad = 0;
    CB_AUTO_BUF ndb = CB_BUF_INIT(0), chains = CB_BUF_INIT(0);
    read_old("ndb", &ndb);
    for (size_t at = 32; at < 4096; at += 16) { /* all slots name one blob */
        put32(&ndb, at + 4, 1);
        put32(&ndb, at + 8, 4096 / 16);
    }
    assert_fails(packages_read_rpm_ndb(ndb.data, ndb.len, &l, &bad, &err), &err, CB_E_CORRUPT,
                 "its blobs lie over each other");
    package_list_release(&l);
    ndb.data[32] = 'X';
    assert_fails(packages_read_rpm_ndb(ndb.data, ndb.len, &l, &bad, &err), &err, CB_E_CORRUPT,
                 "a slot that is none");
    put32(&ndb, 12, UINT32_MAX);
    assert_fails(packages_read_rpm_ndb(ndb.data, ndb.len, &l, &bad, &err), &err, CB_E_CORRUPT,
                 "it ends early");
    put32(&ndb, 4, 1);
    assert_fails(packages_read_rpm_ndb(ndb.data, ndb.len, &l, &bad, &err), &err, CB_E_CORRUPT,
                 "a version of ndb that is not known");
    read_old("bdb-chains", &chains);
    for (size_t page = 512; page < chains.len; page += 512) /* every chain comes back to itself */
        if (chains.data[page + 25] == 7)
            put32(&chains, page + 16, (uint32_t)(page / 512));
    assert_ok(packages_read_rpm_bdb(chains.data, chains.len, &l, &bad, &err), &err);
    assert_int_equal(l.n, 0);
    assert_int_equal(bad, 2);
    put32(&chains, 20, 777);
    assert_fails(packages_read_rpm_bdb(chains.data, chains.len, &l, &bad, &err), &err, CB_E_CORRUPT,
                 "pages that cannot be read");
    put32(&chains, 12, 0);
    assert_fails(packages_read_rpm_bdb(chains.data, chains.len, &l, &bad, &err), &err, CB_E_CORRUPT,
                 "it does not begin as a hash of Berkeley DB does");
}

/* A schema that would have the reader work for ever, or is not one. */
static void test_hostile_rpm_database(void **state)
{
    const char *dir = *state;
    static const char *const schema[] = {
        ("CREATE VIEW Packages AS WITH RECURSIVE c(hnum, blob) AS (SELECT 1, x'00' UNION ALL "
         "SELECT "
         "hnum + 1, blob FROM c) SELECT hnum, blob FROM c"),
        "CREATE TABLE Other(a)",
        "CREATE TABLE Packages(a, b)",
    };
    for (size_t i = 0; i < sizeof(schema) / sizeof(*schema); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *path = cb_xasprintf("%s/db%zu", dir, i);
        sqlite3 *db = NULL;
        assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
        assert_int_equal(sqlite3_exec(db, schema[i], NULL, NULL, NULL), SQLITE_OK);
        assert_int_equal(sqlite3_close(db), SQLITE_OK);
        struct package_list l = {0};
        size_t bad = 0;
        assert_fails(packages_read_rpm_db(path, &l, &bad, &err), &err, CB_E_CORRUPT,
                     "not a database of rpm");
        package_list_release(&l);
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/text", dir);
    assert_ok(cb_write_file(path, "SQLite? no, it is text\n", 23, 0600, &err), &err);
    struct package_list l = {0};
    size_t bad = 0;
    assert_fails(packages_read_rpm_db(path, &l, &bad, &err), &err, CB_E_CORRUPT,
                 "not a database of rpm");
}

static void test_licenses(void **state)
{
    (void)state;
    static const struct {
        const char *declared, *expression;
    } t[] = {
        {"MIT", "MIT"},
        {"mit", "MIT"},
        {"GPL-2.0-or-later AND (MIT OR BSD-3-Clause)",
         "GPL-2.0-or-later AND (MIT OR BSD-3-Clause)"},
        {" GPL-2.0-only  WITH Classpath-exception-2.0 ",
         "GPL-2.0-only WITH Classpath-exception-2.0"},
        {"MIT and Zlib", "MIT AND Zlib"},
        {"0BSD", "0BSD"},
        {"ZPL-2.1", "ZPL-2.1"},
        {"GPLv2+ and MIT", NULL},
        {"MIT BSD", NULL},
        {"MIT AND", NULL},
        {"(MIT", NULL},
        {"MIT)", NULL},
        {"()", NULL},
        {"", NULL},
        {"MIT WITH MIT", NULL},
        {"AND", NULL},
        {"((((((((((((((((((((MIT))))))))))))))))))))", NULL},
    };
    for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
        CB_AUTO_FREE char *got = spdx_license(t[i].declared);
        if (t[i].expression)
            assert_string_equal(got ? got : "(none)", t[i].expression);
        else
            assert_null(got);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dpkg),
        cmocka_unit_test(test_text_that_is_no_database),
        cmocka_unit_test(test_apk),
        cmocka_unit_test(test_text_is_made_clean),
        cmocka_unit_test(test_equals_are_listed_once),
        cmocka_unit_test(test_rpm_header),
        test_in_dir(test_rpm_database),
        test_in_dir(test_hostile_rpm_database),
        cmocka_unit_test(test_older_rpm_databases),
        cmocka_unit_test(test_hostile_older_rpm_databases),
        cmocka_unit_test(test_licenses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
