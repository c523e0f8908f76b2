/* The plan of a build: what moving names point at now, the keys, and what of it is cached. */
#include "builder/build_private.h"
#include "builder/contexts.h"
#include "builder/drives.h"
#include "builder/explain.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define ARCH "amd64"
#define GIB (UINT64_C(1) << 30)

char *command_title(const struct command *cmd)
{
    enum { TITLE_MAX = 160 };
    if (cmd->name)
        return cb_xstrdup(cmd->name);
    CB_AUTO_BUF b = CB_BUF_INIT(64 << 10);
    if (cmd->type != COMMAND_SHELL && cmd->type != COMMAND_EXEC)
        cb_buf_addf(&b, "%s ", command_type_name(cmd->type));
    const char *script = cmd->script;
    bool login = cmd->args.n == 3 && strcmp(cmd->args.v[1], "-lc") == 0;
    if (!script && login)
        script = cmd->args.v[2];
    if (script) {
        while (*script == '\n' || *script == ' ')
            script++;
        size_t n = strcspn(script, "\n");
        cb_buf_add(&b, script, n);
        if (script[n] && script[n + 1])
            cb_buf_adds(&b, " ...");
    } else {
        for (size_t i = 0; i < cmd->args.n && b.len <= TITLE_MAX; i++)
            cb_buf_addf(&b, "%s%s", i ? " " : "", cmd->args.v[i]);
    }
    if (b.len > TITLE_MAX) {
        size_t cut = TITLE_MAX;
        while (cut && ((unsigned char)b.data[cut] & 0xC0) == 0x80) /* not inside a character */
            cut--;
        b.len = cut;
        b.data[cut] = '\0';
        cb_buf_adds(&b, "...");
    }
    return cb_buf_take(&b);
}

size_t layer_steps(const struct build_layer *l)
{
    const struct layer *d = l->declared;
    if (l->refresh)
        return d->refresh_commands.n;
    size_t n = d->init_commands.n;
    for (size_t i = 0; i < d->n_drives; i++)
        n += d->drives[i].commands.n;
    return n;
}

static int digest_of_file(const char *path, struct cb_digest *out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    return cb_sha256_fd(fd, out, err);
}

/* A plan can do without it: what depends on it is not known yet. */
__attribute__((format(printf, 2, 3))) static void unknown(struct build *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    cb_strv_take(&b->unknown, cb_xvasprintf(fmt, ap));
    va_end(ap);
}

/* The version in use says what its base image was resolved to. */
static int resolve_by_lock(struct build *b, struct cb_error *err)
{
    const char *text = b->c->base_image;
    struct template_manifest *m = NULL;
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    int rc = store_template_get(b->store, b->name, 0, &m, &miss);
    if (rc < 0 && miss.code != CB_E_NOTFOUND)
        return cb_error_move(err, &miss);
    if (rc < 0) {
        cb_fail(err, CB_E_NOTFOUND, "--locked: %s has no published version, so there is no lock",
                b->name);
        return cb_hint(err, "build it once without --locked");
    }
    if (strcmp(m->base_ref, text) != 0) {
        cb_fail(err, CB_E_CONFIG, "--locked: version %llu of %s is locked to %s, not to %s",
                (unsigned long long)m->version, b->name, m->base_ref, text);
        cb_hint(err, "build once without --locked to take the new base image");
        rc = -CB_E_CONFIG;
    } else {
        rc = image_resolve_locked(b->store, b->settings, b->base_source, &m->base_digest, ARCH,
                                  b->o->pull, &b->em.progress, &b->base, err);
        b->locked_by = m->version;
        b->locked = m->lock ? json_loads(m->lock, 0, NULL) : NULL;
    }
    template_manifest_free(m);
    return rc;
}

/* A build that goes on has what it was resolved to when it began. */
static int resolve_as_before(struct build *b, struct cb_error *err)
{
    json_auto_t *lock = json_loads(b->o->lock, JSON_REJECT_DUPLICATES, NULL);
    const char *text = lock ? json_string_value(json_object_get(lock, "manifest")) : NULL;
    struct cb_digest manifest;
    if (!text || !cb_digest_parse(text, &manifest))
        return cb_fail(err, CB_E_CORRUPT, "the lock of build %s is not one", b->o->resume);
    b->locked = json_incref(lock);
    return image_resolve_locked(b->store, b->settings, b->base_source, &manifest, ARCH, b->o->pull,
                                &b->em.progress, &b->base, err);
}

