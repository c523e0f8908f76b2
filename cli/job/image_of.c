#include "cli/job/image_of.h"

#include "layers/flatten.h"
#include "layers/prefix.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void image_of_release(struct image_of *i)
{
    if (i->temporary && i->path)
        (void)unlink(i->path);
    template_manifest_free(i->m);
    free(i->layer);
    free(i->path);
    cb_close(i->fd);
    chunk_map_release(&i->chunks);
    *i = (struct image_of)IMAGE_OF_INIT;
}

/* Splits NAME[:VERSION][/LAYER]. */
static int read_word(const char *word, char **name, uint64_t *version, char **layer,
                     struct cb_error *err)
{
    const char *slash = strchr(word, '/');
    size_t n = slash ? (size_t)(slash - word) : strlen(word);
    const char *colon = memchr(word, ':', n);
    *name = cb_xstrndup(word, colon ? (size_t)(colon - word) : n);
    *layer = slash ? cb_xstrdup(slash + 1) : NULL;
    *version = 0;
    if (!colon)
        return 0;
    char *end = NULL;
    errno = 0;
    if (colon[1] >= '1' && colon[1] <= '9')
        *version = strtoull(colon + 1, &end, 10);
    if (*version && !errno && end == word + n)
        return 0;
    return cb_fail(err, CB_E_CONFIG, "%s: not NAME[:VERSION] or NAME[:VERSION]/LAYER", word);
}

static int find_layer(struct image_of *i, struct cb_error *err)
{
    const struct template_manifest *m = i->m;
    i->n_layers = m->n_layers;
    if (!i->layer)
        return 0;
    while (i->n_layers && strcmp(m->layer_names[i->n_layers - 1], i->layer) != 0)
        i->n_layers--;
    if (i->n_layers)
        return 0;
    CB_AUTO_BUF names = CB_BUF_INIT(64u << 10);
    for (size_t k = 0; k < m->n_layers; k++)
        if (k == 0 || strcmp(m->layer_names[k - 1], m->layer_names[k]) != 0)
            (void)cb_buf_addf(&names, "%s%s", k ? ", " : "", m->layer_names[k]);
    cb_fail(err, CB_E_NOTFOUND, "%s version %llu has no layer %s", m->name,
            (unsigned long long)m->version, i->layer);
    return cb_hint(err, "it has %s", names.data);
}

/* Its map, if that is in the store and of this image: a convenience. */
static void load_chunks(struct store *s, struct image_of *i)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&i->m->image, hex);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/images/%s.chunks", store_dir(s), hex);
    CB_AUTO_ERROR none = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    struct cb_digest digest;
    if (cb_read_file(path, 256u << 20, &text, &none) < 0 ||
        chunk_map_parse(text.data, text.len, &i->chunks, &none) < 0)
        return;
    chunk_map_digest(&i->chunks, &digest);
    if (!cb_digest_eq(&digest, &i->m->image))
        chunk_map_release(&i->chunks);
}

static int make_image(struct store *s, struct image_of *i, struct cb_error *err)
{
    CB_AUTO_PREFIX below = PREFIX_INIT;
    (void)prefix_find(s, i->m->layers, i->n_layers, &below);
    if (below.fd >= 0 && below.n_layers == i->n_layers) {
        i->fd = cb_take_fd(&below.fd);
        i->path = cb_xasprintf("/proc/self/fd/%d", i->fd);
        i->chunks = below.chunks;
        below.chunks = (struct chunk_map){0};
        chunk_map_digest(&i->chunks, &i->digest);
        return 0;
    }
    const struct flatten_parent parent = {below.fd, below.n_layers, &below.chunks};
    char *path = store_tmp_path(s, "layer");
    if (!path)
        return cb_fail(err, CB_E_ENV, "no temporary file can be made in %s", store_dir(s));
    const struct flatten_spec spec = {.store = s,
                                      .layers = i->m->layers,
                                      .n_layers = i->n_layers,
                                      .out_path = path,
                                      .chunks = &i->chunks,
                                      .parent = below.fd >= 0 ? &parent : NULL};
    struct flatten_result r;
    int rc = flatten(&spec, &r, err);
    if (rc < 0) {
        free(path);
        return cb_wrap(err, "make the image of layer %s", i->layer);
    }
    i->path = path;
    i->temporary = true;
    i->digest = r.digest;
    return 0;
}

int image_of_open(struct store *s, const char *word, struct image_of *out, struct cb_error *err)
{
    *out = (struct image_of)IMAGE_OF_INIT;
    CB_AUTO_FREE char *name = NULL;
    uint64_t version = 0;
    int rc = read_word(word, &name, &version, &out->layer, err);
    if (rc >= 0)
        rc = store_template_get(s, name, version, &out->m, err);
    if (rc >= 0)
        rc = find_layer(out, err);
    if (rc >= 0 && out->layer) {
        rc = make_image(s, out, err);
    } else if (rc >= 0) {
        out->digest = out->m->image;
        rc = store_image_path(s, &out->m->image, &out->path, err);
        if (rc >= 0)
            load_chunks(s, out);
    }
    if (rc < 0)
        image_of_release(out);
    return rc < 0 ? rc : 0;
}
