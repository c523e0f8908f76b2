/* diff: files added, removed and changed between two templates, or layers of templates. */
#include "cli/job/image_of.h"

#include "layers/image_diff.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <jansson.h>
#include <string.h>
#include <sys/stat.h>

struct totals {
    uint64_t n[3], bytes[3]; /* by kind; of changed ones: of those that grew, by how much */
    uint64_t shrunk;         /* bytes that changed ones lost */
};

struct printer {
    bool json, stat, first;
    struct totals all, folder;
    char *name; /* of the folder at the top that @folder counts */
};

static const char *type_name(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG: return "file";
    case S_IFDIR: return "folder";
    case S_IFLNK: return "link";
    case S_IFCHR: return "character device";
    case S_IFBLK: return "block device";
    case S_IFIFO: return "pipe";
    default: return "other";
    }
}

/* A file with several names counts with the first of them. */
static uint64_t bytes_of(const struct ext4_entry *e)
{
    return e && !e->link_to && S_ISREG(e->mode) ? e->size : 0;
}

static void count(struct totals *t, const struct diff_entry *e)
{
    uint64_t a = bytes_of(e->a), b = bytes_of(e->b);
    t->n[e->kind]++;
    if (e->kind != DIFF_CHANGED) {
        t->bytes[e->kind] += a + b;
    } else if (b > a) {
        t->bytes[DIFF_CHANGED] += b - a;
    } else {
        t->shrunk += a - b;
    }
}

static void human(uint64_t n, char out[32])
{
    cb_human_bytes(n, out, 32);
}

static void print_totals(const struct totals *t)
{
    char a[32], r[32], grown[32], shrunk[32];
    human(t->bytes[DIFF_ADDED], a);
    human(t->bytes[DIFF_REMOVED], r);
    human(t->bytes[DIFF_CHANGED], grown);
    human(t->shrunk, shrunk);
    printf("%llu added (%s), %llu removed (%s), %llu changed (+%s, -%s)\n",
           (unsigned long long)t->n[DIFF_ADDED], a, (unsigned long long)t->n[DIFF_REMOVED], r,
           (unsigned long long)t->n[DIFF_CHANGED], grown, shrunk);
}

/* ---- text ---- */

static void end_folder(struct printer *p)
{
    if (p->name) {
        fputs("/", stdout);
        cli_put_text(stdout, p->name, "\n");
        fputs(": ", stdout);
        print_totals(&p->folder);
    }
    free(p->name);
    p->name = NULL;
    p->folder = (struct totals){0};
}

/* Names come in order, so that what is below one folder comes in one piece. */
static void count_folder(struct printer *p, const struct diff_entry *e, const char *path)
{
    size_t n = strcspn(path, "/");
    if (!p->name || strncmp(p->name, path, n) != 0 || p->name[n]) {
        end_folder(p);
        p->name = cb_xstrndup(path, n);
    }
    count(&p->folder, e);
}

static void print_change(const struct diff_entry *e)
{
    const struct ext4_entry *a = e->a, *b = e->b;
    const char *sep = ": ";
    if (e->what & DIFF_TYPE) {
        printf("%s%s becomes %s", sep, type_name(a->mode), type_name(b->mode));
        sep = ", ";
    }
    if (e->what & DIFF_CONTENT) {
        printf("%scontent", sep);
        if (S_ISREG(a->mode) && a->size != b->size)
            printf(" (%+lld bytes)", (long long)(b->size - a->size));
        sep = ", ";
    }
    if (e->what & DIFF_MODE) {
        printf("%smode %04o becomes %04o", sep, a->mode & 07777, b->mode & 07777);
        sep = ", ";
    }
    if (e->what & DIFF_OWNER) {
        printf("%sowner %u:%u becomes %u:%u", sep, a->uid, a->gid, b->uid, b->gid);
        sep = ", ";
    }
    if (e->what & DIFF_LINK) {
        printf("%shard link", sep);
        sep = ", ";
    }
    if (e->what & DIFF_XATTR)
        printf("%sattributes", sep);
}

static void print_entry(const struct diff_entry *e)
{
    const struct ext4_entry *x = e->b ? e->b : e->a;
    printf("%c /", "+-~"[e->kind]);
    cli_put_text(stdout, strcmp(x->path, ".") == 0 ? "" : x->path, "\n");
    if (e->kind == DIFF_CHANGED) {
        print_change(e);
    } else if (S_ISREG(x->mode) && x->link_to) {
        fputs(", also /", stdout);
        cli_put_text(stdout, x->link_to, "\n");
    } else if (S_ISREG(x->mode)) {
        char size[32];
        human(x->size, size);
        printf(", %s", size);
    } else {
        printf(", %s", type_name(x->mode));
    }
    putchar('\n');
}

/* ---- JSON ---- */

void cli_json_path(json_t *o, const char *path)
{
    json_t *text = json_string(path);
    if (!text) {
        CB_AUTO_BUF hex = CB_BUF_INIT(1u << 20), shown = CB_BUF_INIT(1u << 20);
        for (const unsigned char *c = (const unsigned char *)path; *c; c++) {
            (void)cb_buf_addf(&hex, "%02x", *c);
            (void)cb_buf_adds(&shown, *c < 0x80 ? (const char[]){(char)*c, 0} : "?");
        }
        text = json_string(shown.data);
        (void)json_object_set_new(o, "path_hex", json_string(hex.data));
    }
    (void)json_object_set_new(o, "path", text);
}

