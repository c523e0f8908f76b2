#include "builder/git_ref.h"

#include "builder/git_call.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

struct question {
    struct git_call call;
    char *ref;
    struct git_found found;
};

static void question_release(struct git_call *call)
{
    struct question *q = (struct question *)call;
    free(q->ref);
    free(q);
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
    size_t len = strlen(h->name);
    if (len >= 3 && strcmp(h->name + len - 3, "^{}") == 0)
        len -= 3;
    if (len >= sizeof(q->found.name))
        return cb_fail(err, CB_E_LIMIT, "the name of a ref is too long");
    memcpy(q->found.name, h->name, len);
    (void)git_oid_tostr(q->found.commit, sizeof(q->found.commit), &h->oid);
    return 0;
}

static int ask(struct git_call *call, struct cb_error *err)
{
    struct question *q = (struct question *)call;
    git_remote *remote = NULL;
    git_remote_callbacks calls = {.version = GIT_REMOTE_CALLBACKS_VERSION};
    git_proxy_options proxy = {.version = GIT_PROXY_OPTIONS_VERSION};
    const git_remote_head **heads = NULL;
    size_t n = 0;
    git_call_options(call, &calls, &proxy);
    int rc = git_remote_create_detached(&remote, call->url);
    if (rc == 0)
        rc = git_remote_connect(remote, GIT_DIRECTION_FETCH, &calls, &proxy, NULL);
    if (rc == 0)
        rc = git_remote_ls(&heads, &n, remote);
    rc = rc < 0 ? git_fail(err, rc) : choose(q, heads, n, err);
    git_remote_free(remote);
    return rc;
}

bool git_is_commit(const char *ref)
{
    return ref && strlen(ref) == GIT_COMMIT_LEN &&
           strspn(ref, "0123456789abcdef") == GIT_COMMIT_LEN;
}

int git_ref_resolve(const struct settings *settings, const char *url, const char *ref,
                    int64_t timeout_ms, struct git_found *out, struct cb_error *err)
{
    *out = (struct git_found){.commit = ""};
    if (git_is_commit(ref)) {
        memcpy(out->commit, ref, GIT_COMMIT_LEN + 1);
        return 0;
    }
    struct question *q = git_call_new(sizeof(*q), settings, url, ask, question_release);
    q->ref = cb_xstrdup0(ref);
    int rc = git_call_wait(&q->call, timeout_ms, err);
    if (rc >= 0)
        *out = q->found;
    git_call_leave(&q->call);
    return rc < 0 ? cb_wrap(err, "%s", url) : 0;
}
