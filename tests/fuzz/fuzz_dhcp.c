/* What a network sends to a machine that asks for an address. */
#include "builder/agent/agent.h"

#include <arpa/inet.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t mac[6] = {0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
    struct dhcp_lease l;
    struct in_addr a;
    if (!dhcp_parse(data, size, 0x01020304, mac, &l))
        return 0;
    if (l.prefix > 32 || inet_pton(AF_INET, l.ip, &a) != 1 ||
        (l.gw[0] && inet_pton(AF_INET, l.gw, &a) != 1) ||
        (l.dns[0] && inet_pton(AF_INET, l.dns, &a) != 1))
        abort();
    return 0;
}
