/* What the parts of one build share. Private to builder/. */
#pragma once

#include "builder/builder.h"
#include "builder/egress.h"
#include "builder/emit.h"
#include "builder/gcp.h"
#include "builder/machine.h"
#include "builder/secrets.h"
#include "builder/warm.h"

#include <signal.h>

/* One layer of the config on its way through a build. */
struct build_layer {
    const struct layer *declared; /* borrowed from the config */
    struct cache_key key;         /* of its result */
    struct cb_digest record;      /* what that is kept under: the key that the config gives it */
    bool cached;                  /* the diff was there before this build */
    bool remade;                  /* one was there and does not fit what is below it now */
    bool have_diff;
    struct layer_blob diff;     /* owned when have_diff */
    struct drive_image *drives; /* owned: those that its commands fill, when have_diff */
    size_t n_drives;
    bool watched;         /* `hosts` is all that its commands talked to */
    struct cb_strv hosts; /* "pypi.org:443/tcp", sorted */
    uint32_t refreshes;   /* of the result */
    bool refresh;         /* its refresh_commands run, on `previous`; builder/refresh.c */
    struct refresh_from {
        struct layer_blob diff;
        struct drive_image *drives;
        size_t n_drives;
        bool watched;
        struct cb_strv hosts;
    } previous; /* owned */
};

struct build {
    const struct workload_config *c;
    struct settings *settings;
    const struct build_options *o;
    struct emitter em;
    struct store *store;
    char *name;
    int64_t started_ms;
    bool look; /* find out and make nothing: what is missing goes to `unknown` */
    bool have_base, have_kernel;
    struct cb_strv unknown;
    uint64_t locked_by; /* the version whose lock was used, 0: none */
    json_t *locked;     /* and what it says (--locked), or the lock of the build that is resumed */

    char *agent_path;
    struct cb_digest agent;
    struct kernel kernel;
    struct cb_digest kernel_digest;
    char *initramfs; /* path */
    struct cb_digest initramfs_digest;
    char *kernel_from; /* with kernel: image, its path in the image, once that is made */

    char *base_source; /* base_image with an absolute path */
    struct base_image base;
    struct cache_key base_key;
    struct build_layer *layers;
    size_t n_layers;
    struct cache_key task_key; /* of the task's layer on top of them, when there is a task */
    struct cache_key template_key;
    uint64_t published;      /* the version that has this key already and will do, 0: none */
    bool published_unsigned; /* it was published without a signature */
    uint64_t unbooted;       /* one that has it and will not: it was never booted */
    uint64_t size_bytes_asked;
    struct contents *contents; /* what the layers take from outside (builder/contexts.h) */
    struct secrets *secrets;   /* NULL: no command is given any */
    bool have_lower; /* what the first missing layer stands on was made while it arrived */

    struct gcp *gcp;       /* whose tokens commands get; NULL: nobody's (yet) */
    struct egress *egress; /* what commands may reach; NULL: everything */

    struct layer_blob agent_layer; /* the image's last layer */
    bool have_agent_layer;
    struct boot_info boot;
    char *image_tmp; /* the flattened image, in the store's tmp, until it is published */
    struct flatten_result image;
    struct chunk_map chunks;    /* of the image */
    struct drive_image *drives; /* of the image, all of them; owned */
    size_t n_drives;
    struct warm_state warm; /* of the image's ready machine */
    struct places *places;  /* where it has its layers' files */
};

/* After a machine was stopped: counts it out, and hands on @rc, the outcome of its use, or
 * -CB_E_CANCELED when a build_cancel() found it still running and nobody has heeded it. */
int build_machine_done(int rc, struct cb_error *err);

/* builder/plan.c: resolve everything that moves, compute all keys, see what is cached, say the
 * plan. */
int build_plan(struct build *b, struct cb_error *err);
/* Kernel, initramfs and agent, with their digests. */
int build_platform(struct build *b, struct cb_error *err);
/* What moving names were resolved to, for people and for the manifest. Owned. */
json_t *build_lock(const struct build *b);
/* What the keys were made from (builder/explain.h), now and in the last build (NULL: none that can
 * be read). Owned. */
