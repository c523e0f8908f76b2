/* probe: asks the start command's port whether it is ready, in a child, so that a server that
 * accepts and says nothing holds nobody up. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROBE_MS 2000
#define LOOK_MS 20             /* between two looks at the sockets */
#define LOOK_LATER_MS 100      /* when it takes longer */
#define CONNECT_ANYWAY_MS 1000 /* who forwards a port need not listen on it */
#define SOCKETS_MAX (4u << 20)

static int connect_to(uint16_t port, bool six)
{
    struct sockaddr_in in = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 in6 = {
        .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    int rc = six ? connect(fd, (const struct sockaddr *)&in6, sizeof in6)
                 : connect(fd, (const struct sockaddr *)&in, sizeof in);
    int err = rc < 0 ? errno : 0;
    if (err == EINPROGRESS) {
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        socklen_t len = sizeof err;
        if (poll(&p, 1, PROBE_MS) <= 0)
            err = ETIMEDOUT;
        else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
            err = errno;
    }
    if (err) {
        (void)close(fd);
        errno = err;
        return -1;
    }
    return fd;
}

unsigned http_status(const char *line, size_t n)
{
    if (n < 12 || memcmp(line, "HTTP/1.", 7) != 0 || line[8] != ' ')
        return 0;
    unsigned v = 0;
    for (size_t i = 9; i < 12; i++) {
        if (line[i] < '0' || line[i] > '9')
            return 0;
        v = v * 10 + (unsigned)(line[i] - '0');
    }
    return v;
}

/* The first bytes of the answer, until there is a whole status line. */
static size_t read_answer(int fd, char *buf, size_t size)
{
    size_t n = 0;
    int64_t until = now_ms() + PROBE_MS;
    while (n < size && !memchr(buf, '\n', n)) {
        int64_t left = until - now_ms();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (left <= 0 || poll(&p, 1, (int)left) <= 0)
            break;
        ssize_t got = read(fd, buf + n, size - n);
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    return n;
}

bool probe_once(uint16_t port, const char *path, char *text, size_t size)
{
    int fd = connect_to(port, false);
    int err = errno;
    if (fd < 0)
        fd = connect_to(port, true);
    if (fd < 0) {
        (void)snprintf(text, size, "port %u: %s", port, strerror(err));
        return false;
    }
    if (!path || !*path) {
        (void)close(fd);
        (void)snprintf(text, size, "port %u accepts connections", port);
        return true;
    }
    char request[1024], answer[512];
    int n = snprintf(request, sizeof request,
                     "GET %s HTTP/1.1\r\nHost: localhost:%u\r\nUser-Agent: capsule-agent\r\n"
                     "Accept: */*\r\nConnection: close\r\n\r\n",
                     path, port);
    size_t got = 0;
    if (n > 0 && (size_t)n < sizeof request && write_all(fd, request, (size_t)n) == 0)
        got = read_answer(fd, answer, sizeof answer);
    (void)close(fd);
    unsigned status = http_status(answer, got);
    if (status)
        (void)snprintf(text, size, "GET %.150s on port %u answered %u", path, port, status);
    else
        (void)snprintf(text, size, "GET %.150s on port %u: no HTTP answer", path, port);
    return status >= 200 && status <= 299;
}

/* Lines of /proc/net/tcp and tcp6: "N: ADDRESS:PORT ADDRESS:PORT STATE ...", in hexadecimal. */
bool probe_listens_in(const char *sockets, uint16_t port)
{
    static const char listening[] = "0A";
    for (const char *line = strchr(sockets, '\n'); line; line = strchr(line + 1, '\n')) {
        char local[48], state[4];
        const char *colon;
        if (sscanf(line, " %*[0-9]: %47s %*47s %3s", local, state) == 2 &&
            strcmp(state, listening) == 0 && (colon = strrchr(local, ':')) &&
            strtoul(colon + 1, NULL, 16) == port)
            return true;
    }
    return false;
}

static bool listens(uint16_t port)
{
    static const char *const files[] = {"/proc/net/tcp", "/proc/net/tcp6"};
    bool found = false, known = false;
    for (size_t i = 0; !found && i < ARRAY_LEN(files); i++) {
        struct text t = {0};
        if (read_file(files[i], SOCKETS_MAX, &t) == 0) {
            known = true;
            found = probe_listens_in(t.p ? t.p : "", port);
        }
        text_release(&t);
    }
    return found || !known;
}

bool probe_is_due(struct probe *p, uint16_t port, int64_t now)
{
    if (p->pid || now < p->next_at)
        return false;
    if (listens(port) || now - p->connected_at >= CONNECT_ANYWAY_MS) {
        p->connected_at = now;
        return true;
    }
    p->next_at = now + (now - p->started < 10000 ? LOOK_MS : LOOK_LATER_MS);
    return false;
}

int probe_start(struct probe *p, uint16_t port, const char *path)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        char text[256] = "";
        bool ok = probe_once(port, path, text, sizeof text);
        (void)write_all(fds[1], text, strlen(text));
        _exit(ok ? 0 : 1);
    }
    (void)close(fds[1]);
    if (pid < 0) {
        (void)close(fds[0]);
        return -1;
    }
    p->pid = pid;
    p->fd = fds[0];
    return 0;
}

bool probe_reaped(struct probe *p, int status, bool *changed)
{
    char text[sizeof p->last] = "";
    ssize_t n = read(p->fd, text, sizeof text - 1);
    if (n < 0)
        text[0] = 0;
    (void)close(p->fd);
    p->fd = -1;
    p->pid = 0;
    int64_t now = now_ms();
    p->next_at = now + (now - p->started < 10000 ? 100 : 500);
    *changed = strcmp(text, p->last) != 0;
    memcpy(p->last, text, sizeof text);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
