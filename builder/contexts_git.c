/* Sources from git: which commit, and its files. */
#include "builder/contexts.h"

#include "builder/git_tree.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

#define ASK_MS 20000

/* ---- what was last seen ---- */

static char *note_name(const struct context_source *s)
{
    return cb_xasprintf("git:%s %s", s->git, s->ref ? s->ref : "HEAD");
}

/* No reason to fail a build. */
static void remember(struct build *b, const struct context_source *s, const struct git_found *f)
{
    CB_AUTO_ERROR lost = CB_ERROR_INIT;
    CB_AUTO_FREE char *name = note_name(s);
    json_auto_t *o = json_pack("{s:s, s:s, s:I}", "commit", f->commit, "name", f->name,
                               "resolved_ms", (json_int_t)cb_now_ms());
    char *text = o ? json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    if (text)
        (void)store_note_put(b->store, name, text, &lost);
    free(text);
}

/* True when there is something; what is damaged is nothing. */
static bool last_seen(struct build *b, const struct context_source *s, struct git_found *f,
                      int64_t *when)
{
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_FREE char *name = note_name(s);
    if (store_note_get(b->store, name, &text, &miss) < 0)
        return false;
    json_auto_t *o = json_loadb(text.data ? text.data : "", text.len, 0, NULL);
    const char *commit = json_string_value(json_object_get(o, "commit"));
    const char *ref = json_string_value(json_object_get(o, "name"));
    if (!git_is_commit(commit) || !ref || strlen(ref) >= sizeof(f->name))
        return false;
    memcpy(f->commit, commit, sizeof(f->commit));
    memcpy(f->name, ref, strlen(ref) + 1);
    *when = json_integer_value(json_object_get(o, "resolved_ms"));
    return true;
}

/* ---- which commit ---- */

static bool same_text(json_t *v, const char *text)
{
    const char *is = json_string_value(v);
    return text ? is && strcmp(is, text) == 0 : !is;
}

static int by_lock(const struct build *b, const struct context_source *s, struct git_found *f,
                   struct cb_error *err)
{
    json_t *git = json_object_get(b->locked, "git");
    for (size_t i = 0; i < json_array_size(git); i++) {
        json_t *o = json_array_get(git, i);
        const char *commit = json_string_value(json_object_get(o, "commit"));
        if (!same_text(json_object_get(o, "git"), s->git) ||
            !same_text(json_object_get(o, "ref"), s->ref) || !git_is_commit(commit))
            continue;
        memcpy(f->commit, commit, sizeof(f->commit));
        return 0;
    }
    if (b->o->lock)
        return cb_fail(err, CB_E_CORRUPT, "the lock of build %s has no commit of it", b->o->resume);
    cb_fail(err, CB_E_CONFIG, "--locked: version %llu of %s has no commit of it in its lock",
            (unsigned long long)b->locked_by, b->name);
    return cb_hint(err, "build once without --locked to take it in");
}

static int ask(struct build *b, const struct context_source *s, struct git_found *f,
               struct cb_error *err)
{
    CB_AUTO_ERROR asked = CB_ERROR_INIT;
    struct git_found last = {.commit = ""};
    int64_t when = 0;
    bool seen = last_seen(b, s, &last, &when);
    if (b->o->pull != PULL_ALWAYS && seen) {
        *f = last;
        return 0;
    }
    if (b->o->pull == PULL_NEVER) {
        cb_fail(err, CB_E_NOTFOUND, "%s: nobody may be asked (--pull never)", s->git);
        return cb_hint(err, "build once with --pull missing or --pull always");
    }
    int rc = git_ref_resolve(b->settings, s->git, s->ref, ASK_MS, f, &asked);
    if (rc >= 0) {
        remember(b, s, f);
        return 0;
    }
    if (!seen || !cb_error_is_transient(&asked))
        return cb_error_move(err, &asked);
    char day[CB_RFC3339_LEN + 1];
    cb_rfc3339(when, day);
    emit_warning(&b->em, "%s; going on with commit %s as of %s", asked.msg, last.commit, day);
    *f = last;
    return 0;
}

