/* event: one record of a build's ordered list (docs/architecture.md, "Events").
 * `seq` counts 1, 2, 3... without gaps and is given by whoever stores the event; the producer
 * leaves it 0. The payload is a JSON object whose fields depend on the type. */
#pragma once

#include "support/buf.h"
#include "support/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum event_type {
    EVENT_BUILD_STATUS,
    EVENT_PLAN,
    EVENT_STEP_START,
    EVENT_OUTPUT,
    EVENT_PROGRESS,
    EVENT_STEP_END,
    EVENT_WARNING, /* {"text"}: said once, not tied to a step: "drives: not supported yet" */
    EVENT_NOTE,    /* {"text"}: why something was decided: the isolation, a layer not reused */
    EVENT_TYPE_N
};
const char *event_type_name(enum event_type t);
/* -1 for an unknown name. */
int event_type_from_name(const char *name);

enum phase {
    PHASE_RESOLVE,
    PHASE_PULL,
    PHASE_PRE_BUILD,
    PHASE_RECIPE,
    PHASE_POST_BUILD,
    PHASE_FLATTEN,
    PHASE_BOOT_CHECK,
    PHASE_PUBLISH,
    PHASE_N
};
const char *phase_name(enum phase p);

#define EVENT_OUTPUT_MAX (128u << 10) /* bytes that one output event carries at most */
#define EVENT_TEXT_MAX (32u << 10)    /* every other string is cut here, with "..." at its end */

/* Builders of payloads; each returns an owned object (json_decref). Bytes that are not UTF-8 (or
 * hold a NUL) are base64-encoded by event_output() and replaced by U+FFFD elsewhere. */
json_t *event_status(const char *status, const char *error_or_null, int attempt);
json_t *event_text(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
json_t *event_step_start(int step, enum phase phase, const char *layer_or_null, const char *cmd,
                         bool cached);
json_t *event_output(int step, const char *stream, const void *data, size_t len);
/* Output in whose place there is a line that says how much it was. */
json_t *event_left_out(int step, uint64_t bytes);
json_t *event_progress(int step, uint64_t current, uint64_t total, const char *unit);
/* @exit_code: the command's, 128 + signal when killed, 0 for internal steps that went well. */
json_t *event_step_end(int step, int exit_code, bool ok, int64_t elapsed_ms,
                       const char *error_or_null);

/* What a command used. All texts are borrowed. */
struct event_execution {
    const char *task_name;
    uint32_t retries;  /* attempts beyond the first */
    int64_t cpu_ms;    /* of all attempts */
    uint64_t ram_used; /* bytes, at the peak */
    const char
        *error_type; /* a stable word for why it failed ("exit", "timeout"); NULL: "failed" */
    const json_t *host_requests; /* a list; NULL: an empty one */
};
/* The record that a command ends with, but for what its step-end event knows. Owned. */
json_t *event_record(const struct event_execution *x);
/* Completes @record (taken) from @step_end and puts it there. */
void event_add_record(json_t *step_end, json_t *record);

/* The bytes of an output event, decoded. 0, or -CB_E_CORRUPT. */
int event_output_bytes(const json_t *payload, struct cb_buf *out, struct cb_error *err);

/* Checks that a payload from another process has the shape its type asks for and is not too large.
 * -CB_E_CORRUPT otherwise. */
int event_check(enum event_type t, const json_t *payload, struct cb_error *err);
