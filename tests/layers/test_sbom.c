/* From an image to its SPDX document. With CB_SPDX_OUT, a folder, the documents are kept there for
 * check_spdx.py. */
#include "flatten_check.h"

#include "layers/sbom.h"

#include <jansson.h>

#define HEADERS CB_SOURCE_DIR "/tests/fuzz/corpus/rpm_header/"

static void file_at(struct tar_build *t, const char *mtime, const char *name, const char *text)
{
    tb_pax_text(t, "mtime", mtime);
    tb_file(t, name, text);
}

static char *document(struct image_fixture *f, const char *name, struct image_packages *p)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *scratch = cb_xasprintf("%s/scratch", f->store->base);
    assert_ok(image_packages_read(f->path, scratch, p, &err), &err);
    assert_false(cb_path_exists(scratch));
    struct cb_digest base;
    cb_sha256("base", 4, &base);
    CB_AUTO_FREE char *purl = image_purl("docker.io", "library/debian", "bookworm", &base);
    const struct sbom_spec spec = {.name = name,
                                   .image = f->result.digest,
                                   .base_ref = "debian:bookworm",
                                   .base_purl = purl,
                                   .base = base,
                                   .packages = p};
    CB_AUTO_BUF out = CB_BUF_INIT(1 << 20), again = CB_BUF_INIT(1 << 20);
    assert_ok(sbom_spdx(&spec, &out, &err), &err);
    assert_ok(sbom_spdx(&spec, &again, &err), &err);
    assert_string_equal(out.data, again.data);
    const char *dir = getenv("CB_SPDX_OUT");
    if (dir) {
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%s.spdx.json", dir, name);
        assert_ok(cb_write_file(path, out.data, out.len, 0644, &err), &err);
    }
    CB_AUTO_BUF small = CB_BUF_INIT(1000);
    assert_fails(sbom_spdx(&spec, &small, &err), &err, CB_E_LIMIT, "too large");
    return cb_buf_take(&out);
}

static void test_debian(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    file_at(&t, "1700000000", "usr/lib/os-release",
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n");
    tb_link(&t, '2', "etc/os-release", "../usr/lib/os-release");
    file_at(&t, "1700000100", "var/lib/dpkg/status",
            "Package: base-files\nStatus: install ok installed\nVersion: 12.4\nArchitecture: "
            "amd64\nMaintainer: Santiago Vila <sanvila@debian.org>\n");
    add_layer(f, &t);
    tb_init(&t); /* a later layer brings a package: the list is that of the image as it is */
    file_at(&t, "1700000200.5", "var/lib/dpkg/status",
            "Package: base-files\nStatus: install ok installed\nVersion: 12.4+deb12u5\nArchitecture"
            ": amd64\nMaintainer: Santiago Vila <sanvila@debian.org>\n\nPackage: libc6\nStatus: "
            "install ok installed\nVersion: 2.36-9\nSource: glibc\nArchitecture: amd64\n");
    add_layer(f, &t);
    flatten_clean(f);
    struct image_packages p;
    CB_AUTO_FREE char *text = document(f, "debian", &p);
    assert_int_equal(p.list.n, 2);
    assert_string_equal(p.list.v[0].version, "12.4+deb12u5");
    assert_string_equal(p.distro, "debian");
    assert_int_equal(p.notes.n, 0);
    assert_int_equal(p.newest, 1700000200);
    json_auto_t *doc = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(doc);
    const char *created = NULL;
    assert_int_equal(json_unpack(doc, "{s:{s:s}}", "creationInfo", "created", &created), 0);
    assert_string_equal(created, "2023-11-14T22:16:40Z");
    assert_int_equal(json_array_size(json_object_get(doc, "packages")), 4);
    assert_non_null(strstr(text, "\"Person: Santiago Vila (sanvila@debian.org)\""));
    assert_non_null(strstr(text, "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12"));
    assert_non_null(strstr(text, "built from the source package glibc 2.36-9"));
    image_packages_release(&p);
}

static void test_distroless(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, "var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 11\n");
    tb_file(&t, "var/lib/dpkg/status.d/tzdata", "Package: tzdata\nVersion: 2024a\n");
    tb_file(&t, "var/lib/dpkg/status.d/tzdata.md5sums", "0123  usr/share/zoneinfo/UTC\n");
    tb_file(&t, "var/lib/dpkg/status.d/broken", "not a package\n");
    tb_file(&t, "var/lib/dpkg/status.e/x", "Package: not-there\nVersion: 1\n");
    add_layer(f, &t);
    flatten_clean(f);
    struct image_packages p;
    CB_AUTO_FREE char *text = document(f, "distroless", &p);
    assert_int_equal(p.list.n, 2);
    assert_int_equal(p.notes.n, 1);
    assert_string_equal(p.notes.v[0],
                        "var/lib/dpkg/status.d/broken: line 1 is not a field of a package");
    assert_non_null(strstr(text, p.notes.v[0]));
    image_packages_release(&p);
}

