/* warm_blob: a machine that was saved, as one blob: the state of QEMU (memory and devices) and what
 * its disks' overlays held at that moment. It belongs to one image, which is named inside.
 *
 * One zstd frame around: WARM_MAGIC, the image's SHA-256, the number of disks and the state's
 * length (8 bytes each, little-endian), for each disk a name of 16 bytes (filled up with NULs) and
 * a length; then the state and the disks, one behind the other. */
#pragma once

#include "layers/store.h"

#define WARM_MAGIC "CBWARM1\n"
enum { WARM_DISKS_MAX = 24, WARM_NAME_MAX = 15 };

struct warm_disk {
    char name[WARM_NAME_MAX + 1];
    int fd; /* borrowed */
};

/* Publishes what @state and @disks hold, each from its beginning to its end. @digest and @size are
 * the blob's. */
int warm_blob_put(struct store *s, const struct cb_digest *image, int state,
                  const struct warm_disk *disks, size_t n_disks, struct cb_digest *digest,
                  uint64_t *size, struct cb_error *err);

/* Writes what is in the blob to @state and @disks, which are empty files; zeros become holes.
 * Nothing of it may be used before this returns 0: then every byte is what was put. The disks must
 * be those that were put, in that order. -CB_E_NOTFOUND; -CB_E_CORRUPT when the blob is damaged;
 * -CB_E_CONFLICT when it belongs to another image or to other disks. */
int warm_blob_get(struct store *s, const struct cb_digest *digest, const struct cb_digest *image,
                  int state, const struct warm_disk *disks, size_t n_disks, struct cb_error *err);

/* What follows the magic, checked: for warm_blob_get() and its fuzz target. */
struct warm_head {
    struct cb_digest image;
    uint64_t state_size;
    size_t n_disks;
    struct {
        char name[WARM_NAME_MAX + 1];
        uint64_t size;
    } disks[WARM_DISKS_MAX];
};
enum { WARM_HEAD_FIXED = 8 + CB_SHA256_LEN + 16, WARM_HEAD_DISK = WARM_NAME_MAX + 1 + 8 };
/* 1 and the head, 0 when more than @n bytes are needed, -CB_E_CORRUPT. */
int warm_head_parse(const uint8_t *p, size_t n, struct warm_head *out, struct cb_error *err);
