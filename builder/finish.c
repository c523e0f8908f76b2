/* From all layers to a published template: the agent's layer, flatten, boot check, publish. */
#include "builder/boot_conf.h"
#include "builder/build_private.h"
#include "builder/documents.h"
#include "builder/drives.h"
#include "builder/image_init.h"
#include "builder/image_kernel.h"
#include "builder/state.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The kernel's own words, and what our initramfs needs to know; a host adds its network to it. */
#define TEMPLATE_CMDLINE "console=ttyS0 quiet panic=-1 capsule.mode=boot"

/* The environment that later processes start with: the image's, then each layer's. */
static void default_env(const struct build *b, struct config_pairs *out)
{
    for (size_t i = 0; i < b->base.config.env.n; i++) {
        const char *kv = b->base.config.env.v[i];
        const char *eq = strchr(kv, '=');
        if (!eq)
            continue;
        CB_AUTO_FREE char *key = cb_xstrndup(kv, (size_t)(eq - kv));
        config_pairs_set(out, key, eq + 1);
    }
    struct build_state state = {0};
    build_state_layers(&state, b->c, b->c->n_layers);
    for (size_t i = 0; i < state.now.env.n; i++)
        config_pairs_set(out, state.now.env.v[i].key, state.now.env.v[i].value);
    build_state_release(&state);
}

/* Owned. */
static char *default_user(const struct build *b)
{
    if (b->c->runner_user)
        return cb_xstrdup(b->c->runner_user);
    struct build_state state = {0};
    build_state_layers(&state, b->c, b->c->n_layers);
    const char *image = b->base.config.user ? b->base.config.user : "";
    char *user = cb_xstrdup(state.now.user ? state.now.user : image);
    build_state_release(&state);
    return user;
}

/* Owned. */
static char *default_workdir(const struct build *b)
{
    struct build_state state = {0};
    build_state_layers(&state, b->c, b->c->n_layers);
    const char *image = b->base.config.workdir;
    char *dir = cb_xstrdup(state.now.workdir ? state.now.workdir : image && *image ? image : "/");
    build_state_release(&state);
    return dir;
}

static void copy_command(struct commands *to, const struct command *f)
{
    struct command c = {.type = f->type,
                        .script = cb_xstrdup0(f->script),
                        .run_as_root = f->run_as_root,
                        .timeout_ms = f->timeout_ms};
    for (size_t j = 0; j < f->args.n; j++)
        cb_strv_add(&c.args, f->args.v[j]);
    for (size_t j = 0; j < f->env_variables.n; j++)
        config_pairs_set(&c.env_variables, f->env_variables.v[j].key, f->env_variables.v[j].value);
    to->v = cb_xgrow(to->v, &to->cap, to->n, sizeof(*to->v));
    to->v[to->n++] = c;
}

/* What commands of type start keep running runs at every boot too, before the boot commands, as it
 * did when it was started first. */
static void add_starts(const struct build *b, struct commands *to)
{
    struct build_state state = {0};
    build_state_layers(&state, b->c, b->c->n_layers);
    for (size_t i = 0; i < state.n_starts; i++) {
        const struct kept_start *k = &state.starts[i];
        copy_command(to, k->command);
        struct command *c = &to->v[to->n - 1];
        config_pairs_release(&c->env_variables);
        for (size_t j = 0; j < k->state.env.n; j++)
            config_pairs_set(&c->env_variables, k->state.env.v[j].key, k->state.env.v[j].value);
        const struct config_pairs *own = &k->command->env_variables;
        for (size_t j = 0; j < own->n; j++)
            config_pairs_set(&c->env_variables, own->v[j].key, own->v[j].value);
        const char *image = b->base.config.user ? b->base.config.user : "";
        const char *runner = b->c->runner_user ? b->c->runner_user : image;
        c->user = cb_xstrdup(k->state.user ? k->state.user : runner);
        c->workdir = cb_xstrdup0(k->state.workdir ? k->state.workdir : b->base.config.workdir);
    }
    build_state_release(&state);
}

