/* authorities: `ca_bundle` of the settings on its way to the commands of a build. A network whose
 * proxy opens TLS is of no use to programs that do not trust its authority; so they get it, in a
 * file that no image and no key has. Private to builder/. */
#pragma once

#include "schemas/settings.h"
#include "support/buf.h"

enum { AUTHORITIES_MAX = 2 << 20 };
struct session;

/* The bundle, into the empty @out; nothing without one. -CB_E_CONFIG when it is no PEM or larger
 * than 2 MiB. */
int authorities_read(const struct settings *s, struct cb_buf *out, struct cb_error *err);
/* After session_setup(), before the first layer: the agent puts it where authorities_env() says. */
int authorities_send(struct session *s, const struct cb_buf *bundle, struct cb_error *err);
/* The variables by which programs find it. */
void authorities_env(struct cb_strv *env);
