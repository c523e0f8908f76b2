/* A .gitmodules of a stranger's repository, and what its URLs come to. */
#include "schemas/git_source.h"
#include "support/cleanup.h"

#include "fuzz_check.h"
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void follow(const char *parent, const char *url)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *got = NULL;
    if (git_module_url(parent, url, &got, &err) < 0) {
        must(err.code == CB_E_UNTRUSTED && !got);
        return;
    }
    must(git_url_valid(got) && !git_url_has_password(got));
    must(strncmp(got, "file:", 5) != 0 || strncmp(parent, "file:", 5) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct git_modules m;
    if (git_modules_parse((const char *)data, size, &m, &err) < 0) {
        must((err.code == CB_E_CORRUPT || err.code == CB_E_LIMIT) && m.n == 0 && !m.v);
        return 0;
    }
    must(m.n <= GIT_MODULES_MAX);
    for (size_t i = 0; i < m.n; i++) {
        if (!m.v[i].url)
            continue;
        follow("https://h.example/o/a.git", m.v[i].url);
        follow("git@h.example:o/a", m.v[i].url);
        follow("file:///a/b", m.v[i].url);
    }
    git_modules_release(&m);
    return 0;
}