void boot_info_make(const struct build *b, struct boot_info *out)
{
    const struct start_command *s = &b->c->start;
    *out = (struct boot_info){.hostname = cb_xstrdup(b->name)};
    const struct cb_strv *from[] = {&s->command, NULL};
    if (s->from_image) {
        from[0] = &b->base.config.entrypoint;
        from[1] = &b->base.config.cmd;
    }
    for (size_t i = 0; i < 2; i++)
        for (size_t j = 0; from[i] && j < from[i]->n; j++)
            cb_strv_add(&out->start_argv, from[i]->v[j]);
    for (size_t i = 0; i < s->env.n; i++)
        config_pairs_set(&out->start_env, s->env.v[i].key, s->env.v[i].value);
    if (!image_init_is_agent(b->c->init))
        out->init = cb_xstrdup(b->c->init);
    out->start_user = s->run_as ? cb_xstrdup(s->run_as) : default_user(b);
    out->start_workdir = default_workdir(b);
    out->port = s->port;
    out->health_path = cb_xstrdup0(s->health_path);
    add_starts(b, &out->boot_commands);
    for (size_t i = 0; i < b->c->boot_commands.n; i++)
        copy_command(&out->boot_commands, &b->c->boot_commands.v[i]);
}

static int tar_entry(struct archive *a, const char *name, mode_t mode, const void *data, size_t n,
                     struct cb_error *err)
{
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, name);
    archive_entry_set_mode(e, mode);
    archive_entry_set_size(e, (la_int64_t)n);
    archive_entry_set_mtime(e, 0, 0);
    int r = archive_write_header(a, e);
    archive_entry_free(e);
    if (r != ARCHIVE_OK || (n && archive_write_data(a, data, n) != (la_ssize_t)n))
        return cb_fail(err, CB_E_SYS, "write the agent's layer: %s", archive_error_string(a));
    return 0;
}

static int tar_link(struct archive *a, const char *name, const char *target, struct cb_error *err)
{
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, name);
    archive_entry_set_mode(e, S_IFLNK | 0777);
    archive_entry_set_symlink(e, target);
    archive_entry_set_mtime(e, 0, 0);
    int r = archive_write_header(a, e);
    archive_entry_free(e);
    if (r != ARCHIVE_OK)
        return cb_fail(err, CB_E_SYS, "write the agent's layer: %s", archive_error_string(a));
    return 0;
}

/* What makes the agent a service of the image's own init. */
static int tar_service(struct archive *a, const char *init, struct cb_error *err)
{
    size_t n = 0;
    const struct image_init_file *f = image_init_files(init, &n);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = f[i].target
                 ? tar_link(a, f[i].path, f[i].target, err)
                 : tar_entry(a, f[i].path, S_IFREG | f[i].mode, f[i].text, strlen(f[i].text), err);
    return rc;
}

static int write_agent_tar(const struct build *b, int fd, struct cb_error *err)
{
    CB_AUTO_BUF agent = CB_BUF_INIT(0);
    int rc = cb_read_file(b->agent_path, 8u << 20, &agent, err);
    if (rc < 0)
        return rc;
    CB_AUTO_BUF conf = CB_BUF_INIT(1u << 20);
    struct config_pairs env = {0};
    default_env(b, &env);
    CB_AUTO_FREE char *user = default_user(b);
    CB_AUTO_FREE char *dir = default_workdir(b);
    rc = boot_conf_dump(&b->boot, &env, user, dir, &conf, err);
    if (rc >= 0)
        rc = boot_conf_drives(b->c, &conf, err);
    config_pairs_release(&env);
    if (rc < 0)
        return rc;
    struct archive *a = archive_write_new();
    rc = 0;
    if (!a || archive_write_set_format_ustar(a) != ARCHIVE_OK ||
        archive_write_open_fd(a, fd) != ARCHIVE_OK)
        rc = cb_fail(err, CB_E_SYS, "write the agent's layer");
    if (rc >= 0)
        rc = tar_entry(a, ".capsule/", S_IFDIR | 0755, NULL, 0, err);
    if (rc >= 0)
        rc = tar_entry(a, ".capsule/agent", S_IFREG | 0755, agent.data, agent.len, err);
    if (rc >= 0) /* holds the start command's environment */
        rc = tar_entry(a, ".capsule/boot.conf", S_IFREG | 0600, conf.data, conf.len, err);
    if (rc >= 0)
        rc = tar_service(a, b->c->init, err);
    if (rc >= 0 && archive_write_close(a) != ARCHIVE_OK)
        rc = cb_fail(err, CB_E_SYS, "write the agent's layer: %s", archive_error_string(a));
    archive_write_free(a);
    return rc;
}

static int make_agent_layer(struct build *b, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/agent.tar", b->o->work_dir);
    CB_AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return cb_fail_sys(err, errno, "make %s", path);
    int rc = write_agent_tar(b, fd, err);
    if (rc < 0)
        return rc;
    off_t len = lseek(fd, 0, SEEK_END);
    rc = store_layer_import(b->store, fd, 0, (uint64_t)len, &b->agent_layer, err);
    if (rc < 0)
        return cb_wrap(err, "the agent's layer");
    b->have_agent_layer = true;
    return 0;
}

