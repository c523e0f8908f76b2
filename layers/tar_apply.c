#include "layers/tar_apply.h"

#include "layers/ext4_super.h"
#include "layers/ext4_xattr.h"
#include "support/limits.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum {
    HOPS_MAX = 40,       /* symbolic links on the way to a parent, as Linux has it */
    LINKS_MAX = 65000,   /* EXT4_LINK_MAX */
    FAST_LINK_MAX = 59,  /* a target that fits where the block numbers would be */
    DEFAULT_MODE = 0755, /* of a parent that no entry describes */
    SHOWN_MAX = 200,     /* of a name in a message */
};

struct apply {
    struct writer *w;
    struct tree *t;
    const struct layer_input *in;
    struct tar_reader *r; /* NULL: the index */
    uint16_t layer;
    node_id root; /* the archive's: paths never leave it */
    bool upper;   /* whiteouts are kept, not carried out */
    const struct tar_entry *e;
    char last[SHOWN_MAX]; /* the name of the entry before, for messages */
    /* The parent of the last entry: neighbours in a tar mostly share it. */
    char dir[CB_PATH_MAX + 1];
    size_t dir_len;
    node_id dir_node; /* 0: not known */
};

/* A cleaned path: no leading, double or trailing slash, no "." */
struct path {
    char text[CB_PATH_MAX + 1];
    size_t len;
    size_t dir_len; /* of the part before the last component, without its slash */
    const char *name;
    size_t name_len;
};

/* ---- names ---- */

#define WHITEOUT ".wh."
#define WHITEOUT_LEN 4u

static bool is_whiteout(const char *name, size_t len)
{
    return len >= WHITEOUT_LEN && memcmp(name, WHITEOUT, WHITEOUT_LEN) == 0;
}

static int check_component(const char *name, size_t len, struct cb_error *err)
{
    if (len == 2 && memcmp(name, "..", 2) == 0)
        return cb_fail(err, CB_E_CORRUPT, "a path with \"..\"");
    if (len > CB_NAME_MAX + (is_whiteout(name, len) ? WHITEOUT_LEN : 0))
        return cb_fail(err, CB_E_CORRUPT, "a name of %zu bytes; the most is %u", len, CB_NAME_MAX);
    return 0;
}

static int clean(const char *in, struct path *p, struct cb_error *err)
{
    p->len = p->dir_len = 0;
    p->name = p->text;
    p->name_len = 0;
    while (*in) {
        size_t n = strcspn(in, "/");
        if (n > 0 && !(n == 1 && in[0] == '.')) {
            int rc = check_component(in, n, err);
            if (rc < 0)
                return rc;
            if (p->len + n + 1 > CB_PATH_MAX)
                return cb_fail(err, CB_E_LIMIT, "a path above %u bytes", CB_PATH_MAX);
            p->dir_len = p->len;
            if (p->len > 0)
                p->text[p->len++] = '/';
            p->name = p->text + p->len;
            p->name_len = n;
            memcpy(p->text + p->len, in, n);
            p->len += n;
        }
        in += n;
        in += *in == '/';
    }
    p->text[p->len] = '\0';
    return 0;
}

/* ---- inodes that come and go ---- */

static void touch(struct apply *a, node_id id)
{
    for (struct node *n; id; id = n->parent) {
        n = tree_node(a->t, id);
        if (n->layer == a->layer)
            return; /* and so are all above it */
        n->layer = a->layer;
    }
}

/* One name less for the inode of @id. */
static int release(struct apply *a, node_id id, struct cb_error *err)
{
    const struct node *n = tree_node(a->t, id);
    a->dir_node = 0;
    if (!n->dir) {
        union inode in;
        int rc = writer_get_inode(a->w, n->ino, &in, err);
        if (rc < 0)
            return rc;
        if (in.i.i_links_count > 1) {
            in.i.i_links_count--;
            return writer_put_inode(a->w, n->ino, &in, err);
        }
    }
    return writer_free_inode(a->w, n->ino, err);
}

