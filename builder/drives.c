#include "builder/drives.h"

#include "builder/build_private.h"
#include "builder/run_command.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GIB (UINT64_C(1) << 30)

/* Of an ext4 superblock, 1024 bytes from the beginning: what of it has to be as we made it. */
enum {
    SUPER_AT = 1024,
    SUPER_LEN = 256,
    MAGIC_AT = 56,
    STATE_AT = 58, /* 1: everything is written */
    INCOMPAT_AT = 96,
    INCOMPAT_RECOVER = 4, /* the journal has more */
    LABEL_AT = 120,
};

void drive_disks_release(struct drive_disks *d)
{
    for (size_t i = 0; i < d->n; i++) {
        free(d->v[i].path);
        free(d->v[i].overlay);
    }
    free(d->v);
    *d = (struct drive_disks){0};
}

/* @path is taken. */
static void add_disk(struct drive_disks *d, char *path, bool read_only)
{
    d->v = cb_xrealloc(d->v, (d->n + 1) * sizeof(*d->v));
    d->v[d->n++] = (struct machine_disk){.path = path, .read_only = read_only};
}

static uint64_t size_of(const struct drive *d)
{
    return (d->size_gb ? d->size_gb : DRIVE_SIZE_GB) * GIB;
}

static int make_file(const char *path, const struct drive *d, struct cb_error *err)
{
    char label[DRIVE_LABEL_MAX + 1];
    drive_label(d, label);
    int rc = ext4_make_drive(path, size_of(d), label, err);
    return rc < 0 ? cb_wrap(err, "make drive %s", d->drive_id) : 0;
}

/* ---- builds ---- */

/* A copy of what the drive was. What a virtual machine wrote is a stranger's bytes, which the
 * kernel of this machine does not look into; a container would have it do that. */
