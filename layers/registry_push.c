#include "layers/registry_push.h"

#include "layers/push_private.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/hash.h"
#include "support/mem.h"

#include <signal.h>
#include <string.h>

enum {
    SENDERS = 4,      /* blobs at once, unless the settings say otherwise */
    SENDERS_MAX = 16, /* what they may say */
    PROGRESS_MS = 200,
    PIECE_MAX = 1 << 30, /* whatever a registry asks for */
};

uint64_t push_piece = 16 << 20;

int push_open(const struct settings *settings, const struct image_ref *ref, const char *from,
              const struct layers_progress *progress, struct push **out, struct cb_error *err)
{
    if (ref->kind != SOURCE_REGISTRY)
        return cb_fail(err, CB_E_CONFIG, "%s is no name of a registry's image", ref->text);
    struct push *p = cb_xcalloc(1, sizeof(*p));
    p->to = progress;
    p->max_threads = settings->parallel_fetches ? settings->parallel_fetches : SENDERS;
    if (p->max_threads > SENDERS_MAX)
        p->max_threads = SENDERS_MAX;
    if (from && strcmp(from, ref->path) != 0)
        p->from = cb_xstrdup(from);
    (void)pthread_mutex_init(&p->lock, NULL);
    p->notes = (struct layers_progress){.note = push_note, .arg = p};
    int rc = registry_open_push(settings, ref, p->from, &p->notes, &p->r, err);
    if (rc == 0)
        p->client = registry_client(p->r);
    if (rc < 0)
        push_free(p);
    else
        *out = p;
    return rc;
}

void push_free(struct push *p)
{
    if (!p)
        return;
    http_client_free(p->client);
    registry_free(p->r);
    free(p->from);
    (void)pthread_mutex_destroy(&p->lock);
    free(p);
}

void push_note(void *arg, const char *text)
{
    struct push *p = arg;
    (void)pthread_mutex_lock(&p->lock);
    if (p->to && p->to->note)
        p->to->note(p->to->arg, text);
    (void)pthread_mutex_unlock(&p->lock);
}

/* --- one blob --- */

struct upload {
    struct push *p;
    struct http_client *c;
    struct place *place;
    const struct push_blob *blob;
    int fd;         /* of the store's blob, or -1 */
    char *location; /* where the next part goes, or NULL: no session is open */
    uint64_t have;  /* bytes that the registry took in this session */
    uint64_t shown; /* bytes that progress was told of */
    uint64_t piece; /* in pieces of so many bytes; 0: all at once */
};

static bool moved(struct push *p, int64_t delta)
{
    (void)pthread_mutex_lock(&p->lock);
    p->done += (uint64_t)delta;
    int64_t now = cb_monotonic_ms();
    if (p->to && p->to->bytes && (now - p->shown_ms >= PROGRESS_MS || p->done == p->total)) {
        p->shown_ms = now;
        p->to->bytes(p->to->arg, p->done, p->total, "bytes");
    }
    bool go_on = !p->stop;
    (void)pthread_mutex_unlock(&p->lock);
    return go_on;
}

static bool on_sent(void *arg, int64_t delta)
{
    struct upload *u = arg;
    u->shown += (uint64_t)delta;
    return moved(u->p, delta);
}

/* The registry has so many bytes of it, whatever was shown before. */
static void stands_at(struct upload *u, uint64_t have)
{
    u->have = have;
    (void)on_sent(u, (int64_t)have - (int64_t)u->shown);
}

static void drop_session(struct upload *u)
{
    free(u->location);
    u->location = NULL;
    stands_at(u, 0);
}

/* A request to the session's location, which may be on another host: then without a login. */
static int ask_session(struct upload *u, struct http_request *req, struct http_response *res,
                       struct cb_error *err)
{
    CB_AUTO_FREE char *here = http_origin(req->url);
    CB_AUTO_FREE char *ours = http_origin(u->place->base);
    if (strcmp(here, ours) == 0)
        return registry_ask(u->p->r, u->place, u->c, req, res, err);
    req->led = !http_host_is_loopback(u->place->host);
    return http_exchange(u->c, req, res, err);
}

