/* Brings every layer's diff about. A machine is started only when a layer is not cached; one
 * machine serves all that are missing. */
#include "builder/after_failure.h"
#include "builder/authorities.h"
#include "builder/build_private.h"
#include "builder/contexts.h"
#include "builder/leaks.h"
#include "builder/run_command.h"
#include "builder/saved.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"
#include "support/proc.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

enum {
    SHUTDOWN_MS = 3000,
};
/* The same for every build: what commands write of it into files is reused under other names. */
#define BUILD_HOSTNAME "builder"
enum { DISK_GB = 64 }; /* sparse: a ceiling, not a cost */
static const uint64_t output_bytes = UINT64_C(64) << 30;
static const uint64_t min_free_bytes = UINT64_C(1) << 30;

int build_choose_driver(struct build *b, const struct machine_driver **out, struct cb_error *err)
{
    const struct machine_driver *const first =
        b->o->isolation == ISOLATION_CONTAINER ? &machine_container : &machine_vm;
    CB_AUTO_FREE char *why = NULL;
    if (b->o->isolation != ISOLATION_AUTO) {
        int rc = first->probe(b->settings, &why, err);
        if (rc < 0)
            return cb_wrap(err, "isolation %s", first->name);
        emit_note(&b->em, "isolation: %s, as asked (%s)", first->name, why ? why : "it works here");
        *out = first;
        return 0;
    }
    /* auto: a real VM where KVM works; else a container where one can be had; else an emulated VM
     */
    CB_AUTO_FREE char *kvm = NULL;
    if (kvm_works(b->settings, &kvm)) {
        int rc = machine_vm.probe(b->settings, &why, err);
        if (rc < 0)
            return rc;
        emit_note(&b->em, "isolation: vm (%s)", kvm ? kvm : "KVM works");
        *out = &machine_vm;
        return 0;
    }
    CB_AUTO_ERROR no_container = CB_ERROR_INIT;
    if (machine_container.probe(b->settings, &why, &no_container) >= 0) {
        emit_note(&b->em, "isolation: container (%s; %s)", kvm ? kvm : "no KVM",
                  why ? why : "containers work");
        *out = &machine_container;
        return 0;
    }
    int rc = machine_vm.probe(b->settings, &why, err);
    if (rc < 0)
        return rc;
    emit_note(&b->em, "isolation: vm, emulated and slow (%s; no container: %s)",
              kvm ? kvm : "no KVM", no_container.msg);
    *out = &machine_vm;
    return 0;
}

static int check_space(const struct build *b, struct cb_error *err)
{
    struct statvfs v;
    if (statvfs(b->settings->home, &v) < 0)
        return cb_fail_sys(err, errno, "look at %s", b->settings->home);
    uint64_t free_bytes = (uint64_t)v.f_bavail * v.f_frsize;
    if (free_bytes >= min_free_bytes)
        return 0;
    char have[32];
    cb_human_bytes(free_bytes, have, sizeof(have));
    cb_fail(err, CB_E_ENV, "%s has %s free; a build needs at least 1 GiB", b->settings->home, have);
    return cb_hint(err, "free some space there, or set CAPSULE_BUILD_HOME to a larger disk");
}

/* The size of what commands write to. A disk that promises more than there is would end in errors
 * of a device, which say nothing, instead of "no space left". */
static uint64_t scratch_bytes(const struct build *b)
{
    uint64_t want = (uint64_t)(b->settings->disk_gb ? b->settings->disk_gb : DISK_GB) << 30;
    struct statvfs v;
    if (statvfs(b->o->work_dir, &v) < 0)
        return want;
    uint64_t room = (uint64_t)v.f_bavail * v.f_frsize;
    room = room > 2 * min_free_bytes ? room - min_free_bytes : min_free_bytes;
    room &= ~(min_free_bytes - 1); /* whole GiB */
    return want < room ? want : room;
}

/* Makes the image of the base and the first @n_diffs layers and publishes it under @key. @f: the
 * base's layers are still arriving (taken); NULL: they are there. */