static void test_alpine(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, "etc/os-release", "ID=alpine\nVERSION_ID=3.18.4\n");
    tb_file(&t, "usr/lib/apk/db/installed",
            "P:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\nm:A <a@b>\n\nP:odd\nV:1\nL:Very own <terms>\n"
            "\nP:odd2\nV:1\nL:Very own <terms>\nm:only a name\n");
    tb_link(&t, '2', "lib", "usr/lib"); /* found by both paths, listed once */
    add_layer(f, &t);
    flatten_clean(f);
    struct image_packages p;
    CB_AUTO_FREE char *text = document(f, "alpine", &p);
    assert_int_equal(p.list.n, 3);
    assert_int_equal(p.sources.n, 1);
    json_auto_t *doc = json_loads(text, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(doc, "hasExtractedLicensingInfos")), 1);
    image_packages_release(&p);
}

static void add_blob_file(struct tar_build *t, const char *name, const char *path)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF data = CB_BUF_INIT(0);
    assert_ok(cb_read_file(path, 4 << 20, &data, &err), &err);
    tb_raw(t, '0', name, NULL, data.data, data.len);
}

static void test_rpm_and_old_formats(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_FREE char *db = cb_xasprintf("%s/db", f->store->base);
    CB_AUTO_FREE char *script = cb_xasprintf(
        "import sqlite3\n"
        "c = sqlite3.connect('%s')\n"
        "c.execute('CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)')\n"
        "for n in (1, 2):\n"
        "    c.execute('INSERT INTO Packages VALUES (?, ?)',\n"
        "              (n, open('" HEADERS "real-' + str(n), 'rb').read()))\n"
        "c.commit()\n",
        db);
    const char *argv[] = {"python3", "-c", script, NULL};
    struct cb_buf out;
    assert_int_equal(run_tool(argv, &out), 0);
    cb_buf_release(&out);
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, "etc/os-release", "ID=\"fedora\"\nVERSION_ID=40\n");
    add_blob_file(&t, "usr/lib/sysimage/rpm/rpmdb.sqlite", db);
    tb_link(&t, '2', "var/lib/rpm", "../../usr/lib/sysimage/rpm");
    tb_file(&t, "usr/lib/sysimage/rpm/Packages", "Berkeley");
    tb_file(&t, "usr/lib/sysimage/rpm/Packages.db", "RpmP");
    add_layer(f, &t);
    flatten_clean(f);
    struct image_packages p;
    CB_AUTO_FREE char *text = document(f, "fedora", &p);
    assert_int_equal(p.list.n, 2);
    assert_int_equal(p.notes.n, 2);
    assert_non_null(strstr(p.notes.v[0], "rpm/Packages: not a database of rpm: it does not begin"));
    assert_non_null(strstr(p.notes.v[1], "rpm/Packages.db: not a database of rpm"));
    assert_non_null(strstr(text, "\"Organization: Fedora Project\""));
    assert_non_null(strstr(text, "\"2:1.4-3.fc40\""));
    image_packages_release(&p);
}

static void test_older_rpm(void **state)
{
    static const struct {
        const char *path, *seed;
    } cases[] = {{"var/lib/rpm/Packages", "bdb-chains"},
                 {"usr/lib/sysimage/rpm/Packages.db", "ndb"}};
    struct image_fixture *f = *state;
    for (size_t i = 0; i < 2; i++) {
        CB_AUTO_FREE char *db =
            cb_xasprintf(CB_SOURCE_DIR "/tests/fuzz/corpus/rpm_old/%s", cases[i].seed);
        struct tar_build t;
        tb_init(&t);
        tb_file(&t, "etc/os-release", "ID=\"sles\"\nVERSION_ID=15.6\n");
        add_blob_file(&t, cases[i].path, db);
        f->n = 0;
        add_layer(f, &t);
        flatten_clean(f);
        struct image_packages p;
        CB_AUTO_FREE char *text = document(f, "sles", &p);
        assert_int_equal(p.list.n, 2);
        assert_int_equal(p.notes.n, 0);
        assert_string_equal(p.sources.v[0], cases[i].path);
        assert_non_null(strstr(text, "\"name\":\"bom-other\""));
        image_packages_release(&p);
    }
}

static void test_nothing_and_traps(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    tb_link(&t, '2', "etc/os-release", "../etc/os-release"); /* a circle */
    tb_dir(&t, "var/lib/dpkg/status");                       /* a folder in the file's place */
    tb_link(&t, '2', "lib/apk/db/installed", "/../../../../../../etc/passwd");
    tb_file(&t, "var/lib/rpm/rpmdb.sqlite", "not a database at all, and long enough to look at");
    add_layer(f, &t);
    flatten_clean(f);
    struct image_packages p;
    CB_AUTO_FREE char *text = document(f, "none", &p);
    assert_int_equal(p.list.n, 0);
    assert_int_equal(p.notes.n, 1);
    assert_non_null(strstr(p.notes.v[0], "var/lib/rpm/rpmdb.sqlite: not a database of rpm"));
    assert_non_null(text);
    image_packages_release(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_debian),    test_image(test_distroless),
        test_image(test_alpine),    test_image(test_rpm_and_old_formats),
        test_image(test_older_rpm), test_image(test_nothing_and_traps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
