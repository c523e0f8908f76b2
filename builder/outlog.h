/* outlog: what is kept of one step's output when it is too much: its beginning, as it comes, and
 * its end, once there is one. What lies between is counted and dropped, so that ten gigabytes of
 * output cost neither memory nor a database. Private to builder/. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* What is handed on: bytes of @stream as they were written; or, where @data is NULL, that @len
 * bytes were left out here. */
typedef void outlog_sink(void *arg, int stream, const void *data, uint64_t len);

struct outlog;
/* Keeps at most about @max bytes of a step. Owned: outlog_free(). */
struct outlog *outlog_new(uint64_t max, outlog_sink *sink, void *arg);
void outlog_free(struct outlog *o); /* NULL is fine */
/* A step begins: nothing was written. What an earlier one left is dropped. */
void outlog_begin(struct outlog *o);
void outlog_add(struct outlog *o, int stream, const void *data, size_t len);
/* The step ends: hands on how much was left out, and the end. */
void outlog_end(struct outlog *o);
/* Bytes that the step wrote so far; 0 while all of them were handed on. */
uint64_t outlog_withheld(const struct outlog *o);
