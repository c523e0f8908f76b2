#include "queue/store_sqlite_db.h"

#include "queue/queue.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>

enum { BUSY_MS = 5000, POLL_MS = 10, POLL_WATCHED_MS = 100, BURST_MS = 50, BURST_POLL_MS = 2 };

/* Raises what SQLite just said. */
static int db_fail(struct sqlite_db *q, int rc, struct cb_error *err)
{
    int sys = sqlite3_system_errno(q->db);
    const char *msg = sqlite3_errmsg(q->db);
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        cb_fail(err, CB_E_TIMEOUT, "queue database %s: busy for more than %d s", q->path,
                BUSY_MS / 1000);
        return -CB_E_TIMEOUT;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        cb_fail(err, CB_E_CORRUPT, "queue database %s is damaged: %s", q->path, msg);
        cb_hint(err,
                "Move it away (mv %s %s.bad; rm -f %s-wal %s-shm) and run again: the list of past "
                "builds is lost, cached layers and templates are not.",
                q->path, q->path, q->path, q->path);
        return -CB_E_CORRUPT;
    case SQLITE_FULL:
        cb_fail(err, CB_E_ENV, "queue database %s: no space left on the disk", q->path);
        cb_hint(err, "Free some space and run again.");
        return -CB_E_ENV;
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_AUTH:
        cb_fail(err, CB_E_ENV, "queue database %s: %s", q->path, msg);
        cb_hint(err, "The folder and the files in it must be writable by this user.");
        return -CB_E_ENV;
    case SQLITE_IOERR:
        if (sys)
            return cb_fail_sys(err, sys, "queue database %s: %s", q->path, msg);
        return cb_fail(err, CB_E_SYS, "queue database %s: %s", q->path, msg);
    case SQLITE_CONSTRAINT:
        return cb_fail(err, CB_E_CONFLICT, "queue database %s: %s", q->path, msg);
    default: return cb_fail(err, CB_E_BUG, "queue database %s: %s", q->path, msg);
    }
}

/* NOLINTBEGIN(clang-analyzer-valist.Uninitialized): every caller has started it */
static int bind_all(struct sqlite_db *q, sqlite3_stmt *st, struct cb_error *err, const char *types,
                    va_list ap)
{
    for (int i = 1; *types; i++, types++) {
        int rc;
        if (*types == 'i') {
            rc = sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
        } else if (*types == 't') { /* the caller's text outlives the statement's run */
            rc = sqlite3_bind_text(st, i, va_arg(ap, const char *), -1, SQLITE_STATIC);
        } else {
            const void *p = va_arg(ap, const void *);
            rc = sqlite3_bind_blob(st, i, p, (int)va_arg(ap, int64_t), SQLITE_STATIC);
        }
        if (rc != SQLITE_OK)
            return db_fail(q, rc, err);
    }
    return 0;
}
/* NOLINTEND(clang-analyzer-valist.Uninitialized) */

int db_bind(struct sqlite_db *q, sqlite3_stmt *st, struct cb_error *err, const char *types, ...)
{
    (void)sqlite3_reset(st);
    va_list ap;
    va_start(ap, types);
    int rc = bind_all(q, st, err, types, ap);
    va_end(ap);
    return rc;
}

static int prepare(struct sqlite_db *q, sqlite3_stmt **out, const char *sql, struct cb_error *err)
{
    int rc = sqlite3_prepare_v2(q->db, sql, -1, out, NULL);
    return rc == SQLITE_OK ? 0 : db_fail(q, rc, err);
}

int db_query(struct sqlite_db *q, sqlite3_stmt **out, struct cb_error *err, const char *sql,
             const char *types, ...)
{
    int rc = prepare(q, out, sql, err);
    if (rc < 0)
        return rc;
    va_list ap;
    va_start(ap, types);
    rc = bind_all(q, *out, err, types, ap);
    va_end(ap);
    return rc;
}

int db_step(struct sqlite_db *q, sqlite3_stmt *st, struct cb_error *err)
{
    int rc = sqlite3_step(st);
    if (rc == SQLITE_ROW)
        return 1;
    return rc == SQLITE_DONE ? 0 : db_fail(q, rc, err);
}

int db_finish(struct sqlite_db *q, sqlite3_stmt *st, struct cb_error *err)
{
    int rc = 0;
    while (sqlite3_stmt_busy(st) && (rc = db_step(q, st, err)) > 0) {
    }
    (void)sqlite3_reset(st);
    return rc;
}

int db_exec(struct sqlite_db *q, struct cb_error *err, const char *sql, const char *types, ...)
{
    CB_AUTO(stmt) st = NULL;
    int rc = prepare(q, &st, sql, err);
    if (rc < 0)
        return rc;
    va_list ap;
    va_start(ap, types);
    rc = bind_all(q, st, err, types, ap);
    va_end(ap);
    if (rc >= 0)
        rc = db_step(q, st, err);
    return rc < 0 ? rc : db_finish(q, st, err);
}