static int flatten_lower(struct build *b, size_t n_diffs, const struct cb_digest *key,
                         struct image_fetching *f, struct cb_error *err)
{
    size_t n = b->base.n_layers + n_diffs;
    CB_AUTO_FREE struct layer_blob *layers = cb_xcalloc(n + 1, sizeof(*layers));
    for (size_t i = 0; i < n; i++)
        layers[i] = i < b->base.n_layers ? b->base.layers[i] : b->layers[i - b->base.n_layers].diff;
    CB_AUTO_FREE char *tmp = store_tmp_path(b->store, "lower");
    CB_AUTO_CHUNK_MAP chunks = {0};
    CB_AUTO_PREFIX below = PREFIX_INIT;
    if (!b->o->clean)
        (void)prefix_find(b->store, layers, n, &below);
    const struct flatten_parent parent = {below.fd, below.n_layers, &below.chunks};
    CB_AUTO_PLACES places = places_new(b->store);
    struct flatten_spec spec = {.store = b->store,
                                .layers = layers,
                                .n_layers = n,
                                .out_path = tmp,
                                .progress = &b->em.progress,
                                .chunks = &chunks,
                                .parent = &parent,
                                .flags = b->o->clean ? FLATTEN_INFLATE : 0,
                                .places = places};
    struct flatten_result res;
    int rc = f ? flatten_arriving(f, &spec, &res, err) : flatten(&spec, &res, err);
    if (rc < 0)
        return f ? rc : cb_wrap(err, "flatten %s", b->c->base_image);
    rc = store_lower_publish(b->store, tmp, key, err);
    if (rc < 0) {
        (void)unlink(tmp);
        return rc;
    }
    CB_AUTO_ERROR lost = CB_ERROR_INIT; /* a later build will have more work, that is all */
    (void)prefix_put(b->store, layers, n, PREFIX_LOWERS, key, &chunks, &lost);
    places_put(places, PREFIX_LOWERS, key);
    return 0;
}

/* A descriptor (owned) of the lower @key that keeps it from being trimmed, or -1 when it has to be
 * made. */
static int find_lower(struct build *b, const struct cb_digest *key, char **path)
{
    CB_AUTO_ERROR miss = CB_ERROR_INIT;
    return b->o->clean ? -1 : store_lower_open(b->store, key, path, &miss);
}

/* The image that the first missing layer stands on: base and the diffs of the layers before it.
 * Returns a descriptor as find_lower(). */
static int make_lower(struct build *b, size_t first, char **path, struct cb_error *err)
{
    struct cb_digest key;
    build_content(b, first, &key);
    int fd =
        b->have_lower ? store_lower_open(b->store, &key, path, err) : find_lower(b, &key, path);
    if (fd >= 0 || b->have_lower)
        return fd;
    emit_step_start(&b->em, PHASE_FLATTEN, NULL, "flatten what the layers stand on");
    int rc = flatten_lower(b, first, &key, NULL, err);
    if (rc < 0)
        return rc;
    emit_step_end(&b->em, 0, NULL);
    return store_lower_open(b->store, &key, path, err);
}

/* Brings the base's layers. Those that were missing are inflated as they arrive, into the image
 * that comes next: what the first missing layer stands on or, when no command has to run, the
 * finished one. */
static int pull_base(struct build *b, size_t first, struct cb_error *err)
{
    CB_AUTO_FREE char *what = cb_xasprintf("pull %s", b->c->base_image);
    CB_AUTO_FREE char *path = NULL;
    struct image_fetching *f = NULL;
    struct cb_digest key;
    emit_step_start(&b->em, PHASE_PULL, NULL, what);
    int rc = check_space(b, err);
    if (rc == 0)
        rc = image_fetch_start(b->store, b->settings, &b->base, &b->em.progress, &f, err);
    if (rc < 0)
        return rc;
    build_content(b, first, &key);
    CB_AUTO_FD there = first < b->n_layers ? find_lower(b, &key, &path) : -1;
    if (!image_fetch_busy(f) || there >= 0) {
        rc = image_fetch_end(f, err);
    } else if (first < b->n_layers) {
        rc = flatten_lower(b, first, &key, f, err);
        b->have_lower = rc == 0;
    } else {
        rc = build_image(b, f, err);
    }
    if (rc == 0)
        emit_step_end(&b->em, 0, NULL);
    return rc;
}

