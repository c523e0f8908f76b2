#include "builder/git_tree.h"

#include "builder/git_call.h"
#include "schemas/git_source.h"
#include "schemas/ignore.h"
#include "support/buf.h"
#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    DEPTH_MAX = 200,      /* folders in folders */
    MODULE_DEPTH_MAX = 8, /* submodules in submodules */
    MODULES_TEXT_MAX = 1 << 20,
};
#define BLOB_MAX (UINT64_C(2) << 30) /* libgit2 reads a file into memory as a whole */

/* One repository that is walked, the config's or a submodule. */
struct level {
    const struct level *up;
    git_repository *repo;
    const char *url;
    git_time_t time;
    struct git_modules modules;
    size_t prefix; /* of walk.path: where paths of this repository begin */
    unsigned depth;
};

struct walk {
    struct git_tree_request *r;
    struct pack *p;
    struct cb_buf path; /* of the entry, in the pack's words */
    size_t cut;         /* what of the path in the repository is not part of that: r->path */
    unsigned depth, modules;
};

static int fail_git(const struct walk *w, struct cb_error *err)
{
    const git_error *e = git_error_last();
    CB_AUTO_FREE char *shown = pack_shown(w->path.data ? w->path.data : "");
    cb_fail(err, CB_E_CORRUPT, "%s: %s", shown,
            e && e->message ? e->message : "an object cannot be read");
    return cb_hint(err, "the copy below CAPSULE_BUILD_HOME/git may be damaged; remove that folder");
}

static int refuse(const struct walk *w, enum cb_code code, const char *what, struct cb_error *err)
{
    CB_AUTO_FREE char *shown = pack_shown(w->path.data ? w->path.data : "");
    return cb_fail(err, code, "%s: %s", shown, what);
}

/* As git does it: a name that could leave the folder, or become a repository's own. */
static bool name_ok(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           strcasecmp(name, ".git") != 0 && strcasecmp(name, "git~1") != 0;
}

static int put_entry(struct walk *w, const struct level *l, struct frame_entry e,
                     struct cb_error *err)
{
    e.mtime = l->time;
    e.path = w->path.data;
    e.path_len = (uint16_t)w->path.len;
    return pack_entry(w->p, &e, err);
}

static int put_blob(struct walk *w, const struct level *l, const git_oid *id, git_filemode_t mode,
                    struct cb_error *err)
{
    git_odb *odb = NULL;
    git_object_t type = GIT_OBJECT_INVALID;
    size_t size = 0;
    git_blob *blob = NULL;
    int rc = git_repository_odb(&odb, l->repo);
    if (rc == 0)
        rc = git_odb_read_header(&size, &type, odb, id);
    git_odb_free(odb);
    if (rc == 0 && size > BLOB_MAX)
        return refuse(w, CB_E_LIMIT, "a file of more than 2 GiB", err);
    if (rc < 0 || git_blob_lookup(&blob, l->repo, id) < 0)
        return fail_git(w, err);
    const char *content = git_blob_rawcontent(blob);
    struct frame_entry e = {.kind = ENTRY_FILE, .mode = 0644, .size = size};
    if (mode == GIT_FILEMODE_BLOB_EXECUTABLE)
        e.mode = 0755;
    CB_AUTO_FREE char *target = NULL;
    if (mode == GIT_FILEMODE_LINK) {
        if (size > FRAME_PATH_MAX || memchr(content, 0, size)) {
            git_blob_free(blob);
            return refuse(w, CB_E_UNTRUSTED, "a link whose target is no path", err);
        }
        target = cb_xstrndup(content, size);
        e = (struct frame_entry){
            .kind = ENTRY_LINK, .mode = 0777, .target = target, .target_len = (uint32_t)size};
    }
    rc = put_entry(w, l, e, err);
    if (rc >= 0 && e.kind == ENTRY_FILE && size)
        rc = pack_data(w->p, content, size, err);
    git_blob_free(blob);
    return rc;
}

static int put_tree(struct walk *w, const struct level *l, git_tree *tree, struct cb_error *err);

static int put_folder(struct walk *w, const struct level *l, const git_oid *id,
                      struct cb_error *err)
{
    git_tree *tree = NULL;
    if (git_tree_lookup(&tree, l->repo, id) < 0)
        return fail_git(w, err);
    int rc = put_entry(w, l, (struct frame_entry){.kind = ENTRY_FOLDER, .mode = 0755}, err);
    if (rc >= 0)
        rc = put_tree(w, l, tree, err);
    git_tree_free(tree);
    return rc;
}

