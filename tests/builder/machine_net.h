/* What a builder's network must and must not reach, asked of the stub agent inside. */
#pragma once

#include "machine_check.h"

#include <arpa/inet.h>

/* A listener on this machine's loopback. */
static inline int machine_listen(uint16_t *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s, (const struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(s, 8), 0);
    assert_int_equal(getsockname(s, (struct sockaddr *)&a, &n), 0);
    *port = ntohs(a.sin_port);
    return s;
}

static inline void machine_unreachable(int fd, const char *address, uint16_t port)
{
    CB_AUTO_FREE char *question = cb_xasprintf("tcp %s %u", address, port);
    CB_AUTO_FREE char *answer = machine_ask(fd, question);
    if (strncmp(answer, "errno ", 6) != 0)
        fail_msg("%s: %s", question, answer);
}

/* The mirror's host resolves and answers; this machine's loopback and link-local addresses do not.
 */
static inline void machine_check_network(int fd, const struct settings *settings, const char *dns,
                                         bool qemu)
{
    CB_AUTO_FREE char *host = cb_xstrdup(strstr(settings->debian_mirror, "://") + 3);
    host[strcspn(host, "/:")] = '\0';
    CB_AUTO_FREE char *question = cb_xasprintf("dns %s %s", dns, host);
    CB_AUTO_FREE char *address = machine_ask(fd, question);
    CB_AUTO_FREE char *http = cb_xasprintf("http %s 80 %s", address, host);
    CB_AUTO_FREE char *status = machine_ask(fd, http);
    if (strncmp(status, "HTTP/1.", 7) != 0)
        fail_msg("%s (%s): %s", http, question, status);
    uint16_t port;
    CB_AUTO_FD listener = machine_listen(&port);
    /* the last two exist inside QEMU's user network alone; elsewhere they would be other people's
     */
    static const char *const ways[] = {"127.0.0.1", "10.0.2.2", "10.0.2.100",
                                       "0.0.0.0",   "10.0.5.2", "10.0.5.15"};
    for (size_t i = 0; i < (qemu ? 6u : 4u); i++)
        machine_unreachable(fd, ways[i], port);
    machine_unreachable(fd, "169.254.169.254", 80);
    machine_unreachable(fd, "169.254.1.1", 80);
    struct pollfd w = {.fd = listener, .events = POLLIN};
    assert_int_equal(poll(&w, 1, 0), 0);
}
