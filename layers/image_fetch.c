#include "layers/flatten.h"
#include "layers/image.h"
#include "layers/registry.h"
#include "layers/source.h"
#include "layers/store_coming.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    FETCHERS = 4,      /* blobs at once, unless the settings say otherwise */
    FETCHERS_MAX = 16, /* what they may say */
    PROGRESS_MS = 200,
};

/* A few threads, one list. */
struct image_fetching {
    struct store *store;
    const struct base_image *base;
    struct registry *r;
    struct layers_progress notes; /* the registry's way to the caller's */
    const struct layer_blob **todo;
    size_t n;
    const struct layers_progress *to; /* the caller's */
    pthread_t threads[FETCHERS_MAX];
    size_t n_threads, max_threads;

    pthread_mutex_t lock; /* guards what follows, and serialises the caller's functions */
    size_t next;
    uint64_t total, done;
    int64_t shown_ms;
    struct cb_error first; /* the first failure; the others stop for it */
    bool stop;
};

static void locked_note(void *arg, const char *text)
{
    struct image_fetching *f = arg;
    (void)pthread_mutex_lock(&f->lock);
    if (f->to && f->to->note)
        f->to->note(f->to->arg, text);
    (void)pthread_mutex_unlock(&f->lock);
}

static bool on_moved(void *arg, int64_t delta)
{
    struct image_fetching *f = arg;
    (void)pthread_mutex_lock(&f->lock);
    f->done += (uint64_t)delta;
    int64_t now = cb_monotonic_ms();
    if (f->to && f->to->bytes && (now - f->shown_ms >= PROGRESS_MS || f->done == f->total)) {
        f->shown_ms = now;
        f->to->bytes(f->to->arg, f->done, f->total, "bytes");
    }
    bool go_on = !f->stop;
    (void)pthread_mutex_unlock(&f->lock);
    return go_on;
}

static const struct layer_blob *take_next(struct image_fetching *f)
{
    (void)pthread_mutex_lock(&f->lock);
    const struct layer_blob *b = f->stop || f->next == f->n ? NULL : f->todo[f->next++];
    (void)pthread_mutex_unlock(&f->lock);
    return b;
}

/* Nobody has to wait for any of them any more. */
static void call_off(struct image_fetching *f)
{
    for (size_t i = 0; i < f->n; i++)
        store_coming_remove(f->store, &f->todo[i]->digest);
}

static void *fetcher(void *arg)
{
    struct image_fetching *f = arg;
    struct http_client *c = registry_client(f->r);
    const struct layer_blob *b;
    while ((b = take_next(f)) != NULL) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        if (registry_blob(f->r, c, f->store, &b->digest, b->size, on_moved, f, &err) == 0) {
            store_coming_remove(f->store, &b->digest);
            continue;
        }
        (void)pthread_mutex_lock(&f->lock);
        if (!f->stop)
            cb_error_move(&f->first, &err);
        f->stop = true;
        (void)pthread_mutex_unlock(&f->lock);
        call_off(f);
    }
    http_client_free(c);
    return NULL;
}

