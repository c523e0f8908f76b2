/* All names of an image in order, and one looked up. */
#include "layers/ext4_fs.h"
#include "layers/ext4_read_private.h"
#include "layers/tree.h"
#include "support/buf.h"
#include "support/cleanup.h"
#include "support/limits.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define STEPS_MAX (TREE_NAMES_MAX * 4ull) /* places of names, used or not, in all folders */
#define PATH_BYTES_MAX ((size_t)TREE_DEPTH_MAX * (CB_NAME_MAX + 1))
#define LINK_HOPS_MAX 40 /* as Linux */

struct name {
    char *text; /* owned */
    ext2_ino_t ino;
};

struct folder {
    struct name *v;
    size_t n, cap, next;
    size_t path_len; /* of the folder itself */
};

/* The first name of each inode that has several: open addressing, a power of two in size. */
struct first_name {
    ext2_ino_t ino; /* 0: free */
    char *path;     /* owned */
};

struct ext4_walk {
    struct ext4_image *im;
    unsigned flags;
    bool begun;
    struct folder *v; /* the way to the current name */
    size_t n, cap;
    struct cb_buf path;
    ext2_ino_t pending;          /* the folder that came last and was not looked into */
    ext2fs_inode_bitmap folders; /* those that were seen: none may come twice */
    uint64_t steps;
    struct first_name *firsts;
    size_t n_firsts, size_firsts;
    struct ext4_details details;
};

static void cut(struct cb_buf *b, size_t len)
{
    b->len = len;
    b->over = false;
    if (b->data)
        b->data[len] = '\0';
}

static void folder_release(struct folder *f)
{
    for (size_t i = f->next; i < f->n; i++)
        free(f->v[i].text);
    free(f->v);
    *f = (struct folder){0};
}

int ext4_walk_open(struct ext4_image *im, unsigned flags, struct ext4_walk **out,
                   struct cb_error *err)
{
    struct ext4_walk *w = cb_xcalloc(1, sizeof(*w));
    w->im = im;
    w->flags = flags;
    cb_buf_init(&w->path, PATH_BYTES_MAX);
    errcode_t code = ext2fs_allocate_inode_bitmap(im->fs, "folders of a walk", &w->folders);
    if (code) {
        ext4_walk_close(w);
        return cb_fail(err, CB_E_SYS, "walk over an image: %s", error_message(code));
    }
    *out = w;
    return 0;
}

void ext4_walk_close(struct ext4_walk *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->n; i++)
        folder_release(&w->v[i]);
    free(w->v);
    for (size_t i = 0; i < w->size_firsts; i++)
        free(w->firsts[i].path);
    free(w->firsts);
    if (w->folders)
        ext2fs_free_inode_bitmap(w->folders);
    ext4_details_release(&w->details);
    cb_buf_release(&w->path);
    free(w);
}

int ext4_path_cmp(const char *a, const char *b)
{
    if (strcmp(a, ".") == 0)
        a = "";
    if (strcmp(b, ".") == 0)
        b = "";
    while (*a && *a == *b)
        a++, b++;
    /* the end of a component comes before every byte that a component can have */
    unsigned x = *a == '/' ? 1 : *a ? (unsigned char)*a + 1u : 0;
    unsigned y = *b == '/' ? 1 : *b ? (unsigned char)*b + 1u : 0;
    return x < y ? -1 : x > y;
}

/* ---- one folder ---- */

struct reading {
    struct ext4_walk *w;
    struct folder *f;
    const char *path;
    int rc;
    struct cb_error *err;
};

static bool good_name(const char *p, size_t n)
{
    return n > 0 && !memchr(p, '\0', n) && !memchr(p, '/', n) && !(n == 1 && p[0] == '.') &&
           !(n == 2 && p[0] == '.' && p[1] == '.');
}

static int on_name(ext2_ino_t dir, int where, struct ext2_dir_entry *e, int offset, int blocksize,
                   char *buf, void *arg)
{
    struct reading *r = arg;
    (void)dir, (void)offset, (void)blocksize, (void)buf;
    if (++r->w->steps > STEPS_MAX) {
        r->rc = cb_fail(r->err, CB_E_LIMIT, "the image has more than %u names", TREE_NAMES_MAX);
        return DIRENT_ABORT;
    }
    if (where != DIRENT_OTHER_FILE || e->inode == 0)
        return 0;
    size_t n = (size_t)ext2fs_dirent_name_len(e);
    if (!good_name(e->name, n)) {
        r->rc = ext4_damaged(r->path, "a name that cannot be", 0, r->err);
        return DIRENT_ABORT;
    }
    struct folder *f = r->f;
    f->v = cb_xgrow(f->v, &f->cap, f->n, sizeof(*f->v));
    f->v[f->n++] = (struct name){cb_xstrndup(e->name, n), e->inode};
    return 0;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct name *)a)->text, ((const struct name *)b)->text);
}