/* Takes over where the next part goes. */
static int take_location(struct upload *u, const char *from, const struct http_response *res,
                         struct cb_error *err)
{
    char *next = NULL;
    if (!res->location)
        return cb_fail(err, CB_E_CORRUPT, "%s does not say where an upload goes on",
                       u->place->label);
    int rc = http_follow(from, res->location, &next, err);
    if (rc < 0)
        return rc;
    free(u->location);
    u->location = next;
    return 0;
}

/* 1: the registry has it; 0: not; or an error. */
static int is_there(struct upload *u, struct http_response *res, struct cb_error *err)
{
    char name[CB_DIGEST_LEN + 1];
    cb_digest_text(&u->blob->digest, name);
    CB_AUTO_FREE char *url = cb_xasprintf("%s/v2/%s/blobs/%s", u->place->base, u->p->r->path, name);
    struct http_request req = {.method = "HEAD", .url = url};
    int rc = registry_ask(u->p->r, u->place, u->c, &req, res, err);
    if (rc < 0 || res->status != 200)
        return rc; /* whatever else it says: the upload will tell */
    return res->length < 0 || (uint64_t)res->length == u->blob->size;
}

/* Opens a session. 1: it was not needed, the blob was mounted. */
static int begin(struct upload *u, struct http_response *res, struct cb_error *err)
{
    char name[CB_DIGEST_LEN + 1];
    cb_digest_text(&u->blob->digest, name);
    const char *from = u->p->from;
    for (;;) {
        CB_AUTO_FREE char *url =
            from ? cb_xasprintf("%s/v2/%s/blobs/uploads/?mount=%s&from=%s", u->place->base,
                                u->p->r->path, name, from)
                 : cb_xasprintf("%s/v2/%s/blobs/uploads/", u->place->base, u->p->r->path);
        struct http_request req = {.method = "POST", .url = url, .body_max = 64 << 10};
        int rc = registry_ask(u->p->r, u->place, u->c, &req, res, err);
        if (from && ((rc < 0 && rc == -CB_E_AUTH) ||
                     (rc == 0 && res->status >= 400 && res->status < 500 && res->status != 429))) {
            cb_error_clear(err); /* not to be mounted from there */
            http_response_release(res);
            from = NULL;
            continue;
        }
        if (rc < 0)
            return rc;
        if (from && res->status == 201)
            return 1;
        if (res->status != 202)
            return 0;
        if (u->piece && res->chunk_min > (int64_t)u->piece)
            u->piece = res->chunk_min < PIECE_MAX ? (uint64_t)res->chunk_min : PIECE_MAX;
        return take_location(u, url, res, err);
    }
}

static char *with_digest(const struct upload *u)
{
    char name[CB_DIGEST_LEN + 1];
    cb_digest_text(&u->blob->digest, name);
    return cb_xasprintf("%s%sdigest=%s", u->location, strchr(u->location, '?') ? "&" : "?", name);
}

/* The last request: with all bytes, or with none when they went up in pieces. */
static int finish(struct upload *u, struct http_response *res, struct cb_error *err)
{
    CB_AUTO_FREE char *url = with_digest(u);
    struct http_body body = {.mem = u->blob->mem,
                             .fd = u->fd,
                             .at = u->have,
                             .len = u->blob->size - u->have,
                             .type = "application/octet-stream"};
    if (body.mem)
        body.mem = (const char *)body.mem + u->have;
    struct http_request req = {.method = "PUT",
                               .url = url,
                               .body = &body,
                               .body_max = 64 << 10,
                               .sent = on_sent,
                               .arg = u};
    return ask_session(u, &req, res, err);
}

static int send_piece(struct upload *u, struct http_response *res, struct cb_error *err)
{
    uint64_t left = u->blob->size - u->have;
    uint64_t n = left < u->piece ? left : u->piece;
    CB_AUTO_FREE char *range = cb_xasprintf("%llu-%llu", (unsigned long long)u->have,
                                            (unsigned long long)(u->have + n - 1));
    struct http_body body = {.mem = u->blob->mem,
                             .fd = u->fd,
                             .at = u->have,
                             .len = n,
                             .type = "application/octet-stream",
                             .range = range};
    if (body.mem)
        body.mem = (const char *)body.mem + u->have;
    CB_AUTO_FREE char *url = cb_xstrdup(u->location);
    struct http_request req = {.method = "PATCH",
                               .url = url,
                               .body = &body,
                               .body_max = 64 << 10,
                               .sent = on_sent,
                               .arg = u};
    int rc = ask_session(u, &req, res, err);
    if (rc < 0 || res->status != 202)
        return rc;
    rc = take_location(u, url, res, err);
    if (rc == 0)
        stands_at(u, u->have + n);
    return rc;
}

