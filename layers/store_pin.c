/* Several processes in one store: who deletes, and what may not be deleted because somebody alive
 * relies on it.
 *
 * `lock` is held shared (flock) while a process finds something and writes down that it uses it, or
 * publishes what refers to other things; a garbage collection holds it alone from the moment when
 * it looks to the moment when it has deleted. What a process uses stands in the file `pins` of its
 * folder in tmp/, and counts for as long as that folder's lock is held: until the process closes
 * the store or dies, however it dies. A pin is a protection and no promise: one that cannot be
 * written (a full disk) only means that a collection at that very time could make this process
 * begin anew. */
#include "layers/store_private.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

void (*store_step_hook)(const char *what);

static int flock_wait(int fd, int how)
{
    int r;
    do {
        r = flock(fd, how);
    } while (r < 0 && errno == EINTR);
    return r;
}

void store_share(struct store *s)
{
    (void)pthread_mutex_lock(&s->share_lock);
    if (s->sharers++ == 0) {
        if (s->share_fd >= 0 && s->share_pid != getpid()) { /* forked: the lock is our parent's */
            cb_close(s->share_fd);
            s->share_fd = -1;
        }
        if (s->share_fd < 0) /* where it cannot be made, nothing can be deleted either */
            s->share_fd =
                openat(s->root, "lock", O_RDONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
        s->share_pid = getpid();
        if (s->share_fd >= 0)
            (void)flock_wait(s->share_fd, LOCK_SH);
    }
    (void)pthread_mutex_unlock(&s->share_lock);
}

void store_unshare(struct store *s)
{
    int saved = errno;
    (void)pthread_mutex_lock(&s->share_lock);
    if (--s->sharers == 0 && s->share_fd >= 0)
        (void)flock_wait(s->share_fd, LOCK_UN);
    (void)pthread_mutex_unlock(&s->share_lock);
    errno = saved;
}

int store_lock_alone(struct store *s, struct cb_error *err)
{
    CB_AUTO_FD fd = openat(s->root, "lock", O_RDONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0 || flock_wait(fd, LOCK_EX) < 0)
        return cb_fail_sys(err, errno, "lock the store %s", s->dir);
    return cb_take_fd(&fd);
}

/* Called with share_lock held. The file is opened each time: an open one would keep whoever wants
 * to from mounting the disk read-only. */
static void write_pin(struct store *s, const char *line)
{
    CB_AUTO_FREE char *rel = store_session_path(s, "pins");
    CB_AUTO_FD fd =
        rel ? openat(s->root, rel, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0644)
            : -1;
    if (fd >= 0)
        (void)cb_write_all(fd, line, strlen(line), NULL);
    if (s->pins_pid != getpid()) { /* forked: our parent's are in another file */
        digest_set_release(&s->pinned);
        s->pins_pid = getpid();
    }
}

void store_pin_version(struct store *s, const char *name, uint64_t version)
{
    CB_AUTO_FREE char *line = cb_xasprintf("version %s %llu\n", name, (unsigned long long)version);
    (void)pthread_mutex_lock(&s->share_lock);
    write_pin(s, line);
    (void)pthread_mutex_unlock(&s->share_lock);
}

void store_pin(struct store *s, enum store_pin kind, const struct cb_digest *d)
{
    static const char *const words[] = {
        [PIN_BLOB] = "blob", [PIN_IMAGE] = "image", [PIN_LOWER] = "lower"};
    struct cb_digest id = *d; /* one set for all kinds */
    id.b[CB_SHA256_LEN - 1] ^= (uint8_t)kind;
    (void)pthread_mutex_lock(&s->share_lock);
    if (s->pins_pid != getpid() || !digest_set_find(&s->pinned, &id, NULL)) {
        char hex[CB_HEX_LEN + 1], line[CB_HEX_LEN + 16];
        cb_digest_hex(d, hex);
        (void)snprintf(line, sizeof(line), "%s %s\n", words[kind], hex);
        write_pin(s, line);
        (void)digest_set_add(&s->pinned, &id, 0);
    }
    (void)pthread_mutex_unlock(&s->share_lock);
}

/* -- reading what others wrote -- */

static void read_pins(int dir, store_pin_fn fn, void *arg)
{
    CB_AUTO_FD fd = openat(dir, "pins", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    if (fd < 0 || cb_read_fd(fd, "pins", (size_t)1 << 30, &text, NULL) < 0 || !text.data)
        return;
    char *rest = text.data;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
        if (!rest)
            break; /* no newline behind it: not whole, so what it is for did not happen yet */
        fn(arg, line);
    }
}

/* Chunk maps of images that are being stored: their chunks are pinned with them. */
static void read_maps(int dir, store_map_fn fn, void *arg)
{
    int walk = dup(dir);
    CB_AUTO_DIR d = walk < 0 ? NULL : fdopendir(walk);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        const char *dash = strchr(e->d_name, '-');
        if (!dash || strcmp(dash, "-" STORE_PINNED_MAP) != 0)
            continue;
        CB_AUTO_FD fd = openat(dir, e->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        CB_AUTO_BUF text = CB_BUF_INIT(0);
        CB_AUTO_CHUNK_MAP map = {0};
        if (fd >= 0 && cb_read_fd(fd, e->d_name, STORE_MAP_MAX, &text, NULL) == 0 &&
            chunk_map_parse(text.data ? text.data : "", text.len, &map, NULL) == 0)
            fn(arg, &map);
    }
}

void store_read_pins(struct store *s, store_pin_fn fn, store_map_fn map_fn, void *arg)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/tmp", s->dir);
    CB_AUTO_DIR d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.')
            continue;
        CB_AUTO_FD fd =
            openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB) == 0)
            continue; /* gone, or of a dead one */
        read_pins(fd, fn, arg);
        read_maps(fd, map_fn, arg);
    }
}
