/* What a stand-in for the agent needs to come up as init of a guest: the kernel's file systems, the
 * modules of the initramfs, the port to the host. Static programs, libc only. */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline ssize_t slurp(const char *path, char *out, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, out, size - 1);
    if (fd >= 0)
        close(fd);
    out[n > 0 ? n : 0] = '\0';
    return n;
}

static inline void stub_mount(void)
{
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
}

/* The modules of the initramfs, in the order of its list. */
static inline void stub_devices(void)
{
    FILE *f = fopen("/modules.list", "re");
    char path[512];
    while (f && fgets(path, sizeof(path), f)) {
        path[strcspn(path, "\n")] = '\0';
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
            printf("stub: %s: %s\n", path, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    if (f)
        fclose(f);
}

/* The port to the host, or -1 when none comes within 2 s. */
static inline int stub_port(void)
{
    for (int tries = 0; tries < 200; tries++) {
        DIR *d = opendir("/sys/class/virtio-ports");
        struct dirent *e;
        while (d && (e = readdir(d))) {
            char path[512], name[64];
            snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", e->d_name);
            if (slurp(path, name, sizeof(name)) > 0 && strcmp(name, "capsule.agent.0\n") == 0) {
                snprintf(path, sizeof(path), "/dev/%s", e->d_name);
                closedir(d);
                return open(path, O_RDWR | O_CLOEXEC);
            }
        }
        if (d)
            closedir(d);
        usleep(10000);
    }
    return -1;
}
