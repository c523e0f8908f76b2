#include "layers/tree.h"

#include "support/mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define NODE_SHIFT 12 /* nodes a piece */
#define DIR_SHIFT 10
#define NAME_SHIFT 18 /* bytes of names a piece */
#define PIECE(shift) (1u << (shift))

/* An array that grows by pieces and never moves. */
struct pieces {
    void **v;
    size_t n, cap;
};

struct tree {
    struct pieces nodes, dirs, names;
    uint32_t node_end, dir_end, name_end; /* first never used; 0 is never used */
    node_id free_node;                    /* chained by `sibling` */
    uint32_t free_dir;                    /* chained by `next_dirty` */
    uint32_t first_dirty;
    uint32_t dirty_count;
    uint32_t count;
    node_id *heads;
    uint32_t n_heads; /* a power of two */
    uint64_t seed;    /* strangers choose the names: not the buckets */
};

static void piece_for(struct pieces *p, uint32_t index, unsigned shift, size_t size)
{
    while (p->n <= index >> shift) {
        p->v = cb_xgrow(p->v, &p->cap, p->n, sizeof(*p->v));
        p->v[p->n++] = cb_xmalloc(size << shift);
    }
}

static void pieces_free(struct pieces *p)
{
    for (size_t i = 0; i < p->n; i++)
        free(p->v[i]);
    free(p->v);
}

struct node *tree_node(const struct tree *t, node_id id)
{
    return (struct node *)t->nodes.v[id >> NODE_SHIFT] + (id & (PIECE(NODE_SHIFT) - 1));
}

static struct dir *dir_at(const struct tree *t, uint32_t index)
{
    return (struct dir *)t->dirs.v[index >> DIR_SHIFT] + (index & (PIECE(DIR_SHIFT) - 1));
}

struct dir *tree_dir(const struct tree *t, node_id id)
{
    return dir_at(t, tree_node(t, id)->dir);
}

static const unsigned char *name_at(const struct tree *t, uint32_t name)
{
    return (const unsigned char *)t->names.v[name >> NAME_SHIFT] + (name & (PIECE(NAME_SHIFT) - 1));
}

const char *tree_name(const struct tree *t, node_id id, size_t *len)
{
    const unsigned char *p = name_at(t, tree_node(t, id)->name);
    *len = p[0];
    return (const char *)p + 1;
}

uint32_t tree_count(const struct tree *t)
{
    return t->count;
}

static uint32_t bucket(const struct tree *t, node_id parent, const char *name, size_t len)
{
    uint64_t h = t->seed ^ (uint64_t)parent * 0x9e3779b97f4a7c15u;
    while (len > 0) {
        uint64_t w = 0;
        size_t n = len < 8 ? len : 8;
        memcpy(&w, name, n);
        h = (h ^ w ^ (uint64_t)n << 56) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
        h = h * 0xc4ceb9fe1a85ec53u + t->seed;
        name += n;
        len -= n;
    }
    h ^= h >> 29;
    return (uint32_t)h & (t->n_heads - 1);
}

static void link_hash(struct tree *t, node_id id)
{
    struct node *n = tree_node(t, id);
    size_t len;
    const char *name = tree_name(t, id, &len);
    uint32_t b = bucket(t, n->parent, name, len);
    n->hash_next = t->heads[b];
    t->heads[b] = id;
}

static void unlink_hash(struct tree *t, node_id id)
{
    struct node *n = tree_node(t, id);
    size_t len;
    const char *name = tree_name(t, id, &len);
    node_id *at = &t->heads[bucket(t, n->parent, name, len)];
    while (*at != id)
        at = &tree_node(t, *at)->hash_next;
    *at = n->hash_next;
}

static void grow_hash(struct tree *t)
{
    uint32_t old = t->n_heads;
    node_id *heads = t->heads;
    t->n_heads = old ? old * 2 : 1024;
    t->heads = cb_xcalloc(t->n_heads, sizeof(*t->heads));
    for (uint32_t b = 0; b < old; b++)
        for (node_id id = heads[b], next; id; id = next) {
            next = tree_node(t, id)->hash_next;
            link_hash(t, id);
        }
    free(heads);
}

static node_id new_node(struct tree *t)
{
    node_id id = t->free_node;
    if (id) {
        t->free_node = tree_node(t, id)->sibling;
    } else {
        id = t->node_end++;
        piece_for(&t->nodes, id, NODE_SHIFT, sizeof(struct node));
    }
    memset(tree_node(t, id), 0, sizeof(struct node));
    return id;
}

static void free_node(struct tree *t, node_id id)
{
    tree_node(t, id)->sibling = t->free_node;
    t->free_node = id;
}

/* 0 when the names are full. */
static uint32_t new_name(struct tree *t, const char *name, size_t len)
{
    uint32_t room = PIECE(NAME_SHIFT) - (t->name_end & (PIECE(NAME_SHIFT) - 1));
    if (t->name_end > UINT32_MAX - 2 * PIECE(NAME_SHIFT))
        return 0;
    if (room < len + 1)
        t->name_end += room;
    uint32_t at = t->name_end;
    piece_for(&t->names, at, NAME_SHIFT, 1);
    unsigned char *p =
        (unsigned char *)t->names.v[at >> NAME_SHIFT] + (at & (PIECE(NAME_SHIFT) - 1));
    p[0] = (unsigned char)len;
    memcpy(p + 1, name, len);
    t->name_end += (uint32_t)len + 1;
    return at;
}

