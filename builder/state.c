#include "builder/state.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

void step_state_release(struct step_state *s)
{
    config_pairs_release(&s->env);
    free(s->user);
    free(s->workdir);
    *s = (struct step_state){0};
}

void build_state_release(struct build_state *s)
{
    step_state_release(&s->now);
    for (size_t i = 0; i < s->n_starts; i++)
        step_state_release(&s->starts[i].state);
    free(s->starts);
    *s = (struct build_state){0};
}

void config_pairs_set(struct config_pairs *to, const char *key, const char *value)
{
    for (size_t i = 0; i < to->n; i++) {
        if (strcmp(to->v[i].key, key) == 0) {
            free(to->v[i].value);
            to->v[i].value = cb_xstrdup(value);
            return;
        }
    }
    to->v = cb_xgrow(to->v, &to->cap, to->n, sizeof(*to->v));
    to->v[to->n++] = (struct config_pair){cb_xstrdup(key), cb_xstrdup(value)};
}

static void set_text(char **to, const char *value)
{
    if (!value)
        return;
    char *copy = cb_xstrdup(value);
    free(*to);
    *to = copy;
}

void build_state_layer(struct build_state *s, const struct layer *layer)
{
    for (size_t i = 0; i < layer->env.n; i++)
        config_pairs_set(&s->now.env, layer->env.v[i].key, layer->env.v[i].value);
    set_text(&s->now.user, layer->user);
    set_text(&s->now.workdir, layer->workdir);
}

static void keep_start(struct build_state *s, const struct command *cmd)
{
    s->starts = cb_xgrow(s->starts, &s->cap_starts, s->n_starts, sizeof(*s->starts));
    struct kept_start *k = &s->starts[s->n_starts++];
    *k = (struct kept_start){.command = cmd};
    for (size_t i = 0; i < s->now.env.n; i++)
        config_pairs_set(&k->state.env, s->now.env.v[i].key, s->now.env.v[i].value);
    set_text(&k->state.user, s->now.user);
    set_text(&k->state.workdir, s->now.workdir);
    k->state.auth = s->now.auth;
}

void build_state_command(struct build_state *s, const struct command *cmd)
{
    for (size_t i = 0; cmd->type == COMMAND_ENV && i < cmd->args.n; i++) {
        const char *eq = strchr(cmd->args.v[i], '='); /* checked by the config's reader */
        CB_AUTO_FREE char *key =
            cb_xstrndup(cmd->args.v[i], eq ? (size_t)(eq - cmd->args.v[i]) : 0);
        if (eq)
            config_pairs_set(&s->now.env, key, eq + 1);
    }
    if (cmd->type == COMMAND_WORKDIR && cmd->args.n)
        set_text(&s->now.workdir, cmd->args.v[0]);
    if (cmd->type == COMMAND_USER && cmd->args.n)
        set_text(&s->now.user, cmd->args.v[0]);
    if (cmd->type == COMMAND_GCP_AUTH)
        s->now.auth = cmd;
    if (cmd->type == COMMAND_START)
        keep_start(s, cmd);
}

void build_state_layers(struct build_state *s, const struct workload_config *c, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        build_state_layer(s, &c->layers[i]);
        for (size_t j = 0; j < c->layers[i].init_commands.n; j++)
            build_state_command(s, &c->layers[i].init_commands.v[j]);
    }
}
