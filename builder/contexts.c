#include "builder/contexts.h"

#include "builder/context_files.h"
#include "builder/run_command.h"
#include "schemas/copy_args.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Of a list of sources, or of commands, where copies use them; all are owned. */
struct content_list {
    struct content *v;
    struct cb_digest *digests; /* the same, for keys */
    size_t n;
};

/* What one layer takes. */
struct of_layer {
    struct content_list context, copied;
    struct content_list *drives;            /* of the commands of each; owned */
    const struct cb_digest **drive_digests; /* the same, for keys; owned */
    size_t n_drives;
};

struct contents {
    struct of_layer *layers;
    size_t n;
};

static void list_init(struct content_list *l, size_t n)
{
    l->n = n;
    l->v = cb_xcalloc(n + 1, sizeof(*l->v));
    l->digests = cb_xcalloc(n + 1, sizeof(*l->digests));
}

static void list_release(struct content_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        free(l->v[i].path);
    free(l->v);
    free(l->digests);
}

void contents_release(struct build *b)
{
    struct contents *all = b->contents;
    for (size_t i = 0; all && i < all->n; i++) {
        struct of_layer *l = &all->layers[i];
        list_release(&l->context);
        list_release(&l->copied);
        for (size_t k = 0; k < l->n_drives; k++)
            list_release(&l->drives[k]);
        free(l->drives);
        free(l->drive_digests);
    }
    if (all)
        free(all->layers);
    free(all);
    b->contents = NULL;
}

static struct contents *contents_new(const struct workload_config *c)
{
    struct contents *all = cb_xcalloc(1, sizeof(*all));
    all->n = c->n_layers;
    all->layers = cb_xcalloc(all->n + 1, sizeof(*all->layers));
    for (size_t i = 0; i < all->n; i++) {
        struct of_layer *l = &all->layers[i];
        list_init(&l->context, c->layers[i].n_context);
        list_init(&l->copied, c->layers[i].init_commands.n);
        l->n_drives = c->layers[i].n_drives;
        l->drives = cb_xcalloc(l->n_drives + 1, sizeof(*l->drives));
        l->drive_digests = cb_xcalloc(l->n_drives + 1, sizeof(*l->drive_digests));
        for (size_t k = 0; k < l->n_drives; k++) {
            list_init(&l->drives[k], c->layers[i].drives[k].commands.n);
            l->drive_digests[k] = l->drives[k].digests;
        }
    }
    return all;
}

/* ---- one content, into a pack ---- */

static int pack_context(struct build *b, const struct context_folder *f,
                        const struct context_source *s, struct pack *p, struct content *c,
                        struct cb_error *err)
{
    if (s->git)
        return content_git_pack(b, s, c, p, err);
    struct context_place place = {.folder = s->dst[strlen(s->dst) - 1] == '/'};
    int rc = context_pack(f, s->src, p, &place, err);
    c->folder = place.folder;
    return rc;
}

static int pack_copy(const struct context_folder *f, const struct command *cmd, struct pack *p,
                     struct content *c, struct cb_error *err)
{
    struct copy_args args;
    const char *wrong = copy_args_parse(&cmd->args, &args);
    if (wrong)
        return cb_fail(err, CB_E_CONFIG, "a command of type copy needs %s", wrong);
    struct context_place place = {.folder =
                                      args.n_sources > 1 || args.to[strlen(args.to) - 1] == '/'};
    int rc = 0;
    for (size_t i = 0; rc >= 0 && i < args.n_sources; i++)
        rc = context_pack_wild(f, args.sources[i], p, &place, err);
    c->folder = place.folder;
    return rc;
}

/* Where one content comes from: a source of `context`, or a copy. */
struct origin {
    const struct layer *layer;
    const struct context_source *source; /* or NULL */
    const struct commands *commands;     /* of the layer, or of a drive */
    const struct drive *drive;           /* whose they are, or NULL */
    size_t command;
};

/* Packs what @o names; @fd: where to, -1: only to know it. */
static int pack_origin(struct build *b, const struct context_folder *f, const struct origin *o,
                       int fd, struct content *c, struct cb_error *err)
{
    struct pack *p = pack_new(fd);
    int rc = o->source ? pack_context(b, f, o->source, p, c, err)
                       : pack_copy(f, &o->commands->v[o->command], p, c, err);
    if (rc >= 0)
        rc = pack_end(p, &c->sum, err);
    pack_free(p);
    if (rc < 0 && o->source)
        return cb_wrap(err, "layer %s: context", o->layer->name);
    if (rc < 0)
        return cb_wrap(err, "layer %s%s%s: command %zu of %zu: copy", o->layer->name,
                       o->drive ? ": drive " : "", o->drive ? o->drive->drive_id : "",
                       o->command + 1, o->commands->n);
    c->known = true;
    return 0;
}