static json_t *changes(unsigned what)
{
    static const char *const names[DIFF_WHAT_N] = {"type",  "content", "mode",
                                                   "owner", "link",    "xattr"};
    json_t *list = json_array();
    for (unsigned i = 0; i < DIFF_WHAT_N; i++)
        if (what & 1u << i)
            (void)json_array_append_new(list, json_string(names[i]));
    return list;
}

static json_t *facts(const struct ext4_entry *e)
{
    if (!e)
        return NULL;
    return json_pack("{s:s, s:I, s:o, s:I, s:I}", "type", type_name(e->mode), "size",
                     (json_int_t)e->size, "mode", json_sprintf("%04o", e->mode & 07777), "uid",
                     (json_int_t)e->uid, "gid", (json_int_t)e->gid);
}

static void json_entry(struct printer *p, const struct diff_entry *e)
{
    static const char *const kinds[] = {"added", "removed", "changed"};
    json_auto_t *o = json_pack("{s:s, s:o*, s:o*}", "change", kinds[e->kind], "before", facts(e->a),
                               "after", facts(e->b));
    cli_json_path(o, (e->b ? e->b : e->a)->path);
    if (e->kind == DIFF_CHANGED)
        (void)json_object_set_new(o, "changed", changes(e->what));
    fputs(p->first ? "\n" : ",\n", stdout);
    p->first = false;
    (void)json_dumpf(o, stdout, JSON_COMPACT | JSON_SORT_KEYS);
}

static json_t *side_json(const struct image_of *i)
{
    char digest[CB_DIGEST_LEN + 1];
    cb_digest_text(&i->digest, digest);
    return json_pack("{s:s, s:I, s:s*, s:s}", "name", i->m->name, "version",
                     (json_int_t)i->m->version, "layer", i->layer, "image", digest);
}

static void json_head(const struct image_of *a, const struct image_of *b)
{
    json_auto_t *x = side_json(a), *y = side_json(b);
    fputs("{\"schema_version\":1,\n\"a\":", stdout);
    (void)json_dumpf(x, stdout, JSON_COMPACT);
    fputs(",\n\"b\":", stdout);
    (void)json_dumpf(y, stdout, JSON_COMPACT);
}

static void json_totals(const struct totals *t)
{
    json_auto_t *o = json_pack(
        "{s:{s:I, s:I}, s:{s:I, s:I}, s:{s:I, s:I, s:I}}", "added", "count",
        (json_int_t)t->n[DIFF_ADDED], "bytes", (json_int_t)t->bytes[DIFF_ADDED], "removed", "count",
        (json_int_t)t->n[DIFF_REMOVED], "bytes", (json_int_t)t->bytes[DIFF_REMOVED], "changed",
        "count", (json_int_t)t->n[DIFF_CHANGED], "grown_bytes", (json_int_t)t->bytes[DIFF_CHANGED],
        "shrunk_bytes", (json_int_t)t->shrunk);
    fputs(",\n\"totals\":", stdout);
    (void)json_dumpf(o, stdout, JSON_COMPACT);
    fputs("}\n", stdout);
}

/* ---- the whole ---- */

static int on_entry(void *arg, const struct diff_entry *e, struct cb_error *err)
{
    struct printer *p = arg;
    (void)err;
    count(&p->all, e);
    if (p->json && !p->stat)
        json_entry(p, e);
    else if (!p->json && p->stat)
        count_folder(p, e, (e->b ? e->b : e->a)->path);
    else if (!p->json)
        print_entry(e);
    return 0;
}

static int compare(const struct cli_args *args, const struct image_of *a, const struct image_of *b,
                   struct cb_error *err)
{
    struct printer p = {.json = args->json, .stat = args->stat, .first = true};
    const struct diff_side x = {a->path, a->chunks.chunk_size ? &a->chunks : NULL};
    const struct diff_side y = {b->path, b->chunks.chunk_size ? &b->chunks : NULL};
    if (p.json)
        json_head(a, b);
    if (p.json && !p.stat)
        fputs(",\n\"entries\":[", stdout);
    int rc = 0;
    if (!cb_digest_eq(&a->digest, &b->digest)) /* one image is like itself */
        rc = image_diff(&x, &y, on_entry, &p, NULL, err);
    if (rc == 0 && p.json && !p.stat)
        fputs(p.first ? "]" : "\n]", stdout);
    if (rc == 0 && p.json)
        json_totals(&p.all);
    if (rc == 0 && !p.json) {
        end_folder(&p);
        print_totals(&p.all);
    }
    free(p.name);
    return rc;
}

int cmd_diff(struct cli_args *a)
{
    struct settings *s = NULL;
    struct store *store = NULL;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct image_of x = IMAGE_OF_INIT, y = IMAGE_OF_INIT;
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    if ((rc = cli_open_store(s, &store)) == 0) {
        int done = image_of_open(store, a->words.v[0], &x, &err);
        if (done >= 0)
            done = image_of_open(store, a->words.v[1], &y, &err);
        if (done >= 0)
            done = compare(a, &x, &y, &err);
        rc = done < 0 ? cli_fail(&err) : EXIT_DONE;
    }
    image_of_release(&x);
    image_of_release(&y);
    store_free(store);
    settings_free(s);
    return rc;
}
