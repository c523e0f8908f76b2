/* ignore: the rules of a .dockerignore, as Docker reads them: which files beside a config stay out
 * of what builds take.
 *
 * One pattern a line (schemas/pattern.h, with `**`), relative to the folder that the file is in;
 * lines that begin with `#` and empty ones are skipped, white space at both ends, a slash in front
 * and `./` do not count. A pattern fits what has its name and all that is below it. `!` in front
 * takes back in. The last rule that fits decides. */
#pragma once

#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { IGNORE_RULES_MAX = 10000 };

struct ignore; /* opaque: the rules; borrowed everywhere below */
/* @name is what messages call the file. *@out is owned. -CB_E_CONFIG with the line. */
int ignore_parse(const char *text, size_t len, const char *name, struct ignore **out,
                 struct cb_error *err);
void ignore_free(struct ignore *ig); /* NULL is fine: no rules */
/* NULL: 0. */
size_t ignore_rules(const struct ignore *ig);
/* Is there a rule with `!`? Else nothing below an ignored folder can be taken. */
bool ignore_takes_back(const struct ignore *ig);
/* Does @path (relative, clean) stay out? @above: what this call wrote into @here for its folder;
 * NULL: that is the top. @here: ignore_rules() bytes, written. */
bool ignore_match(const struct ignore *ig, const char *path, const uint8_t *above, uint8_t *here);
/* The same for a path whose folders were not asked about. */
bool ignore_match_path(const struct ignore *ig, const char *path);

/* "a//b/./c/../d/" becomes "a/b/d", as Go's path.Clean() has it; "" becomes ".". Owned. */
char *path_clean(const char *path);