/* ---- all of them ---- */

typedef int content_fn(struct build *b, const struct origin *o, struct content *c, void *arg,
                       struct cb_error *err);

static int for_each_copy(struct build *b, struct origin o, struct content_list *list,
                         content_fn *fn, void *arg, struct cb_error *err)
{
    int rc = 0;
    for (o.command = 0; rc >= 0 && o.command < o.commands->n; o.command++)
        if (o.commands->v[o.command].type == COMMAND_COPY)
            rc = fn(b, &o, &list->v[o.command], arg, err);
    return rc;
}

/* Calls @fn for everything that layers from @first on take. */
static int for_each_content(struct build *b, size_t first, content_fn *fn, void *arg,
                            struct cb_error *err)
{
    int rc = 0;
    for (size_t i = first; i < b->contents->n; i++) {
        struct of_layer *mine = &b->contents->layers[i];
        const struct layer *l = &b->c->layers[i];
        struct origin o = {.layer = l};
        for (size_t k = 0; rc >= 0 && k < l->n_context; k++) {
            o.source = &l->context[k];
            rc = fn(b, &o, &mine->context.v[k], arg, err);
        }
        o.source = NULL;
        o.commands = &l->init_commands;
        if (rc >= 0)
            rc = for_each_copy(b, o, &mine->copied, fn, arg, err);
        for (size_t k = 0; rc >= 0 && k < l->n_drives; k++) {
            o.drive = &l->drives[k];
            o.commands = &o.drive->commands;
            rc = for_each_copy(b, o, &mine->drives[k], fn, arg, err);
        }
    }
    return rc;
}

/* Opened by the first content that needs it. */
static int folder_of(struct build *b, const struct origin *o, struct context_folder *f,
                     struct cb_error *err)
{
    if (f->fd >= 0 || (o->source && o->source->git))
        return 0;
    if (!b->o->base_dir)
        return cb_fail(err, CB_E_CONFIG,
                       "files beside the config are asked for, and its folder is not known");
    return context_folder_open(f, b->o->base_dir, err);
}

/* "app -> /srv/app" */
static char *title_of(const struct origin *o)
{
    if (!o->source)
        return command_title(&o->commands->v[o->command]);
    return cb_xasprintf("context %s -> %s", o->source->src ? o->source->src : o->source->git,
                        o->source->dst);
}

static int learn(struct build *b, const struct origin *o, struct content *c, void *arg,
                 struct cb_error *err)
{
    struct context_folder *f = arg;
    int rc = folder_of(b, o, f, err);
    if (rc >= 0 && o->source && o->source->git)
        rc = content_git_learn(b, o->layer, o->source, c, err);
    else if (rc >= 0)
        rc = pack_origin(b, f, o, -1, c, err);
    if (rc < 0 || !c->known)
        return rc;
    char digest[CB_DIGEST_LEN + 1], size[32];
    cb_digest_text(&c->sum.digest, digest);
    cb_human_bytes(c->sum.bytes, size, sizeof(size));
    CB_AUTO_FREE char *title = title_of(o);
    emit_note(&b->em, "layer %s: %s: %llu entries, %s, %s", o->layer->name, title,
              (unsigned long long)c->sum.entries, size, digest);
    return 0;
}

static void list_digests(struct content_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        l->digests[i] = l->v[i].sum.digest;
}

int contents_resolve(struct build *b, struct cb_error *err)
{
    struct context_folder f = {.fd = -1};
    b->contents = contents_new(b->c);
    int rc = for_each_content(b, 0, learn, &f, err);
    context_folder_close(&f);
    for (size_t i = 0; rc >= 0 && i < b->contents->n; i++) {
        struct of_layer *l = &b->contents->layers[i];
        list_digests(&l->context);
        list_digests(&l->copied);
        for (size_t k = 0; k < l->n_drives; k++)
            list_digests(&l->drives[k]);
    }
    return rc;
}

