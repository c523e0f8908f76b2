/* warm: a booted image that is ready, saved, and resumed (config.snapshot: warm). Private to
 * builder/. */
#pragma once

#include "builder/machine.h"
#include "builder/session.h"
#include "layers/store.h"

/* What a machine had booted, by content. */
struct warm_of {
    const struct cb_digest *image, *kernel, *initramfs;
    const struct cb_digest *drives; /* drives_digest() */
};
/* Saves @m, which is booted and whose session is @s, with its disk's overlay as one blob of
 * @store. It is stopped then and can only be stopped for good. *@out: warm_state_release(). */
int warm_save(struct store *store, struct machine *m, struct session *s, const struct warm_of *of,
              const char *work_dir, struct warm_state *out, struct cb_error *err);
void warm_state_release(struct warm_state *w);
/* Starts a machine for @spec (MACHINE_BOOT, with the image and kernel that @of names) from @w, and
 * opens the session. -CB_E_CONFLICT with what differs when it cannot go on here, -CB_E_CORRUPT,
 * -CB_E_NOTFOUND. On failure both *@m and *@s are NULL. */
int warm_start(struct store *store, const struct settings *settings, const struct warm_state *w,
               const struct warm_of *of, struct machine_spec *spec,
               const struct session_callbacks *cb, struct machine **m, struct session **s,
               struct cb_error *err);