static int start_fetchers(struct image_fetching *f, struct cb_error *err)
{
    size_t want = f->n < f->max_threads ? f->n : f->max_threads;
    sigset_t all, before; /* signals belong to the main thread */
    int rc = 0;
    for (size_t i = 0; i < f->n; i++)
        store_coming_add(f->store, &f->todo[i]->digest);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (f->n_threads < want && rc == 0) {
        rc = pthread_create(&f->threads[f->n_threads], NULL, fetcher, f);
        f->n_threads += rc == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return f->n_threads == 0 ? cb_fail_sys(err, rc, "start a thread") : 0;
}

/* The layers that the store lacks, each once. */
static void list_missing(struct image_fetching *f)
{
    const struct base_image *b = f->base;
    f->todo = cb_xcalloc(b->n_layers, sizeof(struct layer_blob *));
    for (size_t i = 0; i < b->n_layers; i++) {
        bool known = store_blob_has(f->store, &b->layers[i].digest);
        for (size_t k = 0; !known && k < f->n; k++)
            known = cb_digest_eq(&f->todo[k]->digest, &b->layers[i].digest);
        if (known)
            continue;
        f->todo[f->n++] = &b->layers[i];
        f->total += b->layers[i].size;
    }
}

static int fetch_missing(struct image_fetching *f, const struct settings *settings,
                         struct cb_error *err)
{
    if (f->base->ref.kind != SOURCE_REGISTRY) {
        cb_fail(err, CB_E_NOTFOUND, "%zu of its layers are not in the store any more", f->n);
        return cb_hint(err, "Build again with --pull always.");
    }
    size_t said = settings->parallel_fetches;
    f->max_threads = said == 0 ? FETCHERS : said < FETCHERS_MAX ? said : FETCHERS_MAX;
    f->notes = (struct layers_progress){.note = locked_note, .arg = f};
    int rc = registry_open(settings, &f->base->ref, &f->notes, &f->r, err);
    return rc < 0 ? rc : start_fetchers(f, err);
}

static void release(struct image_fetching *f)
{
    registry_free(f->r);
    cb_error_clear(&f->first);
    (void)pthread_mutex_destroy(&f->lock);
    free(f->todo);
    free(f);
}

int image_fetch_start(struct store *s, const struct settings *settings, const struct base_image *b,
                      const struct layers_progress *p, struct image_fetching **out,
                      struct cb_error *err)
{
    struct image_fetching *f = cb_xcalloc(1, sizeof(*f));
    *f = (struct image_fetching){.store = s, .base = b, .to = p, .first = CB_ERROR_INIT};
    (void)pthread_mutex_init(&f->lock, NULL);
    int rc = source_is_local(b->ref.kind) ? source_fetch(s, b, p, err) : 0;
    if (rc == 0)
        list_missing(f);
    if (rc < 0 || (f->n > 0 && fetch_missing(f, settings, err) < 0)) {
        call_off(f);
        release(f);
        return cb_wrap(err, "image %s", b->ref.text);
    }
    *out = f;
    return 0;
}

bool image_fetch_busy(const struct image_fetching *f)
{
    return f->n > 0;
}

int image_fetch_end(struct image_fetching *f, struct cb_error *err)
{
    int rc = 0;
    for (size_t i = 0; i < f->n_threads; i++)
        (void)pthread_join(f->threads[i], NULL);
    if (f->stop)
        rc = cb_error_move(err, &f->first);
    if (rc < 0)
        cb_wrap(err, "image %s", f->base->ref.text);
    release(f);
    return rc;
}

int image_fetch(struct store *s, const struct settings *settings, const struct base_image *b,
                const struct layers_progress *p, struct cb_error *err)
{
    struct image_fetching *f = NULL;
    int rc = image_fetch_start(s, settings, b, p, &f, err);
    return rc < 0 ? rc : image_fetch_end(f, err);
}

int flatten_arriving(struct image_fetching *f, const struct flatten_spec *spec,
                     struct flatten_result *out, struct cb_error *err)
{
    bool ahead = image_fetch_busy(f);
    CB_AUTO_FREE char *name = cb_xstrdup(f->base->ref.text);
    struct flatten_spec quiet = *spec;
    CB_AUTO_ERROR early = CB_ERROR_INIT;
    if (ahead)
        quiet.progress = NULL; /* the fetch tells how it goes */
    int made = flatten(&quiet, out, &early);
    int rc = image_fetch_end(f, err);
    if (rc < 0) {
        if (made == 0)
            (void)unlink(spec->out_path);
        return rc;
    }
    if (made == 0)
        return 0;
    /* A download that began anew, or bytes that were not the blob's: now they are. */
    rc = ahead ? flatten(spec, out, err) : cb_error_move(err, &early);
    return rc < 0 ? cb_wrap(err, "flatten %s", name) : 0;
}
