/* A stand-in for the agent in tests of the machine drivers alone: it comes up as init of a guest or
 * as a container's program, says hello on its channel and then answers one-line questions about
 * what it sees. Static, libc only. */
#define _GNU_SOURCE
#include "stub_guest.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static int channel = -1;
static char cmdline[4096];

static void say(const char *fmt, ...)
{
    char line[2048];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    if (n > (int)sizeof(line) - 2)
        n = (int)sizeof(line) - 2;
    line[n++] = '\n';
    for (int at = 0; at < n;) {
        ssize_t w = write(channel, line + at, (size_t)(n - at));
        if (w <= 0)
            return;
        at += (int)w;
    }
}

static const char *word(const char *key, char *out, size_t size)
{
    const char *p = strstr(cmdline, key);
    snprintf(out, size, "%.*s", p ? (int)strcspn(p + strlen(key), " \n") : 0,
             p ? p + strlen(key) : "");
    return out;
}

static void set_address(int s, struct ifreq *r, int request, const char *address)
{
    struct sockaddr_in *a = (struct sockaddr_in *)(void *)&r->ifr_addr;
    memset(a, 0, sizeof(*a));
    a->sin_family = AF_INET;
    inet_pton(AF_INET, address, &a->sin_addr);
    if (ioctl(s, (unsigned long)request, r) < 0)
        printf("stub: network: %s\n", strerror(errno));
}

static void configure_network(void)
{
    char ip[64], gw[64];
    word("capsule.ip=", ip, sizeof(ip));
    word("capsule.gw=", gw, sizeof(gw));
    if (!*ip)
        return;
    ip[strcspn(ip, "/")] = '\0';
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    ioctl(s, SIOCSIFFLAGS, &lo);
    struct ifreq r = {.ifr_name = "eth0"};
    set_address(s, &r, SIOCSIFADDR, ip);
    set_address(s, &r, SIOCSIFNETMASK, "255.255.255.0");
    r.ifr_flags = IFF_UP | IFF_RUNNING;
    ioctl(s, SIOCSIFFLAGS, &r);
    struct rtentry rt = {.rt_flags = RTF_UP | RTF_GATEWAY};
    struct sockaddr_in any = {.sin_family = AF_INET}, gateway = any;
    inet_pton(AF_INET, gw, &gateway.sin_addr);
    memcpy(&rt.rt_dst, &any, sizeof(any));
    memcpy(&rt.rt_genmask, &any, sizeof(any));
    memcpy(&rt.rt_gateway, &gateway, sizeof(gateway));
    if (ioctl(s, SIOCADDRT, &rt) < 0)
        printf("stub: route: %s\n", strerror(errno));
    close(s);
}

static void init_guest(void)
{
    stub_mount();
    slurp("/proc/cmdline", cmdline, sizeof(cmdline));
    setvbuf(stdout, NULL, _IOLBF, 0);
    char mode[32];
    word("capsule.mode=", mode, sizeof(mode));
    if (strcmp(mode, "probe") == 0) {
        printf("capsule-agent: probe ok\n");
        sync();
        reboot(RB_AUTOBOOT);
    }
    stub_devices();
    configure_network();
    channel = stub_port();
    printf("stub: up in mode %s\n", mode);
}

/* 0, or the errno of a TCP connection that is made within 5 s. */
static int tcp(const char *ip, int port, int *out)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, ip, &a.sin_addr);
    int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), e = 0;
    socklen_t len = sizeof(e);
    if (connect(s, (struct sockaddr *)&a, sizeof(a)) < 0)
        e = errno;
    if (e == EINPROGRESS) {
        struct pollfd w = {.fd = s, .events = POLLOUT};
        if (poll(&w, 1, 5000) <= 0)
            e = ETIMEDOUT;
        else
            getsockopt(s, SOL_SOCKET, SO_ERROR, &e, &len);
    }
    if (e == 0 && out)
        *out = s;
    else
        close(s);
    return e;
}