int db_tx(struct sqlite_db *q, int (*fn)(struct sqlite_db *q, void *arg, struct cb_error *err),
          void *arg, struct cb_error *err)
{
    int rc = db_exec(q, err, "BEGIN IMMEDIATE", "");
    if (rc < 0)
        return rc;
    rc = fn(q, arg, err);
    if (rc >= 0) {
        int done = db_exec(q, err, "COMMIT", "");
        if (done >= 0) {
            q->own_writes++;
            return rc;
        }
        rc = done;
    }
    if (!sqlite3_get_autocommit(q->db)) /* some failures have rolled back by themselves */
        (void)sqlite3_exec(q->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

char *db_text(sqlite3_stmt *st, int column)
{
    const unsigned char *text = sqlite3_column_text(st, column);
    if (!text)
        return NULL;
    size_t n = (size_t)sqlite3_column_bytes(st, column);
    char *copy = cb_xmalloc(n + 1);
    memcpy(copy, text, n);
    copy[n] = '\0';
    return copy;
}

void db_copy_id(sqlite3_stmt *st, int column, char *id)
{
    const unsigned char *text = sqlite3_column_text(st, column);
    size_t n = text ? strnlen((const char *)text, BUILD_ID_LEN) : 0;
    if (n)
        memcpy(id, text, n);
    id[n] = '\0';
}

/* ---- waiting ---- */

static int64_t data_version(struct sqlite_db *q)
{
    if (!q->version_stmt && prepare(q, &q->version_stmt, "PRAGMA data_version", NULL) < 0)
        return -1;
    int64_t v =
        sqlite3_step(q->version_stmt) == SQLITE_ROW ? sqlite3_column_int64(q->version_stmt, 0) : -1;
    (void)sqlite3_reset(q->version_stmt);
    return v;
}

void db_mark_seen(struct sqlite_db *q)
{
    q->seen_version = data_version(q);
    q->seen_own_writes = q->own_writes;
}

static void watch_log(struct sqlite_db *q)
{
    CB_AUTO_FREE char *wal = cb_xasprintf("%s-wal", q->path);
    CB_AUTO_FD fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    q->inotify = fd >= 0 && inotify_add_watch(fd, wal, IN_MODIFY) >= 0 ? cb_take_fd(&fd) : -2;
}

/* A commit writes to the log first (seen by inotify) and shows in data_version a moment later,
 * after its fsync, without a further sign: so look often for a while. The slow poll is the net
 * below. */
void db_wait_change(struct sqlite_db *q, int64_t timeout_ms)
{
    if (q->inotify == -1)
        watch_log(q);
    int64_t now = cb_monotonic_ms(), end = now + timeout_ms, burst_end = 0;
    for (;;) {
        int64_t v = data_version(q);
        if (v != q->seen_version || q->own_writes != q->seen_own_writes) {
            q->seen_version = v;
            q->seen_own_writes = q->own_writes;
            return;
        }
        int64_t nap = q->inotify < 0 ? POLL_MS : now < burst_end ? BURST_POLL_MS : POLL_WATCHED_MS;
        if (end - now <= 0)
            return;
        struct pollfd p = {.fd = q->inotify < 0 ? -1 : q->inotify, .events = POLLIN};
        int ready = poll(&p, 1, (int)(nap < end - now ? nap : end - now));
        now = cb_monotonic_ms();
        if (ready < 0)
            return; /* a signal: the caller may want to look */
        if (ready > 0) {
            char drop[4096];
            while (read(q->inotify, drop, sizeof(drop)) > 0) {
            }
            burst_end = now + BURST_MS;
        }
    }
}

/* ---- opening ---- */

static int pragma_int(struct sqlite_db *q, const char *sql, int64_t *out, struct cb_error *err)
{
    CB_AUTO(stmt) st = NULL;
    int rc = db_query(q, &st, err, sql, "");
    if (rc >= 0)
        rc = db_step(q, st, err);
    if (rc > 0)
        *out = sqlite3_column_int64(st, 0);
    return rc < 0 ? rc : 0;
}

struct migrate_args {
    const char *const *migrations;
    size_t n;
};

static int migrate_tx(struct sqlite_db *q, void *arg, struct cb_error *err)
{
    const struct migrate_args *a = arg;
    int64_t version = 0, tables = 0;
    int rc = pragma_int(q, "PRAGMA user_version", &version,
                        err); /* again: another may have been first */
    if (rc >= 0)
        rc = pragma_int(q, "SELECT count(*) FROM sqlite_schema", &tables, err);
    if (rc < 0)
        return rc;
    if (version == 0 && tables > 0)
        return cb_fail(err, CB_E_CORRUPT, "%s is a database of another program", q->path);
    for (int64_t i = version; i < (int64_t)a->n; i++)
        if ((rc = sqlite3_exec(q->db, a->migrations[i], NULL, NULL, NULL)) != SQLITE_OK)
            return db_fail(q, rc, err);
    /* a pragma takes no bound value; this one is a number of ours */
    CB_AUTO_FREE char *set = cb_xasprintf("PRAGMA user_version = %zu", a->n);
    return db_exec(q, err, set, "");
}

static int migrate(struct sqlite_db *q, const char *const *migrations, size_t n,
                   struct cb_error *err)
{
    int64_t version = 0;
    int rc = pragma_int(q, "PRAGMA user_version", &version, err);
    if (rc < 0)
        return rc;
    if (version > (int64_t)n) {
        cb_fail(
            err, CB_E_ENV,
            "queue database %s was written by a newer capsule-build (its version %lld, ours %zu)",
            q->path, (long long)version, n);
        cb_hint(err, "Use that newer capsule-build, or another CAPSULE_BUILD_HOME.");
        return -CB_E_ENV;
    }
    struct migrate_args a = {migrations, n};
    return version == (int64_t)n ? 0 : db_tx(q, migrate_tx, &a, err);
}

/* Two processes that open a new database at once: the switch to WAL does not wait by itself. */
static int use_wal(struct sqlite_db *q, struct cb_error *err)
{
    int64_t end = cb_monotonic_ms() + BUSY_MS;
    for (;;) {
        CB_AUTO(stmt) st = NULL;
        int rc = prepare(q, &st, "PRAGMA journal_mode = WAL", err);
        if (rc < 0)
            return rc;
        int s = sqlite3_step(st);
        if (s == SQLITE_ROW) {
            const char *mode = (const char *)sqlite3_column_text(st, 0);
            if (mode && strcmp(mode, "wal") == 0)
                return 0;
            return cb_fail(err, CB_E_ENV,
                           "%s: this file system cannot share memory between processes, which the "
                           "queue database needs (network file systems cannot)",
                           q->path);
        }
        if ((s & 0xff) != SQLITE_BUSY || cb_monotonic_ms() >= end)
            return db_fail(q, s, err);
        (void)poll(NULL, 0, POLL_MS);
    }
}

static int configure(struct sqlite_db *q, struct cb_error *err)
{
    static const char *const pragmas[] = {
        "PRAGMA synchronous = FULL", /* NORMAL may lose the last commits at power loss */
        "PRAGMA foreign_keys = ON",
        "PRAGMA temp_store = MEMORY",
    };
    (void)sqlite3_busy_timeout(q->db, BUSY_MS);
    (void)sqlite3_db_config(q->db, SQLITE_DBCONFIG_DEFENSIVE, 1, (int *)NULL);
    (void)sqlite3_db_config(q->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, (int *)NULL);
    int rc = use_wal(q, err);
    for (size_t i = 0; rc >= 0 && i < sizeof(pragmas) / sizeof(pragmas[0]); i++)
        rc = db_exec(q, err, pragmas[i], "");
    int64_t ignored;
    if (rc >= 0)
        rc = pragma_int(q, "PRAGMA journal_size_limit = 16777216", &ignored, err);
    return rc;
}

/* Configs are in it: nobody else's to read. Made by us only when it is not there, since closing any
 * descriptor of a database that is open in this process would drop its locks. */
static int make_file(const char *path, struct cb_error *err)
{
    const char *slash = strrchr(path, '/');
    if (slash && slash != path) {
        CB_AUTO_FREE char *dir = cb_xstrndup(path, (size_t)(slash - path));
        int rc = cb_mkdir_p(dir, 0700, err);
        if (rc < 0)
            return rc;
    }
    CB_AUTO_FD fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && errno != EEXIST) {
        cb_fail(err, CB_E_ENV, "make the queue database %s: %s", path, strerror(errno));
        cb_hint(err, "The folder must be writable by this user, and the disk not full.");
        return -CB_E_ENV;
    }
    return 0;
}

int db_open(const char *path, const char *const *migrations, size_t n, struct sqlite_db **out,
            struct cb_error *err)
{
    int rc = make_file(path, err);
    if (rc < 0)
        return rc;
    struct sqlite_db *q = cb_xcalloc(1, sizeof(*q));
    q->inotify = -1;
    q->path = cb_xstrdup(path);
    int s = sqlite3_open_v2(
        path, &q->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
    if (s != SQLITE_OK)
        rc = q->db ? db_fail(q, s, err) : cb_fail(err, CB_E_SYS, "%s: out of memory", path);
    if (rc >= 0)
        rc = configure(q, err);
    if (rc >= 0)
        rc = migrate(q, migrations, n, err);
    if (rc < 0) {
        db_close(q);
        return rc;
    }
    db_mark_seen(q);
    *out = q;
    return 0;
}

void db_close(struct sqlite_db *q)
{
    if (!q)
        return;
    (void)sqlite3_finalize(q->version_stmt);
    (void)sqlite3_close(q->db);
    cb_close(q->inotify);
    free(q->path);
    free(q);
}
