/* guest: PID 1 of the initramfs: modules, disks, network and the port to the host; then the build
 * loop, or the finished image's root. */
#include "builder/agent/agent.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEVICE_WAIT_MS 10000
#define DHCP_DEVICE_WAIT_MS 1000 /* a disk may well run without a network */
#define MTU_MIN 576u

void console_say(const char *fmt, ...)
{
    char text[1200] = "capsule-agent: ";
    size_t at = strlen(text);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text + at, sizeof text - at - 1, fmt, ap);
    va_end(ap);
    if (n > 0)
        at += (size_t)n < sizeof text - at - 1 ? (size_t)n : sizeof text - at - 2;
    text[at++] = '\n';
    (void)write_all(2, text, at);
}

static void pause_ms(int ms)
{
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    (void)nanosleep(&ts, NULL);
}

_Noreturn void machine_end(const struct cmdline *c)
{
    sync();
    (void)reboot(c->reboot_ends ? RB_AUTOBOOT : RB_POWER_OFF);
    (void)reboot(RB_HALT_SYSTEM);
    for (;;)
        (void)pause();
}

static bool value_of(const char *word, const char *key, char *out, size_t size)
{
    size_t n = strlen(key);
    if (strncmp(word, key, n) != 0 || word[n] != '=')
        return false;
    if (strlen(word + n + 1) < size)
        (void)snprintf(out, size, "%s", word + n + 1);
    return true;
}

void cmdline_parse(const char *text, struct cmdline *c)
{
    *c = (struct cmdline){.prefix = 24};
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, " \t\n");
        char word[256], v[64] = "";
        if (n > 0 && n < sizeof word) {
            memcpy(word, p, n);
            word[n] = 0;
            uint64_t prefix;
            if (value_of(word, "capsule.ip", c->ip, sizeof c->ip)) {
                char *slash = strchr(c->ip, '/');
                if (slash && parse_number(slash + 1, 32, &prefix))
                    c->prefix = (unsigned)prefix;
                if (slash)
                    *slash = 0;
            } else if (value_of(word, "capsule.poweroff", v, sizeof v)) {
                c->reboot_ends = strcmp(v, "reboot") == 0;
            } else if (value_of(word, "capsule.park", v, sizeof v)) {
                c->park = strcmp(v, "1") == 0;
            } else if (value_of(word, "capsule.shell", v, sizeof v)) {
                c->no_shell = strcmp(v, "0") == 0;
            } else {
                (void)(value_of(word, "capsule.mode", c->mode, sizeof c->mode) ||
                       value_of(word, "root", c->root, sizeof c->root) ||
                       value_of(word, "capsule.gw", c->gw, sizeof c->gw) ||
                       value_of(word, "capsule.dns", c->dns, sizeof c->dns) ||
                       value_of(word, "capsule.hostname", c->hostname, sizeof c->hostname));
            }
        }
        p += n;
        p += *p != 0;
    }
}

void cmdline_read(struct cmdline *c)
{
    struct text t = {0};
    (void)read_file("/proc/cmdline", 65536, &t);
    cmdline_parse(t.p ? t.p : "", c);
    text_release(&t);
}

/* --- modules --- */

/* 0, or -1 with errno. */
static int insert_module(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int rc = fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST) ? -1 : 0;
    int saved = errno;
    if (fd >= 0)
        (void)close(fd);
    (void)unlink(path); /* the initramfs is memory */
    errno = saved;
    return rc;
}

static void load_module(const char *path)
{
    if (insert_module(path) < 0)
        console_say("module %s: %s", path, strerror(errno));
}

/* A driver of another hypervisor refuses to be loaded, and what depends on it as well. */
static void try_module(const char *path)
{
    (void)insert_module(path);
}

static void for_each_line(const char *path, void (*fn)(const char *line))
{
    struct text list = {0};
    if (read_file(path, 65536, &list) == 0) {
        char *save = NULL;
        for (char *p = strtok_r(list.p, "\n", &save); p; p = strtok_r(NULL, "\n", &save))
            fn(p);
    }
    text_release(&list);
}