static void on_output(void *arg, uint32_t step, int stream, const void *data, size_t len)
{
    (void)step;
    emit_step_output(&((struct build *)arg)->em, stream, data, len);
}

static void on_note(void *arg, const char *text)
{
    emit_note(&((struct build *)arg)->em, "%s", text);
}

static void on_tick(void *arg)
{
    egress_poll(((struct build *)arg)->egress);
}

static void on_metadata(void *arg, const char *target, bool flavor, bool forwarded,
                        struct metadata_reply *out)
{
    gcp_answer(((struct build *)arg)->gcp, target, flavor, forwarded, out);
}

static int make_sparse(const char *path, uint64_t size, int *fd_out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        return cb_fail_sys(err, errno, "make %s", path);
    *fd_out = cb_take_fd(&fd);
    return 0;
}

/* What commands start with: how to get out of here (`proxy` and `ca_bundle` of the settings), then
 * what the image says, which wins. It goes to the guest alone: no image and no key has it. */
static void command_env(const struct build *b, struct cb_strv *env)
{
    static const char *const names[] = {"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"};
    const struct cb_strv *image = &b->base.config.env;
    if (b->settings->proxy) {
        const char *no = getenv("no_proxy"); /* settings_export() sees to it */
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
            cb_strv_addf(env, "%s=%s", names[i], b->settings->proxy);
        cb_strv_addf(env, "no_proxy=%s", no ? no : "localhost,127.0.0.1,::1");
        cb_strv_addf(env, "NO_PROXY=%s", no ? no : "localhost,127.0.0.1,::1");
    }
    if (b->settings->ca_bundle)
        authorities_env(env);
    for (size_t i = 0; i < image->n; i++)
        cb_strv_add(env, image->v[i]);
}

/* A layer that is refreshed finds what it left in a folder of the scratch disk. There is one at
 * most: what stands above it is made anew. */
#define PREVIOUS_FOLDER "p0"
static int make_scratch(const struct build *b, size_t first, const char *path, struct cb_error *err)
{
    const struct build_layer *l = &b->layers[first];
    return l->refresh ? ext4_make_upper(b->store, &l->previous.diff, PREVIOUS_FOLDER, path,
                                        scratch_bytes(b), "scratch", err)
                      : ext4_make_empty(path, scratch_bytes(b), "scratch", err);
}

/* A copy of the disk of the build that is gone on with. What a virtual machine wrote is a
 * stranger's file system. */
static int take_kept(const struct talk *t, const char *path, struct cb_error *err)
{
    if (strcmp(t->driver, machine_container.name) == 0 && strcmp(t->kept->driver, t->driver) != 0) {
        cb_fail(err, CB_E_ENV,
                "what build %s left was written by a virtual machine, and a container would have "
                "this machine's kernel mount it",
                t->kept_id);
        return cb_hint(err, "go on with --isolation vm, or build anew");
    }
    return kept_copy_scratch(t->b->settings->home, t->kept_id, path, err);
}

