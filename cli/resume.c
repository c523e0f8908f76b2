/* resume: a build that failed, once more, from where it stopped and with what it was resolved to.
 */
#include "cli/cli.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static int find_lock(void *arg, const struct event_out *ev)
{
    char **lock = arg;
    const json_t *o = ev->type == EVENT_PLAN ? json_object_get(ev->payload, "lock") : NULL;
    if (!json_is_object(o))
        return 0;
    free(*lock);
    *lock = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);
    return 0;
}

static int refuse(const struct build_record *r, struct cb_error *err)
{
    if (r->status == BUILD_SUCCESS) {
        cb_fail(err, CB_E_CONFIG, "build %s of %s did not fail: there is nothing to go on with",
                r->id, r->name);
        return cb_hint(err, "`capsule-build boot %s` boots what it made", r->name);
    }
    if (build_status_is_final(r->status))
        return 0;
    cb_fail(err, CB_E_CONFLICT, "build %s of %s is not over yet", r->id, r->name);
    return cb_hint(err, "`capsule-build logs -f %s` follows it", r->id);
}

/* What its layers made is in the store: nothing is ignored or made anew this time. */
static int options_of(const struct cli_args *a, struct queue *q, const struct build_record *r,
                      struct build_options *o, struct cb_error *err)
{
    int rc = build_options_parse(r->options, o, err);
    if (rc < 0)
        return rc;
    o->force = o->clean = o->renew_builtin = o->locked = false;
    free(o->resume);
    o->resume = cb_xstrdup(r->id);
    if (a->isolation)
        o->isolation = (enum isolation)isolation_from_name(a->isolation);
    if (a->no_boot_check)
        o->no_boot_check = true;
    rc = queue_events(q, r->id, 0, 0, find_lock, &o->lock, err);
    return rc < 0 ? rc : 0;
}

static int resume(struct cli_args *a, struct settings *s, struct queue *q)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct build_record r = {0};
    struct build_options o = {0};
    struct workload_config *c = NULL;
    char id[BUILD_ID_LEN + 1];
    if (queue_find(q, a->words.v[0], id, &err) < 0 || queue_get(q, id, &r, &err) < 0)
        return cli_fail(&err);
    int rc = refuse(&r, &err);
    if (rc == 0)
        rc = cli_config_of(&r, &c, &err);
    if (rc >= 0)
        rc = options_of(a, q, &r, &o, &err);
    rc = rc < 0 ? cli_fail(&err) : cli_run_build(a, s, c, q, &o);
    build_options_release(&o);
    config_free(c);
    build_record_release(&r);
    return rc;
}

int cmd_resume(struct cli_args *a)
{
    return cli_with_queue(a, resume);
}