static void drop_module(const char *path)
{
    (void)unlink(path);
}

/* Until it is loaded nobody has looked at a disk. (Where it is built in, the kernel has.) */
#define DISK_MODULE "/modules/virtio_blk.ko"

static void load_all_but_disks(const char *path)
{
    if (strcmp(path, DISK_MODULE) != 0)
        load_module(path);
}

/* Those for other machines than ours are needed only where the root is on an ordinary disk. */
static void load_modules(bool hardware, bool disks)
{
    for_each_line("/modules.list", disks ? load_module : load_all_but_disks);
    for_each_line("/modules.hardware", hardware ? try_module : drop_module);
}

/* --- network --- */

bool ipv4_parse(const char *s, uint32_t *out)
{
    struct in_addr a;
    if (inet_pton(AF_INET, s, &a) != 1)
        return false;
    *out = a.s_addr;
    return true;
}

static void set_address(struct sockaddr *to, uint32_t addr)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = addr};
    memcpy(to, &in, sizeof in);
}

static int interface_up(int fd, const char *name)
{
    struct ifreq r = {0};
    (void)snprintf(r.ifr_name, sizeof r.ifr_name, "%s", name);
    if (ioctl(fd, SIOCGIFFLAGS, &r) < 0)
        return -1;
    r.ifr_flags = (short)(r.ifr_flags | IFF_UP | IFF_RUNNING);
    return ioctl(fd, SIOCSIFFLAGS, &r);
}

/* The first interface by name that is not lo. */
static bool first_interface(char *out, size_t size)
{
    DIR *d = opendir("/sys/class/net");
    bool found = false;
    const struct dirent *e;
    while (d && (e = readdir(d))) {
        if (e->d_name[0] == '.' || strcmp(e->d_name, "lo") == 0 || strlen(e->d_name) >= size)
            continue;
        char device[300];
        (void)snprintf(device, sizeof device, "/sys/class/net/%s/device", e->d_name);
        if (access(device, F_OK) < 0 || (found && strcmp(out, e->d_name) <= 0))
            continue; /* tunl0, dummy0 and such have no device */
        memcpy(out, e->d_name, strlen(e->d_name) + 1);
        found = true;
    }
    if (d)
        (void)closedir(d);
    return found;
}

static int configure(int fd, const char *name, const struct cmdline *c, struct fail *f)
{
    uint32_t addr, gw;
    struct ifreq r = {0};
    if (!ipv4_parse(c->ip, &addr))
        return fail_set(f, FAIL_SYSTEM, "capsule.ip=%s is not an address", c->ip);
    (void)snprintf(r.ifr_name, sizeof r.ifr_name, "%s", name);
    set_address(&r.ifr_addr, addr);
    if (ioctl(fd, SIOCSIFADDR, &r) < 0)
        return fail_sys(f, errno, "set the address of %s", name);
    set_address(&r.ifr_netmask, c->prefix ? htonl(~0u << (32 - c->prefix)) : 0);
    if (ioctl(fd, SIOCSIFNETMASK, &r) < 0)
        return fail_sys(f, errno, "set the netmask of %s", name);
    r.ifr_mtu = (int)c->mtu;
    if (c->mtu >= MTU_MIN && ioctl(fd, SIOCSIFMTU, &r) < 0)
        console_say("%s: MTU %u: %s", name, c->mtu, strerror(errno));
    if (interface_up(fd, name) < 0)
        return fail_sys(f, errno, "bring %s up", name);
    if (!c->gw[0])
        return 0;
    if (!ipv4_parse(c->gw, &gw))
        return fail_set(f, FAIL_SYSTEM, "capsule.gw=%s is not an address", c->gw);
    if (c->prefix == 32) { /* clouds give one address, and a gateway that is reached all the same */
        char dev[IFNAMSIZ];
        (void)snprintf(dev, sizeof dev, "%s", name);
        struct rtentry host = {.rt_flags = RTF_UP | RTF_HOST, .rt_dev = dev};
        set_address(&host.rt_dst, gw);
        if (ioctl(fd, SIOCADDRT, &host) < 0 && errno != EEXIST)
            return fail_sys(f, errno, "route to %s", c->gw);
    }
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    set_address(&route.rt_dst, 0);
    set_address(&route.rt_genmask, 0);
    set_address(&route.rt_gateway, gw);
    if (ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST)
        return fail_sys(f, errno, "default route by %s", c->gw);
    return 0;
}