int talk_start(struct talk *t, size_t first, const char *lower, struct cb_error *err)
{
    struct build *b = t->b;
    const struct machine_driver *driver = NULL;
    CB_AUTO_BUF authorities = CB_BUF_INIT(AUTHORITIES_MAX);
    int rc = authorities_read(b->settings, &authorities, err);
    if (rc == 0)
        rc = egress_open(b->c, b->settings, &b->em, &b->egress, err);
    if (rc == 0)
        rc = build_choose_driver(b, &driver, err);
    if (rc < 0)
        return rc;
    t->driver = driver->name;
    CB_AUTO_FREE char *scratch = cb_xasprintf("%s/scratch.ext4", b->o->work_dir);
    CB_AUTO_FREE char *output = cb_xasprintf("%s/output.raw", b->o->work_dir);
    rc = t->kept ? take_kept(t, scratch, err) : make_scratch(b, first, scratch, err);
    if (rc < 0)
        return rc;
    if ((rc = make_sparse(output, output_bytes, &t->output_fd, err)) < 0)
        return rc;
    if ((rc = drives_make(b, first, driver, &t->drives, err)) < 0)
        return rc;
    CB_AUTO_FREE char *title = cb_xasprintf("start the %s", driver->name);
    emit_step_start(&b->em, PHASE_PRE_BUILD, NULL, title);
    struct machine_spec spec = {
        .mode = MACHINE_BUILD,
        .work_dir = b->o->work_dir,
        .hostname = BUILD_HOSTNAME,
        .agent_path = b->agent_path,
        .lower = lower,
        .scratch = scratch,
        .output = output,
        .drives = t->drives.v,
        .n_drives = t->drives.n,
        .vcpus = tier_vcpus(b->c->tier),
        .memory_mib = tier_memory_mib(b->c->tier) < 2048 ? 2048 : tier_memory_mib(b->c->tier),
        .network = !config_without_network(b->c),
        .gateway = egress_gateway(b->egress),
        .allow_host_network = b->settings->allow_host_network,
        .kernel = b->kernel.image,
        .initramfs = b->initramfs,
        .console_fd = -1,
        .note = on_note,
        .note_arg = b,
    };
    const struct saved_boot boot = {.kernel = b->kernel_digest, .initramfs = b->initramfs_digest};
    rc = saved_start(b->settings, driver, &boot, &spec, &t->cb, &t->m, &t->s, err);
    if (rc < 0)
        return t->m ? talk_explain(t, err) : rc;
    egress_started(b->egress);
    CB_AUTO_STRV env = {0};
    command_env(b, &env);
    struct guest_setup g = {
        .hostname = BUILD_HOSTNAME,
        .image_env = &env,
        .image_user = b->base.config.user ? b->base.config.user : "",
        .image_workdir = b->base.config.workdir ? b->base.config.workdir : "/",
        .runner_user = b->c->runner_user,
        .dns = t->m->dns[0] ? t->m->dns : NULL,
        .time_ms = strcmp(driver->name, "vm") == 0 ? cb_now_ms() : 0,
        .scratch_used = t->kept != NULL,
        .stack_layers = t->kept ? t->kept->layer - t->kept->first : 0,
    };
    rc = session_setup(t->s, &g, err);
    if (rc >= 0)
        rc = authorities_send(t->s, &authorities, err);
    if (rc < 0)
        return talk_explain(t, err);
    emit_step_end(&b->em, 0, NULL);
    return 0;
}

static void on_leak(void *arg, const char *secret, const char *path)
{
    const struct talk *t = arg;
    emit_warning(&t->b->em,
                 "%s holds the value of %s: it is in the layer, and whoever gets the template "
                 "has it",
                 path, secret);
}

static int take_diff(struct talk *t, struct build_layer *l, struct cb_error *err)
{
    struct build *b = t->b;
    emit_step_start(&b->em, PHASE_POST_BUILD, l->declared->name, "keep the layer's changes");
    struct guest_diff d = {0};
    int rc = session_layer_end(t->s, &d, err);
    if (rc < 0) {
        cb_wrap(err, "layer %s: take out its changes", l->declared->name);
        return talk_explain(t, err);
    }
    if (d.offset > output_bytes || d.length > output_bytes - d.offset)
        return cb_fail(err, CB_E_UNTRUSTED, "layer %s: the builder named a diff outside its disk",
                       l->declared->name);
    if (b->secrets &&
        (rc = leaks_find(b->secrets, t->output_fd, d.offset, d.length, on_leak, t, err)) < 0)
        return rc;
    rc = store_layer_import(b->store, t->output_fd, d.offset, d.length, &l->diff, err);
    if (rc < 0)
        return cb_wrap(err, "layer %s", l->declared->name);
    l->have_diff = true;
    l->watched = egress_take_hosts(b->egress, &l->hosts) || config_without_network(b->c);
    if (l->refresh)
        refresh_hosts(l);
    if ((rc = drives_keep(t, l, err)) < 0)
        return rc;
    struct cache_record rec = {.layer_name = l->declared->name,
                               .inputs = l->key.inputs,
                               .diff = l->diff,
                               .drives = l->drives,
                               .n_drives = l->n_drives,
                               .refreshes = l->refreshes,
                               .created_ms = cb_now_ms(),
                               .watched = l->watched,
                               .hosts = l->hosts};
    build_content(b, (size_t)(l - b->layers), &rec.below);
    if (l->refreshes)
        rec.refreshed = l->key.digest;
    if ((rc = store_cache_put(b->store, &l->record, &rec, err)) < 0)
        return rc;
    char tar[32], blob[32];
    cb_human_bytes(d.length, tar, sizeof(tar));
    cb_human_bytes(l->diff.size, blob, sizeof(blob));
    emit_note(&b->em, "layer %s: %llu changes (%llu removals), %s, %s compressed",
              l->declared->name, (unsigned long long)d.entries, (unsigned long long)d.whiteouts,
              tar, blob);
    emit_step_end(&b->em, 0, NULL);
    return 0;
}