/* Empties a folder, depth first and without recursion: strangers choose the depth. */
static int remove_children(struct apply *a, node_id folder, struct cb_error *err)
{
    node_id at = folder;
    for (;;) {
        node_id child = tree_first_child(a->t, at);
        if (child && tree_node(a->t, child)->dir && tree_first_child(a->t, child)) {
            at = child;
        } else if (child) {
            int rc = release(a, child, err);
            if (rc < 0)
                return rc;
            tree_remove(a->t, child);
        } else if (at == folder) {
            return 0;
        } else {
            at = tree_node(a->t, at)->parent; /* which now sees an empty folder and removes it */
        }
    }
}

static int remove_node(struct apply *a, node_id id, struct cb_error *err)
{
    int rc = tree_node(a->t, id)->dir ? remove_children(a, id, err) : 0;
    if (rc == 0)
        rc = release(a, id, err);
    if (rc == 0)
        tree_remove(a->t, id);
    return rc;
}

static int put_dir_inode(struct apply *a, uint32_t ino, struct cb_error *err)
{
    static const struct extents none = {NULL, 0, 0, 0};
    union inode in;
    inode_init(&in, S_IFDIR | DEFAULT_MODE, 0, 0, a->e->mtime, a->e->mtime_ns);
    int rc = writer_set_extents(a->w, ino, &in, &none, err);
    return rc < 0 ? rc : writer_put_inode(a->w, ino, &in, err);
}

/* Makes @id, a plain name, a new folder with the attributes of one that no entry describes. */
static int become_dir(struct apply *a, node_id id, struct cb_error *err)
{
    uint32_t ino;
    int rc = writer_new_inode(a->w, &ino, err);
    if (rc < 0)
        return rc;
    if (!tree_make_dir(a->t, id))
        return cb_fail(err, CB_E_LIMIT, "folders nested deeper than %u", TREE_DEPTH_MAX);
    tree_node(a->t, id)->ino = ino;
    tree_node(a->t, id)->type = EXT2_FT_DIR;
    writer_count_dirs(a->w, ino, 1);
    return put_dir_inode(a, ino, err);
}

static int add_name(struct apply *a, node_id parent, const char *name, size_t len, node_id *id,
                    struct cb_error *err)
{
    *id = tree_add(a->t, parent, name, len);
    return *id ? 0 : cb_fail(err, CB_E_LIMIT, "more than %u names", TREE_NAMES_MAX);
}

/* ---- parents ---- */

static int read_symlink(struct apply *a, uint32_t ino, char *target, struct cb_error *err)
{
    union inode in;
    int rc = writer_get_inode(a->w, ino, &in, err);
    if (rc < 0)
        return rc;
    uint64_t len = inode_size(&in);
    if (!S_ISLNK(in.i.i_mode) || len >= EXT4_BLOCK) /* in an image that was loaded */
        return cb_fail(err, CB_E_CORRUPT, "the inode of a symbolic link is damaged");
    if (len <= FAST_LINK_MAX) {
        memcpy(target, in.i.i_block, (size_t)len);
    } else {
        char block[EXT4_BLOCK];
        struct extents x = {NULL, 0, 0, 0};
        rc = writer_get_extents(a->w, ino, &in, &x, NULL, err);
        if (rc == 0 && x.n != 1)
            rc = cb_fail(err, CB_E_CORRUPT, "the inode of a symbolic link is damaged");
        if (rc == 0)
            rc = writer_read_block(a->w, x.v[0].start, block, err);
        extents_release(&x);
        if (rc < 0)
            return rc;
        memcpy(target, block, (size_t)len);
    }
    target[len] = '\0';
    return 0;
}

struct walk {
    char rest[2 * (CB_PATH_MAX + 1)]; /* what is still to be walked */
    const char *at;
    node_id node;
    int hops;
    bool create;
};

