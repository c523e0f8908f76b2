#include "schemas/oci.h"

#include "fuzz_check.h"
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The first byte chooses the Content-Type that the document comes with. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const types[] = {NULL,           OCI_INDEX,       OCI_MANIFEST,
                                        DOCKER_LIST,    DOCKER_MANIFEST, "application/json",
                                        "text/plain;x="};
    if (size == 0)
        return 0;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct oci_manifest m;
    const char *type = types[data[0] % (sizeof(types) / sizeof(types[0]))];
    if (oci_manifest_parse((const char *)data + 1, size - 1, type, &m, &err) < 0)
        return 0;
    if (m.kind == OCI_KIND_INDEX) {
        size_t at = 0;
        if (oci_index_select(&m, "amd64", &at, &err) == 0)
            must(at < m.n_layers && !m.layers[at].attestation);
    } else {
        must(m.config.media_type);
    }
    oci_manifest_release(&m);
    return 0;
}
