#include "builder/run_command.h"

#include "builder/contexts.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"
#include "support/proc.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#define FULL_BYTES (UINT64_C(16) << 20)

enum {
    COMMAND_TIMEOUT_MS = 60 * 60 * 1000,
    START_WAIT_MS = 300,   /* what ends sooner did not start */
    RETRY_FIRST_MS = 1000, /* the pause before the second attempt; each one is twice the last */
    RETRY_MOST_MS = 30000,
    END_WAIT_MS = 1000,
};

/* The builder's disks are sparse files here: when this machine's disk is full, what commands see is
 * a broken disk, and QEMU stops. */
static bool host_is_full(const struct build *b)
{
    struct statvfs v;
    return statvfs(b->o->work_dir, &v) == 0 && (uint64_t)v.f_bavail * v.f_frsize < FULL_BYTES;
}

int talk_explain(struct talk *t, struct cb_error *err)
{
    if (err->code == CB_E_CANCELED || err->code == CB_E_COMMAND)
        return -(int)err->code;
    if (host_is_full(t->b))
        cb_wrap(err, "the disk of this machine is full (%s)", t->b->settings->home);
    if (err->code == CB_E_SYS) /* its stream closes a moment before it is gone */
        machine_wait_end(t->m, END_WAIT_MS);
    CB_AUTO_FREE char *end = machine_end_text(t->m);
    CB_AUTO_FREE char *console = machine_console_tail(t->m, 20);
    if (end)
        cb_wrap(err, "%s", end);
    if (console[0]) {
        char *with = cb_xasprintf("%s\nlast lines of its console:\n%s", err->msg, console);
        free(err->msg);
        err->msg = with;
    }
    return -(int)err->code;
}

static bool succeeded(const struct step_result *r)
{
    return r->exit_code == 0 && !r->signal && !r->timed_out && r->limit == LIMIT_NONE;
}

/* "ran out of memory: its limit is 512.0 MiB"; false when it reached no limit. */
static bool limit_text(const struct step_result *r, char *how, size_t size)
{
    char bytes[32];
    cb_human_bytes(r->limit_value, bytes, sizeof(bytes));
    switch (r->limit) {
    case LIMIT_MEMORY:
        (void)snprintf(how, size, "was killed: out of memory (limit %s)", bytes);
        return true;
    case LIMIT_PROCESSES:
        (void)snprintf(how, size, "was killed: it reached the limit of %llu processes",
                       (unsigned long long)r->limit_value);
        return true;
    case LIMIT_DISK:
        (void)snprintf(how, size, "ended with exit code %d: the builder's disk (%s) is full",
                       r->exit_code, bytes);
        return true;
    case LIMIT_NONE:
    case LIMIT_KIND_END: break;
    }
    return false;
}

/* "ended with exit code 2" */
static void how_it_ended(const struct step_result *r, int64_t limit_ms, char *how, size_t size)
{
    if (limit_text(r, how, size))
        return;
    if (r->timed_out)
        (void)snprintf(how, size, "ran into its time limit of %lld s",
                       (long long)(limit_ms / 1000));
    else if (r->signal)
        (void)snprintf(how, size, "was killed by %s (exit code %d)", cb_signal_name(r->signal),
                       r->exit_code);
    else
        (void)snprintf(how, size, "ended with exit code %d", r->exit_code);
}

/* For programs: why it failed. NULL: it did not. */
static const char *error_type(const struct step_result *r)
{
    if (succeeded(r))
        return NULL;
    switch (r->limit) {
    case LIMIT_MEMORY: return "out_of_memory";
    case LIMIT_PROCESSES: return "process_limit";
    case LIMIT_DISK: return "disk_full";
    case LIMIT_NONE:
    case LIMIT_KIND_END: break;
    }
    return r->timed_out ? "timeout" : r->signal ? "signal" : "exit";
}

/* For who reads exit codes: one that failed without one was ended. */
static int exit_of(const struct step_result *r)
{
    return r->exit_code ? r->exit_code : r->timed_out ? 124 : 128 + SIGKILL;
}

