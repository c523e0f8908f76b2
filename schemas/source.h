/* source: the text of one file that a person wrote, and what is wrong with it.
 * Knows lines, so that a problem can show the one it is about. Private to schemas/. */
#pragma once

#include "schemas/config.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Problems kept for one file; more are only counted. */
#define PROBLEMS_MAX 100u

struct source {
    const char *name; /* borrowed; what messages call the file */
    const char *text; /* borrowed; without a byte order mark */
    size_t len;
    bool no_excerpt;  /* lines may hold a password: none is shown */
    bool yaml;        /* YAML's line breaks; else those of JSON */
    uint32_t *starts; /* offset of each line, made when first needed */
    size_t n_lines;
};
void source_release(struct source *s);

/* The offset of line @line, column @column (both from 1, columns in characters); s->len beyond. */
size_t source_offset(struct source *s, int line, int column);

/* Adds a problem. @line 0: about the file as a whole. @path may be NULL. */
void problem_add(struct config_problems *p, struct source *s, bool warning, int line, int column,
                 const char *path, const char *fmt, ...) __attribute__((format(printf, 7, 8)));
void problem_vadd(struct config_problems *p, struct source *s, bool warning, int line, int column,
                  const char *path, const char *fmt, va_list ap)
    __attribute__((format(printf, 7, 0)));
/* The file at @path could not be read, by @why. */
void problem_unreadable(struct config_problems *p, const char *path, const struct cb_error *why);
/* True when there are enough; the problem is counted then, and need not be put into words. */
bool problem_dropped(struct config_problems *p, bool warning);
/* By line and column; those of one place keep their order. */
void problems_sort(struct config_problems *p);
/* Raises CB_E_CONFIG with a summary when there is an error among them, else returns 0. */
int problems_summary(const struct config_problems *p, const char *name, struct cb_error *err);

/* Length in bytes of the character at @p, or 0 when it is not UTF-8; its value in *@cp. */
size_t utf8_next(const char *p, size_t n, uint32_t *cp);
bool utf8_valid(const char *p, size_t n);

/* Text from outside, for a message: in quotes, escaped, cut after 60 characters. Owned. */
char *quote_text(const char *text, size_t len);