/* The rest of the way goes through the link at @link first. */
static int follow(struct apply *a, struct walk *k, node_id link, struct cb_error *err)
{
    char target[EXT4_BLOCK + 1], rest[CB_PATH_MAX + 1];
    if (++k->hops > HOPS_MAX)
        return cb_fail(err, CB_E_CORRUPT, "its parent leads through more than %d symbolic links",
                       HOPS_MAX);
    int rc = read_symlink(a, tree_node(a->t, link)->ino, target, err);
    if (rc < 0)
        return rc;
    size_t n = strlen(k->at);
    if (n + strlen(target) > CB_PATH_MAX)
        return cb_fail(err, CB_E_CORRUPT, "its parent leads through too long symbolic links");
    memcpy(rest, k->at, n + 1);
    (void)snprintf(k->rest, sizeof(k->rest), "%s/%s", target, rest);
    k->at = k->rest;
    if (target[0] == '/')
        k->node = a->root;
    return 0;
}

/* One component down. Returns 1, 0 when there is no such folder, or an error. */
static int step(struct apply *a, struct walk *k, const char *name, size_t len, struct cb_error *err)
{
    if (len == 0 || (len == 1 && name[0] == '.'))
        return 1;
    if (len == 2 && memcmp(name, "..", 2) == 0) { /* from a link; the root is its own parent */
        if (k->node != a->root)
            k->node = tree_node(a->t, k->node)->parent;
        return 1;
    }
    if (len > CB_NAME_MAX)
        return cb_fail(err, CB_E_CORRUPT, "a name of %zu bytes", len);
    node_id id = tree_find(a->t, k->node, name, len);
    if (!id) {
        if (!k->create)
            return 0;
        int rc = add_name(a, k->node, name, len, &id, err);
        if (rc == 0)
            rc = become_dir(a, id, err);
        if (rc < 0)
            return rc;
    }
    if (tree_node(a->t, id)->dir) {
        k->node = id;
        return 1;
    }
    if (tree_node(a->t, id)->type == EXT2_FT_SYMLINK) {
        int rc = follow(a, k, id, err);
        return rc < 0 ? rc : 1;
    }
    if (!k->create)
        return 0;
    return cb_fail(err, CB_E_CORRUPT, "its parent %.*s is not a folder", (int)len, name);
}

/* The folder that @p's last component is in, made when @create; *@out is 0 when it is missing. */
static int find_parent(struct apply *a, const struct path *p, bool create, node_id *out,
                       struct cb_error *err)
{
    if (a->dir_node && a->dir_len == p->dir_len && memcmp(a->dir, p->text, p->dir_len) == 0) {
        *out = a->dir_node;
        return 0;
    }
    struct walk k = {.node = a->root, .create = create};
    memcpy(k.rest, p->text, p->dir_len);
    k.rest[p->dir_len] = '\0';
    k.at = k.rest;
    *out = 0;
    while (*k.at) {
        const char *name = k.at;
        size_t n = strcspn(name, "/");
        k.at += n + (name[n] == '/');
        char copy[CB_NAME_MAX + 1];
        size_t kept = n < sizeof(copy) ? n : sizeof(copy);
        memcpy(copy, name, kept); /* follow() overwrites the text */
        int rc = step(a, &k, copy, n, err);
        if (rc <= 0)
            return rc;
    }
    memcpy(a->dir, p->text, p->dir_len);
    a->dir_len = p->dir_len;
    a->dir_node = k.node;
    *out = k.node;
    return 0;
}

/* ---- whiteouts ---- */

