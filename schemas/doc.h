/* doc: a YAML or JSON document as a small tree that remembers where each thing stood.
 * Aliases and merge keys are followed by sharing nodes, under a budget of expanded ones, so that
 * whoever walks the tree meets at most DOC_NODES_MAX nodes in at most DOC_DEPTH_MAX levels. Text is
 * UTF-8 without NUL. Private to schemas/. */
#pragma once

#include "schemas/source.h"

#include <jansson.h>

#define DOC_NODES_MAX 100000u
#define DOC_DEPTH_MAX 32u
#define DOC_ANCHORS_MAX 10000u

enum doc_kind { DOC_SCALAR, DOC_LIST, DOC_MAP };

struct doc_pair {
    struct doc_node *key; /* always a scalar */
    struct doc_node *value;
};

struct doc_node {
    enum doc_kind kind;
    bool plain;        /* a scalar without quotes: only these can be numbers, booleans or null */
    bool open;         /* while reading: its end has not come yet */
    bool broken;       /* stands for something wrong that has been said: no more words about it */
    uint32_t height;   /* levels below it; a scalar has 0 */
    uint32_t expanded; /* itself and all below, aliases followed */
    int line, column;
    size_t n; /* bytes of text, items or pairs */
    union {
        const char *text; /* followed by a NUL */
        struct doc_node **items;
        struct doc_pair *pairs; /* no key twice */
    };
};

struct doc {
    struct source src;
    bool json;
    struct doc_node *root; /* NULL when the document could not be read to its end */
    struct doc_chunk *chunks;
};

/* Reads @text, which must outlive @d. Everything that is wrong goes to @problems; false when there
 * is no tree to look at. Release @d in both cases. */
bool doc_read(struct doc *d, const char *text, size_t len, const char *name,
              enum config_format format, struct config_problems *problems);
/* The same; no line of it is shown in a problem. */
bool doc_read_private(struct doc *d, const char *text, size_t len, const char *name,
                      enum config_format format, struct config_problems *problems);
void doc_release(struct doc *d);

/* The value as JSON (owned): plain scalars as YAML 1.2's JSON schema types them. NULL when it does
 * not fit (never for a tree that doc_read() made). */
json_t *doc_to_json(const struct doc_node *n);
bool doc_is_null(const struct doc_node *n);
/* A strict decimal whole number: no plus sign, leading zero, underscore or fraction. */
bool doc_integer(const struct doc_node *n, int64_t *out);

/* Shared by the two readers (doc.c): nodes are kept in a stack until the list or map they belong to
 * ends. */
struct doc_frame {
    struct doc_node *node;
    size_t base; /* first child in the stack */
};
struct doc_builder {
    struct doc *doc;
    struct config_problems *problems;
    struct doc_frame frames[DOC_DEPTH_MAX];
    size_t depth;
    struct doc_node **stack;
    size_t n_stack, cap_stack;
    size_t n_nodes; /* expanded */
};
void *doc_alloc(struct doc *d, size_t n);
/* Each returns false after a problem that ends reading. */
bool doc_add_scalar(struct doc_builder *b, const char *text, size_t len, bool plain, int line,
                    int column, struct doc_node **out);
bool doc_open(struct doc_builder *b, enum doc_kind kind, int line, int column,
              struct doc_node **out);
bool doc_close(struct doc_builder *b);
/* @shared is used once more, at @line, @column. */
bool doc_add_shared(struct doc_builder *b, struct doc_node *shared, int line, int column);
void doc_problem(struct doc_builder *b, int line, int column, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

bool doc_read_json(struct doc_builder *b);
bool doc_read_yaml(struct doc_builder *b);
