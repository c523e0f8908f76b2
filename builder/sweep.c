/* build_sweep(): what a killed builder leaves. Processes, mounts and loop devices end with it by
 * themselves (parent-death signals, namespaces, autoclear); control groups and files do not. */
#include "builder/sweep.h"

#include "builder/container.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void container_id(const char *work_dir, char *id)
{
    struct cb_digest d;
    char hex[CB_HEX_LEN + 1];
    cb_sha256(work_dir, strlen(work_dir), &d);
    cb_digest_hex(&d, hex);
    (void)snprintf(id, CONTAINER_ID_LEN + 1, "capsule-build-%.16s", hex);
}

int build_sweep(const char *work_dir, struct cb_error *err)
{
    CB_AUTO_FREE char *dir = realpath(work_dir, NULL);
    if (!dir)
        return errno == ENOENT ? 0 : cb_fail_sys(err, errno, "%s", work_dir);
    char id[CONTAINER_ID_LEN + 1];
    container_id(dir, id);
    container_remove_cgroups(id);
    loop_detach_under(dir);
    int rc = cb_remove_tree(dir, err);
    return rc < 0 ? cb_wrap(err, "clean up %s", dir) : 0;
}
