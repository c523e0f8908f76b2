/* cleanup: variables that clean up after themselves at the end of their scope, and cb_take_*, which
 * moves the value out first. Cleaning up keeps errno. Initialise at declaration; never goto across
 * one. */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cb_cleanup_free(void *p)
{
    int saved = errno;
    free(*(void **)p);
    errno = saved;
}

static inline void cb_close(int fd)
{
    int saved = errno;
    if (fd >= 0)
        (void)close(fd);
    errno = saved;
}

static inline void cb_cleanup_fd(const int *fd)
{
    cb_close(*fd);
}

static inline void cb_cleanup_file(FILE **f)
{
    int saved = errno;
    if (*f)
        (void)fclose(*f);
    errno = saved;
}

static inline void cb_cleanup_dir(DIR **d)
{
    int saved = errno;
    if (*d)
        (void)closedir(*d);
    errno = saved;
}

#define CB_AUTO_FREE __attribute__((cleanup(cb_cleanup_free)))
#define CB_AUTO_FD __attribute__((cleanup(cb_cleanup_fd))) int
#define CB_AUTO_FILE __attribute__((cleanup(cb_cleanup_file))) FILE *
#define CB_AUTO_DIR __attribute__((cleanup(cb_cleanup_dir))) DIR *

/* Runs the free function of a library type at the end of the scope:
 *     CB_DEFINE_CLEANUP(thing, struct thing *, thing_free)
 *     CB_AUTO(thing) t = NULL; */
#define CB_DEFINE_CLEANUP(name, type, fn)                                                          \
    typedef type cb_auto_type_##name;                                                              \
    static inline void cb_cleanup_##name(cb_auto_type_##name *p)                                   \
    {                                                                                              \
        int cb_saved_ = errno;                                                                     \
        if (*p)                                                                                    \
            fn(*p);                                                                                \
        errno = cb_saved_;                                                                         \
    }                                                                                              \
    struct cb_swallow_semicolon
#define CB_AUTO(name) __attribute__((cleanup(cb_cleanup_##name))) cb_auto_type_##name

static inline int cb_take_fd(int *fd)
{
    int v = *fd;
    *fd = -1;
    return v;
}

#define cb_take_ptr(pp)                                                                            \
    __extension__({                                                                                \
        __typeof__(*(pp)) cb_taken_ = *(pp);                                                       \
        *(pp) = NULL;                                                                              \
        cb_taken_;                                                                                 \
    })
