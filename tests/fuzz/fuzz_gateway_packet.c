#include "builder/gateway_loop.h"

#include "fuzz_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is taken for a datagram lies within the packet, and has room in front for what a refusal of
 * it quotes. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct datagram d;
    if (!udp_read_packet(data, size, &d))
        return 0;
    must(d.packet == data && d.header >= 20 && d.header + 8 <= size);
    must(d.data >= data + d.header + 8 && d.n <= size - (size_t)(d.data - data));
    return 0;
}
