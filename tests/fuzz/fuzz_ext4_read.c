/* An image with bytes changed anywhere in its metadata, checksums not looked at: the walk, every
 * file, every link and some lookups end, with an error or without, and touch no foreign memory.
 *
 * The input is a list of changes: what (superblock and descriptors, inodes, data blocks), where (16
 * bits), the byte. They are undone afterwards, so that the image is made once. */
#include "layers/ext4_layout.h"
#include "layers/ext4_read.h"
#include "layers/flatten.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"
#include "tar_build.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CHANGES_MAX = 64, READ_MAX = 1 << 20 };

static char *folder, *path;
static int image = -1;

static void fail(const char *what, const struct cb_error *err)
{
    fprintf(stderr, "%s: %s\n", what, err->msg ? err->msg : strerror(errno));
    abort();
}

static void clean_up(void)
{
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_remove_tree(folder, &ignored);
    free(folder);
    free(path);
    cb_close(image);
}

static void make_image(void)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const char *tmp = getenv("TMPDIR");
    folder = cb_xasprintf("%s/cb-fuzz-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder))
        fail("mkdtemp", &err);
    (void)atexit(clean_up);
    struct tar_build t;
    tb_init(&t);
    tb_dir(&t, "a");
    tb_pax_text(&t, "SCHILY.xattr.user.x", "value");
    tb_file(&t, "a/file", "content");
    tb_link(&t, '1', "b", "a/file");
    char slow[200] = "";
    memset(slow, 'x', sizeof(slow) - 1);
    tb_link(&t, '2', "slow", slow);
    tb_link(&t, '2', "fast", "a/file");
    for (int i = 0; i < 300; i++) { /* several blocks, with an index */
        char name[32];
        (void)snprintf(name, sizeof(name), "many/%03d-and-a-longer-name", i);
        tb_file(&t, name, "");
    }
    t.major = 1;
    t.minor = 3;
    tb_raw(&t, '3', "null", NULL, NULL, 0);
    tb_end(&t);
    CB_AUTO_FREE char *home = cb_xasprintf("%s/store", folder);
    path = cb_xasprintf("%s/image", folder);
    struct store *s = NULL;
    struct layer_blob l = {0};
    struct flatten_result r;
    const struct flatten_spec spec = {.store = s, .layers = &l, .n_layers = 1, .out_path = path};
    struct flatten_spec with = spec;
    if (store_open(home, &s, &err) < 0 ||
        store_blob_put(s, t.out.data, t.out.len, &l.digest, &err) < 0)
        fail("store", &err);
    l.diff_id = l.digest;
    l.size = t.out.len;
    with.store = s;
    if (flatten(&with, &r, &err) < 0)
        fail("flatten", &err);
    store_free(s);
    tb_release(&t);
    image = open(path, O_RDWR | O_CLOEXEC);
    if (image < 0)
        fail("open", &err);
}

static off_t place(unsigned what, unsigned at)
{
    if (what % 3 == 0)
        return 1024 + at % (2 * EXT4_BLOCK);
    if (what % 3 == 1)
        return (off_t)layout_inode_table(0) * EXT4_BLOCK + at;
    return (off_t)layout_data_start() * EXT4_BLOCK + at;
}

static void read_file(struct ext4_image *im, uint32_t ino)
{
    static char buf[3000];
    struct ext4_file *f = NULL;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (ext4_file_open(im, ino, &f, &err) < 0)
        return;
    size_t n;
    const struct ext4_run *r = ext4_file_runs(f, &n);
    for (size_t i = 0; i < n; i++)
        if (r[i].len == 0 || r[i].at + r[i].len > ext4_file_size(f) ||
            (i && r[i].at <= r[i - 1].at + r[i - 1].len))
            abort();
    for (uint64_t at = 0; at < READ_MAX;) {
        int64_t got = ext4_file_pread(f, buf, sizeof(buf), at, &err);
        if (got <= 0)
            break;
        at += (uint64_t)got;
    }
    ext4_file_close(f);
}

static void look_at_all(void)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct ext4_image *im = NULL;
    if (ext4_image_open(path, EXT4_READ_NO_CHECKSUMS, &im, &err) < 0)
        return;
    struct ext4_walk *w = NULL;
    struct ext4_entry e;
    CB_AUTO_FREE char *before = NULL;
    if (ext4_walk_open(im, 0, &w, &err) == 0) {
        while (ext4_walk_next(w, &e, &err) == 1) {
            if (before && ext4_path_cmp(before, e.path) >= 0)
                abort();
            free(before);
            before = cb_xstrdup(e.path);
            if (S_ISREG(e.mode))
                read_file(im, e.ino);
        }
    }
    ext4_walk_close(w);
    static const char *const names[] = {"a/file", "fast", "slow", "many/../b", "/"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        CB_AUTO_ERROR none = CB_ERROR_INIT;
        (void)ext4_image_lookup(im, names[i], true, &e, &none);
    }
    ext4_image_close(im);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t saved[CHANGES_MAX];
    if (image < 0)
        make_image();
    size_t n = size / 4 < CHANGES_MAX ? size / 4 : CHANGES_MAX;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *c = data + i * 4;
        off_t at = place(c[0], c[1] | (unsigned)c[2] << 8);
        if (pread(image, &saved[i], 1, at) != 1 || pwrite(image, &c[3], 1, at) != 1)
            abort();
    }
    look_at_all();
    for (size_t i = n; i-- > 0;) {
        const uint8_t *c = data + i * 4;
        if (pwrite(image, &saved[i], 1, place(c[0], c[1] | (unsigned)c[2] << 8)) != 1)
            abort();
    }
    return 0;
}