/* What the layer's init_commands set and started holds for its refresh_commands. */
static int run_refresh(struct talk *t, const struct build_layer *l, struct cb_error *err)
{
    const struct layer *d = l->declared;
    for (size_t i = 0; i < d->init_commands.n; i++)
        build_state_command(&t->state, &d->init_commands.v[i]);
    int rc = run_gcp(t, err);
    if (rc == 0)
        rc = drives_mount(t, d, err);
    if (rc == 0) /* else it was done there */
        rc = run_starts_again(t, d, err);
    t->commands = &d->refresh_commands;
    for (size_t i = 0; rc >= 0 && i < t->commands->n; i++)
        rc = run_command(t, d, i, err);
    return rc;
}

/* From command @from on, with what is before them in the layer unless it is there already. */
static int run_commands(struct talk *t, const struct build_layer *l, size_t from, bool resumed,
                        struct cb_error *err)
{
    int rc = run_starts_again(t, l->declared, err);
    if (rc >= 0 && !resumed)
        rc = run_contexts(t, l, err);
    t->commands = &l->declared->init_commands;
    for (size_t i = from; rc >= 0 && i < t->commands->n; i++) {
        t->at = (struct place){true, (size_t)(l - t->b->layers), i};
        rc = run_command(t, l->declared, i, err);
        t->at.in_command = rc < 0;
    }
    return rc < 0 ? rc : drives_fill(t, l->declared, err);
}

static struct guest_layer guest_layer_of(const struct build *b, const struct build_layer *l)
{
    const struct layer_secrets *secrets = secrets_of(b->secrets, (size_t)(l - b->layers));
    struct guest_layer g = {.name = l->declared->name};
    if (secrets) {
        g.secretive = secrets->env.n || secrets->n_files;
        g.secrets = secrets->files;
        g.n_secrets = secrets->n_files;
    }
    return g;
}

/* @kept: it goes on from there, its files from outside and earlier commands are there; or NULL. */
static int run_layer(struct talk *t, struct build_layer *l, const struct kept_state *kept,
                     struct cb_error *err)
{
    size_t from = kept ? kept->command : 0;
    build_state_layer(&t->state, l->declared);
    for (size_t i = 0; i < from; i++) {
        CB_AUTO_FREE char *title = command_title(&l->declared->init_commands.v[i]);
        build_state_command(&t->state, &l->declared->init_commands.v[i]);
        emit_step_cached(&t->b->em, PHASE_RECIPE, l->declared->name, title);
    }
    if (kept) /* the failed command runs on what it left, the first one too */
        egress_remember(t->b->egress, &kept->hosts, kept->watched);
    int rc = run_gcp(t, err);
    if (rc < 0)
        return cb_wrap(err, "layer %s", l->declared->name);
    struct guest_layer g = guest_layer_of(t->b, l);
    g.previous = l->refresh ? PREVIOUS_FOLDER : NULL;
    rc = session_layer_begin(t->s, &g, err);
    if (rc < 0) {
        cb_wrap(err, "layer %s: begin", l->declared->name);
        return talk_explain(t, err);
    }
    rc = l->refresh ? run_refresh(t, l, err) : run_commands(t, l, from, kept != NULL, err);
    return rc < 0 ? rc : take_diff(t, l, err);
}