static size_t gather_layers(const struct build *b, struct layer_blob **out)
{
    size_t n = b->base.n_layers + b->n_layers + 1, at = 0;
    struct layer_blob *v = cb_xcalloc(n, sizeof(*v));
    for (size_t i = 0; i < b->base.n_layers; i++)
        v[at++] = b->base.layers[i];
    for (size_t i = 0; i < b->n_layers; i++)
        v[at++] = b->layers[i].diff;
    v[at++] = b->agent_layer;
    *out = v; /* the elements' strings stay where they are */
    return n;
}

int build_image(struct build *b, struct image_fetching *f, struct cb_error *err)
{
    CB_AUTO_FREE struct layer_blob *layers = NULL;
    boot_info_make(b, &b->boot); /* the agent's layer is made of it */
    int rc = 0;
    if (b->c->start.from_image && b->boot.start_argv.n == 0)
        rc = cb_fail(err, CB_E_CONFIG,
                     "start_command: image: %s has neither an entrypoint nor a command",
                     b->c->base_image);
    if (rc == 0)
        rc = make_agent_layer(b, err);
    if (rc < 0) {
        CB_AUTO_ERROR also = CB_ERROR_INIT;
        if (f)
            (void)image_fetch_end(f, &also);
        return rc;
    }
    size_t n = gather_layers(b, &layers);
    CB_AUTO_PREFIX below = PREFIX_INIT;
    if (!b->o->clean)
        (void)prefix_find(b->store, layers, n, &below);
    const struct flatten_parent parent = {below.fd, below.n_layers, &below.chunks};
    b->places = places_new(b->store);
    char *tmp = store_tmp_path(b->store, "image");
    struct flatten_spec spec = {.store = b->store,
                                .layers = layers,
                                .n_layers = n,
                                .size_bytes = b->size_bytes_asked,
                                .out_path = tmp,
                                .progress = &b->em.progress,
                                .chunks = &b->chunks,
                                .parent = &parent,
                                .flags = b->o->clean ? FLATTEN_INFLATE : 0,
                                .places = b->places};
    rc = f ? flatten_arriving(f, &spec, &b->image, err) : flatten(&spec, &b->image, err);
    if (rc < 0) {
        free(tmp);
        return f ? rc : cb_wrap(err, "flatten %s", b->name);
    }
    b->image_tmp = tmp;
    if (b->image.inherited > 0)
        emit_note(&b->em, "%zu of %zu layers came with an image that the store has",
                  b->image.inherited, n);
    return 0;
}

static int digest_of(const char *path, struct cb_digest *out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? cb_fail_sys(err, errno, "open %s", path) : cb_sha256_fd(fd, out, err);
}

/* With kernel: image, from here on the image's kernel is the template's. */
static int take_kernel(struct build *b, struct cb_error *err)
{
    if (!b->c->kernel)
        return 0;
    struct image_kernel k = {0};
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/kernel", b->o->work_dir);
    int rc = image_kernel_take(b->image_tmp, b->agent_path, dir, &k, err);
    if (rc < 0)
        return rc;
    kernel_release(&b->kernel);
    free(b->initramfs);
    b->kernel = k.kernel;
    b->initramfs = k.initramfs;
    b->kernel_from = k.from;
    emit_note(&b->em, "kernel %s is the image's %s", b->kernel.release, b->kernel_from);
    if ((rc = digest_of(b->kernel.image, &b->kernel_digest, err)) == 0)
        rc = digest_of(b->initramfs, &b->initramfs_digest, err);
    return rc;
}

static int make_image(struct build *b, struct cb_error *err)
{
    emit_step_start(&b->em, PHASE_FLATTEN, NULL, "flatten all layers into one ext4 image");
    int rc = b->image_tmp ? 0 : build_image(b, NULL, err); /* it may have been made as it arrived */
    if (rc < 0)
        return rc;
    char size[32], used[32];
    cb_human_bytes(b->image.size, size, sizeof(size));
    cb_human_bytes(b->image.allocated, used, sizeof(used));
    emit_note(&b->em, "image: %s (%s on disk), %llu entries", size, used,
              (unsigned long long)b->image.entries);
    if ((rc = image_init_check(b->image_tmp, b->c->init, err)) < 0 ||
        (rc = take_kernel(b, err)) < 0)
        return rc;
    emit_step_end(&b->em, 0, NULL);
    return 0;
}

