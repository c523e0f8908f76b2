/* healthcheck: the config's check, in the machine of the boot check, where what `start` keeps and
 * the start command run as they will. Its options mean what Docker's mean: failures within the
 * start period do not count, `retries` failures in a row after that are the end; 0 retries go on
 * until the boot check's time is over. */
#include "builder/build_private.h"
#include "builder/session.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <string.h>

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int never_passed(struct emitter *em, const char *command, unsigned runs, const char *last,
                        struct cb_error *err)
{
    CB_AUTO_FREE char *tail = emit_tail(em);
    for (size_t n = strlen(tail); n && tail[n - 1] == '\n'; n--)
        tail[n - 1] = '\0';
    cb_fail(err, CB_E_COMMAND, "the healthcheck did not pass (%u run%s; the last one %s): %s%s%s",
            runs, runs == 1 ? "" : "s", last, command, tail[0] ? "\nthe last lines:\n" : "", tail);
    return cb_hint(err, "run its command in the image by hand (capsule-build boot NAME --exec ..., "
                        "after a build with --no-boot-check), or give it longer: --retries, "
                        "--start-period, --boot-timeout SECONDS");
}

int healthcheck_run(const struct healthcheck *h, struct session *s, struct emitter *em,
                    int64_t end_ms, struct cb_error *err)
{
    if (!h || !h->present)
        return 0;
    const char *const argv[] = {"/bin/sh", "-c", h->command, NULL};
    int64_t counts_from = cb_monotonic_ms() + h->start_period_ms;
    unsigned failed = 0;
    emit_note(em, "healthcheck: %s", h->command);
    for (unsigned runs = 1;; runs++) {
        struct step_result r = {0};
        char last[64];
        int64_t left = end_ms - cb_monotonic_ms();
        int64_t limit = least(h->timeout_ms, left > 1000 ? left : 1000);
        int rc = session_exec_within(s, argv, limit, &r, err);
        if (rc < 0)
            return cb_wrap(err, "healthcheck");
        if (r.exit_code == 0 && !r.signal && !r.timed_out) {
            emit_note(em, "the healthcheck passed at run %u", runs);
            return 0;
        }
        if (r.timed_out)
            (void)snprintf(last, sizeof(last), "took longer than %lld ms", (long long)limit);
        else
            (void)snprintf(last, sizeof(last), "ended with exit code %d", r.exit_code);
        failed += cb_monotonic_ms() >= counts_from;
        bool over = cb_monotonic_ms() + h->interval_ms >= end_ms;
        if (over || (h->retries && failed >= h->retries))
            return never_passed(em, h->command, runs, last, err);
        if ((rc = session_pause(s, h->interval_ms, err)) < 0)
            return cb_wrap(err, "healthcheck");
    }
}
