#include "check.h"

#include "schemas/event.h"
#include "support/limits.h"

/* As it travels: dumped and parsed again, then checked. */
static json_t *travel(json_t *o)
{
    CB_AUTO_FREE char *text = json_dumps(o, JSON_COMPACT);
    assert_non_null(text);
    json_decref(o);
    json_t *back = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(back);
    return back;
}

static void assert_shape(enum event_type t, json_t *o, const char *expected)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    json_auto_t *back = travel(o);
    assert_ok(event_check(t, back, &err), &err);
    CB_AUTO_FREE char *text = json_dumps(back, JSON_COMPACT);
    assert_string_equal(text, expected);
}

static void test_names_go_both_ways(void **state)
{
    (void)state;
    for (int i = 0; i < EVENT_TYPE_N; i++)
        assert_int_equal(event_type_from_name(event_type_name(i)), i);
    assert_int_equal(event_type_from_name("step-started"), -1);
    assert_string_equal(phase_name(PHASE_BOOT_CHECK), "boot-check");
    for (int i = 0; i < PHASE_N; i++)
        assert_string_not_equal(phase_name(i), "unknown");
}

static void test_builders_make_what_the_check_accepts(void **state)
{
    (void)state;
    assert_shape(EVENT_BUILD_STATUS, event_status("queued", NULL, 0),
                 "{\"status\":\"queued\",\"attempt\":0}");
    assert_shape(EVENT_BUILD_STATUS, event_status("failed", "no \"such\" tag", 1),
                 "{\"status\":\"failed\",\"error\":\"no \\\"such\\\" tag\",\"attempt\":1}");
    assert_shape(EVENT_STEP_START, event_step_start(3, PHASE_RECIPE, "app", "make", false),
                 "{\"step\":3,\"phase\":\"recipe\",\"layer\":\"app\",\"cmd\":\"make\","
                 "\"cached\":false}");
    assert_shape(EVENT_STEP_START, event_step_start(1, PHASE_RESOLVE, NULL, "resolve", true),
                 "{\"step\":1,\"phase\":\"resolve\",\"cmd\":\"resolve\",\"cached\":true}");
    assert_shape(EVENT_PROGRESS, event_progress(2, 5, 10, "bytes"),
                 "{\"step\":2,\"current\":5,\"total\":10,\"unit\":\"bytes\"}");
    assert_shape(EVENT_STEP_END, event_step_end(3, 137, false, 1200, "killed by SIGKILL"),
                 "{\"step\":3,\"exit\":137,\"ok\":false,\"elapsed_ms\":1200,"
                 "\"error\":\"killed by SIGKILL\"}");
    assert_shape(EVENT_WARNING, event_text("%s: not supported yet", "drives"),
                 "{\"text\":\"drives: not supported yet\"}");
    assert_shape(EVENT_NOTE, event_text("bad \xff byte"), "{\"text\":\"bad \xef\xbf\xbd byte\"}");
}

static void test_the_record_of_a_command(void **state)
{
    (void)state;
    const struct event_execution x = {.task_name = "make",
                                      .retries = 1,
                                      .cpu_ms = 900,
                                      .ram_used = 4096,
                                      .error_type = "timeout"};
    json_t *good = event_step_end(3, 0, true, 1200, NULL);
    event_add_record(good, event_record(&x));
    assert_shape(EVENT_STEP_END, good,
                 "{\"step\":3,\"exit\":0,\"ok\":true,\"elapsed_ms\":1200,\"record\":{"
                 "\"success\":true,\"result\":null,\"error\":null,\"execution\":{"
                 "\"task_name\":\"make\",\"duration_ms\":1200,\"retries\":1,\"cpu_ms\":900,"
                 "\"ram_used\":4096,\"host_requests\":[]}}}");
    json_t *bad = event_step_end(3, 124, false, 5, "it took too long");
    event_add_record(bad, event_record(&x));
    json_auto_t *error =
        json_pack("{s:s, s:s}", "error_type", "timeout", "message", "it took too long");
    const json_t *record = json_object_get(bad, "record");
    assert_true(json_equal(json_object_get(record, "error"), error));
    assert_true(json_is_false(json_object_get(record, "success")));
    json_decref(bad);
    /* hosts are copied, and without a word it just failed */
    json_auto_t *hosts = json_pack("[s]", "example.com");
    json_auto_t *r = event_record(&(struct event_execution){.host_requests = hosts});
    json_array_clear(hosts);
    assert_int_equal(
        json_array_size(json_object_get(json_object_get(r, "execution"), "host_requests")), 1);
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(r, "error"), "error_type")), "failed");
    json_t *left_out = event_left_out(4, UINT64_C(3) << 30);
    check_said(json_string_value(json_object_get(left_out, "data")));
    assert_shape(EVENT_OUTPUT, left_out,
                 "{\"step\":4,\"stream\":\"stdout\",\"data\":\"\u2026 3.0 GiB of output left out "
                 "\u2026\\n\",\"left_out\":3221225472}");
}

