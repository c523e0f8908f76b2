#include "layers/store_verify.h"

#include "layers/parallel.h"
#include "layers/store_inventory.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <zstd.h>

CB_DEFINE_CLEANUP(manifest, struct template_manifest *, template_manifest_free);

#define PROGRESS_STEP ((uint64_t)8 << 20)

struct worker_state {
    unsigned char *chunk; /* CHUNK_SIZE_MAX bytes, once it is needed */
    struct cb_buf scratch;
    ZSTD_DCtx *z;
};

struct verify {
    struct store *s;
    const struct verify_options *o;
    struct inventory inv;
    struct verify_report *out;
    size_t *fault;  /* one an item: 1 + its place in out->v, 0: fine */
    uint32_t *todo; /* items */
    struct worker_state w[PARALLEL_MAX];
    pthread_mutex_t lock; /* guards out, fault and what follows */
    uint64_t done, told, total;
};

void verify_report_release(struct verify_report *r)
{
    for (size_t i = 0; i < r->n; i++) {
        free(r->v[i].what);
        free(r->v[i].why);
        free(r->v[i].hits);
    }
    free(r->v);
    *r = (struct verify_report){0};
}

static char *name_of(const struct verify *v, const struct item *it)
{
    if (it->kind == STORE_VERSIONS)
        return cb_xasprintf("%s version %llu", v->inv.names.v[it->template],
                            (unsigned long long)it->version);
    return inventory_rel(&v->inv, it);
}

/* @what and @why are taken. */
static size_t add_fault(struct verify *v, char *what, char *why)
{
    struct verify_report *r = v->out;
    r->v = cb_xgrow(r->v, &r->cap, r->n, sizeof(*r->v));
    r->v[r->n++] = (struct verify_fault){.what = what, .why = why};
    return r->n;
}

/* Counts the item, and keeps what is wrong with it. */
static void say(struct verify *v, const struct item *it, const struct cb_error *err)
{
    (void)pthread_mutex_lock(&v->lock);
    v->out->checked[it->kind].n++;
    v->out->checked[it->kind].bytes += it->bytes;
    v->done += it->bytes;
    size_t i = (size_t)(it - v->inv.v);
    if (err->code != CB_OK && !v->fault[i])
        v->fault[i] = add_fault(v, name_of(v, it), cb_xstrdup(err->msg));
    if (v->o->progress && (v->done - v->told >= PROGRESS_STEP || v->done == v->total)) {
        v->told = v->done;
        v->o->progress(v->o->arg, v->done, v->total);
    }
    (void)pthread_mutex_unlock(&v->lock);
}

/* -- one item. -CB_E_NOTFOUND: it went away, which is no fault -- */

