/* file: whole files, folders and locks of our own state. Names below our folders are opened without
 * following links where it matters; paths from inside an image never come here. */
#pragma once

#include "support/buf.h"
#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The whole file, at most @max bytes (-CB_E_LIMIT above it), into @out (cleared first).
 * -CB_E_NOTFOUND when it is missing. */
int cb_read_file(const char *path, size_t max, struct cb_buf *out, struct cb_error *err);
int cb_read_fd(int fd, const char *name, size_t max, struct cb_buf *out, struct cb_error *err);

/* Writes all of it, through short writes and EINTR. */
int cb_write_all(int fd, const void *p, size_t n, struct cb_error *err);
int cb_pwrite_all(int fd, const void *p, size_t n, off_t at, struct cb_error *err);
/* Reads exactly @n bytes; -CB_E_CORRUPT when the file ends early. */
int cb_pread_all(int fd, void *p, size_t n, off_t at, struct cb_error *err);

/* Replaces @path atomically: temporary name beside it, fsync, rename, fsync of the folder. */
int cb_write_file(const char *path, const void *p, size_t n, mode_t mode, struct cb_error *err);

/* mkdir -p; folders that are there are fine. */
int cb_mkdir_p(const char *path, mode_t mode, struct cb_error *err);
/* rm -rf that follows no link and stays on this filesystem. A missing path is fine. */
int cb_remove_tree(const char *path, struct cb_error *err);
int cb_fsync_dir(const char *path, struct cb_error *err);
bool cb_path_exists(const char *path);
/* The first executable @name in PATH and then in the sbin folders. Owned, or NULL. */
char *cb_find_program(const char *name);

/* Copies @len bytes from @from at @from_off to @to at @to_off, by reflink or in the kernel when
 * possible. Holes may become zeros. -CB_E_CORRUPT when @from ends early. */
int cb_copy_range(int from, off_t from_off, int to, off_t to_off, uint64_t len,
                  struct cb_error *err);
/* Clones the whole of @from into the empty file @to: reflink, else a copy that keeps holes. */
int cb_clone_file(int from, int to, struct cb_error *err);

/* Takes an exclusive flock on @path (made if missing). Returns an owned fd that holds the lock
 * until it is closed, or -CB_E_CONFLICT at once when somebody has it and @wait is false. The lock
 * goes away with the process, also after kill -9. */
int cb_lock_file(const char *path, bool wait, struct cb_error *err);

/* "1.5 GiB": @out holds at least 32 bytes. */
void cb_human_bytes(uint64_t n, char *out, size_t size);