static int read_folder(struct ext4_walk *w, ext2_ino_t ino, const char *path, struct folder *f,
                       struct cb_error *err)
{
    struct reading r = {.w = w, .f = f, .path = path, .err = err};
    errcode_t code =
        ext2fs_dir_iterate2(w->im->fs, ino, DIRENT_FLAG_INCLUDE_EMPTY, NULL, on_name, &r);
    if (r.rc == 0 && code)
        r.rc = ext4_damaged(path, "read its names", code, err);
    if (r.rc < 0)
        return r.rc;
    if (f->n > 1)
        qsort(f->v, f->n, sizeof(*f->v), by_text);
    for (size_t i = 1; i < f->n; i++)
        if (strcmp(f->v[i - 1].text, f->v[i].text) == 0)
            return ext4_damaged(path, "a name that is there twice", 0, err);
    return 0;
}

/* Puts the folder that came last on top. */
static int enter(struct ext4_walk *w, struct cb_error *err)
{
    ext2_ino_t ino = w->pending;
    w->pending = 0;
    const char *path = w->path.len ? w->path.data : ".";
    if (w->n == TREE_DEPTH_MAX)
        return cb_fail(err, CB_E_LIMIT, "%.4096s in the image: deeper than %u", path,
                       TREE_DEPTH_MAX);
    if (ext2fs_mark_inode_bitmap2(w->folders, ino))
        return ext4_damaged(path, "a folder that is in two places", 0, err);
    struct folder f = {.path_len = w->path.len};
    int rc = read_folder(w, ino, path, &f, err);
    if (rc < 0) {
        folder_release(&f);
        return rc;
    }
    w->v = cb_xgrow(w->v, &w->cap, w->n, sizeof(*w->v));
    w->v[w->n++] = f;
    return 0;
}

/* ---- hard links ---- */

static struct first_name *first_slot(struct first_name *v, size_t size, ext2_ino_t ino)
{
    size_t i = (ino * 0x9e3779b1u) & (size - 1);
    while (v[i].ino && v[i].ino != ino)
        i = (i + 1) & (size - 1);
    return &v[i];
}

/* The first name of this inode; NULL when it is @path, which is kept then. */
static const char *first_name(struct ext4_walk *w, ext2_ino_t ino, const char *path)
{
    if (w->n_firsts * 2 >= w->size_firsts) {
        size_t size = w->size_firsts ? w->size_firsts * 2 : 64;
        struct first_name *v = cb_xcalloc(size, sizeof(*v));
        for (size_t i = 0; i < w->size_firsts; i++)
            if (w->firsts[i].ino)
                *first_slot(v, size, w->firsts[i].ino) = w->firsts[i];
        free(w->firsts);
        w->firsts = v;
        w->size_firsts = size;
    }
    struct first_name *s = first_slot(w->firsts, w->size_firsts, ino);
    if (s->ino)
        return s->path;
    *s = (struct first_name){ino, cb_xstrdup(path)};
    w->n_firsts++;
    return NULL;
}

/* ---- the walk ---- */

static int give(struct ext4_walk *w, ext2_ino_t ino, struct ext4_entry *out, struct cb_error *err)
{
    const char *path = w->path.len ? w->path.data : ".";
    int rc = ext4_read_entry(w->im, path, ino, out, &w->details, err);
    if (rc < 0)
        return rc;
    if (S_ISDIR(out->mode))
        w->pending = ino;
    else if (out->nlink > 1)
        out->link_to = first_name(w, ino, path);
    return 1;
}

static bool is_empty_lost_found(struct ext4_walk *w, ext2_ino_t ino)
{
    if (w->n != 1 || ino != INO_LOST_FOUND || strcmp(w->path.data, "lost+found") != 0)
        return false;
    struct folder f = {0};
    CB_AUTO_ERROR ignored = CB_ERROR_INIT; /* what is wrong with it comes up again */
    bool empty = read_folder(w, ino, "lost+found", &f, &ignored) == 0 && f.n == 0;
    folder_release(&f);
    return empty;
}

int ext4_walk_next(struct ext4_walk *w, struct ext4_entry *out, struct cb_error *err)
{
    if (!w->begun) {
        w->begun = true;
        int rc = give(w, EXT2_ROOT_INO, out, err);
        return rc == 1 && !w->pending ? ext4_damaged(".", "not a folder", 0, err) : rc;
    }
    if (w->pending) {
        int rc = enter(w, err);
        if (rc < 0)
            return rc;
    }
    while (w->n > 0) {
        struct folder *f = &w->v[w->n - 1];
        cut(&w->path, f->path_len);
        if (f->next == f->n) {
            folder_release(f);
            w->n--;
            continue;
        }
        CB_AUTO_FREE char *name = f->v[f->next].text;
        ext2_ino_t ino = f->v[f->next++].ino;
        if (w->path.len)
            (void)cb_buf_adds(&w->path, "/");
        if (cb_buf_adds(&w->path, name) < 0)
            return cb_fail(err, CB_E_LIMIT, "%.4096s in the image: a path of more than %zu bytes",
                           name, PATH_BYTES_MAX);
        if ((w->flags & EXT4_WALK_NO_EMPTY_LOST_FOUND) && is_empty_lost_found(w, ino))
            continue;
        return give(w, ino, out, err);
    }
    return 0;
}