static int open_item(struct verify *v, const struct item *it, struct cb_error *err)
{
    CB_AUTO_FREE char *rel = inventory_rel(&v->inv, it);
    int fd = openat(v->s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return cb_fail(err, CB_E_NOTFOUND, "gone");
    return fd < 0 ? cb_fail_sys(err, errno, "open") : fd;
}

static int wrong_digest(struct cb_error *err, const struct cb_digest *is)
{
    char text[CB_DIGEST_LEN + 1];
    cb_digest_text(is, text);
    return cb_fail(err, CB_E_CORRUPT, "its content is %s", text);
}

static int check_blob(struct verify *v, const struct item *it, struct cb_error *err)
{
    struct cb_digest is;
    CB_AUTO_FD fd = open_item(v, it, err);
    int rc = fd < 0 ? fd : cb_sha256_fd(fd, &is, err);
    if (rc == 0 && !cb_digest_eq(&is, &it->id))
        rc = wrong_digest(err, &is);
    return rc;
}

static int check_chunk(struct verify *v, unsigned worker, const struct item *it,
                       struct cb_error *err)
{
    struct worker_state *w = &v->w[worker];
    size_t len;
    if (!w->chunk) {
        w->chunk = cb_xmalloc(CHUNK_SIZE_MAX);
        w->z = ZSTD_createDCtx();
    }
    if (!w->z)
        return cb_fail(err, CB_E_SYS, "out of memory");
    return store_chunk_read(v->s, &it->id, CHUNK_SIZE_MAX, w->z, &w->scratch, w->chunk, &len, err);
}

static int check_document(struct verify *v, const struct item *it, struct cb_error *err)
{
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_FD fd = open_item(v, it, err);
    int rc = fd < 0 ? fd : cb_read_fd(fd, "record", STORE_SMALL_MAX, &text, err);
    if (rc < 0)
        return rc;
    struct cache_record r = {0};
    rc = cache_record_parse(text.data, text.len, &r, err);
    cache_record_release(&r);
    return rc;
}

static int check_item(void *arg, unsigned worker, size_t n, struct cb_error *none)
{
    struct verify *v = arg;
    (void)none; /* what is wrong with an item does not stop the others */
    const struct item *it = &v->inv.v[v->todo[n]];
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_CHUNK_MAP map = {0};
    int rc = 0;
    if (it->kind == STORE_BLOBS)
        rc = check_blob(v, it, &err);
    else if (it->kind == STORE_CHUNKS)
        rc = check_chunk(v, worker, it, &err);
    else if (it->kind == STORE_MAPS)
        rc = store_map_get(v->s, &it->id, &map, &err);
    else if (it->kind == STORE_RECORDS)
        rc = check_document(v, it, &err);
    if (rc == -(int)CB_E_NOTFOUND)
        cb_error_clear(&err);
    say(v, it, &err);
    return 0;
}

/* -- images: one after the other, each by all threads -- */

/* The chunk size is in the map; without one it is what images have now, or what they had when there
 * were no maps. */
static int map_image(struct verify *v, const struct item *it, int fd, struct chunk_map *map,
                     struct cb_error *err)
{
    static const uint32_t without_maps = 1u << 20;
    CB_AUTO_CHUNK_MAP known = {0};
    (void)store_map_get(v->s, &it->id, &known, NULL);
    uint32_t sizes[] = {known.chunk_size, known.chunk_size ? 0 : CHUNK_SIZE_DEFAULT,
                        known.chunk_size ? 0 : without_maps};
    struct cb_digest is = {{0}};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        if (sizes[i] == 0 || (i > 0 && sizes[i] == sizes[i - 1]))
            continue;
        chunk_map_release(map);
        int rc = chunk_map_make(fd, sizes[i], map, err);
        if (rc < 0)
            return rc;
        chunk_map_digest(map, &is);
        if (cb_digest_eq(&is, &it->id))
            return 0;
    }
    return wrong_digest(err, &is);
}

static bool item_is_bad(const struct verify *v, const struct item *it)
{
    return v->fault[it - v->inv.v] != 0;
}

/* A map or chunk that is bad or gone is made again from an image that is good. */
static void remake_chunks(struct verify *v, const struct item *it, int fd,
                          const struct chunk_map *map)
{
    const struct item *doc = inventory_find(&v->inv, STORE_MAPS, &it->id);
    bool missing = !doc || item_is_bad(v, doc);
    if (!doc && it->users == 0)
        return; /* an image of before there were chunks, or nobody's */
    for (size_t i = 0; i < map->n && !missing; i++) {
        const struct item *c = inventory_find(&v->inv, STORE_CHUNKS, &map->v[i].digest);
        missing = !c || item_is_bad(v, c);
    }
    if (missing)
        (void)store_chunks_put(v->s, fd, map, NULL, NULL, NULL);
}

static void check_images(struct verify *v, bool remake)
{
    for (size_t i = 0; i < v->inv.n; i++) {
        const struct item *it = &v->inv.v[i];
        if (it->kind != STORE_IMAGES || item_is_bad(v, it))
            continue;
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_CHUNK_MAP map = {0};
        CB_AUTO_FD fd = open_item(v, it, &err);
        int rc = fd < 0 ? fd : map_image(v, it, fd, &map, &err);
        if (rc == -(int)CB_E_NOTFOUND)
            cb_error_clear(&err);
        if (remake && rc == 0)
            remake_chunks(v, it, fd, &map);
        else if (!remake)
            say(v, it, &err);
    }
}

/* -- versions: everything that they name is there and good -- */

