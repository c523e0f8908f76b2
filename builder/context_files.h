/* context_files: files beside the config, read into a pack.
 *
 * Only what lies in the folder is read: every path is resolved by the kernel beneath it and without
 * following a link, whatever happens to the folder meanwhile. Links are taken as links, wherever
 * they lead. What the folder's .dockerignore names is not there. A socket, device or pipe is an
 * error, and so is a file that changes while it is read. Names come in the order of their bytes, so
 * the same files give the same pack. Private to builder/. */
#pragma once

#include "builder/pack.h"
#include "schemas/ignore.h"

struct context_folder {
    int fd;
    struct ignore *ignore; /* NULL: no .dockerignore */
};
/* @path: the config's folder, absolute. */
int context_folder_open(struct context_folder *c, const char *path, struct cb_error *err);
void context_folder_close(struct context_folder *c);

/* How sources meet their destination. */
struct context_place {
    bool folder; /* the destination is a folder: a folder was taken, or more than one thing */
};

/* Packs one source (relative, as written). What is in a folder is packed by its name there; a file
 * by its own. -CB_E_CONFIG when it is missing, left out by .dockerignore, or cannot be read. */
int context_pack(const struct context_folder *c, const char *source, struct pack *p,
                 struct context_place *place, struct cb_error *err);
/* The same for a source of a copy, in which wildcards may stand, as in a Dockerfile's COPY; one
 * that nothing fits is an error. */
int context_pack_wild(const struct context_folder *c, const char *source, struct pack *p,
                      struct context_place *place, struct cb_error *err);
