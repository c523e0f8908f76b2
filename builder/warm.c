#include "builder/warm.h"

#include "layers/warm_blob.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum {
    PARK_TIMEOUT_MS = 60000, /* it writes all it has to its disk */
    RESUME_TIMEOUT_MS = 30000,
};

/* A file without a name below @dir: as large as the guest's memory at worst, so not in memory. */
static int nameless(const char *dir, struct cb_error *err)
{
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    return fd < 0 ? cb_fail_sys(err, errno, "make a file in %s", dir) : fd;
}

void warm_state_release(struct warm_state *w)
{
    free(w->qemu);
    free(w->machine);
    free(w->cpu);
    free(w->network);
    *w = (struct warm_state){0};
}

/* The disks' overlays, each by the name that it has in the blob. */
struct overlays {
    struct warm_disk v[1 + MACHINE_DRIVES_MAX];
    size_t n;
};

static void overlays_close(struct overlays *o)
{
    for (size_t i = 0; i < o->n; i++)
        cb_close(o->v[i].fd);
    o->n = 0;
}

static int add_overlay(struct overlays *o, const char *name, const char *path, int flags,
                       struct cb_error *err)
{
    struct warm_disk *d = &o->v[o->n];
    *d = (struct warm_disk){.fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0600)};
    memcpy(d->name, name, strnlen(name, WARM_NAME_MAX));
    if (d->fd < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    o->n++;
    return 0;
}

static int open_overlays(const struct machine *m, struct overlays *o, struct cb_error *err)
{
    int rc = add_overlay(o, "root", machine_vm_overlay(m), O_RDONLY, err);
    for (size_t i = 0; i < MACHINE_DRIVES_MAX && rc == 0; i++) {
        const char *path = machine_vm_drive_overlay(m, i);
        CB_AUTO_FREE char *name = cb_xasprintf("drive%zu", i);
        if (path)
            rc = add_overlay(o, name, path, O_RDONLY, err);
    }
    return rc;
}

/* Empty files for them, named as the machine that is started in @dir looks for them. */
static int make_overlays(const struct machine_spec *spec, const char *dir, struct overlays *o,
                         struct cb_error *err)
{
    CB_AUTO_FREE char *root = cb_xasprintf("%s/root.qcow2", dir);
    int rc = add_overlay(o, "root", root, O_RDWR | O_CREAT | O_EXCL, err);
    for (size_t i = 0; i < spec->n_drives && rc == 0; i++) {
        if (spec->drives[i].read_only)
            continue;
        CB_AUTO_FREE char *name = cb_xasprintf("drive%zu", i);
        CB_AUTO_FREE char *path = cb_xasprintf("%s/%s.qcow2", dir, name);
        rc = add_overlay(o, name, path, O_RDWR | O_CREAT | O_EXCL, err);
    }
    return rc;
}

int warm_save(struct store *store, struct machine *m, struct session *s, const struct warm_of *of,
              const char *work_dir, struct warm_state *out, struct cb_error *err)
{
    const struct machine_identity *id = machine_vm_identity(m);
    int rc = session_park(s, machine_limit(m, PARK_TIMEOUT_MS), err);
    if (rc < 0)
        return rc;
    CB_AUTO_FD state = nameless(work_dir, err);
    if (state < 0)
        return state;
    if ((rc = machine_vm_save(m, state, err)) < 0)
        return rc;
    struct overlays disks = {.n = 0};
    struct warm_state w = {.image = *of->image,
                           .kernel = *of->kernel,
                           .initramfs = *of->initramfs,
                           .drives = *of->drives,
                           .cmdline = id->cmdline,
                           .vcpus = id->vcpus,
                           .memory_mib = id->memory_mib,
                           .tsc_khz = id->tsc_khz};
    rc = open_overlays(m, &disks, err);
    if (rc == 0)
        rc = warm_blob_put(store, of->image, state, disks.v, disks.n, &w.blob, &w.size, err);
    overlays_close(&disks);
    if (rc < 0)
        return rc;
    w.qemu = cb_xstrdup(id->qemu);
    w.machine = cb_xstrdup(id->machine);
    w.cpu = cb_xstrdup(id->cpu);
    w.network = cb_xstrdup(id->network);
    *out = w;
    return 0;
}

static int belongs(const struct warm_state *w, const struct warm_of *of, struct cb_error *err)
{
    const struct {
        const char *what;
        const struct cb_digest *was, *is;
    } all[] = {{"image", &w->image, of->image},
               {"kernel", &w->kernel, of->kernel},
               {"initramfs", &w->initramfs, of->initramfs},
               {"set of drives", &w->drives, of->drives}};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (!cb_digest_eq(all[i].was, all[i].is))
            return cb_fail(err, CB_E_CONFLICT, "it was saved with another %s", all[i].what);
    return 0;
}

int warm_start(struct store *store, const struct settings *settings, const struct warm_state *w,
               const struct warm_of *of, struct machine_spec *spec,
               const struct session_callbacks *cb, struct machine **m, struct session **s,
               struct cb_error *err)
{
    *m = NULL;
    *s = NULL;
    int rc = belongs(w, of, err);
    if (rc == 0)
        rc = cb_mkdir_p(spec->work_dir, 0700, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE char *dir = realpath(spec->work_dir, NULL); /* QEMU works elsewhere */
    CB_AUTO_FREE char *path = cb_xasprintf("%s/root.qcow2", dir ? dir : spec->work_dir);
    CB_AUTO_FD state = nameless(spec->work_dir, err);
    if (state < 0)
        return state;
    struct overlays disks = {.n = 0};
    rc = make_overlays(spec, dir ? dir : spec->work_dir, &disks, err);
    if (rc == 0)
        rc = warm_blob_get(store, &w->blob, of->image, state, disks.v, disks.n, err);
    overlays_close(&disks);
    if (rc < 0)
        return rc;
    if (lseek(state, 0, SEEK_SET) < 0)
        return cb_fail_sys(err, errno, "the saved machine");
    const struct machine_identity id = {.qemu = w->qemu,
                                        .machine = w->machine,
                                        .cpu = w->cpu,
                                        .network = w->network,
                                        .cmdline = w->cmdline,
                                        .vcpus = w->vcpus,
                                        .memory_mib = w->memory_mib,
                                        .tsc_khz = w->tsc_khz};
    const struct machine_saved saved = {.id = &id, .state = state, .overlay = path};
    spec->resume = &saved;
    rc = machine_vm.start(settings, spec, m, err);
    spec->resume = NULL;
    if (rc >= 0)
        rc = session_with(*m, RESUME_TIMEOUT_MS, cb, s, err);
    if (rc < 0 && *m) {
        (*m)->driver->stop(*m, 0);
        *m = NULL;
    }
    return rc < 0 ? rc : 0;
}
