/* overlay: the stack of layers in the scratch folder, which is our current folder, so that lowers
 * have short names (mount options end at 4 KiB):
 *
 *     l        link to the image's mounted file system, the lowest
 *     a        the agent's own lower: mount points, resolv.conf, hosts, hostname
 *     u0, u1.. uppers, one a layer; all but the newest are frozen and serve as lowers
 *     p0       an upper that the host made: what a layer left before; becomes its u
 *     r        the upper of a command that may be tried again
 *     w0, w1.. work folders, one a mount
 *     m        where the running layer is mounted
 *     va, vi   views of the lowers with and without `a`, mounted in the process that takes a diff
 * out
 */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LAYERS_MAX 400

static bool is_folder(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* One that another agent made is fine. */
static int make_folder(const struct stack *s, const char *path, struct fail *f)
{
    if (mkdir(path, 0755) < 0 && !(s->used && errno == EEXIST && is_folder(path)))
        return fail_sys(f, errno, "scratch: make %s", path);
    return 0;
}

/* What another agent left: its work folders cannot be used again, the rest can. */
static int take_over(struct stack *s, int layers, struct fail *f)
{
    char name[16];
    s->used = true;
    s->layers = (unsigned)layers;
    for (unsigned i = 0; i < s->layers; i++) {
        (void)snprintf(name, sizeof name, "u%u", i);
        if (!is_folder(name))
            return fail_set(f, FAIL_SYSTEM, "scratch: %s is missing", name);
    }
    do
        (void)snprintf(name, sizeof name, "w%u", s->works++);
    while (is_folder(name));
    s->works--;
    if (unlink("l") < 0 && errno != ENOENT)
        return fail_sys(f, errno, "scratch: replace l");
    return 0;
}

int stack_open(struct stack *s, const char *lower, const char *scratch, int layers, struct fail *f)
{
    *s = (struct stack){.scratch = -1};
    if (chdir(scratch) < 0)
        return fail_sys(f, errno, "scratch folder %s", scratch);
    s->scratch = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->scratch < 0)
        return fail_sys(f, errno, "scratch folder %s", scratch);
    (void)umask(0);
    if (layers > LAYERS_MAX)
        return fail_set(f, FAIL_PROTOCOL, "more than %d layers", LAYERS_MAX);
    if (layers >= 0 && take_over(s, layers, f) < 0)
        return -1;
    if (symlink(lower, "l") < 0)
        return fail_sys(f, errno, "scratch folder %s: it was used before, or cannot be written",
                        scratch);
    static const char *const folders[] = {"a", "m", "va", "vi"};
    for (size_t i = 0; i < ARRAY_LEN(folders); i++)
        if (make_folder(s, folders[i], f) < 0)
            return -1;
    return 0;
}

