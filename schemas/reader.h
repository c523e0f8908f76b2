/* reader: from a document's tree into structs, by tables of fields.
 * Every function adds what is wrong to the problems and goes on, so that one run finds all of it.
 * Private to schemas/. */
#pragma once

#include "schemas/doc.h"

struct field;

/* Where a key that is unknown in one place may belong, for the message. */
struct field_home {
    const struct field *fields;
    const char *where; /* "below `config`" */
};

struct reader {
    struct doc *doc;
    struct config_problems *problems;
    unsigned flags;                 /* config_flags */
    const struct field_home *homes; /* ends with NULL fields; may be NULL */
    void *user;
    size_t n_commands; /* read so far */
};

/* Where in the document: a chain on the stack, written out only for a problem. */
struct at {
    const struct at *up; /* NULL: the document's top */
    const char *key;     /* NULL: a list's item */
    size_t index;
};
/* "layers[0].name", "" for the top. Owned. */
char *at_path(const struct at *at);

struct field {
    const char *name;
    /* Reads @n into @to (the struct's base plus offset). True when a value was given that differs
     * from leaving the field out. */
    bool (*read)(struct reader *r, const struct at *at, const struct doc_node *n,
                 const struct field *f, void *to);
    size_t offset;
    int64_t min, max;    /* of numbers; bytes of texts (max 0: FIELD_TEXT_MAX) */
    const char *accepts; /* for messages; NULL: the kind's own words */
    const char *note;    /* called when a value was given: not acted on yet; NULL: acted on */
    bool required;
    const void *more; /* for the read function */
};

/* Linux takes no longer string as one argument or environment variable (MAX_ARG_STRLEN). */
#define FIELD_TEXT_MAX (128u << 10)

/* Called for a field with a note. */
void reader_note(struct reader *r, const struct at *at, const struct doc_node *n,
                 const char *field);

void read_problem(struct reader *r, const struct at *at, const struct doc_node *n, const char *fmt,
                  ...) __attribute__((format(printf, 4, 5)));
/* The same for a place that may hold a secret: its line is not shown. */
void read_problem_private(struct reader *r, const struct at *at, const struct doc_node *n,
                          const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* "expected @what, found ...". Always false. */
bool read_expected(struct reader *r, const struct at *at, const struct doc_node *n,
                   const char *what);

/* The same, with "did you mean @near?" unless that is NULL. */
bool read_expected_near(struct reader *r, const struct at *at, const struct doc_node *n,
                        const char *what, const char *near);

/* Reads the map @n into the struct at @base. False when it is no map. @fields ends with a NULL
 * name. */
bool read_map(struct reader *r, const struct at *at, const struct doc_node *n,
              const struct field *fields, void *base);

/* Field readers. The type of the target is in brackets. */
bool read_string(struct reader *r, const struct at *at, const struct doc_node *n,
                 const struct field *f, void *to); /* char *: not empty */
bool read_bool(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to); /* bool */
bool read_auto_bool(struct reader *r, const struct at *at, const struct doc_node *n,
                    const struct field *f, void *to); /* enum auto_bool */
bool read_u32(struct reader *r, const struct at *at, const struct doc_node *n,
              const struct field *f, void *to); /* uint32_t: min..max */
bool read_u16(struct reader *r, const struct at *at, const struct doc_node *n,
              const struct field *f, void *to); /* uint16_t: min..max */
bool read_i64(struct reader *r, const struct at *at, const struct doc_node *n,
              const struct field *f, void *to); /* int64_t: min..max */
bool read_duration(struct reader *r, const struct at *at, const struct doc_node *n,
                   const struct field *f, void *to); /* int64_t, milliseconds: min..max */
bool read_strv(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f,
               void *to); /* cb_strv: at least one item, items may be empty */
bool read_env(struct reader *r, const struct at *at, const struct doc_node *n,
              const struct field *f, void *to); /* config_pairs, ${VAR} expanded when f->more */
bool read_object(struct reader *r, const struct at *at, const struct doc_node *n,
                 const struct field *f, void *to); /* char *: a map as canonical JSON */

bool read_choice(struct reader *r, const struct at *at, const struct doc_node *n,
                 const struct field *f,
                 void *to); /* char *: one of f->more, words that end with NULL */

/* What people write in place of an accepted word. Ends with NULL. */
struct word_meant {
    const char *given, *meant;
};
/* The index of the word that stands there, in *@out. @words ends with NULL; @meant may be NULL. */
bool read_one_of(struct reader *r, const struct at *at, const struct doc_node *n,
                 const char *const *words, const struct word_meant *meant, size_t *out);

/* Reads the list @n into an array of @size-byte structs by @fields; each gets its place at @loc_at
 * (SIZE_MAX: it has none). */
bool read_structs(struct reader *r, const struct at *at, const struct doc_node *n,
                  const struct field *fields, const char *accepts, size_t size, size_t loc_at,
                  void **out, size_t *count);

/* A text, or NULL after a problem. Borrowed from the document. */
const char *read_text(struct reader *r, const struct at *at, const struct doc_node *n,
                      const char *accepts);
/* An owned copy of the place, for the model. */
struct cb_loc read_loc(struct reader *r, const struct at *at, const struct doc_node *n);

/* True when each ${VAR} in @text is set; the problem says which is not. The expanded text goes to
 * @out (may be NULL). */
bool read_expand(struct reader *r, const struct at *at, const struct doc_node *n, const char *text,
                 struct cb_buf *out);
/* `${` as expansion would have to find it to leave it alone. Owned. */
char *expand_escape(const char *text);

/* The value of @key, or NULL. */
const struct doc_node *doc_child(const struct doc_node *map, const char *key);

/* The name in the table that was probably meant, or NULL. */
const char *nearest_name(const char *given, const struct field *fields);
/* A key of @map is no field, and @name was probably meant: who misses that field has been told. */
bool is_misspelt(const struct reader *r, const struct doc_node *map, const struct field *fields,
                 const char *name);
/* The same among @words, which end with NULL. */
const char *nearest_word(const char *given, const char *const *words);
