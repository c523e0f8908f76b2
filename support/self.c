#include "support/self.h"

#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *cb_find_beside(const char *name)
{
    char self[CB_PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n <= 0)
        return NULL;
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    if (!slash)
        return NULL;
    *slash = '\0';
    static const char *const folders[] = {"", "/../libexec/capsule-build"};
    for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++) {
        char *path = cb_xasprintf("%s%s/%s", self, folders[i], name);
        if (cb_path_exists(path))
            return path;
        free(path);
    }
    return NULL;
}
