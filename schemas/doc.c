#include "schemas/doc.h"

#include "support/cleanup.h"
#include "support/limits.h"
#include "support/mem.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_SIZE (32u << 10)

/* Nodes and texts live in chunks that are freed together. */
struct doc_chunk {
    struct doc_chunk *next;
    size_t used, size;
    _Alignas(16) char data[];
};

void *doc_alloc(struct doc *d, size_t n)
{
    n = (n + 15) & ~(size_t)15;
    if (!d->chunks || d->chunks->size - d->chunks->used < n) {
        size_t size = n > CHUNK_SIZE ? n : CHUNK_SIZE;
        struct doc_chunk *c = cb_xmalloc(sizeof(*c) + size);
        c->size = size;
        c->used = 0;
        c->next = d->chunks;
        d->chunks = c;
    }
    void *p = d->chunks->data + d->chunks->used;
    d->chunks->used += n;
    return p;
}

void doc_release(struct doc *d)
{
    while (d->chunks) {
        struct doc_chunk *next = d->chunks->next;
        free(d->chunks);
        d->chunks = next;
    }
    source_release(&d->src);
    d->root = NULL;
}

/* The path of what is being read, such as layers[0].name. Owned. */
static char *current_path(const struct doc_builder *b)
{
    CB_AUTO_BUF out = CB_BUF_INIT(4096);
    for (size_t i = 0; i < b->depth; i++) {
        const struct doc_frame *f = &b->frames[i];
        size_t end = i + 1 < b->depth ? b->frames[i + 1].base : b->n_stack;
        size_t n = end - f->base;
        if (n == 0)
            break;
        if (f->node->kind == DOC_LIST) {
            (void)cb_buf_addf(&out, "[%zu]", n - 1);
            continue;
        }
        const struct doc_node *key = b->stack[f->base + ((n - 1) & ~(size_t)1)];
        if (key->kind == DOC_SCALAR && key->n <= 64)
            (void)cb_buf_addf(&out, "%s%s", out.len ? "." : "", key->text);
    }
    return cb_buf_take(&out);
}

void doc_problem(struct doc_builder *b, int line, int column, const char *fmt, ...)
{
    if (problem_dropped(b->problems, false))
        return;
    CB_AUTO_FREE char *path = current_path(b);
    va_list ap;
    va_start(ap, fmt);
    problem_vadd(b->problems, &b->doc->src, false, line, column, path, fmt, ap);
    va_end(ap);
}

static bool count_nodes(struct doc_builder *b, size_t n, int line, int column)
{
    b->n_nodes += n;
    if (b->n_nodes <= DOC_NODES_MAX)
        return true;
    doc_problem(b, line, column,
                "the document grows beyond %u values here, aliases followed; split it or write it "
                "more simply",
                DOC_NODES_MAX);
    return false;
}

static void push(struct doc_builder *b, struct doc_node *n)
{
    b->stack = cb_xgrow(b->stack, &b->cap_stack, b->n_stack, sizeof(struct doc_node *));
    b->stack[b->n_stack++] = n;
}

static struct doc_node *new_node(struct doc_builder *b, enum doc_kind kind, int line, int column)
{
    struct doc_node *n = doc_alloc(b->doc, sizeof(*n));
    *n = (struct doc_node){.kind = kind, .expanded = 1, .line = line, .column = column};
    push(b, n);
    return n;
}

bool doc_add_scalar(struct doc_builder *b, const char *text, size_t len, bool plain, int line,
                    int column, struct doc_node **out)
{
    if (!count_nodes(b, 1, line, column))
        return false;
    struct doc_node *n = new_node(b, DOC_SCALAR, line, column);
    if (memchr(text, '\0', len)) {
        doc_problem(b, line, column, "a NUL character is not accepted in a text");
        len = strlen(text);
    }
    char *copy = doc_alloc(b->doc, len + 1);
    memcpy(copy, text, len);
    copy[len] = '\0';
    n->text = copy;
    n->n = len;
    n->plain = plain;
    if (out)
        *out = n;
    return true;
}

