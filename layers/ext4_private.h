/* ext4_private: what the files of the writer share. */
#pragma once

#include "layers/ext4_writer.h"

#include <ext2fs/ext2fs.h>

#include <stdbool.h>

#define WINDOW_INODES 1024u
#define WRITE_BUFFER ((size_t)512 << 10)

/* One bit a thing, growing. */
struct bits {
    uint64_t *v;
    size_t words;
};

struct writer {
    char *path;
    int fd;
    bool keep; /* finished: the file stays */
    uint64_t max_blocks;
    bool full; /* somebody asked for more */

    uint64_t next_block; /* the first never given out */
    struct bits blocks;  /* data blocks in use, by number */
    uint64_t data_in_use;
    uint32_t next_ino;
    struct bits inodes;     /* bit @ino */
    uint32_t inodes_in_use; /* the reserved ones not counted */

    /* The part of the inode tables that grows: inodes [window_first, +WINDOW_INODES). */
    unsigned char *window;
    uint32_t window_first; /* 0: none */
    bool window_dirty;

    /* Bytes for [buffer_at, +buffer_len) of the file that are not written yet. */
    unsigned char *buffer;
    uint64_t buffer_at;
    size_t buffer_len;

    /* libext2fs for what is written while the image grows: as large as the layout goes. Which
     * blocks and inodes are in use it does not know: they come from here. NULL once the end is
     * written. */
    ext2_filsys fs;
    struct cb_error error; /* raised while libext2fs read or wrote; fs_done() moves it out */

    /* Blocks that are being copied from another file, not copied yet: neighbours are put together.
     */
    int copy_fd;
    uint64_t copy_from, copy_to, copy_len; /* bytes */

    struct bits owed; /* blocks whose bytes were not to be had */
    void (*on_free)(void *arg, uint64_t start, uint64_t count); /* before they become a hole */
    void *on_free_arg;

    struct bits dirty; /* pieces of the file that may differ from what it was cloned from */
    bool cloned;

    uint32_t *dirs; /* folders, by the group of their inode */
    size_t n_dirs;
};

void bits_set(struct bits *b, uint64_t first, uint64_t count);
void bits_clear(struct bits *b, uint64_t first, uint64_t count);
bool bits_get(const struct bits *b, uint64_t i);
/* The first set bit at or after @from; *@count follow it in a row, at most GROUP_BLOCKS. */
bool bits_find(const struct bits *b, uint64_t from, uint64_t *at, uint64_t *count);
/* The first set bit at or after @from, or 0; *@count follow it in a row, at most GROUP_BLOCKS. */
uint64_t bits_next(const struct bits *b, uint64_t from, uint64_t *count);
/* The highest set bit below @end, or 0. */
uint64_t bits_last(const struct bits *b, uint64_t end);

/* Bytes of the image, wherever they are just now. */
int writer_read(struct writer *w, uint64_t at, void *p, size_t n, struct cb_error *err);
int writer_write(struct writer *w, uint64_t at, const void *p, size_t n, struct cb_error *err);

void writer_join(struct extents *x, const struct extent *e); /* puts it behind the others */
void writer_soil(struct writer *w, uint64_t at, uint64_t n); /* bytes of the file change */
/* Makes blocks a hole. */
int writer_punch(struct writer *w, uint64_t start, uint64_t count, struct cb_error *err);

/* Everything in memory goes to the file. */
int writer_flush(struct writer *w, struct cb_error *err);
int writer_flush_data(struct writer *w, struct cb_error *err);