static int find_commit(struct build *b, const struct context_source *s, struct git_found *f,
                       struct cb_error *err)
{
    *f = (struct git_found){.commit = ""};
    if (git_is_commit(s->ref)) {
        memcpy(f->commit, s->ref, sizeof(f->commit));
        return 0;
    }
    return b->o->locked || b->locked ? by_lock(b, s, f, err) : ask(b, s, f, err);
}

/* ---- its files ---- */

static int pack_repository(struct build *b, const struct context_source *s, git_repository *repo,
                           struct content *c, struct pack *p, uint64_t *fetched,
                           struct cb_error *err)
{
    struct context_place place = {.folder = s->dst[strlen(s->dst) - 1] == '/'};
    struct git_tree_request r = {.settings = b->settings,
                                 .url = s->git,
                                 .commit = c->commit,
                                 .path = s->path,
                                 .fetch = !b->look && b->o->pull != PULL_NEVER};
    int rc = git_tree_pack(&r, repo, p, &place, err);
    c->folder = place.folder;
    *fetched += r.fetched;
    return rc;
}

int content_git_pack(struct build *b, const struct context_source *s, struct content *c,
                     struct pack *p, struct cb_error *err)
{
    git_repository *repo = NULL;
    uint64_t fetched = 0;
    int rc = git_mirror_open(b->settings, s->git, c->commit, &repo, err);
    if (rc >= 0)
        rc = pack_repository(b, s, repo, c, p, &fetched, err);
    git_repository_free(repo);
    return rc;
}

static int learn_files(struct build *b, const struct context_source *s, const struct git_found *f,
                       struct content *c, struct cb_error *err)
{
    git_repository *repo = NULL;
    uint64_t fetched = 0;
    bool may_fetch = !b->look && b->o->pull != PULL_NEVER;
    int rc = may_fetch ? git_mirror_fetch(b->settings, s->git, f, &fetched, &repo, err)
                       : git_mirror_open(b->settings, s->git, f->commit, &repo, err);
    struct pack *p = pack_new(-1);
    if (rc >= 0)
        rc = pack_repository(b, s, repo, c, p, &fetched, err);
    if (rc >= 0)
        rc = pack_end(p, &c->sum, err);
    pack_free(p);
    git_repository_free(repo);
    if (rc < 0)
        return rc;
    char size[32];
    cb_human_bytes(fetched, size, sizeof(size));
    emit_note(&b->em, "commit %s, %s fetched", f->commit, fetched ? size : "nothing");
    c->known = true;
    return 0;
}

/* A plan says what it cannot know. */
static int leave_unknown(struct build *b, const struct layer *l, const struct context_source *s,
                         const struct content *c, const struct cb_error *why)
{
    if (!c->commit[0])
        cb_strv_addf(&b->unknown, "layer %s: the commit of %s: %s", l->name,
                     s->ref ? s->ref : "HEAD", why->msg);
    else
        cb_strv_addf(&b->unknown,
                     "layer %s: %s (a build does that); its cache key and what stands on it follow "
                     "from that",
                     l->name, why->msg);
    return 0;
}

int content_git_learn(struct build *b, const struct layer *l, const struct context_source *s,
                      struct content *c, struct cb_error *err)
{
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    CB_AUTO_FREE char *title =
        cb_xasprintf("fetch %s%s%s", s->git, s->ref ? " " : "", s->ref ? s->ref : "");
    struct git_found f;
    emit_step_start(&b->em, PHASE_RESOLVE, l->name, title);
    int rc = find_commit(b, s, &f, &why);
    if (rc >= 0) {
        memcpy(c->commit, f.commit, sizeof(c->commit));
        rc = learn_files(b, s, &f, c, &why);
    }
    bool later = c->commit[0] ? rc == -(int)CB_E_NOTFOUND : rc != -(int)CB_E_CONFIG;
    if (rc < 0 && b->look && later) {
        rc = leave_unknown(b, l, s, c, &why);
    } else if (rc < 0) {
        (void)cb_error_move(err, &why);
        return cb_wrap(err, "layer %s: context", l->name);
    }
    emit_step_end(&b->em, 0, NULL);
    return rc;
}
