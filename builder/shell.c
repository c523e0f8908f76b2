/* A shell in what a failed command left: the builder once more, over a copy of its disk. */
#include "builder/builder.h"

#include "builder/after_failure.h"
#include "builder/session.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <string.h>

enum { SHUTDOWN_MS = 3000, SHELL_STEP = 1 };

/* Bash where there is one, as for commands that are plain texts; it reads what it is given. */
static const char script[] = "exec \"$(command -v bash || command -v sh)\"";

/* The callbacks' argument. */
struct here {
    const struct shell_request *r;
    struct build *b;
};

static void on_output(void *arg, uint32_t step, int stream, const void *data, size_t len)
{
    const struct here *h = arg;
    if (step == SHELL_STEP)
        h->r->output(h->r->arg, stream, data, len);
}

static void on_note(void *arg, const char *text)
{
    const struct here *h = arg;
    h->r->note(h->r->arg, text);
}

static void on_metadata(void *arg, const char *target, bool flavor, bool forwarded,
                        struct metadata_reply *out)
{
    gcp_answer(((const struct here *)arg)->b->gcp, target, flavor, forwarded, out);
}

static void on_tick(void *arg)
{
    egress_poll(((const struct here *)arg)->b->egress);
}

/* What the machine's start says is the build's, but for warnings. */
static void on_event(void *arg, enum event_type type, json_t *payload)
{
    const struct shell_request *r = arg;
    const char *text = json_string_value(json_object_get(payload, "text"));
    if (type == EVENT_WARNING && text)
        r->note(r->arg, text);
    json_decref(payload);
}

static int load(const struct workload_config *c, const char *home, const char *id,
                struct kept_state *k, struct cb_error *err)
{
    int rc = kept_load(home, id, k, err);
    if (rc == 0 && (k->layer >= c->n_layers || k->command >= c->layers[k->layer].init_commands.n))
        rc = cb_fail(err, CB_E_CORRUPT, "the state of build %s is of another config", id);
    if (rc < 0)
        kept_state_release(k);
    return rc;
}

static void take_image(struct build *b, const struct kept_state *k)
{
    for (size_t i = 0; i < k->env.n; i++)
        cb_strv_add(&b->base.config.env, k->env.v[i]);
    b->base.config.user = cb_xstrdup(k->user);
    b->base.config.workdir = cb_xstrdup(k->workdir);
}

/* The state that held when the command failed. */
static void replay(struct build_state *s, const struct workload_config *c,
                   const struct kept_state *k)
{
    const struct layer *l = &c->layers[k->layer];
    build_state_layers(s, c, k->layer);
    build_state_layer(s, l);
    for (size_t i = 0; i < k->command; i++)
        build_state_command(s, &l->init_commands.v[i]);
}

/* What `start` keeps is there as it was for the command; one that does not start is worth a word
 * and no more. */
static int begin_layer(struct talk *t, const struct layer *l, const struct shell_request *r,
                       struct cb_error *err)
{
    const struct guest_layer g = {.name = l->name};
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    int rc = session_layer_begin(t->s, &g, err);
    if (rc < 0)
        return talk_explain(t, err);
    if (run_gcp(t, &why) < 0)
        r->note(r->arg, why.msg);
    cb_error_clear(&why);
    rc = run_starts_again(t, l, &why);
    if (rc == -(int)CB_E_COMMAND) {
        r->note(r->arg, why.msg);
        return 0;
    }
    return rc < 0 ? cb_error_move(err, &why) : 0;
}

static void greet(const struct kept_state *k, const struct layer *l, const struct shell_request *r)
{
    CB_AUTO_FREE char *text = cb_xasprintf(
        "layer %s after command %llu of %zu (%s) failed; what you change here is thrown away",
        k->layer_name, (unsigned long long)k->command + 1, l->init_commands.n, k->title);
    r->ready(r->arg, text);
}

static int run_shell(struct talk *t, const struct command *cmd, const struct shell_request *r,
                     struct cb_error *err)
{
    struct config_pairs over = {0};
    for (size_t i = 0; i < cmd->env_variables.n; i++)
        config_pairs_set(&over, cmd->env_variables.v[i].key, cmd->env_variables.v[i].value);
    if (r->size && r->term)
        config_pairs_set(&over, "TERM", r->term);
    const struct guest_step st = {.step = SHELL_STEP,
                                  .script = script,
                                  .as_root = cmd->run_as_root,
                                  .env = &t->state.now.env,
                                  .over_env = &over,
                                  .user = t->state.now.user,
                                  .workdir = t->state.now.workdir,
                                  .tokens = t->state.now.auth != NULL};
    const struct shell_io io = {
        .input = r->input, .size = r->size, .resized = r->resized, .arg = r->arg};
    struct step_result res = {0};
    int rc = session_shell(t->s, &st, &io, &res, err);
    config_pairs_release(&over);
    return rc < 0 ? talk_explain(t, err) : res.exit_code;
}

static int with_machine(struct build *b, const struct kept_state *k, const struct shell_request *r,
                        struct cb_error *err)
{
    const struct layer *l = &b->c->layers[k->layer];
    CB_AUTO_FREE char *lower = kept_file(b->settings->home, r->build_id, KEPT_LOWER);
    struct here h = {r, b};
    struct talk t = {.b = b,
                     .output_fd = -1,
                     .first = k->first,
                     .kept = k,
                     .kept_id = r->build_id,
                     .cb = {.output = on_output,
                            .note = on_note,
                            .tick = on_tick,
                            .metadata = on_metadata,
                            .arg = &h}};
    replay(&t.state, b->c, k);
    build_machine_count(1);
    int rc = talk_start(&t, k->layer, lower, err);
    if (rc >= 0)
        rc = begin_layer(&t, l, r, err);
    if (rc >= 0)
        rc = egress_hold(b->egress, &l->init_commands.v[k->command], err);
    if (rc >= 0) {
        greet(k, l, r);
        rc = run_shell(&t, &l->init_commands.v[k->command], r, err);
    }
    if (rc >= 0) {
        CB_AUTO_ERROR late = CB_ERROR_INIT;
        (void)session_shutdown(t.s, SHUTDOWN_MS, &late);
    }
    session_free(t.s);
    build_state_release(&t.state);
    if (t.m)
        t.m->driver->stop(t.m, rc >= 0 ? SHUTDOWN_MS : 0);
    cb_close(t.output_fd);
    return build_machine_done(rc, err);
}

int build_shell(const struct workload_config *c, struct settings *settings,
                const struct shell_request *r, struct cb_error *err)
{
    struct kept_state k = {0};
    int rc = load(c, settings->home, r->build_id, &k, err);
    if (rc < 0)
        return rc;
    int isolation = isolation_from_name(k.driver);
    const struct build_options o = {
        .isolation = (enum isolation)(isolation < 0 ? ISOLATION_AUTO : isolation),
        .work_dir = r->work_dir};
    const struct build_sink sink = {on_event, (void *)(uintptr_t)r};
    struct build b;
    rc = build_init(&b, c, settings, &o, &sink, err);
    if (rc >= 0)
        rc = cb_mkdir_p(o.work_dir, 0700, err);
    if (rc >= 0)
        rc = build_platform(&b, err);
    if (rc >= 0) {
        take_image(&b, &k);
        rc = with_machine(&b, &k, r, err);
    }
    build_release(&b);
    kept_state_release(&k);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    (void)cb_remove_tree(r->work_dir, &ignored);
    return rc;
}
