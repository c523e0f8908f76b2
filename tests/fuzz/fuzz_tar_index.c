/* The headers of an archive: whatever is found lies in the file. */
#include "fuzz_check.h"
#include "layers/source.h"
#include "support/cleanup.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"manifest.json", "index.json", "a", "b", "a/layer.tar"};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_index *t = NULL;
    CB_AUTO_FD fd = memfd_create("tar", MFD_CLOEXEC);
    must(fd >= 0 && (size == 0 || write(fd, data, size) == (ssize_t)size));
    if (tar_index_read(fd, size, &t, &err) < 0) {
        must(err.msg != NULL && t == NULL);
        return 0;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        uint64_t at = 0, len = 0;
        if (tar_index_find(t, names[i], &at, &len, &err) == 0)
            must(at <= size && len <= size - at);
        cb_error_clear(&err);
    }
    tar_index_free(t);
    return 0;
}