/* What a command used, all its attempts together. */
struct usage {
    uint32_t attempts;
    int64_t cpu_ms;
    uint64_t ram_used;
};

static void say_used(struct build *b, const char *title, struct usage *u,
                     const struct step_result *r)
{
    u->attempts++;
    u->cpu_ms = r->cpu_ms > INT64_MAX - u->cpu_ms ? INT64_MAX : u->cpu_ms + r->cpu_ms;
    uint64_t ram = r->max_rss_kib > UINT64_MAX >> 10 ? 0 : r->max_rss_kib << 10;
    u->ram_used = ram > u->ram_used ? ram : u->ram_used;
    emit_step_used(&b->em, &(struct event_execution){.task_name = title,
                                                     .retries = u->attempts - 1,
                                                     .cpu_ms = u->cpu_ms,
                                                     .ram_used = u->ram_used,
                                                     .error_type = error_type(r),
                                                     .host_requests = egress_requests(b->egress)});
}

/* A command's step begins. Should it not come to its end, its record says that the builder failed.
 */
static int begin_step(struct build *b, const struct layer *l, const char *title)
{
    int step = emit_step_start(&b->em, PHASE_RECIPE, l->name, title);
    emit_step_used(&b->em, &(struct event_execution){.task_name = title, .error_type = "builder"});
    return step;
}

/* "layer cache, drive seed". Owned. */
static char *place_of(const struct talk *t, const struct layer *l)
{
    return cb_xasprintf("layer %s%s%s", l->name, t->drive_id ? ", drive " : "",
                        t->drive_id ? t->drive_id : "");
}

/* @tail: the command's last words. */
static const char *what_to_do(enum limit_kind limit, const char *tail)
{
    if (limit == LIMIT_NONE && strstr(tail, "No space left on device"))
        return "what it wrote did not fit: the builder's disk has `disk_gb` of the settings, "
               "/dev/shm 64 MiB, /run half of the memory; the layers before it are kept";
    switch (limit) {
    case LIMIT_MEMORY:
        return "give the command more `ram`, or the builder a larger `tier`; the layers before it "
               "are kept";
    case LIMIT_PROCESSES:
        return "start fewer at once (make -j 4), or give the builder a larger `tier`; the layers "
               "before it are kept";
    case LIMIT_DISK:
        return "write less, or raise `disk_gb` of the settings; the layers before it are "
               "kept";
    case LIMIT_NONE:
    case LIMIT_KIND_END: break;
    }
    return "mend the command and run the same line again; the layers before it are kept";
}

static int fail_command(struct talk *t, const struct layer *l, size_t i, const char *title,
                        const char *how, enum limit_kind limit, struct cb_error *err)
{
    struct build *b = t->b;
    CB_AUTO_FREE char *place = place_of(t, l);
    CB_AUTO_FREE char *tail = emit_tail(&b->em);
    CB_AUTO_FREE char *refused = egress_refused(b->egress);
    for (size_t n = strlen(tail); n && tail[n - 1] == '\n'; n--)
        tail[n - 1] = '\0';
    cb_fail(err, CB_E_COMMAND, "%s%s: command %zu of %zu %s: %s%s%s%s",
            host_is_full(b) ? "the disk of this machine is full: " : "", place, i + 1,
            t->commands->n, how, title, refused,
            tail[0] ? "\nits last lines:\n" : "\nit printed nothing", tail);
    if (refused[0])
        return cb_hint(err, "if it has to reach them, say so in the file: `allowed_hosts` of the "
                            "command, or `config.network_policy`");
    return cb_hint(err, "%s", what_to_do(limit, tail));
}

/* The machine or the agent failed, not the command. */
static int fail_talk(struct talk *t, const struct layer *l, size_t i, const char *title,
                     struct cb_error *err)
{
    CB_AUTO_FREE char *place = place_of(t, l);
    cb_wrap(err, "%s: command %zu of %zu (%s)", place, i + 1, t->commands->n, title);
    return talk_explain(t, err);
}

