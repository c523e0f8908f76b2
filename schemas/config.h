/* config: what a user declares (an onboard.yaml or a bare workload config, YAML or JSON), checked
 * and in one model.
 *
 * The model owns everything in it and is freed with config_free(). It keeps every field of the
 * language, also those that this version does not act on yet: `unsupported` names them.
 * docs/config.md has every field and rule.
 *
 * `${VAR}` is expanded in the env of layers and of the start command; the model holds the result.
 * In secrets[].env and credentials it is kept as written, so that no secret gets into a model or a
 * dump. Strings are UTF-8 without NUL. Optional strings are NULL when absent. */
#pragma once

#include "support/buf.h"
#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum command_type {
    COMMAND_SHELL, /* args is an argv; a plain string in the file is a script, see `script` */
    COMMAND_EXEC,
    COMMAND_GCP_AUTH,
    COMMAND_COPY,
    COMMAND_ENV,
    COMMAND_WORKDIR,
    COMMAND_USER,
    COMMAND_START,
    COMMAND_TYPE_N
};
/* "shell", "exec", ... */
const char *command_type_name(enum command_type t);

struct config_pair {
    char *key;
    char *value;
};
struct config_pairs {
    struct config_pair *v;
    size_t n;
    size_t cap;
};

/* Frees what it holds and makes it empty. */
void config_pairs_release(struct config_pairs *p);

struct command {
    enum command_type type;
    char
        *script; /* the string form: run as ["bash","-lc",script], or sh without bash. NULL: args */
    struct cb_strv args; /* argv, or the arguments of the type */
    bool run_as_root;
    int64_t timeout_ms; /* 0: the default */
    uint32_t max_retries;
    char *compute;
    char *ram;
    struct cb_strv allowed_hosts;
    struct cb_strv allowed_files;
    struct config_pairs env_variables;
    char *name;
    char *user,
        *workdir; /* of what a finished image runs; not in a config, where a layer has them */
    struct cb_loc loc;
};
/* `ram` in bytes; 0: it says nothing. */
uint64_t command_ram(const struct command *c);
/* `compute` in percent of one CPU, of a machine with @vcpus; 0: it says nothing, or all there are.
 */
uint32_t command_cpus(const struct command *c, uint32_t vcpus);
struct commands {
    struct command *v;
    size_t n;
    size_t cap;
};

struct drive {
    char *drive_id;
    char *label;      /* NULL: drive_label() */
    uint32_t size_gb; /* 0: DRIVE_SIZE_GB */
    bool read_only;
    char *mount_path; /* NULL: drive_mount_path() */
    struct commands commands;
    struct cb_loc loc;
};

struct context_source {
    char *src; /* files beside the config, or NULL */
    char *git; /* URL, or NULL */
    char *ref;
    char *path;
    char *dst;
    struct cb_loc loc;
};

struct secret {
    char *id;
    char *env;     /* the variable that it is in for the step, or NULL */
    char *path;    /* the file that it is in for the step, or NULL */
    char *version; /* part of the key when set */
};

struct layer {
    char *name;
    struct commands init_commands;
    struct commands refresh_commands;
    char *refresh_interval; /* as written, checked */
    struct drive *drives;
    size_t n_drives;
    struct context_source *context;
    size_t n_context;
    struct config_pairs env;
    char *workdir;
    char *user;
    struct secret *secrets;
    size_t n_secrets;
    struct cb_loc loc;
};

enum tier { TIER_XS, TIER_S, TIER_M, TIER_L, TIER_XL, TIER_N };
const char *tier_name(enum tier t);
uint32_t tier_vcpus(enum tier t);
uint32_t tier_memory_mib(enum tier t);

struct start_command {
    bool present;
    bool from_image; /* `start_command: image`: the image's own entrypoint */
    struct cb_strv command;
    uint16_t port;     /* 0: none */
    char *health_path; /* NULL: none */
    struct config_pairs env;
    char *run_as;
};

struct healthcheck {
    bool present;
    int64_t interval_ms, timeout_ms, start_period_ms;
    uint32_t retries;
    char *command;
};

enum auto_bool { AUTO_UNSET, AUTO_FALSE, AUTO_TRUE };

struct workload_config {
    char *file;         /* as given on the command line, for messages; may be NULL */
    char *display_name; /* NULL when absent: config_name() gives the default */
    char *base_image;   /* as written, or NULL */
    struct layer *layers;
    size_t n_layers;

    enum tier tier;
    int64_t ttl_seconds;
    int64_t session_max_age_seconds;
    int64_t refresh_idle_ttl_seconds;
    uint32_t memory_request_mb, memory_limit_mb;
    enum auto_bool auto_pause;
    enum auto_bool auto_rollout;
    uint32_t rootfs_size_gb;    /* 0: smallest that fits, plus 512 MiB free */
    uint32_t workspace_size_gb; /* 0: config_workspace_size_gb() */
    char *runner_user;
    char *network_policy_preset;
    char *init;     /* "agent" (default, NULL), "systemd", "openrc" */
    char *snapshot; /* "warm", or NULL */
    char *kernel;   /* "image": the base image's own; or NULL */
    char *tenant_gcp_project, *tenant_gcp_zone, *tenant_network, *tenant_subnet,
        *tenant_service_account;

