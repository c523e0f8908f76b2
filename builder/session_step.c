#include "builder/session_wire.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <stdlib.h>

#define STEP_MARGIN_MS                                                                             \
    INT64_C(60000) /* the agent keeps the limit itself; we only when it does not */

int sess_step_result(struct session *s, const struct reply *r, struct step_result *out,
                     struct cb_error *err)
{
    uint64_t code = 0, sig = 0, timed_out = 0, elapsed = 0, cpu = 0, rss = 0;
    const struct number_field want[] = {
        {TAG_EXIT, 255, &code},         {TAG_SIGNAL, 64, &sig},
        {TAG_TIMED_OUT, 1, &timed_out}, {TAG_ELAPSED, INT64_MAX, &elapsed},
        {TAG_CPU, INT64_MAX, &cpu},     {TAG_RSS, INT64_MAX, &rss},
    };
    int rc = sess_numbers(s, r, want, count_of(want), err);
    if (rc < 0)
        return rc;
    uint64_t limit = LIMIT_NONE, value = 0;
    if ((rc = sess_number(s, r, TAG_LIMIT, LIMIT_KIND_END - 1, &limit, err)) < 0 ||
        (rc = sess_number(s, r, TAG_LIMIT_VALUE, INT64_MAX, &value, err)) < 0)
        return rc;
    if (r->step != s->step)
        return sess_untrusted(s, err, "the end of another step");
    sess_pop(s, r);
    *out = (struct step_result){.exit_code = (int)code,
                                .signal = (int)sig,
                                .timed_out = timed_out != 0,
                                .elapsed_ms = (int64_t)elapsed,
                                .cpu_ms = (int64_t)cpu,
                                .max_rss_kib = rss,
                                .limit = (enum limit_kind)limit,
                                .limit_value = value};
    return 0;
}

/* The answer to STEP and to EXEC. */
static int wait_step(struct session *s, int64_t timeout_ms, struct step_result *out,
                     struct cb_error *err)
{
    struct reply r = {0};
    int rc = sess_expect(s, FRAME_STEP_DONE, timeout_ms, &r, err);
    return rc < 0 ? rc : sess_step_result(s, &r, out, err);
}

void sess_put_step(struct frame_out *o, const struct guest_step *st)
{
    frame_put_text(o, TAG_SCRIPT, st->script);
    for (size_t i = 0; !st->script && st->argv && i < st->argv->n; i++)
        frame_put_text(o, TAG_ARG, st->argv->v[i]);
    frame_put_number(o, TAG_ROOT, st->as_root);
    sess_put_env(o, st->env);
    sess_put_env(o, st->secret_env);
    sess_put_env(o, st->over_env);
    frame_put_text(o, TAG_USER, st->user);
    frame_put_text(o, TAG_WORKDIR, st->workdir);
    if (st->tokens)
        frame_put_number(o, TAG_TOKENS, 1);
    if (st->memory)
        frame_put_number(o, TAG_MEMORY, st->memory);
    if (st->cpu_percent)
        frame_put_number(o, TAG_CPUS, st->cpu_percent);
    for (size_t i = 0; st->files && i < st->files->n; i++)
        frame_put_text(o, TAG_FILE, st->files->v[i]);
}

int session_step(struct session *s, const struct guest_step *st, struct step_result *out,
                 struct cb_error *err)
{
    struct frame_out o;
    sess_begin(s, &o, FRAME_STEP, st->step);
    sess_put_step(&o, st);
    if (st->timeout_ms > 0)
        frame_put_number(&o, TAG_TIMEOUT, (uint64_t)st->timeout_ms);
    s->step = st->step;
    int64_t limit =
        st->timeout_ms > 0 ? st->timeout_ms + STEP_MARGIN_MS * s->factor : INT64_MAX / 2;
    int rc = sess_send(s, &o, err);
    if (st->secret_env)
        explicit_bzero(o.p, o.len); /* what was sent does not stay in our memory */
    return rc < 0 ? rc : wait_step(s, limit, out, err);
}

int session_start(struct session *s, const struct guest_step *st, int64_t wait_ms,
                  struct step_result *out, struct cb_error *err)
{
    struct frame_out o;
    struct reply r = {0};
    sess_begin(s, &o, FRAME_START, st->step);
    sess_put_step(&o, st);
    frame_put_number(&o, TAG_WAIT, (uint64_t)wait_ms);
    s->step = st->step;
    int rc = sess_send(s, &o, err);
    if (rc == 0)
        rc = sess_next(s, cb_monotonic_ms() + wait_ms + STEP_MARGIN_MS * s->factor, &r, err);
    if (rc < 0)
        return rc;
    if (r.type == FRAME_DONE && r.step == st->step) {
        sess_pop(s, &r);
        return 1;
    }
    if (r.type == FRAME_FAILED) {
        rc = sess_raise_failed(s, &r, err);
        if (!s->dead)
            sess_pop(s, &r);
        return rc;
    }
    if (r.type != FRAME_STEP_DONE)
        return sess_untrusted(s, err, "an answer of the wrong kind");
    return sess_step_result(s, &r, out, err);
}

int session_try(struct session *s, struct cb_error *err)
{
    struct frame_out o;
    sess_begin(s, &o, FRAME_TRY, 0);
    int rc = sess_ask(s, &o, SETUP_MS * s->factor, err);
    return rc < 0 ? cb_wrap(err, "make room for another try") : 0;
}

