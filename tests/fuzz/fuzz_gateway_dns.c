#include "builder/gateway_dns.h"

#include "fuzz_check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The first bytes are a query, the rest its reply: [length of the query, 2 bytes] query reply. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dns_question q, again;
    struct dns_reply r;
    uint8_t out[DNS_MESSAGE_MAX];
    size_t n = size < 2 ? 0 : (size_t)data[0] << 8 | data[1];
    if (size < 2 || n > size - 2)
        return 0;
    const uint8_t *query = data + 2, *reply = query + n;
    int code = dns_read_question(query, n, &q);
    if (code < 0)
        return 0;
    size_t len = dns_write_code(query, &q, code, out, 512);
    must(len >= 12 && len <= 512);
    if (code)
        return 0;
    must(q.name[0] && strlen(q.name) <= HOST_NAME_MAX_LEN && q.end <= n);
    len = dns_write_query(query, &q, 1, out, sizeof(out));
    must(len && dns_read_question(out, len, &again) == 0 && strcmp(again.name, q.name) == 0);
    if (dns_read_reply(reply, size - 2 - n, q.id, &q, &r)) {
        must(r.n <= DNS_ADDRESSES_MAX);
        len = dns_write_addresses(query, &q, r.addresses, r.n, r.ttl, out, 512);
        must(len >= 12 && len <= 512);
    }
    return 0;
}
