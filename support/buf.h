/* buf: a growing byte buffer with a ceiling given at birth.
 * `data` is never NULL after the first append and is always followed by a NUL that is not counted.
 * Over the ceiling an append fails, changes nothing and marks the buffer (`over`): callers that
 * append many small things may check once at the end. */
#pragma once

#include "support/error.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

struct cb_buf {
    char *data;
    size_t len;
    size_t cap;
    size_t max;
    bool over;
};

/* clang-format off */
#define CB_BUF_INIT(ceiling) {NULL, 0, 0, (ceiling), false}
/* clang-format on */

void cb_buf_init(struct cb_buf *b, size_t max);
void cb_buf_release(struct cb_buf *b);
/* Empty, reusable, memory kept. */
void cb_buf_clear(struct cb_buf *b);
/* 0, or -CB_E_LIMIT. */
int cb_buf_add(struct cb_buf *b, const void *p, size_t n);
int cb_buf_adds(struct cb_buf *b, const char *s);
int cb_buf_addf(struct cb_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int cb_buf_vaddf(struct cb_buf *b, const char *fmt, va_list ap)
    __attribute__((format(printf, 2, 0)));
/* Removes the first @n bytes. */
void cb_buf_drop(struct cb_buf *b, size_t n);
/* Moves the text out (owned, never NULL); the buffer is empty afterwards. */
char *cb_buf_take(struct cb_buf *b);

#define CB_AUTO_BUF __attribute__((cleanup(cb_buf_release))) struct cb_buf

/* strv: a growing, NULL-terminated list of owned strings. A zeroed struct is an empty list. */
struct cb_strv {
    char **v; /* NULL-terminated when n > 0 or after the first add; may be NULL when empty */
    size_t n;
    size_t cap;
};
void cb_strv_add(struct cb_strv *s, const char *str);
void cb_strv_addf(struct cb_strv *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* @str is taken. */
void cb_strv_take(struct cb_strv *s, char *str);
void cb_strv_release(struct cb_strv *s);
#define CB_AUTO_STRV __attribute__((cleanup(cb_strv_release))) struct cb_strv
