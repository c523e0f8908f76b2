/* build: what the service will do, for one build: enqueue, claim, run in a child, show the events.
 */
#include "cli/cli.h"

#include "builder/sweep.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

enum { LEASE_MS = 30000 };

struct view {
    struct render *render;
    struct queue *q;
    const char *id;
    const char *job; /* path of capsule-build-job */
    const char *home;
    uint64_t seq;
};

/* The last words: where it is and how to boot it, or why it failed. */
static int conclude(const struct view *v, const struct cli_args *a)
{
    struct build_record r;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (queue_get(v->q, v->id, &r, &err) < 0)
        return cli_fail(&err);
    int rc = EXIT_BUILD_FAILED;
    bool people = a->progress != PROGRESS_JSON;
    switch (r.status) {
    case BUILD_SUCCESS:
        rc = EXIT_DONE;
        if (people)
            printf("%s: done. Boot it with: capsule-build boot %s\n", r.name, r.name);
        break;
    case BUILD_CANCELLED:
        rc = EXIT_INTERRUPTED;
        if (people)
            fprintf(stderr, "capsule-build: %s was interrupted; finished layers are kept\n",
                    r.name);
        break;
    case BUILD_FAILED:
        rc = cli_exit_of_class(r.error_class);
        if (people) {
            fprintf(stderr, "capsule-build: %s failed: ", r.name);
            cli_put_text(stderr, r.error ? r.error : "unknown", "");
            if (render_hint(v->render)) {
                fputs("\n  ", stderr);
                cli_put_text(stderr, render_hint(v->render), "");
            }
            fprintf(stderr, "\n  the whole log: capsule-build logs %s\n", r.id);
            if (kept_is_there(v->home, r.id))
                fprintf(stderr,
                        "  look at what the command left: capsule-build shell %s\n"
                        "  go on from that command: capsule-build resume %s\n",
                        r.id, r.id);
        }
        break;
    case BUILD_QUEUED:
    case BUILD_RUNNING: break;
    }
    build_record_release(&r);
    return rc;
}

static int attach(struct view *v, const struct cli_args *a)
{
    if (a->progress != PROGRESS_JSON)
        fprintf(stderr, "capsule-build: the same build is running already (%s); attached to it\n",
                v->id);
    CB_AUTO_FD sig = cli_signal_fd();
    bool interrupted = false;
    (void)render_follow(v->render, v->q, v->id, &v->seq, sig, &interrupted);
    if (interrupted) {
        fprintf(stderr, "\ncapsule-build: detached; the build goes on: capsule-build logs -f %s\n",
                v->id);
        return EXIT_INTERRUPTED;
    }
    return conclude(v, a);
}

static int run_claimed(struct view *v, const struct cli_args *a, const struct settings *s,
                       const struct claim *claim)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_STRV argv = {0};
    cb_strv_add(&argv, v->job);
    cb_strv_add(&argv, "run-job");
    cli_settings_argv(a, &argv);
    CB_AUTO_FREE char *work = cli_work_dir(s, claim->id);
    CB_AUTO_FREE char *log = cb_xasprintf("%s/child.log", work);
    CB_AUTO_FD sig = cli_signal_fd();
    struct viewer *viewer = NULL;
    int rc = viewer_start(s, v->render, claim->id, &viewer);
    if (rc)
        return rc;
    enum build_status status;
    rc = cb_mkdir_p(work, 0700, &err);
    if (rc >= 0) {
        struct worker_options o = {.child_argv = (const char *const *)argv.v,
                                   .child_log = log,
                                   .cancel_fd = sig,
                                   .committed = viewer_wake,
                                   .arg = viewer};
        rc = worker_run(v->q, claim, &o, &status, &err);
    }
    if (rc < 0) {
        CB_AUTO_ERROR late = CB_ERROR_INIT;
        (void)queue_finish(v->q, claim, BUILD_FAILED, err.msg, cb_code_name(err.code), &late);
    }
    cli_clean_up_after_the_dead(s, v->q); /* what the child could not remove itself */
    if (!viewer_finish(viewer, sig))
        _exit(EXIT_INTERRUPTED);
    if (rc < 0)
        return cli_fail(&err);
    return conclude(v, a);
}