/* One A query; "" when there is no answer. */
static void resolve(const char *server, const char *name, char *out, size_t size)
{
    unsigned char q[512] = {0x12, 0x34, 1, 0, 0, 1};
    size_t n = 12;
    *out = '\0';
    for (const char *p = name; *p;) {
        size_t l = strcspn(p, ".");
        q[n++] = (unsigned char)l;
        memcpy(q + n, p, l);
        n += l;
        p += l + (p[l] == '.');
    }
    q[n++] = 0;
    memcpy(q + n, "\0\1\0\1", 4);
    n += 4;
    size_t asked = n;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(53)};
    inet_pton(AF_INET, server, &a.sin_addr);
    for (int tries = 0; tries < 3; tries++) {
        int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        sendto(s, q, asked, 0, (struct sockaddr *)&a, sizeof(a));
        struct pollfd w = {.fd = s, .events = POLLIN};
        unsigned char r[512];
        ssize_t got = poll(&w, 1, 3000) > 0 ? recv(s, r, sizeof(r), 0) : -1;
        close(s);
        for (ssize_t i = (ssize_t)asked; got > 0 && i + 16 <= got;) {
            int type = r[i + 2] << 8 | r[i + 3], len = r[i + 10] << 8 | r[i + 11];
            if (type == 1 && len == 4) {
                snprintf(out, size, "%u.%u.%u.%u", r[i + 12], r[i + 13], r[i + 14], r[i + 15]);
                return;
            }
            i += 12 + len;
        }
    }
}

static void http(const char *ip, int port, const char *host)
{
    int s = -1, e = tcp(ip, port, &s);
    if (e) {
        say("errno %d %s", e, strerror(e));
        return;
    }
    char text[512] = "";
    int n = snprintf(text, sizeof(text), "HEAD / HTTP/1.0\r\nHost: %s\r\n\r\n", host);
    fcntl(s, F_SETFL, 0);
    n = (int)write(s, text, (size_t)n);
    n = (int)read(s, text, sizeof(text) - 1);
    close(s);
    text[n > 0 ? n : 0] = '\0';
    text[strcspn(text, "\r\n")] = '\0';
    say("%s", text);
}

static void disks(void)
{
    DIR *d = opendir("/sys/block");
    struct dirent *e;
    while (d && (e = readdir(d))) {
        char path[512], serial[64], size[64], ro[8];
        if (strncmp(e->d_name, "vd", 2) != 0)
            continue;
        snprintf(path, sizeof(path), "/sys/block/%s/serial", e->d_name);
        slurp(path, serial, sizeof(serial));
        snprintf(path, sizeof(path), "/sys/block/%s/size", e->d_name);
        slurp(path, size, sizeof(size));
        snprintf(path, sizeof(path), "/sys/block/%s/ro", e->d_name);
        slurp(path, ro, sizeof(ro));
        size[strcspn(size, "\n")] = '\0';
        ro[strcspn(ro, "\n")] = '\0';
        serial[strcspn(serial, "\n")] = '\0';
        say("disk %s %s sectors %s ro %s", e->d_name, serial, size, ro);
    }
    if (d)
        closedir(d);
    say("end");
}

static void write_to(const char *path, const char *text)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | (strncmp(path, "/dev/", 5) ? O_CREAT : 0), 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0 || fsync(fd) < 0)
        say("errno %d %s", errno, strerror(errno));
    else
        say("ok");
    if (fd >= 0)
        close(fd);
}

/* Accepts one connection and greets it. */
static void serve(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(s, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(s, 1) < 0) {
        say("errno %d %s", errno, strerror(errno));
        return;
    }
    say("listening");
    int c = accept(s, NULL, NULL);
    if (write(c, "hi from the guest\n", 18) < 0)
        perror("write");
    close(c);
    close(s);
}

static void packet_socket(void)
{
    int s = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(3));
    say(s < 0 ? "errno %d" : "opened", errno);
    if (s >= 0)
        close(s);
}

