#include "layers/store_inventory.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

static const struct {
    const char *name, *folder, *suffix; /* suffix behind 64 hex digits; NULL: any name */
} kinds[STORE_KIND_N] = {
    [STORE_BLOBS] = {"blobs", "blobs/sha256", ""},  [STORE_CHUNKS] = {"chunks", "chunks", ".zst"},
    [STORE_IMAGES] = {"images", "images", ".ext4"}, [STORE_MAPS] = {"maps", "images", ".chunks"},
    [STORE_LOWERS] = {"lowers", "lowers", ".ext4"}, [STORE_INDEXES] = {"indexes", "layers", NULL},
    [STORE_VERSIONS] = {"versions", NULL, NULL},    [STORE_RECORDS] = {"records", "cache", ".json"},
    [STORE_NOTES] = {"notes", "refs", ".json"},     [STORE_PARTIALS] = {"partials", "partial", ""},
    [STORE_DAMAGED] = {"damaged", "damaged", NULL},
};

const char *store_kind_name(enum store_kind kind)
{
    return kinds[kind].name;
}

void inventory_release(struct inventory *inv)
{
    for (size_t i = 0; i < inv->n; i++) {
        free(inv->v[i].file);
        free(inv->v[i].refs);
    }
    free(inv->v);
    for (int k = 0; k < STORE_KIND_N; k++)
        digest_set_release(&inv->by_id[k]);
    cb_strv_release(&inv->names);
    *inv = (struct inventory){0};
}

struct item *inventory_find(const struct inventory *inv, enum store_kind kind,
                            const struct cb_digest *d)
{
    uint32_t i;
    return digest_set_find(&inv->by_id[kind], d, &i) ? &inv->v[i] : NULL;
}

char *inventory_rel(const struct inventory *inv, const struct item *it)
{
    if (it->kind == STORE_VERSIONS)
        return cb_xasprintf("templates/%s/%llu.json", inv->names.v[it->template],
                            (unsigned long long)it->version);
    if (it->file)
        return cb_xasprintf("%s/%s", kinds[it->kind].folder, it->file);
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(&it->id, hex);
    return cb_xasprintf("%s/%s%s", kinds[it->kind].folder, hex, kinds[it->kind].suffix);
}

/* -- listing -- */

static struct item *add_item(struct inventory *inv, enum store_kind kind, const struct stat *st)
{
    inv->v = cb_xgrow(inv->v, &inv->cap, inv->n, sizeof(*inv->v));
    struct item *it = &inv->v[inv->n++];
    *it = (struct item){.kind = kind,
                        .template = NO_TEMPLATE,
                        .bytes = (uint64_t)st->st_blocks * 512,
                        .used_ms =
                            (int64_t)st->st_mtim.tv_sec * 1000 + st->st_mtim.tv_nsec / 1000000};
    return it;
}

/* The kind of a file by its folder and name. STORE_KIND_N: none of ours. */
static enum store_kind kind_of(const char *folder, const char *name, struct cb_digest *d)
{
    size_t n = strlen(name);
    char hex[CB_HEX_LEN + 1] = "";
    if (n >= CB_HEX_LEN)
        memcpy(hex, name, CB_HEX_LEN);
    bool digest = cb_digest_parse_hex(hex, d);
    for (int k = 0; k < STORE_KIND_N; k++) {
        if (!kinds[k].folder || strcmp(kinds[k].folder, folder) != 0)
            continue;
        if (!kinds[k].suffix || (digest && strcmp(name + CB_HEX_LEN, kinds[k].suffix) == 0))
            return (enum store_kind)k;
    }
    return STORE_KIND_N;
}

