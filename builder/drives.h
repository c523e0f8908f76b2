/* drives: the file systems of their own that layers declare (layers[].drives), and the workspace.
 *
 * A drive with commands is made empty, filled by the layer's machine, and kept as chunks under the
 * layer's cache key. What is on it then is a stranger's: it is hashed and stored as bytes, and is
 * mounted by guests alone, never by this machine. Private to builder/. */
#pragma once

#include "builder/machine.h"
#include "schemas/manifest.h"

struct build;
struct build_layer;
struct talk;
struct store;

/* Files for a machine's drives. */
struct drive_disks {
    struct machine_disk *v;
    size_t n;
    size_t next; /* the first of the layer that comes next (builds) */
};
void drive_disks_release(struct drive_disks *d);

/* For all drives with commands of the layers from @first on, in the work folder: empty ones, or
 * copies of what a layer that is refreshed had. -CB_E_ENV when @driver is not to have one of those.
 */
int drives_make(struct build *b, size_t first, const struct machine_driver *driver,
                struct drive_disks *out, struct cb_error *err);
/* Mounts the drives of layer @l that have commands: 1, and what commands of type start keep runs
 * again; 0 when there are none. */
int drives_mount(struct talk *t, const struct layer *l, struct cb_error *err);
/* Runs the commands of the drives of layer @l, which has run its own. */
int drives_fill(struct talk *t, const struct layer *l, struct cb_error *err);
/* After the layer's end: stores what is on its drives, and says so in @l. */
int drives_keep(struct talk *t, struct build_layer *l, struct cb_error *err);
/* What is kept for the layer has all of its drives. */
bool drives_fit(const struct layer *l, const struct cache_record *r);
/* All drives of the config into b->drives: those of the layers, and the empty ones, which are made
 * and stored here. */
int drives_gather(struct build *b, struct cb_error *err);

/* For booting: files for @n drives of an image (made from their chunks when they are not there),
 * which stay while the store is open, and a workspace of @workspace_gb (0: none), made in
 * @work_dir. */
int drives_attach(struct store *s, const struct drive_image *v, size_t n, uint32_t workspace_gb,
                  const char *work_dir, struct drive_disks *out, struct cb_error *err);
/* What a machine writes to them goes into files of folder @dir (made), which are kept: one a drive
 * and content, so each goes on from where it was left, and with a new version of a drive another
 * one begins. @v and @n as above. */
int drives_keep_in(struct drive_disks *d, const struct drive_image *v, size_t n, const char *dir,
                   struct cb_error *err);
/* What is on them, for telling whether a saved machine had the same. All zero: there are none. */
void drives_digest(const struct drive_image *v, size_t n, uint32_t workspace_gb,
                   struct cb_digest *out);
