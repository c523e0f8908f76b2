/* A stream through a mask, cut in two ways: the same comes out, and no value, no line of it and
 * nothing that decodes to it. The input: how it is cut, the values (a byte of length each, 0 ends
 * them), the text; in the text 0xff stands for the first value, 0xfe for that in base64. */
#include "builder/mask.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include "fuzz_check.h"
#include <openssl/evp.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VALUES = 4 };
struct value {
    const uint8_t *p;
    size_t n;
};

static void add_first(struct cb_buf *text, const struct value *v, bool coded)
{
    unsigned char code[400];
    if (!coded) {
        must(cb_buf_add(text, v->p, v->n) == 0);
        return;
    }
    int n = EVP_EncodeBlock(code, v->p, (int)v->n);
    must(cb_buf_add(text, code, (size_t)n) == 0);
}

static void run(struct mask *m, const struct cb_buf *text, unsigned cut, struct cb_buf *out)
{
    struct mask_stream s;
    mask_stream_init(&s, m);
    for (size_t at = 0; at < text->len;) {
        cut = cut * 1103515245 + 12345;
        size_t n = 1 + (cut >> 16) % 40;
        n = n < text->len - at ? n : text->len - at;
        mask_feed(&s, text->data + at, n, out);
        at += n;
    }
    mask_flush(&s, out);
    must(s.held.len == 0);
    mask_stream_release(&s);
}

static void check_gone(const struct cb_buf *out, const struct value *v)
{
    unsigned char code[400];
    size_t n = v->n;
    while (n && (v->p[n - 1] == '\n' || v->p[n - 1] == '\r'))
        n--;
    if (n < MASK_SHORTEST || memchr(v->p, '*', n)) /* what the mask itself may bring about */
        return;
    must(!out->len || !memmem(out->data, out->len, v->p, n));
    size_t len = (size_t)EVP_EncodeBlock(code, v->p, (int)n);
    must(!out->len || !memmem(out->data, out->len, code, len));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = data + size;
    struct value values[VALUES];
    size_t n = 0;
    if (size < 2)
        return 0;
    unsigned cut = *data++;
    struct mask *m = mask_new();
    while (n < VALUES && data < end && *data) {
        struct value v = {data + 1, *data};
        if (v.n > (size_t)(end - data) - 1)
            v.n = (size_t)(end - data) - 1;
        mask_add(m, v.p, v.n);
        values[n++] = v;
        data += 1 + v.n;
    }
    CB_AUTO_BUF text = CB_BUF_INIT(1 << 24), once = CB_BUF_INIT(1 << 24),
                cuts = CB_BUF_INIT(1 << 24);
    for (; data < end; data++) {
        if (n && *data >= 0xfe)
            add_first(&text, &values[0], *data == 0xfe);
        else
            must(cb_buf_add(&text, data, 1) == 0);
    }
    struct mask_stream s;
    mask_stream_init(&s, m);
    mask_feed(&s, text.data ? text.data : "", text.len, &once);
    mask_flush(&s, &once);
    mask_stream_release(&s);
    run(m, &text, cut, &cuts);
    must(once.len == cuts.len && (!once.len || memcmp(once.data, cuts.data, once.len) == 0));
    must(once.len <= text.len);
    for (size_t i = 0; i < n; i++)
        check_gone(&once, &values[i]);
    mask_free(m);
    return 0;
}
