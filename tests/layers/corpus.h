/* corpus: reads what corpus.py wrote, case by case, its blobs put into a store. */
#pragma once

#include "layers/store.h"
#include "support/cleanup.h"
#include "support/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define CORPUS_LAYERS_MAX 64u

struct corpus_case {
    char name[64];
    bool legal;                                  /* else flatten() must refuse it */
    struct layer_blob layers[CORPUS_LAYERS_MAX]; /* without media types */
    size_t n_layers;
};

struct corpus {
    const char *dir; /* borrowed */
    FILE *f;         /* DIR/cases */
    char line[256];  /* the next one; empty at the end */
    struct store *store;
};

static inline void corpus_close(struct corpus *c)
{
    if (c->f)
        (void)fclose(c->f);
    c->f = NULL;
}

static inline void corpus_line(struct corpus *c)
{
    if (!fgets(c->line, sizeof(c->line), c->f))
        c->line[0] = '\0';
}

/* @dir and @store are borrowed until corpus_close(). */
static inline int corpus_open(struct corpus *c, const char *dir, struct store *store,
                              struct cb_error *err)
{
    char path[4096];
    (void)snprintf(path, sizeof(path), "%s/cases", dir);
    *c = (struct corpus){.dir = dir, .store = store, .f = fopen(path, "re")};
    if (!c->f)
        return cb_fail_sys(err, errno, "open %s", path);
    corpus_line(c);
    return 0;
}

static inline int corpus_import(struct corpus *c, const char *hex, const struct layer_blob *l,
                                struct cb_error *err)
{
    if (store_blob_has(c->store, &l->digest))
        return 0;
    char path[4096];
    (void)snprintf(path, sizeof(path), "%s/blobs/%s", c->dir, hex);
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    struct blob_writer *w = NULL;
    int rc = store_blob_begin(c->store, NULL, UINT64_MAX, &w, err);
    static char buf[1 << 18];
    ssize_t n = 0;
    while (rc == 0 && (n = read(fd, buf, sizeof(buf))) > 0)
        rc = blob_writer_add(w, buf, (size_t)n, err);
    if (rc == 0 && n < 0)
        rc = cb_fail_sys(err, errno, "read %s", path);
    if (rc < 0) {
        blob_writer_abort(w);
        return rc;
    }
    return blob_writer_commit(w, NULL, NULL, err);
}

/* 1 and the next case, its layers in the store; 0 at the end; or an error. */
static inline int corpus_next(struct corpus *c, struct corpus_case *out, struct cb_error *err)
{
    char verdict[16], blob[CB_HEX_LEN + 1], tar[CB_HEX_LEN + 1];
    memset(out, 0, sizeof(*out));
    if (!c->line[0])
        return 0;
    if (sscanf(c->line, "case %63s %15s", out->name, verdict) != 2)
        return cb_fail(err, CB_E_CORRUPT, "the table of the corpus: %s", c->line);
    out->legal = strcmp(verdict, "legal") == 0;
    for (corpus_line(c); strncmp(c->line, "layer ", 6) == 0; corpus_line(c)) {
        struct layer_blob *l = &out->layers[out->n_layers];
        if (out->n_layers == CORPUS_LAYERS_MAX ||
            sscanf(c->line, "layer %64s %" SCNu64 " %64s", blob, &l->size, tar) != 3 ||
            !cb_digest_parse_hex(blob, &l->digest) || !cb_digest_parse_hex(tar, &l->diff_id))
            return cb_fail(err, CB_E_CORRUPT, "the table of the corpus: %s", c->line);
        int rc = corpus_import(c, blob, l, err);
        if (rc < 0)
            return rc;
        out->n_layers++;
    }
    return 1;
}