static void test_output_keeps_every_byte(void **state)
{
    (void)state;
    char all[256];
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    char *control = cb_xmalloc(EVENT_OUTPUT_MAX);
    memset(control, 1, EVENT_OUTPUT_MAX);
    char *high = cb_xmalloc(EVENT_OUTPUT_MAX);
    memset(high, 0xff, EVENT_OUTPUT_MAX);
    const struct {
        const char *data;
        size_t len;
        bool base64;
    } rows[] = {
        {"", 0, false},
        {"line\n", 5, false},
        {"gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80", 11, false},
        {"\x1b[31mred\x1b[0m\ttab\r", 17, false},
        {"a\0b", 3, true},
        {"\xff", 1, true},
        {"\xff\xfe", 2, true},
        {"\xc3", 1, true},             /* cut in the middle of a character */
        {"\xc0\x80", 2, true},         /* overlong */
        {"\xed\xa0\x80", 3, true},     /* a surrogate */
        {"\xf4\x90\x80\x80", 4, true}, /* above U+10FFFF */
        {all, 256, true},
        {control, EVENT_OUTPUT_MAX, true}, /* would be six times as long as text */
        {high, EVENT_OUTPUT_MAX, true},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_BUF out = CB_BUF_INIT(CB_EVENT_MAX);
        json_auto_t *o = travel(event_output(4, "stderr", rows[i].data, rows[i].len));
        assert_ok(event_check(EVENT_OUTPUT, o, &err), &err);
        assert_int_equal(json_object_get(o, "encoding") != NULL, rows[i].base64);
        assert_ok(event_output_bytes(o, &out, &err), &err);
        assert_int_equal(out.len, rows[i].len);
        if (out.len)
            assert_memory_equal(out.data, rows[i].data, out.len);
    }
    free(control);
    free(high);
}

static void test_bytes_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF small = CB_BUF_INIT(2);
    json_auto_t *o = event_output(1, "stdout", "abc", 3);
    assert_fails(event_output_bytes(o, &small, &err), &err, CB_E_CORRUPT, "data is too large");
    json_object_set_new(o, "encoding", json_string("rot13"));
    assert_fails(event_output_bytes(o, &small, &err), &err, CB_E_CORRUPT,
                 "unknown encoding \"rot13\"");
}

static void test_long_text_is_cut(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char *cmd = cb_xmalloc(1u << 20);
    memset(cmd, 'x', (1u << 20) - 1);
    cmd[(1u << 20) - 1] = '\0';
    json_auto_t *o = travel(event_step_start(1, PHASE_RECIPE, "a", cmd, false));
    assert_ok(event_check(EVENT_STEP_START, o, &err), &err);
    const json_t *text = json_object_get(o, "cmd");
    assert_true(json_string_length(text) <= EVENT_TEXT_MAX);
    assert_string_equal(json_string_value(text) + json_string_length(text) - 4, "x...");
    memset(cmd, 0xff, (1u << 20) - 1);
    json_auto_t *bad = travel(event_text("%s", cmd));
    assert_ok(event_check(EVENT_NOTE, bad, &err), &err);
    free(cmd);
}

