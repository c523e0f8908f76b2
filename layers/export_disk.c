/* raw, qcow2, gce: a disk with a GPT, an EFI system partition that holds one unified kernel image,
 * and the template's file system. All numbers in it are derived from the template. */
#include "layers/export_private.h"

#include "layers/uki.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define STUB "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
#define TYPE_ESP "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
#define TYPE_ROOT "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709" /* root, x86-64 */

enum {
    SECTOR = 512,
    HEAD_MIB = 1,     /* in front of the first partition, and behind the last */
    ESP_MIN_MIB = 64, /* FAT32 has at least 65525 clusters */
    GUID_LEN = 36,
};

struct disk {
    struct export *x;
    uint64_t size, esp_at, esp_size, root_at, root_size; /* bytes */
    char label[32];
    char guid[3][GUID_LEN + 1]; /* of the disk and its two partitions */
    char volume[9];             /* the FAT's serial number */
};

/* ---- names ---- */

static void derive(const struct template_manifest *t, const char *what, struct cb_digest *out)
{
    struct cb_hasher *h = cb_hasher_new();
    cb_hasher_update(h, what, strlen(what) + 1);
    cb_hasher_update(h, &t->image, sizeof(t->image));
    cb_hasher_update(h, &t->template_key, sizeof(t->template_key));
    cb_hasher_update(h, &t->version, sizeof(t->version));
    cb_hasher_final(h, out);
    cb_hasher_free(h);
}

static void derive_names(struct disk *d)
{
    static const char *const what[] = {"gpt disk", "gpt esp", "gpt root"};
    struct cb_digest h;
    char hex[CB_HEX_LEN + 1];
    for (size_t i = 0; i < 3; i++) {
        derive(d->x->s->t, what[i], &h);
        h.b[6] = (h.b[6] & 0x0f) | 0x80; /* version 8: made by a rule of our own */
        h.b[8] = (h.b[8] & 0x3f) | 0x80;
        cb_digest_hex(&h, hex);
        (void)snprintf(d->guid[i], sizeof(d->guid[i]), "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8,
                       hex + 12, hex + 16, hex + 20);
    }
    derive(d->x->s->t, "partition label", &h);
    cb_digest_hex(&h, hex);
    (void)snprintf(d->label, sizeof(d->label), "capsule-%.16s", hex);
    (void)snprintf(d->volume, sizeof(d->volume), "%.8s", hex + 16);
}

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

static int lay_out(struct disk *d, uint64_t image, uint64_t kernel, struct cb_error *err)
{
    const struct export_spec *s = d->x->s;
    uint64_t unit = s->format == EXPORT_GCE ? GIB : MIB;
    d->esp_at = HEAD_MIB * MIB;
    d->esp_size = round_up(kernel + kernel / 8, MIB) + 4 * MIB;
    if (d->esp_size < ESP_MIN_MIB * MIB)
        d->esp_size = ESP_MIN_MIB * MIB;
    d->root_at = d->esp_at + d->esp_size;
    uint64_t least = d->root_at + round_up(image, MIB) + HEAD_MIB * MIB;
    char asked[32], needs[32];
    cb_human_bytes(s->size, asked, sizeof(asked));
    cb_human_bytes(least, needs, sizeof(needs));
    if (s->size && s->size < least) {
        cb_fail(err, CB_E_CONFIG, "--size %s: the disk needs %s", asked, needs);
        return cb_hint(err, "give %" PRIu64 "M or more, or leave it out",
                       round_up(least, unit) / MIB);
    }
    if (s->size % unit)
        return cb_fail(err, CB_E_CONFIG, "--size %" PRIu64 ": not a multiple of 1 %s", s->size,
                       unit == GIB ? "GiB, as Compute Engine wants it" : "MiB");
    d->size = s->size ? s->size : round_up(least, unit);
    d->root_size = d->size - HEAD_MIB * MIB - d->root_at;
    return 0;
}

/* ---- the EFI system partition ---- */

