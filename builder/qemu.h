/* qemu: the command line of a guest. Private to builder/. */
#pragma once

#include "builder/machine.h"
#include "support/buf.h"

#define QEMU_PROGRAM "qemu-system-x86_64"
#define GUEST_ADDRESS "10.0.5.15"
#define GUEST_GATEWAY "10.0.5.2"

enum qemu_net {
    QEMU_NET_NONE,
    QEMU_NET_SANDBOXED, /* QEMU runs in a netns: forwards are bound on NETNS_ADDRESS */
    QEMU_NET_HOST,      /* QEMU's user network on the host itself */
};

/* Descriptors as QEMU sees them. */
enum { QEMU_FD_AGENT = 3, QEMU_FD_QMP = 4, QEMU_FD_CONSOLE = 5 };

/* One of the machine's drives. All paths are absolute. */
struct qemu_drive {
    char *path;    /* owned */
    char *overlay; /* owned; a qcow2 over it, or NULL */
    bool read_only;
    bool kept; /* the overlay is: what the guest flushes reaches the disk */
};

struct qemu_spec {
    const struct machine_spec *spec;
    const char *program; /* NULL: QEMU_PROGRAM, looked for in PATH */
    const char *kernel, *initramfs;
    const char *mode;    /* "build", "boot", "probe" */
    const char *lower;   /* absolute */
    const char *scratch; /* BUILD: absolute */
    const char *output;
    const char *overlay; /* BOOT: the qcow2 over lower */
    const struct qemu_drive *drives;
    size_t n_drives;
    bool parks;    /* BUILD: the agent waits to be saved */
    bool incoming; /* it waits for a saved state */
    const char *dns;
    enum qemu_net net;
    bool kvm;
    bool sandbox;  /* QEMU's seccomp filter */
    bool terminal; /* the console also is QEMU's stdin and stdout */
    bool channels; /* agent, QMP and console are on their descriptors; else the console is QEMU's
                      stdout and the others are not there */
    uint32_t vcpus, memory_mib;
    uint32_t tsc_khz; /* TCG: the guest's time stamp counter; 0: the guest finds out */
};
void qemu_command(const struct qemu_spec *q, struct cb_strv *argv);
/* The kernel's command line, but for what tsc_khz adds. Owned. */
char *qemu_kernel_words(const struct qemu_spec *q);
/* The machine type that it asks for: "microvm". */
const char *qemu_machine(const struct qemu_spec *q);
/* What the guest's CPU depends on. Owned. */
char *qemu_cpu(bool kvm);
/* Does this build of QEMU have its seccomp filter? @program: as in struct qemu_spec. */
bool qemu_has_sandbox(const char *program);
/* The program that the settings name, else PATH's. Owned; NULL when it is not there. */
char *qemu_find(const struct settings *settings);
/* Says so: -CB_E_ENV, with what to do. */
int qemu_missing(const struct settings *settings, struct cb_error *err);
/* The rate of this machine's time stamp counter, which is an emulated guest's too; 0 when unknown.
 * Takes 20 ms. */
uint32_t qemu_tsc_khz(void);
/* The port inside the network namespace that stands for forward @i. */
uint16_t qemu_forward_port(size_t i);
