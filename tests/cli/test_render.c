#include "check.h"

#include "cli/cli.h"

#include <stdio.h>

/* Renders @n events (payloads taken) as @mode and returns the text, owned. */
static char *render(enum progress_mode mode, const enum event_type *types, json_t **payloads,
                    size_t n)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    struct render *r = render_new(mode, out, "B1");
    for (size_t i = 0; i < n; i++) {
        struct event_out ev = {i + 1, 1000 + (int64_t)i, types[i], payloads[i]};
        render_event(r, &ev);
        json_decref(payloads[i]);
    }
    render_free(r);
    fclose(out);
    return text;
}

static char *render_output(const char *bytes)
{
    enum event_type types[] = {EVENT_STEP_START, EVENT_OUTPUT, EVENT_STEP_END};
    json_t *p[] = {event_step_start(3, PHASE_RECIPE, "deps", "make", false),
                   event_output(3, "stdout", bytes, strlen(bytes)),
                   event_step_end(3, 0, true, 1500, NULL)};
    return render(PROGRESS_PLAIN, types, p, 3);
}

static void test_output_cannot_move_the_cursor(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"plain\n", "  | plain\n"},
        {"no newline at the end", "  | no newline at the end\n"},
        {"two\nlines\n", "  | two\n  | lines\n"},
        {"\033[31mred\033[0m\n", "  | red\n"},
        {"\033[2J\033[Hhome\n", "  | home\n"},
        {"\033]0;title\ahidden\n", "  | hidden\n"},
        {"\033]8;;http://x\033\\link\n", "  | link\n"},
        {"10%\r50%\r100%\n", "  | 100%\n"},
        {"dos\r\n", "  | dos\n"},
        {"bell\a and \b backspace\n", "  | bell and  backspace\n"},
        {"cut \033[", "  | cut \n"},
        {"8 bits \302\2332J\302\240\n", "  | 8 bits 2J\302\240\n"},
        {"a\tb\n", "  | a\tb\n"},
        {"\n", "  | \n"},
        {"gr\303\274n\n", "  | gr\303\274n\n"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        CB_AUTO_FREE char *text = render_output(cases[i].in);
        CB_AUTO_FREE char *want =
            cb_xasprintf("[3] deps: make\n%s  done after 1.5 s\n", cases[i].out);
        assert_string_equal(text, want);
    }
}

static void test_failure_shows_its_first_line(void **state)
{
    (void)state;
    enum event_type types[] = {EVENT_STEP_START, EVENT_STEP_END, EVENT_BUILD_STATUS};
    json_t *p[] = {event_step_start(1, PHASE_RECIPE, "a", "false", false),
                   event_step_end(1, 1, false, 100, "exit code 1\nits last lines:\nx"),
                   event_status("failed", "exit code 1\nits last lines:\nx", 1)};
    CB_AUTO_FREE char *text = render(PROGRESS_PLAIN, types, p, 3);
    assert_string_equal(text, "[1] a: false\n  FAILED after 0.1 s: exit code 1\n"
                              "build B1: failed: exit code 1\n");
}

static json_t *end_with(bool ok, int64_t cpu_ms, uint64_t ram, uint32_t retries)
{
    json_t *end = event_step_end(1, ok ? 0 : 1, ok, 3100, ok ? NULL : "no");
    event_add_record(end, event_record(&(struct event_execution){
                              .cpu_ms = cpu_ms, .ram_used = ram, .retries = retries}));
    return end;
}

static void test_an_end_says_what_was_used(void **state)
{
    (void)state;
    enum event_type types[] = {EVENT_STEP_END, EVENT_STEP_END, EVENT_STEP_END, EVENT_OUTPUT};
    json_t *p[] = {end_with(true, 1200, UINT64_C(45) << 20, 0), end_with(true, 99, 4096, 0),
                   end_with(false, 0, 0, 2), event_left_out(1, 2048)};
    CB_AUTO_FREE char *text = render(PROGRESS_PLAIN, types, p, 4);
    assert_string_equal(text, "  done after 3.1 s, 1.2 s CPU, 45.0 MiB\n"
                              "  done after 3.1 s\n"
                              "  FAILED after 3.1 s, attempt 3: no\n"
                              "  | … 2.0 KiB of output left out …\n");
}

static void test_titles_and_notes_are_plain_text(void **state)
{
    (void)state;
    enum event_type types[] = {EVENT_STEP_START, EVENT_NOTE, EVENT_WARNING};
    json_t *p[] = {event_step_start(1, PHASE_RECIPE, "a", "x\033[2Jy\tz", false),
                   event_text("from a guest: \033]0;t\a!"), event_text("w\r\033[A")};
    CB_AUTO_FREE char *text = render(PROGRESS_PLAIN, types, p, 3);
    assert_string_equal(text, "[1] a: x [2Jy z\n  from a guest: ]0;t!\nwarning: w[A\n");
}

static void test_text_has_no_control_characters(void **state)
{
    (void)state;
    static const struct {
        const char *in, *end, *out;
    } cases[] = {
        {"one\ntwo\tthree", "", "one\ntwo\tthree"},
        {"one\ntwo", "\n", "one"},
        {"\033]0;t\a\033[2J\r\177!", "", "]0;t[2J!"},
        {"\302\2332J \302\200\302\237 \302\240 \303\274", "", "2J  \302\240 \303\274"},
        {"", "", ""},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char *text = NULL;
        size_t len = 0;
        FILE *out = open_memstream(&text, &len);
        cli_put_text(out, cases[i].in, cases[i].end);
        fclose(out);
        assert_string_equal(text, cases[i].out);
        free(text);
    }
}

static void test_cached_step_is_one_line(void **state)
{
    (void)state;
    enum event_type types[] = {EVENT_STEP_START, EVENT_STEP_END};
    json_t *p[] = {event_step_start(2, PHASE_RECIPE, "a", "make", true),
                   event_step_end(2, 0, true, 0, NULL)};
    CB_AUTO_FREE char *text = render(PROGRESS_PLAIN, types, p, 2);
    assert_string_equal(text, "[2] a: make  (cached)\n");
}

static void test_json_is_one_event_a_line(void **state)
{
    (void)state;
    enum event_type types[] = {EVENT_NOTE, EVENT_OUTPUT};
    json_t *p[] = {event_text("hello"), event_output(4, "stderr", "\xff", 1)};
    CB_AUTO_FREE char *text = render(PROGRESS_JSON, types, p, 2);
    char *nl = strchr(text, '\n');
    assert_non_null(nl);
    json_error_t je;
    json_auto_t *one = json_loadb(text, (size_t)(nl - text), 0, &je);
    json_auto_t *two = json_loads(nl + 1, 0, &je);
    assert_int_equal(json_integer_value(json_object_get(one, "seq")), 1);
    assert_string_equal(json_string_value(json_object_get(one, "type")), "note");
    assert_string_equal(json_string_value(json_object_get(one, "text")), "hello");
    assert_string_equal(json_string_value(json_object_get(two, "encoding")), "base64");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_output_cannot_move_the_cursor),
        cmocka_unit_test(test_failure_shows_its_first_line),
        cmocka_unit_test(test_an_end_says_what_was_used),
        cmocka_unit_test(test_titles_and_notes_are_plain_text),
        cmocka_unit_test(test_text_has_no_control_characters),
        cmocka_unit_test(test_cached_step_is_one_line),
        cmocka_unit_test(test_json_is_one_event_a_line),
    };
    return cmocka_run_group_tests_name("cli/render", tests, NULL, NULL);
}
