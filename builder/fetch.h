/* fetch: one file over HTTP, streamed to a descriptor and hashed on the way. Private to builder/.
 */
#pragma once

#include "support/error.h"
#include "support/hash.h"

#include <stdint.h>

struct fetch_spec {
    const char *url;
    const char *what;                          /* for messages: "the package lists" */
    uint64_t max;                              /* more bytes are -CB_E_LIMIT */
    void (*note)(void *arg, const char *text); /* every few seconds on a slow line; may be NULL */
    void *note_arg;
};
struct fetch_result {
    uint64_t size;
    struct cb_digest digest;
};
/* Writes the body to @fd from where it stands. -CB_E_NOTFOUND when the server has no such file,
 * -CB_E_NET for all else that went wrong on the way, -CB_E_CANCELED soon after machine_cancel(). */
int fetch_to_fd(const struct fetch_spec *spec, int fd, struct fetch_result *out,
                struct cb_error *err);
