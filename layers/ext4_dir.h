/* ext4_dir: a folder's blocks, made whole from its names: one block sorted by name, or a hash index
 * (htree) over blocks sorted by hash. ext2fs_link() would scan the folder once for every name. */
#pragma once

#include "layers/ext4_writer.h"
#include "layers/tree.h"

/* Writes the blocks of @folder at the frontier, frees its old ones, and sets its size and link
 * count. */
int dir_write(struct writer *w, const struct tree *t, node_id folder, struct cb_error *err);