static int open_part(struct export *x, const struct cb_digest *d, const char *what,
                     struct uki_section *s, struct cb_error *err)
{
    s->fd = store_blob_open(x->s->store, d, &s->size, err);
    return s->fd < 0 ? cb_wrap(err, "the %s of %s", what, x->s->t->name) : 0;
}

static struct uki_section text_section(const char *name, const char *text)
{
    return (struct uki_section){name, -1, text, strlen(text)};
}

/* Makes the file "uki"; *@size: its length. */
static int make_uki(struct disk *d, uint64_t *size, struct cb_error *err)
{
    const struct template_manifest *t = d->x->s->t;
    /* the last console is the one that init gets: the serial one of the template */
    CB_AUTO_FREE char *words =
        cb_xasprintf("console=tty0 %s root=PARTLABEL=%s capsule.ip=dhcp", t->cmdline, d->label);
    CB_AUTO_FREE char *os =
        cb_xasprintf("ID=capsule-build\nNAME=capsule-build\nPRETTY_NAME=\"%s version %" PRIu64
                     "\"\nVERSION_ID=%" PRIu64 "\n",
                     t->name, t->version, t->version);
    struct uki_section initrd = {.name = ".initrd"}, kernel = {.name = ".linux"};
    CB_AUTO_FD stub = open(STUB, O_RDONLY | O_CLOEXEC);
    if (stub < 0)
        return export_missing(d->x, STUB, "systemd-boot-efi", err);
    int rc = open_part(d->x, &t->initramfs, "initramfs", &initrd, err);
    CB_AUTO_FD initrd_fd = rc == 0 ? initrd.fd : -1;
    if (rc == 0)
        rc = open_part(d->x, &t->kernel, "kernel", &kernel, err);
    CB_AUTO_FD kernel_fd = rc == 0 ? kernel.fd : -1;
    (void)initrd_fd; /* both are only closed, which clang takes for no use */
    (void)kernel_fd;
    CB_AUTO_FD to = rc == 0 ? export_create(d->x, "uki", err) : -1;
    if (rc < 0 || to < 0)
        return rc < 0 ? rc : to;
    const struct uki_section v[] = {text_section(".osrel", os),
                                    text_section(".uname", t->kernel_release),
                                    text_section(".cmdline", words), initrd, kernel};
    if ((rc = uki_make(stub, v, sizeof(v) / sizeof(v[0]), to, err)) < 0)
        return cb_wrap(err, "the unified kernel image");
    struct stat st;
    if (fstat(to, &st) < 0)
        return cb_fail_sys(err, errno, "read the unified kernel image");
    *size = (uint64_t)st.st_size;
    return 0;
}

/* The file "esp", by programs that need neither root nor a mount. Relative names: they run in our
 * folder, and mtools would take a colon in a path for a drive. */
static int make_esp(struct disk *d, struct cb_error *err)
{
    CB_AUTO_FD fd = export_create(d->x, "esp", err);
    if (fd < 0)
        return fd;
    if (ftruncate(fd, (off_t)d->esp_size) < 0)
        return cb_fail_sys(err, errno, "make the EFI system partition");
    const char *format[] = {"mkfs.fat", "-F", "32",      "-s",          "1",   "-n",
                            "CAPSULE",  "-i", d->volume, "--invariant", "esp", NULL};
    const char *folders[] = {"mmd", "-i", "esp", "::/EFI", "::/EFI/BOOT", NULL};
    const char *copy[] = {"mcopy", "-i", "esp", "uki", "::/EFI/BOOT/BOOTX64.EFI", NULL};
    int rc = export_tool(d->x, format, -1, "dosfstools", err);
    if (rc == 0)
        rc = export_tool(d->x, folders, -1, "mtools", err);
    return rc == 0 ? export_tool(d->x, copy, -1, "mtools", err) : rc;
}

/* ---- the disk ---- */