/* A folder that this layer only passed through had its description from below: that is gone. */
static int reset_dir(struct apply *a, node_id id, struct cb_error *err)
{
    const struct node *n = tree_node(a->t, id);
    if (tree_dir(a->t, id)->explicit_layer == a->layer || n->ino == INO_LOST_FOUND)
        return 0;
    union inode in;
    int rc = writer_get_inode(a->w, n->ino, &in, err);
    if (rc == 0)
        rc = xattrs_clear(a->w, n->ino, &in, err);
    if (rc < 0)
        return rc;
    in.i.i_mode = S_IFDIR | DEFAULT_MODE;
    inode_set_owner(&in, 0, 0);
    inode_set_times(&in, a->e->mtime, a->e->mtime_ns);
    return writer_put_inode(a->w, n->ino, &in, err);
}

static int hide_children(struct apply *a, node_id folder, struct cb_error *err);

/* Removes what lower layers have at @id, keeps what this one wrote. Depth is TREE_DEPTH_MAX at
 * most. */
static int hide(struct apply *a, node_id id, struct cb_error *err)
{
    const struct node *n = tree_node(a->t, id);
    if (n->layer != a->layer && n->ino != INO_LOST_FOUND)
        return remove_node(a, id, err);
    if (!n->dir)
        return 0;
    int rc = hide_children(a, id, err);
    return rc < 0 ? rc : reset_dir(a, id, err);
}

static int hide_children(struct apply *a, node_id folder, struct cb_error *err)
{
    int rc = 0;
    for (node_id id = tree_dir(a->t, folder)->first, next; rc == 0 && id; id = next) {
        next = tree_node(a->t, id)->sibling;
        if (!tree_node(a->t, id)->dead)
            rc = hide(a, id, err);
    }
    return rc;
}

/* ---- an upper of overlayfs ---- */

/* Name @len bytes of @name are hidden in what is below, or all that is there. */
static int keep_whiteout(struct apply *a, const struct path *p, const char *name, size_t len,
                         bool opaque, struct cb_error *err)
{
    union inode in;
    uint32_t ino;
    node_id parent, id = 0;
    int rc = find_parent(a, p, true, &parent, err);
    if (rc < 0)
        return rc;
    if (opaque)
        return xattr_mark(a->w, tree_node(a->t, parent)->ino, UPPER_OPAQUE, "y", err);
    if ((id = tree_find(a->t, parent, name, len)) != 0) /* what was hidden came back */
        return tree_node(a->t, id)->dir
                   ? xattr_mark(a->w, tree_node(a->t, id)->ino, UPPER_OPAQUE, "y", err)
                   : 0;
    rc = add_name(a, parent, name, len, &id, err);
    if (rc == 0)
        rc = writer_new_inode(a->w, &ino, err);
    if (rc < 0)
        return rc;
    tree_node(a->t, id)->ino = ino;
    tree_node(a->t, id)->type = EXT2_FT_CHRDEV;
    touch(a, id);
    inode_init(&in, S_IFCHR, 0, 0, a->e->mtime, a->e->mtime_ns);
    return writer_put_inode(a->w, ino, &in, err);
}

static int mark_implicit(struct apply *a, node_id folder, struct cb_error *err)
{
    int rc = 0;
    if (tree_dir(a->t, folder)->explicit_layer != a->layer)
        rc = xattr_mark(a->w, tree_node(a->t, folder)->ino, UPPER_IMPLICIT, "y", err);
    for (node_id id = tree_dir(a->t, folder)->first; rc == 0 && id;
         id = tree_node(a->t, id)->sibling)
        if (!tree_node(a->t, id)->dead && tree_node(a->t, id)->dir)
            rc = mark_implicit(a, id, err);
    return rc;
}