static int need_blob(const struct verify *v, const struct cb_digest *d, const char *what,
                     const char *name, struct cb_error *err)
{
    static const struct cb_digest none;
    const struct item *it = inventory_find(&v->inv, STORE_BLOBS, d);
    char text[CB_DIGEST_LEN + 1];
    cb_digest_text(d, text);
    if (cb_digest_eq(d, &none) || (it && !it->gone))
        return 0;
    return cb_fail(err, CB_E_NOTFOUND, "%s%s%s (%s) is not in the store", what, name ? " " : "",
                   name ? name : "", text);
}

static bool is_there(const struct verify *v, enum store_kind kind, const struct cb_digest *d)
{
    const struct item *it = inventory_find(&v->inv, kind, d);
    return it && !it->gone;
}

/* What a manifest says of an image. */
struct named_image {
    const struct cb_digest *digest;
    uint64_t size, n_chunks;
    uint32_t chunk_size;
    bool chunked;
};

static int need_image(const struct verify *v, const struct named_image *im, const char *what,
                      struct cb_error *err)
{
    CB_AUTO_CHUNK_MAP map = {0};
    if (!im->chunked)
        return is_there(v, STORE_IMAGES, im->digest)
                   ? 0
                   : cb_fail(err, CB_E_NOTFOUND, "%s is not in the store", what);
    if (!is_there(v, STORE_MAPS, im->digest))
        return cb_fail(err, CB_E_NOTFOUND, "the chunk map of %s is not in the store", what);
    if (store_map_get(v->s, im->digest, &map, NULL) < 0)
        return 0; /* a fault of the map's own */
    if (map.n != im->n_chunks || map.chunk_size != im->chunk_size || map.length != im->size)
        return cb_fail(err, CB_E_CORRUPT, "the chunk map of %s is not the one that it names", what);
    size_t lost = 0;
    for (size_t i = 0; i < map.n; i++)
        lost += !is_there(v, STORE_CHUNKS, &map.v[i].digest);
    return lost ? cb_fail(err, CB_E_NOTFOUND, "%zu of the %zu chunks of %s are not in the store",
                          lost, map.n, what)
                : 0;
}

static int need_images(const struct verify *v, const struct template_manifest *m,
                       struct cb_error *err)
{
    const struct named_image root = {.digest = &m->image,
                                     .size = m->image_size,
                                     .n_chunks = m->n_chunks,
                                     .chunk_size = m->chunk_size,
                                     .chunked = m->n_chunks > 0};
    int rc = need_image(v, &root, "its image", err);
    for (size_t i = 0; i < m->n_drives && rc == 0; i++) {
        const struct drive_image *d = &m->drives[i];
        const struct named_image drive = {.digest = &d->image,
                                          .size = d->size,
                                          .n_chunks = d->n_chunks,
                                          .chunk_size = d->chunk_size,
                                          .chunked = true};
        CB_AUTO_FREE char *what = cb_xasprintf("its drive %s", d->drive_id);
        rc = need_image(v, &drive, what, err);
    }
    return rc;
}

static int check_version(const struct verify *v, const struct item *it, struct cb_error *err)
{
    CB_AUTO(manifest) m = NULL;
    int rc = store_template_get(v->s, v->inv.names.v[it->template], it->version, &m, err);
    if (rc < 0)
        return rc;
    rc = need_images(v, m, err);
    if (rc == 0)
        rc = need_blob(v, &m->kernel, "the kernel", NULL, err);
    if (rc == 0)
        rc = need_blob(v, &m->initramfs, "the initramfs", NULL, err);
    const struct {
        const struct cb_digest *d;
        const char *what;
    } optional[] = {{&m->modules, "the modules"},
                    {&m->warm.blob, "the saved machine"},
                    {&m->sbom, "the package list"},
                    {&m->provenance, "the provenance"},
                    {&m->sbom_signed, "the signed package list"},
                    {&m->provenance_signed, "the signed provenance"}};
    for (size_t i = 0; i < sizeof(optional) / sizeof(*optional) && rc == 0; i++)
        rc = need_blob(v, optional[i].d, optional[i].what, NULL, err);
    for (size_t i = 0; i < m->n_layers && rc == 0; i++)
        rc = need_blob(v, &m->layers[i].digest, "layer", m->layer_names[i], err);
    return rc < 0 ? rc : 0;
}

