/* What a mask finds, however a stream is cut, and what it leaves alone. */
#include "builder/mask.h"
#include "check.h"
#include "support/cleanup.h"
#include "support/mem.h"

/* @text in pieces of @piece bytes. Owned. */
static char *masked(struct mask *m, const char *text, size_t piece)
{
    struct mask_stream s;
    struct cb_buf out = CB_BUF_INIT(1 << 20);
    mask_stream_init(&s, m);
    for (size_t n = strlen(text), at = 0; at < n; at += piece)
        mask_feed(&s, text + at, piece < n - at ? piece : n - at, &out);
    mask_flush(&s, &out);
    mask_stream_release(&s);
    return cb_buf_take(&out);
}

static void becomes(struct mask *m, const char *text, const char *want)
{
    for (size_t piece = 1; piece <= strlen(text); piece++) {
        CB_AUTO_FREE char *got = masked(m, text, piece);
        if (strcmp(got, want) != 0)
            fail_msg("pieces of %zu: \"%s\" became \"%s\", not \"%s\"", piece, text, got, want);
    }
}

static struct mask *mask_of(const char *value)
{
    struct mask *m = mask_new();
    mask_add(m, value, strlen(value));
    return m;
}

static void test_values_are_found_in_any_pieces(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"hunter2", "***"},
        {"hunter", "hunter"},
        {"the token is hunter2\n", "the token is ***\n"},
        {"hunter2hunter2", "***"}, /* what follows at once is one */
        {"hunter2 hunter2", "*** ***"},
        {"hhunhunter2unter2", "hhun***unter2"},
        {"hunter\n2", "hunter\n2"},
        {"", ""},
    };
    struct mask *m = mask_of("hunter2");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        becomes(m, cases[i][0], cases[i][1]);
    mask_free(m);
}

static void test_values_that_overlap_are_both_gone(void **state)
{
    (void)state;
    struct mask *m = mask_of("abcdef");
    mask_add(m, "defghi", 6);
    mask_add(m, "cdef", 4);
    becomes(m, "-abcdefghi-", "-***-");
    becomes(m, "-bcdef-", "-b***-");
    becomes(m, "-abcde-", "-abcde-");
    mask_free(m);
    m = mask_of("aaaa");
    becomes(m, "aaa aaaa aaaaaaaaa", "aaa *** ***");
    mask_free(m);
}

static void test_lines_of_a_value_are_found_alone(void **state)
{
    (void)state;
    struct mask *m = mask_of("-----BEGIN KEY-----\r\nMIIEpAIB\n  indented \n}\nlast\n\n");
    becomes(m, "a MIIEpAIB, indented, last, }", "a ***, ***, ***, }");
    becomes(m, "MIIEpAIB\n  indented \n}\nlast", "***\n  *** \n}\n***");
    becomes(m, "-----BEGIN KEY-----\r\nMIIEpAIB\n  indented \n}\nlast\n", "***\n");
    mask_free(m);
}

static void test_short_values_are_left_alone(void **state)
{
    (void)state;
    struct mask *m = mask_of("abc");
    mask_add(m, "", 0);
    mask_add(m, "a\nb\n", 4);
    assert_true(mask_is_empty(m));
    becomes(m, "abc YWJj", "abc YWJj");
    assert_null(mask_text(m, "abc"));
    mask_add(m, "abcd", 4);
    becomes(m, "abc abcd", "abc ***");
    mask_free(m);
}

