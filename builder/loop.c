#include "builder/container.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <string.h>
#include <sys/ioctl.h>

enum { ATTACH_TRIES = 64 };

static int no_loop(struct cb_error *err, const char *what)
{
    cb_fail(err, CB_E_ENV, "%s: %s", what, strerror(errno));
    return cb_hint(err, "Loop devices are needed (`modprobe loop`), and the right to use them.");
}

int loop_attach(const char *path, bool read_only, char **out, struct cb_error *err)
{
    CB_AUTO_FD file = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (file < 0)
        return cb_fail_sys(err, errno, "open %s", path);
    CB_AUTO_FD control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        return no_loop(err, "/dev/loop-control");
    for (int tries = 0; tries < ATTACH_TRIES; tries++) {
        int n = ioctl(control, LOOP_CTL_GET_FREE);
        if (n < 0)
            return no_loop(err, "find a free loop device");
        CB_AUTO_FREE char *name = cb_xasprintf("/dev/loop%d", n);
        CB_AUTO_FD dev = open(name, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
        if (dev < 0)
            return no_loop(err, name);
        struct loop_config c = {.fd = (unsigned)file, .info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};
        if (read_only)
            c.info.lo_flags |= LO_FLAGS_READ_ONLY;
        if (ioctl(dev, LOOP_CONFIGURE, &c) == 0) {
            *out = cb_take_ptr(&name);
            return cb_take_fd(&dev);
        }
        if (errno != EBUSY) /* EBUSY: somebody else was faster */
            return no_loop(err, "attach a loop device");
    }
    return cb_fail(err, CB_E_CONFLICT, "attach %s: every free loop device was taken by others",
                   path);
}

static void detach_if_under(const char *loop, const char *dir)
{
    CB_AUTO_FREE char *path = cb_xasprintf("/sys/block/%s/loop/backing_file", loop);
    CB_AUTO_BUF file = CB_BUF_INIT(CB_PATH_MAX + 64);
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    if (cb_read_file(path, CB_PATH_MAX + 64, &file, &ignored) < 0 || !file.data)
        return;
    size_t n = strlen(dir);
    if (strncmp(file.data, dir, n) != 0 || file.data[n] != '/')
        return;
    CB_AUTO_FREE char *dev = cb_xasprintf("/dev/%s", loop);
    CB_AUTO_FD fd = open(dev, O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        (void)ioctl(fd, LOOP_CLR_FD);
}

void loop_detach_under(const char *dir)
{
    CB_AUTO_DIR d = opendir("/sys/block");
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;)
        if (strncmp(e->d_name, "loop", 4) == 0)
            detach_if_under(e->d_name, dir);
}
