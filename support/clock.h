/* clock: the time, for people (wall clock) and for deadlines (monotonic). */
#pragma once

#include <stddef.h>
#include <stdint.h>

int64_t cb_now_ms(void);       /* wall clock, milliseconds since 1970-01-01T00:00:00Z */
int64_t cb_monotonic_ms(void); /* never goes back; for time limits and durations */
int64_t cb_monotonic_us(void);
#define CB_RFC3339_LEN 24 /* "2026-01-02T03:04:05.678Z", without the NUL */
/* @out holds CB_RFC3339_LEN + 1 bytes. */
void cb_rfc3339(int64_t ms, char *out);