/* The same as a 32-bit program does it: socketcall(SYS_SOCKET, arguments) through int 0x80. */
static void packet_socket32(void)
{
#if defined(__x86_64__)
    static int arguments[3] = {AF_PACKET, SOCK_RAW, 0x300};
    long rc;
    __asm__ volatile("int $0x80"
                     : "=a"(rc)
                     : "a"(102L), "b"(1L), "c"((long)(size_t)arguments)
                     : "memory", "r8", "r9", "r10", "r11");
    say(rc < 0 ? "errno %d" : "opened", (int)-rc);
#else
    say("errno %d", EPERM);
#endif
}

/* A system call by its number and arguments; what none is made for here is 0. A child made by it
 * ends at once. */
static void call(const char *number, const char *arguments)
{
    unsigned long a[4] = {0};
    char *end = NULL;
    for (int i = 0; i < 4 && arguments && *arguments; i++, arguments = end)
        a[i] = strtoul(arguments, &end, 0);
    pid_t own = getpid();
    long rc = syscall(strtol(number, NULL, 0), a[0], a[1], a[2], a[3], 0UL);
    if (rc == 0 && getpid() != own)
        _exit(0);
    say(rc < 0 ? "errno %d" : "done", errno);
}

static void answer(char *line)
{
    char *w[4] = {0};
    char *save = NULL;
    for (int i = 0; i < 4; i++)
        w[i] = strtok_r(i ? NULL : line, i == 2 ? "\n" : " \n", &save);
    char text[1024];
    if (!w[0])
        return;
    if (strcmp(w[0], "tcp") == 0 && w[2]) {
        int e = tcp(w[1], (int)strtol(w[2], NULL, 10), NULL);
        say(e ? "errno %d %s" : "connected", e, strerror(e));
    } else if (strcmp(w[0], "dns") == 0 && w[2]) {
        resolve(w[1], w[2], text, sizeof(text));
        say("%s", *text ? text : "no answer");
    } else if (strcmp(w[0], "http") == 0 && w[2]) {
        char *port = strtok_r(w[2], " ", &save), *host = strtok_r(NULL, " ", &save);
        http(w[1], (int)strtol(port, NULL, 10), host ? host : w[1]);
    } else if (strcmp(w[0], "disks") == 0) {
        disks();
    } else if (strcmp(w[0], "write") == 0 && w[2]) {
        write_to(w[1], w[2]);
    } else if (strcmp(w[0], "read") == 0 && w[1]) {
        ssize_t n = slurp(w[1], text, sizeof(text));
        text[strcspn(text, "\n")] = '\0';
        if (n < 0)
            say("errno %d %s", errno, strerror(errno));
        else
            say("%s", text);
    } else if (strcmp(w[0], "mkdir") == 0 && w[1]) {
        int rc = mkdir(w[1], 0755);
        say(rc < 0 ? "errno %d" : "ok", errno);
    } else if (strcmp(w[0], "serve") == 0 && w[1]) {
        serve((int)strtol(w[1], NULL, 10));
    } else if (strcmp(w[0], "packet") == 0) {
        packet_socket();
    } else if (strcmp(w[0], "packet32") == 0) {
        packet_socket32();
    } else if (strcmp(w[0], "call") == 0 && w[1]) {
        call(w[1], w[2]);
    } else if (strcmp(w[0], "cmdline") == 0) {
        cmdline[strcspn(cmdline, "\n")] = '\0';
        say("%s", cmdline);
    } else if (strcmp(w[0], "uid") == 0) {
        say("uid %d pid %d", (int)getuid(), (int)getpid());
    } else {
        say("what?");
    }
}

int main(int argc, char **argv)
{
    if (argc < 2 && getpid() == 1)
        init_guest();
    else
        channel = 3;
    (void)argv;
    if (strstr(cmdline, "stub.mute"))
        for (;;)
            pause();
    say("hello");
    FILE *f = fdopen(channel, "r+e");
    char line[1024];
    while (f && fgets(line, sizeof(line), f) && strcmp(line, "bye\n") != 0)
        answer(line);
    if (argc < 2) {
        printf("stub: the channel ended\n");
        sync();
        reboot(RB_AUTOBOOT);
    }
    return 0;
}