void ext4_walk_skip(struct ext4_walk *w)
{
    w->pending = 0;
}

/* ---- one name ---- */

struct lookup {
    struct ext4_image *im;
    ext2_ino_t *way; /* inodes from the root to where it is */
    size_t n, cap;
    struct cb_buf at; /* the path of that */
    struct cb_buf left;
    unsigned hops;
};

static void push(struct lookup *l, ext2_ino_t ino, const char *name)
{
    l->way = cb_xgrow(l->way, &l->cap, l->n, sizeof(*l->way));
    l->way[l->n++] = ino;
    if (l->n == 1)
        return;
    if (l->n > 2)
        (void)cb_buf_adds(&l->at, "/");
    (void)cb_buf_adds(&l->at, name);
}

static void pop(struct lookup *l)
{
    if (l->n <= 1)
        return;
    l->n--;
    const char *slash = l->at.data ? strrchr(l->at.data, '/') : NULL;
    cut(&l->at, slash ? (size_t)(slash - l->at.data) : 0);
}

/* What is left becomes @target and then that. */
static int follow_link(struct lookup *l, const char *target, const char *path, struct cb_error *err)
{
    if (++l->hops > LINK_HOPS_MAX)
        return cb_fail(err, CB_E_CORRUPT, "%.4096s in the image: more than %d symbolic links", path,
                       LINK_HOPS_MAX);
    if (target[0] == '/') {
        l->n = 1;
        cut(&l->at, 0);
    }
    CB_AUTO_FREE char *rest = cb_buf_take(&l->left);
    cb_buf_init(&l->left, PATH_BYTES_MAX);
    if (cb_buf_addf(&l->left, "%s/%s", target, rest) < 0)
        return cb_fail(err, CB_E_LIMIT, "%.4096s in the image: too long", path);
    return 0;
}

/* One component further. */
static int step(struct lookup *l, const char *name, bool last, bool follow, const char *path,
                struct cb_error *err)
{
    if (strcmp(name, ".") == 0 || !*name)
        return 0;
    if (strcmp(name, "..") == 0) {
        pop(l);
        return 0;
    }
    union inode u;
    int rc = ext4_read_inode(l->im, path, l->way[l->n - 1], &u.i, err);
    if (rc < 0)
        return rc;
    ext2_ino_t ino = 0;
    errcode_t code = EXT2_ET_FILE_NOT_FOUND;
    if (S_ISDIR(u.i.i_mode) && strlen(name) <= CB_NAME_MAX)
        code = ext2fs_lookup(l->im->fs, l->way[l->n - 1], name, (int)strlen(name), NULL, &ino);
    if (code == EXT2_ET_FILE_NOT_FOUND)
        return cb_fail(err, CB_E_NOTFOUND, "no %.4096s in the image", path);
    if (code)
        return ext4_damaged(path, "look up a name", code, err);
    push(l, ino, name);
    if (l->n > TREE_DEPTH_MAX || l->at.over)
        return cb_fail(err, CB_E_LIMIT, "%.4096s in the image: too deep", path);
    struct ext4_entry e;
    rc = ext4_read_entry(l->im, path, ino, &e, &l->im->details, err);
    if (rc < 0 || !S_ISLNK(e.mode) || (last && !follow))
        return rc;
    pop(l);
    return follow_link(l, e.target, path, err);
}

int ext4_image_lookup(struct ext4_image *im, const char *path, bool follow, struct ext4_entry *out,
                      struct cb_error *err)
{
    struct lookup l = {.im = im};
    cb_buf_init(&l.at, PATH_BYTES_MAX);
    cb_buf_init(&l.left, PATH_BYTES_MAX);
    push(&l, EXT2_ROOT_INO, "");
    int rc = 0;
    if (cb_buf_adds(&l.left, path) < 0)
        rc = cb_fail(err, CB_E_LIMIT, "a path of more than %zu bytes", PATH_BYTES_MAX);
    while (rc == 0 && l.left.len > 0) {
        size_t n = strcspn(l.left.data, "/"), skip = n + strspn(l.left.data + n, "/");
        CB_AUTO_FREE char *name = cb_xstrndup(l.left.data, n);
        cb_buf_drop(&l.left, skip);
        rc = step(&l, name, l.left.len == 0 && skip == n, follow, path, err);
    }
    if (rc == 0) {
        free(im->found);
        im->found = cb_xstrdup(l.at.len ? l.at.data : ".");
        rc = ext4_read_entry(im, im->found, l.way[l.n - 1], out, &im->details, err);
    }
    free(l.way);
    cb_buf_release(&l.at);
    cb_buf_release(&l.left);
    return rc;
}

int ext4_image_find(struct ext4_image *im, const char *path, struct ext4_entry *out,
                    struct cb_error *err)
{
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    int rc = ext4_image_lookup(im, path, true, out, &miss);
    if (rc == -(int)CB_E_NOTFOUND || rc == -(int)CB_E_CORRUPT)
        return 0;
    return rc < 0 ? cb_error_move(err, &miss) : 1;
}
