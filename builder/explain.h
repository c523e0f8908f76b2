/* explain: why a layer is not used again: the first input of its key that differs from the last
 * build of the same config.
 *
 * Both sides are records of what the keys of a build were made from (plan_record() makes one, and a
 * build keeps its own beside the store's other notes):
 *
 *   {"base_image": REF, "base": INPUTS, "layers": [{"name", "inputs": INPUTS}], "template": INPUTS}
 *
 * with INPUTS as schemas/keys.h hashes them. A record that was read back may be damaged: what lacks
 * the shape counts as absent. Pure: no input or output. All texts are owned. */
#pragma once

#include <jansson.h>
#include <stddef.h>

/* "base image: debian:bookworm moved from sha256:... to sha256:...", or NULL when nothing differs.
 * @last NULL: "not built before". */
char *explain_base(json_t *last, json_t *now);
/* For layer @k of @now: "command 2 changed", "new", "layer deps below it: command 2 changed",
 * "base image: ..."; NULL when nothing differs. */
char *explain_layer(json_t *last, json_t *now, size_t k);
/* Why the image is finished anew: "layer deps: command 2 changed", "tier changed from s to m". */
char *explain_template(json_t *last, json_t *now);