static int partition(struct disk *d, const char *disk, struct cb_error *err)
{
    CB_AUTO_FREE char *script = cb_xasprintf(
        "label: gpt\nlabel-id: %s\nunit: sectors\nfirst-lba: 2048\n"
        "start=%" PRIu64 ", size=%" PRIu64 ", type=" TYPE_ESP ", uuid=%s, name=\"capsule-esp\"\n"
        "start=%" PRIu64 ", size=%" PRIu64 ", type=" TYPE_ROOT ", uuid=%s, name=\"%s\"\n",
        d->guid[0], d->esp_at / SECTOR, d->esp_size / SECTOR, d->guid[1], d->root_at / SECTOR,
        d->root_size / SECTOR, d->guid[2], d->label);
    CB_AUTO_FD in = export_create(d->x, "partitions", err);
    if (in < 0)
        return in;
    int rc = cb_pwrite_all(in, script, strlen(script), 0, err);
    const char *argv[] = {"sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk, NULL};
    return rc == 0 ? export_tool(d->x, argv, in, "fdisk", err) : rc;
}

static int copy_part(struct disk *d, const char *name, int to, uint64_t at, struct cb_error *err)
{
    CB_AUTO_FREE char *path = export_tmp(d->x, name);
    CB_AUTO_FD from = open(path, O_RDONLY | O_CLOEXEC);
    if (from < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    return export_copy(d->x, from, to, at, err);
}

/* The whole disk as the file @name. Owned fd. */
static int make_raw(struct disk *d, const char *name, struct cb_error *err)
{
    struct stat st;
    uint64_t uki = 0;
    CB_AUTO_FD image = export_open_image(d->x, NULL, err);
    if (image < 0)
        return image;
    if (fstat(image, &st) < 0)
        return cb_fail_sys(err, errno, "read the image");
    derive_names(d);
    int rc = make_uki(d, &uki, err);
    if (rc == 0)
        rc = lay_out(d, (uint64_t)st.st_size, uki, err);
    if (rc == 0)
        rc = make_esp(d, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FD disk = export_create(d->x, name, err);
    if (disk < 0)
        return disk;
    d->x->total += (uint64_t)st.st_blocks * 512 + uki;
    if (ftruncate(disk, (off_t)d->size) < 0)
        return cb_fail_sys(err, errno, "make a disk of %" PRIu64 " bytes", d->size);
    rc = partition(d, name, err);
    if (rc == 0)
        rc = copy_part(d, "esp", disk, d->esp_at, err);
    if (rc == 0)
        rc = export_copy(d->x, image, disk, d->root_at, err);
    return rc < 0 ? rc : cb_take_fd(&disk);
}

static int make_qcow2(struct export *x, struct cb_error *err)
{
    const char *argv[] = {"qemu-img", "convert", "-q",   "-f",  "raw",
                          "-O",       "qcow2",   "disk", "out", x->s->compress ? "-c" : NULL,
                          NULL};
    int rc = export_tool(x, argv, -1, "qemu-utils", err);
    CB_AUTO_FREE char *path = export_tmp(x, "out");
    if (rc == 0 && chmod(path, 0600) < 0)
        rc = cb_fail_sys(err, errno, "chmod %s", path);
    return rc;
}

static int stream_file(struct export *x, const char *name, struct cb_error *err)
{
    CB_AUTO_FREE char *path = export_tmp(x, name);
    CB_AUTO_FD from = open(path, O_RDONLY | O_CLOEXEC);
    CB_AUTO_FD to = from < 0 ? -1 : export_open_out(x, err);
    struct stat st;
    if (from < 0 || fstat(from, &st) < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    if (to < 0)
        return to;
    x->total += (uint64_t)st.st_size;
    return export_stream(x, from, to, err);
}

int export_make_disk(struct export *x, struct cb_error *err)
{
    struct disk d = {.x = x};
    enum export_format f = x->s->format;
    bool out = f == EXPORT_RAW && !export_to_stdout(x);
    CB_AUTO_FD disk = make_raw(&d, out ? "out" : "disk", err);
    if (disk < 0)
        return disk;
    if (out)
        return 0;
    if (f == EXPORT_GCE)
        return export_make_gce(x, disk, err);
    int rc = f == EXPORT_QCOW2 ? make_qcow2(x, err) : 0;
    if (rc == 0 && export_to_stdout(x))
        rc = stream_file(x, f == EXPORT_QCOW2 ? "out" : "disk", err);
    return rc;
}