static void check_versions(struct verify *v)
{
    for (size_t i = 0; i < v->inv.n; i++) {
        const struct item *it = &v->inv.v[i];
        if (it->kind != STORE_VERSIONS || v->fault[i])
            continue;
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *rel = inventory_rel(&v->inv, it);
        if (check_version(v, it, &err) < 0 && faccessat(v->s->root, rel, F_OK, 0) < 0)
            cb_error_clear(&err); /* removed meanwhile */
        say(v, it, &err);
    }
    for (size_t t = 0; t < v->inv.names.n; t++) {
        const char *name = v->inv.names.v[t];
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO(manifest) m = NULL;
        CB_AUTO_FREE char *pointer = cb_xasprintf("templates/%s/current", name);
        bool points = faccessat(v->s->root, pointer, F_OK, 0) == 0;
        int rc = points ? store_template_get(v->s, name, 0, &m, &err) : 0;
        bool known = false; /* its version is named as bad already */
        for (size_t i = 0; i < v->inv.n; i++)
            known = known || (v->inv.v[i].template == t && v->inv.v[i].current && v->fault[i]);
        if (rc < 0 && !known && faccessat(v->s->root, pointer, F_OK, 0) == 0)
            (void)add_fault(v, cb_xstrdup(pointer), cb_xstrdup(err.msg));
    }
}

/* -- who is hit, and what can be done -- */

/* Says of every bad item that @it leads to that @version needs it. */
static void hit(struct verify *v, const struct item *it, const char *version, uint32_t stamp,
                uint32_t *seen, struct cb_buf *hits)
{
    for (size_t i = 0; i < it->n_refs; i++) {
        uint32_t r = it->refs[i];
        if (seen[r] == stamp)
            continue;
        seen[r] = stamp;
        struct cb_buf *b = v->fault[r] ? &hits[v->fault[r] - 1] : NULL;
        if (b)
            (void)cb_buf_addf(b, "%s%s", b->len ? ", " : "", version);
        hit(v, &v->inv.v[r], version, stamp, seen, hits);
    }
}

static void name_hits(struct verify *v)
{
    if (v->out->n == 0)
        return;
    CB_AUTO_FREE uint32_t *seen = cb_xcalloc(v->inv.n + 1, sizeof(*seen));
    CB_AUTO_FREE struct cb_buf *hits = cb_xcalloc(v->out->n, sizeof(*hits));
    for (size_t i = 0; i < v->out->n; i++)
        cb_buf_init(&hits[i], 64 << 10);
    for (uint32_t i = 0; i < v->inv.n; i++) {
        const struct item *it = &v->inv.v[i];
        if (it->kind != STORE_VERSIONS)
            continue;
        CB_AUTO_FREE char *version = name_of(v, it);
        hit(v, it, version, i + 1, seen, hits);
    }
    for (size_t i = 0; i < v->out->n; i++) {
        if (hits[i].len)
            v->out->v[i].hits = cb_buf_take(&hits[i]);
        cb_buf_release(&hits[i]);
    }
}

/* Bad things are put aside, under the lock, unless somebody has put a good one in their place. */
static int move_bad(struct verify *v, struct cb_error *err)
{
    int rc = store_mkdir(v->s, "damaged", err);
    CB_AUTO_FD alone = rc == 0 ? store_lock_alone(v->s, err) : -1;
    if (rc == 0 && alone < 0)
        rc = alone;
    for (size_t i = 0; i < v->inv.n && rc == 0; i++) {
        struct item *it = &v->inv.v[i];
        if (!v->fault[i])
            continue;
        struct verify_fault *f = &v->out->v[v->fault[i] - 1];
        CB_AUTO_FREE char *rel = inventory_rel(&v->inv, it);
        CB_AUTO_FREE char *flat = cb_xstrdup(rel);
        for (char *p = flat; (p = strchr(p, '/')) != NULL;)
            *p = '-';
        CB_AUTO_FREE char *to = cb_xasprintf("damaged/%s", flat);
        if (it->kind == STORE_VERSIONS)
            continue; /* what it lacks may come back with the next build */
        if (renameat(v->s->root, rel, v->s->root, to) < 0 && errno != ENOENT)
            rc = cb_fail_sys(err, errno, "move %s/%s to damaged/", v->s->dir, rel);
        it->gone = f->moved = rc == 0;
        if (f->moved)
            store_touch(v->s, to); /* from now on it grows old */
    }
    return rc;
}

