/* machine: a place where our agent runs, whatever it is: a QEMU guest or an OCI container.
 *
 * A driver brings up the agent with three things (a read-only lower, a scratch file system, a raw
 * output file) and hands back one connected byte stream to it. All that is said over that stream is
 * builder/session.h's, the same for every driver. */
#pragma once

#include "schemas/settings.h"
#include "support/error.h"
#include "support/hash.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct gateway;

enum machine_mode {
    MACHINE_BUILD, /* run layers over the lower */
    MACHINE_BOOT,  /* boot the image as the finished machine */
};

struct machine_disk {
    char *path; /* owned by whoever made the list, like the other */
    bool read_only;
    char *overlay; /* BOOT: the absolute path of a qcow2 that takes what is written and is kept,
                    * made when it is not there; NULL: one that is thrown away */
};
/* A machine has places for so many drives, whatever else it has. */
#define MACHINE_DRIVES_MAX 16

/* What a saved machine depends on: it goes on only where all of it is the same. All texts are
 * owned.
 */
struct machine_identity {
    char *qemu;               /* "7.2.22 (Debian 1:7.2...)" */
    char *machine;            /* QEMU's machine type: "microvm" */
    char *cpu;                /* "max, emulated", or the host's model, microcode and features */
    char *network;            /* "none", "sandboxed", "host" */
    struct cb_digest cmdline; /* of what the kernel was told, but for tsc_khz */
    uint32_t vcpus, memory_mib;
    uint32_t tsc_khz; /* the guest was told; 0: it was not */
};
void machine_identity_release(struct machine_identity *id);
/* The first thing in which @here differs from @saved, for people ("QEMU is 8.2.0, it was saved by
 * 7.2.22"); owned, NULL when it can go on. */
char *machine_identity_differs(const struct machine_identity *saved,
                               const struct machine_identity *here);

/* A machine that was saved by machine_vm_save(). */
struct machine_saved {
    const struct machine_identity *id;
    int state;           /* readable from its position on, without waiting */
    const char *overlay; /* BOOT: the disk's overlay of that moment; written from now on */
    /* Asked when the state was read and before the machine goes on; may be NULL. */
    int (*check)(void *arg, struct cb_error *err);
    void *check_arg;
};

struct machine_spec {
    enum machine_mode mode;
    const char *work_dir; /* sockets, logs, overlay files: all below here */
    const char *agent_path;
    const char
        *lower; /* ext4 image: the lower (BUILD) or the root disk (BOOT, throwaway overlay) */
    const char *scratch; /* BUILD: ext4 image, written */
    const char *output;  /* BUILD: sparse raw file, written: diff tars */
    /* ext4 images, the agent's "drive0", "drive1"...: BUILD: written, unless they are read-only;
     * BOOT: likewise, each on a throwaway overlay */
    const struct machine_disk *drives;
    size_t n_drives;
    uint32_t vcpus, memory_mib;
    bool network;
    struct gateway *gateway; /* between the machine and the network (builder/gateway.h); or NULL */
    bool allow_host_network; /* without namespaces: QEMU's own user network, said in the log */
    /* vm: */
    bool parks; /* BUILD: the agent lets itself be saved before it looks at a disk */
    const struct machine_saved
        *resume; /* go on from this instead of booting; -CB_E_CONFLICT when it cannot be here */
    /* BOOT and vm: */
    const char *kernel, *initramfs; /* NULL: the configured ones */
    const char *cmdline_extra;
    const char *hostname;          /* NULL: as the image says */
    const uint16_t (*forwards)[2]; /* host port (on 127.0.0.1; not 0), guest port */
    size_t n_forwards;
    int console_fd;       /* -1, or a terminal: the console goes there too (BOOT) */
    bool console_signals; /* Ctrl-C on that terminal is a signal to us, not a byte to the guest */
    void (*note)(void *arg, const char *text); /* may be NULL */
    void *note_arg;
};

struct machine {
    const struct machine_driver *driver;
    int stream;    /* connected to the agent; owned by the machine until taken (set to -1) */
    pid_t pid;     /* the process whose end is the machine's end */
    char *console; /* path of the console log (serial output, or the runtime's stderr); owned */
    bool emulated; /* TCG: machine_limit() */
    bool resumed;  /* its agent waits for RESUME */
    bool parks;    /* its agent's first word may be PARKED */
    char dns[48];  /* the nameserver inside; "" without a network */
    const char *program; /* "QEMU", "runc": for messages */
    char *log;           /* its own messages (stderr); owned */
    bool ended;          /* pid was reaped, with this status */
    int status;
    struct console *console_log; /* who fills the console's file (builder/console.h); owned */
    void *private_data;
};

