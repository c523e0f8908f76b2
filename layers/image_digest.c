#include "layers/chunk_map.h"
#include "layers/flatten.h"

#include <errno.h>
#include <sys/stat.h>

int image_digest(int fd, struct cb_digest *out, uint64_t *allocated, struct cb_error *err)
{
    CB_AUTO_CHUNK_MAP map = {0};
    struct stat st;
    int rc = chunk_map_make(fd, CHUNK_SIZE_DEFAULT, &map, err);
    if (rc < 0)
        return rc;
    if (allocated && fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "look at the image");
    chunk_map_digest(&map, out);
    if (allocated)
        *allocated = (uint64_t)st.st_blocks * 512;
    return 0;
}
