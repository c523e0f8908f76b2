/* export: a template as a file that others take: its file system, a disk, a container image, a tar.
 *
 * A result appears under its name when it is whole (written beside it, synced, renamed), or goes to
 * a pipe as it comes. What is unfinished lies in one folder beside the result, which is removed
 * when the export ends, however it ends; one that kill -9 left is removed by the next export to the
 * same place. The same template and options give the same bytes, but for what gzip makes on another
 * kind of processor. */
#pragma once

#include "layers/image.h"
#include "layers/store.h"

#include <stdbool.h>
#include <stdint.h>

enum export_format {
    EXPORT_EXT4,
    EXPORT_RAW,
    EXPORT_QCOW2,
    EXPORT_GCE,
    EXPORT_OCI,
    EXPORT_DIR_TAR,
    EXPORT_N
};
const char *export_format_name(enum export_format f); /* "dir-tar" */
/* -1 when there is no such format. */
int export_format_from_name(const char *name);

struct export_spec {
    struct store *store;
    const struct template_manifest *t; /* borrowed */
    enum export_format format;
    const char *out; /* a path, or "-" for standard output */
    uint64_t size;   /* of the file system (ext4) or the disk; 0: as small as it is */
    /* EXPORT_QCOW2: compressed. EXPORT_OCI: layers in zstd become gzip, which every tool reads; the
     * result is a folder, or a tar of one when @out ends in ".tar" or is "-". */
    bool compress;
    const char *kernel_dir; /* EXPORT_EXT4: a folder for what boots it, made; or NULL */
    const char *drive;      /* EXPORT_EXT4: the id of a drive, in place of the root; or NULL */
    const struct layers_progress *progress; /* `note` says what a user must know */
    bool (*canceled)(void);                 /* may be NULL; asked often */
};

/* -CB_E_CONFIG for options that do not fit, -CB_E_ENV when a program is missing (the hint names its
 * package), -CB_E_NOTFOUND when the image or a blob is gone, or the template has no such drive.
 * @size (may be NULL): bytes of the result; 0 for a folder. */
int export_run(const struct export_spec *spec, uint64_t *size, struct cb_error *err);