void network_ask(struct cmdline *c)
{
    if (strcmp(c->ip, "dhcp") != 0)
        return;
    c->ip[0] = 0;
    char name[IFNAMSIZ] = "";
    struct dhcp_lease l;
    struct fail f;
    int64_t until = now_ms() + DHCP_DEVICE_WAIT_MS;
    while (!first_interface(name, sizeof name) && now_ms() < until)
        pause_ms(10);
    int fd = name[0] ? socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0) : -1;
    if (fd < 0)
        return;
    int rc = interface_up(fd, name) < 0 ? fail_sys(&f, errno, "bring %s up", name)
                                        : dhcp_get(name, &l, &f);
    (void)close(fd);
    if (rc < 0) {
        console_say("%s", f.text);
        return;
    }
    memcpy(c->ip, l.ip, sizeof c->ip);
    memcpy(c->gw, l.gw, sizeof c->gw);
    memcpy(c->dns, l.dns, sizeof c->dns);
    c->prefix = l.prefix;
    c->mtu = l.mtu;
    console_say("%s: %s/%u by DHCP", name, l.ip, l.prefix);
}

int network_up(const struct cmdline *c, struct fail *f)
{
    char name[IFNAMSIZ] = "";
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail_sys(f, errno, "network");
    (void)interface_up(fd, "lo");
    int rc = 0;
    if (c->ip[0]) {
        int64_t until = now_ms() + DEVICE_WAIT_MS;
        while (!first_interface(name, sizeof name) && now_ms() < until)
            pause_ms(10);
        rc = name[0] ? configure(fd, name, c, f)
                     : fail_set(f, FAIL_SYSTEM, "no network interface appeared");
    }
    (void)close(fd);
    return rc;
}

/* --- disks and the port --- */

/* The block device whose virtio serial is @serial, as a path in /dev. */
static bool find_disk(const char *serial, char *out, size_t size)
{
    DIR *d = opendir("/sys/block");
    bool found = false;
    const struct dirent *e;
    while (d && !found && (e = readdir(d))) {
        char path[300];
        struct text t = {0};
        if (e->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof path, "/sys/block/%s/serial", e->d_name);
        if (read_file(path, 256, &t) == 0) {
            t.p[strcspn(t.p, "\n")] = 0;
            found = strcmp(t.p, serial) == 0;
        }
        text_release(&t);
        if (found)
            (void)snprintf(out, size, "/dev/%s", e->d_name);
    }
    if (d)
        (void)closedir(d);
    return found;
}

/* The partition whose name (in a GPT) is @name, as a path in /dev. */
static bool find_partition(const char *name, char *out, size_t size)
{
    DIR *d = opendir("/sys/class/block");
    bool found = false;
    const struct dirent *e;
    while (d && !found && (e = readdir(d))) {
        char path[300], line[96];
        struct text t = {0};
        if (e->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof path, "/sys/class/block/%s/uevent", e->d_name);
        (void)snprintf(line, sizeof line, "\nPARTNAME=%s\n", name);
        found = read_file(path, 4096, &t) == 0 && strstr(t.p, line);
        text_release(&t);
        if (found)
            (void)snprintf(out, size, "/dev/%s", e->d_name);
    }
    if (d)
        (void)closedir(d);
    return found;
}

