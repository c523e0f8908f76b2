#include "check.h"

#include "builder/builder.h"

#include <stdlib.h>

static const struct doctor_line *find_line(const struct doctor_line *l, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(l[i].what, what) == 0)
            return &l[i];
    fail_msg("no line about %s", what);
    abort(); /* fail_msg() does not return, but is not declared so */
}

/* Nothing is installed, home cannot be made, and no mirror answers: each is named, with what to do.
 */
static void test_doctor_names_what_is_missing_and_what_to_do(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *file = cb_xasprintf("%s/file", (char *)*state);
    assert_ok(cb_write_file(file, "", 0, 0644, &err), &err);
    CB_AUTO_FREE char *home = cb_xasprintf("%s/home", file);
    char mirror[] = "http://127.0.0.1:1";
    struct settings s = {.home = home, .debian_mirror = mirror};
    struct doctor_line *lines = NULL;
    size_t n = 0;
    assert_ok(doctor_run(&s, &lines, &n, &err), &err);
    const struct doctor_line *l = find_line(lines, n, "home");
    assert_int_equal(l->state, DOCTOR_BAD);
    assert_non_null(strstr(l->found, "Not a directory"));
    assert_non_null(strstr(l->advice, "CAPSULE_BUILD_HOME"));
    l = find_line(lines, n, "capsule-agent"); /* a test is not where the agent is */
    assert_int_equal(l->state, DOCTOR_BAD);
    doctor_free(lines, n);
}

static void test_doctor_says_when_no_kernel_can_be_had(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char mirror[] = "http://127.0.0.1:1";
    CB_AUTO_FREE char *home = cb_xasprintf("%s/home", (char *)*state);
    struct settings s = {.home = home, .debian_mirror = mirror};
    struct doctor_line *lines = NULL;
    size_t n = 0;
    assert_ok(doctor_run(&s, &lines, &n, &err), &err);
    const struct doctor_line *l = find_line(lines, n, "kernel");
    assert_int_equal(l->state, DOCTOR_BAD);
    assert_non_null(strstr(l->found, "no kernel to boot"));
    assert_non_null(strstr(l->advice, "--kernel"));
    assert_int_equal(find_line(lines, n, "home")->state, DOCTOR_OK);
    (void)find_line(lines, n, "free space");
    (void)find_line(lines, n, "slirp4netns");
    doctor_free(lines, n);
    CB_AUTO_FREE char *left = cb_xasprintf("%s/tmp", home); /* what was tried is gone: empty */
    assert_int_equal(rmdir(left), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_doctor_names_what_is_missing_and_what_to_do),
        test_in_dir(test_doctor_says_when_no_kernel_can_be_had),
    };
    return cmocka_run_group_tests_name("doctor", tests, NULL, NULL);
}