static int submit(const struct cli_args *a, struct settings *s, const struct workload_config *c,
                  struct queue *q)
{
    struct build_options o = {.force = a->force,
                              .clean = a->clean,
                              /* a built-in base is renewed by an explicit word alone */
                              .renew_builtin = a->pull && strcmp(a->pull, "always") == 0,
                              .locked = a->locked,
                              .no_boot_check = a->no_boot_check,
                              .boot_timeout_ms = a->boot_timeout_ms,
                              .isolation = (enum isolation)isolation_from_name(s->isolation),
                              .pull = (enum pull_policy)pull_from_name(s->pull)};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    for (size_t i = 0; i < a->refresh.n; i++)
        cb_strv_add(&o.refresh, a->refresh.v[i]);
    build_options_place(&o, c);
    int rc = build_refuse_refresh(&o, c, &err) < 0 ? cli_fail(&err) : cli_run_build(a, s, c, q, &o);
    build_options_release(&o);
    return rc;
}

int cli_run_build(const struct cli_args *a, struct settings *s, const struct workload_config *c,
                  struct queue *q, const struct build_options *o)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *job = cli_job_program();
    if (!job)
        return EXIT_ENVIRONMENT;
    CB_AUTO_FREE char *options = build_options_dump(o);
    CB_AUTO_FREE char *config = config_dump(c);
    CB_AUTO_FREE char *name = config_name(c);
    struct build_spec spec = {
        .name = name, .config = config, .options = options, .max_attempts = 1};
    keys_request(c, options, &spec.request_key);
    char id[BUILD_ID_LEN + 1];
    bool existing = false;
    if (queue_enqueue(q, &spec, id, &existing, &err) < 0)
        return cli_fail(&err);
    struct view v = {.render = render_new(a->progress, stdout, id),
                     .q = q,
                     .id = id,
                     .job = job,
                     .home = s->home};
    int rc;
    struct claim claim;
    CB_AUTO_FREE char *owner = queue_owner_self();
    if (existing)
        rc = attach(&v, a);
    else if (queue_claim(q, id, owner, LEASE_MS, &claim, &err) < 0)
        rc = cli_fail(&err);
    else
        rc = run_claimed(&v, a, s, &claim);
    render_free(v.render);
    return rc;
}

/* A key that cannot sign is said now, and not after the build. */
static int check_signing_key(const struct settings *s)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_sign_key *key = NULL;
    if (!s->signing_key || cb_sign_key_load(s->signing_key, &key, &err) >= 0) {
        cb_sign_key_free(key);
        return 0;
    }
    (void)cb_wrap(&err, "signing_key");
    return cli_fail(&err);
}

int cmd_build(struct cli_args *a)
{
    struct settings *s = NULL;
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct workload_config *c = NULL;
    struct config_problems problems = {0};
    struct queue *q = NULL;
    rc = config_load(a->words.v[0], a->allow_unknown ? CONFIG_ALLOW_UNKNOWN : 0, &c, &problems,
                     &err);
    cli_print_problems(&problems);
    if (rc < 0) {
        rc = cli_refuse(&problems, &err);
    } else if (build_refuse(c, &err) < 0) {
        rc = cli_fail(&err);
    } else if ((rc = check_signing_key(s)) == 0 && (rc = cli_open_queue(s, &q)) == 0) {
        cli_clean_up_after_the_dead(s, q);
        rc = submit(a, s, c, q);
    }
    config_problems_release(&problems);
    config_free(c);
    queue_free(q);
    settings_free(s);
    return rc;
}

int cmd_validate(struct cli_args *a)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct workload_config *c = NULL;
    struct config_problems problems = {0};
    int rc = config_load(a->words.v[0], a->allow_unknown ? CONFIG_ALLOW_UNKNOWN : 0, &c, &problems,
                         &err);
    cli_print_problems(&problems);
    if (rc < 0)
        rc = cli_refuse(&problems, &err);
    config_problems_release(&problems);
    if (rc)
        return rc;
    CB_AUTO_FREE char *name = config_name(c);
    char key[WORKLOAD_KEY_LEN + 1];
    keys_workload(c, key);
    printf("%s: valid: %s, %zu layer%s on %s, workload key %s\n", a->words.v[0], name, c->n_layers,
           c->n_layers == 1 ? "" : "s", c->base_image ? c->base_image : "nothing", key);
    for (size_t i = 0; i < c->n_unsupported; i++)
        printf("%s:%d:%d: note: %s: not supported yet: it has no effect on a build\n",
               a->words.v[0], c->unsupported[i].loc.line, c->unsupported[i].loc.column,
               c->unsupported[i].field);
    if (build_refuse(c, &err) < 0)
        printf("%s\n", err.msg);
    config_free(c);
    return EXIT_DONE;
}
