#include "builder/git_mirror.h"

#include "builder/git_call.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/mem.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { SILENCE_MS = 60000, FOLDER_LEN = 32, UNUSED_S = 30 * 24 * 3600 };

struct fetch {
    struct git_call call;
    char *path;
    struct git_found found;
    uint64_t bytes;
};

static void fetch_release(struct git_call *call)
{
    struct fetch *f = (struct fetch *)call;
    free(f->path);
    free(f);
}

static char *mirror_path(const struct settings *settings, const char *url)
{
    char hex[CB_HEX_LEN + 1];
    struct cb_digest d;
    cb_sha256(url, strlen(url), &d);
    cb_digest_hex(&d, hex);
    return cb_xasprintf("%s/git/%.*s", settings->home, FOLDER_LEN, hex);
}

static bool has_commit(git_repository *repo, const char *commit)
{
    git_oid id;
    git_commit *c = NULL;
    bool has = git_oid_fromstr(&id, commit) == 0 && git_commit_lookup(&c, repo, &id) == 0;
    git_commit_free(c);
    return has;
}

static char *lock_of(const char *path)
{
    return cb_xasprintf("%s.lock", path);
}

int git_mirror_open(const struct settings *settings, const char *url, const char *commit,
                    git_repository **out, struct cb_error *err)
{
    git_prepare(settings);
    CB_AUTO_FREE char *path = mirror_path(settings, url);
    git_repository *repo = NULL;
    if (git_repository_open_bare(&repo, path) == 0 && has_commit(repo, commit)) {
        CB_AUTO_FREE char *lock = lock_of(path);
        (void)utimensat(AT_FDCWD, lock, NULL, 0); /* used now */
        *out = repo;
        return 0;
    }
    git_repository_free(repo);
    return cb_fail(err, CB_E_NOTFOUND, "commit %s of %s was not fetched yet", commit, url);
}

/* Fetches @refspecs; in the thread. */
static int fetch_some(struct fetch *f, git_remote *remote, const char *const *refspecs, size_t n,
                      struct cb_error *err)
{
    git_fetch_options o = {.version = GIT_FETCH_OPTIONS_VERSION,
                           .callbacks = {.version = GIT_REMOTE_CALLBACKS_VERSION},
                           .proxy_opts = {.version = GIT_PROXY_OPTIONS_VERSION},
                           .download_tags = GIT_REMOTE_DOWNLOAD_TAGS_NONE};
    char *words[2] = {NULL};
    f->call.logins = 0;
    git_call_options(&f->call, &o.callbacks, &o.proxy_opts);
    for (size_t i = 0; i < n; i++)
        words[i] = cb_xstrdup(refspecs[i]);
    const git_strarray specs = {.strings = words, .count = n};
    int rc = git_remote_fetch(remote, &specs, &o, "fetch");
    if (rc < 0)
        rc = git_fail(err, rc);
    else
        f->bytes += git_remote_stats(remote)->received_bytes;
    for (size_t i = 0; i < n; i++)
        free(words[i]);
    return rc;
}

/* Names of the other side are not kept as they are: one that was a branch and is a folder of
 * branches now would be in its own way. */
static char *spec_of_name(const char *name)
{
    char hex[CB_HEX_LEN + 1];
    struct cb_digest d;
    cb_sha256(name, strlen(name), &d);
    cb_digest_hex(&d, hex);
    return cb_xasprintf("+%s:refs/capsule/names/%.*s", name, FOLDER_LEN, hex);
}

/* The three ways to a commit, the one that brings least first. */
static int fetch_commit(struct fetch *f, git_repository *repo, git_remote *remote,
                        struct cb_error *err)
{
    CB_AUTO_ERROR by_name = CB_ERROR_INIT;
    CB_AUTO_ERROR by_commit = CB_ERROR_INIT;
    const char *commit = f->found.commit;
    if (f->found.name[0]) {
        CB_AUTO_FREE char *spec = spec_of_name(f->found.name);
        int rc = fetch_some(f, remote, (const char *const[]){spec}, 1, &by_name);
        if (rc < 0)
            return cb_error_move(err, &by_name);
        if (has_commit(repo, commit))
            return 0;
    }
    /* Not every server, and not every transport, gives a commit by its number. */
    CB_AUTO_FREE char *spec = cb_xasprintf("+%s:refs/capsule/commits/%s", commit, commit);
    if (fetch_some(f, remote, (const char *const[]){spec}, 1, &by_commit) == 0 &&
        has_commit(repo, commit))
        return 0;
    CB_AUTO_FREE char *heads = cb_xasprintf("+refs/heads/*:refs/capsule/all/%s/heads/*", commit);
    CB_AUTO_FREE char *tags = cb_xasprintf("+refs/tags/*:refs/capsule/all/%s/tags/*", commit);
    int rc = fetch_some(f, remote, (const char *const[]){heads, tags}, 2, err);
    if (rc < 0 || has_commit(repo, commit))
        return rc;
    cb_fail(err, CB_E_NOTFOUND, "no branch or tag of it leads to commit %s", commit);
    return cb_hint(err, "it may have been removed there; name another `ref`, or build without "
                        "--locked");
}

