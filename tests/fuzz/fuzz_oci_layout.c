/* An OCI layout's own two files: the first byte chooses which. */
#include "fuzz_check.h"
#include "schemas/oci.h"

#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct oci_manifest m;
    size_t at = 0;
    if (size == 0)
        return 0;
    const char *text = (const char *)data + 1;
    if (data[0] & 1) {
        if (oci_layout_check(text, size - 1, &err) < 0)
            must(err.msg != NULL);
        return 0;
    }
    if (oci_manifest_parse(text, size - 1, NULL, &m, &err) < 0)
        return 0;
    for (size_t i = 0; i < m.n_layers; i++) {
        const char *name = m.layers[i].ref_name;
        must(!name || *name);
        if (m.kind == OCI_KIND_INDEX && oci_entry_is_image(&m.layers[i]))
            must(!m.layers[i].attestation);
    }
    if (m.kind == OCI_KIND_INDEX && oci_index_select(&m, "amd64", &at, &err) == 0)
        must(at < m.n_layers && oci_entry_is_image(&m.layers[at]));
    oci_manifest_release(&m);
    return 0;
}
