/* run-job: the child that runs one build. The one place where the queue's words meet the builder's:
 * it reads a job from its supervisor, runs it, and sends what happens back. Not for people. */
#include "builder/builder.h"
#include "cli/cli.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct job {
    struct job_channel *ch;
    bool lost; /* the supervisor is gone */
};

static void on_term(int sig)
{
    (void)sig;
    build_cancel();
}

static void on_event(void *arg, enum event_type type, json_t *payload)
{
    struct job *j = arg;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (j->lost) {
        json_decref(payload);
        return;
    }
    int rc = job_channel_event(j->ch, type, payload, &err);
    if (rc == -(int)CB_E_CANCELED) {
        j->lost = true;
        build_cancel();
    } else if (rc < 0) {
        fprintf(stderr, "an event was not sent: %s\n", err.msg); /* a mistake of ours: in the log */
    }
}

static int run(struct job *j, struct settings *s, json_t **result, struct cb_error *err)
{
    const char *text = job_channel_config(j->ch);
    struct config_problems problems = {0};
    struct workload_config *c = NULL;
    int rc =
        config_parse(text, strlen(text), "job", CONFIG_JSON, CONFIG_NO_ENV, &c, &problems, err);
    config_problems_release(&problems);
    struct build_options o = {0};
    if (rc >= 0)
        rc = build_options_parse(job_channel_options(j->ch), &o, err);
    if (rc < 0) {
        config_free(c);
        return rc;
    }
    CB_AUTO_FREE char *work = cli_work_dir(s, job_channel_build_id(j->ch));
    o.work_dir = work;
    o.build_id = job_channel_build_id(j->ch);
    struct build_sink sink = {on_event, j};
    struct build_result r = {0};
    rc = build_run(c, s, &o, &sink, &r, err);
    if (rc >= 0)
        *result =
            json_pack("{s:s, s:I, s:b, s:s}", "template", r.name, "version", (json_int_t)r.version,
                      "up_to_date", (int)r.up_to_date, "workload_key", r.workload_key);
    build_result_release(&r);
    build_options_release(&o);
    config_free(c);
    return rc;
}

/* Has a supervisor given us a socket? Then its word for it is forgotten: children have none. */
static bool has_supervisor(void)
{
    const char *fd_text = getenv("CAPSULE_BUILD_JOB_FD");
    bool has = fd_text && strcmp(fd_text, "3") == 0;
    (void)unsetenv("CAPSULE_BUILD_JOB_FD");
    if (!has)
        fputs("capsule-build: run-job is started by a worker, not by hand\n", stderr);
    return has;
}

int run_job_refuse(const struct cb_error *why)
{
    CB_AUTO_ERROR late = CB_ERROR_INIT;
    struct job_channel *ch = NULL;
    int rc = cli_fail(why); /* goes to the log, in case that even the messages have changed */
    if (has_supervisor() && job_channel_open(3, &ch, &late) >= 0)
        (void)job_channel_finish(ch, why, NULL, &late);
    job_channel_free(ch);
    return rc;
}

int cmd_run_job(struct cli_args *a)
{
    if (!has_supervisor())
        return EXIT_BAD_INPUT;
    struct sigaction sa = {.sa_handler = on_term};
    (void)sigaction(SIGTERM, &sa, NULL);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_ERROR late = CB_ERROR_INIT;
    struct job j = {0};
    struct settings *s = NULL;
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    if (job_channel_open(3, &j.ch, &err) < 0) {
        settings_free(s);
        return cli_fail(&err);
    }
    json_t *result = NULL;
    rc = run(&j, s, &result, &err);
    int sent = job_channel_finish(j.ch, rc < 0 ? &err : NULL, result, &late);
    json_decref(result);
    job_channel_free(j.ch);
    settings_free(s);
    return rc < 0 || sent < 0 ? EXIT_BUILD_FAILED : EXIT_DONE;
}