/* Gives folder @to the attributes of folder @from. */
static int like(const char *from, const char *to, struct fail *f)
{
    int a = open(from, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int b = open(to, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = a < 0 || b < 0 || copy_dir_attributes(a, b) < 0;
    int saved = errno;
    if (a >= 0)
        (void)close(a);
    if (b >= 0)
        (void)close(b);
    return rc ? fail_sys(f, saved, "scratch: copy the attributes of %s", from) : 0;
}

static int own_file(const char *path, const char *content, struct fail *f)
{
    if (write_file(path, content, strlen(content), 0644) < 0)
        return fail_sys(f, errno, "scratch: write %s", path);
    return 0;
}

int stack_own_files(struct stack *s, const char *hostname, const char *dns, struct fail *f)
{
    static const char *const points[] = {"proc", "sys", "dev", "run"};
    char path[64], text[512];
    for (size_t i = 0; i < ARRAY_LEN(points); i++) {
        (void)snprintf(path, sizeof path, "l/%s", points[i]);
        if (is_folder(path))
            continue; /* the image's own serves */
        path[0] = 'a';
        if (make_folder(s, path, f) < 0)
            return -1;
    }
    struct stat st;
    bool no_etc = lstat("l/etc", &st) < 0;
    if (!no_etc && !S_ISDIR(st.st_mode))
        return fail_set(f, FAIL_IMAGE, "the image's /etc is not a folder");
    if (make_folder(s, "a/etc", f) < 0)
        return -1;
    const char *host = hostname && *hostname ? hostname : "localhost";
    (void)snprintf(text, sizeof text, "%s\n", host);
    if (own_file("a/etc/hostname", text, f) < 0)
        return -1;
    (void)snprintf(text, sizeof text,
                   "127.0.0.1\tlocalhost\n127.0.1.1\t%s\n"
                   "::1\tlocalhost ip6-localhost ip6-loopback\n",
                   host);
    if (own_file("a/etc/hosts", text, f) < 0)
        return -1;
    if (dns && *dns) {
        (void)snprintf(text, sizeof text, "nameserver %s\n", dns);
        if (own_file("a/etc/resolv.conf", text, f) < 0)
            return -1;
    }
    if (!no_etc && like("l/etc", "a/etc", f) < 0)
        return -1;
    return like("l/.", "a", f);
}

/* "u3:u2:u1:u0:a:l", from the layer below @count on. */
static void lowers(struct text *t, unsigned count, bool with_own)
{
    char name[16];
    for (unsigned i = count; i-- > 0;) {
        (void)snprintf(name, sizeof name, "u%u:", i);
        text_puts(t, name);
    }
    text_puts(t, with_own ? "a:l" : "l");
}

static int mount_overlay(struct stack *s, const char *at, const struct text *base, bool writable,
                         struct fail *f)
{
    static const char *const extra[] = {
        ",volatile,redirect_dir=nofollow,metacopy=off,index=off",
        ",redirect_dir=nofollow,metacopy=off,index=off",
        ",volatile,userxattr,index=off",
        ",userxattr,index=off",
    };
    int err = EINVAL;
    for (size_t i = 0; i < ARRAY_LEN(extra); i++) {
        bool is_volatile = i % 2 == 0, is_user = i >= 2;
        if ((is_volatile && (!writable || s->plain_options)) || (!is_user && s->user_xattrs))
            continue;
        if (is_user && !s->user_xattrs && err != EPERM)
            break; /* only a user namespace has need of it */
        struct text o = {0};
        text_add(&o, base->p, base->n);
        text_puts(&o, extra[i]);
        if (o.n >= 4096) {
            text_release(&o);
            return fail_set(f, FAIL_COMMAND, "too many layers for one mount");
        }
        int rc = mount("overlay", at, "overlay", writable ? 0 : MS_RDONLY, o.p);
        err = errno;
        text_release(&o);
        if (rc == 0) {
            s->plain_options = s->plain_options || (writable && !is_volatile);
            s->user_xattrs = is_user;
            return 0;
        }
    }
    return fail_sys(f, err, "mount overlay");
}

/* Mounts the layer at "m": @upper over @top (an upper that is not frozen, or NULL) and all below.
 */
static int mount_layer(struct stack *s, const char *upper, const char *top, struct fail *f)
{
    char work[16];
    (void)snprintf(work, sizeof work, "w%u", s->works++);
    if (mkdir(work, 0755) < 0)
        return fail_sys(f, errno, "scratch: make %s", work);
    struct text o = {0};
    text_puts(&o, "lowerdir=");
    if (top) {
        text_puts(&o, top);
        text_puts(&o, ":");
    }
    lowers(&o, s->layers, true);
    text_puts(&o, ",upperdir=");
    text_puts(&o, upper);
    text_puts(&o, ",workdir=");
    text_puts(&o, work);
    int rc = mount_overlay(s, "m", &o, true, f);
    text_release(&o);
    return rc;
}

/* The layer that did not end, with its last attempt if it stopped in one. */
static int begin_again(struct stack *s, const char *upper, struct fail *f)
{
    s->used = false;
    s->trying = is_folder("r");
    return s->trying ? mount_layer(s, "r", upper, f) : mount_layer(s, upper, NULL, f);
}

/* @previous becomes @upper. */
static int adopt(struct stack *s, const char *previous, const char *upper, struct fail *f)
{
    struct text o = {0};
    uint64_t number;
    if (previous[0] != 'p' || !parse_number(previous + 1, LAYERS_MAX, &number))
        return fail_set(f, FAIL_PROTOCOL, "%.20s cannot be an earlier result", previous);
    if (rename(previous, upper) < 0)
        return fail_sys(f, errno, "scratch: %s", previous);
    text_puts(&o, "lowerdir=");
    lowers(&o, s->layers, true);
    int rc = mount_overlay(s, "va", &o, false, f);
    text_release(&o);
    if (rc < 0)
        return rc;
    int a = open(upper, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int b = open("va", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rc = a < 0 || b < 0 ? fail_sys(f, errno, "scratch: open %s", a < 0 ? upper : "va")
                        : adopt_folders(a, b, f);
    if (a >= 0)
        (void)close(a);
    if (b >= 0)
        (void)close(b);
    if (umount2("va", 0) < 0 && rc == 0)
        rc = fail_sys(f, errno, "unmount the view of what is below");
    return rc < 0 ? rc : mount_layer(s, upper, NULL, f);
}

int stack_begin(struct stack *s, const char *previous, struct fail *f)
{
    char upper[16];
    if (s->layers >= LAYERS_MAX)
        return fail_set(f, FAIL_COMMAND, "more than %d layers in one build", LAYERS_MAX);
    (void)snprintf(upper, sizeof upper, "u%u", s->layers);
    if (s->used && is_folder(upper))
        return begin_again(s, upper, f);
    if (previous)
        return adopt(s, previous, upper, f);
    if (mkdir(upper, 0755) < 0)
        return fail_sys(f, errno, "scratch: make %s", upper);
    /* The root of the layer is this folder: it must look like the one that it covers. */
    char below[16] = "a";
    if (s->layers)
        (void)snprintf(below, sizeof below, "u%u", s->layers - 1);
    if (like(below, upper, f) < 0)
        return -1;
    return mount_layer(s, upper, NULL, f);
}

int stack_try(struct stack *s, struct fail *f)
{
    char upper[16];
    (void)snprintf(upper, sizeof upper, "u%u", s->layers);
    if (remove_below(s->scratch, "r", f) < 0)
        return -1;
    if (mkdir("r", 0755) < 0)
        return fail_sys(f, errno, "scratch: make r");
    if (like(upper, "r", f) < 0)
        return -1;
    s->trying = true;
    return mount_layer(s, "r", upper, f);
}

int stack_drop(struct stack *s, struct fail *f)
{
    char upper[16];
    (void)snprintf(upper, sizeof upper, "u%u", s->layers);
    s->trying = false;
    if (remove_below(s->scratch, "r", f) < 0)
        return -1;
    return mount_layer(s, upper, NULL, f);
}

int stack_keep(struct stack *s, struct fail *f)
{
    char upper[16];
    (void)snprintf(upper, sizeof upper, "u%u", s->layers);
    int from = open("r", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int to = open(upper, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = from < 0 || to < 0 ? fail_sys(f, errno, "scratch: open %s", from < 0 ? "r" : upper)
                                : fold_upper(from, to, f);
    if (from >= 0)
        (void)close(from);
    if (to >= 0)
        (void)close(to);
    return rc < 0 ? rc : stack_drop(s, f);
}

int stack_freeze(struct stack *s, struct fail *f)
{
    (void)s;
    for (int tries = 0; umount2("m", 0) < 0; tries++) {
        if (errno != EBUSY || tries == 50)
            return fail_sys(f, errno, "unmount the layer");
        struct timespec ts = {.tv_nsec = 20000000};
        (void)nanosleep(&ts, NULL);
    }
    return 0;
}

int stack_sync(struct stack *s, struct fail *f)
{
    return syncfs(s->scratch) < 0 ? fail_sys(f, errno, "scratch: write it all to the disk") : 0;
}

void stack_push(struct stack *s)
{
    s->layers++;
}

static int open_view(const char *path, int *fd, struct fail *f)
{
    *fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *fd < 0 ? fail_sys(f, errno, "scratch: open %s", path) : 0;
}

int stack_views(struct stack *s, struct takeout *t, struct fail *f)
{
    struct text o = {0};
    char upper[16];
    t->upper = t->below = t->image = -1;
    text_puts(&o, "lowerdir=");
    lowers(&o, s->layers, true);
    int rc = mount_overlay(s, "va", &o, false, f);
    text_release(&o);
    if (rc == 0 && s->layers) {
        text_puts(&o, "lowerdir=");
        lowers(&o, s->layers, false);
        rc = mount_overlay(s, "vi", &o, false, f);
        text_release(&o);
    }
    (void)snprintf(upper, sizeof upper, "u%u", s->layers);
    if (rc == 0)
        rc = open_view(upper, &t->upper, f);
    if (rc == 0)
        rc = open_view("va", &t->below, f);
    if (rc == 0)
        rc = open_view(s->layers ? "vi" : "l/.", &t->image, f);
    return rc;
}