static int list_folder(struct inventory *inv, const char *folder, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", inv->s->dir, folder);
    CB_AUTO_DIR d = opendir(path);
    if (!d && errno == ENOENT)
        return 0;
    if (!d)
        return cb_fail_sys(err, errno, "open folder %s", path);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        struct stat st;
        struct cb_digest id = {{0}};
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            strcmp(e->d_name, "..") == 0)
            continue;
        enum store_kind kind = kind_of(folder, e->d_name, &id);
        if (kind == STORE_KIND_N || !S_ISREG(st.st_mode)) {
            inv->other += (uint64_t)st.st_blocks * 512; /* the folder itself is among them */
            continue;
        }
        struct item *it = add_item(inv, kind, &st);
        it->id = id;
        if (!kinds[kind].suffix)
            it->file = cb_xstrdup(e->d_name);
        else
            (void)digest_set_add(&inv->by_id[kind], &id, (uint32_t)(inv->n - 1));
    }
    return 0;
}

/* All below a folder, in bytes. */
static uint64_t weigh(int dir, const char *name, unsigned depth)
{
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    uint64_t sum = (uint64_t)st.st_blocks * 512;
    int fd = S_ISDIR(st.st_mode) && depth < 8
                 ? openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                 : -1;
    CB_AUTO_DIR d = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            sum += weigh(dirfd(d), e->d_name, depth + 1);
    return sum;
}

