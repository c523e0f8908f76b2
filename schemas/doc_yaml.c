/* YAML by libyaml's events: nothing is typed here, and every node keeps its mark. */
#include "schemas/doc.h"

#include "support/mem.h"

#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define CORE "tag:yaml.org,2002:"

struct anchor {
    struct doc_node *node; /* the last one with this name */
    char name[];
};

struct yaml_reader {
    struct doc_builder *b;
    yaml_parser_t parser;
    size_t n_anchors;
    void *anchors; /* tsearch tree: balanced whatever the names */
};

static int compare_anchors(const void *a, const void *b)
{
    return strcmp(((const struct anchor *)a)->name, ((const struct anchor *)b)->name);
}

static struct anchor *anchor_new(const char *name)
{
    size_t n = strlen(name) + 1;
    struct anchor *a = cb_xmalloc(sizeof(*a) + n);
    a->node = NULL;
    memcpy(a->name, name, n);
    return a;
}

static bool set_anchor(struct yaml_reader *r, const yaml_char_t *name, struct doc_node *node)
{
    if (!name)
        return true;
    if (++r->n_anchors > DOC_ANCHORS_MAX) {
        doc_problem(r->b, node->line, node->column, "more than %u anchors", DOC_ANCHORS_MAX);
        return false;
    }
    struct anchor *a = anchor_new((const char *)name);
    struct anchor **found = tsearch(a, &r->anchors, compare_anchors);
    if (*found != a)
        free(a);
    (*found)->node = node;
    return true;
}

static bool alias(struct yaml_reader *r, const yaml_event_t *e)
{
    const char *name = (const char *)e->data.alias.anchor;
    int line = (int)e->start_mark.line + 1, column = (int)e->start_mark.column + 1;
    struct anchor *want = anchor_new(name);
    struct anchor **found = tfind(want, &r->anchors, compare_anchors);
    free(want);
    if (!found) {
        doc_problem(r->b, line, column, "no anchor &%.60s stands before this alias", name);
        struct doc_node *stand_in = NULL;
        if (!doc_add_scalar(r->b, "", 0, false, line, column, &stand_in))
            return false;
        stand_in->broken = true;
        return true;
    }
    if ((*found)->node->open) {
        doc_problem(r->b, line, column, "the alias *%.60s stands inside of what it names", name);
        return false;
    }
    return doc_add_shared(r->b, (*found)->node, line, column);
}

/* True for a tag that means what the node is anyway, or NULL. */
static bool check_tag(struct yaml_reader *r, const yaml_event_t *e, const yaml_char_t *tag,
                      const char *const *accepted)
{
    const char *t = (const char *)tag;
    if (!t || strcmp(t, "!") == 0)
        return true;
    if (strncmp(t, CORE, strlen(CORE)) == 0)
        for (; *accepted; accepted++)
            if (strcmp(t + strlen(CORE), *accepted) == 0)
                return true;
    doc_problem(r->b, (int)e->start_mark.line + 1, (int)e->start_mark.column + 1,
                "the tag %.80s is not accepted; leave it out", t);
    return false;
}

static bool scalar(struct yaml_reader *r, const yaml_event_t *e)
{
    static const char *const accepted[] = {"str", "int", "bool", "null", "float", NULL};
    const char *tag = (const char *)e->data.scalar.tag;
    bool plain = e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    if (tag && check_tag(r, e, e->data.scalar.tag, accepted))
        plain = strcmp(tag, CORE "str") != 0 && strcmp(tag, "!") != 0;
    struct doc_node *n = NULL;
    bool ok = doc_add_scalar(r->b, (const char *)e->data.scalar.value, e->data.scalar.length, plain,
                             (int)e->start_mark.line + 1, (int)e->start_mark.column + 1, &n);
    return ok && set_anchor(r, e->data.scalar.anchor, n);
}