static int check_boot(struct build *b, struct cb_error *err)
{
    bool warm = b->c->snapshot && strcmp(b->c->snapshot, "warm") == 0;
    if (b->o->no_boot_check) {
        emit_warning(&b->em,
                     "the image was not booted before it is published (--no-boot-check)%s%s",
                     warm ? ", so its ready machine is not saved (snapshot: warm)" : "",
                     b->c->healthcheck.present ? ", and its healthcheck has not run" : "");
        return 0;
    }
    emit_step_start(&b->em, PHASE_BOOT_CHECK, NULL, "boot the image and wait until it is ready");
    struct cb_digest drives;
    drives_digest(b->drives, b->n_drives, config_workspace_size_gb(b->c), &drives);
    struct boot_check bc = {
        .settings = b->settings,
        .image = b->image_tmp,
        .kernel = b->kernel.image,
        .initramfs = b->initramfs,
        .agent_path = b->agent_path,
        .work_dir = b->o->work_dir,
        .hostname = b->name,
        .tier = b->c->tier,
        .init = b->boot.init,
        .healthcheck = &b->c->healthcheck,
        .timeout_ms = b->o->boot_timeout_ms,
        .em = &b->em,
        .warm = warm ? &b->warm : NULL,
        .store = b->store,
        .of = {&b->image.digest, &b->kernel_digest, &b->initramfs_digest, &drives},
        .drives = b->drives,
        .n_drives = b->n_drives,
        .workspace_gb = config_workspace_size_gb(b->c)};
    CB_AUTO_FREE char *how = NULL;
    int rc = boot_check_run(&bc, &how, err);
    if (rc < 0)
        return rc;
    struct cb_digest after;
    CB_AUTO_FD fd = open(b->image_tmp, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", b->image_tmp);
    if ((rc = image_digest(fd, &after, NULL, err)) < 0)
        return rc;
    if (!cb_digest_eq(&after, &b->image.digest))
        return cb_fail(err, CB_E_BUG, "the boot check changed the image that it must only read");
    emit_note(&b->em, "ready: %s", how);
    emit_step_end(&b->em, 0, NULL);
    return 0;
}

/* Puts a file into the store as a blob; one that is there already costs a look. */
static int keep_file(struct build *b, const char *path, const struct cb_digest *digest,
                     struct cb_error *err)
{
    if (store_blob_has(b->store, digest))
        return 0;
    CB_AUTO_BUF data = CB_BUF_INIT(0);
    int rc = cb_read_file(path, 256u << 20, &data, err);
    if (rc < 0)
        return rc;
    struct cb_digest got;
    rc = store_blob_put(b->store, data.data, data.len, &got, err);
    if (rc >= 0 && !cb_digest_eq(&got, digest))
        rc = cb_fail(err, CB_E_CONFLICT, "%s changed while the build ran", path);
    return rc;
}

static void fill_manifest(const struct build *b, const struct store_chunks *chunks,
                          struct template_manifest *m)
{
    m->name = cb_xstrdup(b->name);
    keys_workload(b->c, m->workload_key);
    m->template_key = b->template_key.digest;
    m->template_inputs = cb_xstrdup(b->template_key.inputs);
    m->created_ms = cb_now_ms();
    m->base_ref = cb_xstrdup(b->c->base_image);
    m->base_digest = b->base.manifest;
    m->n_layers = gather_layers(b, &m->layers);
    m->layer_names = cb_xcalloc(m->n_layers, sizeof(*m->layer_names));
    for (size_t i = 0; i < m->n_layers; i++) {
        m->layers[i].media_type =
            cb_xstrdup(m->layers[i].media_type); /* the manifest owns its own */
        const char *name = "_agent";
        if (i < b->base.n_layers)
            name = "_base";
        else if (i < b->base.n_layers + b->n_layers)
            name = b->layers[i - b->base.n_layers].declared->name;
        m->layer_names[i] = cb_xstrdup(name);
    }
    m->image = b->image.digest;
    m->image_size = b->image.size;
    m->image_allocated = b->image.allocated;
    m->chunk_size = b->chunks.chunk_size;
    m->n_chunks = b->chunks.n;
    m->chunk_map = chunks->map;
    m->kernel = b->kernel_digest;
    m->initramfs = b->initramfs_digest;
    m->kernel_release = cb_xstrdup(b->kernel.release);
    m->kernel_from = cb_xstrdup0(b->kernel_from);
    m->cmdline = cb_xstrdup(TEMPLATE_CMDLINE);
    m->tier = b->c->tier;
    default_env(b, &m->default_env);
    m->default_user = default_user(b);
    m->workdir = default_workdir(b);
    for (size_t i = 0; i < b->base.config.entrypoint.n; i++)
        cb_strv_add(&m->entrypoint, b->base.config.entrypoint.v[i]);
    for (size_t i = 0; i < b->base.config.cmd.n; i++)
        cb_strv_add(&m->cmd, b->base.config.cmd.v[i]);
    boot_info_make(b, &m->boot);
    m->drives = drive_images_dup(b->drives, b->n_drives);
    m->n_drives = b->n_drives;
    m->workspace_gb = config_workspace_size_gb(b->c);
    m->boot_checked = !b->o->no_boot_check;
    m->warm = b->warm;
    m->warm.qemu = cb_xstrdup0(b->warm.qemu); /* the manifest owns its own */
    m->warm.machine = cb_xstrdup0(b->warm.machine);
    m->warm.cpu = cb_xstrdup0(b->warm.cpu);
    m->warm.network = cb_xstrdup0(b->warm.network);
    m->config = config_dump_published(b->c);
    json_t *lock = build_lock(b);
    m->lock = lock ? json_dumps(lock, JSON_SORT_KEYS | JSON_COMPACT) : NULL;
    json_decref(lock);
}

/* Later images may start from this one. Without the note they have more work, that is all. */
static void note_prefix(const struct build *b)
{
    CB_AUTO_FREE struct layer_blob *layers = NULL;
    size_t n = gather_layers(b, &layers);
    CB_AUTO_ERROR lost = CB_ERROR_INIT;
    (void)prefix_put(b->store, layers, n, PREFIX_IMAGES, &b->image.digest, &b->chunks, &lost);
    places_put(b->places, PREFIX_IMAGES, &b->image.digest);
}

static int store_chunks_of(struct build *b, struct store_chunks *out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(b->image_tmp, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", b->image_tmp);
    int rc = store_chunks_put(b->store, fd, &b->chunks, &b->em.progress, out, err);
    if (rc < 0)
        return rc;
    char size[32];
    cb_human_bytes(out->added_bytes, size, sizeof(size));
    emit_note(&b->em, "chunks: %llu of %zu are new, %s compressed", (unsigned long long)out->added,
              b->chunks.n, size);
    return 0;
}

static int publish(struct build *b, struct build_result *out, struct cb_error *err)
{
    struct store_chunks chunks = {0};
    emit_step_start(&b->em, PHASE_PUBLISH, NULL, "publish the template");
    int rc = store_chunks_of(b, &chunks, err);
    if (rc >= 0)
        rc = keep_file(b, b->kernel.image, &b->kernel_digest, err);
    if (rc >= 0)
        rc = keep_file(b, b->initramfs, &b->initramfs_digest, err);
    if (rc >= 0)
        rc = store_image_publish(b->store, b->image_tmp, &b->image.digest, err);
    if (rc < 0)
        return cb_wrap(err, "publish %s", b->name);
    free(b->image_tmp);
    b->image_tmp = NULL;
    note_prefix(b);
    struct template_manifest *m = cb_xcalloc(1, sizeof(*m));
    fill_manifest(b, &chunks, m);
    bool move = b->c->auto_rollout != AUTO_FALSE;
    CB_AUTO_FREE char *image = NULL;
    rc = store_image_path(b->store, &m->image, &image, err);
    if (rc >= 0)
        rc = documents_make(b, image, m, err);
    if (rc >= 0)
        rc = store_template_publish(b->store, m, move, err);
    if (rc >= 0) {
        out->version = m->version;
        emit_note(&b->em, "published %s version %llu%s", b->name, (unsigned long long)m->version,
                  move ? "" : "; the version in use was not changed (auto_rollout is false)");
    }
    template_manifest_free(m);
    if (rc < 0)
        return cb_wrap(err, "publish %s", b->name);
    emit_step_end(&b->em, 0, NULL);
    return 0;
}

int build_finish(struct build *b, struct build_result *out, struct cb_error *err)
{
    int rc = make_image(b, err);
    if (rc >= 0)
        rc = drives_gather(b, err);
    if (rc >= 0)
        rc = check_boot(b, err);
    if (rc >= 0)
        rc = publish(b, out, err);
    return rc;
}
