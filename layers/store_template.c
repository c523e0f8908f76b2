/* Templates and cache records: the small documents that refer to blobs and images. */
#include "layers/store_gc.h"
#include "layers/store_private.h"

#include "schemas/reader.h"
#include "schemas/reference.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <fcntl.h>
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>

#define VERSION_MAX (UINT64_C(1) << 53) /* whole in every reader of JSON */

CB_DEFINE_CLEANUP(manifest, struct template_manifest *, template_manifest_free);

/* The image is there as a file or as chunks. */
static int check_image(struct store *s, const struct cb_digest *image, struct cb_error *err)
{
    CB_AUTO_FREE char *path = NULL;
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    if (store_image_find(s, image, &path, &why) < 0 && store_chunks_check(s, image, NULL) < 0)
        return cb_error_move(err, &why);
    return 0;
}

static int check_drives(struct store *s, const struct drive_image *v, size_t n,
                        struct cb_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (check_image(s, &v[i].image, NULL) < 0)
            return cb_fail(err, CB_E_NOTFOUND, "drive %s is not in the store", v[i].drive_id);
    return 0;
}

/* -- cache records -- */

static char *cache_rel(const struct cb_digest *key)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(key, hex);
    return cb_xasprintf("cache/%s.json", hex);
}

int store_cache_get(struct store *s, const struct cb_digest *key, struct cache_record *out,
                    struct cb_error *err)
{
    CB_AUTO_FREE char *rel = cache_rel(key);
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    int rc = store_read(s, rel, &text, err);
    if (rc < 0)
        return rc;
    struct cache_record r = {0};
    rc = cache_record_parse(text.data, text.len, &r, err);
    if (rc < 0) {
        cb_wrap(err, "%s/%s", s->dir, rel);
        return rc;
    }
    if (!store_blob_has(s, &r.diff.digest)) {
        cb_fail(err, CB_E_NOTFOUND, "layer %s: its diff is not in the store any more",
                r.layer_name);
        cache_record_release(&r);
        return -(int)CB_E_NOTFOUND;
    }
    if ((rc = check_drives(s, r.drives, r.n_drives, err)) < 0) {
        cb_wrap(err, "layer %s", r.layer_name);
        cache_record_release(&r);
        return rc;
    }
    *out = r;
    return 0;
}

int store_cache_put(struct store *s, const struct cb_digest *key, const struct cache_record *r,
                    struct cb_error *err)
{
    CB_AUTO_FREE char *text = cache_record_dump(r);
    if (!text)
        return cb_fail(err, CB_E_BUG, "cache record of layer %s is not UTF-8", r->layer_name);
    CB_AUTO_FREE char *rel = cache_rel(key);
    int rc = store_sync_dir(s, "blobs/sha256", err); /* the diff's name first */
    return rc < 0 ? rc : store_replace(s, rel, text, strlen(text), err);
}

/* -- names -- */

/* [a-z0-9][a-z0-9-]*[a-z0-9], at most 64 bytes. */
static bool is_slug(const char *p, size_t n)
{
    if (n == 0 || n > 64 || p[0] == '-' || p[n - 1] == '-')
        return false;
    for (size_t i = 0; i < n; i++) {
        bool fine = (p[i] >= 'a' && p[i] <= 'z') || (p[i] >= '0' && p[i] <= '9') || p[i] == '-';
        if (!fine)
            return false;
    }
    return true;
}

bool store_template_name_ok(const char *name)
{
    const char *tilde = strchr(name, '~');
    if (!tilde)
        return is_slug(name, strlen(name));
    return is_slug(name, (size_t)(tilde - name)) && is_slug(tilde + 1, strlen(tilde + 1));
}

static int check_name(const char *name, struct cb_error *err)
{
    if (name && store_template_name_ok(name))
        return 0;
    return cb_fail(
        err, CB_E_CONFIG,
        "\"%.80s\" is not a template's name: lower-case letters, digits and inner hyphens, "
        "at most 64, are accepted, with PROJECT~ in front for a project's",
        name ? name : "");
}

/* -- versions -- */