bool contents_known(const struct build *b, size_t i)
{
    const struct content_list *l = &b->contents->layers[i].context;
    for (size_t k = 0; k < l->n; k++)
        if (!l->v[k].known)
            return false;
    return true;
}

void contents_of_layer(struct build *b, size_t i, struct layer_contents *in)
{
    const struct of_layer *l = &b->contents->layers[i];
    *in = (struct layer_contents){
        .context = l->context.digests, .copied = l->copied.digests, .drives = l->drive_digests};
}

struct keeping {
    struct context_folder folder;
    size_t n; /* packs so far: their names */
};

static int keep(struct build *b, const struct origin *o, struct content *c, void *arg,
                struct cb_error *err)
{
    struct keeping *k = arg;
    struct content now = {.known = false};
    CB_AUTO_FREE char *path = cb_xasprintf("%s/content-%zu", b->o->work_dir, k->n++);
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return cb_fail_sys(err, errno, "make %s", path);
    int rc = folder_of(b, o, &k->folder, err);
    memcpy(now.commit, c->commit, sizeof(now.commit));
    if (rc >= 0)
        rc = pack_origin(b, &k->folder, o, fd, &now, err);
    if (rc < 0)
        return rc;
    if (!cb_digest_eq(&now.sum.digest, &c->sum.digest)) {
        CB_AUTO_FREE char *title = title_of(o);
        cb_fail(err, CB_E_CONFLICT, "layer %s: %s: files changed after the build began",
                o->layer->name, title);
        return cb_hint(err, "run the same line again");
    }
    c->path = cb_take_ptr(&path);
    return 0;
}

int contents_keep(struct build *b, size_t first, struct cb_error *err)
{
    struct keeping k = {.folder = {.fd = -1}};
    int rc = for_each_content(b, first, keep, &k, err);
    context_folder_close(&k.folder);
    return rc;
}

/* ---- in a plan ---- */

size_t contents_count_git(const struct build *b)
{
    size_t n = 0;
    for (size_t i = 0; i < b->c->n_layers; i++)
        for (size_t k = 0; k < b->c->layers[i].n_context; k++)
            n += b->c->layers[i].context[k].git != NULL;
    return n;
}

json_t *contents_lock(const struct build *b)
{
    json_t *out = json_array();
    for (size_t i = 0; i < b->c->n_layers; i++) {
        const struct layer *l = &b->c->layers[i];
        for (size_t k = 0; k < l->n_context; k++) {
            const char *commit = b->contents->layers[i].context.v[k].commit;
            if (l->context[k].git)
                (void)json_array_append_new(out, json_pack("{s:s, s:s, s:s?, s:s?}", "layer",
                                                           l->name, "git", l->context[k].git, "ref",
                                                           l->context[k].ref, "commit",
                                                           commit[0] ? commit : NULL));
        }
    }
    return out;
}

static json_t *content_json(const struct content *c)
{
    char digest[CB_DIGEST_LEN + 1];
    cb_digest_text(&c->sum.digest, digest);
    return json_pack("{s:o, s:I, s:I}", "digest", c->known ? json_string(digest) : json_null(),
                     "entries", (json_int_t)c->sum.entries, "bytes", (json_int_t)c->sum.bytes);
}

json_t *contents_json(const struct build *b, size_t i)
{
    const struct layer *l = &b->c->layers[i];
    json_t *out = json_array();
    for (size_t k = 0; k < l->n_context; k++) {
        const struct context_source *s = &l->context[k];
        json_t *o = content_json(&b->contents->layers[i].context.v[k]);
        (void)json_object_set_new(o, s->src ? "src" : "git", json_string(s->src ? s->src : s->git));
        (void)json_object_set_new(o, "dst", json_string(s->dst));
        (void)json_array_append_new(out, o);
    }
    return out;
}

static void add_copies(json_t *out, const struct commands *cmds, const struct content_list *list,
                       const char *drive)
{
    for (size_t k = 0; k < cmds->n; k++) {
        if (cmds->v[k].type != COMMAND_COPY)
            continue;
        json_t *o = content_json(&list->v[k]);
        (void)json_object_set_new(o, "command", json_integer((json_int_t)k + 1));
        if (drive)
            (void)json_object_set_new(o, "drive", json_string(drive));
        (void)json_array_append_new(out, o);
    }
}

