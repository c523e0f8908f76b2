#include "builder/qcow2.h"

#include "support/cleanup.h"
#include "support/file.h"

#include <endian.h>
#include <fcntl.h>
#include <string.h>

/* QEMU, docs/interop/qcow2.txt. All numbers are big-endian. One cluster each for: header, refcount
 * table, refcount block, L1 table. */
enum {
    CLUSTER_BITS = 16,
    CLUSTER = 1 << CLUSTER_BITS,
    HEADER_LENGTH = 104,
    REFCOUNT_ORDER = 4, /* 16 bits */
    REFCOUNT_TABLE = 1,
    REFCOUNT_BLOCK = 2,
    L1_TABLE = 3,
    CLUSTERS = 4,
};
/* One L2 table is a cluster of 8-byte entries, each for a cluster. */
#define L2_COVERS ((uint64_t)CLUSTER * (CLUSTER / 8))

static void put32(unsigned char *p, uint32_t v)
{
    v = htobe32(v);
    memcpy(p, &v, sizeof(v));
}

static void put64(unsigned char *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, sizeof(v));
}

int qcow2_create(const char *path, uint64_t size, struct cb_error *err)
{
    uint64_t l1 = (size + L2_COVERS - 1) / L2_COVERS;
    if (size == 0 || size % 512 || size > QCOW2_SIZE_MAX || l1 > CLUSTER / 8)
        return cb_fail(err, CB_E_LIMIT, "overlay %s: no disk has %llu bytes", path,
                       (unsigned long long)size);
    unsigned char head[HEADER_LENGTH] = {'Q', 'F', 'I', 0xfb};
    put32(head + 4, 3); /* version */
    put32(head + 20, CLUSTER_BITS);
    put64(head + 24, size);
    put32(head + 36, (uint32_t)l1);
    put64(head + 40, (uint64_t)L1_TABLE * CLUSTER);
    put64(head + 48, (uint64_t)REFCOUNT_TABLE * CLUSTER);
    put32(head + 56, 1); /* clusters of the refcount table */
    put32(head + 96, REFCOUNT_ORDER);
    put32(head + 100, HEADER_LENGTH);
    unsigned char table[8], block[2 * CLUSTERS];
    put64(table, (uint64_t)REFCOUNT_BLOCK * CLUSTER);
    for (int i = 0; i < CLUSTERS; i++) {
        block[(size_t)2 * i] = 0;
        block[(size_t)2 * i + 1] = 1;
    }
    CB_AUTO_FD fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return cb_fail_sys(err, errno, "make %s", path);
    int rc = cb_pwrite_all(fd, head, sizeof(head), 0, err);
    if (rc == 0)
        rc = cb_pwrite_all(fd, table, sizeof(table), (off_t)REFCOUNT_TABLE * CLUSTER, err);
    if (rc == 0)
        rc = cb_pwrite_all(fd, block, sizeof(block), (off_t)REFCOUNT_BLOCK * CLUSTER, err);
    if (rc == 0 && ftruncate(fd, (off_t)CLUSTERS * CLUSTER) < 0) /* the L1 table: zeros */
        rc = cb_fail_sys(err, errno, "make %s", path);
    return rc;
}
