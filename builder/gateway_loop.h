/* gateway_loop: what the parts of the gateway's process share. All of it lives in one piece of
 * zeroed memory of a fixed size: nothing is allocated while it runs. Private to
 * builder/gateway*.c. */
#pragma once

#include "builder/gateway.h"
#include "builder/gateway_dns.h"
#include "builder/gateway_peek.h"

#include <netinet/in.h>

enum {
    CONNECTIONS_MAX = 512,
    BUFFER = PEEK_MAX,
    FLOWS_MAX = 256,
    ASKED_MAX = 128,
    NAMES_MAX = 4096,
    SEEN_MAX = 512,
    TRIED_MAX = 8,
    PACKET_MAX = 65536,
    ANSWER_HEAD = 12, /* "HTTP/1.1 200" */
};

/* ---- which address was given for which name ---- */

struct given {
    uint32_t address;
    int64_t until_ms; /* 0: free */
    char name[HOST_NAME_MAX_LEN + 1];
};

/* ---- TCP ---- */

struct stream { /* one direction */
    uint32_t at, len;
    bool eof;  /* nothing more comes */
    bool shut; /* and the other side was told */
    uint8_t data[BUFFER];
};

enum conn_state {
    CONN_FREE,
    CONN_DNS,      /* questions over TCP: no other side */
    CONN_GREETING, /* what the client says first has not been judged; nothing of it is passed on */
    CONN_OPEN,
    CONN_DEAD, /* freed when the round of events is over */
};

struct conn {
    enum conn_state state;
    int client, server;
    bool connecting, reported;
    bool proxy; /* the server is the proxy of the settings */
    uint32_t address;
    uint16_t port;
    uint32_t generation;
    uint32_t tried[TRIED_MAX]; /* addresses of the server that did not answer */
    size_t n_tried;
    uint32_t client_events, server_events; /* that epoll waits for */
    struct peeked peeked;
    bool asked;   /* for a tunnel: whether what follows is judged depends on the answer */
    bool carried; /* a request that was none for a tunnel: its answer may come after one */
    uint8_t n_heard;
    char heard[ANSWER_HEAD]; /* of the answer */
    uint64_t left; /* OPEN: bytes from the client until it is judged again; PEEK_ALL: never */
    struct stream up, down; /* from the client, to the client */
};

/* ---- UDP ---- */

struct flow {
    bool used;
    int fd;
    uint32_t inside, address; /* host byte order */
    uint16_t inside_port, port;
    int64_t spoke_ms;
};

/* ---- names ---- */

struct asked { /* a question that the resolver has */
    bool used;
    uint16_t id; /* of ours */
    int64_t since_ms;
    int conn; /* -1: by UDP */
    uint32_t generation;
    struct sockaddr_in from, to; /* by UDP: who asked whom */
    struct dns_question question;
    uint8_t query[512];
    size_t query_len;
};

enum io_kind { IO_CONTROL, IO_LISTENER, IO_TUN, IO_RESOLVER, IO_CLIENT, IO_SERVER, IO_FLOW };

struct loop {
    const struct gateway_spec *spec;
    const struct gateway_policy *policy;
    bool open_policy; /* gateway_policy_open() of it */
    int ep, control, listener, tun, resolver;
    bool listening; /* epoll waits for the listener: there is a free connection */
    int64_t now_ms;
    uint32_t lost;
    struct gateway_report seen[SEEN_MAX];
    size_t n_seen;
    struct given given[NAMES_MAX];
    struct asked asked[ASKED_MAX];
    struct flow flows[FLOWS_MAX];
    uint8_t packet[PACKET_MAX], answer[PACKET_MAX];
    size_t n_conns; /* of these, how many the limit on open files leaves */
    struct conn conns[CONNECTIONS_MAX];
};

/* gateway_sandbox.c */
/* After it no call but those of the loop is possible. Needs no_new_privs. */
void gateway_confine(void);

/* gateway_main.c */
/* Never returns. All descriptors are open; @control is the end that the job does not hold. */
void gateway_run(struct loop *g) __attribute__((noreturn));
void loop_watch(struct loop *g, int op, int fd, uint32_t events, enum io_kind kind, size_t index);
void loop_report(struct loop *g, const struct gateway_report *r);

/* gateway_names.c */
void names_give(struct loop *g, uint32_t address, const char *name, uint32_t ttl);
/* Was it given for that? */
bool names_vouch(const struct loop *g, uint32_t address, const char *name);
/* The verdict on an address: with @claimed, the name that the client itself says ("": none), else
 * by every name that it was given for. @q->name is set to the one that decided, or NULL. */
enum gateway_verdict names_decide(struct loop *g, const char *claimed, struct gateway_question *q);
/* Another address that was given for a name of @address and is none of the @n of @tried; 0: there
 * is none. */
uint32_t names_other(const struct loop *g, uint32_t address, const uint32_t *tried, size_t n);
/* Is the proxy of the settings there? */
bool names_is_proxy(const struct loop *g, uint32_t address, uint16_t port);

/* gateway_resolve.c */
/* A question came: answers it, or asks the resolver. @conn -1: by UDP. */
void resolve_query(struct loop *g, const uint8_t *query, size_t n, int conn,
                   const struct sockaddr_in *from, const struct sockaddr_in *to);
void resolve_readable(struct loop *g);
/* Forgets questions that got no answer. True while there are some. */
bool resolve_tick(struct loop *g);

/* gateway_tcp.c */
void tcp_accept(struct loop *g);
void tcp_event(struct loop *g, size_t index, bool client, uint32_t events);
/* After a round of events. */
void tcp_sweep(struct loop *g);
/* Another policy holds. */
void tcp_judge_again(struct loop *g);
/* An answer for a question of connection @index. */
void tcp_answer(struct loop *g, size_t index, uint32_t generation, const uint8_t *p, size_t n);

/* gateway_udp.c */
struct datagram {
    struct sockaddr_in from, to;
    const uint8_t *data;
    size_t n;
    const uint8_t *packet; /* all of it, for a refusal */
    size_t header;
};
/* Reads a packet of the tunnel: false when it is no whole UDP datagram in IPv4. @out borrows it. */
bool udp_read_packet(const uint8_t *p, size_t n, struct datagram *out);
void udp_tunnel_readable(struct loop *g);
void udp_flow_readable(struct loop *g, size_t index);
/* A datagram into the build's namespace. */
void udp_send(struct loop *g, const struct sockaddr_in *from, const struct sockaddr_in *to,
              const uint8_t *p, size_t n);
bool udp_tick(struct loop *g);
void udp_judge_again(struct loop *g);