/* A name that starts with ".wh.". */
static int apply_whiteout(struct apply *a, const struct path *p, struct cb_error *err)
{
    const char *name = p->name + WHITEOUT_LEN;
    size_t len = p->name_len - WHITEOUT_LEN;
    bool opaque = len == strlen(".wh..opq") && memcmp(name, ".wh..opq", len) == 0;
    if (!opaque && is_whiteout(name, len))
        return 0; /* ".wh..wh.plnk" and its kin: bookkeeping of AUFS */
    if (len == 0 || (len == 1 && name[0] == '.') || (len == 2 && memcmp(name, "..", 2) == 0))
        return cb_fail(err, CB_E_CORRUPT, "a whiteout of no name");
    if (a->upper)
        return keep_whiteout(a, p, name, len, opaque, err);
    node_id parent;
    int rc = find_parent(a, p, false, &parent, err);
    if (rc < 0 || !parent)
        return rc;
    if (opaque)
        return hide_children(a, parent, err);
    node_id id = tree_find(a->t, parent, name, len);
    return id ? hide(a, id, err) : 0;
}

/* ---- entries ---- */

static bool next_xattr(struct apply *a, const char **name, const void **value, size_t *len)
{
    return a->r ? tar_reader_xattr(a->r, name, value, len)
                : index_next_xattr(a->in->index, name, value, len);
}

static int set_xattrs(struct apply *a, uint32_t ino, union inode *in, struct cb_error *err)
{
    struct xattrs x;
    const char *name;
    const void *value;
    size_t len;
    int rc = xattrs_begin(&x, a->w, ino, in, err);
    while (rc == 0 && next_xattr(a, &name, &value, &len)) {
        index_xattr(a->in->keep_index, name, value, len);
        rc = xattrs_add(&x, name, value, len, err);
    }
    return xattrs_end(&x, rc, err);
}

/* Describes an existing folder anew; its names stay. */
static int describe_dir(struct apply *a, node_id id, struct cb_error *err)
{
    uint32_t ino = tree_node(a->t, id)->ino;
    union inode in;
    int rc = writer_get_inode(a->w, ino, &in, err);
    if (rc < 0)
        return rc;
    in.i.i_mode = (uint16_t)(S_IFDIR | a->e->mode);
    inode_set_owner(&in, a->e->uid, a->e->gid);
    inode_set_times(&in, a->e->mtime, a->e->mtime_ns);
    rc = set_xattrs(a, ino, &in, err);
    if (rc < 0)
        return rc;
    tree_dir(a->t, id)->explicit_layer = a->layer;
    return writer_put_inode(a->w, ino, &in, err);
}

/* The node of @name, free for a new inode: what was there is gone. */
static int make_room(struct apply *a, node_id parent, const struct path *p, node_id *out,
                     struct cb_error *err)
{
    node_id id = tree_find(a->t, parent, p->name, p->name_len);
    *out = id;
    if (!id)
        return add_name(a, parent, p->name, p->name_len, out, err);
    if (tree_node(a->t, id)->ino == INO_LOST_FOUND)
        return cb_fail(err, CB_E_CORRUPT, "lost+found of the root folder can only be a folder");
    int rc = tree_node(a->t, id)->dir ? remove_children(a, id, err) : 0;
    if (rc == 0)
        rc = release(a, id, err);
    if (rc < 0)
        return rc;
    if (tree_node(a->t, id)->dir)
        tree_drop_dir(a->t, id);
    tree_mark_dirty(a->t, parent);
    return 0;
}

static int apply_dir(struct apply *a, node_id parent, const struct path *p, struct cb_error *err)
{
    node_id id = tree_find(a->t, parent, p->name, p->name_len);
    bool hides = a->upper && id && tree_node(a->t, id)->type == EXT2_FT_CHRDEV;
    int rc = 0;
    if (!id || !tree_node(a->t, id)->dir) {
        rc = make_room(a, parent, p, &id, err);
        if (rc == 0)
            rc = become_dir(a, id, err);
    }
    if (rc < 0)
        return rc;
    touch(a, id);
    rc = describe_dir(a, id, err);
    if (rc == 0 && hides)
        rc = xattr_mark(a->w, tree_node(a->t, id)->ino, UPPER_OPAQUE, "y", err);
    return rc;
}