static int resolve_now(struct build *b, struct cb_error *err)
{
    const char *text = b->c->base_image;
    bool builtin = image_ref_is_builtin(text);
    bool renew = builtin && (b->o->clean || b->o->renew_builtin);
    if (renew && b->look) {
        unknown(b,
                "base image: %s is made anew by the build; its digest, all cache keys and the "
                "template key follow from that",
                text);
        return 0;
    }
    int rc = 0;
    if (renew)
        rc = image_builtin_renew(b->store, b->settings, text, &b->em.progress, err);
    if (rc < 0)
        return rc;
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    enum pull_policy pull = builtin && b->look ? PULL_NEVER : b->o->pull;
    rc = image_resolve(b->store, b->settings, b->base_source, ARCH, pull, &b->em.progress, &b->base,
                       &miss);
    if (rc == -(int)CB_E_NOTFOUND && builtin && b->look) {
        unknown(b,
                "base image: %s is not made yet (a build makes it); its digest, all cache keys "
                "and the template key follow from that",
                text);
        return 0;
    }
    return rc < 0 ? cb_error_move(err, &miss) : 0;
}

/* What base_image means here: a path of its own folder, and not the template itself. */
static int place_base(struct build *b, struct cb_error *err)
{
    const char *text = b->c->base_image;
    if (image_ref_is_relative(text) && !b->o->base_dir)
        return cb_fail(err, CB_E_CONFIG, "base_image %s: the folder of the config is not known",
                       text);
    b->base_source = image_ref_below(text, b->o->base_dir ? b->o->base_dir : "/");
    if (strncmp(text, "template:", 9) == 0 && strcmp(text + 9, b->name) == 0) {
        cb_fail(err, CB_E_CONFIG,
                "%s cannot be built on its own version in use: every build would "
                "add its layers once more",
                b->name);
        return cb_hint(err, "give it another name, or name one version: template:%s:1", b->name);
    }
    return 0;
}

/* The words behind "NAME is DIGEST". Owned. */
static char *how_resolved(const struct build *b)
{
    CB_AUTO_BUF out = CB_BUF_INIT(1024);
    if (b->base.template_version)
        (void)cb_buf_addf(&out, " (version %llu)", (unsigned long long)b->base.template_version);
    if (b->locked_by)
        (void)cb_buf_addf(&out, " (locked by version %llu)", (unsigned long long)b->locked_by);
    if (b->o->lock)
        (void)cb_buf_addf(&out, " (as in build %s)", b->o->resume);
    else if (b->base.from_lock)
        (void)cb_buf_adds(&out, b->base.ref.kind == SOURCE_REGISTRY
                                    ? " (as last seen: the registry could not be asked)"
                                    : " (as last seen: it is not there any more)");
    return cb_buf_take(&out);
}

static int resolve_base(struct build *b, struct cb_error *err)
{
    const char *text = b->c->base_image;
    CB_AUTO_FREE char *what = cb_xasprintf("resolve %s", text);
    emit_step_start(&b->em, PHASE_RESOLVE, NULL, what);
    int rc = place_base(b, err);
    if (rc < 0)
        return rc;
    rc = b->o->lock     ? resolve_as_before(b, err)
         : b->o->locked ? resolve_by_lock(b, err)
                        : resolve_now(b, err);
    if (rc < 0)
        return rc;
    b->have_base = b->unknown.n == 0;
    if (b->have_base) {
        char digest[CB_DIGEST_LEN + 1];
        cb_digest_text(&b->base.manifest, digest);
        CB_AUTO_FREE char *how = how_resolved(b);
        emit_note(&b->em, "%s is %s%s", text, digest, how);
    }
    emit_step_end(&b->em, 0, NULL);
    return 0;
}

static void on_kernel_note(void *arg, const char *text)
{
    emit_note(arg, "%s", text);
}