json_t *contents_copies_json(const struct build *b, size_t i)
{
    const struct layer *l = &b->c->layers[i];
    const struct of_layer *mine = &b->contents->layers[i];
    json_t *out = json_array();
    add_copies(out, &l->init_commands, &mine->copied, NULL);
    for (size_t k = 0; k < l->n_drives; k++)
        add_copies(out, &l->drives[k].commands, &mine->drives[k], l->drives[k].drive_id);
    return out;
}

/* ---- into the machine ---- */

struct sending {
    const struct layers_progress *progress;
    uint64_t total;
};

static void on_sent(void *arg, uint64_t bytes)
{
    const struct sending *s = arg;
    s->progress->bytes(s->progress->arg, bytes, s->total, "bytes");
}

static int send(struct talk *t, const struct content *c, struct guest_copy *g, const char *to,
                struct cb_error *err)
{
    CB_AUTO_FREE char *clean = path_clean(to);
    CB_AUTO_FD fd = open(c->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", c->path);
    struct stat st;
    struct sending sending = {.progress = &t->b->em.progress};
    if (fstat(fd, &st) == 0)
        sending.total = (uint64_t)st.st_size;
    g->sent = on_sent;
    g->sent_arg = &sending;
    g->to = clean;
    g->folder = c->folder;
    g->fd = fd;
    return session_copy(t->s, g, err);
}

/* Files that do not fit the image are the author's to mend; the rest is the machine's failure. */
static int fail_send(struct talk *t, const char *layer, const char *title, struct cb_error *err)
{
    cb_wrap(err, "layer %s: %s", layer, title);
    int rc = talk_explain(t, err);
    emit_step_end(&t->b->em, 1, err);
    return rc;
}

int run_contexts(struct talk *t, const struct build_layer *l, struct cb_error *err)
{
    struct build *b = t->b;
    size_t at = (size_t)(l - b->layers);
    for (size_t i = 0; i < l->declared->n_context; i++) {
        const struct origin o = {.layer = l->declared, .source = &l->declared->context[i]};
        const struct content *c = &b->contents->layers[at].context.v[i];
        if (!c->path)
            continue;
        CB_AUTO_FREE char *title = title_of(&o);
        int step = emit_step_start(&b->em, PHASE_PRE_BUILD, l->declared->name, title);
        struct guest_copy g = {.step = (uint32_t)step, .mode = -1, .user = t->state.now.user};
        int rc = send(t, c, &g, o.source->dst, err);
        if (rc < 0)
            return fail_send(t, l->declared->name, title, err);
        emit_step_end(&b->em, 0, NULL);
    }
    return 0;
}

/* The contents of the list that is run; NULL: of a kind that has no copies. */
static const struct content_list *contents_of_list(const struct talk *t, const struct layer *l)
{
    const struct of_layer *mine = &t->b->contents->layers[l - t->b->c->layers];
    for (size_t k = 0; k < l->n_drives; k++)
        if (t->commands == &l->drives[k].commands)
            return &mine->drives[k];
    return t->commands == &l->init_commands ? &mine->copied : NULL;
}

int run_copy(struct talk *t, const struct layer *l, size_t i, struct cb_error *err)
{
    struct build *b = t->b;
    const struct command *cmd = &t->commands->v[i];
    const struct content_list *list = contents_of_list(t, l);
    const struct content *c = list ? &list->v[i] : NULL;
    CB_AUTO_FREE char *title = command_title(cmd);
    int step = emit_step_start(&b->em, PHASE_RECIPE, l->name, title);
    struct copy_args args;
    const char *wrong = copy_args_parse(&cmd->args, &args);
    if (wrong || !c || !c->path)
        return cb_fail(err, CB_E_BUG, "layer %s: a copy that was not prepared", l->name);
    struct guest_copy g = {.step = (uint32_t)step,
                           .mode = args.chmod,
                           .owner = args.chown,
                           .user = t->state.now.user,
                           .as_root = cmd->run_as_root,
                           .into_mounts = t->drive_id != NULL};
    int rc = send(t, c, &g, args.to, err);
    if (rc < 0) {
        CB_AUTO_FREE char *which =
            cb_xasprintf("%s%scommand %zu of %zu: %s", t->drive_id ? t->drive_id : "",
                         t->drive_id ? ": " : "", i + 1, t->commands->n, title);
        return fail_send(t, l->name, which, err);
    }
    emit_step_end(&b->em, 0, NULL);
    return 0;
}
