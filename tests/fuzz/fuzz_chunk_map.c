#include "layers/chunk_map.h"

#include "fuzz_check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is accepted is in order, and is written with the same bytes. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_CHUNK_MAP m = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (chunk_map_parse(data, size, &m, &err) < 0) {
        must(err.code == CB_E_CORRUPT && !m.v);
        return 0;
    }
    must(chunk_size_ok(m.chunk_size) && m.length <= CHUNK_IMAGE_MAX);
    for (size_t i = 0; i < m.n; i++) {
        must(i == 0 || m.v[i].index > m.v[i - 1].index);
        must(m.v[i].index * m.chunk_size < m.length);
        must(chunk_length(&m, m.v[i].index) > 0);
    }
    CB_AUTO_BUF again = CB_BUF_INIT(size);
    must(chunk_map_dump(&m, &again, NULL) == 0);
    must(again.len == size && memcmp(again.data, data, size) == 0);
    return 0;
}