bool doc_add_shared(struct doc_builder *b, struct doc_node *shared, int line, int column)
{
    if (b->depth + shared->height >= DOC_DEPTH_MAX) {
        doc_problem(b, line, column, "more than %u levels, aliases followed", DOC_DEPTH_MAX);
        return false;
    }
    if (!count_nodes(b, shared->expanded, line, column))
        return false;
    push(b, shared);
    return true;
}

bool doc_open(struct doc_builder *b, enum doc_kind kind, int line, int column,
              struct doc_node **out)
{
    if (b->depth == DOC_DEPTH_MAX) {
        doc_problem(b, line, column, "more than %u levels of lists and maps", DOC_DEPTH_MAX);
        return false;
    }
    if (!count_nodes(b, 1, line, column))
        return false;
    struct doc_node *n = new_node(b, kind, line, column);
    n->open = true;
    b->frames[b->depth++] = (struct doc_frame){.node = n, .base = b->n_stack};
    if (out)
        *out = n;
    return true;
}

static int compare_keys(const struct doc_node *a, const struct doc_node *b)
{
    size_t n = a->n < b->n ? a->n : b->n;
    int c = memcmp(a->text, b->text, n);
    return c ? c : (a->n > b->n) - (a->n < b->n);
}

struct pair_order {
    struct doc_pair pair;
    size_t at;
    bool merged; /* came by a merge key: a key of the map itself wins */
};

static int compare_pairs(const void *pa, const void *pb)
{
    const struct pair_order *a = pa;
    const struct pair_order *b = pb;
    int c = compare_keys(a->pair.key, b->pair.key);
    if (c)
        return c;
    if (a->merged != b->merged)
        return a->merged ? 1 : -1;
    return (a->at > b->at) - (a->at < b->at);
}

static int compare_order(const void *pa, const void *pb)
{
    const struct pair_order *a = pa;
    const struct pair_order *b = pb;
    return (a->at > b->at) - (a->at < b->at);
}

struct pair_list {
    struct pair_order *v;
    size_t n, cap;
};

static void add_pair(struct pair_list *l, struct doc_node *key, struct doc_node *value, bool merged)
{
    l->v = cb_xgrow(l->v, &l->cap, l->n, sizeof(*l->v));
    l->v[l->n] = (struct pair_order){.pair = {key, value}, .at = l->n, .merged = merged};
    l->n++;
}

static bool merge_map(struct doc_builder *b, struct pair_list *l, const struct doc_node *from,
                      const struct doc_node *at)
{
    if (from->kind != DOC_MAP) {
        doc_problem(b, at->line, at->column,
                    "the merge key << takes a map or a list of maps, such as <<: *common");
        return true;
    }
    if (!count_nodes(b, from->n, at->line, at->column))
        return false; /* the keys; the values were counted where the alias stood */
    for (size_t i = 0; i < from->n; i++)
        add_pair(l, from->pairs[i].key, from->pairs[i].value, true);
    return true;
}

/* Takes the map's children from the stack: merge keys are followed, a key given twice is said. */
static bool close_map(struct doc_builder *b, struct doc_node *map, struct doc_node **kids, size_t n)
{
    struct pair_list l = {0};
    bool ok = true;
    for (size_t i = 0; ok && i + 1 < n; i += 2) {
        struct doc_node *key = kids[i], *value = kids[i + 1];
        if (key->kind != DOC_SCALAR) {
            doc_problem(b, key->line, key->column, "a key is a text here, not a %s",
                        key->kind == DOC_MAP ? "map" : "list");
        } else if (!b->doc->json && key->plain && strcmp(key->text, "<<") == 0) {
            if (value->kind != DOC_LIST)
                ok = merge_map(b, &l, value, key);
            else
                for (size_t k = 0; ok && k < value->n; k++)
                    ok = merge_map(b, &l, value->items[k], key);
        } else {
            add_pair(&l, key, value, false);
        }
    }
    if (ok && l.n) {
        qsort(l.v, l.n, sizeof(*l.v), compare_pairs);
        size_t kept = 1;
        for (size_t i = 1; i < l.n; i++) {
            const struct pair_order *first = &l.v[kept - 1];
            struct doc_node *key = l.v[i].pair.key;
            if (compare_keys(first->pair.key, key) != 0) {
                l.v[kept++] = l.v[i];
            } else if (!l.v[i].merged) {
                CB_AUTO_FREE char *q = quote_text(key->text, key->n);
                doc_problem(b, key->line, key->column,
                            "the key %s stands twice in one map; the first one is in line %d", q,
                            first->pair.key->line);
            }
        }
        l.n = kept;
        qsort(l.v, l.n, sizeof(*l.v), compare_order);
        map->pairs = doc_alloc(b->doc, l.n * sizeof(*map->pairs));
        for (size_t i = 0; i < l.n; i++) {
            map->pairs[i] = l.v[i].pair;
            const struct doc_node *v = l.v[i].pair.value;
            map->expanded += 1 + v->expanded;
            if (v->height + 1 > map->height)
                map->height = v->height + 1;
        }
        map->n = l.n;
    }
    free(l.v);
    return ok;
}