/* @ms, or five times that where the guest is emulated: no limit is meant for one. */
#define EMULATION_FACTOR 5
int64_t machine_limit(const struct machine *m, int64_t ms);

struct machine_driver {
    const char *name; /* "vm", "container" */
    /* 0, or an error that says why it cannot run here and what to install. @why (owned, may be
     * NULL) gets a word on what it found: "KVM works", "KVM does not start a guest here: TCG". */
    int (*probe)(const struct settings *settings, char **why, struct cb_error *err);
    int (*start)(const struct settings *settings, const struct machine_spec *spec,
                 struct machine **out, struct cb_error *err);
    /* Ends it at once (after @grace_ms of asking), removes mounts, loop devices, cgroups,
     * namespaces; frees the machine. NULL is fine. */
    void (*stop)(struct machine *m, int64_t grace_ms);
};
extern const struct machine_driver machine_vm;
/* Of a machine of machine_vm: what it is, borrowed until it is stopped; and (BOOT) the file that
 * its disk is written to. */
const struct machine_identity *machine_vm_identity(const struct machine *m);
const char *machine_vm_overlay(const struct machine *m);
/* The same for its drive @i; NULL when that is read-only. */
const char *machine_vm_drive_overlay(const struct machine *m, size_t i);
/* Stops it and writes its memory and devices into @fd. Its disk is as that state knows it from here
 * until machine_vm_go_on(). */
int machine_vm_save(struct machine *m, int fd, struct cb_error *err);
int machine_vm_go_on(struct machine *m, struct cb_error *err);
extern const struct machine_driver machine_container;

/* Async-signal-safe, process-wide: downloads, probes and starts of this header end soon with
 * -CB_E_CANCELED. */
void machine_cancel(void);
bool machine_canceled(void);

/* The agent of this installation: beside this program, or in the libexec folder of its prefix.
 * Owned, or NULL. */
char *machine_agent(void);

/* The last @lines lines of the console log, or as many around where its kernel panicked, control
 * characters made visible. Owned, never NULL. */
char *machine_console_tail(const struct machine *m, unsigned lines);
/* How it ended ("QEMU: killed by SIGKILL", "QEMU: the guest's kernel panicked: ..."), or NULL while
 * it lives. Owned. */
char *machine_end_text(struct machine *m);

/* Waits up to @timeout_ms for it to end by itself, less when machine_cancel() is called. */
void machine_wait_end(struct machine *m, int64_t timeout_ms);

/* Does KVM run a guest here? Boots one with @agent_path as its init (once; the answer is kept under
 * home until kernel, QEMU or boot change). @why (owned, may be NULL) gets the reason. */
bool kvm_probe(const struct settings *settings, const char *agent_path, char **why);
/* The same with the agent of this installation. */
bool kvm_works(const struct settings *settings, char **why);

/* The kernel to boot: settings->kernel, else Debian's cloud kernel, downloaded and unpacked under
 * home/kernels the first time (verified against the archive's signed lists). Its modules are what
 * initramfs_make() takes from. */
struct kernel {
    char *image;   /* bzImage, owned path */
    char *modules; /* folder lib/modules/RELEASE, owned path; NULL when everything is built in */
    char *release; /* "6.1.0-42-cloud-amd64" */
};
int kernel_get(const struct settings *settings, void (*note)(void *, const char *), void *arg,
               struct kernel *out, struct cb_error *err);
/* The same without downloading: -CB_E_NOTFOUND when there is none yet. */
int kernel_present(const struct settings *settings, struct kernel *out, struct cb_error *err);
void kernel_release(struct kernel *k);

/* Composes the initramfs (newc cpio, agent as /init, the modules needed in load order) at @path.
 * Same inputs, same bytes. */
int initramfs_make(const struct kernel *k, const char *agent_path, const char *path,
                   struct cb_error *err);
/* The same with the modules of @src (NULL: none). Those of an image that lack one that guests need
 * are -CB_E_CONFIG, others -CB_E_ENV. */
struct module_source;
int initramfs_make_from(const struct kernel *k, const struct module_source *src,
                        const char *agent_path, const char *path, struct cb_error *err);
