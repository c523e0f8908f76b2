#include "support/buf.h"

#include "support/mem.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void cb_buf_init(struct cb_buf *b, size_t max)
{
    *b = (struct cb_buf)CB_BUF_INIT(max);
}

void cb_buf_release(struct cb_buf *b)
{
    int saved = errno;
    free(b->data);
    *b = (struct cb_buf)CB_BUF_INIT(b->max);
    errno = saved;
}

void cb_buf_clear(struct cb_buf *b)
{
    b->len = 0;
    b->over = false;
    if (b->data)
        b->data[0] = '\0';
}

static int reserve(struct cb_buf *b, size_t extra)
{
    size_t want;
    if (b->over || __builtin_add_overflow(b->len, extra, &want) || want > b->max) {
        b->over = true;
        return -(int)CB_E_LIMIT;
    }
    if (want + 1 > b->cap) {
        size_t cap = b->cap ? b->cap : 64;
        while (cap < want + 1)
            cap *= 2;
        b->data = cb_xrealloc(b->data, cap);
        b->cap = cap;
    }
    return 0;
}

int cb_buf_add(struct cb_buf *b, const void *p, size_t n)
{
    int rc = reserve(b, n);
    if (rc < 0)
        return rc;
    if (n)
        memcpy(b->data + b->len, p, n);
    b->len += n;
    b->data[b->len] = '\0';
    return 0;
}

int cb_buf_adds(struct cb_buf *b, const char *s)
{
    return cb_buf_add(b, s, strlen(s));
}

int cb_buf_vaddf(struct cb_buf *b, const char *fmt, va_list ap)
{
    char *s = cb_xvasprintf(fmt, ap);
    int rc = cb_buf_adds(b, s);
    free(s);
    return rc;
}

int cb_buf_addf(struct cb_buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int rc = cb_buf_vaddf(b, fmt, ap);
    va_end(ap);
    return rc;
}

void cb_buf_drop(struct cb_buf *b, size_t n)
{
    if (n > b->len)
        n = b->len;
    b->len -= n;
    if (b->data) {
        memmove(b->data, b->data + n, b->len);
        b->data[b->len] = '\0';
    }
}

char *cb_buf_take(struct cb_buf *b)
{
    char *s = b->data ? b->data : cb_xstrdup("");
    *b = (struct cb_buf)CB_BUF_INIT(b->max);
    return s;
}

void cb_strv_take(struct cb_strv *s, char *str)
{
    s->v = cb_xgrow(s->v, &s->cap, s->n + 1, sizeof(*s->v));
    s->v[s->n++] = str;
    s->v[s->n] = NULL;
}

void cb_strv_add(struct cb_strv *s, const char *str)
{
    cb_strv_take(s, cb_xstrdup(str));
}

void cb_strv_addf(struct cb_strv *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    cb_strv_take(s, cb_xvasprintf(fmt, ap));
    va_end(ap);
}

void cb_strv_release(struct cb_strv *s)
{
    for (size_t i = 0; i < s->n; i++)
        free(s->v[i]);
    free(s->v);
    *s = (struct cb_strv){0};
}