bool doc_close(struct doc_builder *b)
{
    struct doc_frame f = b->frames[b->depth - 1];
    size_t n = b->n_stack - f.base;
    struct doc_node **kids = b->stack + f.base;
    f.node->open = false;
    bool ok = true;
    b->n_stack = f.base; /* so that a problem with a key names the map's path, not its last key's */
    if (f.node->kind == DOC_MAP) {
        ok = close_map(b, f.node, kids, n);
    } else if (n) {
        f.node->items = doc_alloc(b->doc, n * sizeof(struct doc_node *));
        memcpy(f.node->items, kids, n * sizeof(struct doc_node *));
        f.node->n = n;
        for (size_t i = 0; i < n; i++) {
            f.node->expanded += kids[i]->expanded;
            if (kids[i]->height + 1 > f.node->height)
                f.node->height = kids[i]->height + 1;
        }
    }
    b->depth--;
    return ok;
}

/* Bytes that no document may hold: not UTF-8, NUL, and for YAML the other control characters. */
static bool check_characters(struct doc *d, struct config_problems *problems)
{
    struct source *s = &d->src;
    int line = 1, column = 1;
    for (size_t i = 0; i < s->len;) {
        uint32_t cp = 0;
        size_t n = utf8_next(s->text + i, s->len - i, &cp);
        bool control = n && (cp == 0 || (s->yaml && cp < 0x20 && !strchr("\t\n\r", (int)cp)) ||
                             (s->yaml && cp >= 0x7f && cp < 0xa0 && cp != 0x85));
        if (n == 0) {
            problem_add(problems, s, false, line, column, NULL,
                        "the byte 0x%02x is not UTF-8 here; save the file as UTF-8",
                        (unsigned char)s->text[i]);
            return false;
        }
        if (control || (s->yaml && (cp == 0xfffe || cp == 0xffff))) {
            problem_add(problems, s, false, line, column, NULL,
                        "the character U+%04X is not accepted in a %s file", (unsigned)cp,
                        s->yaml ? "YAML" : "JSON");
            return false;
        }
        bool crlf = cp == '\r' && i + 1 < s->len && s->text[i + 1] == '\n';
        if (!crlf && (cp == '\n' || cp == '\r' ||
                      (s->yaml && (cp == 0x85 || cp == 0x2028 || cp == 0x2029)))) {
            line++;
            column = 1;
        } else {
            column++;
        }
        i += n;
    }
    return true;
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

static bool read_as(struct doc *d, bool json, struct config_problems *problems)
{
    d->json = json;
    d->src.yaml = !json;
    if (!check_characters(d, problems))
        return false;
    struct doc_builder b = {.doc = d, .problems = problems};
    bool ok = json ? doc_read_json(&b) : doc_read_yaml(&b);
    d->root = ok && b.n_stack == 1 ? b.stack[0] : NULL;
    free(b.stack);
    return d->root != NULL;
}

static bool read_any(struct doc *d, enum config_format format, struct config_problems *problems)
{
    const char *text = d->src.text, *name = d->src.name;
    size_t len = d->src.len;
    if (len > CB_CONFIG_MAX) {
        d->src.len = 0;
        problem_add(problems, &d->src, false, 0, 0, NULL, "larger than 1 MiB (%zu bytes)", len);
        return false;
    }
    if (len >= 2 && (memcmp(text, "\xff\xfe", 2) == 0 || memcmp(text, "\xfe\xff", 2) == 0)) {
        problem_add(problems, &d->src, false, 0, 0, NULL, "this is UTF-16; save the file as UTF-8");
        return false;
    }
    if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark: harmless */
        d->src.text += 3;
        d->src.len -= 3;
    }
    if (format == CONFIG_AUTO && name && ends_with(name, ".json"))
        format = CONFIG_JSON;
    if (format == CONFIG_AUTO) {
        /* Whatever is valid JSON is read as JSON: YAML differs in tabs and in some escapes. */
        size_t i = 0;
        while (i < d->src.len && isspace((unsigned char)d->src.text[i]))
            i++;
        if (i < d->src.len && d->src.text[i] == '{') {
            struct config_problems quiet = {0};
            bool ok = read_as(d, true, &quiet) && quiet.n_errors == 0;
            config_problems_release(&quiet);
            if (ok)
                return true;
            doc_release(d);
        }
    }
    return read_as(d, format == CONFIG_JSON, problems);
}

