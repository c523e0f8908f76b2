#include "builder/git_call.h"

#include "schemas/git_source.h"
#include "support/buf.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CREDENTIALS_MAX = 1 << 20 };
#define FETCH_BYTES_MAX (UINT64_C(64) << 30)

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

/* The ways to log in by ssh: the agent, then the user's usual keys, where they need no passphrase.
 */
static const char *const ssh_keys[] = {"", "id_ed25519", "id_ecdsa", "id_rsa"};
enum { SSH_WAYS = sizeof(ssh_keys) / sizeof(ssh_keys[0]) };

static int ssh_login(git_credential **out, struct git_call *c, const char *user)
{
    const char *home = getenv("HOME");
    while (c->logins < SSH_WAYS) {
        const char *key = ssh_keys[c->logins++];
        if (!*key && getenv("SSH_AUTH_SOCK"))
            return git_credential_ssh_key_from_agent(out, user);
        CB_AUTO_FREE char *path = cb_xasprintf("%s/.ssh/%s", home ? home : "", key);
        if (*key && home && access(path, R_OK) == 0)
            return git_credential_ssh_key_new(out, user, NULL, path, "");
    }
    return GIT_PASSTHROUGH;
}

/* What `git credential-store` keeps, once. */
static int stored_login(git_credential **out, struct git_call *c, const char *url)
{
    const char *home = getenv("HOME"), *xdg = getenv("XDG_CONFIG_HOME");
    int rc = GIT_PASSTHROUGH;
    if (c->logins++ || !home)
        return rc;
    CB_AUTO_FREE char *own = cb_xasprintf("%s/.git-credentials", home);
    CB_AUTO_FREE char *config = xdg ? cb_xasprintf("%s/git/credentials", xdg)
                                    : cb_xasprintf("%s/.config/git/credentials", home);
    const char *const files[] = {own, config};
    for (size_t i = 0; i < 2 && rc == GIT_PASSTHROUGH; i++) {
        CB_AUTO_ERROR miss = CB_ERROR_INIT;
        CB_AUTO_BUF text = CB_BUF_INIT(CREDENTIALS_MAX);
        char *user = NULL, *password = NULL;
        if (cb_read_file(files[i], CREDENTIALS_MAX, &text, &miss) < 0 || !text.data)
            continue;
        if (git_credentials_find(text.data, url, &user, &password)) {
            rc = git_credential_userpass_plaintext_new(out, user, password);
            explicit_bzero(password, strlen(password));
            free(user);
            free(password);
        }
        explicit_bzero(text.data, text.len);
    }
    return rc;
}

/* @url: where we are now, after redirections. Asked again when a login was refused. */
static int login(git_credential **out, const char *url, const char *user, unsigned allowed,
                 void *arg)
{
    struct git_call *c = arg;
    heard(c);
    if (allowed & GIT_CREDENTIAL_SSH_KEY)
        return ssh_login(out, c, user ? user : "git");
    if (allowed & GIT_CREDENTIAL_USERNAME)
        return git_credential_username_new(out, "git");
    if (allowed & GIT_CREDENTIAL_USERPASS_PLAINTEXT)
        return stored_login(out, c, url);
    return GIT_PASSTHROUGH; /* "authentication required" */
}

static int on_progress(const git_indexer_progress *stats, void *arg)
{
    heard(arg);
    if (stats->received_bytes <= FETCH_BYTES_MAX)
        return 0;
    (void)git_error_set_str(GIT_ERROR_NET, "it sends more than 64 GiB");
    return GIT_EUSER;
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
    const char *text = e && e->message ? e->message : "libgit2 gives no reason";
    if (rc == GIT_ECERTIFICATE) {
        cb_fail(err, CB_E_UNTRUSTED, "%s", text);
        return cb_hint(err,
                       "https: name its authority in `ca_bundle` of the settings; ssh: compare "
                       "the host's key and add it to ~/.ssh/known_hosts");
    }
    if (strstr(text, "status code: 404"))
        return cb_fail(err, CB_E_NOTFOUND, "%s", text);
    if (rc != GIT_EAUTH && !strstr(text, "authentication required") &&
        !strstr(text, "status code: 40"))
        return cb_fail(err, CB_E_NET, "%s", text);
    cb_fail(err, CB_E_AUTH, "%s", text);
    return cb_hint(err,
                   "https: keep a login in ~/.git-credentials, as `git credential-store` does; "
                   "ssh: load a key with ssh-add");
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
