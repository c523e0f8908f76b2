/* yaml: a JSON value as YAML in block style, for people. A YAML reader gets the same value back,
 * and nothing in it can move a terminal's cursor: what is not plain text is escaped. */
#pragma once

#include "support/buf.h"

#include <jansson.h>

void yaml_write(json_t *value, struct cb_buf *out);
