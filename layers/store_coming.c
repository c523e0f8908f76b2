#include "layers/store_coming.h"

#include "layers/store_private.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

/* One announced blob. It lives as long as it is announced or read. */
struct coming {
    struct coming *next;
    struct cb_digest digest;
    unsigned readers;
    bool announced;
    int fd;        /* of the file that grows; -1: no byte yet. Owned */
    unsigned file; /* counts the files it has begun in: a reader of an earlier one must stop */
    uint64_t have;
};

struct coming_reader {
    struct store *store;
    struct coming *blob;
    unsigned file;
    bool stop;
};

/* With the lock held. */
static struct coming *find(struct store *s, const struct cb_digest *d)
{
    struct coming *c = s->coming;
    while (c && !cb_digest_eq(&c->digest, d))
        c = c->next;
    return c;
}

static void drop_unused(struct store *s, struct coming *c)
{
    if (c->announced || c->readers)
        return;
    struct coming **at = &s->coming;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    cb_close(c->fd);
    free(c);
}

void store_coming_add(struct store *s, const struct cb_digest *d)
{
    (void)pthread_mutex_lock(&s->lock);
    struct coming *c = find(s, d);
    if (!c) {
        c = cb_xcalloc(1, sizeof(*c));
        c->digest = *d;
        c->fd = -1;
        c->next = s->coming;
        s->coming = c;
    }
    c->announced = true;
    (void)pthread_mutex_unlock(&s->lock);
}

void store_coming_remove(struct store *s, const struct cb_digest *d)
{
    (void)pthread_mutex_lock(&s->lock);
    struct coming *c = find(s, d);
    if (c) {
        c->announced = false;
        (void)pthread_cond_broadcast(&s->grown);
        drop_unused(s, c);
    }
    (void)pthread_mutex_unlock(&s->lock);
}

void store_coming_begun(struct store *s, const struct cb_digest *d, int fd, uint64_t have)
{
    (void)pthread_mutex_lock(&s->lock);
    struct coming *c = find(s, d);
    struct stat was, is;
    if (c && (c->fd < 0 || fstat(c->fd, &was) < 0 || fstat(fd, &is) < 0 ||
              was.st_ino != is.st_ino || was.st_dev != is.st_dev)) {
        cb_close(c->fd);
        c->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        c->file++;
    }
    if (c)
        c->have = have;
    (void)pthread_cond_broadcast(&s->grown);
    (void)pthread_mutex_unlock(&s->lock);
}

void store_coming_grown(struct store *s, const struct cb_digest *d, uint64_t have)
{
    (void)pthread_mutex_lock(&s->lock);
    struct coming *c = find(s, d);
    if (c) {
        c->have = have;
        (void)pthread_cond_broadcast(&s->grown);
    }
    (void)pthread_mutex_unlock(&s->lock);
}

/* Waits for the first bytes of an announced blob. An own fd, or -1 when none come. */
static int wait_begun(struct store *s, struct coming *c, struct coming_reader *r)
{
    c->readers++;
    while (c->announced && (c->fd < 0 || c->have == 0))
        (void)pthread_cond_wait(&s->grown, &s->lock);
    /* Over: it is a blob now, or it is not to be had. Both are store_blob_open()'s answer. */
    int fd = c->announced ? fcntl(c->fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (fd >= 0) {
        *r = (struct coming_reader){s, c, c->file, false};
        return fd;
    }
    c->readers--;
    drop_unused(s, c);
    return -1;
}

int store_coming_open(struct store *s, const struct cb_digest *d, uint64_t *size,
                      struct coming_reader **out, struct cb_error *err)
{
    struct coming_reader r = {0};
    int fd = -1;
    *out = NULL;
    if (!store_blob_has(s, d)) {
        (void)pthread_mutex_lock(&s->lock);
        struct coming *c = find(s, d);
        if (c && c->announced)
            fd = wait_begun(s, c, &r);
        (void)pthread_mutex_unlock(&s->lock);
    }
    if (fd < 0)
        return store_blob_open(s, d, size, err);
    *out = cb_xmalloc(sizeof(**out));
    **out = r;
    return fd;
}

int64_t coming_wait(struct coming_reader *r, uint64_t upto, struct cb_error *err)
{
    struct store *s = r->store;
    struct coming *c = r->blob;
    (void)pthread_mutex_lock(&s->lock);
    while (c->announced && !r->stop && c->file == r->file && c->have < upto)
        (void)pthread_cond_wait(&s->grown, &s->lock);
    int64_t have = !r->stop && c->file == r->file && c->have >= upto ? (int64_t)c->have : -1;
    (void)pthread_mutex_unlock(&s->lock);
    if (have < 0)
        return cb_fail(err, CB_E_CANCELED, "the blob stopped arriving");
    return have;
}

void coming_reader_stop(struct coming_reader *r)
{
    (void)pthread_mutex_lock(&r->store->lock);
    r->stop = true;
    (void)pthread_cond_broadcast(&r->store->grown);
    (void)pthread_mutex_unlock(&r->store->lock);
}

void coming_reader_free(struct coming_reader *r)
{
    if (!r)
        return;
    struct store *s = r->store;
    (void)pthread_mutex_lock(&s->lock);
    r->blob->readers--;
    drop_unused(s, r->blob);
    (void)pthread_mutex_unlock(&s->lock);
    free(r);
}
