/* config_json: parts of the model as JSON, for the dump and for the keys. Private to schemas/.
 * All functions return owned values and never NULL. */
#pragma once

#include "schemas/config.h"

#include <jansson.h>

/* Canonical text (schemas/keys.h says what that is). @v is taken. */
char *json_canonical(json_t *v);
/* Leaves the field out when @text is NULL. */
void json_put_text(json_t *object, const char *key, const char *text);
/* Leaves an empty map or list out. */
void json_put(json_t *object, const char *key, json_t *value);
json_t *json_strv(const struct cb_strv *s);
/* @escape: `${` becomes `$${`, as a file would have to say it. */
json_t *json_pairs(const struct config_pairs *p, bool escape);

/* As a file says it. */
json_t *json_commands(const struct commands *c);
json_t *json_drives(const struct layer *l);
json_t *json_context(const struct layer *l);
json_t *json_start(const struct start_command *s);
char *healthcheck_text(const struct healthcheck *h); /* NULL when absent */
