/* A store in a fresh folder, for tests, and ways to count what is in it. */
#pragma once

#include "check.h"

#include "layers/store.h"

#include <ftw.h>

struct store_fixture {
    char *base; /* the test's own folder */
    char *dir;  /* the store in it */
    struct store *store;
};

static inline int store_setup(void **state)
{
    void *base = NULL;
    if (check_dir_setup(&base) < 0)
        return -1;
    struct store_fixture *f = cb_xcalloc(1, sizeof(*f));
    f->base = base;
    f->dir = cb_xasprintf("%s/home/store", f->base);
    *state = f;
    return store_open(f->dir, &f->store, NULL);
}

static inline int store_teardown(void **state)
{
    struct store_fixture *f = *state;
    store_free(f->store);
    void *base = f->base;
    int rc = check_dir_teardown(&base);
    free(f->dir);
    free(f);
    return rc;
}

#define test_in_store(t) cmocka_unit_test_setup_teardown(t, store_setup, store_teardown)

/* Names in one folder of the store. */
static inline int store_entries(const struct store_fixture *f, const char *rel)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", f->dir, rel);
    CB_AUTO_DIR d = opendir(path);
    if (!d)
        return -1;
    int n = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    return n;
}

static int store_files_seen;
static inline int store_count_file(const char *path, const struct stat *st, int type,
                                   struct FTW *ftw)
{
    (void)st;
    const char *name = path + ftw->base;
    bool of_everybody = strcmp(name, "lock") == 0 || strcmp(name, "pins") == 0;
    store_files_seen += type != FTW_D && !of_everybody;
    return 0;
}

/* Files in the whole store, finished or not, but for the lock and pins. */
static inline int store_files(const struct store_fixture *f)
{
    store_files_seen = 0;
    if (nftw(f->dir, store_count_file, 16, FTW_PHYS) < 0)
        return -1;
    return store_files_seen;
}
