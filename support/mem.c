#include "support/mem.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void out_of_memory(void)
{
    static const char msg[] = "capsule-build: out of memory\n";
    fputs(msg, stderr);
    abort();
}

void *cb_xmalloc(size_t n)
{
    void *p = malloc(n ? n : 1);
    if (!p)
        out_of_memory();
    return p;
}

void *cb_xcalloc(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p)
        out_of_memory();
    return p;
}

void *cb_xrealloc(void *old, size_t n)
{
    void *p = realloc(old, n ? n : 1);
    if (!p)
        out_of_memory();
    return p;
}

void *cb_xgrow(void *p, size_t *cap, size_t count, size_t size)
{
    if (p && count < *cap)
        return p;
    size_t want = *cap ? *cap * 2 : 8;
    if (want <= count)
        want = count + 1;
    size_t bytes;
    if (__builtin_mul_overflow(want, size, &bytes))
        out_of_memory();
    *cap = want;
    return cb_xrealloc(p, bytes);
}

char *cb_xstrdup(const char *s)
{
    return cb_xmemdup(s, strlen(s) + 1);
}

char *cb_xstrdup0(const char *s)
{
    return s ? cb_xstrdup(s) : NULL;
}

char *cb_xstrndup(const char *s, size_t n)
{
    size_t len = strnlen(s, n);
    char *p = cb_xmalloc(len + 1);
    memcpy(p, s, len);
    p[len] = '\0';
    return p;
}

void *cb_xmemdup(const void *src, size_t n)
{
    void *p = cb_xmalloc(n);
    if (n)
        memcpy(p, src, n);
    return p;
}

char *cb_xvasprintf(const char *fmt, va_list ap)
{
    char *s = NULL;
    if (vasprintf(&s, fmt, ap) < 0)
        out_of_memory();
    return s;
}

char *cb_xasprintf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *s = cb_xvasprintf(fmt, ap);
    va_end(ap);
    return s;
}

void *cb_try_alloc(size_t n)
{
    return malloc(n ? n : 1);
}
