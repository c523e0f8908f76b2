/* packages: what the package managers of an image say is installed.
 *
 * The readers take the bytes of a database, which come from an image and may be anything: what is
 * accepted has a name and a version of printable characters, text is valid UTF-8 without control
 * characters, and counts and lengths have ceilings. A reader that fails has added what came before
 * the mistake; who reads on decides what that is worth. */
#pragma once

#include "support/error.h"

#include <stddef.h>
#include <stdint.h>

#define PACKAGES_MAX 100000u           /* of one image */
#define PACKAGE_DB_MAX (128u << 20)    /* a text database, bytes */
#define PACKAGE_RPM_DB_MAX (1u << 30)  /* an rpmdb.sqlite or its log, bytes */
#define PACKAGE_HEADER_MAX (64u << 20) /* one header of it, bytes */

enum package_kind { PACKAGE_APK, PACKAGE_DEB, PACKAGE_RPM, PACKAGE_KIND_N };
/* "apk", "deb", "rpm": also the type of a package URL. */
const char *package_kind_name(enum package_kind k);

struct package {
    enum package_kind kind;
    char *name, *version; /* rpm: VERSION-RELEASE */
    char *arch;           /* or NULL; so for all below */
    char *epoch;          /* rpm: a number; deb has it in the version */
    char *source;         /* what it was built from: a name; rpm: the file name of the source */
    char *source_version; /* when it is not that of the package */
    char *vendor;         /* the organization that made it */
    char *maintainer;     /* "Name <address>" */
    char *license;        /* as declared */
};
struct package_list { /* a zeroed one is empty */
    struct package *v;
    size_t n, cap;
};
void package_list_release(struct package_list *l);
/* By kind, name, version and architecture; one of several that agree in these is kept. */
void package_list_sort(struct package_list *l);

/* dpkg's status file, or one of the files in status.d of images without a package manager. What is
 * not installed (its configuration alone is left) is left out. -CB_E_CORRUPT with the line. */
int packages_read_dpkg(const char *text, size_t len, struct package_list *l, struct cb_error *err);
/* apk's installed database. */
int packages_read_apk(const char *text, size_t len, struct package_list *l, struct cb_error *err);
/* One header as rpm keeps it in its database: without the magic in front. Keys of signers, which
 * rpm keeps among the packages, are left out. */
int packages_read_rpm_header(const void *data, size_t len, struct package_list *l,
                             struct cb_error *err);
/* The SQLite database in the file @path, which is a copy that may be written to, as SQLite does
 * with a log beside it (@path-wal). A header that is damaged is left out and counted in @bad.
 * The file is a stranger's: no code of its schema is run. */
int packages_read_rpm_db(const char *path, struct package_list *l, size_t *bad,
                         struct cb_error *err);

/* The two older databases of rpm, whole: ndb (Packages.db), and a hash of Berkeley DB (Packages).
 */
int packages_read_rpm_ndb(const void *data, size_t len, struct package_list *l, size_t *bad,
                          struct cb_error *err);
int packages_read_rpm_bdb(const void *data, size_t len, struct package_list *l, size_t *bad,
                          struct cb_error *err);

/* For the readers. */
/* @p as text that may stand in a document: what is not UTF-8 becomes U+FFFD, control characters
 * and spaces a space, none at the ends; at most 1024 bytes. Owned, NULL when nothing is left. */
char *package_text(const char *p, size_t n);
/* A name, version or architecture: 1 to 255 printable ASCII characters but no space. Owned, or
 * NULL when it is not that. */
char *package_word(const char *p, size_t n);
/* Adds @p (taken, also on failure). -CB_E_LIMIT. */
int package_list_add(struct package_list *l, struct package *p, struct cb_error *err);
void package_release(struct package *p);
