/* registry: one repository of images, asked over the OCI distribution API. Private to layers/.
 *
 * A session knows the places to ask, in order (a mirror, then the host itself), and one
 * authorization for each. A place that does not deliver is left for the next with a note; the last
 * one's words, and briefly those before, become the error. Everything that is worth another try is
 * tried again here, downloads from where they stopped. Nothing is taken over before its digest
 * fits.
 *
 * Threads: any number may use one session, each with a client of its own. */
#pragma once

#include "layers/image.h"
#include "layers/store.h"
#include "support/buf.h"

#include <stdbool.h>
#include <stdint.h>

/* --- http: one exchange with one server, redirects followed by hand --- */

struct http_client; /* a connection that is used again; one thread at a time */
struct http_client *http_client_new(void);
void http_client_free(struct http_client *c);

struct http_response {
    long status;
    int64_t length;                                         /* of the body as announced, or -1 */
    int64_t retry_after_s;                                  /* 0: not said */
    char *content_type, *content_range, *digest, *location; /* owned, NULL when absent */
    struct cb_strv challenges;                              /* values of WWW-Authenticate */
    struct cb_buf body;                                     /* what did not go to the sink */
    bool unreachable;                                       /* no connection came about */
    bool foreign; /* from another host, to which a redirect led */
};
#define HTTP_RESPONSE_INIT                                                                         \
    {                                                                                              \
        .length = -1                                                                               \
    }
void http_response_release(struct http_response *r);

struct http_request {
    const char *url;
    bool head;                 /* HEAD instead of GET */
    const char *authorization; /* value of the header; leaves with the first other host */
    const char *accept;
    const char *ca_file; /* instead of the system's bundle, or NULL */
    uint64_t from;       /* > 0: only the bytes from there */
    size_t body_max;     /* of a 2xx answer without a sink; more is -CB_E_LIMIT */
    /* Sink of a 2xx answer's body: begin once, then add. Either may raise, which ends the exchange.
     */
    int (*begin)(void *arg, const struct http_response *r, struct cb_error *err);
    int (*add)(void *arg, const void *p, size_t n, struct cb_error *err);
    void *arg;
};
/* 0 when an answer came, whatever its status. Else -CB_E_NET, -CB_E_TIMEOUT, -CB_E_UNTRUSTED (TLS,
 * or a redirect that nobody should follow) or what the sink raised. @r must be fresh. */
int http_exchange(struct http_client *c, const struct http_request *req, struct http_response *r,
                  struct cb_error *err);

/* "host:port" for messages: URLs may carry signatures. Owned. */
char *http_host(const char *url);
/* True for localhost, 127.0.0.0/8 and ::1, with or without a port. */
bool http_host_is_loopback(const char *host);

/* --- auth: challenges, credentials, tokens --- */

struct auth_challenge {
    bool bearer;                           /* else Basic */
    char *realm, *service, *scope, *error; /* owned, NULL when absent */
};
/* Reads one WWW-Authenticate header, which may hold several challenges: the best that we can answer
 * (Bearer before Basic). False when there is none. */
bool auth_challenge_parse(const char *header, struct auth_challenge *out);
void auth_challenge_release(struct auth_challenge *c);

struct auth_credentials {
    char *username, *password; /* owned; both NULL: none */
    char *from;                /* where they were found, for messages */
};
/* From @settings, else from Docker's config.json. No credentials is no error. */
int auth_find_credentials(const struct settings *settings, const char *host,
                          struct auth_credentials *out, struct cb_error *err);
void auth_credentials_release(struct auth_credentials *c);
/* "Basic ...", owned. */
char *auth_basic(const struct auth_credentials *c);

/* What a token request needs to know of the place that challenged. */
struct auth_place {
    const char *label;   /* "the registry docker.io" */
    const char *scope;   /* to ask for when the challenge has none */
    const char *ca_file; /* or NULL */
    bool plain_http;     /* the place itself is asked without TLS */
    const struct auth_credentials *credentials;
};
/* Answers @challenges: *@out is the value of the next request's Authorization header (owned). */
int auth_answer(struct http_client *c, const struct auth_place *place,
                const struct cb_strv *challenges, char **out, struct cb_error *err);

/* --- registry: the session --- */

struct registry;
/* @p (may be NULL) is called from whichever thread works and must allow that. */
int registry_open(const struct settings *settings, const struct image_ref *ref,
                  const struct layers_progress *p, struct registry **out, struct cb_error *err);
void registry_free(struct registry *r);

/* A manifest or index, from the store when it is there, else from the registry (and then kept in
 * the store). @tag non-NULL: asks where it points now and sets *@digest; NULL: *@digest says which.
 * *@type is the Content-Type it came with (owned), NULL from the store. @body's ceiling is set
 * here. */
int registry_manifest(struct registry *r, struct http_client *c, struct store *s, const char *tag,
                      struct cb_digest *digest, struct cb_buf *body, char **type,
                      struct cb_error *err);

/* How a download goes: @delta may be negative (started over). False: stop (-CB_E_CANCELED). */
typedef bool registry_moved(void *arg, int64_t delta);
/* Brings the blob into the store; what a failure leaves is gone on with the next time. */
int registry_blob(struct registry *r, struct http_client *c, struct store *s,
                  const struct cb_digest *digest, uint64_t size, registry_moved *moved, void *arg,
                  struct cb_error *err);

/* How long a second of waiting before another try takes, ms. Tests lower it. */
extern int64_t registry_second_ms;

/* --- builtin: bases made here (builtin.c) --- */

/* Sets @out from the store, or makes the image when it is not there. */
int builtin_resolve(struct store *s, const struct settings *settings, const char *name,
                    const char *arch, enum pull_policy policy, const struct layers_progress *p,
                    struct base_image *out, struct cb_error *err);

/* --- image: what both kinds of base end in (image.c) --- */

/* A whole small blob (manifest, config) of the store. */
int image_read_small(struct store *s, const struct cb_digest *d, struct cb_buf *out,
                     struct cb_error *err);
/* Fills config and layers of @out from the manifest @digest and its config, both in the store. The
 * names of the lock and of the error are the caller's business. -CB_E_NOTFOUND when a blob is
 * missing. */
int image_load(struct store *s, const struct cb_digest *digest, const char *arch,
               struct base_image *out, struct cb_error *err);
