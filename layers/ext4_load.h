/* ext4_load: an image that image_finish() made, read back as the state in which its last layer
 * left the writer and the tree, so that another layer can follow.
 *
 * Everything that the end writes and that depends on the size (superblocks, descriptors, bitmaps,
 * journal, resize inode) is taken out again: what is left has the bytes that the same layers leave
 * when they are applied to nothing. What a tree knows beyond names (which layer wrote one, the
 * order of a folder's names) acts within one layer only, so that an image need not tell. */
#pragma once

#include "layers/ext4_writer.h"
#include "layers/tree.h"

/* @w has the image as its file (writer_clone()) and @t nothing but a root. The image may hold
 * anything: -CB_E_CORRUPT when it is not one of ours, or damaged where that can be seen from
 * superblock, bitmaps and folders. */
int ext4_load(struct writer *w, struct tree *t, struct cb_error *err);
