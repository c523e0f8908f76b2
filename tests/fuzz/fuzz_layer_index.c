/* The two records of a layer, with any bytes behind a header that fits them: the index is read to
 * its end or refused, every attribute and block of what is accepted can be looked at, and a record
 * of places that is accepted has every block once and inside its files.
 *
 * The first byte says which of the two the rest is. */
#include "fuzz_check.h"

#include "layers/layer_index.h"
#include "layers/layer_places.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FILE_BLOCKS 64u

static char *folder;
static struct store *store;
static struct stat image;
static const struct cb_digest layer = {{1}}, lower = {{2}};

static void clean_up(void)
{
    store_free(store);
    (void)cb_remove_tree(folder, NULL);
    free(folder);
}

static void set_up(void)
{
    folder = cb_xstrdup("/dev/shm/cb-fuzz-index-XXXXXX");
    must(mkdtemp(folder));
    must(store_open(folder, &store, NULL) == 0);
    (void)atexit(clean_up);
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&lower, hex);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/lowers/%s.ext4", folder, hex);
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, (off_t)FILE_BLOCKS * 4096) == 0 && fstat(fd, &image) == 0);
}

static void put(const char *kind, const void *head, size_t head_len, const void *p, size_t n)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&layer, hex);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/layers/%s.%s", folder, hex, kind);
    CB_AUTO_FD fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 && cb_write_all(fd, head, head_len, NULL) == 0);
    must(cb_write_all(fd, p, n, NULL) == 0);
}

static unsigned look_at(const void *p, size_t n)
{
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((const unsigned char *)p)[i];
    return sum;
}

static void read_index(const uint8_t *data, size_t size)
{
    struct {
        char magic[16];
        struct cb_digest diff_id;
        struct index_sums sums;
        uint64_t length;
        struct cb_digest body;
    } h = {.diff_id = layer, .length = size};
    memcpy(h.magic, "capsule index  1", 16);
    cb_sha256(data, size, &h.body);
    put("index", &h, sizeof(h), data, size);
    struct index_reader *x = index_open(store, &layer);
    must(x);
    struct tar_entry e;
    const char *name;
    const void *value;
    size_t len;
    uint32_t logical, count;
    uint64_t stream, last = 0;
    unsigned sum = 0;
    while (index_next(x, &e, NULL) > 0) {
        sum += look_at(e.path, strlen(e.path));
        must((e.kind == TAR_SYMLINK || e.kind == TAR_HARDLINK) == (e.link != NULL));
        if (e.link)
            sum += look_at(e.link, strlen(e.link));
        while (index_next_xattr(x, &name, &value, &len))
            sum += look_at(name, strlen(name)) + look_at(value, len);
        for (int i = 0; i < 3 && index_next_blocks(x, &logical, &count, &stream); i++) {
            must(stream >= last);
            last = stream + count;
        }
    }
    static volatile unsigned seen; /* so that the bytes are read */
    seen = sum;
    must(seen == sum);
    index_free(x);
}

static void read_places(const uint8_t *data, size_t size)
{
    struct span {
        uint64_t stream, block;
        uint32_t count, file;
    };
    size_t n = size / sizeof(struct span);
    struct {
        char magic[16];
        struct cb_digest diff_id;
        uint32_t folder, zero;
        struct cb_digest name;
        struct {
            uint64_t ino, size;
        } files[2];
        uint64_t spans;
        struct cb_digest body;
    } h = {.diff_id = layer, .folder = PREFIX_LOWERS, .name = lower, .spans = n};
    memcpy(h.magic, "capsule places 1", 16);
    h.files[0].ino = image.st_ino;
    h.files[0].size = (uint64_t)image.st_size;
    cb_sha256(data, n * sizeof(struct span), &h.body);
    put("places", &h, sizeof(h), data, n * sizeof(struct span));
    uint64_t blocks = 0;
    for (size_t i = 0; i < n; i++) {
        struct span s;
        memcpy(&s, data + i * sizeof(s), sizeof(s));
        blocks += s.count;
    }
    struct place_reader *r = place_open(store, &layer, blocks, false);
    for (uint64_t at = 0; r && at < blocks;) {
        int fd;
        uint64_t block, got = place_find(r, at, &fd, &block);
        must(got > 0);
        must(fd < 0 || (block < FILE_BLOCKS && got <= FILE_BLOCKS - block));
        at += got;
    }
    place_free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!store)
        set_up();
    if (size > 0 && data[0] % 2)
        read_index(data + 1, size - 1);
    else if (size > 0)
        read_places(data + 1, size - 1);
    return 0;
}