    struct start_command start;
    struct commands
        boot_commands; /* workload.init_commands: at every boot, before the start command */
    struct healthcheck healthcheck;

    /* Checked, and kept as canonical JSON text; NULL when absent. network_policy_parse() reads the
     * first. */
    char *network_policy, *auth, *credentials, *task;
    char *platform, *microvm, *hosts, *session;

    /* Paths of fields that were given and that this version keeps but does not act on, each with
     * its place: "layers[0].drives". In the order of the file, without repeats. */
    struct config_note {
        char *field; /* the short name for the one warning line: "drives" */
        struct cb_loc loc;
    } * unsupported;
    size_t n_unsupported;
};

enum config_format { CONFIG_AUTO, CONFIG_YAML, CONFIG_JSON };

/* All that is wrong with a file, in the order of the file. */
struct config_problems {
    struct config_problem {
        bool warning;
        struct cb_loc loc; /* file:line:column, and the path inside the document */
        char *msg;         /* what was found and what is accepted */
        char *line_text;   /* the line itself (a long one: the part around the place), or NULL */
        int caret;         /* the place's column in line_text, from 1 */
    } * v;
    size_t n;
    size_t cap;
    size_t n_errors;  /* warnings not counted */
    size_t n_dropped; /* problems beyond the hundred that are kept */
};
void config_problems_release(struct config_problems *p);
/* "onboard.yaml:12:7: layers[0].name: ..." then the line and a caret, for each problem. */
void config_problems_print(const struct config_problems *p, struct cb_buf *out);

enum config_flags {
    CONFIG_ALLOW_UNKNOWN = 1u << 0, /* unknown keys are warnings */
    CONFIG_NO_ENV = 1u << 1,        /* ${VAR} is not looked up: for what config_dump() wrote */
};

/* Checks and reads @text (need not end in NUL). Returns 0 and an owned *@out, or -CB_E_CONFIG when
 * @problems holds at least one error (its message is a summary; the caller prints @problems).
 * Warnings may be in @problems in both cases. @name is what messages call the file. */
int config_parse(const char *text, size_t len, const char *name, enum config_format format,
                 unsigned flags, struct workload_config **out, struct config_problems *problems,
                 struct cb_error *err);
/* Reads the file first. A missing or unreadable file is -CB_E_CONFIG with one problem as well. */
int config_load(const char *path, unsigned flags, struct workload_config **out,
                struct config_problems *problems, struct cb_error *err);
void config_free(struct workload_config *c); /* NULL is fine */

/* The config's name: display_name, or the slug of the folder that the file lies in. Owned. */
char *config_name(const struct workload_config *c);

/* The normalised model as canonical JSON (schemas/keys.h), stable: config_parse() of it, as
 * CONFIG_JSON and with CONFIG_NO_ENV, gives the same model and the same hashes; places in files are
 * not kept, and display_name is config_name(). Owned. This is what a job carries in the queue. */
char *config_dump(const struct workload_config *c);
/* The same as a template keeps it: a value of `credentials.env` that the file writes out, in place
 * of
 * ${VAR}, is left out. Owned. */
char *config_dump_published(const struct workload_config *c);

/* The same with every default that has a value filled in, for people (the defaults of
 * rootfs_size_gb, runner_user and the like depend on the image). It means the same build. Owned. */
char *config_dump_full(const struct workload_config *c);

/* The defaults that follow from other fields (schemas/config_full.c). The model keeps a field that
 * is absent, or that says its default, as absent: both are the same build with the same keys. */
enum {
    DRIVE_SIZE_GB = 10,
    DRIVE_LABEL_MAX = 16,
    WORKSPACE_SIZE_GB = 50,
    DRIVES_MAX = 16, /* of one config; a machine has places for no more */
};
#define WORKSPACE_LABEL "workspace"
#define WORKSPACE_PATH "/workspace"
/* As given, else "cb-" and the beginning of drive_id. @label holds DRIVE_LABEL_MAX + 1 bytes. */
void drive_label(const struct drive *d, char *label);
/* As given, else /drives/DRIVE_ID. Owned. */
char *drive_mount_path(const struct drive *d);
/* Do commands get a loopback and no other network? `network_policy_preset: none`, and nothing that
 * takes back a part of it (a policy of one's own, a command's `allowed_hosts`, a task). */
bool config_without_network(const struct workload_config *c);
/* The size of the drive at /workspace: as given, else 50; 0 when a layer declares a drive. */
uint32_t config_workspace_size_gb(const struct workload_config *c);
/* For the reader: makes absent what says its default. */
void config_forget_defaults(struct workload_config *c);

/* "1h30m", "90s", "daily" is not one. Milliseconds, or -CB_E_CONFIG. */
int64_t duration_parse(const char *text, struct cb_error *err);
