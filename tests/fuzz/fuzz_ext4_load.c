/* An image with bytes changed anywhere in its metadata, checksums not looked at, as what another
 * layer is put on: it is refused, or the layer is applied or fails; no crash, no foreign memory.
 *
 * The input is a list of changes: what (superblock and descriptors, bitmaps, inodes, data blocks),
 * where (16 bits), the byte. They are made in a copy. */
#include "fuzz_check.h"

#include "layers/ext4_fs.h"
#include "layers/ext4_load.h"
#include "layers/ext4_private.h"
#include "layers/ext4_super.h"
#include "layers/tar_apply.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"
#include "tar_build.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CHANGES_MAX = 64 };

static char *folder, *path, *copy;
static int image = -1;

static void clean_up(void)
{
    (void)cb_remove_tree(folder, NULL);
    free(folder);
    free(path);
    free(copy);
    cb_close(image);
}

static int next(void *arg, const void **data, size_t *len, struct cb_error *err)
{
    struct cb_buf *b = arg;
    (void)err;
    *data = b->data;
    *len = b->len;
    b->len = 0;
    return *len > 0;
}

static int apply(struct writer *w, struct tree *t, uint16_t layer, struct tar_build *tar)
{
    tb_end(tar);
    struct cb_buf left = tar->out;
    const struct tar_source source = {next, &left};
    int rc = tar_apply_layer(w, t, layer, &source, NULL);
    tb_release(tar);
    return rc;
}

/* Folders of one block and with an index, links of both kinds, attributes in the inode and outside,
 * a file with a tree of extents. */
static void lower_layer(struct tar_build *t)
{
    static char large[3000];
    char name[100];
    tb_init(t);
    memset(large, 'x', sizeof(large));
    tb_dir(t, "a");
    tb_pax_text(t, "SCHILY.xattr.user.x", "value");
    tb_file(t, "a/file", "content");
    tb_link(t, '1', "b", "a/file");
    tb_pax(t, "SCHILY.xattr.user.large", large, sizeof(large));
    tb_dir(t, "c");
    large[200] = '\0';
    tb_link(t, '2', "slow", large);
    tb_link(t, '2', "fast", "a");
    for (int i = 0; i < 400; i++) {
        (void)snprintf(name, sizeof(name), "many/name-%d", i);
        tb_file(t, name, "");
    }
    tb_dir(t, "many/below");
    tb_file(t, "many/below/file", "x");
}

/* Goes through what is there: parents through links, more names for files, and all taken away. */
static void upper_layer(struct tar_build *t)
{
    tb_init(t);
    tb_file(t, "fast/new", "x");
    tb_file(t, "slow/new", "x");
    tb_link(t, '1', "again", "a/file");
    tb_file(t, "a/file", "other");
    tb_dir(t, "c");
    tb_file(t, "many/one-more", "x");
    tb_file(t, ".wh.b", "");
    tb_file(t, "many/.wh.below", "");
    tb_file(t, "many/.wh..wh..opq", "");
}

static void make_image(void)
{
    struct writer *w = NULL;
    struct tree *t = tree_new(INO_ROOT);
    struct tar_build tar;
    uint64_t blocks;
    folder = cb_xstrdup("/dev/shm/cb-fuzz-load-XXXXXX");
    must(mkdtemp(folder));
    (void)atexit(clean_up);
    path = cb_xasprintf("%s/image", folder);
    copy = cb_xasprintf("%s/copy", folder);
    must(writer_open(path, 0, &w, NULL) == 0 && image_begin(w, t, NULL) == 0);
    lower_layer(&tar);
    must(apply(w, t, 1, &tar) == 0 && image_size(w, 0, &blocks, NULL) == 0);
    must(image_finish(w, blocks, 0, image_uuid, NULL, NULL) == 0);
    writer_free(w);
    tree_free(t);
    image = open(path, O_RDONLY | O_CLOEXEC);
    must(image >= 0);
}

static void change(int fd, const uint8_t *op)
{
    uint64_t at = (uint64_t)op[1] << 8 | op[2], base = 1024;
    switch (op[0] % 4) {
    case 0: at %= 2 * EXT4_BLOCK; break;
    case 1: base = layout_block_bitmap(0) * EXT4_BLOCK + (at & 1) * FLEX_GROUPS * EXT4_BLOCK; break;
    case 2: base = layout_inode_table(0) * EXT4_BLOCK; break;
    default: base = layout_data_start() * EXT4_BLOCK; break;
    }
    must(pwrite(fd, op + 3, 1, (off_t)(base + at)) == 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (image < 0)
        make_image();
    struct writer *w = NULL;
    struct tree *t = tree_new(INO_ROOT);
    uint64_t blocks;
    must(writer_clone(copy, image, 1u << 20, &w, NULL) == 0);
    w->fs->flags |= EXT2_FLAG_IGNORE_CSUM_ERRORS;
    for (size_t i = 0; i < CHANGES_MAX && size >= 4; i++, data += 4, size -= 4)
        change(writer_fd(w), data);
    if (ext4_load(w, t, NULL) == 0) {
        struct tar_build tar;
        upper_layer(&tar);
        if (apply(w, t, 1, &tar) == 0 && image_size(w, 0, &blocks, NULL) == 0)
            (void)image_finish(w, blocks, 0, image_uuid, NULL, NULL);
    }
    writer_free(w);
    tree_free(t);
    (void)unlink(copy);
    return 0;
}
