/* layer_places_private: the record of where a layer's bytes lie, layers/HEX.places. Private to
 * layer_places.c and to places_trim.c, which needs nothing of ext4: who collects garbage (a
 * supervisor, which parses no image) uses that one alone. */
#pragma once

#include "layers/layer_places.h"
#include "layers/store_private.h"

#include <sys/stat.h>

#define PLACES_FOLDER "layers"
#define PLACES_SPANS_MAX                                                                           \
    ((size_t)1 << 18) /* 8 MiB; one file's data after the other is one span                        \
                       */

enum places_file { IMAGE, REST, FILES, LOST = FILES, KINDS };

struct file_id {
    uint64_t ino, size; /* zeros: there is none */
};

/* The record begins with it; @spans spans follow. */
struct places_head {
    char magic[16];
    struct cb_digest diff_id;
    uint32_t folder, zero;
    struct cb_digest name;
    struct file_id files[FILES];
    uint64_t spans;
    struct cb_digest body; /* SHA-256 of them */
};
#define PLACES_MAGIC "capsule places 1"

/* False when it is none. */
bool places_read_head(int fd, struct places_head *h);
/* The image that it speaks of, locked as store_lower_open() does. Owned, or -1. */
int places_open_image(struct store *s, const struct places_head *h, struct stat *st);
