/* mem: small allocations that abort when memory is out, and owned string helpers.
 * Sizes that come from outside are checked against support/limits.h first and then allocated with
 * cb_try_alloc(), which can fail. */
#pragma once

#include <stdarg.h>
#include <stddef.h>

void *cb_xmalloc(size_t n) __attribute__((malloc, returns_nonnull));
void *cb_xcalloc(size_t count, size_t size) __attribute__((malloc, returns_nonnull));
void *cb_xrealloc(void *p, size_t n) __attribute__((returns_nonnull));
/* Room for @count + 1 elements of @size: doubles *@cap when @count reached it. */
void *cb_xgrow(void *p, size_t *cap, size_t count, size_t size) __attribute__((returns_nonnull));
char *cb_xstrdup(const char *s) __attribute__((malloc, returns_nonnull));
/* NULL in, NULL out. */
char *cb_xstrdup0(const char *s);
char *cb_xstrndup(const char *s, size_t n) __attribute__((malloc, returns_nonnull));
void *cb_xmemdup(const void *p, size_t n) __attribute__((malloc, returns_nonnull));
char *cb_xasprintf(const char *fmt, ...)
    __attribute__((malloc, returns_nonnull, format(printf, 1, 2)));
char *cb_xvasprintf(const char *fmt, va_list ap) __attribute__((format(printf, 1, 0)));
/* NULL with errno ENOMEM when there is no such amount. */
void *cb_try_alloc(size_t n) __attribute__((malloc));