static void check_all(struct verify *v)
{
    size_t n = 0;
    v->todo = cb_xcalloc(v->inv.n + 1, sizeof(*v->todo));
    for (uint32_t i = 0; i < v->inv.n; i++) {
        enum store_kind k = v->inv.v[i].kind;
        bool parallel =
            k == STORE_BLOBS || k == STORE_CHUNKS || k == STORE_MAPS || k == STORE_RECORDS;
        if (parallel)
            v->todo[n++] = i;
        if (parallel || k == STORE_IMAGES || k == STORE_VERSIONS)
            v->total += v->inv.v[i].bytes;
    }
    (void)parallel_run(n, check_item, v, NULL);
    check_images(v, false);
    for (unsigned i = 0; i < PARALLEL_MAX; i++) {
        free(v->w[i].chunk);
        cb_buf_release(&v->w[i].scratch);
        ZSTD_freeDCtx(v->w[i].z);
    }
    free(v->todo);
}

static int look(struct store *s, struct inventory *inv, struct cb_error *err)
{
    store_share(s);
    int rc = inventory_make(s, inv, err);
    if (rc == 0) {
        rc = inventory_hold_roots(inv, err);
        if (rc < 0)
            inventory_release(inv);
    }
    store_unshare(s);
    return rc;
}

static int run(struct store *s, const struct verify_options *o, struct verify_report *out,
               struct cb_error *err)
{
    struct verify v = {.s = s, .o = o, .out = out};
    int rc = look(s, &v.inv, err);
    if (rc < 0)
        return rc;
    (void)pthread_mutex_init(&v.lock, NULL);
    v.fault = cb_xcalloc(v.inv.n + 1, sizeof(*v.fault));
    check_all(&v);
    check_versions(&v);
    name_hits(&v);
    if (o->repair && out->n)
        rc = move_bad(&v, err);
    if (o->repair && rc == 0 && out->n)
        check_images(&v, true);
    inventory_release(&v.inv);
    free(v.fault);
    (void)pthread_mutex_destroy(&v.lock);
    return rc;
}

/* What is still wrong after a repair is what a second look finds. */
static int look_again(struct store *s, struct verify_report *out, struct cb_error *err)
{
    static const struct verify_options quiet;
    struct verify_report again = {0};
    int rc = run(s, &quiet, &again, err);
    out->good = rc == 0 && again.n == 0;
    for (size_t i = 0; i < out->n && rc == 0; i++) {
        struct verify_fault *f = &out->v[i];
        f->solved = true;
        for (size_t j = 0; j < again.n; j++) {
            const struct verify_fault *a = &again.v[j];
            if (strcmp(a->what, f->what) == 0 || (f->hits && strstr(f->hits, a->what)))
                f->solved = false;
        }
    }
    for (size_t j = 0; j < again.n && rc == 0; j++) { /* what lacks something since it was moved */
        bool known = false;
        for (size_t i = 0; i < out->n; i++)
            known = known || strcmp(out->v[i].what, again.v[j].what) == 0;
        if (known)
            continue;
        out->v = cb_xgrow(out->v, &out->cap, out->n, sizeof(*out->v));
        out->v[out->n++] = again.v[j];
        again.v[j] = (struct verify_fault){0};
    }
    verify_report_release(&again);
    return rc;
}

int store_verify(struct store *s, const struct verify_options *o, struct verify_report *out,
                 struct cb_error *err)
{
    *out = (struct verify_report){0};
    int rc = run(s, o, out, err);
    out->good = out->n == 0;
    if (rc == 0 && o->repair && out->n)
        rc = look_again(s, out, err);
    return rc < 0 ? cb_wrap(err, "verify the store") : 0;
}
