/* settings: how this installation works, as opposed to what a build is.
 * Read from /etc/capsule-build/config.yaml, then $XDG_CONFIG_HOME (or ~/.config)
 * /capsule-build/config.yaml, then --config FILE; then come the variables, CAPSULE_BUILD_ and a
 * field's name in capitals (for `registries` CAPSULE_BUILD_REGISTRY_MIRRORS, "HOST=URL,HOST=URL"),
 * then flags (which the CLI applies). Later wins, field by field. */
#pragma once

#include "schemas/config.h"
#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>

struct registry_settings {
    char *host;             /* "docker.io", "127.0.0.1:5000" */
    char *mirror;           /* "http://127.0.0.1:5001" or "https://host", tried first; or NULL */
    struct cb_strv mirrors; /* more of them, tried after it in this order */
    char *ca_file;  /* PEM bundle for this host and its mirror; or NULL. Asks a loopback host by
                       HTTPS */
    char *username; /* or NULL */
    char *password; /* or NULL; never printed */
    char *credential_helper; /* suffix of docker-credential-...; or NULL */
    char *client_cert;       /* PEM file; or NULL */
    char *client_key;        /* its key; NULL: in the same file */
    bool insecure;           /* plain HTTP is allowed although the host is not loopback */
};

struct settings {
    char *home;          /* $CAPSULE_BUILD_HOME */
    char *ubuntu_mirror; /* for minimal-ubuntu */
    char *debian_mirror; /* for kernels and minimal-debian while building */
    char *kernel;        /* a bzImage to use instead of the distribution's, or NULL */
    char *qemu;          /* the program to use instead of PATH's qemu-system-x86_64, or NULL */
    char *isolation;     /* "auto", "vm", "container" */
    char *pull;          /* "always", "missing", "never" */
    char *proxy;         /* "http://proxy:3128", for what this machine downloads; or NULL */
    char *ca_bundle;     /* PEM bundle beside the system's, for the same; or NULL */
    bool allow_host_network;
    uint32_t store_max_gb;   /* a publish makes room down to it; 0: no ceiling */
    uint32_t keep_versions;  /* old ones of a template; 0: all */
    uint32_t keep_failed;    /* states of failed commands that are kept; 0: none */
    uint32_t keep_failed_gb; /* and what they take at most */
    char *signing_key; /* a PEM file with an Ed25519 key that templates are signed with, or NULL */
    uint32_t parallel_fetches; /* blobs at once; 0: the default of 4 */
    uint32_t stall_seconds;    /* of a transfer in which nothing comes; 0: the default of 30 s */
    uint32_t step_output_mib;  /* of a command's output, in the log; 0: the default of 16 */
    uint32_t disk_gb;          /* that commands of a build may write; 0: the default of 64 */
    struct registry_settings *registries;
    size_t n_registries;
};
/* Defaults, files and environment. @config_file may be NULL. Problems as in config_load(). */
int settings_load(const char *config_file, struct settings **out, struct config_problems *problems,
                  struct cb_error *err);
/* The same with these @n files in place of the usual three. One that does not exist is skipped
 * unless it is the last and @last_required. */
int settings_load_files(const char *const *files, size_t n, bool last_required,
                        struct settings **out, struct config_problems *problems,
                        struct cb_error *err);
/* The entry for @host, made when missing. Borrowed from @s until the next one is made. */
struct registry_settings *settings_registry(struct settings *s, const char *host);
/* The entry for @host, or NULL. */
const struct registry_settings *settings_find_registry(const struct settings *s, const char *host);
/* "docker.io=http://127.0.0.1:5000" (--registry-mirror). -CB_E_CONFIG when it is not of that form.
 */
int settings_add_mirror(struct settings *s, const char *text, struct cb_error *err);
/* Puts proxy and ca_bundle where curl, apt and their kin look for them: into this process's
 * environment (http_proxy, https_proxy, no_proxy, CURL_CA_BUNDLE), in the place of what is there.
 * Before there are threads. */
void settings_export(const struct settings *s);
void settings_free(struct settings *s);
