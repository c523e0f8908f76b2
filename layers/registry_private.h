/* registry_private: what pulling and pushing share: the places of a session, one request with
 * authorization, what an answer means, when to try again. */
#pragma once

#include "layers/registry.h"

#include <pthread.h>

enum { REGISTRY_PLACES_MAX = 10 }; /* a mirror, eight more, and the host */

/* A place to ask. */
struct place {
    char *base;   /* "https://registry-1.docker.io", without a slash at the end */
    char *host;   /* "127.0.0.1:5000" */
    char *label;  /* in messages: "the registry", "the mirror http://127.0.0.1:5001" */
    char *query;  /* behind every URL: "?ns=docker.io" for a mirror, else "" */
    char *logins; /* the host whose credentials are used here */
    bool last;    /* nobody is asked after it */
    bool pushing; /* for the words of errors */
    char *ca_file, *ca_pem, *cert_file, *key_file;
    pthread_mutex_t lock; /* guards what follows, also while a token is being asked for */
    struct auth_credentials credentials;
    struct cb_strv challenges; /* what was last answered */
    char *authorization;       /* the answer, or NULL */
    int64_t expires_ms;        /* of it, by the monotonic clock; 0: never */
};

struct registry {
    struct place at[REGISTRY_PLACES_MAX];
    size_t n;
    const struct settings *settings; /* borrowed */
    char *domain, *path;
    char *scope; /* of a token */
    char *more;  /* scopes beside those of a challenge, or NULL */
    const struct layers_progress *progress;
    pthread_mutex_t lock;  /* guards what follows */
    struct cb_strv warned; /* what registries told us already */
};

/* As registry_open(), for pushing: the host alone. @from (may be NULL) is a repository of the same
 * host that blobs may be mounted from. */
int registry_open_push(const struct settings *settings, const struct image_ref *ref,
                       const char *from, const struct layers_progress *p, struct registry **out,
                       struct cb_error *err);

__attribute__((format(printf, 2, 3))) void registry_note(const struct registry *r, const char *fmt,
                                                         ...);

/* http_exchange(), and once more with a new authorization when the first answer was 401. */
int registry_ask(struct registry *r, struct place *p, struct http_client *c,
                 struct http_request *req, struct http_response *res, struct cb_error *err);
/* Raises what a status that is not the expected one means. */
int registry_bad_status(const struct place *p, const struct http_response *res,
                        struct cb_error *err);

struct tries {
    unsigned n;    /* failures that were followed by another try */
    uint64_t from; /* where the transfer stood at the last of them */
};
/* After a failure (@rc < 0 and @err) or a passing status: waits and returns true when it is worth
 * another try; then @err and @res are fresh again. */
bool registry_again(const struct registry *r, const struct place *p, struct tries *t, int rc,
                    struct http_response *res, struct cb_error *err);
/* The transfer stands at @now: enough progress makes up for failures before it. */
void registry_progressed(struct tries *t, uint64_t now);
/* Runs @op on each place until one delivers. */
int registry_each_place(struct registry *r,
                        int (*op)(struct registry *r, struct place *p, void *arg,
                                  struct cb_error *err),
                        void *arg, struct cb_error *err);