static char *encoded(const char *text, size_t len, size_t columns)
{
    static const char of[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    struct cb_buf out = CB_BUF_INIT(1 << 20);
    size_t column = 0;
    for (size_t i = 0; i < len; i += 3) {
        unsigned v = 0;
        for (size_t k = 0; k < 3; k++)
            v = v << 8 | (i + k < len ? (unsigned char)text[i + k] : 0);
        for (size_t k = 0; k < 4; k++) {
            (void)cb_buf_add(&out, i + k <= len ? &of[v >> (18 - 6 * k) & 63] : "=", 1);
            if (++column == columns) {
                (void)cb_buf_adds(&out, "\n");
                column = 0;
            }
        }
    }
    return cb_buf_take(&out);
}

/* No run of 6 bytes of @value is to be had by decoding any part of @text. */
static void test_encoded_values_are_found_at_every_offset(void **state)
{
    (void)state;
    static const char secret[] = "s3cret-?~value>";
    struct mask *m = mask_of(secret);
    for (size_t before = 0; before < 7; before++) {
        for (size_t after = 0; after < 4; after++) {
            CB_AUTO_FREE char *plain =
                cb_xasprintf("%.*s%s%.*s", (int)before, "user:xx", secret, (int)after, "\n\n\n");
            CB_AUTO_FREE char *code = encoded(plain, strlen(plain), 0);
            CB_AUTO_FREE char *out = masked(m, code, 3);
            /* of what surrounds it, and of its first byte, a few bits stay */
            if (!strstr(out, "***") || strlen(out) > 3 + (before + after + 2) / 3 * 4 + 4)
                fail_msg("%zu + %zu: %s became %s", before, after, code, out);
            for (char *p = code; *p; p++)
                *p = *p == '+' ? '-' : *p == '/' ? '_' : *p;
            CB_AUTO_FREE char *url = masked(m, code, 5);
            assert_string_equal(url, out);
        }
    }
    becomes(m, "czNjcmV0LT9+dmFsdWU+", "***");
    becomes(m, "czNjcmV0LT9+dmFsdWU+Cg==", "***");
    becomes(m, "czNjcmV0LT9+dmFsdWU", "czNjcmV0LT9+dmFsdWU");
    mask_free(m);
}

static void test_encoded_values_are_found_across_line_ends(void **state)
{
    (void)state;
    char secret[200], around[256];
    for (size_t i = 0; i < sizeof(secret) - 1; i++)
        secret[i] = (char)('!' + i * 7 % 90);
    secret[sizeof(secret) - 1] = '\0';
    struct mask *m = mask_of(secret);
    static const size_t columns[] = {48, 64, 76};
    for (size_t i = 0; i < 3; i++) {
        for (int before = 0; before < 4; before++) {
            (void)snprintf(around, sizeof(around), "%.*s%s", before, "::::", secret);
            CB_AUTO_FREE char *code = encoded(around, strlen(around), columns[i]);
            CB_AUTO_FREE char *got = masked(m, code, 1);
            CB_AUTO_FREE char *whole = masked(m, code, strlen(code));
            assert_string_equal(got, whole);
            assert_in_range(strlen(got), 3, 13);
        }
    }
    /* ordinary lines end where they end: nothing of them is held back for the next */
    struct mask_stream s;
    CB_AUTO_BUF out = CB_BUF_INIT(4096);
    mask_stream_init(&s, m);
    CB_AUTO_FREE char *code = encoded(secret, 6, 0);
    CB_AUTO_FREE char *line = cb_xasprintf("a line %.3s\n", code);
    mask_feed(&s, line, strlen(line), &out);
    assert_string_equal(out.data, line);
    mask_feed(&s, "more ", 5, &out);
    mask_feed(&s, secret, 9, &out);
    assert_int_equal(out.len, strlen(line) + 5);
    mask_flush(&s, &out);
    assert_int_equal(out.len, strlen(line) + 14); /* it was no secret */
    mask_stream_release(&s);
    mask_free(m);
}

static void test_a_flood_of_line_ends_is_not_held(void **state)
{
    (void)state;
    char secret[91];
    memset(secret, 'k', sizeof(secret) - 1);
    secret[sizeof(secret) - 1] = '\0';
    struct mask *m = mask_of(secret);
    struct mask_stream s;
    CB_AUTO_BUF out = CB_BUF_INIT(1 << 20);
    mask_stream_init(&s, m);
    CB_AUTO_FREE char *code = encoded(secret, 60, 0);
    mask_feed(&s, code, strlen(code), &out);
    for (int i = 0; i < 1000; i++)
        mask_feed(&s, "\n\n\n\n", 4, &out);
    assert_int_equal(s.held.len, 0);
    assert_int_equal(out.len, strlen(code) + 4000);
    mask_stream_release(&s);
    mask_free(m);
}

static void test_a_text_without_secrets_is_not_copied(void **state)
{
    (void)state;
    struct mask *m = mask_of("hunter2");
    assert_null(mask_text(m, "nothing"));
    assert_null(mask_text(m, ""));
    CB_AUTO_FREE char *got = mask_text(m, "password hunter2 was refused: aHVudGVyMg==");
    assert_string_equal(got, "password *** was refused: ***");
    mask_free(m);
}

static void test_long_and_repetitive_values_cost_no_more(void **state)
{
    (void)state;
    size_t n = 64 << 10;
    CB_AUTO_FREE char *value = cb_xcalloc(1, n + 1);
    memset(value, 'a', n);
    struct mask *m = mask_of(value);
    struct mask_stream s;
    CB_AUTO_BUF out = CB_BUF_INIT(64 << 20);
    mask_stream_init(&s, m);
    for (int i = 0; i < 100; i++) /* 6 MiB, in which it ends at every byte */
        mask_feed(&s, value, n, &out);
    mask_flush(&s, &out);
    assert_string_equal(out.data, "***");
    mask_stream_release(&s);
    mask_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_are_found_in_any_pieces),
        cmocka_unit_test(test_values_that_overlap_are_both_gone),
        cmocka_unit_test(test_lines_of_a_value_are_found_alone),
        cmocka_unit_test(test_short_values_are_left_alone),
        cmocka_unit_test(test_encoded_values_are_found_at_every_offset),
        cmocka_unit_test(test_encoded_values_are_found_across_line_ends),
        cmocka_unit_test(test_a_flood_of_line_ends_is_not_held),
        cmocka_unit_test(test_a_text_without_secrets_is_not_copied),
        cmocka_unit_test(test_long_and_repetitive_values_cost_no_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