/* What `root=` names, once it is there. */
static int wait_root(const char *root, char *out, size_t size, struct fail *f)
{
    static const char label[] = "PARTLABEL=";
    bool by_label = strncmp(root, label, sizeof label - 1) == 0;
    if (!by_label && strncmp(root, "/dev/", 5) != 0)
        return fail_set(f, FAIL_SYSTEM, "root=%s: neither PARTLABEL=NAME nor /dev/NAME", root);
    int64_t until = now_ms() + DEVICE_WAIT_MS;
    if (!by_label)
        (void)snprintf(out, size, "%s", root);
    while ((by_label && !find_partition(root + sizeof label - 1, out, size)) ||
           access(out, F_OK) < 0) {
        if (now_ms() >= until)
            return fail_set(f, FAIL_SYSTEM, "root=%s did not appear", root);
        pause_ms(10);
    }
    return 0;
}

static int wait_disk(const char *serial, char *out, size_t size, struct fail *f)
{
    int64_t until = now_ms() + DEVICE_WAIT_MS;
    while (!find_disk(serial, out, size) || access(out, F_OK) < 0) {
        if (now_ms() >= until)
            return fail_set(f, FAIL_SYSTEM, "no disk with the serial \"%s\" appeared", serial);
        pause_ms(10);
    }
    return 0;
}

int disk_mount(const char *serial, const char *at, unsigned long flags, const char *options,
               struct fail *f)
{
    char dev[300];
    if (wait_disk(serial, dev, sizeof dev, f) < 0)
        return -1;
    if (mkdir(at, 0755) < 0 && errno != EEXIST)
        return fail_sys(f, errno, "make %s", at);
    if (mount(dev, at, "ext4", flags, options) < 0)
        return fail_sys(f, errno, "mount disk \"%s\"", serial);
    return 0;
}

static int find_port(void)
{
    DIR *d = opendir("/sys/class/virtio-ports");
    int fd = -1;
    const struct dirent *e;
    while (d && fd < 0 && (e = readdir(d))) {
        char path[300];
        struct text t = {0};
        if (e->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", e->d_name);
        if (read_file(path, 256, &t) == 0 && strcspn(t.p, "\n") == strlen(FRAME_PORT_NAME) &&
            strncmp(t.p, FRAME_PORT_NAME, strlen(FRAME_PORT_NAME)) == 0) {
            (void)snprintf(path, sizeof path, "/dev/%s", e->d_name);
            fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
        }
        text_release(&t);
    }
    if (d)
        (void)closedir(d);
    return fd;
}

int port_open(int64_t wait_ms)
{
    int64_t until = now_ms() + wait_ms;
    int fd;
    while ((fd = find_port()) < 0 && now_ms() < until)
        pause_ms(10);
    return fd;
}

bool port_connected(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) >= 0 && !(p.revents & (POLLHUP | POLLERR));
}

/* --- modes --- */

static int move_to(const char *from, const char *to)
{
    if (mkdir(to, 0755) < 0 && errno != EEXIST)
        return -1;
    return mount(from, to, NULL, MS_MOVE, NULL);
}

/* Makes the mounted folder @at the root, with proc, sys and dev in it. */
static int switch_root(const char *at, struct fail *f)
{
    if (chdir(at) < 0)
        return fail_sys(f, errno, "enter %s", at);
    static const char *const names[] = {"proc", "sys", "dev"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char from[16];
        (void)snprintf(from, sizeof from, "/%s", names[i]);
        if (move_to(from, names[i]) < 0)
            return fail_sys(f, errno, "move %s", from);
    }
    if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        return fail_sys(f, errno, "switch to the new root");
    return 0;
}

static int open_host(struct chan *c, struct fail *f)
{
    int fd = port_open(DEVICE_WAIT_MS);
    if (fd < 0)
        return fail_set(f, FAIL_SYSTEM, "no virtio-serial port %s", FRAME_PORT_NAME);
    while (!port_connected(fd))
        pause_ms(10);
    (void)fcntl(fd, F_SETFL, 0); /* a write that waits is how output is held back */
    chan_init(c, fd, FRAME_REQUEST_MAX);
    return 0;
}

/* Lets itself be saved while it has seen nothing but its own program. @r: what it goes on with. */
static int park_before_disks(struct chan *c, struct resume *r, struct fail *f)
{
    if (open_host(c, f) < 0 || park(c, r, f) < 0)
        return -1;
    resume_apply(r);
    load_module(DISK_MODULE);
    return 0;
}