static bool parse_version(const char *text, const char *end, uint64_t *v)
{
    size_t n = (size_t)(end - text);
    if (n == 0 || n > 16 || text[0] == '0')
        return false;
    *v = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        *v = *v * 10 + (uint64_t)(text[i] - '0');
    }
    return *v < VERSION_MAX;
}

/* The versions of @name, unordered, in *@v (owned). A missing folder has none. */
static int list_versions(struct store *s, const char *name, uint64_t **v, size_t *n,
                         struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/templates/%s", s->dir, name);
    CB_AUTO_DIR d = opendir(path);
    *v = NULL;
    *n = 0;
    if (!d && errno == ENOENT)
        return 0;
    if (!d)
        return cb_fail_sys(err, errno, "open folder %s", path);
    size_t cap = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        const char *dot = strrchr(e->d_name, '.');
        uint64_t version;
        if (!dot || strcmp(dot, ".json") != 0 || !parse_version(e->d_name, dot, &version))
            continue;
        *v = cb_xgrow(*v, &cap, *n, sizeof(**v));
        (*v)[(*n)++] = version;
    }
    return 0;
}

static int no_template(struct store *s, const char *name, struct cb_error *err)
{
    CB_AUTO_STRV names = {0};
    const char *near = NULL;
    if (store_template_names(s, &names, NULL) == 0 && names.n > 0)
        near = nearest_word(name, (const char *const *)names.v);
    cb_fail(err, CB_E_NOTFOUND, "there is no template %s in this store", name);
    if (near)
        cb_hint(err, "did you mean %s?", near);
    else
        cb_hint(err, "build it first, or look at CAPSULE_BUILD_HOME");
    return -(int)CB_E_NOTFOUND;
}