/* ---- submodules ---- */

/* What its .gitmodules says; none is no submodule. */
static int read_modules(const struct walk *w, struct level *l, git_tree *root, struct cb_error *err)
{
    git_tree_entry *entry = NULL;
    git_blob *blob = NULL;
    if (git_tree_entry_bypath(&entry, root, ".gitmodules") < 0)
        return 0;
    int rc = 0;
    if (git_tree_entry_type(entry) == GIT_OBJECT_BLOB) {
        if (git_blob_lookup(&blob, l->repo, git_tree_entry_id(entry)) < 0)
            rc = fail_git(w, err);
        else if (git_blob_rawsize(blob) > MODULES_TEXT_MAX)
            rc = cb_fail(err, CB_E_LIMIT, "its .gitmodules is larger than 1 MiB");
        else
            rc = git_modules_parse(git_blob_rawcontent(blob), (size_t)git_blob_rawsize(blob),
                                   &l->modules, err);
    }
    git_blob_free(blob);
    git_tree_entry_free(entry);
    return rc;
}

/* The tree of a commit, whose time becomes that of @l's files. */
static int open_commit(const struct walk *w, struct level *l, const char *commit, git_tree **out,
                       struct cb_error *err)
{
    git_oid id;
    git_commit *c = NULL;
    int rc = git_oid_fromstr(&id, commit);
    if (rc == 0)
        rc = git_commit_lookup(&c, l->repo, &id);
    if (rc == 0) {
        l->time = git_commit_time(c);
        rc = git_commit_tree(out, c);
    }
    git_commit_free(c);
    return rc < 0 ? fail_git(w, err) : 0;
}

static int walk_module(struct walk *w, struct level *l, const char *commit, struct cb_error *err)
{
    struct git_found found = {.commit = ""};
    uint64_t bytes = 0;
    git_tree *tree = NULL;
    memcpy(found.commit, commit, GIT_COMMIT_LEN + 1);
    int rc = w->r->fetch ? git_mirror_fetch(w->r->settings, l->url, &found, &bytes, &l->repo, err)
                         : git_mirror_open(w->r->settings, l->url, commit, &l->repo, err);
    w->r->fetched += bytes;
    if (rc >= 0)
        rc = open_commit(w, l, commit, &tree, err);
    if (rc >= 0)
        rc = read_modules(w, l, tree, err);
    if (rc >= 0)
        rc = put_entry(w, l, (struct frame_entry){.kind = ENTRY_FOLDER, .mode = 0755}, err);
    if (rc >= 0)
        rc = put_tree(w, l, tree, err);
    git_modules_release(&l->modules);
    git_tree_free(tree);
    git_repository_free(l->repo);
    return rc;
}

static int put_module(struct walk *w, const struct level *l, const git_oid *id,
                      struct cb_error *err)
{
    char commit[GIT_COMMIT_LEN + 1];
    CB_AUTO_FREE char *url = NULL;
    CB_AUTO_FREE char *full = l->up || !w->r->path
                                  ? cb_xstrdup(w->path.data + l->prefix)
                                  : cb_xasprintf("%.*s%s", (int)w->cut, w->r->path, w->path.data);
    const char *written = git_modules_url(&l->modules, full);
    if (!written)
        return refuse(w, CB_E_CORRUPT, "a submodule that .gitmodules says nothing about", err);
    if (++w->modules > GIT_MODULES_MAX)
        return refuse(w, CB_E_LIMIT, "too many submodules", err);
    if (l->depth == MODULE_DEPTH_MAX)
        return refuse(w, CB_E_LIMIT, "too many submodules in submodules", err);
    int rc = git_module_url(l->url, written, &url, err);
    if (rc < 0)
        return rc;
    (void)git_oid_tostr(commit, sizeof(commit), id);
    struct level below = {.up = l, .url = url, .prefix = w->path.len + 1, .depth = l->depth + 1};
    rc = walk_module(w, &below, commit, err);
    return rc < 0 ? cb_wrap(err, "submodule %s", full) : 0;
}

/* ---- the walk ---- */

