#include "check.h"

#include "queue/wire.h"

static void put_header(struct cb_buf *b, uint32_t len, int type, int version)
{
    const unsigned char h[6] = {(unsigned char)(len >> 24), (unsigned char)(len >> 16),
                                (unsigned char)(len >> 8),  (unsigned char)len,
                                (unsigned char)type,        (unsigned char)version};
    assert_int_equal(cb_buf_add(b, h, sizeof(h)), 0);
}

static void put_text(struct cb_buf *b, int type, const char *text)
{
    put_header(b, (uint32_t)strlen(text) + 2, type, 1);
    assert_int_equal(cb_buf_adds(b, text), 0);
}

static void test_messages_arrive_whole_in_any_pieces(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF b = CB_BUF_INIT(4096);
    for (int i = 0; i < 3; i++) {
        json_auto_t *ack = json_pack("{s:i}", "bytes", 1000 * i);
        assert_ok(wire_put(&b, WIRE_ACK, ack, &err), &err);
    }
    for (size_t piece = 1; piece <= b.len; piece++) {
        struct wire_reader r;
        wire_reader_init(&r, 100);
        uint64_t seen = 0;
        for (size_t at = 0; at < b.len; at += piece) {
            size_t n = b.len - at < piece ? b.len - at : piece;
            assert_int_equal(wire_feed(&r, b.data + at, n), 0);
            struct wire_msg m;
            while (wire_next(&r, &m, &err) > 0) {
                uint64_t bytes;
                assert_ok(wire_ack_parse(&m, &bytes, &err), &err);
                assert_int_equal(bytes, 1000 * seen++);
            }
        }
        assert_int_equal(seen, 3);
        wire_reader_release(&r);
    }
}

static void test_bad_headers_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t len;
        int type, version;
        const char *message;
    } rows[] = {
        {0, WIRE_EVENT, 1, "a message of 0 bytes"},
        {1, WIRE_EVENT, 1, "a message of 1 bytes"},
        {103, WIRE_EVENT, 1, "at most 100 are accepted"},
        {0xffffffff, WIRE_EVENT, 1, "a message of 4294967295 bytes"},
        {10, 0, 1, "unknown type 0"},
        {10, 6, 1, "unknown type 6"},
        {10, WIRE_EVENT, 2, "version 2 instead of 1"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_BUF b = CB_BUF_INIT(100);
        put_header(&b, rows[i].len, rows[i].type, rows[i].version);
        struct wire_reader r;
        wire_reader_init(&r, 100);
        assert_int_equal(wire_feed(&r, b.data, b.len), 0);
        struct wire_msg m;
        assert_fails(wire_next(&r, &m, &err), &err, CB_E_CORRUPT, rows[i].message);
        wire_reader_release(&r);
    }
}

static int parse(int type, const char *text, struct cb_error *err)
{
    CB_AUTO_BUF b = CB_BUF_INIT(4096);
    put_text(&b, type, text);
    struct wire_reader r;
    wire_reader_init(&r, 4096);
    assert_int_equal(wire_feed(&r, b.data, b.len), 0);
    struct wire_msg m;
    int rc = wire_next(&r, &m, err);
    assert_int_equal(rc, 1);
    struct wire_event e = {.payload = NULL};
    struct wire_finish f = {.ok = false};
    struct wire_job j = {.attempt = 0};
    uint64_t bytes;
    switch (m.type) {
    case WIRE_EVENT: rc = wire_event_parse(&m, &e, err); break;
    case WIRE_FINISH: rc = wire_finish_parse(&m, &f, err); break;
    case WIRE_JOB: rc = wire_job_parse(&m, &j, err); break;
    case WIRE_ACK: rc = wire_ack_parse(&m, &bytes, err); break;
    case WIRE_DONE: break;
    }
    json_decref(e.payload);
    wire_finish_release(&f);
    wire_job_release(&j);
    wire_reader_release(&r);
    return rc;
}