static struct guest_step guest_step_of(const struct talk *t, const struct command *cmd,
                                       const struct step_state *state, int step)
{
    uint32_t vcpus = tier_vcpus(t->b->c->tier);
    return (struct guest_step){.step = (uint32_t)step,
                               .script = cmd->script,
                               .argv = cmd->script ? NULL : &cmd->args,
                               .as_root = cmd->run_as_root,
                               .env = &state->env,
                               .over_env = &cmd->env_variables,
                               .user = state->user,
                               .workdir = state->workdir,
                               .tokens = state->auth != NULL,
                               .memory = command_ram(cmd),
                               .cpu_percent = command_cpus(cmd, vcpus),
                               .files = &cmd->allowed_files};
}

static int start_wait(const struct talk *t)
{
    return (int)machine_limit(t->m, START_WAIT_MS);
}

int run_starts_again(struct talk *t, const struct layer *l, struct cb_error *err)
{
    for (size_t i = 0; i < t->state.n_starts; i++) {
        const struct kept_start *k = &t->state.starts[i];
        CB_AUTO_FREE char *title = command_title(k->command);
        struct guest_step g = guest_step_of(t, k->command, &k->state, 0);
        struct step_result r = {0};
        int rc = session_start(t->s, &g, start_wait(t), &r, err);
        if (rc < 0) {
            cb_wrap(err, "layer %s: %s again", l->name, title);
            return talk_explain(t, err);
        }
        if (rc == 0) {
            char how[96];
            how_it_ended(&r, 0, how, sizeof(how));
            cb_fail(err, CB_E_COMMAND,
                    "layer %s: what \"%s\" started before did not start again: "
                    "it %s",
                    l->name, title, how);
            return cb_hint(err, "a command of type start is started again in every layer after it; "
                                "it has to cope with the files that it left");
        }
    }
    return 0;
}

static int run_start(struct talk *t, const struct layer *l, size_t i, struct cb_error *err)
{
    struct build *b = t->b;
    const struct command *cmd = &t->commands->v[i];
    CB_AUTO_FREE char *title = command_title(cmd);
    int step = begin_step(b, l, title);
    struct guest_step g = guest_step_of(t, cmd, &t->state.now, step);
    struct step_result r = {0};
    int rc = session_start(t->s, &g, start_wait(t), &r, err);
    if (rc < 0)
        return fail_talk(t, l, i, title, err);
    if (rc == 0) {
        char how[96];
        how_it_ended(&r, 0, how, sizeof(how));
        CB_AUTO_FREE char *text = cb_xasprintf("%s, and was to go on running", how);
        say_used(b, title, &(struct usage){0}, &r);
        rc = fail_command(t, l, i, title, text, r.limit, err);
        emit_step_end(&b->em, r.exit_code, err);
        return rc;
    }
    build_state_command(&t->state, cmd);
    say_used(b, title, &(struct usage){0}, &r);
    emit_step_end(&b->em, 0, NULL);
    return 0;
}

int run_gcp(struct talk *t, struct cb_error *err)
{
    const struct command *auth = t->state.now.auth;
    struct build *b = t->b;
    int rc = !auth || b->gcp ? 0 : gcp_open(b->c, &b->em, &b->gcp, err);
    return rc < 0 || !auth ? rc : gcp_set_scopes(b->gcp, &auth->args, err);
}

/* From here on commands can ask for tokens: that one can be had is seen now. */
static int run_gcp_auth(struct talk *t, const struct layer *l, size_t i, struct cb_error *err)
{
    const struct command *cmd = &t->commands->v[i];
    CB_AUTO_FREE char *title = command_title(cmd);
    (void)begin_step(t->b, l, title);
    build_state_command(&t->state, cmd);
    int rc = run_gcp(t, err);
    if (rc < 0) {
        cb_wrap(err, "layer %s: command %zu of %zu", l->name, i + 1, t->commands->n);
        emit_step_end(&t->b->em, 1, err);
        return rc;
    }
    emit_note(&t->b->em, "commands get tokens of %s", gcp_who(t->b->gcp));
    emit_step_end(&t->b->em, 0, NULL);
    return 0;
}