static int copy_data(struct apply *a, struct extents *x, struct cb_error *err)
{
    const void *p;
    size_t n;
    uint64_t at;
    int rc;
    while ((rc = tar_reader_data(a->r, &p, &n, &at, err)) > 0) {
        rc = writer_data(a->w, x, at, p, n, err);
        if (rc < 0)
            return rc;
    }
    return rc;
}

/* The same blocks from where they lie already. */
static int copy_blocks(struct apply *a, struct extents *x, struct cb_error *err)
{
    uint32_t logical, count;
    uint64_t stream, from;
    while (index_next_blocks(a->in->index, &logical, &count, &stream)) {
        while (count > 0) {
            int fd, rc;
            uint64_t n = place_find(a->in->place, stream, &fd, &from);
            uint32_t now = n < count ? (uint32_t)n : count;
            if (n == 0)
                return cb_fail(err, CB_E_CORRUPT, "the record of where its data lies is damaged");
            rc = fd < 0 ? writer_owe(a->w, x, logical, now, err)
                        : writer_copy(a->w, x, logical, now, fd, from, err);
            if (rc < 0)
                return rc;
            logical += now;
            stream += now;
            count -= now;
        }
    }
    return 0;
}

static int fill_file(struct apply *a, uint32_t ino, union inode *in, struct cb_error *err)
{
    struct extents x = {NULL, 0, 0, 0};
    inode_set_size(in, a->e->size);
    int rc = a->r ? copy_data(a, &x, err) : copy_blocks(a, &x, err);
    index_blocks(a->in->keep_index, &x);
    places_add(a->in->keep_places, &x);
    if (rc == 0)
        rc = writer_set_extents(a->w, ino, in, &x, err);
    extents_release(&x);
    return rc;
}

static int fill_symlink(struct apply *a, uint32_t ino, union inode *in, struct cb_error *err)
{
    size_t len = strlen(a->e->link);
    if (len == 0)
        return cb_fail(err, CB_E_CORRUPT, "a symbolic link to nothing");
    if (len >= EXT4_BLOCK)
        return cb_fail(err, CB_E_LIMIT, "a symbolic link to a path of %zu bytes", len);
    inode_set_size(in, len);
    if (len <= FAST_LINK_MAX) {
        memcpy(in->i.i_block, a->e->link, len);
        return 0;
    }
    char block[EXT4_BLOCK] = {0};
    struct extents x = {NULL, 0, 0, 0};
    memcpy(block, a->e->link, len);
    index_link_block(a->in->keep_index);
    int rc = writer_alloc(a->w, &x, 0, 1, err);
    if (rc == 0)
        rc = writer_blocks(a->w, &x, 0, block, sizeof(block), err);
    if (rc == 0)
        rc = writer_set_extents(a->w, ino, in, &x, err);
    extents_release(&x);
    return rc;
}

