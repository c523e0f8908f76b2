/* tree: the names of an image, in memory; about 50 bytes a name.
 * What a name stands for (mode, owner, data) is in its inode in the image, not here. Nodes are
 * numbers, 0 is none; a number is used again after its node was removed. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint32_t node_id;
#define TREE_ROOT 1u
#define TREE_NAMES_MAX (1u << 23)
#define TREE_DEPTH_MAX 2048u

struct node {
    node_id parent;
    node_id hash_next;
    node_id sibling; /* next child of @parent */
    uint32_t name;   /* tree_name() */
    uint32_t ino;
    uint32_t dir;   /* tree_dir(); 0: not a folder */
    uint16_t layer; /* the last one that wrote it or something below it */
    uint8_t type;   /* EXT2_FT_* */
    bool dead;      /* removed, but still in its parent's list */
};

struct dir {
    node_id first;     /* child; the list holds dead ones too */
    uint32_t children; /* live ones */
    uint32_t next_dirty;
    node_id node;
    uint16_t depth;
    uint16_t explicit_layer; /* the last one that had an entry for it */
    bool dirty;              /* its blocks must be written again */
};

struct tree; /* opaque */
/* With a root whose inode is @root_ino. */
struct tree *tree_new(uint32_t root_ino);
void tree_free(struct tree *t);

/* Borrowed; stay where they are until the node or folder is removed. */
struct node *tree_node(const struct tree *t, node_id id);
struct dir *tree_dir(const struct tree *t, node_id id); /* of a node that is a folder */
const char *tree_name(const struct tree *t, node_id id, size_t *len); /* not terminated */
uint32_t tree_count(const struct tree *t); /* live names, the root not counted */

node_id tree_find(const struct tree *t, node_id parent, const char *name, size_t len);
/* @parent is a folder without such a name; 1 to 255 bytes. The new node is no folder yet.
 * 0 when there is no room for more names. */
node_id tree_add(struct tree *t, node_id parent, const char *name, size_t len);
/* Makes it a folder, empty and dirty. False when it lies too deep. */
bool tree_make_dir(struct tree *t, node_id id);
/* Makes an empty folder a plain name again. */
void tree_drop_dir(struct tree *t, node_id id);
/* Removes a node that is no folder or an empty one; its parent becomes dirty. */
void tree_remove(struct tree *t, node_id id);
/* The first live child, or 0. Removing that one again and again empties a folder in linear time. */
node_id tree_first_child(struct tree *t, node_id folder);
void tree_mark_dirty(struct tree *t, node_id folder);
/* Takes the list of dirty folders: *@out is owned, sorted by inode; their lists hold no dead nodes.
 */
size_t tree_take_dirty(struct tree *t, node_id **out);