bool doc_read(struct doc *d, const char *text, size_t len, const char *name,
              enum config_format format, struct config_problems *problems)
{
    *d = (struct doc){.src = {.name = name, .text = text, .len = len, .yaml = true}};
    return read_any(d, format, problems);
}

bool doc_read_private(struct doc *d, const char *text, size_t len, const char *name,
                      enum config_format format, struct config_problems *problems)
{
    *d = (struct doc){
        .src = {.name = name, .text = text, .len = len, .yaml = true, .no_excerpt = true}};
    return read_any(d, format, problems);
}

bool doc_is_null(const struct doc_node *n)
{
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    if (n->kind != DOC_SCALAR || !n->plain)
        return false;
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(n->text, words[i]) == 0)
            return true;
    return false;
}

bool doc_integer(const struct doc_node *n, int64_t *out)
{
    if (n->kind != DOC_SCALAR || !n->plain)
        return false;
    const char *p = n->text;
    bool negative = *p == '-';
    p += negative;
    size_t digits = strlen(p);
    if (digits == 0 || digits > 18 || (*p == '0' && (digits > 1 || negative)))
        return false;
    int64_t v = 0;
    for (; *p; p++) {
        if (*p < '0' || *p > '9')
            return false;
        v = v * 10 + (*p - '0');
    }
    *out = negative ? -v : v;
    return true;
}

static json_t *scalar_to_json(const struct doc_node *n)
{
    int64_t i;
    if (n->plain) {
        if (doc_is_null(n))
            return json_null();
        if (strcmp(n->text, "true") == 0 || strcmp(n->text, "false") == 0)
            return json_boolean(n->text[0] == 't');
        if (doc_integer(n, &i))
            return json_integer(i);
        /* the rest of what JSON calls a number; jansson's own reader is as strict as JSON */
        if (*n->text && n->n < 64 && (isdigit((unsigned char)*n->text) || *n->text == '-')) {
            json_t *v = json_loads(n->text, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
            if (json_is_real(v))
                return v;
            json_decref(v);
        }
    }
    return json_stringn(n->text, n->n);
}

json_t *doc_to_json(const struct doc_node *n)
{
    json_t *out = NULL;
    bool ok = true;
    switch (n->kind) {
    case DOC_SCALAR: return scalar_to_json(n);
    case DOC_LIST:
        out = json_array();
        for (size_t i = 0; ok && i < n->n; i++)
            ok = json_array_append_new(out, doc_to_json(n->items[i])) == 0;
        break;
    case DOC_MAP:
        out = json_object();
        for (size_t i = 0; ok && i < n->n; i++)
            ok = json_object_set_new(out, n->pairs[i].key->text, doc_to_json(n->pairs[i].value)) ==
                 0;
        break;
    }
    if (!ok) {
        json_decref(out);
        return NULL;
    }
    return out;
}