/* After a cut: where the session stands, as the registry sees it. A session that is gone, or whose
 * answer makes no sense, is left for a new one. */
static void ask_where(struct upload *u)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *url = cb_xstrdup(u->location);
    struct http_request req = {.url = url, .body_max = 64 << 10};
    struct http_response res = HTTP_RESPONSE_INIT;
    uint64_t have = 0;
    int rc = ask_session(u, &req, &res, &err);
    bool known = rc == 0 && (res.status == 204 || res.status == 202) && res.range &&
                 http_upload_range(res.range, &have) && have <= u->blob->size;
    if (known && have == 1)
        have = 0; /* "0-0" is what one byte and none look like */
    if (known && res.location && take_location(u, url, &res, &err) < 0)
        known = false;
    if (known)
        stands_at(u, have);
    else
        drop_session(u);
    http_response_release(&res);
}

/* Tells the registry that nothing more will come. */
static void cancel(struct upload *u)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct http_response res = HTTP_RESPONSE_INIT;
    struct http_request req = {.method = "DELETE", .url = u->location, .body_max = 64 << 10};
    if (u->location)
        (void)ask_session(u, &req, &res, &err);
    http_response_release(&res);
    drop_session(u);
}

/* One more request of the upload. 1: the blob is there now (@res says how it ended). */
static int step(struct upload *u, enum push_end *end, struct http_response *res,
                struct cb_error *err)
{
    int rc;
    if (!u->location) {
        rc = is_there(u, res, err);
        if (rc != 0) {
            *end = PUSH_THERE;
            return rc;
        }
        http_response_release(res);
        rc = begin(u, res, err);
        *end = PUSH_MOUNTED;
        return rc;
    }
    if (u->piece && u->have < u->blob->size)
        return send_piece(u, res, err);
    rc = finish(u, res, err);
    *end = PUSH_SENT;
    if (rc < 0 || (res->status != 201 && res->status != 204))
        return rc;
    struct cb_digest said;
    if (res->digest && cb_digest_parse(res->digest, &said) &&
        !cb_digest_eq(&said, &u->blob->digest))
        return cb_fail(err, CB_E_CORRUPT, "%s kept the blob as %s", u->place->label, res->digest);
    return 1;
}

/* After an answer or a failure that was not the end: what to do differently. True when the upload
 * can go on at once. */
static bool adapt(struct upload *u, int rc, const struct http_response *res)
{
    if (rc == 0 && res->status == 202)
        return true;
    if (rc == 0 && res->status == 413 && u->piece == 0 && u->blob->size > push_piece) {
        u->piece = push_piece; /* too large for somebody on the way */
        drop_session(u);
        return true;
    }
    return false;
}

static int upload(struct upload *u, enum push_end *end, struct cb_error *err)
{
    struct tries tries = {0};
    bool adrift = false;
    for (;;) {
        struct http_response res = HTTP_RESPONSE_INIT;
        bool began = u->location != NULL;
        int rc = step(u, end, &res, err);
        if (rc > 0 || adapt(u, rc, &res)) {
            http_response_release(&res);
            if (rc > 0)
                return 0;
            registry_progressed(&tries, u->have);
            continue;
        }
        /* once: the session may have been forgotten, or stand elsewhere than we think */
        bool lost =
            rc == 0 && began && !adrift && (res.status == 404 || (res.status == 416 && u->piece));
        if (!lost && !registry_again(u->p->r, u->place, &tries, rc, &res, err)) {
            if (rc == 0)
                rc = registry_bad_status(u->place, &res, err);
            http_response_release(&res);
            cancel(u);
            return rc;
        }
        http_response_release(&res);
        adrift = adrift || lost;
        if (began && u->piece) {
            ask_where(u);
        } else if (began) { /* what was sent is lost; in pieces less is */
            if (u->blob->size > push_piece)
                u->piece = push_piece;
            cancel(u);
        }
    }
}

