#include "layers/registry_auth.h"

#include "fuzz_check.h"
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What a file of docker's or podman's gives may stand in a header and behind
 * "docker-credential-". */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    enum auth_file_kind kind = (enum auth_file_kind)(data[0] % 3);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct auth_file_answer a;
    int rc =
        auth_file_read((const char *)data + 1, size - 1, kind, "file", "h", "team/app", &a, &err);
    must(rc == 0 || (rc == -CB_E_CONFIG && err.msg));
    if (rc < 0)
        return 0;
    const char *const values[] = {a.credentials.username, a.credentials.password,
                                  a.credentials.identity, a.credentials.token};
    for (size_t i = 0; i < 4; i++)
        must(!values[i] || !strpbrk(values[i], "\r\n"));
    must(!a.credentials.username == !a.credentials.password);
    must(!a.helper || (*a.helper && !strpbrk(a.helper, "/ \r\n")));
    auth_file_answer_release(&a);
    return 0;
}
