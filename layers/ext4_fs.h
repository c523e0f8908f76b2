/* ext4_fs: libext2fs on the file of a writer: it reads and writes metadata through the writer's
 * buffers, in the geometry of ext4_layout. What it stamps with a time has FS_TIME. */
#pragma once

#include "layers/ext4_writer.h"

#include <ext2fs/ext2fs.h>

/* libext2fs takes 0 for "ask the clock". */
#define FS_TIME 1

extern const uint8_t
    image_uuid[16]; /* of every image: a UUID made from content would change them all */

/* A file system of @blocks without any content; nothing is read or written yet. *@out is owned:
 * ext2fs_free() or ext2fs_close2(), before the writer. */
int fs_open(struct writer *w, uint64_t blocks, ext2_filsys *out, struct cb_error *err);
struct writer *fs_writer(ext2_filsys fs); /* borrowed */

/* 0, or raises what libext2fs returned while it was to @what, or the writer's error behind that. */
int fs_done(struct writer *w, errcode_t code, const char *what, struct cb_error *err);
/* libext2fs' texts for its codes (error_message()), once a process. */
void fs_load_words(void);
