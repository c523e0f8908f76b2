#include "layers/gzip.h"

#include "support/mem.h"

#include <isa-l/igzip_lib.h>
#include <stdint.h>
#include <stdlib.h>

enum { OUT_SIZE = 256 << 10, LEVEL = 2, PIECE_MAX = 1 << 30 };

struct gzip {
    gzip_sink *sink;
    void *arg;
    struct isal_zstream z;
    unsigned char *level, *out;
};

struct gzip *gzip_new(gzip_sink *sink, void *arg)
{
    struct gzip *g = cb_xcalloc(1, sizeof(*g));
    g->sink = sink;
    g->arg = arg;
    g->level = cb_xmalloc(ISAL_DEF_LVL2_LARGE);
    g->out = cb_xmalloc(OUT_SIZE);
    isal_deflate_init(&g->z);
    g->z.gzip_flag = IGZIP_GZIP;
    g->z.level = LEVEL;
    g->z.level_buf = g->level;
    g->z.level_buf_size = ISAL_DEF_LVL2_LARGE;
    return g;
}

void gzip_free(struct gzip *g)
{
    if (!g)
        return;
    free(g->level);
    free(g->out);
    free(g);
}

/* Until all input is taken and, at the end, all output is out. */
static int work(struct gzip *g, struct cb_error *err)
{
    do {
        g->z.next_out = g->out;
        g->z.avail_out = OUT_SIZE;
        int code = isal_deflate(&g->z);
        if (code != COMP_OK)
            return cb_fail(err, CB_E_BUG, "gzip: error %d of ISA-L", code);
        size_t n = OUT_SIZE - g->z.avail_out;
        int rc = n ? g->sink(g->arg, g->out, n, err) : 0;
        if (rc < 0)
            return rc;
    } while (g->z.avail_in || g->z.avail_out == 0 ||
             (g->z.end_of_stream && g->z.internal_state.state != ZSTATE_END));
    return 0;
}

int gzip_add(struct gzip *g, const void *p, size_t n, struct cb_error *err)
{
    for (size_t at = 0; at < n;) {
        size_t part = n - at < PIECE_MAX ? n - at : PIECE_MAX;
        g->z.next_in = (unsigned char *)(uintptr_t)p + at; /* not written to */
        g->z.avail_in = (uint32_t)part;
        int rc = work(g, err);
        if (rc < 0)
            return rc;
        at += part;
    }
    return 0;
}

int gzip_finish(struct gzip *g, struct cb_error *err)
{
    g->z.end_of_stream = 1;
    g->z.next_in = NULL;
    g->z.avail_in = 0;
    return work(g, err);
}
