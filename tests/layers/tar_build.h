/* Tars made by hand, so that tests can write what no tar program would. */
#pragma once

#include "support/buf.h"
#include "support/mem.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct tar_build {
    struct cb_buf out;
    struct cb_buf pax; /* records for the next entry */
    uint32_t mode;     /* 0: 0644, folders 0755 */
    uint64_t uid, gid;
    uint64_t mtime;
    uint32_t major, minor;
};

static inline void tb_init(struct tar_build *t)
{
    memset(t, 0, sizeof(*t));
    cb_buf_init(&t->out, (size_t)64 << 20);
    cb_buf_init(&t->pax, (size_t)8 << 20);
    t->mtime = 1700000000;
}

static inline void tb_release(struct tar_build *t)
{
    cb_buf_release(&t->out);
    cb_buf_release(&t->pax);
}

static inline void tb_pad(struct tar_build *t)
{
    static const char zero[512];
    if (t->out.len % 512)
        cb_buf_add(&t->out, zero, 512 - t->out.len % 512);
}

/* Octal, or base-256 when it does not fit. */
static inline void tb_number(char *field, int width, uint64_t n)
{
    if (n >> (3 * (width - 1)) == 0) {
        char text[32];
        (void)snprintf(text, sizeof(text), "%0*" PRIo64, width - 1, n);
        memcpy(field, text, (size_t)width);
        return;
    }
    memset(field, 0, (size_t)width);
    for (int i = width - 1; i > 0 && n; i--, n >>= 8)
        field[i] = (char)(n & 0xff);
    field[0] = (char)(field[0] | (char)0x80);
}

static inline void tb_header(struct tar_build *t, char type, const char *name, const char *link,
                             uint64_t size)
{
    char h[512] = {0};
    memcpy(h, name, strnlen(name, 100));
    tb_number(h + 100, 8, t->mode ? t->mode : type == '5' ? 0755 : 0644);
    tb_number(h + 108, 8, t->uid);
    tb_number(h + 116, 8, t->gid);
    tb_number(h + 124, 12, size);
    tb_number(h + 136, 12, t->mtime);
    memset(h + 148, ' ', 8);
    h[156] = type;
    if (link)
        memcpy(h + 157, link, strnlen(link, 100));
    memcpy(h + 257, "ustar\00000", 8);
    tb_number(h + 329, 8, t->major);
    tb_number(h + 337, 8, t->minor);
    unsigned sum = 0;
    for (int i = 0; i < 512; i++)
        sum += (unsigned char)h[i];
    (void)snprintf(h + 148, 7, "%06o", sum);
    cb_buf_add(&t->out, h, sizeof(h));
}

/* A PAX record for the next entry. */
static inline void tb_pax(struct tar_build *t, const char *key, const void *value, size_t len)
{
    size_t body = strlen(key) + len + 3, total = body, digits;
    do {
        char text[24];
        digits = (size_t)snprintf(text, sizeof(text), "%zu", total);
        if (total == body + digits)
            break;
        total = body + digits;
    } while (1);
    cb_buf_addf(&t->pax, "%zu %s=", total, key);
    cb_buf_add(&t->pax, value, len);
    cb_buf_adds(&t->pax, "\n");
}

static inline void tb_pax_text(struct tar_build *t, const char *key, const char *value)
{
    tb_pax(t, key, value, strlen(value));
}

/* @stored bytes of @data follow the header; its size field says the same. */
static inline void tb_raw(struct tar_build *t, char type, const char *name, const char *link,
                          const void *data, size_t size)
{
    if (t->pax.len > 0) {
        tb_header(t, 'x', "PaxHeaders/x", NULL, t->pax.len);
        cb_buf_add(&t->out, t->pax.data, t->pax.len);
        tb_pad(t);
        cb_buf_clear(&t->pax);
    }
    tb_header(t, type, name, link, size);
    if (size)
        cb_buf_add(&t->out, data, size);
    tb_pad(t);
}

static inline void tb_file(struct tar_build *t, const char *name, const char *text)
{
    tb_raw(t, '0', name, NULL, text, strlen(text));
}

static inline void tb_dir(struct tar_build *t, const char *name)
{
    tb_raw(t, '5', name, NULL, NULL, 0);
}

static inline void tb_link(struct tar_build *t, char type, const char *name, const char *target)
{
    if (strlen(target) > 100)
        tb_pax_text(t, "linkpath", target);
    tb_raw(t, type, name, target, NULL, 0);
}

static inline void tb_end(struct tar_build *t)
{
    static const char zero[1024];
    cb_buf_add(&t->out, zero, sizeof(zero));
}
