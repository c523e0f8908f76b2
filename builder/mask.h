/* mask: takes secrets out of text. What is looked for is each value, each line of a value that has
 * several, and both in base64 (in any position of the encoded text, in the usual and the URL
 * alphabet, also where the encoder broke its lines at 48 columns or more). What is found becomes
 * "***".
 *
 * A stream may come in pieces: what might be the beginning of a secret is held back until the next
 * piece, or the end, shows whether it is one. How a text was cut makes no difference to what comes
 * out. Nothing here is thread-safe. */
#pragma once

#include "support/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MASK_SHORTEST = 4, /* bytes: less would be found in text that has nothing to do with it */
};
#define MASK_TEXT "***"

struct mask;
struct mask *mask_new(void);
/* Overwrites what it knows of the secrets. NULL is fine; no stream of it may be used any more. */
void mask_free(struct mask *m);
/* Before the first stream alone. Values, and lines, of fewer than MASK_SHORTEST bytes are left out.
 */
void mask_add(struct mask *m, const void *value, size_t len);
/* The same when there are streams: each is flushed before, and initialised anew behind it. */
void mask_add_later(struct mask *m, const void *value, size_t len);
/* Nothing to look for. */
bool mask_is_empty(const struct mask *m);

/* One stream on its way through a mask, which is borrowed. */
struct mask_stream {
    struct mask *mask;
    struct cb_buf held;      /* what has not come out yet */
    struct cb_buf hit;       /* a byte for each of `held`: 1 belongs to a secret */
    uint32_t plain, coded;   /* how far into a value, and into an encoded one */
    size_t run;              /* characters of base64 since the last that was none */
    unsigned breaks;         /* line ends that were skipped within an encoded value */
    size_t hit_from, hit_to; /* in `held`: the last bytes that were found */
    bool masking;            /* what came out last was a mask */
};
void mask_stream_init(struct mask_stream *s, struct mask *m);
void mask_stream_release(struct mask_stream *s); /* a zeroed one is fine */
/* Adds what can be said of the stream so far to @out. */
void mask_feed(struct mask_stream *s, const void *p, size_t n, struct cb_buf *out);
/* The stream ends: adds what was held back. It may begin anew. */
void mask_flush(struct mask_stream *s, struct cb_buf *out);
/* A whole text. Owned; NULL when there is nothing to mask in it. */
char *mask_text(struct mask *m, const char *text);
