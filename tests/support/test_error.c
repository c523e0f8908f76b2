#include "check.h"

#include <errno.h>

static void test_fail_keeps_code_and_words(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_int_equal(cb_fail(&err, CB_E_NET, "host %s", "a"), -CB_E_NET);
    assert_string_equal(err.msg, "host a");
    assert_int_equal(cb_wrap(&err, "pull %d", 3), -CB_E_NET);
    assert_string_equal(err.msg, "pull 3: host a");
    assert_true(cb_error_is_transient(&err));
}

static void test_fail_sys_adds_reason_and_class(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_int_equal(cb_fail_sys(&err, EACCES, "open x"), -CB_E_SYS);
    assert_string_equal(err.msg, "open x: Permission denied");
    assert_int_equal(err.sys, EACCES);
    cb_error_clear(&err);
    assert_int_equal(cb_fail_sys(&err, ENOSPC, "write x"), -CB_E_ENV);
    assert_non_null(err.hint);
}

static void test_first_hint_wins(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    cb_fail(&err, CB_E_ENV, "no qemu");
    cb_hint(&err, "apt-get install %s", "qemu-system-x86");
    cb_hint(&err, "something else");
    assert_string_equal(err.hint, "apt-get install qemu-system-x86");
}

static void test_move_empties_the_source(void **state)
{
    (void)state;
    CB_AUTO_ERROR from = CB_ERROR_INIT;
    CB_AUTO_ERROR to = CB_ERROR_INIT;
    cb_fail(&from, CB_E_LIMIT, "too much");
    assert_int_equal(cb_error_move(&to, &from), -CB_E_LIMIT);
    assert_int_equal(from.code, CB_OK);
    assert_null(from.msg);
    assert_string_equal(to.msg, "too much");
}

static void test_null_slot_still_gives_the_code(void **state)
{
    (void)state;
    assert_int_equal(cb_fail(NULL, CB_E_AUTH, "no"), -CB_E_AUTH);
    assert_int_equal(cb_fail_sys(NULL, EIO, "no"), -CB_E_SYS);
}

static void test_every_code_has_a_name(void **state)
{
    (void)state;
    for (int c = 0; c < CB_E_N; c++)
        assert_string_not_equal(cb_code_name((enum cb_code)c), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fail_keeps_code_and_words),
        cmocka_unit_test(test_fail_sys_adds_reason_and_class),
        cmocka_unit_test(test_first_hint_wins),
        cmocka_unit_test(test_move_empties_the_source),
        cmocka_unit_test(test_null_slot_still_gives_the_code),
        cmocka_unit_test(test_every_code_has_a_name),
    };
    return cmocka_run_group_tests_name("support/error", tests, NULL, NULL);
}
