/* One build from its beginning to its end: plan, layers, finish. */
#include "builder/build_private.h"
#include "builder/contexts.h"
#include "builder/documents.h"
#include "builder/session.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

void build_result_release(struct build_result *r)
{
    free(r->name);
    *r = (struct build_result){0};
}

static void warn_unsupported(struct build *b)
{
    if (!b->c->n_unsupported)
        return;
    CB_AUTO_BUF names = CB_BUF_INIT(64 << 10);
    for (size_t i = 0; i < b->c->n_unsupported; i++)
        cb_buf_addf(&names, "%s%s", i ? ", " : "", b->c->unsupported[i].field);
    emit_warning(&b->em, "%s: not supported yet: kept in the template's config, without effect",
                 names.data);
}

static volatile sig_atomic_t machines;

void build_machine_count(int change)
{
    machines += change;
}

int build_machine_done(int rc, struct cb_error *err)
{
    build_machine_count(-1);
    if (rc >= 0 && machine_canceled()) /* while it went down, where nobody looked */
        return cb_fail(err, CB_E_CANCELED, "canceled");
    return rc;
}

void build_cancel(void)
{
    machine_cancel();
    session_cancel();
    if (machines <= 0)
        _exit(128 + SIGTERM);
}

void build_release(struct build *b)
{
    if (b->image_tmp)
        (void)unlink(b->image_tmp);
    free(b->image_tmp);
    free(b->name);
    free(b->agent_path);
    kernel_release(&b->kernel);
    free(b->initramfs);
    free(b->kernel_from);
    free(b->base_source);
    base_image_release(&b->base);
    cache_key_release(&b->base_key);
    contents_release(b);
    json_decref(b->locked);
    for (size_t i = 0; i < b->n_layers; i++) {
        cache_key_release(&b->layers[i].key);
        if (b->layers[i].have_diff)
            layer_blob_release(&b->layers[i].diff);
        drive_images_free(b->layers[i].drives, b->layers[i].n_drives);
        cb_strv_release(&b->layers[i].hosts);
        refresh_release(&b->layers[i]);
    }
    free(b->layers);
    cache_key_release(&b->task_key);
    cache_key_release(&b->template_key);
    if (b->have_agent_layer)
        layer_blob_release(&b->agent_layer);
    boot_info_release(&b->boot);
    chunk_map_release(&b->chunks);
    drive_images_free(b->drives, b->n_drives);
    warm_state_release(&b->warm);
    places_free(b->places);
    cb_strv_release(&b->unknown);
    egress_free(b->egress);
    store_free(b->store);
    gcp_free(b->gcp);
    emitter_release(&b->em);
    secrets_free(b->secrets);
}

static void replace(char **to, char *taken)
{
    free(*to);
    *to = taken;
}

/* Some of a config is in no key, because it changes nothing of the image (ttl, auto_pause...), and
 * still a manifest says what its version was made from. When that differs, the same image becomes
 * another version. 1 when it did, 0 when nothing differs. */
