/* A plain main for a fuzz target: runs every file of the folders given, so that the corpus is a
 * test wherever libFuzzer is not. */
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
    size_t n = 0;
    for (int i = 1; i < argc; i++) {
        CB_AUTO_DIR d = opendir(argv[i]);
        if (!d) {
            fprintf(stderr, "%s: cannot be opened\n", argv[i]);
            return 1;
        }
        struct dirent *e;
        while ((e = readdir(d)) != NULL) {
            if (e->d_name[0] == '.')
                continue;
            CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", argv[i], e->d_name);
            CB_AUTO_BUF b = CB_BUF_INIT(0);
            CB_AUTO_ERROR err = CB_ERROR_INIT;
            if (cb_read_file(path, 64u << 20, &b, &err) < 0) {
                fprintf(stderr, "%s\n", err.msg);
                return 1;
            }
            /* a copy of the exact size, so that a read past the end is seen */
            uint8_t *exact = cb_xmemdup(b.data, b.len);
            LLVMFuzzerTestOneInput(exact, b.len);
            free(exact);
            n++;
        }
    }
    printf("%zu inputs\n", n);
    return n ? 0 : 1;
}