static void test_check_refuses(void **state)
{
    (void)state;
    static const struct {
        enum event_type type;
        const char *payload, *message;
    } rows[] = {
        {EVENT_NOTE, "[]", "note event: the payload is not an object"},
        {EVENT_NOTE, "{}", "note event: text is missing"},
        {EVENT_NOTE, "{\"text\":null}", "text is missing"},
        {EVENT_WARNING, "{\"text\":7}", "warning event: text"},
        {EVENT_BUILD_STATUS, "{\"status\":\"done\",\"attempt\":1}", "status is missing"},
        {EVENT_BUILD_STATUS, "{\"status\":\"failed\",\"attempt\":-1}", "attempt"},
        {EVENT_BUILD_STATUS, "{\"status\":\"failed\",\"attempt\":1,\"error\":{}}", "error"},
        {EVENT_PLAN, "{\"layers\":{},\"total_steps\":1}", "layers"},
        {EVENT_PLAN, "{\"layers\":[1],\"total_steps\":1}", "layers"},
        {EVENT_PLAN,
         "{\"layers\":[{\"name\":\"a\",\"key\":\"b\",\"cached\":1,\"steps\":1}],"
         "\"total_steps\":1}",
         "layers"},
        {EVENT_PLAN, "{\"layers\":[]}", "total_steps"},
        {EVENT_PLAN, "{\"layers\":[],\"total_steps\":1,\"lock\":[]}", "lock"},
        {EVENT_STEP_START, "{\"step\":-1,\"phase\":\"pull\",\"cmd\":\"x\",\"cached\":true}",
         "step"},
        {EVENT_STEP_START, "{\"step\":1,\"phase\":\"push\",\"cmd\":\"x\",\"cached\":true}",
         "phase"},
        {EVENT_STEP_START, "{\"step\":1,\"phase\":\"pull\",\"cmd\":\"x\"}", "cached"},
        {EVENT_OUTPUT, "{\"step\":1,\"stream\":\"stdin\",\"data\":\"\"}", "stream"},
        {EVENT_OUTPUT, "{\"step\":1,\"stream\":\"stdout\",\"data\":1}", "data"},
        {EVENT_OUTPUT, "{\"step\":1,\"stream\":\"stdout\",\"data\":\"\",\"encoding\":\"hex\"}",
         "encoding"},
        {EVENT_OUTPUT, "{\"step\":1,\"stream\":\"stdout\",\"data\":\"a\",\"encoding\":\"base64\"}",
         "not base64"},
        {EVENT_OUTPUT,
         "{\"step\":1,\"stream\":\"stdout\",\"data\":\"=AAA\",\"encoding\":\"base64\"}",
         "not base64"},
        {EVENT_PROGRESS, "{\"step\":1,\"current\":1.5,\"total\":2,\"unit\":\"b\"}", "current"},
        {EVENT_STEP_END, "{\"step\":1,\"exit\":256,\"ok\":true,\"elapsed_ms\":1}", "exit"},
        {EVENT_STEP_END, "{\"step\":1,\"exit\":0,\"ok\":1,\"elapsed_ms\":1}", "ok"},
        {EVENT_TYPE_N, "{}", "unknown type"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        json_auto_t *o = json_loads(rows[i].payload, 0, NULL);
        assert_non_null(o);
        assert_fails(event_check(rows[i].type, o, &err), &err, CB_E_CORRUPT, rows[i].message);
    }
}

static void test_check_accepts_more_than_it_knows(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    json_auto_t *o = json_loads("{\"text\":\"a\",\"later\":[1,2]}", 0, NULL);
    assert_ok(event_check(EVENT_NOTE, o, &err), &err);
}

static void test_check_refuses_too_large(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char *data = cb_xmalloc(CB_EVENT_MAX + 1);
    memset(data, 'x', CB_EVENT_MAX);
    json_auto_t *o = event_output(1, "stdout", data, CB_EVENT_MAX);
    free(data);
    assert_fails(event_check(EVENT_OUTPUT, o, &err), &err, CB_E_CORRUPT, "at most 262144");
}

/* The examples of the documentation are events, and there is one of each type. */
static void test_documented_examples_pass(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    assert_ok(cb_read_file(CB_SOURCE_DIR "/docs/events.md", 1 << 20, &text, &err), &err);
    bool seen[EVENT_TYPE_N] = {false};
    for (char *save, *line = strtok_r(text.data, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save)) {
        if (strncmp(line, "{\"seq\":", 7) != 0)
            continue;
        json_auto_t *o = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(o);
        int t = event_type_from_name(json_string_value(json_object_get(o, "type")));
        assert_true(t >= 0);
        assert_ok(event_check((enum event_type)t, o, &err), &err);
        seen[t] = true;
    }
    for (int i = 0; i < EVENT_TYPE_N; i++)
        if (!seen[i])
            fail_msg("docs/events.md has no example of %s", event_type_name(i));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_go_both_ways),
        cmocka_unit_test(test_builders_make_what_the_check_accepts),
        cmocka_unit_test(test_the_record_of_a_command),
        cmocka_unit_test(test_output_keeps_every_byte),
        cmocka_unit_test(test_bytes_that_do_not_fit_are_refused),
        cmocka_unit_test(test_long_text_is_cut),
        cmocka_unit_test(test_check_refuses),
        cmocka_unit_test(test_check_accepts_more_than_it_knows),
        cmocka_unit_test(test_check_refuses_too_large),
        cmocka_unit_test(test_documented_examples_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
