/* gcp: access tokens of Google Cloud for commands (type gcp-auth). They come from, in this order:
 * the key file that config.auth.providers.gcp.key_file_ref names; the file of
 * GOOGLE_APPLICATION_CREDENTIALS; the metadata server of this machine (GCE_METADATA_HOST, else
 * 169.254.169.254). A token is in this process's memory until shortly before its end, and nowhere
 * else; each is given to the mask before anybody has it. Private to builder/. */
#pragma once

#include "builder/session.h"
#include "schemas/config.h"
#include "support/error.h"

struct emitter;
struct gcp;

/* Finds the provider, and gets a first token of the scopes that a command without any has.
 * *@out is owned. -CB_E_CONFIG: what is configured is no credential, -CB_E_ENV: there is none here,
 * -CB_E_AUTH: Google said no. */
int gcp_open(const struct workload_config *c, struct emitter *em, struct gcp **out,
             struct cb_error *err);
void gcp_free(struct gcp *g); /* NULL is fine; overwrites what it knew */
/* "service account x@y (key file /k.json)". Borrowed. */
const char *gcp_who(const struct gcp *g);

/* A token of @scopes (separated by commas; NULL: those of the command); borrowed until the next
 * call. */
int gcp_token(struct gcp *g, const char *scopes, const char **token, int64_t *expires_in_s,
              struct cb_error *err);
/* The command's `--scope X...` from here on. -CB_E_CONFIG: other words. */
int gcp_set_scopes(struct gcp *g, const struct cb_strv *args, struct cb_error *err);

/* builder/gcp_metadata.c: what the metadata server of a machine of Google's would say, in the
 * callback's form. @g NULL: 404. */
void gcp_answer(struct gcp *g, const char *target, bool flavor, bool forwarded,
                struct metadata_reply *out);
/* For that: the account's address, scopes separated by commas, and the project ("": not known). */
const char *gcp_email(const struct gcp *g);
const char *gcp_scopes(const struct gcp *g);
const char *gcp_project(const struct gcp *g);
