/* What QEMU's monitor may say: all of it lies ready, and every call ends. */
#include "builder/qmp.h"

#include "fuzz_check.h"
#include "support/cleanup.h"

#include <sys/socket.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int pair[2];
    if (size > 60000 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return 0;
    CB_AUTO_FD ours = pair[0];
    CB_AUTO_FD theirs = pair[1];
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    must(size == 0 || send(theirs, data, size, MSG_DONTWAIT) == (ssize_t)size);
    (void)shutdown(theirs, SHUT_WR);
    struct qmp *q = NULL;
    int rc = qmp_open(ours, 1000, &q, &err);
    must((rc == 0) == (q != NULL) && (rc == 0 || err.code != CB_E_BUG));
    if (rc == 0) {
        must(qmp_version(q)[0]);
        rc = qmp_save(q, -1, 1000, &err);
        must(rc == 0 || err.code != CB_E_BUG);
    }
    qmp_close(q);
    return 0;
}
