/* store_sqlite_db: the little of SQLite that the store is written in: open and migrate, statements
 * with bound values, transactions, and waiting for other connections' commits. */
#pragma once

#include "support/cleanup.h"
#include "support/error.h"

#include <sqlite3.h>
#include <stdint.h>

struct sqlite_db {
    sqlite3 *db;
    char *path;
    sqlite3_stmt *version_stmt; /* PRAGMA data_version: goes up with other connections' commits */
    int64_t seen_version;       /* what the last read saw */
    uint64_t own_writes, seen_own_writes;
    int inotify; /* watches the write-ahead log; -1: not (yet), -2: cannot */
};

CB_DEFINE_CLEANUP(stmt, sqlite3_stmt *, sqlite3_finalize);

/* Makes the file (and its folder) when missing, and brings it up to @n migrations. */
int db_open(const char *path, const char *const *migrations, size_t n, struct sqlite_db **out,
            struct cb_error *err);
void db_close(struct sqlite_db *q); /* NULL is fine */

/* Prepares @sql and binds: one letter a value, i int64_t, t const char * (NULL: null),
 * b const void * and int64_t. */
int db_query(struct sqlite_db *q, sqlite3_stmt **out, struct cb_error *err, const char *sql,
             const char *types, ...);
/* Binds anew. */
int db_bind(struct sqlite_db *q, sqlite3_stmt *st, struct cb_error *err, const char *types, ...);
/* 1: a row, 0: the end, negative: failed. */
int db_step(struct sqlite_db *q, sqlite3_stmt *st, struct cb_error *err);
/* Runs what is left of it (a RETURNING is done only at its end) and resets. */
int db_finish(struct sqlite_db *q, sqlite3_stmt *st, struct cb_error *err);
/* All in one, for what gives no rows. */
int db_exec(struct sqlite_db *q, struct cb_error *err, const char *sql, const char *types, ...);

/* Runs @fn in one write transaction: committed when it returns 0 or more, else rolled back. */
int db_tx(struct sqlite_db *q, int (*fn)(struct sqlite_db *q, void *arg, struct cb_error *err),
          void *arg, struct cb_error *err);

/* Owned text of a column, or NULL. */
char *db_text(sqlite3_stmt *st, int column);
/* @id holds BUILD_ID_LEN + 1 bytes; a longer text is cut. */
void db_copy_id(sqlite3_stmt *st, int column, char *id);

/* Before a read: changes from here on end the next db_wait_change(). */
void db_mark_seen(struct sqlite_db *q);
void db_wait_change(struct sqlite_db *q, int64_t timeout_ms);