json_t *plan_record(const struct build *b);
json_t *plan_last(const struct build *b);
/* Why layer @i, which is not cached, is not. Owned, never NULL. */
char *plan_why(const struct build *b, size_t i, json_t *last, json_t *now);
/* Why no published version will do. Owned, never NULL. */
char *plan_why_image(const struct build *b, json_t *last, json_t *now);
/* Says in the log why not everything is reused, and keeps the record for the next build. */
void plan_say_why(struct build *b);
/* What stands when the first @n layers are done: the base image and their diffs as they are. Two
 * runs of one layer may differ; a diff fits only what it was made on. */
void build_content(const struct build *b, size_t n, struct cb_digest *out);
/* The commands that bring a layer about, those of its drives among them; or that refresh it. */
size_t layer_steps(const struct build_layer *l);

/* builder/refresh.c. Layer @i was found in the cache with its result: 1 when it is to be refreshed,
 * and what was found is what its refresh_commands run on. */
int refresh_layer(struct build *b, size_t i);
/* Is a layer, is this layer, to be refreshed? */
bool refresh_any(const struct build *b);
bool refresh_asked(const struct build *b, const struct layer *l);
void refresh_release(struct build_layer *l);
/* Whom the layer's commands talked to is whom those before did, and these. */
void refresh_hosts(struct build_layer *l);
/* Says which layers were to be refreshed and begin anew. */
void refresh_say(struct build *b);
/* One line for a command: its name, its script's first line, or its argv. Owned. */
char *command_title(const struct command *cmd);

/* builder/run_layers.c: brings every layer's diff about; starts a machine only when one is missing.
 */
int build_layers(struct build *b, struct cb_error *err);
/* The driver to use and why, by the options and what this machine can do; says it in the log. */
int build_choose_driver(struct build *b, const struct machine_driver **out, struct cb_error *err);

/* builder/finish.c: agent layer, flatten, boot check, publish. build_image() makes b->image_tmp;
 * @f: the base's layers are still arriving (taken), NULL: they are there. */
int build_image(struct build *b, struct image_fetching *f, struct cb_error *err);
int build_finish(struct build *b, struct build_result *out, struct cb_error *err);
/* builder/trim.c: keeps the store within its limits, after a build that succeeded or not. */
void build_trim(struct build *b);
/* What the finished image starts, from the config and the base image. */
void boot_info_make(const struct build *b, struct boot_info *out);

/* builder/boot.c: boots an image file, waits until it is ready, powers it off. 0 and *@how (owned)
 * when it became ready; -CB_E_COMMAND with the probe's result, the last lines of the start command
 * and the console when it did not. */
struct boot_check {
    const struct settings *settings;
    const char *image, *kernel, *initramfs, *agent_path, *work_dir, *hostname;
    enum tier tier;
    const char *init; /* NULL: the agent */
    const struct healthcheck *healthcheck;
    int64_t timeout_ms; /* 0: 60 s, five times that under TCG */
    struct emitter *em;
    /* The ready machine is saved into it (config.snapshot: warm) and resumed once to see that it
     * can be; NULL: not. */
    struct warm_state *warm;
    struct store *store; /* for that, and where the drives are */
    struct warm_of of;
    const struct drive_image *drives;
    size_t n_drives;
    uint32_t workspace_gb; /* 0: none */
};
int boot_check_run(const struct boot_check *bc, char **how, struct cb_error *err);

/* builder/healthcheck.c: runs the config's healthcheck in a machine that is ready until it passes.
 * @end_ms: monotonic, when the boot check's time is over. -CB_E_COMMAND when it does not pass, with
 * what it said last. */
struct session;
int healthcheck_run(const struct healthcheck *h, struct session *s, struct emitter *em,
                    int64_t end_ms, struct cb_error *err);

/* The agent's program: @given, else beside our own program, else CB_LIBEXEC_DIR. Owned. */
int agent_find(const char *given, char **out, struct cb_error *err);
/* Opens the store and finds the name; release in any case. */
int build_init(struct build *b, const struct workload_config *c, struct settings *settings,
               const struct build_options *o, const struct build_sink *sink, struct cb_error *err);
void build_release(struct build *b);
/* The initramfs for this kernel and agent, composed once (in the work folder) and kept under home.
 * Who only looks gets its digest, and nothing is kept. */
int initramfs_get(struct build *b, struct cb_error *err);