static int resolve_kernel(struct build *b, struct cb_error *err)
{
    int rc;
    if (b->look) {
        CB_AUTO_ERROR miss = CB_ERROR_INIT;
        rc = kernel_present(b->settings, &b->kernel, &miss);
        if (rc == -(int)CB_E_NOTFOUND && b->c->kernel)
            return 0; /* of builders alone: the image's own is in no key */
        if (rc == -(int)CB_E_NOTFOUND) {
            unknown(b, "kernel: not downloaded yet (a build does that); its digest, that of the "
                       "initramfs and the template key follow from that");
            return 0;
        }
        if (rc < 0)
            return cb_error_move(err, &miss);
    } else {
        rc = kernel_get(b->settings, on_kernel_note, &b->em, &b->kernel, err);
    }
    if (rc >= 0)
        rc = digest_of_file(b->kernel.image, &b->kernel_digest, err);
    b->have_kernel = rc >= 0;
    return rc;
}

/* Kernel, agent and initramfs are part of what is published, so their digests are part of its key.
 */
int build_platform(struct build *b, struct cb_error *err)
{
    int rc = agent_find(b->o->agent_path, &b->agent_path, err);
    if (rc >= 0)
        rc = digest_of_file(b->agent_path, &b->agent, err);
    if (rc >= 0)
        rc = resolve_kernel(b, err);
    if (rc >= 0 && b->have_kernel)
        rc = initramfs_get(b, err);
    return rc;
}

void build_content(const struct build *b, size_t n, struct cb_digest *out)
{
    *out = b->base_key.digest;
    for (size_t i = 0; i < n; i++) {
        struct cb_digest two[2] = {*out, b->layers[i].diff.diff_id};
        cb_sha256(two, sizeof(two), out);
    }
}

static void replace(char **to, char *taken)
{
    free(*to);
    *to = taken;
}

/* Takes the diff that was kept for layer @i: 1, or 0 when there is none that fits. */
static int take_cached(struct build *b, size_t i, struct cb_error *err)
{
    struct build_layer *l = &b->layers[i];
    struct cache_record rec;
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    if (store_cache_get(b->store, &l->record, &rec, &miss) < 0) {
        if (miss.code != CB_E_NOTFOUND && miss.code != CB_E_CORRUPT)
            return cb_error_move(err, &miss);
        if (miss.code == CB_E_CORRUPT)
            emit_warning(&b->em, "layer %s: its cache record is damaged and is made anew: %s",
                         l->declared->name, miss.msg);
        return 0;
    }
    struct cb_digest below;
    build_content(b, i, &below);
    bool fits = cb_digest_eq(&rec.below, &below) && drives_fit(l->declared, &rec);
    if (fits) {
        l->diff = rec.diff;
        rec.diff = (struct layer_blob){0};
        l->drives = rec.drives;
        l->n_drives = rec.n_drives;
        rec.drives = NULL;
        rec.n_drives = 0;
        l->watched = rec.watched;
        l->hosts = rec.hosts;
        rec.hosts = (struct cb_strv){0};
        l->have_diff = l->cached = true;
        l->refreshes = rec.refreshes;
        if (rec.refreshes) { /* by refreshes it became another one */
            replace(&l->key.inputs, cb_xstrdup(rec.inputs));
            l->key.digest = rec.refreshed;
        }
    } else {
        l->remade = true;
    }
    cache_record_release(&rec);
    return fits;
}

static int find_cached(struct build *b, struct cb_error *err)
{
    b->n_layers = b->c->n_layers;
    b->layers = cb_xcalloc(b->n_layers, sizeof(*b->layers));
    for (size_t i = 0; i < b->n_layers; i++)
        b->layers[i].declared = &b->c->layers[i];
    if (!b->have_base)
        return 0;
    keys_cache_base(&b->base.manifest, ARCH, &b->base_key);
    const struct cb_digest *parent = &b->base_key.digest;
    int usable = !b->o->force && !b->o->clean;
    for (size_t i = 0; i < b->n_layers; i++) {
        struct build_layer *l = &b->layers[i];
        struct layer_contents in;
        if (!contents_known(b, i))
            return 0; /* then nothing of it and above is */
        contents_of_layer(b, i, &in);
        keys_cache_layer(b->c, l->declared, &in, parent, &l->key);
        l->record = l->key.digest;
        parent = &l->key.digest;
        /* what stands above a missing layer will stand on something new */
        if (usable && (usable = take_cached(b, i, err)) < 0)
            return usable;
        if (usable && refresh_layer(b, i))
            usable = 0;
    }
    return 0;
}