static void say_cached(struct build *b, const struct layer *l, const struct commands *c)
{
    for (size_t i = 0; i < c->n; i++) {
        CB_AUTO_FREE char *title = command_title(&c->v[i]);
        emit_step_cached(&b->em, PHASE_RECIPE, l->name, title);
    }
}

/* @kept: the first of them goes on from there; NULL: from its start. */
static int run_missing(struct build *b, size_t first, const struct kept_state *kept,
                       struct cb_error *err)
{
    CB_AUTO_FREE char *lower = kept ? kept_file(b->settings->home, b->o->resume, KEPT_LOWER) : NULL;
    CB_AUTO_FD lower_fd = kept ? -1 : make_lower(b, first, &lower, err);
    if (lower_fd < 0 && !kept)
        return lower_fd;
    int rc = contents_keep(b, first, err);
    if (rc < 0)
        return rc;
    struct talk t = {.b = b,
                     .output_fd = -1,
                     .cb = {.output = on_output,
                            .note = on_note,
                            .tick = on_tick,
                            .metadata = on_metadata,
                            .arg = b},
                     .first = kept ? kept->first : first,
                     .kept = kept,
                     .kept_id = b->o->resume};
    build_state_layers(&t.state, b->c, first);
    build_machine_count(1);
    rc = talk_start(&t, first, lower, err);
    for (size_t i = first; rc >= 0 && i < b->n_layers; i++)
        rc = run_layer(&t, &b->layers[i], i == first ? kept : NULL, err);
    bool keep = rc < 0 && after_failure_park(&t, rc);
    if (rc >= 0) {
        CB_AUTO_ERROR late =
            CB_ERROR_INIT; /* all diffs are safe: how it goes down is not our worry */
        (void)session_shutdown(t.s, SHUTDOWN_MS, &late);
    }
    session_free(t.s);
    build_state_release(&t.state);
    if (t.m)
        t.m->driver->stop(t.m, rc >= 0 || keep ? SHUTDOWN_MS : 0);
    drive_disks_release(&t.drives);
    cb_close(t.output_fd);
    if (keep)
        after_failure_keep(&t, lower);
    else if (rc >= 0 && kept)
        kept_remove(b->settings->home, b->o->resume);
    return build_machine_done(rc, err);
}

/* Reads what the layers from @first on are given in secret; from there on everything is masked. */
static int load_secrets(struct build *b, size_t first, struct cb_error *err)
{
    int rc = secrets_load(b->c, first, &b->secrets, err);
    if (rc < 0 || !b->secrets)
        return rc;
    emit_set_mask(&b->em, b->secrets->mask);
    for (size_t i = 0; i < b->secrets->unmasked.n; i++)
        emit_warning(&b->em,
                     "%s has fewer than %d characters: it is not masked where it is printed",
                     b->secrets->unmasked.v[i], MASK_SHORTEST);
    return 0;
}

int build_layers(struct build *b, struct cb_error *err)
{
    size_t first = 0;
    while (first < b->n_layers && b->layers[first].have_diff)
        first++;
    int rc = load_secrets(b, first, err);
    if (rc == 0)
        rc = pull_base(b, first, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < first; i++) {
        const struct layer *l = b->layers[i].declared;
        say_cached(b, l, &l->init_commands);
        for (size_t j = 0; j < l->n_drives; j++)
            say_cached(b, l, &l->drives[j].commands);
    }
    if (first == b->n_layers) {
        if (b->n_layers)
            emit_note(&b->em, "all layers are cached: no command is run");
        return 0;
    }
    struct kept_state kept = {0};
    bool goes_on = after_failure_find(b, first, &kept);
    rc = run_missing(b, first, goes_on ? &kept : NULL, err);
    kept_state_release(&kept);
    return rc;
}