static int fill_device(struct apply *a, union inode *in, struct cb_error *err)
{
    uint32_t major = a->e->major, minor = a->e->minor;
    if (a->e->kind == TAR_CHAR && major == 0 && minor == 0)
        return cb_fail(err, CB_E_CORRUPT, "a character device 0:0, which only overlayfs may make");
    if (major < 256 && minor < 256)
        in->i.i_block[0] = major << 8 | minor;
    else
        in->i.i_block[1] = (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
    return 0;
}

static const struct {
    uint16_t mode;
    uint8_t type;
} kinds[] = {
    [TAR_FILE] = {S_IFREG, EXT2_FT_REG_FILE},   [TAR_DIR] = {S_IFDIR, EXT2_FT_DIR},
    [TAR_SYMLINK] = {S_IFLNK, EXT2_FT_SYMLINK}, [TAR_HARDLINK] = {0, 0},
    [TAR_CHAR] = {S_IFCHR, EXT2_FT_CHRDEV},     [TAR_BLOCK] = {S_IFBLK, EXT2_FT_BLKDEV},
    [TAR_FIFO] = {S_IFIFO, EXT2_FT_FIFO},
};

/* Everything but folders and hard links. */
static int apply_node(struct apply *a, node_id parent, const struct path *p, struct cb_error *err)
{
    const struct tar_entry *e = a->e;
    uint32_t ino, mode = e->kind == TAR_SYMLINK ? 0777 : e->mode;
    node_id id;
    int rc = make_room(a, parent, p, &id, err);
    if (rc == 0)
        rc = writer_new_inode(a->w, &ino, err);
    if (rc < 0)
        return rc;
    index_inode(a->in->keep_index);
    tree_node(a->t, id)->ino = ino;
    tree_node(a->t, id)->type = kinds[e->kind].type;
    touch(a, id);
    union inode in;
    inode_init(&in, kinds[e->kind].mode | mode, e->uid, e->gid, e->mtime, e->mtime_ns);
    if (e->kind == TAR_FILE)
        rc = fill_file(a, ino, &in, err);
    else if (e->kind == TAR_SYMLINK)
        rc = fill_symlink(a, ino, &in, err);
    else if (e->kind != TAR_FIFO)
        rc = fill_device(a, &in, err);
    if (rc == 0)
        rc = set_xattrs(a, ino, &in, err);
    return rc < 0 ? rc : writer_put_inode(a->w, ino, &in, err);
}

/* The name that a hard link points at: from the archive's root, its last component not followed. */
static int find_target(struct apply *a, node_id *out, struct cb_error *err)
{
    struct path p;
    node_id parent = 0;
    int rc = clean(a->e->link, &p, err);
    *out = 0;
    if (rc == 0 && p.name_len > 0)
        rc = find_parent(a, &p, false, &parent, err);
    if (rc < 0)
        return cb_wrap(err, "the target of a hard link");
    if (p.name_len == 0)
        return cb_fail(err, CB_E_CORRUPT, "a hard link to the root");
    if (parent)
        *out = tree_find(a->t, parent, p.name, p.name_len);
    if (!*out)
        return cb_fail(err, CB_E_CORRUPT, "a hard link to %.256s, which does not exist", p.text);
    if (tree_node(a->t, *out)->dir)
        return cb_fail(err, CB_E_CORRUPT, "a hard link to %.256s, which is a folder", p.text);
    return 0;
}

static int apply_hardlink(struct apply *a, node_id parent, const struct path *p,
                          struct cb_error *err)
{
    node_id target, id;
    int rc = find_target(a, &target, err);
    if (rc < 0)
        return rc;
    if (tree_find(a->t, parent, p->name, p->name_len) == target) { /* to itself */
        touch(a, target);
        return 0;
    }
    uint32_t ino = tree_node(a->t, target)->ino;
    uint8_t type = tree_node(a->t, target)->type;
    union inode in;
    rc = writer_get_inode(a->w, ino, &in, err);
    if (rc < 0)
        return rc;
    if (in.i.i_links_count >= LINKS_MAX)
        return cb_fail(err, CB_E_LIMIT, "more than %d hard links to one file", LINKS_MAX);
    in.i.i_links_count++; /* first: the target may go with what is replaced */
    rc = writer_put_inode(a->w, ino, &in, err);
    if (rc == 0)
        rc = make_room(a, parent, p, &id, err);
    if (rc < 0)
        return rc;
    tree_node(a->t, id)->ino = ino;
    tree_node(a->t, id)->type = type;
    touch(a, id);
    return 0;
}

/* Names that only tools for lazy pulling and AUFS read. */
static bool is_bookkeeping(const struct path *p)
{
    static const char *const names[] = {"stargz.index.json", ".prefetch.landmark",
                                        ".no.prefetch.landmark"};
    if (p->dir_len == 0)
        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
            if (strcmp(p->text, names[i]) == 0)
                return true;
    return p->dir_len > 0 && strncmp(p->text, ".wh..wh.", 8) == 0;
}

static int apply_entry(struct apply *a, struct cb_error *err)
{
    struct path p;
    int rc = clean(a->e->path, &p, err);
    if (rc < 0)
        return rc;
    if (p.len == 0) {
        if (a->e->kind != TAR_DIR)
            return cb_fail(err, CB_E_CORRUPT, "the root can only be a folder");
        touch(a, a->root);
        return describe_dir(a, a->root, err);
    }
    if (is_bookkeeping(&p))
        return 0;
    if (is_whiteout(p.name, p.name_len))
        return apply_whiteout(a, &p, err);
    node_id parent;
    rc = find_parent(a, &p, true, &parent, err);
    if (rc < 0)
        return rc;
    if (a->e->kind == TAR_DIR)
        return apply_dir(a, parent, &p, err);
    if (a->e->kind == TAR_HARDLINK)
        return apply_hardlink(a, parent, &p, err);
    return apply_node(a, parent, &p, err);
}

/* A stranger's name for a message: no control characters, not too long. */
static void show(const char *path, char *out)
{
    size_t n = 0;
    for (; path[n] && n < SHOWN_MAX - 1; n++)
        out[n] = (unsigned char)path[n] < 0x20 || path[n] == 0x7f ? '?' : path[n];
    out[n] = '\0';
}

static int wrap_entry(struct apply *a, struct cb_error *err)
{
    char name[SHOWN_MAX];
    if (!a->e->path)
        return a->last[0] ? cb_wrap(err, "after entry %s", a->last) : -(int)err->code;
    show(a->e->path, name);
    return cb_wrap(err, "entry %s", name);
}

static int apply_entries(struct apply *a, struct tar_entry *e, struct cb_error *err)
{
    int rc;
    while ((rc = a->r ? tar_reader_next(a->r, e, err) : index_next(a->in->index, e, err)) > 0) {
        index_entry(a->in->keep_index, e);
        if ((rc = apply_entry(a, err)) < 0)
            break;
        index_entry_end(a->in->keep_index);
        show(e->path, a->last);
    }
    return rc < 0 ? wrap_entry(a, err) : 0;
}

int tar_apply_input(struct writer *w, struct tree *t, uint16_t layer, const struct layer_input *in,
                    struct cb_error *err)
{
    struct tar_entry e = {.path = NULL};
    struct apply a = {.w = w, .t = t, .in = in, .layer = layer, .root = TREE_ROOT, .e = &e};
    int rc = in->tar ? tar_reader_open(in->tar, &a.r, err) : 0;
    if (rc < 0)
        return rc;
    rc = apply_entries(&a, &e, err);
    tar_reader_close(a.r);
    if (rc == 0)
        rc = image_write_dirs(w, t, err);
    if (rc == 0)
        writer_end_layer(w);
    return rc;
}

int tar_apply_upper(struct writer *w, struct tree *t, uint16_t layer, const char *name,
                    const struct tar_source *source, struct cb_error *err)
{
    const struct layer_input in = {.tar = source};
    struct tar_entry e = {.path = NULL};
    struct apply a = {.w = w, .t = t, .in = &in, .layer = layer, .upper = true, .e = &e};
    int rc = add_name(&a, TREE_ROOT, name, strlen(name), &a.root, err);
    if (rc == 0)
        rc = become_dir(&a, a.root, err);
    if (rc == 0)
        rc = tar_reader_open(source, &a.r, err);
    if (rc == 0)
        rc = apply_entries(&a, &e, err);
    tar_reader_close(a.r);
    if (rc == 0)
        rc = mark_implicit(&a, a.root, err);
    if (rc == 0)
        rc = image_write_dirs(w, t, err);
    if (rc == 0)
        writer_end_layer(w);
    return rc;
}

int tar_apply_layer(struct writer *w, struct tree *t, uint16_t layer,
                    const struct tar_source *source, struct cb_error *err)
{
    const struct layer_input in = {.tar = source};
    return tar_apply_input(w, t, layer, &in, err);
}