json_t *build_lock(const struct build *b)
{
    char digest[CB_DIGEST_LEN + 1];
    cb_digest_text(&b->base.manifest, digest);
    json_t *o = json_pack("{s:s, s:s}", "base_image", b->c->base_image, "manifest", digest);
    if (o && b->base.template_version)
        (void)json_object_set_new(o, "template_version",
                                  json_integer((json_int_t)b->base.template_version));
    if (o && contents_count_git(b))
        (void)json_object_set_new(o, "git", contents_lock(b));
    return o;
}

/* A published version that need not be made again: it has this key, and was booted if this one
 * would be. */
static int find_published(struct build *b, struct cb_error *err)
{
    if (b->o->force || b->o->clean || refresh_any(b))
        return 0;
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    struct template_manifest *m = NULL;
    if (store_template_find(b->store, b->name, &b->template_key.digest, &m, &miss) < 0)
        return miss.code == CB_E_NOTFOUND ? 0 : cb_error_move(err, &miss);
    if (m->boot_checked || b->o->no_boot_check)
        b->published = m->version;
    else
        b->unbooted = m->version;
    static const struct cb_digest none;
    b->published_unsigned = cb_digest_eq(&m->provenance_signed, &none);
    template_manifest_free(m);
    return 0;
}

/* How many steps build_run() will begin. */
static size_t count_steps(struct build *b)
{
    size_t resolved = 1 + contents_count_git(b);
    if (b->published)
        return resolved; /* which was before */
    /* pull, flatten, boot check, publish */
    size_t total = resolved + (b->o->no_boot_check ? 3 : 4);
    size_t cached = 0;
    for (size_t i = 0; i < b->n_layers; i++) {
        const struct build_layer *l = &b->layers[i];
        total += layer_steps(l) + (l->cached ? 0 : l->declared->n_context);
        cached += l->cached;
    }
    if (cached == b->n_layers)
        return total;
    struct cb_digest key;
    build_content(b, cached, &key);
    int lower = b->o->clean ? -1 : store_lower_open(b->store, &key, NULL, NULL);
    cb_close(lower);
    /* start the machine, keep each layer's changes, perhaps make what the layers stand on */
    return total + 1 + (b->n_layers - cached) + (lower < 0);
}

static void say_plan(struct build *b)
{
    json_t *layers = json_array();
    char hex[CB_HEX_LEN + 1];
    for (size_t i = 0; i < b->n_layers; i++) {
        const struct build_layer *l = &b->layers[i];
        size_t steps = layer_steps(l);
        cb_digest_hex(&l->key.digest, hex);
        json_array_append_new(layers,
                              json_pack("{s:s, s:s, s:b, s:I}", "name", l->declared->name, "key",
                                        hex, "cached", (int)l->cached, "steps", (json_int_t)steps));
    }
    emit(&b->em, EVENT_PLAN,
         json_pack("{s:o, s:I, s:o}", "layers", layers, "total_steps", (json_int_t)count_steps(b),
                   "lock", build_lock(b)));
}

int build_plan(struct build *b, struct cb_error *err)
{
    int rc = resolve_base(b, err);
    if (rc >= 0)
        rc = build_platform(b, err);
    if (rc >= 0)
        rc = contents_resolve(b, err);
    if (rc >= 0)
        rc = find_cached(b, err);
    if (rc < 0)
        return rc;
    b->size_bytes_asked = b->c->rootfs_size_gb * GIB;
    bool known = b->n_layers == 0 || b->layers[b->n_layers - 1].key.inputs;
    if (!b->have_base || (!b->have_kernel && !b->c->kernel) || !known)
        return 0;
    struct cb_digest last =
        b->n_layers ? b->layers[b->n_layers - 1].key.digest : b->base_key.digest;
    if (b->c->task) {
        keys_cache_task(b->c, &last, &b->task_key);
        last = b->task_key.digest;
    }
    struct template_inputs in = {
        .last_cache = last,
        .kernel = b->kernel_digest,
        .agent = b->agent,
        .initramfs = b->initramfs_digest,
        .size_bytes_asked = b->size_bytes_asked,
    };
    keys_template(b->c, &in, &b->template_key);
    if ((rc = find_published(b, err)) < 0)
        return rc;
    say_plan(b);
    return 0;
}

