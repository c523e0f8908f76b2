#include "builder/git_call.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void call_free(struct git_call *c)
{
    free(c->url);
    free(c->proxy);
    cb_error_clear(&c->error);
    (void)pthread_cond_destroy(&c->answered);
    (void)pthread_mutex_destroy(&c->lock);
    c->release(c);
}

void git_call_leave(struct git_call *c)
{
    (void)pthread_mutex_lock(&c->lock);
    bool last = c->alone;
    c->alone = true;
    (void)pthread_mutex_unlock(&c->lock);
    if (last)
        call_free(c);
}

static void heard(struct git_call *c)
{
    (void)pthread_mutex_lock(&c->lock);
    c->heard_ms = cb_monotonic_ms();
    (void)pthread_mutex_unlock(&c->lock);
}

/* A key of the ssh agent; whatever else there is, is tried by nobody. */
static int login(git_credential **out, const char *url, const char *user, unsigned allowed,
                 void *arg)
{
    struct git_call *c = arg;
    (void)url;
    heard(c);
    if (!(allowed & GIT_CREDENTIAL_SSH_KEY) || c->logins++ > 0)
        return GIT_PASSTHROUGH; /* "authentication required" */
    return git_credential_ssh_key_from_agent(out, user ? user : "git");
}

static int on_progress(const git_indexer_progress *stats, void *arg)
{
    (void)stats;
    heard(arg);
    return 0;
}

static int on_text(const char *text, int len, void *arg)
{
    (void)text;
    (void)len;
    heard(arg);
    return 0;
}

void git_call_options(struct git_call *c, git_remote_callbacks *calls, git_proxy_options *proxy)
{
    calls->credentials = login;
    calls->transfer_progress = on_progress;
    calls->sideband_progress = on_text;
    calls->payload = c;
    proxy->type = c->proxy ? GIT_PROXY_SPECIFIED : GIT_PROXY_AUTO;
    proxy->url = c->proxy;
}

int git_fail(struct cb_error *err, int rc)
{
    const git_error *e = git_error_last();
    enum cb_code code = rc == GIT_EAUTH ? CB_E_AUTH : CB_E_NET;
    return cb_fail(err, code, "%s", e && e->message ? e->message : "libgit2 gives no reason");
}

void git_prepare(const struct settings *s)
{
    static bool ready; /* never undone: a thread may be left behind */
    if (ready)
        return;
    ready = true;
    (void)git_libgit2_init();
    if (s->ca_bundle)
        (void)git_libgit2_opts(GIT_OPT_SET_SSL_CERT_LOCATIONS, s->ca_bundle, NULL);
    /* A build as root reads its user's repositories: nothing in one is run by libgit2. */
    (void)git_libgit2_opts(GIT_OPT_SET_OWNER_VALIDATION, 0);
    (void)git_libgit2_opts(GIT_OPT_ENABLE_FSYNC_GITDIR, 1);
}

void *git_call_new(size_t size, const struct settings *settings, const char *url,
                   int (*run)(struct git_call *call, struct cb_error *err),
                   void (*release)(struct git_call *call))
{
    git_prepare(settings);
    struct git_call *c = cb_xcalloc(1, size);
    c->run = run;
    c->release = release;
    c->url = cb_xstrdup(url);
    c->proxy = cb_xstrdup0(settings->proxy);
    (void)pthread_mutex_init(&c->lock, NULL);
    (void)pthread_cond_init(&c->answered, NULL);
    return c;
}

static void *thread_main(void *arg)
{
    struct git_call *c = arg;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = c->run(c, &err);
    (void)pthread_mutex_lock(&c->lock);
    if (rc < 0)
        (void)cb_error_move(&c->error, &err);
    c->done = true;
    (void)pthread_cond_signal(&c->answered);
    (void)pthread_mutex_unlock(&c->lock);
    git_call_leave(c);
    return NULL;
}

static int start(struct git_call *c, struct cb_error *err)
{
    pthread_t thread;
    pthread_attr_t attr;
    sigset_t all, before; /* signals belong to the main thread */
    sigfillset(&all);
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread, &attr, thread_main, c);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attr);
    return rc ? cb_fail_sys(err, rc, "start a thread") : 0;
}

/* With the lock held: until it is done, or silent for too long. */
static void wait_for(struct git_call *c, int64_t silence_ms)
{
    while (!c->done) {
        int64_t until_ms = c->heard_ms + silence_ms;
        if (cb_monotonic_ms() >= until_ms)
            return;
        const struct timespec until = {.tv_sec = (time_t)(until_ms / 1000),
                                       .tv_nsec = (long)(until_ms % 1000) * 1000000};
        (void)pthread_cond_clockwait(&c->answered, &c->lock, CLOCK_MONOTONIC, &until);
    }
}

int git_call_wait(struct git_call *c, int64_t silence_ms, struct cb_error *err)
{
    c->heard_ms = cb_monotonic_ms();
    int rc = start(c, err);
    if (rc < 0) {
        c->alone = true; /* there is no other one */
        return rc;
    }
    (void)pthread_mutex_lock(&c->lock);
    wait_for(c, silence_ms);
    if (!c->done)
        rc = cb_fail(err, CB_E_TIMEOUT, "no answer within %lld s", (long long)silence_ms / 1000);
    else if (c->error.code)
        rc = cb_error_move(err, &c->error);
    (void)pthread_mutex_unlock(&c->lock);
    return rc;
}