int push_one(struct push *p, struct http_client *c, struct store *s, const struct push_blob *blob,
             enum push_end *end, struct cb_error *err)
{
    char name[CB_DIGEST_LEN + 1];
    struct upload u = {.p = p, .c = c, .place = &p->r->at[0], .blob = blob, .fd = -1};
    cb_digest_text(&blob->digest, name);
    int rc = 0;
    uint64_t size = blob->size;
    if (!blob->mem) {
        u.fd = store_blob_open(s, &blob->digest, &size, err);
        rc = u.fd < 0 ? u.fd : 0;
        if (rc == 0 && size != blob->size)
            rc = cb_fail(err, CB_E_CORRUPT, "it has %llu bytes, not %llu", (unsigned long long)size,
                         (unsigned long long)blob->size);
    }
    if (rc == 0)
        rc = upload(&u, end, err);
    if (rc == 0)
        stands_at(&u, blob->size);
    cb_close(u.fd);
    free(u.location);
    return rc < 0 ? cb_wrap(err, "blob %.19s", name) : 0;
}

/* --- all blobs: a few threads, one list --- */

struct sending {
    struct push *p;
    struct store *store;
    const struct push_blob **todo;
    size_t n, next;          /* guarded by the session's lock, as what follows */
    struct push_result *out; /* what became of them */
    struct cb_error first;   /* the first failure; the others stop for it */
};

static void *sender(void *arg)
{
    struct sending *f = arg;
    struct push *p = f->p;
    struct http_client *c = registry_client(p->r);
    for (;;) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        enum push_end end = PUSH_SENT;
        (void)pthread_mutex_lock(&p->lock);
        const struct push_blob *b = p->stop || f->next == f->n ? NULL : f->todo[f->next++];
        (void)pthread_mutex_unlock(&p->lock);
        if (!b)
            break;
        int rc = push_one(p, c, f->store, b, &end, &err);
        (void)pthread_mutex_lock(&p->lock);
        if (rc == 0) {
            f->out->sent += end == PUSH_SENT;
            f->out->mounted += end == PUSH_MOUNTED;
            f->out->there += end == PUSH_THERE;
            f->out->bytes += end == PUSH_SENT ? b->size : 0;
        } else if (!p->stop) {
            cb_error_move(&f->first, &err);
            p->stop = true;
        }
        (void)pthread_mutex_unlock(&p->lock);
    }
    http_client_free(c);
    return NULL;
}

static int run_senders(struct sending *f, struct cb_error *err)
{
    pthread_t threads[SENDERS_MAX];
    sigset_t all, before; /* signals belong to the main thread */
    size_t n = 0, want = f->n < f->p->max_threads ? f->n : f->p->max_threads;
    int rc = 0;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    while (n < want && rc == 0) {
        rc = pthread_create(&threads[n], NULL, sender, f);
        n += rc == 0;
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    for (size_t i = 0; i < n; i++)
        (void)pthread_join(threads[i], NULL);
    if (f->p->stop) {
        f->p->stop = false;
        return cb_error_move(err, &f->first);
    }
    return n == 0 && want > 0 ? cb_fail_sys(err, rc, "start a thread") : 0;
}

int push_blobs(struct push *p, struct store *s, const struct push_blob *blobs, size_t n,
               struct push_result *out, struct cb_error *err)
{
    struct sending f = {.p = p, .store = s, .out = out, .first = CB_ERROR_INIT};
    f.todo = cb_xcalloc(n ? n : 1, sizeof(struct push_blob *));
    p->total = p->done = 0;
    for (size_t i = 0; i < n; i++) {
        bool known = false;
        for (size_t k = 0; k < f.n && !known; k++)
            known = cb_digest_eq(&f.todo[k]->digest, &blobs[i].digest);
        if (known)
            continue;
        f.todo[f.n++] = &blobs[i];
        p->total += blobs[i].size;
    }
    int rc = run_senders(&f, err);
    free(f.todo);
    return rc;
}
