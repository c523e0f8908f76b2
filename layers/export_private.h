/* export_private: what the files of export share. */
#pragma once

#include "layers/export.h"

struct export
{
    const struct export_spec *s;
    char *tmp; /* a folder of our own for what is unfinished; owned */
    int lock;  /* held on it while we live */
    uint64_t done, total;
};

/* Makes the folder beside @out ("-": in the store), which holds what is unfinished. @x has its spec
 * and is otherwise zero. export_end() removes it, also after a failure. */
int export_begin(struct export *x, const char *out, struct cb_error *err);
void export_end(struct export *x);
/* Syncs "out" in that folder and gives it the name @to. @size: of a file, bytes. */
int export_publish(struct export *x, const char *to, uint64_t *size, struct cb_error *err);

/* A path (owned) in the folder of what is unfinished. */
char *export_tmp(const struct export *x, const char *name);
/* A new file there. Returns an owned fd. */
int export_create(const struct export *x, const char *name, struct cb_error *err);
/* Where the result goes: standard output, or a new file. Owned fd. */
int export_open_out(const struct export *x, struct cb_error *err);
bool export_to_stdout(const struct export *x);

/* @n more bytes of `total` are done. -CB_E_CANCELED when somebody asked us to stop. */
int export_advance(struct export *x, uint64_t n, struct cb_error *err);
__attribute__((format(printf, 2, 3))) void export_note(const struct export *x, const char *fmt,
                                                       ...);

/* Writes all of it. A pipe whose reader waits is no reason not to stop. */
int export_write(const struct export *x, int fd, const void *p, size_t n, struct cb_error *err);

/* The template's file system, opened. Owned fd; its path (owned) in *@path, may be NULL. */
int export_open_image(const struct export *x, char **path, struct cb_error *err);
/* All of @from to @at of @to, holes left out, shared where the file systems can. */
int export_copy(struct export *x, int from, int to, uint64_t at, struct cb_error *err);
/* All of @from to a pipe, holes as zeros. */
int export_stream(struct export *x, int from, int to, struct cb_error *err);

/* Runs a program, whose @package is named when it is missing, to its end, in our folder. It reads
 * @input from its beginning (-1: nothing). */
int export_tool(struct export *x, const char *const *argv, int input, const char *package,
                struct cb_error *err);
/* Raises the error for a file of @package that is missing. */
int export_missing(const struct export *x, const char *what, const char *package,
                   struct cb_error *err);

/* The formats. Each leaves its result as the file (or folder) "out". */
int export_make_tar(struct export *x, struct cb_error *err);
int export_make_oci(struct export *x, struct cb_error *err);
int export_make_disk(struct export *x, struct cb_error *err); /* raw, qcow2, gce */
/* The folder of --with-kernel, published. */
int export_make_kernel_dir(struct export *x, struct cb_error *err);
/* The archive of @disk that Compute Engine imports. */
int export_make_gce(struct export *x, int disk, struct cb_error *err);