static int compare_versions(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* The template has no such version, or is not there at all. */
static int no_version(struct store *s, const char *name, uint64_t version, struct cb_error *err)
{
    enum { SHOWN = 8 };
    CB_AUTO_FREE uint64_t *v = NULL;
    CB_AUTO_BUF text = CB_BUF_INIT(256);
    size_t n = 0;
    if (list_versions(s, name, &v, &n, NULL) < 0 || n == 0)
        return no_template(s, name, err);
    qsort(v, n, sizeof(*v), compare_versions);
    for (size_t i = n > SHOWN ? n - SHOWN : 0; i < n; i++)
        (void)cb_buf_addf(&text, "%s%llu",
                          text.len    ? ", "
                          : n > SHOWN ? "..., "
                                      : "",
                          (unsigned long long)v[i]);
    cb_fail(err, CB_E_NOTFOUND, "template %s has no version %llu", name,
            (unsigned long long)version);
    cb_hint(err, "it has %s", text.data);
    return -(int)CB_E_NOTFOUND;
}

static int read_pointer(struct store *s, const char *name, uint64_t *version, struct cb_error *err);

int store_template_versions(struct store *s, const char *name, uint64_t **v, size_t *n,
                            uint64_t *current, struct cb_error *err)
{
    *current = 0;
    int rc = list_versions(s, name, v, n, err);
    if (rc == 0 && read_pointer(s, name, current, NULL) < 0)
        *current = 0;
    return rc;
}

/* The highest number that was ever given. */
static int newest_version(struct store *s, const char *name, uint64_t *version,
                          struct cb_error *err)
{
    CB_AUTO_FREE uint64_t *v = NULL;
    size_t n;
    int rc = list_versions(s, name, &v, &n, err);
    *version = 0;
    for (size_t i = 0; i < n; i++)
        *version = v[i] > *version ? v[i] : *version;
    CB_AUTO_FREE char *rel = cb_xasprintf("templates/%s/newest", name);
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    uint64_t removed;
    if (rc == 0 && store_read(s, rel, &text, NULL) == 0 && text.len &&
        parse_version(text.data, text.data + text.len - 1, &removed) && removed > *version)
        *version = removed;
    return rc;
}

static int load_version(struct store *s, const char *name, uint64_t version,
                        struct template_manifest **out, struct cb_error *err)
{
    CB_AUTO_FREE char *rel =
        cb_xasprintf("templates/%s/%llu.json", name, (unsigned long long)version);
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    int rc = store_read(s, rel, &text, &why);
    if (rc == -(int)CB_E_NOTFOUND)
        return no_version(s, name, version, err);
    CB_AUTO(manifest) m = NULL;
    if (rc == 0)
        rc = template_manifest_parse(text.data, text.len, &m, &why);
    if (rc == 0 && (strcmp(m->name, name) != 0 || m->version != version))
        rc = cb_fail(&why, CB_E_CORRUPT, "it says that it is %s, version %llu", m->name,
                     (unsigned long long)m->version);
    if (rc < 0) {
        cb_wrap(&why, "%s/%s", s->dir, rel);
        cb_error_move(err, &why);
        return rc;
    }
    *out = cb_take_ptr(&m);
    return 0;
}

/* Everything that the template is made of is in the store: the image as a file or as chunks. */
static int check_complete(struct store *s, const struct template_manifest *m, struct cb_error *err)
{
    static const struct cb_digest none;
    int rc = check_image(s, &m->image, err);
    if (rc == 0)
        rc = check_drives(s, m->drives, m->n_drives, err);
    if (rc < 0)
        return rc;
    const struct {
        const char *what;
        const struct cb_digest *d;
    } blobs[] = {{"kernel", &m->kernel},
                 {"initramfs", &m->initramfs},
                 {"modules", &m->modules},
                 {"package list", &m->sbom},
                 {"provenance", &m->provenance},
                 {"saved machine", &m->warm.blob},
                 {"signed package list", &m->sbom_signed},
                 {"signed provenance", &m->provenance_signed}};
    for (size_t i = 0; i < sizeof(blobs) / sizeof(*blobs); i++) {
        bool absent = i >= 2 && cb_digest_eq(blobs[i].d, &none);
        if (!absent && !store_blob_has(s, blobs[i].d))
            return cb_fail(err, CB_E_NOTFOUND, "the %s is not in the store", blobs[i].what);
    }
    for (size_t i = 0; i < m->n_layers; i++) {
        if (!store_blob_has(s, &m->layers[i].digest))
            return cb_fail(err, CB_E_NOTFOUND, "layer %s is not in the store", m->layer_names[i]);
    }
    return 0;
}

/* -- the pointer and the lookup by key -- */

static int write_pointer(struct store *s, const struct template_manifest *m, struct cb_error *err)
{
    CB_AUTO_FREE char *rel = cb_xasprintf("templates/%s/current", m->name);
    CB_AUTO_FREE char *text =
        cb_xasprintf("{\n  \"schema_version\": 1,\n  \"version\": %llu,\n  \"workload_key\": "
                     "\"%s\"\n}\n",
                     (unsigned long long)m->version, m->workload_key);
    return store_replace(s, rel, text, strlen(text), err);
}

static int read_pointer(struct store *s, const char *name, uint64_t *version, struct cb_error *err)
{
    CB_AUTO_FREE char *rel = cb_xasprintf("templates/%s/current", name);
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    int rc = store_read(s, rel, &text, &why);
    if (rc == -(int)CB_E_NOTFOUND)
        return no_template(s, name, err);
    if (rc < 0)
        return cb_error_move(err, &why);
    json_auto_t *doc = json_loadb(text.data, text.len, JSON_REJECT_DUPLICATES, NULL);
    const json_t *v = json_object_get(doc, "version");
    if (!json_is_integer(v) || json_integer_value(v) < 1 ||
        (uint64_t)json_integer_value(v) >= VERSION_MAX) {
        cb_fail(err, CB_E_CORRUPT, "%s/%s: \"version\" must be a number from 1", s->dir, rel);
        cb_hint(err, "name a version, or build the template again");
        return -(int)CB_E_CORRUPT;
    }
    *version = (uint64_t)json_integer_value(v);
    return 0;
}

static char *key_rel(const char *name, const struct cb_digest *key)
{
    char hex[CB_HEX_LEN + 1];
    cb_digest_hex(key, hex);
    return cb_xasprintf("templates/%s/by-key/%s", name, hex);
}

static int write_key(struct store *s, const struct template_manifest *m, struct cb_error *err)
{
    CB_AUTO_FREE char *rel = key_rel(m->name, &m->template_key);
    CB_AUTO_FREE char *text = cb_xasprintf("%llu\n", (unsigned long long)m->version);
    return store_replace(s, rel, text, strlen(text), err);
}

/* Makes the lookup anew when it is gone, and adds the newest version when a crash came between the
 * two writes. Older versions are there: whoever published their successor was here. Called with the
 * template's lock held. */
static int repair_keys(struct store *s, const char *name, struct cb_error *err)
{
    CB_AUTO_FREE uint64_t *v = NULL;
    size_t n;
    int rc = list_versions(s, name, &v, &n, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FREE char *folder = cb_xasprintf("templates/%s/by-key", name);
    bool anew = mkdirat(s->root, folder, 0755) == 0;
    if (!anew && errno != EEXIST)
        return cb_fail_sys(err, errno, "make folder %s/%s", s->dir, folder);
    if (n)
        qsort(v, n, sizeof(*v), compare_versions);
    for (size_t i = anew || n == 0 ? 0 : n - 1; i < n; i++) {
        CB_AUTO(manifest) m = NULL;
        CB_AUTO_ERROR skipped = CB_ERROR_INIT; /* a version that cannot be read is not looked up */
        if (load_version(s, name, v[i], &m, &skipped) < 0)
            continue;
        CB_AUTO_FREE char *rel = key_rel(name, &m->template_key);
        if (anew || faccessat(s->root, rel, F_OK, 0) < 0)
            rc = write_key(s, m, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* One writer at a time for a template, for as long as the returned fd is open. */
static int lock_template(struct store *s, const char *name, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/templates/%s/.lock", s->dir, name);
    return cb_lock_file(path, true, err);
}

static int publish_locked(struct store *s, struct template_manifest *m, bool move_pointer,
                          struct cb_error *err)
{
    int rc = repair_keys(s, m->name, err);
    if (rc == 0)
        rc = newest_version(s, m->name, &m->version, err);
    if (rc < 0)
        return rc;
    m->version++;
    CB_AUTO_FREE char *text = template_manifest_dump(m);
    if (!text)
        return cb_fail(err, CB_E_BUG, "a string of the manifest is not UTF-8");
    if (strlen(text) > STORE_SMALL_MAX)
        return cb_fail(err, CB_E_LIMIT, "the manifest has %zu bytes, at most %u are accepted",
                       strlen(text), STORE_SMALL_MAX);
    CB_AUTO_FREE char *rel =
        cb_xasprintf("templates/%s/%llu.json", m->name, (unsigned long long)m->version);
    rc = store_replace(s, rel, text, strlen(text), err);
    if (rc == 0)
        rc = write_key(s, m, err);
    if (rc == 0 && move_pointer)
        rc = write_pointer(s, m, err);
    return rc;
}

static int publish(struct store *s, struct template_manifest *m, bool move_pointer,
                   struct cb_error *err)
{
    CB_AUTO_FREE char *folder = cb_xasprintf("templates/%s", m->name);
    int rc = check_complete(s, m, err);
    if (rc == 0 && m->n_chunks)
        rc = store_chunks_check(s, &m->image, err);
    for (size_t i = 0; i < m->n_drives && rc == 0; i++)
        rc = store_chunks_check(s, &m->drives[i].image, err);
    /* the names of all that the manifest refers to, once for all of them */
    if (rc == 0)
        rc = store_sync_dir(s, "blobs/sha256", err);
    if (rc == 0)
        rc = store_sync_dir(s, "images", err);
    if (rc == 0)
        rc = store_mkdir(s, folder, err);
    if (rc == 0)
        rc = store_sync_dir(s, "templates", err);
    CB_AUTO_FD lock = rc == 0 ? lock_template(s, m->name, err) : -1;
    if (rc == 0)
        rc = lock < 0 ? lock : publish_locked(s, m, move_pointer, err);
    return rc;
}

int store_template_publish(struct store *s, struct template_manifest *m, bool move_pointer,
                           struct cb_error *err)
{
    int rc = check_name(m->name, err);
    if (rc < 0)
        return rc;
    store_share(s); /* what is complete stays so until the version refers to it */
    rc = publish(s, m, move_pointer, err);
    store_unshare(s);
    if (rc < 0)
        cb_wrap(err, "publish template %s", m->name);
    return rc;
}

int store_template_get(struct store *s, const char *name, uint64_t version,
                       struct template_manifest **out, struct cb_error *err)
{
    int rc = check_name(name, err);
    if (rc < 0)
        return rc;
    store_share(s); /* the version that the pointer names is there until it is pinned */
    if (version == 0)
        rc = read_pointer(s, name, &version, err);
    if (rc == 0)
        rc = load_version(s, name, version, out, err);
    if (rc == 0)
        store_pin_version(s, name, version);
    store_unshare(s);
    return rc;
}

/* The version that the lookup names for @key, 0 when it names none. */
static uint64_t look_up_key(struct store *s, const char *name, const struct cb_digest *key)
{
    CB_AUTO_FREE char *rel = key_rel(name, key);
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    uint64_t version = 0;
    if (store_read(s, rel, &text, NULL) < 0 || text.len == 0 ||
        !parse_version(text.data, text.data + text.len - 1, &version))
        return 0;
    return version;
}

static int find_version(struct store *s, const char *name, const struct cb_digest *template_key,
                        struct template_manifest **out, struct cb_error *err)
{
    CB_AUTO_FREE char *folder = cb_xasprintf("templates/%s", name);
    if (faccessat(s->root, folder, F_OK, 0) < 0)
        return no_template(s, name, err);
    uint64_t version = look_up_key(s, name, template_key);
    if (version == 0) { /* also after a crash between a version and its lookup */
        CB_AUTO_FD lock = lock_template(s, name, err);
        if (lock < 0)
            return lock;
        int rc = repair_keys(s, name, err);
        if (rc < 0)
            return rc;
        version = look_up_key(s, name, template_key);
    }
    CB_AUTO(manifest) m = NULL;
    CB_AUTO_ERROR why =
        CB_ERROR_INIT; /* a version that is damaged or incomplete is as good as none */
    if (version == 0 || load_version(s, name, version, &m, &why) < 0 ||
        !cb_digest_eq(&m->template_key, template_key) || check_complete(s, m, &why) < 0)
        return cb_fail(err, CB_E_NOTFOUND, "template %s has no complete version with this key%s%s",
                       name, why.msg ? ": " : "", why.msg ? why.msg : "");
    CB_AUTO_FREE char *rel =
        cb_xasprintf("templates/%s/%llu.json", name, (unsigned long long)version);
    store_touch(s, rel);
    store_pin_version(s, name, version);
    *out = cb_take_ptr(&m);
    return 0;
}

int store_template_find(struct store *s, const char *name, const struct cb_digest *template_key,
                        struct template_manifest **out, struct cb_error *err)
{
    int rc = check_name(name, err);
    if (rc < 0)
        return rc;
    store_share(s); /* what is found stays until it is pinned */
    rc = find_version(s, name, template_key, out, err);
    store_unshare(s);
    return rc;
}

static int point(struct store *s, const char *name, uint64_t version, struct cb_error *err)
{
    int rc;
    CB_AUTO(manifest) m = NULL;
    rc = load_version(s, name, version, &m, err);
    if (rc == 0)
        rc = check_complete(s, m, err);
    CB_AUTO_FD lock = rc == 0 ? lock_template(s, name, err) : -1;
    if (rc == 0 && lock < 0)
        rc = lock;
    /* the common case, a build with nothing changed, need not wait for the disk */
    uint64_t now = 0;
    if (rc == 0 && (read_pointer(s, name, &now, NULL) < 0 || now != version))
        rc = write_pointer(s, m, err);
    return rc;
}

int store_template_point(struct store *s, const char *name, uint64_t version, struct cb_error *err)
{
    int rc = check_name(name, err);
    if (rc < 0)
        return rc;
    store_share(s);
    rc = point(s, name, version, err);
    store_unshare(s);
    if (rc < 0)
        cb_wrap(err, "move template %s to version %llu", name, (unsigned long long)version);
    return rc;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int store_template_names(struct store *s, struct cb_strv *out, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/templates", s->dir);
    CB_AUTO_DIR d = opendir(path);
    if (!d)
        return cb_fail_sys(err, errno, "open folder %s", path);
    size_t first = out->n;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (!store_template_name_ok(e->d_name))
            continue;
        CB_AUTO_FREE char *pointer = cb_xasprintf("%s/current", e->d_name);
        if (faccessat(dirfd(d), pointer, F_OK, 0) == 0)
            cb_strv_add(out, e->d_name);
    }
    if (out->n > first)
        qsort(out->v + first, out->n - first, sizeof(*out->v), compare_names);
    return 0;
}

/* -- removing -- */

/* The whole folder goes at once: to tmp/, which is swept. */
static int remove_template(struct store *s, const char *name, struct cb_error *err)
{
    CB_AUTO_FREE char *rel = cb_xasprintf("templates/%s", name);
    CB_AUTO_FREE char *away = store_session_path(s, "removed-template");
    if (!away || renameat(s->root, rel, s->root, away) < 0)
        return cb_fail_sys(err, errno, "remove %s/%s", s->dir, rel);
    int rc = store_sync_dir(s, "templates", err);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", s->dir, away);
    (void)cb_remove_tree(path, NULL);
    return rc;
}

int store_version_unlink(struct store *s, const char *name, uint64_t version, struct cb_error *err)
{
    CB_AUTO_FREE char *folder = cb_xasprintf("templates/%s", name);
    CB_AUTO_FREE char *rel = cb_xasprintf("%s/%llu.json", folder, (unsigned long long)version);
    CB_AUTO(manifest) m = NULL;
    if (load_version(s, name, version, &m, NULL) == 0 &&
        look_up_key(s, name, &m->template_key) == version) {
        CB_AUTO_FREE char *key = key_rel(name, &m->template_key);
        (void)unlinkat(s->root, key, 0);
    }
    store_step(rel);
    if (unlinkat(s->root, rel, 0) < 0 && errno != ENOENT)
        return cb_fail_sys(err, errno, "remove %s/%s", s->dir, rel);
    return store_sync_dir(s, folder, err);
}

static int remove_version(struct store *s, const char *name, uint64_t version, struct cb_error *err)
{
    uint64_t *list = NULL, current = 0;
    size_t n = 0;
    int rc = store_template_versions(s, name, &list, &n, &current, err);
    CB_AUTO_FREE uint64_t *v = list;
    bool there = false, newest = true;
    for (size_t i = 0; i < n; i++) {
        there = there || v[i] == version;
        newest = newest && v[i] <= version;
    }
    if (rc == 0 && !there)
        return no_version(s, name, version, err);
    if (rc == 0 && version == current) {
        cb_fail(err, CB_E_CONFLICT, "version %llu of %s is the one in use",
                (unsigned long long)version, name);
        return cb_hint(err, "remove the whole template by its name alone, or build another version "
                            "first");
    }
    if (rc == 0 && newest) { /* its number is not given again */
        CB_AUTO_FREE char *rel = cb_xasprintf("templates/%s/newest", name);
        CB_AUTO_FREE char *text = cb_xasprintf("%llu\n", (unsigned long long)version);
        rc = store_replace(s, rel, text, strlen(text), err);
    }
    return rc < 0 ? rc : store_version_unlink(s, name, version, err);
}

int store_template_remove(struct store *s, const char *name, uint64_t version, struct cb_error *err)
{
    int rc = check_name(name, err);
    if (rc < 0)
        return rc;
    CB_AUTO_FD alone = store_lock_alone(s, err);
    if (alone < 0)
        return alone;
    CB_AUTO_FREE char *folder = cb_xasprintf("templates/%s", name);
    if (faccessat(s->root, folder, F_OK, 0) < 0) {
        if (!image_ref_is_builtin(name))
            return no_template(s, name, err);
        return cb_fail(err, CB_E_CONFLICT, "%s is built in and cannot be removed", name);
    }
    return version ? remove_version(s, name, version, err) : remove_template(s, name, err);
}
