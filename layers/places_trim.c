/* Records of where layers' bytes lie whose image is gone. */
#include "layers/layer_places_private.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static const char *const folders[PREFIX_FOLDER_N] = {"images", "lowers"};

bool places_read_head(int fd, struct places_head *h)
{
    return cb_pread_all(fd, h, sizeof(*h), 0, NULL) == 0 &&
           memcmp(h->magic, PLACES_MAGIC, sizeof(h->magic)) == 0 && h->folder < PREFIX_FOLDER_N &&
           h->spans <= PLACES_SPANS_MAX;
}

int places_open_image(struct store *s, const struct places_head *h, struct stat *st)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&h->name, hex);
    CB_AUTO_FREE char *rel = cb_xasprintf("%s/%s.ext4", folders[h->folder], hex);
    CB_AUTO_FD fd = openat(s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB) < 0 || fstat(fd, st) < 0 || !S_ISREG(st->st_mode))
        return -1;
    return cb_take_fd(&fd);
}

static void remove_layer(struct store *s, const char *name, size_t stem)
{
    static const char *const kinds[] = {"places", "rest", "index"};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        CB_AUTO_FREE char *rel = cb_xasprintf(PLACES_FOLDER "/%.*s.%s", (int)stem, name, kinds[i]);
        (void)unlinkat(s->root, rel, 0);
    }
}

void places_trim(struct store *s)
{
    CB_AUTO_FREE char *folder = cb_xasprintf("%s/" PLACES_FOLDER, s->dir);
    CB_AUTO_DIR d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        const char *dot = strchr(e->d_name, '.');
        struct places_head h;
        struct stat st;
        if (!dot || dot == e->d_name || strcmp(dot, ".places") != 0)
            continue;
        CB_AUTO_FD fd = openat(dirfd(d), e->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        bool good = fd >= 0 && places_read_head(fd, &h);
        CB_AUTO_FD image = good ? places_open_image(s, &h, &st) : -1;
        if (image < 0 || st.st_ino != h.files[IMAGE].ino)
            remove_layer(s, e->d_name, (size_t)(dot - e->d_name));
    }
}
