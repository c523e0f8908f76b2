#include "layers/ext4_xattr.h"

#include "layers/ext4_fs.h"
#include "layers/ext4_private.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

enum {
    NAME_MAX_LEN = 255, /* behind the prefix */
    VALUE_MAX = 4096,   /* no larger one fits */
};

#define ACL_PREFIX "system.posix_acl_"

/* What is behind the name's prefix, or NULL for one that is left out. */
static const char *keep(const char *name, uint32_t mode)
{
    if (strcmp(name, ACL_PREFIX "access") == 0)
        return S_ISLNK(mode) ? NULL : "";
    if (strcmp(name, ACL_PREFIX "default") == 0)
        return S_ISDIR(mode) ? "" : NULL;
    if (strcmp(name, "security.capability") == 0)
        return S_ISREG(mode) ? name + strlen("security.") : NULL;
    if (strncmp(name, "user.", 5) != 0 || name[5] == '\0' ||
        strncmp(name, "user.overlay.", 13) == 0)
        return NULL;
    return S_ISREG(mode) || S_ISDIR(mode) ? name + 5 : NULL;
}

static bool is_acl(const char *name)
{
    return strncmp(name, ACL_PREFIX, strlen(ACL_PREFIX)) == 0;
}

/* An access ACL and the mode say the same thing twice. As where Docker sets the mode last, the ACL
 * follows it; @value is in the kernel's form: a version, then entries of tag, permissions and id.
 * False when the mode says all of it: then there is no ACL. Malformed ones are left as they are. */
static bool follow_mode(unsigned char *value, size_t len, uint32_t mode)
{
    enum { VERSION = 4, ENTRY = 8, USER_OBJ = 1, GROUP_OBJ = 4, MASK = 0x10, OTHER = 0x20 };
    unsigned char *group = NULL, *mask = NULL;
    bool more = len < VERSION + ENTRY || (len - VERSION) % ENTRY != 0;
    for (size_t i = VERSION; i + ENTRY <= len; i += ENTRY) {
        unsigned char *e = value + i;
        if (e[0] == USER_OBJ)
            e[2] = mode >> 6 & 7;
        else if (e[0] == OTHER)
            e[2] = mode & 7;
        else if (e[0] == GROUP_OBJ)
            group = e;
        else if (e[0] == MASK)
            mask = e;
        more |= e[0] != USER_OBJ && e[0] != OTHER && e[0] != GROUP_OBJ;
    }
    if (mask || group)
        (mask ? mask : group)[2] = mode >> 3 & 7;
    return more;
}

int xattrs_clear(struct writer *w, uint32_t ino, union inode *in, struct cb_error *err)
{
    memset(in->raw + INODE_ATTR_OFFSET, 0, EXT4_INODE - INODE_ATTR_OFFSET);
    return fs_done(w, ext2fs_free_ext_attr(w->fs, ino, &in->i), "free attributes", err);
}

int xattrs_begin(struct xattrs *x, struct writer *w, uint32_t ino, union inode *in,
                 struct cb_error *err)
{
    *x = (struct xattrs){.w = w, .ino = ino, .in = in};
    return xattrs_clear(w, ino, in, err);
}

/* libext2fs works on the inode in its place. */
static int start(struct xattrs *x, struct cb_error *err)
{
    if (x->handle)
        return 0;
    int rc = writer_put_inode(x->w, x->ino, x->in, err);
    return rc < 0 ? rc
                  : fs_done(x->w, ext2fs_xattrs_open(x->w->fs, x->ino, &x->handle),
                            "open attributes", err);
}

int xattrs_add(struct xattrs *x, const char *name, const void *value, size_t len,
               struct cb_error *err)
{
    static const unsigned char no_acl[4] = {2, 0, 0, 0}; /* the version and no entries */
    const char *rest = keep(name, x->in->i.i_mode);
    if (!rest)
        return 0;
    if (strlen(rest) > NAME_MAX_LEN || len > VALUE_MAX)
        return cb_fail(err, CB_E_LIMIT, "the extended attribute %.64s is too large (%zu bytes)",
                       name, len);
    if (is_acl(name) && len == sizeof(no_acl) && memcmp(value, no_acl, len) == 0)
        return 0;
    unsigned char acl[VALUE_MAX];
    if (strcmp(name, ACL_PREFIX "access") == 0) {
        memcpy(acl, value, len);
        if (!follow_mode(acl, len, x->in->i.i_mode))
            return 0;
        value = acl;
    }
    int rc = start(x, err);
    if (rc < 0)
        return rc;
    errcode_t failed = ext2fs_xattr_set(x->handle, name, value, len);
    if (is_acl(name) && (failed == EINVAL || failed == ENOMEM)) /* of its conversion alone */
        return cb_fail(err, CB_E_CORRUPT, "a malformed POSIX ACL");
    if (failed == EXT2_ET_EA_NO_SPACE)
        return cb_fail(err, CB_E_LIMIT,
                       "its extended attributes do not fit into an inode and one block of %d bytes",
                       EXT4_BLOCK);
    return fs_done(x->w, failed, "store attributes", err);
}

int xattrs_end(struct xattrs *x, int rc, struct cb_error *err)
{
    if (!x->handle)
        return rc;
    (void)ext2fs_xattrs_close(&x->handle);
    return rc < 0 ? rc : writer_get_inode(x->w, x->ino, x->in, err);
}

int xattr_mark(struct writer *w, uint32_t ino, const char *name, const char *value,
               struct cb_error *err)
{
    struct ext2_xattr_handle *h = NULL;
    errcode_t failed = ext2fs_xattrs_open(w->fs, ino, &h);
    if (!failed)
        failed = ext2fs_xattrs_read(h);
    if (!failed)
        failed = ext2fs_xattr_set(h, name, value, strlen(value));
    if (h)
        (void)ext2fs_xattrs_close(&h);
    return fs_done(w, failed, "mark an inode", err);
}