/* ---- why it is not all reused ---- */

static json_t *parsed(const struct cache_key *k)
{
    json_t *v = k->inputs ? json_loads(k->inputs, 0, NULL) : NULL;
    return v ? v : json_object();
}

json_t *plan_record(const struct build *b)
{
    json_t *layers = json_array();
    for (size_t i = 0; i < b->n_layers; i++)
        (void)json_array_append_new(layers,
                                    json_pack("{s:s, s:o}", "name", b->layers[i].declared->name,
                                              "inputs", parsed(&b->layers[i].key)));
    return json_pack("{s:i, s:s, s:o, s:o, s:o}", "schema_version", 1, "base_image",
                     b->c->base_image, "base", parsed(&b->base_key), "layers", layers, "template",
                     parsed(&b->template_key));
}

static char *record_name(const struct build *b)
{
    return cb_xasprintf("plan:%s", b->name);
}

json_t *plan_last(const struct build *b)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT; /* whatever is wrong with it: then there is none */
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_FREE char *name = record_name(b);
    if (store_note_get(b->store, name, &text, &err) < 0)
        return NULL;
    json_t *o = json_loadb(text.data ? text.data : "", text.len, 0, NULL);
    if (o && json_is_integer(json_object_get(o, "schema_version")) &&
        json_integer_value(json_object_get(o, "schema_version")) == 1)
        return o;
    json_decref(o);
    return NULL;
}

/* The next build and the next plan compare with it. */
static void keep_record(struct build *b, json_t *last, json_t *now)
{
    if (last && json_equal(last, now))
        return;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *name = record_name(b);
    char *text = json_dumps(now, JSON_COMPACT | JSON_SORT_KEYS);
    if (text && store_note_put(b->store, name, text, &err) < 0) /* no reason to fail a build */
        emit_note(&b->em, "the next build cannot say what has changed: %s", err.msg);
    free(text);
}

/* The option by which nothing is reused, or NULL. */
static const char *by_option(const struct build *b)
{
    return b->o->clean ? "--clean" : b->o->force ? "--force" : NULL;
}

char *plan_why(const struct build *b, size_t i, json_t *last, json_t *now)
{
    if (by_option(b))
        return cb_xstrdup(by_option(b));
    if (b->layers[i].refresh)
        return cb_xstrdup("--refresh");
    char *text = explain_layer(last, now, i);
    if (text)
        return text;
    size_t first = 0;
    while (b->layers[first].cached)
        first++;
    if (first < i)
        return cb_xasprintf("layer %s below it is made anew", b->layers[first].declared->name);
    return cb_xstrdup(b->layers[i].remade
                          ? "what it was made on is not what the layers below it give now"
                          : "nothing changed, but there is no finished result of it in the store");
}

char *plan_why_image(const struct build *b, json_t *last, json_t *now)
{
    if (by_option(b))
        return cb_xstrdup(by_option(b));
    if (b->unbooted)
        return cb_xasprintf("version %llu is the same but was never booted",
                            (unsigned long long)b->unbooted);
    char *text = explain_template(last, now);
    return text ? text : cb_xstrdup("nothing changed, but no finished version is there");
}

void plan_say_why(struct build *b)
{
    json_auto_t *last = plan_last(b);
    json_auto_t *now = plan_record(b);
    size_t i = 0;
    while (i < b->n_layers && b->layers[i].cached)
        i++;
    if (!b->published && i < b->n_layers) {
        CB_AUTO_FREE char *why = plan_why(b, i, last, now);
        emit_note(&b->em, "layer %s is not reused: %s", b->layers[i].declared->name, why);
    } else if (!b->published) {
        CB_AUTO_FREE char *why = plan_why_image(b, last, now);
        emit_note(&b->em, "the image is made anew: %s", why);
    }
    keep_record(b, last, now);
}