int session_try_keep(struct session *s, struct cb_error *err)
{
    struct frame_out o;
    sess_begin(s, &o, FRAME_TRY_KEEP, 0);
    int rc = sess_ask(s, &o, SETUP_MS * s->factor, err);
    return rc < 0 ? cb_wrap(err, "keep what the command did") : 0;
}

int session_drives(struct session *s, size_t first, const struct cb_strv *paths, const char *user,
                   struct cb_error *err)
{
    struct frame_out o;
    sess_begin(s, &o, FRAME_DRIVES, 0);
    for (size_t i = 0; i < paths->n; i++) {
        frame_put_number(&o, TAG_DRIVE, first + i);
        frame_put_text(&o, TAG_DRIVE_PATH, paths->v[i]);
    }
    frame_put_text(&o, TAG_USER, user);
    int rc = sess_ask(s, &o, SETUP_MS * s->factor, err);
    return rc < 0 ? cb_wrap(err, "mount the layer's drives") : 0;
}

int session_pause(struct session *s, int64_t ms, struct cb_error *err)
{
    int64_t end = cb_monotonic_ms() + ms;
    struct reply r = {0};
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    s->heard_at = cb_monotonic_ms();
    int rc = sess_next(s, end, &r, &why);
    if (rc == -CB_E_TIMEOUT && !s->dead)
        return 0;
    if (rc < 0)
        return cb_error_move(err, &why);
    return sess_untrusted(s, err, "an answer to nothing");
}
static int start_ended(struct session *s, const struct reply *r, char **how, struct cb_error *err)
{
    uint64_t code = 0, sig = 0;
    const struct number_field want[] = {{TAG_EXIT, 255, &code}, {TAG_SIGNAL, 64, &sig}};
    int rc = sess_numbers(s, r, want, count_of(want), err);
    if (rc < 0)
        return rc;
    const char *probe = s->probe ? s->probe : "no probe";
    if (sig)
        *how = cb_xasprintf("the start command was killed by signal %d; last probe: %s", (int)sig,
                            probe);
    else
        *how = cb_xasprintf("the start command ended with exit code %d; last probe: %s", (int)code,
                            probe);
    sess_pop(s, r);
    return 0;
}

int session_wait_ready(struct session *s, int64_t timeout_ms, char **how, struct cb_error *err)
{
    struct frame_out o;
    struct reply r = {0};
    int64_t deadline = cb_monotonic_ms() + timeout_ms;
    sess_begin(s, &o, FRAME_WATCH, 0);
    int rc = sess_ask(s, &o, timeout_ms, err);
    if (rc == 0)
        rc = sess_next(s, deadline, &r, err);
    if (rc == -CB_E_TIMEOUT && cb_monotonic_ms() >= deadline) {
        cb_error_clear(err);
        *how = cb_xasprintf("not ready in time; last probe: %s", s->probe ? s->probe : "none yet");
        return 0;
    }
    if (rc < 0)
        return rc;
    if (r.type == FRAME_START_EXITED)
        return start_ended(s, &r, how, err);
    if (r.type != FRAME_READY)
        return sess_untrusted(s, err, "an answer of the wrong kind");
    struct frame_field f;
    char *text = NULL;
    const uint8_t *p = r.p;
    for (int got; (got = frame_next(&p, r.p + r.n, &f)) != 0;) {
        if (got < 0) {
            free(text);
            return sess_untrusted(s, err, "a broken frame");
        }
        if (f.tag == TAG_TEXT && !text)
            text = sess_text(&f);
    }
    sess_pop(s, &r);
    *how = text ? text : cb_xstrdup("ready");
    return 1;
}

int session_attend(struct session *s, struct cb_error *err)
{
    CB_AUTO_ERROR end = CB_ERROR_INIT;
    for (;;) {
        struct reply r = {0};
        int rc = sess_next(s, INT64_MAX, &r, &end);
        if (rc == -CB_E_SYS && s->dead)
            return 0; /* it powered off */
        if (rc < 0)
            return cb_error_move(err, &end);
        if (r.type != FRAME_START_EXITED) /* a watch may answer late; nothing else is open */
            return sess_untrusted(s, err, "an answer to nothing");
        sess_pop(s, &r);
    }
}

/* The start command's output comes as step 0: this one's must be told from it. */
enum { EXEC_STEP = 1 };

int session_exec_within(struct session *s, const char *const *argv, int64_t timeout_ms,
                        struct step_result *out, struct cb_error *err)
{
    struct frame_out o;
    sess_begin(s, &o, FRAME_EXEC, EXEC_STEP);
    for (size_t i = 0; argv[i]; i++)
        frame_put_text(&o, TAG_ARG, argv[i]);
    if (timeout_ms > 0)
        frame_put_number(&o, TAG_TIMEOUT, (uint64_t)timeout_ms);
    s->step = EXEC_STEP;
    int64_t limit = timeout_ms > 0 ? timeout_ms + STEP_MARGIN_MS * s->factor : INT64_MAX / 2;
    int rc = sess_send(s, &o, err);
    return rc < 0 ? rc : wait_step(s, limit, out, err);
}

int session_exec(struct session *s, const char *const *argv, struct step_result *out,
                 struct cb_error *err)
{
    return session_exec_within(s, argv, 0, out, err);
}
