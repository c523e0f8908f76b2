/* saved: builder machines that were booted once and saved, under $CAPSULE_BUILD_HOME/saved/.
 *
 * An emulated guest takes seconds to boot and a twentieth of one to go on from where it was saved:
 * when its agent waits for the host and no disk was looked at. So what is saved is the same for
 * every build with this kernel, initramfs, QEMU and size, and holds nothing of any of them. A file
 * is complete and checked by its digest or it is not used; any may be removed at any time. Private
 * to builder/. */
#pragma once

#include "builder/machine.h"
#include "builder/session.h"
#include "support/hash.h"

/* What the guest boots, by content: the paths are in the spec. */
struct saved_boot {
    struct cb_digest kernel, initramfs;
};
/* Starts a builder for @spec and opens the session with its agent. A guest of machine_vm goes on
 * from a saved one when there is one that fits; else it is booted and, where its agent can wait for
 * that, saved for the next build. What does not work with saved machines is said by the spec's
 * note, once, and ends in an ordinary boot. On failure *@m may be there without a session: it did
 * not answer; both are the caller's in any case. */
int saved_start(const struct settings *settings, const struct machine_driver *driver,
                const struct saved_boot *boot, struct machine_spec *spec,
                const struct session_callbacks *cb, struct machine **m, struct session **s,
                struct cb_error *err);