/* The initramfs cannot be pivoted away from; a tmpfs in its place can. */
static int build_mode(bool parks, struct fail *f)
{
    char output[300];
    struct chan c;
    struct resume r;
    if (parks && park_before_disks(&c, &r, f) < 0)
        return -1;
    if (mkdir("/new", 0755) < 0 || mount("tmpfs", "/new", "tmpfs", 0, "mode=755") < 0)
        return fail_sys(f, errno, "make the agent's root");
    if (disk_mount("lower", "/new/lower", MS_RDONLY | MS_NOATIME, "noload", f) < 0 ||
        disk_mount("scratch", "/new/scratch", MS_NOATIME, NULL, f) < 0 ||
        wait_disk("output", output, sizeof output, f) < 0 || switch_root("/new", f) < 0)
        return -1;
    if (!parks && open_host(&c, f) < 0)
        return -1;
    struct fail none;
    if (groups_mount("/groups", &none) < 0) /* the build goes on and says that it has none */
        console_say("%s", none.text);
    struct build_mode m = {.groups = "/groups",
                           .lower = "/lower",
                           .scratch = "/scratch",
                           .output = output,
                           .drives = "/drives",
                           .machine = true,
                           .resumed = parks ? &r : NULL};
    (void)build_loop(&m, &c);
    (void)poll(NULL, 0, 100); /* what is in the port's ring does not survive the machine */
    chan_release(&c);
    (void)!chdir("/");
    (void)umount2("/scratch", 0);
    return 0;
}

static int mount_root(const char *root, const char *at, struct fail *f)
{
    char dev[300] = "";
    if (!root[0])
        return disk_mount("root", at, 0, NULL, f);
    if (wait_root(root, dev, sizeof dev, f) < 0)
        return -1;
    if (mkdir(at, 0755) < 0 && errno != EEXIST)
        return fail_sys(f, errno, "make %s", at);
    if (mount(dev, at, "ext4", 0, NULL) < 0)
        return fail_sys(f, errno, "mount root=%s (%s)", root, dev);
    return 0;
}

static int boot_mode(const struct cmdline *c, struct fail *f)
{
    int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (mount_root(c->root, "/newroot", f) < 0 || switch_root("/newroot", f) < 0)
        return -1;
    char name[] = "capsule-agent", word[] = "init";
    char *const argv[] = {name, word, NULL};
    char *const env[] = {NULL};
    (void)execve("/.capsule/agent", argv, env);
    if (self >= 0)
        (void)fexecve(self, argv, env);
    return fail_sys(f, errno, "start /.capsule/agent");
}

static void mount_kernel_files(void)
{
    (void)mkdir("/proc", 0755);
    (void)mkdir("/sys", 0755);
    (void)mkdir("/dev", 0755);
    (void)mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    (void)mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    (void)mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755");
}

_Noreturn void guest_main(void)
{
    struct cmdline c;
    struct fail f = {0};
    (void)umask(022);
    mount_kernel_files();
    int console = open("/dev/console", O_RDWR | O_NOCTTY);
    for (int i = 0; console >= 0 && i < 3; i++)
        (void)dup2(console, i);
    if (console > 2)
        (void)close(console);
    cmdline_read(&c);
    if (strcmp(c.mode, "probe") == 0) {
        console_say("probe ok");
        machine_end(&c);
    }
    bool parks = c.park && strcmp(c.mode, "build") == 0 && access(DISK_MODULE, F_OK) == 0;
    load_modules(c.root[0] != 0, !parks);
    int rc;
    if (strcmp(c.mode, "build") == 0) {
        rc = network_up(&c, &f);
        if (rc == 0)
            rc = build_mode(parks, &f);
    } else if (strcmp(c.mode, "boot") == 0) {
        rc = boot_mode(&c, &f); /* the network is the booted agent's */
    } else {
        rc = fail_set(&f, FAIL_SYSTEM, "capsule.mode=%s: not one of build, boot, probe", c.mode);
    }
    if (rc < 0)
        console_say("%s", f.text);
    machine_end(&c);
}
