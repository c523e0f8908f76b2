/* registry_http: one exchange with one server, over libcurl. Private to layers/.
 *
 * Redirects are followed by hand: credentials and client certificates leave with the first other
 * host, HTTPS never becomes HTTP, and nobody is led to an address of this machine. Bodies are
 * bounded or go to a sink; they are never decoded, because their bytes are hashed. There is no
 * limit on the time in total, but one on the time in which (almost) nothing comes. */
#pragma once

#include "support/buf.h"
#include "support/error.h"

#include <stdbool.h>
#include <stdint.h>

struct http_client; /* a connection that is used again; one thread at a time */
/* @stall_ms: an exchange ends when less than 1 KiB a second came for so long; 0: 30 s. Uploads are
 * given ten times as much, because a registry says nothing while it checks what it got. */
struct http_client *http_client_new(int64_t stall_ms);
void http_client_free(struct http_client *c);

struct http_response {
    long status;
    int64_t length;                                         /* of the body as announced, or -1 */
    int64_t retry_after_s;                                  /* 0: not said */
    int64_t chunk_min;                                      /* OCI-Chunk-Min-Length, or 0 */
    char *content_type, *content_range, *digest, *location; /* owned, NULL when absent */
    char *range, *subject, *etag, *link; /* Range, OCI-Subject, ETag, Link: the same */
    bool google;                         /* Metadata-Flavor: Google */
    struct cb_strv challenges;           /* values of WWW-Authenticate */
    struct cb_strv warnings;             /* texts of Warning: 299 */
    struct cb_buf body;                  /* what did not go to the sink */
    bool unreachable;                    /* no connection came about */
    bool foreign;                        /* from another host, to which a redirect led */
};
#define HTTP_RESPONSE_INIT                                                                         \
    {                                                                                              \
        .length = -1                                                                               \
    }
void http_response_release(struct http_response *r);

/* Whom to trust and who we are, borrowed for the time of the exchange; all may be NULL. */
struct http_tls {
    const char *ca_file;              /* PEM bundle beside the system's certificates */
    const char *ca_pem;               /* the same as text; wins */
    const char *cert_file, *key_file; /* shown to the first host alone */
};

/* What a request carries: @len bytes of memory, or of a file from an offset. */
struct http_body {
    const void *mem; /* NULL: the file */
    int fd;
    uint64_t at, len;
    const char *type;  /* Content-Type */
    const char *range; /* Content-Range, or NULL */
};

struct http_request {
    const char *method; /* NULL: GET */
    const char *url;
    const char *authorization; /* value of the header; leaves with the first other host */
    const char *accept;
    const char *header;           /* one more "Name: value", for the first host alone; or NULL */
    const struct http_body *body; /* POST, PUT and PATCH without one send Content-Length: 0 */
    struct http_tls tls;
    uint64_t from;   /* > 0: only the bytes from there */
    size_t body_max; /* of a 2xx answer without a sink; more is -CB_E_LIMIT */
    bool led;        /* the URL came from an answer: as redirects, not to addresses inside */
    bool direct;     /* by no proxy, and with little patience: the metadata server */
    /* Sink of a 2xx answer's body: begin once, then add. Either may raise, which ends the exchange.
     */
    int (*begin)(void *arg, const struct http_response *r, struct cb_error *err);
    int (*add)(void *arg, const void *p, size_t n, struct cb_error *err);
    /* How many more bytes of the body were sent; negative: they did not count, because the exchange
     * failed or the answer was no success. False: stop. */
    bool (*sent)(void *arg, int64_t delta);
    void *arg;
};
/* 0 when an answer came, whatever its status. Else -CB_E_NET, -CB_E_TIMEOUT, -CB_E_UNTRUSTED (TLS,
 * or a redirect that nobody should follow) or what the sink raised. @r must be fresh. */
int http_exchange(struct http_client *c, const struct http_request *req, struct http_response *r,
                  struct cb_error *err);

/* "host:port" for messages: URLs may carry signatures. Owned. */
char *http_host(const char *url);
/* True for localhost, 127.0.0.0/8 and ::1, with or without a port. */
bool http_host_is_loopback(const char *host);
/* "https://host:443", to tell whether two URLs lead to one place. Owned. */
char *http_origin(const char *url);
/* @location as seen from @url, without a user and not from HTTPS to HTTP (-CB_E_UNTRUSTED). *@out
 * is owned. */
int http_follow(const char *url, const char *location, char **out, struct cb_error *err);

/* The seconds that a Retry-After header means at @now_s (Unix time): a number or a date; 0 when it
 * is neither or past, at most INT32_MAX. */
int64_t http_retry_after(const char *value, int64_t now_s);
/* Content-Range "bytes 5-9/10": true when it is the rest of @size bytes from @from. */
bool http_range_fits(const char *text, uint64_t from, uint64_t size);
/* An upload's Range "0-9": the bytes that have come, 10. False when it is not that. */
bool http_upload_range(const char *text, uint64_t *have);
/* The text of a Warning header with the code 299 (owned), else NULL. */
char *http_warning(const char *value);
