/* manifest: a published template, and the record of a cached layer, as JSON in the store.
 *
 * Both are objects with "schema_version": 1, sorted keys, digests as "sha256:HEX", times as RFC
 * 3339 in UTC with milliseconds, environments as ["K=V", ...]. Canonical JSON that the structs hold
 * as text is a value of the document, and comes back with the same bytes. Reading checks every type
 * and bound; unknown keys are ignored, so that later versions may add some (docs/store.md has an
 * example). */
#pragma once

#include "schemas/config.h"
#include "schemas/oci.h"
#include "support/hash.h"

/* A layer of an image as the store holds it. */
struct layer_blob {
    char *media_type;         /* owned */
    struct cb_digest digest;  /* of the blob */
    struct cb_digest diff_id; /* of the tar inside */
    uint64_t size;            /* of the blob, bytes */
};
void layer_blob_release(struct layer_blob *b);

/* A drive of a layer (layers[].drives) as the store holds it: an ext4 image of its own. */
struct drive_image {
    char *drive_id, *label, *mount_path; /* owned, none is NULL */
    bool read_only;
    bool filled;            /* by commands; else it is empty, and whoever boots it owns its root */
    struct cb_digest image; /* as the digest of a template's image */
    uint64_t size;          /* its length, bytes */
    uint32_t chunk_size;
    uint64_t n_chunks; /* those that are not all zero */
    struct cb_digest chunk_map;
    char *made_in; /* the builder whose machine wrote it ("vm", "container"); NULL: none did */
};
void drive_images_free(struct drive_image *v, size_t n);
/* A copy of @v, owned. */
struct drive_image *drive_images_dup(const struct drive_image *v, size_t n);

/* What is kept under a layer's cache key. */
struct cache_record {
    char *layer_name;       /* owned */
    char *inputs;           /* canonical JSON the key was made from, owned */
    struct cb_digest below; /* of what the layer's commands ran on: base and diffs, as they were */
    struct layer_blob diff;
    struct drive_image *drives; /* owned: those that its commands filled, in the config's order */
    size_t n_drives;
    struct cb_digest refreshed; /* the key of this result of refreshes; all zero: it is of none */
    uint32_t refreshes;         /* how many there were */
    int64_t created_ms;
    bool watched;         /* `hosts` is all that its commands talked to */
    struct cb_strv hosts; /* "pypi.org:443/tcp" */
};
/* Owned. NULL when a string is not UTF-8; so for template_manifest_dump(). */
char *cache_record_dump(const struct cache_record *r);
/* -CB_E_CORRUPT, or -CB_E_ENV when a newer version of this program wrote it. */
int cache_record_parse(const char *text, size_t len, struct cache_record *out,
                       struct cb_error *err);
void cache_record_release(struct cache_record *r);

/* What the finished machine runs and as whom; also what the agent reads in the image, as
 * "boot.json" is for people and hosts and the agent gets its own line format from it. */
struct boot_info {
    struct cb_strv start_argv;     /* empty: no start command */
    struct config_pairs start_env; /* the start command's own */
    char *start_user;              /* resolved name or uid, "" root */
    char *start_workdir;
    uint16_t port;
    char *health_path; /* or NULL */
    char *hostname;
    char *init; /* "systemd": process 1, with the agent as a service; NULL: the agent */
    struct commands boot_commands;
};
void boot_info_release(struct boot_info *b);

/* The ready machine of a template, saved (config.snapshot: warm), and what it depends on: it goes
 * on only where all of that is the same. */
struct warm_state {
    struct cb_digest blob;                /* layers/warm_blob.h; all zero: there is none */
    uint64_t size;                        /* of the blob */
    char *qemu, *machine, *cpu, *network; /* builder/machine.h, struct machine_identity */
    uint32_t vcpus, memory_mib, tsc_khz;
    struct cb_digest image, kernel, initramfs; /* what it had booted */
    struct cb_digest cmdline;                  /* what its kernel was told */
    struct cb_digest drives;                   /* what was on its drives; all zero: none */
};

struct template_manifest {
    char *name; /* the config's */
    char workload_key[17];
    uint64_t version; /* 1, 2, 3... within the config */
    struct cb_digest template_key;
    char *template_inputs; /* canonical JSON */
    int64_t created_ms;

    char *base_ref; /* as written */
    struct cb_digest base_digest;
    struct layer_blob *layers; /* base layers, diffs, agent layer: all that the image is made of */
    char **layer_names;        /* one a layer: "_base", the config's names, "_agent" */
    size_t n_layers;

    struct cb_digest image; /* the ext4 file */
    uint64_t image_size;    /* its length */
    uint64_t image_allocated;
    uint32_t chunk_size;        /* of the image's chunks; 0: it was published without chunks */
    uint64_t n_chunks;          /* those that are not all zero */
    struct cb_digest chunk_map; /* of the document that names them (layers/chunk_map.h) */
    struct cb_digest kernel;    /* bzImage */
    struct cb_digest initramfs;
    struct cb_digest modules; /* read-only disk for /lib/modules, all zero when absent */
    char *kernel_release;
    char *kernel_from; /* its path in the image, or NULL: it came from elsewhere */
    char *cmdline;
    enum tier tier;
    struct config_pairs default_env;
    char *default_user, *workdir;
    struct cb_strv entrypoint, cmd;
    struct boot_info boot;
    struct drive_image *drives; /* in the config's order */
    size_t n_drives;
    uint32_t workspace_gb; /* an empty drive of this size at /workspace, made at boot; 0: none */
    bool boot_checked;     /* the image was booted and became ready before it was published */
    struct warm_state warm;
    /* Documents about it (docs/provenance.md), all blobs; all zero when absent. */
    struct cb_digest sbom;              /* SPDX: the packages in the image */
    struct cb_digest provenance;        /* in-toto statement: how it was made */
    struct cb_digest sbom_signed;       /* the same, each in a signed DSSE envelope */
    struct cb_digest provenance_signed; /* (schemas/attest.h) */
    char *config;                       /* config_dump() of what it was made from */
    char *lock;                         /* JSON: every moving name and what it was resolved to */
};
char *template_manifest_dump(const struct template_manifest *m); /* owned */
int template_manifest_parse(const char *text, size_t len, struct template_manifest **out,
                            struct cb_error *err);
void template_manifest_free(struct template_manifest *m);