static void test_good_messages_are_read(void **state)
{
    (void)state;
    static const struct {
        int type;
        const char *text;
    } rows[] = {
        {WIRE_EVENT, "{\"type\":\"note\",\"ts\":5,\"payload\":{\"text\":\"x\"}}"},
        {WIRE_FINISH, "{\"ok\":true}"},
        {WIRE_FINISH, "{\"ok\":true,\"result\":{\"version\":3}}"},
        {WIRE_FINISH, "{\"ok\":false,\"code\":\"NET\",\"message\":\"m\",\"hint\":\"h\"}"},
        {WIRE_JOB, "{\"id\":\"01J00000000000000000000000\",\"attempt\":1,\"config\":\"{}\","
                   "\"options\":\"{}\"}"},
        {WIRE_ACK, "{\"bytes\":0}"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        assert_ok(parse(rows[i].type, rows[i].text, &err), &err);
    }
}

static void test_bad_messages_are_refused(void **state)
{
    (void)state;
    static const struct {
        int type;
        const char *text, *message;
    } rows[] = {
        {WIRE_EVENT, "", "not JSON"},
        {WIRE_EVENT, "[]", "bad event message"},
        {WIRE_EVENT, "{\"type\":\"note\",\"type\":\"note\"}", "not JSON"},
        {WIRE_EVENT, "{\"type\":\"note\",\"ts\":5}", "bad event message"},
        {WIRE_EVENT, "{\"type\":\"note\",\"ts\":5,\"payload\":{\"text\":\"x\"},\"seq\":1}",
         "bad event message"},
        {WIRE_EVENT, "{\"type\":\"note\",\"ts\":-5,\"payload\":{\"text\":\"x\"}}",
         "impossible time"},
        {WIRE_EVENT, "{\"type\":\"ping\",\"ts\":5,\"payload\":{}}", "type \"ping\""},
        {WIRE_EVENT,
         "{\"type\":\"build-status\",\"ts\":5,\"payload\":{\"status\":\"success\",\"attempt\":1}}",
         "which a build cannot send"},
        {WIRE_EVENT, "{\"type\":\"note\",\"ts\":5,\"payload\":{\"text\":1}}", "note event: text"},
        {WIRE_FINISH, "{}", "bad finish message"},
        {WIRE_FINISH, "{\"ok\":false,\"code\":\"NET\"}", "without code or message"},
        {WIRE_FINISH, "{\"ok\":true,\"result\":[]}", "not an object"},
        {WIRE_JOB, "{\"id\":\"short\",\"attempt\":1,\"config\":\"\",\"options\":\"\"}", "its id"},
        {WIRE_ACK, "{\"bytes\":-1}", "bad ack message"},
        {WIRE_ACK, "{\"bytes\":\"1\"}", "bad ack message"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        assert_fails(parse(rows[i].type, rows[i].text, &err), &err, CB_E_CORRUPT, rows[i].message);
    }
}

static void test_too_large_is_refused_before_it_is_sent(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF b = CB_BUF_INIT(WIRE_JOB_MAX);
    char *big = cb_xmalloc(WIRE_MAX + 1);
    memset(big, 'x', WIRE_MAX);
    big[WIRE_MAX] = '\0';
    json_auto_t *o = json_pack("{s:s}", "text", big);
    free(big);
    assert_fails(wire_put(&b, WIRE_EVENT, o, &err), &err, CB_E_LIMIT, "at most 327680");
    assert_int_equal(b.len, 0);
    assert_ok(wire_put(&b, WIRE_JOB, o, &err), &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages_arrive_whole_in_any_pieces),
        cmocka_unit_test(test_bad_headers_are_refused),
        cmocka_unit_test(test_good_messages_are_read),
        cmocka_unit_test(test_bad_messages_are_refused),
        cmocka_unit_test(test_too_large_is_refused_before_it_is_sent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
