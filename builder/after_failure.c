#include "builder/after_failure.h"

#include "builder/sweep.h"
#include "support/cleanup.h"
#include "support/mem.h"

#define GIB (UINT64_C(1) << 30)

static void copy_strv(struct cb_strv *to, const struct cb_strv *from)
{
    for (size_t i = 0; i < from->n; i++)
        cb_strv_add(to, from->v[i]);
}

bool after_failure_park(struct talk *t, int rc)
{
    const struct build *b = t->b;
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    if (rc != -(int)CB_E_COMMAND || !t->at.in_command || !b->o->build_id ||
        !b->settings->keep_failed)
        return false;
    if (session_shutdown_keeping(t->s, &why) == 0)
        return true;
    if (why.code != CB_E_CANCELED)
        emit_note(&t->b->em, "the state of the failed command is not kept: %s", why.msg);
    return false;
}

void after_failure_keep(struct talk *t, const char *lower)
{
    struct build *b = t->b;
    const struct layer *l = b->layers[t->at.layer].declared;
    const struct kept_limits limits = {b->settings->keep_failed, b->settings->keep_failed_gb * GIB,
                                       KEPT_AGE_MS};
    const struct oci_image_config *image = &b->base.config;
    struct kept_state k = {.name = cb_xstrdup(b->name),
                           .driver = cb_xstrdup(t->driver),
                           .layer_name = cb_xstrdup(l->name),
                           .title = command_title(&l->init_commands.v[t->at.command]),
                           .first = t->first,
                           .layer = t->at.layer,
                           .command = t->at.command,
                           .layer_key = b->layers[t->at.layer].key.digest,
                           .user = cb_xstrdup(image->user ? image->user : ""),
                           .workdir = cb_xstrdup(image->workdir ? image->workdir : "/")};
    copy_strv(&k.env, &image->env);
    build_content(b, t->at.layer, &k.content);
    k.watched = egress_take_hosts(b->egress, &k.hosts) || config_without_network(b->c);
    CB_AUTO_FREE char *scratch = cb_xasprintf("%s/scratch.ext4", b->o->work_dir);
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    if (kept_save(b->settings->home, b->o->build_id, &limits, &k, scratch, lower, &why) == 0)
        emit_note(&b->em,
                  "the state of the failed command is kept: `capsule-build shell %s` looks at it, "
                  "`capsule-build resume %s` goes on from it",
                  b->o->build_id, b->o->build_id);
    else
        emit_note(&b->em, "the state of the failed command is not kept: %s", why.msg);
    kept_state_release(&k);
}

/* What differs from then, or NULL. */
static const char *differs(const struct build *b, size_t first, const struct kept_state *k)
{
    struct cb_digest content;
    if (k->layer != first)
        return "another layer is the first one to run now";
    if (!cb_digest_eq(&k->layer_key, &b->layers[first].key.digest) ||
        k->command >= b->layers[first].declared->init_commands.n)
        return "the layer is not what it was";
    build_content(b, first, &content);
    return cb_digest_eq(&k->content, &content) ? NULL : "what the layer stands on was made anew";
}

bool after_failure_find(struct build *b, size_t first, struct kept_state *k)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const char *name = b->layers[first].declared->name;
    *k = (struct kept_state){0};
    if (!b->o->resume)
        return false;
    int rc = kept_load(b->settings->home, b->o->resume, k, &err);
    const char *why = rc == -(int)CB_E_NOTFOUND ? "its state is not kept (any more)"
                      : rc < 0                  ? err.msg
                                                : differs(b, first, k);
    if (why) {
        emit_note(&b->em, "build %s cannot be gone on with, layer %s runs from its start: %s",
                  b->o->resume, name, why);
        return false;
    }
    emit_note(&b->em, "layer %s goes on from command %llu of %zu (%s), where build %s failed", name,
              (unsigned long long)k->command + 1, b->layers[first].declared->init_commands.n,
              k->title, b->o->resume);
    return true;
}