static int run_fetch(struct git_call *call, struct cb_error *err)
{
    struct fetch *f = (struct fetch *)call;
    git_repository *repo = NULL;
    git_remote *remote = NULL;
    int rc = git_repository_open_bare(&repo, f->path);
    if (rc == 0)
        rc = git_remote_create_anonymous(&remote, repo, call->url);
    rc = rc < 0 ? git_fail(err, rc) : fetch_commit(f, repo, remote, err);
    git_remote_free(remote);
    git_repository_free(repo);
    return rc;
}

/* One that cannot be opened is made anew: its making was cut off. */
static int make_mirror(const char *path, struct cb_error *err)
{
    git_repository *repo = NULL;
    int rc = 0;
    if (git_repository_open_bare(&repo, path) < 0) {
        if ((rc = cb_remove_tree(path, err)) < 0 || (rc = cb_mkdir_p(path, 0700, err)) < 0)
            return rc;
        rc = git_repository_init(&repo, path, 1);
        if (rc < 0)
            rc = git_fail(err, rc);
    }
    git_repository_free(repo);
    return rc < 0 ? cb_wrap(err, "make %s", path) : 0;
}

static bool unused(const char *lock)
{
    struct stat st;
    return stat(lock, &st) == 0 && st.st_mtim.tv_sec < time(NULL) - UNUSED_S;
}

/* Removes mirrors that nobody has used for long; the lock of each says when that was. */
static void trim(const char *dir)
{
    CB_AUTO_DIR d = opendir(dir);
    const struct dirent *e;
    while (d && (e = readdir(d))) {
        const char *end = strrchr(e->d_name, '.');
        if (!end || strcmp(end, ".lock") != 0)
            continue;
        CB_AUTO_ERROR busy = CB_ERROR_INIT;
        CB_AUTO_FREE char *lock = cb_xasprintf("%s/%s", dir, e->d_name);
        CB_AUTO_FREE char *path = cb_xstrndup(lock, strlen(lock) - strlen(".lock"));
        if (!unused(lock) || !cb_path_exists(path))
            continue;
        CB_AUTO_FD held = cb_lock_file(lock, false, &busy);
        if (held >= 0 && unused(lock))
            (void)cb_remove_tree(path, &busy);
    }
}

int git_mirror_fetch(const struct settings *settings, const char *url,
                     const struct git_found *found, uint64_t *bytes, git_repository **out,
                     struct cb_error *err)
{
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    *bytes = 0;
    if (git_mirror_open(settings, url, found->commit, out, &miss) == 0)
        return 0;
    CB_AUTO_FREE char *path = mirror_path(settings, url);
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/git", settings->home);
    CB_AUTO_FREE char *lock_path = lock_of(path);
    int rc = cb_mkdir_p(dir, 0700, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FD lock = cb_lock_file(lock_path, true, err);
    if (lock < 0)
        return lock;
    if ((rc = make_mirror(path, err)) < 0)
        return rc;
    struct fetch *f = git_call_new(sizeof(*f), settings, url, run_fetch, fetch_release);
    f->path = cb_xstrdup(path);
    f->found = *found;
    rc = git_call_wait(&f->call, SILENCE_MS, err);
    if (rc >= 0)
        *bytes = f->bytes;
    git_call_leave(&f->call);
    if (rc < 0)
        return cb_wrap(err, "%s", url);
    rc = git_mirror_open(settings, url, found->commit, out, err);
    trim(dir);
    return rc < 0 ? rc : 1;
}
