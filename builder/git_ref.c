#include "builder/git_ref.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <errno.h>
#include <git2.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* One question. The thread and the caller share it; the last of both frees it. */
struct question {
    char *url, *ref, *proxy;
    int logins; /* only the thread: an agent's keys are offered once */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t answered;
    bool done, alone; /* alone: the other one has gone */
    char commit[GIT_COMMIT_LEN + 1];
    struct cb_error error;
};

static void question_free(struct question *q)
{
    free(q->url);
    free(q->ref);
    free(q->proxy);
    cb_error_clear(&q->error);
    (void)pthread_cond_destroy(&q->answered);
    (void)pthread_mutex_destroy(&q->lock);
    free(q);
}

/* With the lock held; releases it. */
static void leave(struct question *q)
{
    bool last = q->alone;
    q->alone = true;
    (void)pthread_mutex_unlock(&q->lock);
    if (last)
        question_free(q);
}

static int login(git_credential **out, const char *url, const char *user, unsigned allowed,
                 void *arg)
{
    struct question *q = arg;
    (void)url;
    if (!(allowed & GIT_CREDENTIAL_SSH_KEY) || q->logins++ > 0)
        return GIT_PASSTHROUGH; /* "authentication required" */
    return git_credential_ssh_key_from_agent(out, user ? user : "git");
}

static int fail_git(struct cb_error *err, int rc)
{
    const git_error *e = git_error_last();
    enum cb_code code = rc == GIT_EAUTH ? CB_E_AUTH : CB_E_NET;
    return cb_fail(err, code, "%s", e && e->message ? e->message : "libgit2 gives no reason");
}

static const git_remote_head *find(const git_remote_head **heads, size_t n, const char *prefix,
                                   const char *name, const char *suffix)
{
    CB_AUTO_FREE char *want = cb_xasprintf("%s%s%s", prefix, name, suffix);
    for (size_t i = 0; i < n; i++)
        if (strcmp(heads[i]->name, want) == 0)
            return heads[i];
    return NULL;
}

static int choose(struct question *q, const git_remote_head **heads, size_t n, struct cb_error *err)
{
    const char *ref = q->ref ? q->ref : "HEAD";
    const git_remote_head *h = NULL;
    bool whole = !q->ref || strncmp(ref, "refs/", 5) == 0;
    if (whole && !(h = find(heads, n, "", ref, "^{}")))
        h = find(heads, n, "", ref, "");
    if (!whole && !(h = find(heads, n, "refs/heads/", ref, "")) &&
        !(h = find(heads, n, "refs/tags/", ref, "^{}")))
        h = find(heads, n, "refs/tags/", ref, "");
    if (!h)
        return cb_fail(err, CB_E_NOTFOUND, "it has no branch or tag \"%s\"", ref);
    (void)git_oid_tostr(q->commit, sizeof(q->commit), &h->oid);
    return 0;
}

static int ask(struct question *q, struct cb_error *err)
{
    git_remote *remote = NULL;
    git_remote_callbacks calls = {.version = GIT_REMOTE_CALLBACKS_VERSION};
    git_proxy_options proxy = {.version = GIT_PROXY_OPTIONS_VERSION};
    const git_remote_head **heads = NULL;
    size_t n = 0;
    calls.credentials = login;
    calls.payload = q;
    proxy.type = q->proxy ? GIT_PROXY_SPECIFIED : GIT_PROXY_AUTO;
    proxy.url = q->proxy;
    int rc = git_remote_create_detached(&remote, q->url);
    if (rc == 0)
        rc = git_remote_connect(remote, GIT_DIRECTION_FETCH, &calls, &proxy, NULL);
    if (rc == 0)
        rc = git_remote_ls(&heads, &n, remote);
    rc = rc < 0 ? fail_git(err, rc) : choose(q, heads, n, err);
    git_remote_free(remote);
    return rc;
}

static void *run(void *arg)
{
    struct question *q = arg;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = ask(q, &err);
    (void)pthread_mutex_lock(&q->lock);
    if (rc < 0)
        cb_error_move(&q->error, &err);
    q->done = true;
    (void)pthread_cond_signal(&q->answered);
    leave(q);
    return NULL;
}

static void prepare(const struct settings *s)
{
    static bool ready; /* never undone: a thread may be left behind */
    if (ready)
        return;
    ready = true;
    (void)git_libgit2_init();
    if (s->ca_bundle)
        (void)git_libgit2_opts(GIT_OPT_SET_SSL_CERT_LOCATIONS, s->ca_bundle, NULL);
}

static int start(struct question *q, struct cb_error *err)
{
    pthread_t thread;
    pthread_attr_t attr;
    sigset_t all, before; /* signals belong to the main thread */
    sigfillset(&all);
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread, &attr, run, q);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attr);
    return rc ? cb_fail_sys(err, rc, "start a thread") : 0;
}

/* With the lock held. */
static int wait_answer(struct question *q, int64_t timeout_ms, char *commit, struct cb_error *err)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(timeout_ms / 1000);
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    while (!q->done &&
           pthread_cond_clockwait(&q->answered, &q->lock, CLOCK_MONOTONIC, &until) != ETIMEDOUT)
        ;
    if (!q->done)
        return cb_fail(err, CB_E_TIMEOUT, "no answer within %lld s", (long long)timeout_ms / 1000);
    if (q->error.code)
        return cb_error_move(err, &q->error);
    memcpy(commit, q->commit, sizeof(q->commit));
    return 0;
}

int git_ref_resolve(const struct settings *settings, const char *url, const char *ref,
                    int64_t timeout_ms, char commit[GIT_COMMIT_LEN + 1], struct cb_error *err)
{
    if (ref && strlen(ref) == GIT_COMMIT_LEN && strspn(ref, "0123456789abcdef") == GIT_COMMIT_LEN) {
        memcpy(commit, ref, GIT_COMMIT_LEN + 1);
        return 0;
    }
    prepare(settings);
    struct question *q = cb_xcalloc(1, sizeof(*q));
    q->url = cb_xstrdup(url);
    q->ref = ref ? cb_xstrdup(ref) : NULL;
    q->proxy = settings->proxy ? cb_xstrdup(settings->proxy) : NULL;
    (void)pthread_mutex_init(&q->lock, NULL);
    (void)pthread_cond_init(&q->answered, NULL);
    int rc = start(q, err);
    if (rc < 0) {
        question_free(q);
    } else {
        (void)pthread_mutex_lock(&q->lock);
        rc = wait_answer(q, timeout_ms, commit, err);
        leave(q);
    }
    return rc < 0 ? cb_wrap(err, "%s", url) : 0;
}
