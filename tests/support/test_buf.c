#include "check.h"

#include "support/buf.h"

static void test_append_stops_at_the_ceiling(void **state)
{
    (void)state;
    CB_AUTO_BUF b = CB_BUF_INIT(8);
    assert_int_equal(cb_buf_adds(&b, "12345"), 0);
    assert_int_equal(cb_buf_adds(&b, "6789"), -CB_E_LIMIT);
    assert_true(b.over);
    assert_string_equal(b.data, "12345");
    assert_int_equal(cb_buf_adds(&b, "6"), -CB_E_LIMIT); /* a hole in the middle would be worse */
    cb_buf_clear(&b);
    assert_int_equal(cb_buf_adds(&b, "12345678"), 0);
    assert_int_equal(b.len, 8);
}

static void test_take_gives_text_also_when_empty(void **state)
{
    (void)state;
    CB_AUTO_BUF b = CB_BUF_INIT(8);
    CB_AUTO_FREE char *s = cb_buf_take(&b);
    assert_string_equal(s, "");
}

static void test_drop_keeps_the_rest(void **state)
{
    (void)state;
    CB_AUTO_BUF b = CB_BUF_INIT(100);
    cb_buf_addf(&b, "%s-%d", "abc", 7);
    cb_buf_drop(&b, 2);
    assert_string_equal(b.data, "c-7");
    cb_buf_drop(&b, 99);
    assert_int_equal(b.len, 0);
}

static void test_strv_is_null_terminated(void **state)
{
    (void)state;
    CB_AUTO_STRV s = {0};
    for (int i = 0; i < 100; i++)
        cb_strv_addf(&s, "%d", i);
    assert_int_equal(s.n, 100);
    assert_null(s.v[100]);
    assert_string_equal(s.v[99], "99");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append_stops_at_the_ceiling),
        cmocka_unit_test(test_take_gives_text_also_when_empty),
        cmocka_unit_test(test_drop_keeps_the_rest),
        cmocka_unit_test(test_strv_is_null_terminated),
    };
    return cmocka_run_group_tests_name("support/buf", tests, NULL, NULL);
}