static int renew_config(struct build *b, struct build_result *out, struct cb_error *err)
{
    struct template_manifest *m = NULL;
    int rc = store_template_get(b->store, b->name, b->published, &m, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE char *now = config_dump_published(b->c);
    bool differs = m->config && now && strcmp(m->config, now) != 0;
    if (differs) {
        json_auto_t *lock = build_lock(b);
        replace(&m->config, cb_take_ptr(&now));
        replace(&m->base_ref, cb_xstrdup(b->c->base_image));
        replace(&m->lock, lock ? json_dumps(lock, JSON_SORT_KEYS | JSON_COMPACT) : NULL);
        keys_workload(b->c, m->workload_key);
        m->created_ms = cb_now_ms();
        rc = store_template_publish(b->store, m, b->c->auto_rollout != AUTO_FALSE, err);
        if (rc == 0) {
            out->version = m->version;
            out->up_to_date = true;
            emit_note(&b->em,
                      "published %s version %llu: the image of version %llu with the "
                      "config as it is now, no machine was started",
                      b->name, (unsigned long long)m->version, (unsigned long long)b->published);
        }
    }
    template_manifest_free(m);
    return rc < 0 ? rc : differs;
}

static int up_to_date(struct build *b, struct build_result *out, struct cb_error *err)
{
    int renewed = renew_config(b, out, err);
    if (renewed != 0)
        return renewed < 0 ? renewed : 0;
    if (b->c->auto_rollout != AUTO_FALSE) {
        int rc = store_template_point(b->store, b->name, b->published, err);
        if (rc < 0)
            return rc;
    }
    emit_note(&b->em, "nothing changed: %s version %llu is up to date, no machine was started",
              b->name, (unsigned long long)b->published);
    if (b->settings->signing_key && b->published_unsigned)
        emit_warning(&b->em,
                     "version %llu was published without a signature; --force makes one with it",
                     (unsigned long long)b->published);
    out->version = b->published;
    out->up_to_date = true;
    return 0;
}

static int build_steps(struct build *b, struct build_result *out, struct cb_error *err)
{
    int rc = build_refuse(b->c, err);
    if (rc == 0)
        rc = build_refuse_refresh(b->o, b->c, err);
    if (rc < 0)
        return rc;
    if ((rc = documents_check_key(b->settings, err)) < 0)
        return rc;
    warn_unsupported(b);
    if ((rc = build_plan(b, err)) < 0)
        return rc;
    plan_say_why(b);
    refresh_say(b);
    if (b->published)
        return up_to_date(b, out, err);
    if ((rc = build_layers(b, err)) < 0)
        return rc;
    return build_finish(b, out, err);
}

int build_init(struct build *b, const struct workload_config *c, struct settings *settings,
               const struct build_options *o, const struct build_sink *sink, struct cb_error *err)
{
    *b = (struct build){
        .c = c, .settings = settings, .o = o, .name = config_name(c), .started_ms = cb_now_ms()};
    emitter_init(&b->em, sink);
    if (settings->step_output_mib)
        emit_output_limit(&b->em, (uint64_t)settings->step_output_mib << 20);
    CB_AUTO_FREE char *store_path = cb_xasprintf("%s/store", settings->home);
    return store_open(store_path, &b->store, err);
}

int build_run(const struct workload_config *c, struct settings *settings,
              const struct build_options *o, const struct build_sink *sink,
              struct build_result *out, struct cb_error *err)
{
    struct build b;
    int rc = build_init(&b, c, settings, o, sink, err);
    if (rc >= 0)
        rc = cb_mkdir_p(o->work_dir, 0700, err);
    if (rc >= 0)
        rc = build_steps(&b, out, err);
    if (rc < 0 && err) {
        emit_mask_error(&b.em, err);
        emit_step_end(&b.em, 1, err); /* the step that was open, if one was */
    }
    if (b.store && !out->up_to_date)
        build_trim(&b);
    if (rc >= 0) {
        out->name = cb_xstrdup(b.name);
        keys_workload(c, out->workload_key);
    }
    build_release(&b);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT; /* what stays is swept by the supervisor */
    (void)cb_remove_tree(o->work_dir, &ignored);
    return rc < 0 ? rc : 0;
}

int agent_find(const char *given, char **out, struct cb_error *err)
{
    *out = given ? cb_xstrdup(given) : machine_agent();
    if (*out && access(*out, R_OK) == 0)
        return 0;
    cb_fail(err, CB_E_ENV, "capsule-agent was not found%s%s",
            given ? " at " : " beside this program", given ? given : "");
    free(*out);
    *out = NULL;
    return cb_hint(err, "build it with `./dev build`; it belongs beside capsule-build");
}

int initramfs_get(struct build *b, struct cb_error *err)
{
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/initramfs", b->settings->home);
    /* one file for each (kernel, its modules, agent) */
    const struct kernel *k = &b->kernel;
    char kernel[CB_HEX_LEN + 1], agent[CB_HEX_LEN + 1], hex[CB_HEX_LEN + 1];
    cb_digest_hex(&b->kernel_digest, kernel);
    cb_digest_hex(&b->agent, agent);
    CB_AUTO_FREE char *id =
        cb_xasprintf("%s\n%s\n%d", kernel, k->modules ? k->modules : "", PLATFORM_VERSION);
    struct cb_digest of_id;
    cb_sha256(id, strlen(id), &of_id);
    cb_digest_hex(&of_id, hex);
    CB_AUTO_FREE char *full = cb_xasprintf("%s/%.12s-%.12s-%s.img", dir, hex, agent, k->release);
    CB_AUTO_FD there = open(full, O_RDONLY | O_CLOEXEC);
    int rc = 0;
    if (there < 0) {
        CB_AUTO_FREE char *made = b->look ? store_tmp_path(b->store, "initramfs")
                                          : cb_xasprintf("%s/initramfs.img", b->o->work_dir);
        if (!made)
            return cb_fail(err, CB_E_ENV, "no temporary file can be made in %s",
                           store_dir(b->store));
        if ((rc = initramfs_make(k, b->agent_path, made, err)) < 0)
            return rc;
        CB_AUTO_FD fd = open(made, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return cb_fail_sys(err, errno, "open %s", made);
        if (b->look)
            (void)unlink(made);
        else if ((rc = cb_mkdir_p(dir, 0755, err)) < 0)
            return rc;
        else if (fdatasync(fd) < 0 || rename(made, full) < 0)
            return cb_fail_sys(err, errno, "publish %s", full);
        there = cb_take_fd(&fd);
    }
    rc = cb_sha256_fd(there, &b->initramfs_digest, err);
    if (rc >= 0)
        b->initramfs = cb_take_ptr(&full);
    return rc;
}