static int put_one(struct walk *w, const struct level *l, const git_tree_entry *e,
                   struct cb_error *err)
{
    const git_oid *id = git_tree_entry_id(e);
    git_filemode_t mode = git_tree_entry_filemode(e);
    switch (mode) {
    case GIT_FILEMODE_TREE: return put_folder(w, l, id, err);
    case GIT_FILEMODE_COMMIT: return put_module(w, l, id, err);
    case GIT_FILEMODE_BLOB:
    case GIT_FILEMODE_BLOB_EXECUTABLE:
    case GIT_FILEMODE_LINK: return put_blob(w, l, id, mode, err);
    case GIT_FILEMODE_UNREADABLE: break;
    }
    return refuse(w, CB_E_UNTRUSTED, "neither a file nor a folder", err);
}

static int put_tree(struct walk *w, const struct level *l, git_tree *tree, struct cb_error *err)
{
    size_t len = w->path.len;
    int rc = w->depth == DEPTH_MAX ? refuse(w, CB_E_LIMIT, "too many folders in folders", err) : 0;
    w->depth++;
    for (size_t i = 0; rc >= 0 && i < git_tree_entrycount(tree); i++) {
        const git_tree_entry *e = git_tree_entry_byindex(tree, i);
        const char *name = git_tree_entry_name(e);
        if (cb_buf_addf(&w->path, "%s%s", len ? "/" : "", name) < 0)
            rc = refuse(w, CB_E_LIMIT, "a path that is too long", err);
        else if (!name_ok(name))
            rc = refuse(w, CB_E_UNTRUSTED, "a name that git would not check out", err);
        else
            rc = put_one(w, l, e, err);
        w->path.len = len;
        if (w->path.data)
            w->path.data[len] = '\0';
    }
    w->depth--;
    return rc;
}

/* The part that is wanted: what is in a folder, or one file by its name. */
static int put_part(struct walk *w, const struct level *l, git_tree *root, const char *path,
                    struct context_place *place, struct cb_error *err)
{
    git_tree_entry *e = NULL;
    git_tree *tree = NULL;
    if (git_tree_entry_bypath(&e, root, path) < 0) {
        cb_fail(err, CB_E_CONFIG, "there is no %s in commit %s", path, w->r->commit);
        return cb_hint(err, "`path` is the name of a file or folder of the repository itself, not "
                            "of a submodule");
    }
    int rc;
    if (git_tree_entry_type(e) == GIT_OBJECT_TREE) {
        place->folder = true;
        rc = git_tree_lookup(&tree, l->repo, git_tree_entry_id(e)) < 0 ? fail_git(w, err)
                                                                       : put_tree(w, l, tree, err);
    } else if (git_tree_entry_type(e) == GIT_OBJECT_BLOB) {
        const char *slash = strrchr(path, '/');
        (void)cb_buf_adds(&w->path, slash ? slash + 1 : path);
        rc = put_one(w, l, e, err);
    } else {
        rc = cb_fail(err, CB_E_CONFIG, "%s is a submodule; name its own repository", path);
    }
    git_tree_free(tree);
    git_tree_entry_free(e);
    return rc;
}

int git_tree_pack(struct git_tree_request *r, git_repository *repo, struct pack *p,
                  struct context_place *place, struct cb_error *err)
{
    CB_AUTO_FREE char *part = r->path ? path_clean(r->path) : NULL;
    CB_AUTO_FREE char *below = NULL;
    git_tree *root = NULL;
    struct level top = {.repo = repo, .url = r->url};
    struct git_tree_request own = *r;
    if (part && strcmp(part, ".") == 0) {
        free(part);
        part = NULL;
    }
    if (part)
        below = cb_xasprintf("%s/", part);
    own.path = below;
    struct walk w = {.r = &own, .p = p, .path = CB_BUF_INIT(FRAME_PATH_MAX + 1)};
    w.cut = below ? strlen(below) : 0;
    int rc = open_commit(&w, &top, r->commit, &root, err);
    if (rc >= 0)
        rc = read_modules(&w, &top, root, err);
    if (rc >= 0 && part) {
        rc = put_part(&w, &top, root, part, place, err);
    } else if (rc >= 0) {
        place->folder = true;
        rc = put_tree(&w, &top, root, err);
    }
    r->fetched = own.fetched;
    git_modules_release(&top.modules);
    git_tree_free(root);
    cb_buf_release(&w.path);
    return rc < 0 ? cb_wrap(err, "%s", r->url) : 0;
}
