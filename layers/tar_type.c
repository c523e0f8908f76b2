#include "layers/tar_type.h"

#include <archive.h>
#include <stdbool.h>
#include <string.h>

enum {
    BLOCK = 512,
    SUM_AT = 148,
    SUM_LEN = 8,
    TYPE_AT = 156,
};

void tar_seen_leave(struct tar_seen *s)
{
    const size_t room = sizeof(s->before);
    if (s->len >= room) {
        memcpy(s->before, s->piece + (s->len - room), room);
        s->n_before = room;
    } else if (s->len > 0) {
        size_t kept = s->n_before < room - s->len ? s->n_before : room - s->len;
        memmove(s->before, s->before + (s->n_before - kept), kept);
        memcpy(s->before + kept, s->piece, s->len);
        s->n_before = kept + s->len;
    }
    s->at += s->len;
    s->piece = NULL;
    s->len = 0;
}

void tar_seen_piece(struct tar_seen *s, const void *piece, size_t len)
{
    s->piece = piece;
    s->len = len;
}

/* Copies the @n bytes at @at of the tar. False when they are not at hand. */
static bool look(const struct tar_seen *s, uint64_t at, unsigned char *out, size_t n)
{
    if (at + s->n_before < s->at || at + n > s->at + s->len)
        return false;
    if (at < s->at) {
        size_t back = (size_t)(s->at - at), here = back < n ? back : n;
        memcpy(out, s->before + (s->n_before - back), here);
        out += here;
        at += here;
        n -= here;
    }
    if (n > 0)
        memcpy(out, s->piece + (at - s->at), n);
    return true;
}

/* A header's sum is of unsigned bytes, in old ones of signed bytes, its own field read as blanks.
 */
static bool is_header(const unsigned char *block)
{
    long plain = 0, odd = 0, stored = 0;
    for (int i = 0; i < BLOCK; i++) {
        bool own = i >= SUM_AT && i < SUM_AT + SUM_LEN;
        plain += own ? ' ' : block[i];
        odd += own ? ' ' : (signed char)block[i];
    }
    const unsigned char *p = block + SUM_AT, *end = p + SUM_LEN;
    while (p < end && *p == ' ')
        p++;
    for (; p < end && *p >= '0' && *p <= '7'; p++)
        stored = stored * 8 + (*p - '0');
    return stored == plain || stored == odd;
}

/* Files ('7' is one that wants to lie in a row, 'S' one with holes), links, devices, folders and
 * pipes. */
static bool is_known(unsigned char type)
{
    return type == '\0' || (type >= '0' && type <= '7') || type == 'S';
}

int tar_type_check(const struct tar_seen *s, struct archive *a, struct cb_error *err)
{
    /* The header is what libarchive read last. Only in GNU's old format for files with holes more
     * blocks of their map can follow it, and then its type is a known one. */
    unsigned char block[BLOCK];
    int64_t end = archive_filter_bytes(a, 0);
    if (end < BLOCK || !look(s, (uint64_t)end - BLOCK, block, BLOCK))
        return cb_fail(err, CB_E_BUG, "the header at byte %lld of the tar is out of sight",
                       (long long)end - BLOCK);
    unsigned char type = block[TYPE_AT];
    if (is_known(type) || !is_header(block))
        return 0;
    bool shown = type > ' ' && type < 0x7f;
    return cb_fail(err, CB_E_CORRUPT, "its tar type is 0x%02x%s%.1s%s, which a layer cannot have",
                   type, shown ? " ('" : "", shown ? (const char *)&block[TYPE_AT] : "",
                   shown ? "')" : "");
}