static int list_template(struct inventory *inv, const char *name, struct cb_error *err)
{
    uint64_t current = 0;
    uint64_t *v = NULL;
    size_t n = 0;
    int rc = store_template_versions(inv->s, name, &v, &n, &current, err);
    CB_AUTO_FREE uint64_t *versions = v;
    if (rc < 0)
        return rc;
    cb_strv_add(&inv->names, name);
    CB_AUTO_FREE char *folder = cb_xasprintf("templates/%s", name);
    uint64_t all = weigh(inv->s->root, folder, 0), newest = 0;
    for (size_t i = 0; i < n; i++)
        newest = versions[i] > newest ? versions[i] : newest;
    for (size_t i = 0; i < n; i++) {
        CB_AUTO_FREE char *rel =
            cb_xasprintf("%s/%llu.json", folder, (unsigned long long)versions[i]);
        struct stat st;
        if (fstatat(inv->s->root, rel, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        struct item *it = add_item(inv, STORE_VERSIONS, &st);
        it->template = (uint32_t)(inv->names.n - 1);
        it->version = versions[i];
        it->current = versions[i] == current;
        it->newest = versions[i] == newest;
        all -= it->bytes < all ? it->bytes : all;
    }
    inv->other += all;
    return 0;
}

static int list_templates(struct inventory *inv, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/templates", inv->s->dir);
    CB_AUTO_DIR d = opendir(path);
    if (!d)
        return cb_fail_sys(err, errno, "open folder %s", path);
    int rc = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL && rc == 0;)
        if (store_template_name_ok(e->d_name))
            rc = list_template(inv, e->d_name, err);
    return rc;
}

int inventory_make(struct store *s, struct inventory *out, struct cb_error *err)
{
    static const char *const folders[] = {"blobs/sha256", "chunks", "images",  "lowers", "layers",
                                          "cache",        "refs",   "partial", "damaged"};
    struct inventory inv = {.s = s};
    int rc = list_templates(&inv, err);
    for (size_t i = 0; i < sizeof(folders) / sizeof(*folders) && rc == 0; i++)
        rc = list_folder(&inv, folders[i], err);
    for (size_t i = 0; i < inv.n; i++)
        inv.alive += inv.v[i].bytes;
    inv.other += weigh(s->root, "tmp", 0) + weigh(s->root, "prefixes", 0);
    if (rc < 0) {
        inventory_release(&inv);
        return cb_wrap(err, "look through the store");
    }
    *out = inv;
    return 0;
}

/* -- what refers to what -- */

static void add_ref(struct inventory *inv, struct item *it, enum store_kind kind,
                    const struct cb_digest *d)
{
    uint32_t i;
    if (!digest_set_find(&inv->by_id[kind], d, &i) || &inv->v[i] == it)
        return;
    it->refs = cb_xgrow(it->refs, &it->cap_refs, it->n_refs, sizeof(*it->refs));
    it->refs[it->n_refs++] = i;
}

/* Every "sha256:HEX" of a text counts, whatever key it stands under: what a later version of this
 * program adds to its documents is kept as well. */
static void scan(struct inventory *inv, struct item *it, const struct cb_buf *text)
{
    static const char word[] = "sha256:";
    const char *end = text->data + text->len;
    for (const char *p = text->data;
         p && (p = memmem(p, (size_t)(end - p), word, sizeof(word) - 1)) != NULL;) {
        p += sizeof(word) - 1;
        char hex[CB_HEX_LEN + 1];
        struct cb_digest d;
        if (end - p < CB_HEX_LEN)
            return;
        memcpy(hex, p, CB_HEX_LEN);
        hex[CB_HEX_LEN] = '\0';
        if (!cb_digest_parse_hex(hex, &d))
            continue;
        add_ref(inv, it, STORE_BLOBS, &d);
        if (it->kind == STORE_VERSIONS || it->kind == STORE_RECORDS) { /* these name drives */
            add_ref(inv, it, STORE_IMAGES, &d);
            add_ref(inv, it, STORE_MAPS, &d);
        }
    }
}

static void look_at_note(struct inventory *inv, struct item *it, const struct cb_buf *text)
{
    json_auto_t *o = json_loadb(text->data ? text->data : "", text->len, 0, NULL);
    /* what the keys of a config's last build were made from names digests, but needs nothing */
    if (json_object_get(o, "base_image") && json_object_get(o, "template"))
        return;
    scan(inv, it, text);
    it->fixed = json_is_true(json_object_get(o, "builtin")) || json_object_get(o, "inrelease");
}

static int look_at_blob(struct inventory *inv, struct item *it, int fd, struct cb_error *err)
{
    struct stat st;
    char first = 0;
    if (fstat(fd, &st) < 0)
        return cb_fail_sys(err, errno, "look at a blob");
    if ((uint64_t)st.st_size > CB_JSON_MAX || pread(fd, &first, 1, 0) != 1 || first != '{')
        return 0; /* no document */
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    int rc = cb_read_fd(fd, "blob", CB_JSON_MAX, &text, err);
    if (rc == 0)
        scan(inv, it, &text);
    return rc;
}

static int look_at_map(struct inventory *inv, struct item *it)
{
    CB_AUTO_CHUNK_MAP map = {0};
    if (store_map_get(inv->s, &it->id, &map, NULL) < 0)
        return 0; /* `verify` says what is wrong with it */
    for (size_t i = 0; i < map.n; i++)
        add_ref(inv, it, STORE_CHUNKS, &map.v[i].digest);
    return 0;
}

int inventory_look(struct inventory *inv, struct item *it, struct cb_error *err)
{
    if (it->looked)
        return 0;
    it->looked = true;
    if (it->kind == STORE_MAPS)
        return look_at_map(inv, it);
    if (it->kind != STORE_BLOBS && it->kind != STORE_VERSIONS && it->kind != STORE_RECORDS &&
        it->kind != STORE_NOTES)
        return 0;
    CB_AUTO_FREE char *rel = inventory_rel(inv, it);
    CB_AUTO_FD fd = openat(inv->s->root, rel, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 0;
    if (fd < 0)
        return cb_fail_sys(err, errno, "open %s/%s", inv->s->dir, rel);
    if (it->kind == STORE_BLOBS)
        return look_at_blob(inv, it, fd, err);
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    int rc = cb_read_fd(fd, rel, STORE_SMALL_MAX, &text, err);
    if (rc == 0 && it->kind == STORE_NOTES)
        look_at_note(inv, it, &text);
    else if (rc == 0)
        scan(inv, it, &text);
    return rc;
}

int inventory_hold(struct inventory *inv, struct item *it, struct cb_error *err)
{
    if (it->users++ > 0)
        return 0;
    int rc = inventory_look(inv, it, err);
    for (size_t i = 0; i < it->n_refs && rc == 0; i++)
        rc = inventory_hold(inv, &inv->v[it->refs[i]], err);
    return rc;
}

void inventory_remove(struct inventory *inv, struct item *it)
{
    if (!it->gone)
        inv->alive -= it->bytes;
    it->gone = true;
}

void inventory_drop(struct inventory *inv, struct item *it)
{
    if (--it->users > 0)
        return;
    inventory_remove(inv, it);
    for (size_t i = 0; i < it->n_refs; i++)
        inventory_drop(inv, &inv->v[it->refs[i]]);
}

bool inventory_has_chunks(struct inventory *inv, const struct item *image)
{
    CB_AUTO_CHUNK_MAP map = {0};
    if (store_map_get(inv->s, &image->id, &map, NULL) < 0)
        return false;
    for (size_t i = 0; i < map.n; i++)
        if (!inventory_find(inv, STORE_CHUNKS, &map.v[i].digest))
            return false;
    return true;
}

/* -- pins -- */

struct pinning {
    struct inventory *inv;
    struct cb_error *err;
    int rc;
};

static void pin_item(struct pinning *p, struct item *it)
{
    if (!it || p->rc < 0)
        return;
    it->pinned = true;
    p->rc = inventory_hold(p->inv, it, p->err);
}

static struct item *find_version(const struct inventory *inv, const char *name, uint64_t version)
{
    for (size_t i = 0; i < inv->n; i++)
        if (inv->v[i].kind == STORE_VERSIONS && inv->v[i].version == version &&
            strcmp(inv->names.v[inv->v[i].template], name) == 0)
            return &inv->v[i];
    return NULL;
}

static void on_pin(void *arg, const char *line)
{
    struct pinning *p = arg;
    const char *space = strchr(line, ' ');
    struct cb_digest d;
    if (!space)
        return;
    size_t n = (size_t)(space - line);
    if (n == 7 && strncmp(line, "version", n) == 0) {
        const char *second = strchr(space + 1, ' ');
        CB_AUTO_FREE char *name =
            second ? cb_xstrndup(space + 1, (size_t)(second - space - 1)) : NULL;
        if (second)
            pin_item(p, find_version(p->inv, name, strtoull(second + 1, NULL, 10)));
        return;
    }
    if (!cb_digest_parse_hex(space + 1, &d))
        return;
    if (n == 4 && strncmp(line, "blob", n) == 0)
        pin_item(p, inventory_find(p->inv, STORE_BLOBS, &d));
    if (n == 5 && strncmp(line, "lower", n) == 0)
        pin_item(p, inventory_find(p->inv, STORE_LOWERS, &d));
    if (n == 5 && strncmp(line, "image", n) == 0) {
        pin_item(p, inventory_find(p->inv, STORE_IMAGES, &d));
        pin_item(p, inventory_find(p->inv, STORE_MAPS, &d));
    }
}

static void on_pinned_map(void *arg, const struct chunk_map *map)
{
    struct pinning *p = arg;
    for (size_t i = 0; i < map->n; i++)
        pin_item(p, inventory_find(p->inv, STORE_CHUNKS, &map->v[i].digest));
}

int inventory_hold_roots(struct inventory *inv, struct cb_error *err)
{
    int rc = 0;
    for (size_t i = 0; i < inv->n && rc == 0; i++) {
        struct item *it = &inv->v[i];
        if (it->kind == STORE_VERSIONS || it->kind == STORE_RECORDS || it->kind == STORE_NOTES ||
            it->kind == STORE_LOWERS || it->kind == STORE_INDEXES)
            rc = inventory_hold(inv, it, err);
    }
    struct pinning p = {inv, err, rc};
    if (rc == 0)
        store_read_pins(inv->s, on_pin, on_pinned_map, &p);
    return p.rc;
}