static int copy_drive(struct build *b, const struct drive_image *d,
                      const struct machine_driver *driver, const char *path, struct cb_error *err)
{
    CB_AUTO_FREE char *image = NULL;
    if (driver == &machine_container && (!d->made_in || strcmp(d->made_in, driver->name) != 0)) {
        cb_fail(err, CB_E_ENV,
                "drive %s was written by a virtual machine, and a container would have this "
                "machine's kernel mount it",
                d->drive_id);
        return cb_hint(err, "refresh it with --isolation vm");
    }
    int rc = store_image_path(b->store, &d->image, &image, err);
    if (rc < 0)
        return cb_wrap(err, "drive %s", d->drive_id);
    CB_AUTO_FD from = open(image, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    CB_AUTO_FD to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (from < 0 || to < 0)
        return cb_fail_sys(err, errno, "open %s", from < 0 ? image : path);
    return cb_clone_file(from, to, err);
}

int drives_make(struct build *b, size_t first, const struct machine_driver *driver,
                struct drive_disks *out, struct cb_error *err)
{
    for (size_t i = first; i < b->n_layers; i++) {
        const struct layer *l = b->layers[i].declared;
        const struct drive_image *previous = b->layers[i].previous.drives;
        for (size_t j = 0; j < l->n_drives; j++) {
            if (!l->drives[j].commands.n)
                continue;
            add_disk(out, cb_xasprintf("%s/drive-%zu.ext4", b->o->work_dir, out->n), false);
            const char *path = out->v[out->n - 1].path;
            int rc = b->layers[i].refresh ? copy_drive(b, previous++, driver, path, err)
                                          : make_file(path, &l->drives[j], err);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

int drives_mount(struct talk *t, const struct layer *l, struct cb_error *err)
{
    CB_AUTO_STRV paths = {0};
    for (size_t i = 0; i < l->n_drives; i++)
        if (l->drives[i].commands.n)
            cb_strv_take(&paths, drive_mount_path(&l->drives[i]));
    if (!paths.n)
        return 0;
    int rc = session_drives(t->s, t->drives.next, &paths, t->state.now.user, err);
    if (rc < 0) {
        cb_wrap(err, "layer %s", l->name);
        return talk_explain(t, err);
    }
    rc = run_starts_again(t, l, err);
    return rc < 0 ? rc : 1;
}

static int run_drive(struct talk *t, const struct layer *l, const struct drive *d,
                     struct cb_error *err)
{
    int rc = 0;
    t->commands = &d->commands;
    t->drive_id = d->drive_id;
    for (size_t i = 0; i < d->commands.n && rc >= 0; i++)
        rc = run_command(t, l, i, err);
    t->drive_id = NULL;
    return rc;
}

int drives_fill(struct talk *t, const struct layer *l, struct cb_error *err)
{
    int rc = drives_mount(t, l, err);
    for (size_t i = 0; i < l->n_drives && rc > 0; i++) {
        int ran = run_drive(t, l, &l->drives[i], err);
        rc = ran < 0 ? ran : rc;
    }
    return rc < 0 ? rc : 0;
}

/* The agent left a file system that is ours and complete; what is in it is not looked at. */
static int check_super(int fd, const char *label, struct cb_error *err)
{
    unsigned char s[SUPER_LEN];
    char name[DRIVE_LABEL_MAX + 1] = "";
    int rc = cb_pread_all(fd, s, sizeof(s), SUPER_AT, err);
    if (rc < 0)
        return rc;
    memcpy(name, s + LABEL_AT, DRIVE_LABEL_MAX);
    if (s[MAGIC_AT] != 0x53 || s[MAGIC_AT + 1] != 0xef || strcmp(name, label) != 0)
        return cb_fail(err, CB_E_UNTRUSTED,
                       "what is on it is not the ext4 file system that was made");
    if (!(s[STATE_AT] & 1) || (s[INCOMPAT_AT] & INCOMPAT_RECOVER))
        return cb_fail(err, CB_E_UNTRUSTED, "the builder did not unmount it");
    return 0;
}

/* Stores the file as chunks. It may still be written by a machine that does what it wants: what is
 * stored is what was hashed, or an error. */
static int store_drive(struct build *b, const char *path, const struct drive *d,
                       struct drive_image *out, struct cb_error *err)
{
    char label[DRIVE_LABEL_MAX + 1];
    drive_label(d, label);
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    int rc = check_super(fd, label, err);
    if (rc < 0)
        return rc;
    CB_AUTO_CHUNK_MAP map = {0};
    struct store_chunks chunks = {0};
    if ((rc = chunk_map_make(fd, CHUNK_SIZE_DEFAULT, &map, err)) < 0 ||
        (rc = store_chunks_put(b->store, fd, &map, &b->em.progress, &chunks, err)) < 0)
        return rc;
    *out = (struct drive_image){.drive_id = cb_xstrdup(d->drive_id),
                                .label = cb_xstrdup(label),
                                .mount_path = drive_mount_path(d),
                                .read_only = d->read_only,
                                .filled = d->commands.n > 0,
                                .size = map.length,
                                .chunk_size = map.chunk_size,
                                .n_chunks = map.n,
                                .chunk_map = chunks.map};
    chunk_map_digest(&map, &out->image);
    char size[32];
    cb_human_bytes(chunks.added_bytes, size, sizeof(size));
    if (out->filled)
        emit_note(&b->em, "drive %s: %llu of %zu chunks are new, %s compressed", d->drive_id,
                  (unsigned long long)chunks.added, map.n, size);
    return 0;
}

int drives_keep(struct talk *t, struct build_layer *l, struct cb_error *err)
{
    const struct layer *declared = l->declared;
    l->drives = cb_xcalloc(declared->n_drives + 1, sizeof(*l->drives));
    for (size_t i = 0; i < declared->n_drives; i++) {
        const struct drive *d = &declared->drives[i];
        if (!d->commands.n)
            continue;
        const struct machine_disk *disk = &t->drives.v[t->drives.next++];
        int rc = store_drive(t->b, disk->path, d, &l->drives[l->n_drives], err);
        if (rc < 0)
            return cb_wrap(err, "layer %s: drive %s", declared->name, d->drive_id);
        l->drives[l->n_drives++].made_in = cb_xstrdup(t->m->driver->name);
    }
    return 0;
}

bool drives_fit(const struct layer *l, const struct cache_record *r)
{
    size_t n = 0;
    for (size_t i = 0; i < l->n_drives; i++) {
        if (!l->drives[i].commands.n)
            continue;
        if (n >= r->n_drives || strcmp(r->drives[n].drive_id, l->drives[i].drive_id) != 0)
            return false;
        n++;
    }
    return n == r->n_drives;
}

/* ---- the image's ---- */

static int make_empty(struct build *b, const struct drive *d, struct drive_image *out,
                      struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/empty.ext4", b->o->work_dir);
    (void)unlink(path);
    int rc = make_file(path, d, err);
    if (rc == 0)
        rc = store_drive(b, path, d, out, err);
    (void)unlink(path);
    return rc < 0 ? cb_wrap(err, "drive %s", d->drive_id) : 0;
}

int drives_gather(struct build *b, struct cb_error *err)
{
    b->drives = cb_xcalloc(DRIVES_MAX, sizeof(*b->drives));
    for (size_t i = 0; i < b->n_layers; i++) {
        const struct build_layer *l = &b->layers[i];
        size_t filled = 0;
        for (size_t j = 0; j < l->declared->n_drives; j++) {
            const struct drive *d = &l->declared->drives[j];
            struct drive_image *to = &b->drives[b->n_drives];
            if (d->commands.n) {
                struct drive_image *copy = drive_images_dup(&l->drives[filled++], 1);
                *to = *copy;
                free(copy);
            } else {
                int rc = make_empty(b, d, to, err);
                if (rc < 0)
                    return rc;
            }
            b->n_drives++;
        }
    }
    return 0;
}

int drives_attach(struct store *s, const struct drive_image *v, size_t n, uint32_t workspace_gb,
                  const char *work_dir, struct drive_disks *out, struct cb_error *err)
{
    for (size_t i = 0; i < n; i++) {
        char *path = NULL;
        int rc = store_image_path(s, &v[i].image, &path, err);
        if (rc < 0)
            return cb_wrap(err, "drive %s", v[i].drive_id);
        add_disk(out, path, v[i].read_only);
    }
    if (!workspace_gb)
        return 0;
    add_disk(out, cb_xasprintf("%s/workspace.ext4", work_dir), false);
    int rc = ext4_make_drive(out->v[out->n - 1].path, workspace_gb * GIB, WORKSPACE_LABEL, err);
    return rc < 0 ? cb_wrap(err, "make the workspace") : 0;
}

/* The digest of the workspace, which no manifest has. */
static int digest_file(const char *path, struct cb_digest *out, struct cb_error *err)
{
    CB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 ? cb_fail_sys(err, errno, "open %s", path) : image_digest(fd, out, NULL, err);
}

int drives_keep_in(struct drive_disks *d, const struct drive_image *v, size_t n, const char *dir,
                   struct cb_error *err)
{
    int rc = cb_mkdir_p(dir, 0700, err);
    CB_AUTO_FREE char *absolute = rc == 0 ? realpath(dir, NULL) : NULL;
    if (rc == 0 && !absolute)
        rc = cb_fail_sys(err, errno, "%s", dir);
    for (size_t i = 0; i < d->n && rc == 0; i++) {
        struct cb_digest is;
        char hex[CB_HEX_LEN + 1];
        if (d->v[i].read_only)
            continue;
        if (i < n)
            is = v[i].image;
        else
            rc = digest_file(d->v[i].path, &is, err);
        if (rc < 0)
            break;
        cb_digest_hex(&is, hex);
        d->v[i].overlay =
            cb_xasprintf("%s/%s-%.16s.qcow2", absolute, i < n ? v[i].label : WORKSPACE_LABEL, hex);
    }
    return rc;
}

void drives_digest(const struct drive_image *v, size_t n, uint32_t workspace_gb,
                   struct cb_digest *out)
{
    *out = (struct cb_digest){{0}};
    if (!n && !workspace_gb)
        return;
    CB_AUTO_BUF b = CB_BUF_INIT(64 << 10);
    (void)cb_buf_addf(&b, "workspace %u\n", workspace_gb);
    for (size_t i = 0; i < n; i++) {
        char text[CB_DIGEST_LEN + 1];
        cb_digest_text(&v[i].image, text);
        (void)cb_buf_addf(&b, "%s %s %d\n", v[i].label, text, v[i].read_only);
    }
    cb_sha256(b.data, b.len, out);
}
