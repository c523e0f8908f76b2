#include "layers/image_sizes.h"

#include "layers/ext4_read.h"
#include "layers/layer_index.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <string.h>
#include <sys/stat.h>

#define ENTRIES_MAX ((uint64_t)1 << 24) /* of all layers: 512 MiB of table */
#define DEPTH_MAX 2048u

CB_DEFINE_CLEANUP(ext4_image, struct ext4_image *, ext4_image_close);
CB_DEFINE_CLEANUP(ext4_walk, struct ext4_walk *, ext4_walk_close);
CB_DEFINE_CLEANUP(index, struct index_reader *, index_free);

void image_sizes_release(struct image_sizes *s)
{
    for (size_t i = 0; i < s->n_folders; i++)
        free(s->folders[i].path);
    free(s->folders);
    free(s->layers);
    *s = (struct image_sizes){0};
}

/* ---- which layer a path is from ---- */

struct slot {
    uint64_t hash; /* 0: free */
    uint32_t layer;
};
struct table {
    struct slot *v;
    uint64_t mask;
};

/* Without slashes and "./" in front and slashes at the end; a clash of two paths of one image costs
 * one file's place in a table of sizes. */
static uint64_t hash_path(const char *p)
{
    while (*p == '/' || (p[0] == '.' && p[1] == '/'))
        p++;
    uint64_t h = UINT64_C(14695981039346656037);
    for (; *p; p++)
        if (*p != '/' || (p[1] && p[1] != '/'))
            h = (h ^ (unsigned char)*p) * UINT64_C(1099511628211);
    return h ? h : 1;
}

static struct slot *find(const struct table *t, uint64_t hash)
{
    uint64_t i = (hash ^ hash >> 29) & t->mask;
    while (t->v[i].hash && t->v[i].hash != hash)
        i = (i + 1) & t->mask;
    return &t->v[i];
}

static int read_layer(struct table *t, struct index_reader *x, uint32_t layer,
                      struct layer_size *size, struct cb_error *err)
{
    struct tar_entry e;
    int rc;
    while ((rc = index_next(x, &e, err)) > 0) {
        if (e.kind != TAR_FILE && e.kind != TAR_HARDLINK)
            continue;
        uint32_t from = layer;
        if (e.kind == TAR_HARDLINK) { /* the bytes are those of the other name */
            struct slot *target = find(t, hash_path(e.link));
            if (!target->hash)
                continue;
            from = target->layer;
        } else {
            size->content += e.size;
        }
        struct slot *s = find(t, hash_path(e.path));
        *s = (struct slot){hash_path(e.path), from};
    }
    size->known = rc == 0;
    return rc;
}