/* What only changes how later commands run. */
static int run_setting(struct talk *t, const struct layer *l, size_t i)
{
    const struct command *cmd = &t->commands->v[i];
    CB_AUTO_FREE char *title = command_title(cmd);
    (void)begin_step(t->b, l, title);
    build_state_command(&t->state, cmd);
    emit_step_end(&t->b->em, 0, NULL);
    return 0;
}

/* One attempt, on an upper of its own when there may be more. */
static int attempt(struct talk *t, const struct layer *l, const struct command *cmd,
                   const struct guest_step *g, struct step_result *r, struct cb_error *err)
{
    int rc = 0;
    if (cmd->max_retries &&
        ((rc = session_try(t->s, err)) < 0 || (rc = run_starts_again(t, l, err)) < 0))
        return rc;
    return session_step(t->s, g, r, err);
}

static int run_program(struct talk *t, const struct layer *l, size_t i, struct cb_error *err)
{
    struct build *b = t->b;
    const struct command *cmd = &t->commands->v[i];
    CB_AUTO_FREE char *title = command_title(cmd);
    int step = begin_step(b, l, title);
    struct guest_step g = guest_step_of(t, cmd, &t->state.now, step);
    struct usage used = {0};
    const struct layer_secrets *secrets = secrets_of(b->secrets, (size_t)(l - b->c->layers));
    g.secret_env = secrets ? &secrets->env : NULL;
    g.timeout_ms = cmd->timeout_ms ? cmd->timeout_ms : machine_limit(t->m, COMMAND_TIMEOUT_MS);
    struct step_result r = {0};
    char how[160] = "";
    int64_t pause = RETRY_FIRST_MS;
    for (uint32_t tries = 1;; tries++) {
        int rc = attempt(t, l, cmd, &g, &r, err);
        if (rc < 0)
            return fail_talk(t, l, i, title, err);
        say_used(b, title, &used, &r);
        if (succeeded(&r))
            break;
        how_it_ended(&r, g.timeout_ms, how, sizeof(how));
        if (tries > cmd->max_retries) {
            if (cmd->max_retries)
                (void)snprintf(how + strlen(how), sizeof(how) - strlen(how), " at attempt %u",
                               tries);
            rc = fail_command(t, l, i, title, how, r.limit, err);
            emit_step_end(&b->em, exit_of(&r), err);
            return rc;
        }
        emit_note(&b->em,
                  "attempt %u of %u %s; what it did is dropped, the next one begins in %lld s",
                  tries, cmd->max_retries + 1, how, (long long)(pause / 1000));
        if ((rc = session_pause(t->s, pause, err)) < 0)
            return fail_talk(t, l, i, title, err);
        pause = pause * 2 < RETRY_MOST_MS ? pause * 2 : RETRY_MOST_MS;
    }
    int rc = 0;
    if (cmd->max_retries &&
        ((rc = session_try_keep(t->s, err)) < 0 || (rc = run_starts_again(t, l, err)) < 0))
        return fail_talk(t, l, i, title, err);
    emit_step_end(&b->em, 0, NULL);
    return 0;
}

static int run_by_type(struct talk *t, const struct layer *l, size_t i, struct cb_error *err)
{
    switch (t->commands->v[i].type) {
    case COMMAND_SHELL:
    case COMMAND_EXEC: return run_program(t, l, i, err);
    case COMMAND_ENV:
    case COMMAND_WORKDIR:
    case COMMAND_USER: return run_setting(t, l, i);
    case COMMAND_START: return run_start(t, l, i, err);
    case COMMAND_COPY: return run_copy(t, l, i, err);
    case COMMAND_GCP_AUTH: return run_gcp_auth(t, l, i, err);
    case COMMAND_TYPE_N: break;
    }
    return cb_fail(err, CB_E_BUG, "layer %s: a command that should have been refused", l->name);
}

int run_command(struct talk *t, const struct layer *l, size_t i, struct cb_error *err)
{
    struct egress *egress = t->b->egress;
    int rc = egress_hold(egress, &t->commands->v[i], err);
    if (rc >= 0)
        rc = run_by_type(t, l, i, err);
    return rc < 0 ? rc : egress_hold(egress, NULL, err);
}