static bool open_node(struct yaml_reader *r, const yaml_event_t *e, enum doc_kind kind)
{
    static const char *const list_tags[] = {"seq", NULL};
    static const char *const map_tags[] = {"map", NULL};
    bool map = kind == DOC_MAP;
    (void)check_tag(r, e, map ? e->data.mapping_start.tag : e->data.sequence_start.tag,
                    map ? map_tags : list_tags);
    struct doc_node *n = NULL;
    bool ok = doc_open(r->b, kind, (int)e->start_mark.line + 1, (int)e->start_mark.column + 1, &n);
    return ok &&
           set_anchor(r, map ? e->data.mapping_start.anchor : e->data.sequence_start.anchor, n);
}

/* libyaml's words, with what a person can do about the usual cases. */
static void syntax_problem(struct yaml_reader *r)
{
    const yaml_parser_t *p = &r->parser;
    struct source *s = &r->b->doc->src;
    const char *what = p->problem ? p->problem : "the parser gave up";
    int line = (int)p->problem_mark.line + 1, column = (int)p->problem_mark.column + 1;
    if (p->error == YAML_READER_ERROR) /* checked before: only a limit inside libyaml is left */
        line = column = 0;
    size_t at = source_offset(s, line, column);
    const char *c = at < s->len ? &s->text[at] : "";
    const char *advice = "";
    if (strcmp(what, "found character that cannot start any token") == 0) {
        if (*c == '\t')
            what = "a tab cannot indent YAML; use spaces";
        else if (*c == '@' || *c == '`' || *c == '%')
            advice = "; put the value in quotes";
    } else if (strstr(what, "mapping values are not allowed")) {
        what = "a second \": \" in one line";
        advice = "; put the value in quotes, or check the indentation";
    } else if (strstr(what, "could not find expected ':'")) {
        what = "a key without its \":\"";
    } else if (strstr(what, "did not find expected key") ||
               strstr(what, "did not find expected '-' indicator")) {
        advice = "; check the indentation";
    } else if (strstr(what, "found a tab character") ||
               strstr(what, "tab character that violates indentation")) {
        what = "a tab cannot indent YAML; use spaces";
    }
    if (p->context && p->context_mark.line + 1 < (size_t)line)
        problem_add(r->b->problems, s, false, line, column, NULL,
                    "not valid YAML: %s%s (%s that begins in line %zu)", what, advice, p->context,
                    p->context_mark.line + 1);
    else
        problem_add(r->b->problems, s, false, line, column, NULL, "not valid YAML: %s%s", what,
                    advice);
}

/* False when reading ends here. */
static bool take(struct yaml_reader *r, const yaml_event_t *e, bool *seen)
{
    switch (e->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (*seen) {
            doc_problem(r->b, (int)e->start_mark.line + 1, (int)e->start_mark.column + 1,
                        "a second document begins here; a file holds one");
            return false;
        }
        *seen = true;
        return true;
    case YAML_ALIAS_EVENT: return alias(r, e);
    case YAML_SCALAR_EVENT: return scalar(r, e);
    case YAML_SEQUENCE_START_EVENT: return open_node(r, e, DOC_LIST);
    case YAML_MAPPING_START_EVENT: return open_node(r, e, DOC_MAP);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT: return doc_close(r->b);
    case YAML_NO_EVENT:
    case YAML_STREAM_START_EVENT:
    case YAML_STREAM_END_EVENT:
    case YAML_DOCUMENT_END_EVENT: break;
    }
    return true;
}

bool doc_read_yaml(struct doc_builder *b)
{
    struct yaml_reader r = {.b = b};
    struct source *s = &b->doc->src;
    if (!yaml_parser_initialize(&r.parser)) {
        problem_add(b->problems, s, false, 0, 0, NULL, "out of memory");
        return false;
    }
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)s->text, s->len);
    bool ok = true, end = false, seen = false;
    while (ok && !end) {
        yaml_event_t e;
        if (!yaml_parser_parse(&r.parser, &e)) {
            syntax_problem(&r);
            ok = false;
            break;
        }
        end = e.type == YAML_STREAM_END_EVENT;
        ok = take(&r, &e, &seen);
        yaml_event_delete(&e);
    }
    if (ok && !seen) {
        problem_add(b->problems, s, false, 0, 0, NULL,
                    "the file is empty; a config holds at least `base_image` or `layers`");
        ok = false;
    }
    yaml_parser_delete(&r.parser);
    tdestroy(r.anchors, free);
    return ok;
}
