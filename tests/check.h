/* What every unit test starts with: cmocka, and a fresh folder per test that is removed after it.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "support/cleanup.h"
#include "support/error.h"
#include "support/file.h"
#include "support/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What was said goes to the file that CB_TRANSCRIPT names, if it is set:
 * tests/schemas/check_messages.py looks there for every message of the sources. */
static inline void check_said(const char *text)
{
    const char *path = getenv("CB_TRANSCRIPT");
    FILE *f = path && text ? fopen(path, "ae") : NULL;
    if (!f)
        return;
    fprintf(f, "%s\n", text);
    (void)fclose(f);
}

/* Asserts that @call succeeded; on failure prints the error's own words. */
#define assert_ok(call, err)                                                                       \
    do {                                                                                           \
        long check_rc_ = (long)(call);                                                             \
        if (check_rc_ < 0)                                                                         \
            fail_msg("%s: %s (%s)", #call, (err)->msg ? (err)->msg : "no message",                 \
                     cb_code_name((err)->code));                                                   \
    } while (0)

/* Asserts the code, and that the message holds @text; clears the error. */
#define assert_fails(call, err, expected_code, text)                                               \
    do {                                                                                           \
        long check_rc_ = (long)(call);                                                             \
        assert_int_equal(check_rc_, -(long)(expected_code));                                       \
        assert_non_null((err)->msg);                                                               \
        check_said((err)->msg);                                                                    \
        check_said((err)->hint);                                                                   \
        if (!strstr((err)->msg, (text)))                                                           \
            fail_msg("message \"%s\" does not hold \"%s\"", (err)->msg, (text));                   \
        cb_error_clear(err);                                                                       \
    } while (0)

/* A setup and teardown pair: *state is the path of a fresh folder. */
static inline int check_dir_setup(void **state)
{
    const char *base = getenv("TMPDIR");
    char *path = cb_xasprintf("%s/cb-test-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(path))
        return -1;
    *state = path;
    return 0;
}

static inline int check_dir_teardown(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = cb_remove_tree(*state, &err);
    free(*state);
    return rc;
}

#define test_in_dir(f) cmocka_unit_test_setup_teardown(f, check_dir_setup, check_dir_teardown)