static int read_layers(struct store *s, const struct layer_blob *layers, struct table *t,
                       struct image_sizes *out, struct cb_error *err)
{
    uint64_t entries = 0, room = 1024;
    for (size_t i = 0; i < out->n_layers; i++) {
        CB_AUTO(index) x = index_open(s, &layers[i].diff_id);
        entries += x ? index_sums(x)->entries : 0;
    }
    if (entries > ENTRIES_MAX)
        return cb_fail(err, CB_E_LIMIT, "the layers have more than %llu entries",
                       (unsigned long long)ENTRIES_MAX);
    while (room < entries * 2)
        room *= 2;
    t->v = cb_xcalloc(room, sizeof(*t->v));
    t->mask = room - 1;
    for (size_t i = 0; i < out->n_layers; i++) {
        CB_AUTO(index) x = index_open(s, &layers[i].diff_id);
        int rc = x ? read_layer(t, x, (uint32_t)i, &out->layers[i], err) : 0;
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* ---- folders ---- */

struct ranks {
    struct folder_size open[DEPTH_MAX + 1]; /* those on the way to the current name */
    size_t n;
    unsigned depth;
    struct image_sizes *out;
};

static unsigned depth_of(const char *path)
{
    unsigned n = strcmp(path, ".") != 0;
    for (; *path; path++)
        n += *path == '/';
    return n;
}

static int by_size(const void *a, const void *b)
{
    const struct folder_size *x = a, *y = b;
    if (x->allocated != y->allocated)
        return x->allocated < y->allocated ? 1 : -1;
    return ext4_path_cmp(x->path, y->path);
}

/* Takes @f. The list holds up to twice what is asked for before it is cut. */
static void rank(struct image_sizes *s, struct folder_size *f)
{
    s->folders[s->n_folders++] = *f;
    if (s->n_folders < 2 * s->top + 1)
        return;
    qsort(s->folders, s->n_folders, sizeof(*s->folders), by_size);
    while (s->n_folders > s->top)
        free(s->folders[--s->n_folders].path);
}

static void leave(struct ranks *r, size_t down_to)
{
    while (r->n > down_to) {
        struct folder_size f = r->open[--r->n];
        if (r->n) {
            struct folder_size *up = &r->open[r->n - 1];
            up->files += f.files;
            up->content += f.content;
            up->allocated += f.allocated;
        }
        if (r->n <= r->depth)
            rank(r->out, &f);
        else
            free(f.path);
    }
}

static void add_name(struct ranks *r, const struct ext4_entry *e)
{
    unsigned depth = depth_of(e->path);
    leave(r, depth);
    if (S_ISDIR(e->mode) && r->n == depth && depth < DEPTH_MAX)
        r->open[r->n++] = (struct folder_size){
            .path = depth <= r->depth ? cb_xstrdup(e->path) : NULL, .allocated = e->allocated};
    else if (r->n && !e->link_to) {
        struct folder_size *in = &r->open[r->n - 1];
        in->files++;
        in->content += e->size;
        in->allocated += e->allocated;
    }
}

static void add_to_layer(struct image_sizes *s, const struct table *t, const struct ext4_entry *e)
{
    if (!S_ISREG(e->mode) || e->link_to)
        return;
    const struct slot *from = find(t, hash_path(e->path));
    struct layer_size *l = from->hash ? &s->layers[from->layer] : &s->other;
    l->kept += e->size;
    l->allocated += e->allocated;
}

static int walk_image(const char *path, const struct table *t, struct ranks *r,
                      struct cb_error *err)
{
    CB_AUTO(ext4_image) im = NULL;
    CB_AUTO(ext4_walk) w = NULL;
    int rc = ext4_image_open(path, 0, &im, err);
    if (rc >= 0)
        rc = ext4_walk_open(im, EXT4_WALK_NO_EMPTY_LOST_FOUND, &w, err);
    struct ext4_entry e;
    while (rc >= 0 && (rc = ext4_walk_next(w, &e, err)) > 0) {
        add_name(r, &e);
        add_to_layer(r->out, t, &e);
    }
    leave(r, 0);
    return rc;
}

int image_sizes_get(struct store *s, const struct layer_blob *layers, size_t n, const char *path,
                    unsigned depth, size_t top, struct image_sizes *out, struct cb_error *err)
{
    struct table t = {0};
    struct ranks *r = cb_xcalloc(1, sizeof(*r));
    *out = (struct image_sizes){.n_layers = n, .top = top};
    out->layers = cb_xcalloc(n ? n : 1, sizeof(*out->layers));
    out->folders = cb_xcalloc(2 * top + 2, sizeof(*out->folders));
    r->depth = depth;
    r->out = out;
    int rc = read_layers(s, layers, &t, out, err);
    if (rc >= 0)
        rc = walk_image(path, &t, r, err);
    free(t.v);
    free(r);
    if (rc < 0) {
        image_sizes_release(out);
        return rc;
    }
    qsort(out->folders, out->n_folders, sizeof(*out->folders), by_size);
    while (out->n_folders > top)
        free(out->folders[--out->n_folders].path);
    return 0;
}