struct tree *tree_new(uint32_t root_ino)
{
    struct tree *t = cb_xcalloc(1, sizeof(*t));
    t->node_end = t->dir_end = t->name_end = 1;
    if (getrandom(&t->seed, sizeof(t->seed), 0) != (ssize_t)sizeof(t->seed))
        t->seed = (uint64_t)(uintptr_t)t;
    grow_hash(t);
    node_id root = new_node(t); /* 1 */
    tree_node(t, root)->ino = root_ino;
    tree_make_dir(t, root);
    return t;
}

void tree_free(struct tree *t)
{
    if (!t)
        return;
    pieces_free(&t->nodes);
    pieces_free(&t->dirs);
    pieces_free(&t->names);
    free(t->heads);
    free(t);
}

node_id tree_find(const struct tree *t, node_id parent, const char *name, size_t len)
{
    node_id id = t->heads[bucket(t, parent, name, len)];
    for (; id; id = tree_node(t, id)->hash_next) {
        const struct node *n = tree_node(t, id);
        const unsigned char *p = name_at(t, n->name);
        if (n->parent == parent && p[0] == len && memcmp(p + 1, name, len) == 0)
            return id;
    }
    return 0;
}

node_id tree_add(struct tree *t, node_id parent, const char *name, size_t len)
{
    uint32_t text = t->count < TREE_NAMES_MAX ? new_name(t, name, len) : 0;
    if (!text)
        return 0;
    node_id id = new_node(t);
    struct node *n = tree_node(t, id);
    struct dir *d = tree_dir(t, parent);
    n->parent = parent;
    n->name = text;
    n->sibling = d->first;
    d->first = id;
    d->children++;
    if (++t->count > 2 * t->n_heads) /* chains of two: half the memory of the heads */
        grow_hash(t);
    link_hash(t, id);
    tree_mark_dirty(t, parent);
    return id;
}

bool tree_make_dir(struct tree *t, node_id id)
{
    struct node *n = tree_node(t, id);
    unsigned depth = n->parent ? tree_dir(t, n->parent)->depth + 1u : 0;
    if (depth > TREE_DEPTH_MAX)
        return false;
    uint32_t index = t->free_dir;
    if (index) {
        t->free_dir = dir_at(t, index)->next_dirty;
    } else {
        index = t->dir_end++;
        piece_for(&t->dirs, index, DIR_SHIFT, sizeof(struct dir));
    }
    struct dir *d = dir_at(t, index);
    memset(d, 0, sizeof(*d));
    d->node = id;
    d->depth = (uint16_t)depth;
    n->dir = index;
    tree_mark_dirty(t, id);
    return true;
}

void tree_mark_dirty(struct tree *t, node_id folder)
{
    struct node *n = tree_node(t, folder);
    struct dir *d = dir_at(t, n->dir);
    if (d->dirty)
        return;
    d->dirty = true;
    d->next_dirty = t->first_dirty;
    t->first_dirty = n->dir;
    t->dirty_count++;
}

/* Dead children, which nobody else knows. */
static void drop_dead(struct tree *t, struct dir *d)
{
    node_id *at = &d->first;
    while (*at) {
        struct node *n = tree_node(t, *at);
        node_id id = *at;
        if (n->dead) {
            *at = n->sibling;
            free_node(t, id);
        } else {
            at = &n->sibling;
        }
    }
}

void tree_drop_dir(struct tree *t, node_id id)
{
    struct node *n = tree_node(t, id);
    struct dir *d = dir_at(t, n->dir);
    drop_dead(t, d);
    d->node = 0;
    if (!d->dirty) { /* else tree_take_dirty() frees it when it takes it off its list */
        d->next_dirty = t->free_dir;
        t->free_dir = n->dir;
    }
    n->dir = 0;
}

void tree_remove(struct tree *t, node_id id)
{
    struct node *n = tree_node(t, id);
    if (n->dir)
        tree_drop_dir(t, id);
    unlink_hash(t, id);
    t->count--;
    tree_mark_dirty(t, n->parent);
    struct dir *d = tree_dir(t, n->parent);
    d->children--;
    if (d->first == id) {
        d->first = n->sibling;
        free_node(t, id);
    } else {
        n->dead = true;
    }
}

node_id tree_first_child(struct tree *t, node_id folder)
{
    struct dir *d = tree_dir(t, folder);
    while (d->first && tree_node(t, d->first)->dead) {
        node_id id = d->first;
        d->first = tree_node(t, id)->sibling;
        free_node(t, id);
    }
    return d->first;
}

struct dirty {
    uint32_t ino;
    node_id node;
};

static int by_ino(const void *a, const void *b)
{
    uint32_t x = ((const struct dirty *)a)->ino, y = ((const struct dirty *)b)->ino;
    return x < y ? -1 : x > y;
}

size_t tree_take_dirty(struct tree *t, node_id **out)
{
    struct dirty *list = cb_xcalloc(t->dirty_count + 1, sizeof(*list));
    size_t n = 0;
    for (uint32_t index = t->first_dirty, next; index; index = next) {
        struct dir *d = dir_at(t, index);
        next = d->next_dirty;
        d->dirty = false;
        if (d->node) {
            drop_dead(t, d);
            list[n++] = (struct dirty){tree_node(t, d->node)->ino, d->node};
        } else {
            d->next_dirty = t->free_dir;
            t->free_dir = index;
        }
    }
    t->first_dirty = 0;
    t->dirty_count = 0;
    qsort(list, n, sizeof(*list), by_ino);
    node_id *nodes = cb_xcalloc(n + 1, sizeof(*nodes));
    for (size_t i = 0; i < n; i++)
        nodes[i] = list[i].node;
    free(list);
    *out = nodes;
    return n;
}
