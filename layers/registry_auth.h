/* registry_auth: challenges, credentials, tokens. Private to layers/. */
#pragma once

#include "layers/registry_http.h"
#include "schemas/settings.h"

/* --- challenges and tokens (registry_auth.c) --- */

struct auth_challenge {
    bool bearer;                           /* else Basic */
    char *realm, *service, *scope, *error; /* owned, NULL when absent */
};
/* Reads one WWW-Authenticate header, which may hold several challenges: the best that we can answer
 * (Bearer before Basic). False when there is none. */
bool auth_challenge_parse(const char *header, struct auth_challenge *out);
void auth_challenge_release(struct auth_challenge *c);

/* Who to be. All NULL: nobody. Owned. */
struct auth_credentials {
    char *username, *password;
    char *identity; /* a refresh token, to be exchanged at the token server */
    char *token;    /* a Bearer token as it is */
    char *from;     /* where they were found, for messages */
    char *trouble;  /* why there are none, when that is worth a word */
    bool renewable; /* found again they may differ: from a helper or the metadata server */
};
void auth_credentials_release(struct auth_credentials *c);
bool auth_has_credentials(const struct auth_credentials *c);
/* "Basic ...", owned. */
char *auth_basic(const struct auth_credentials *c);

/* What a token request needs to know of the place that challenged. */
struct auth_place {
    const char *label; /* "the registry docker.io" */
    const char *scope; /* to ask for when the challenge has none */
    const char *more;  /* scopes to ask for beside those of the challenge, or NULL */
    struct http_tls tls;
    bool plain_http; /* the place itself is asked without TLS */
    const struct auth_credentials *credentials;
};
struct auth_answer {
    char *authorization; /* value of the next request's header, owned */
    int64_t expires_s;   /* from now; 0: it does not expire */
};
/* Answers @challenges. */
int auth_answer(struct http_client *c, const struct auth_place *place,
                const struct cb_strv *challenges, struct auth_answer *out, struct cb_error *err);

/* --- credentials (registry_login.c) --- */

/* For @host (and @path, for keys of podman's that hold one): from @settings, else from the files of
 * Docker and podman and the helpers they name, else, for Google's registries on a machine of
 * Google's, from the metadata server. No credentials is no error. */
int auth_find_credentials(const struct settings *settings, const char *host, const char *path,
                          struct auth_credentials *out, struct cb_error *err);

enum auth_file_kind {
    AUTH_FILE_DOCKER, /* config.json: keys are hosts */
    AUTH_FILE_PODMAN, /* auth.json: keys may hold a part of the path as well */
    AUTH_FILE_OLD,    /* .dockercfg: the hosts at the top */
};
/* What one file says about a host: credentials, or who to ask. */
struct auth_file_answer {
    struct auth_credentials credentials;
    char *helper; /* suffix of docker-credential-..., or NULL; goes before the credentials */
    bool own;     /* the helper is named for this host alone */
};
void auth_file_answer_release(struct auth_file_answer *a);
/* @name is for messages. */
int auth_file_read(const char *text, size_t len, enum auth_file_kind kind, const char *name,
                   const char *host, const char *path, struct auth_file_answer *out,
                   struct cb_error *err);
/* What a helper wrote for `get`. @out is left alone when it is not usable. */
int auth_helper_read(const char *text, size_t len, const char *name, struct auth_credentials *out,
                     struct cb_error *err);
/* How long a helper may take. Tests lower it. */
extern int64_t auth_helper_ms;
