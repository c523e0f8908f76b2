/* The host's side of the wire against a guest that lies: a socketpair with scripted bytes. */
#include "builder/frames.h"
#include "builder/session.h"
#include "check.h"
#include "support/buf.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

struct guest {
    int fd; /* the guest's end */
    int host;
    struct cb_buf out, notes;
};

static void on_output(void *arg, uint32_t step, int stream, const void *data, size_t len)
{
    struct guest *g = arg;
    (void)cb_buf_addf(&g->out, "%u/%d:", step, stream);
    (void)cb_buf_add(&g->out, data, len);
}

static void on_note(void *arg, const char *text)
{
    struct guest *g = arg;
    (void)cb_buf_addf(&g->notes, "%s\n", text);
}

static void guest_init(struct guest *g)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    *g = (struct guest){.fd = pair[1], .host = pair[0]};
    cb_buf_init(&g->out, 1 << 20);
    cb_buf_init(&g->notes, 1 << 20);
}

static void guest_release(struct guest *g)
{
    cb_close(g->fd);
    cb_buf_release(&g->out);
    cb_buf_release(&g->notes);
}

static void say_bytes(struct guest *g, const void *p, size_t n)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(cb_write_all(g->fd, p, n, &err), &err);
}

static void say(struct guest *g, const struct frame_out *o)
{
    assert_false(o->over);
    say_bytes(g, o->p, o->len);
}

static void say_numbers(struct guest *g, enum frame_type type, uint32_t step, size_t n,
                        const uint64_t (*fields)[2])
{
    uint8_t buf[1024];
    struct frame_out o;
    frame_begin(&o, buf, sizeof buf, type, step);
    for (size_t i = 0; i < n; i++)
        frame_put_number(&o, (enum frame_tag)fields[i][0], fields[i][1]);
    say(g, &o);
}

static void say_hello(struct guest *g, uint64_t version)
{
    say_numbers(g, FRAME_HELLO, 0, 1, (const uint64_t[][2]){{TAG_VERSION, version}});
}

static void say_text(struct guest *g, enum frame_type type, uint64_t kind, const char *text)
{
    uint8_t buf[8192];
    struct frame_out o;
    frame_begin(&o, buf, sizeof buf, type, 0);
    if (kind)
        frame_put_number(&o, TAG_KIND, kind);
    frame_put_text(&o, TAG_TEXT, text);
    say(g, &o);
}

static void say_output(struct guest *g, uint32_t step, uint64_t stream, size_t n)
{
    static uint8_t buf[FRAME_HEAD + FRAME_REPLY_MAX], data[FRAME_REPLY_MAX];
    struct frame_out o;
    memset(data, 'x', sizeof data);
    frame_begin(&o, buf, sizeof buf, FRAME_OUTPUT, step);
    frame_put_number(&o, TAG_STREAM, stream);
    frame_put(&o, TAG_DATA, data, n);
    say(g, &o);
}

static struct session *open_session(struct guest *g)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    const struct session_callbacks cb = {.output = on_output, .note = on_note, .arg = g};
    struct session *s = NULL;
    say_hello(g, FRAME_VERSION);
    assert_ok(session_open(g->host, 1000, &cb, &s, &err), &err);
    return s;
}

static const uint64_t step_done[][2] = {{TAG_EXIT, 3},    {TAG_SIGNAL, 0}, {TAG_TIMED_OUT, 0},
                                        {TAG_ELAPSED, 9}, {TAG_CPU, 8},    {TAG_RSS, 7}};

static int one_step(struct session *s, struct step_result *r, struct cb_error *err)
{
    const struct guest_step st = {.step = 5, .script = "true", .timeout_ms = 1000};
    return session_step(s, &st, r, err);
}

static void test_answers_reach_the_caller(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct guest g;
    struct step_result r;
    struct guest_diff d;
    guest_init(&g);
    struct session *s = open_session(&g);
    say_text(&g, FRAME_NOTE, 0, "a note\x1b[2J with\nteeth");
    say_output(&g, 5, STREAM_STDERR, 3);
    say_numbers(&g, FRAME_HEARTBEAT, 0, 0, NULL);
    say_numbers(&g, FRAME_STEP_DONE, 5, 6, step_done);
    assert_ok(one_step(s, &r, &err), &err);
    assert_int_equal(r.exit_code, 3);
    assert_int_equal(r.elapsed_ms, 9);
    assert_int_equal(r.cpu_ms, 8);
    assert_int_equal(r.max_rss_kib, 7);
    assert_int_equal(r.limit, LIMIT_NONE);
    assert_string_equal(g.out.data, "5/2:xxx");
    assert_string_equal(g.notes.data, "a note?[2J with?teeth\n");
    say_numbers(&g, FRAME_LAYER_DONE, 0, 4,
                (const uint64_t[][2]){
                    {TAG_OFFSET, 4096}, {TAG_LENGTH, 1024}, {TAG_ENTRIES, 2}, {TAG_WHITEOUTS, 1}});
    assert_ok(session_layer_end(s, &d, &err), &err);
    assert_int_equal(d.offset, 4096);
    assert_int_equal(d.length, 1024);
    assert_int_equal(d.entries, 2);
    assert_int_equal(d.whiteouts, 1);
    session_free(s);
    guest_release(&g);
}

static void test_a_limit_is_told(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct guest g;
    struct step_result r;
    uint64_t with[8][2];
    memcpy(with, step_done, sizeof step_done);
    with[6][0] = TAG_LIMIT, with[6][1] = LIMIT_PROCESSES;
    with[7][0] = TAG_LIMIT_VALUE, with[7][1] = 2048;
    guest_init(&g);
    struct session *s = open_session(&g);
    say_numbers(&g, FRAME_STEP_DONE, 5, 8, (const uint64_t(*)[2])with);
    assert_ok(one_step(s, &r, &err), &err);
    assert_int_equal(r.limit, LIMIT_PROCESSES);
    assert_int_equal(r.limit_value, 2048);
    with[6][1] = LIMIT_KIND_END;
    say_numbers(&g, FRAME_STEP_DONE, 5, 8, (const uint64_t(*)[2])with);
    assert_fails(one_step(s, &r, &err), &err, CB_E_UNTRUSTED, "a number out of range");
    session_free(s);
    guest_release(&g);
}

/* A guest that goes on saying things fills no log. */
static void test_notes_have_an_end(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct guest g;
    struct step_result r;
    guest_init(&g);
    struct session *s = open_session(&g);
    for (int round = 0; round < 2; round++) {
        static uint8_t many[1100 * (FRAME_HEAD + 7)];
        for (size_t i = 0; i < 1100; i++) {
            struct frame_out o;
            frame_begin(&o, many + i * (FRAME_HEAD + 7), FRAME_HEAD + 7, FRAME_NOTE, 0);
            frame_put_text(&o, TAG_TEXT, "n");
            assert_false(o.over);
        }
        say_bytes(&g, many, sizeof many);
        say_numbers(&g, FRAME_STEP_DONE, 5, 6, step_done);
        cb_buf_clear(&g.notes);
        assert_ok(one_step(s, &r, &err), &err);
        assert_int_equal(g.notes.len, 1000 * 2 + strlen("more notes are left out\n"));
    }
    session_free(s);
    guest_release(&g);
}

enum lie {
    LIE_MAGIC,
    LIE_LENGTH,
    LIE_FIELD,
    LIE_STREAM,
    LIE_OTHER_STEP,
    LIE_LONG_OUTPUT,
    LIE_TYPE,
    LIE_UNKNOWN_TYPE,
    LIE_EXIT,
    LIE_MISSING,
    LIE_DONE_STEP,
    LIE_KIND,
    LIE_END
};

static void tell(struct guest *g, enum lie lie)
{
    uint8_t raw[FRAME_HEAD + 8] = {0};
    struct frame_out o;
    frame_begin(&o, raw, sizeof raw, FRAME_OUTPUT, 5);
    uint64_t bad[6][2];
    memcpy(bad, step_done, sizeof bad);
    switch (lie) {
    case LIE_MAGIC:
        raw[0] ^= 1;
        say_bytes(g, raw, FRAME_HEAD);
        break;
    case LIE_LENGTH:
        frame_store(raw + 12, FRAME_REPLY_MAX + 1, 4);
        say_bytes(g, raw, FRAME_HEAD);
        break;
    case LIE_FIELD:
        frame_store(raw + 12, 8, 4);
        frame_store(raw + 18, 100, 4);
        say_bytes(g, raw, sizeof raw);
        break;
    case LIE_STREAM: say_output(g, 5, 3, 1); break;
    case LIE_OTHER_STEP: say_output(g, 6, 1, 1); break;
    case LIE_LONG_OUTPUT: say_output(g, 5, 1, FRAME_OUTPUT_MAX + 1); break;
    case LIE_TYPE: say_numbers(g, FRAME_DONE, 0, 0, NULL); break;
    case LIE_UNKNOWN_TYPE: say_numbers(g, (enum frame_type)999, 0, 0, NULL); break;
    case LIE_EXIT:
        bad[0][1] = 256;
        say_numbers(g, FRAME_STEP_DONE, 5, 6, (const uint64_t(*)[2])bad);
        break;
    case LIE_MISSING: say_numbers(g, FRAME_STEP_DONE, 5, 5, step_done); break;
    case LIE_DONE_STEP: say_numbers(g, FRAME_STEP_DONE, 6, 6, step_done); break;
    case LIE_KIND: say_text(g, FRAME_FAILED, 77, "hm"); break;
    case LIE_END: break;
    }
}

static void test_a_lying_guest_is_untrusted(void **state)
{
    (void)state;
    for (int lie = 0; lie < LIE_END; lie++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct guest g;
        struct step_result r;
        guest_init(&g);
        struct session *s = open_session(&g);
        tell(&g, (enum lie)lie);
        int rc = one_step(s, &r, &err);
        if (rc != -CB_E_UNTRUSTED)
            fail_msg("lie %d: %d %s", lie, rc, err.msg ? err.msg : "");
        cb_error_clear(&err);
        assert_fails(one_step(s, &r, &err), &err, CB_E_SYS, "the builder is gone");
        session_free(s);
        guest_release(&g);
    }
}

static void test_diffs_lie_where_they_can(void **state)
{
    (void)state;
    static const uint64_t bad[][4][2] = {
        {{TAG_OFFSET, 5}, {TAG_LENGTH, 1024}, {TAG_ENTRIES, 0}, {TAG_WHITEOUTS, 0}},
        {{TAG_OFFSET, 0}, {TAG_LENGTH, 1000}, {TAG_ENTRIES, 0}, {TAG_WHITEOUTS, 0}},
        {{TAG_OFFSET, 0}, {TAG_LENGTH, 1ull << 50}, {TAG_ENTRIES, 0}, {TAG_WHITEOUTS, 0}},
        {{TAG_OFFSET, UINT64_MAX}, {TAG_LENGTH, 1024}, {TAG_ENTRIES, 0}, {TAG_WHITEOUTS, 0}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct guest g;
        struct guest_diff d;
        guest_init(&g);
        struct session *s = open_session(&g);
        say_numbers(&g, FRAME_LAYER_DONE, 0, 4, bad[i]);
        assert_int_equal(session_layer_end(s, &d, &err), -CB_E_UNTRUSTED);
        session_free(s);
        guest_release(&g);
    }
}

static void test_failures_have_a_class(void **state)
{
    (void)state;
    static const struct {
        uint64_t kind;
        enum cb_code code;
    } table[] = {{FAIL_SYSTEM, CB_E_SYS},
                 {FAIL_COMMAND, CB_E_COMMAND},
                 {FAIL_IMAGE, CB_E_CORRUPT},
                 {FAIL_SPACE, CB_E_ENV},
                 {FAIL_PROTOCOL, CB_E_BUG}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct guest g;
        struct step_result r;
        guest_init(&g);
        struct session *s = open_session(&g);
        say_text(&g, FRAME_FAILED, table[i].kind, "what it was");
        assert_fails(one_step(s, &r, &err), &err, table[i].code, "what it was");
        say_numbers(&g, FRAME_STEP_DONE, 5, 6, step_done); /* the session goes on */
        assert_ok(one_step(s, &r, &err), &err);
        session_free(s);
        guest_release(&g);
    }
}

static void test_end_and_silence_and_cancel(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct guest g;
    struct step_result r;
    guest_init(&g);
    struct session *s = open_session(&g);
    session_set_silence(s, 20);
    assert_fails(one_step(s, &r, &err), &err, CB_E_TIMEOUT, "silent");
    session_free(s);
    guest_release(&g);

    guest_init(&g);
    s = open_session(&g);
    cb_close(g.fd);
    g.fd = -1;
    assert_fails(one_step(s, &r, &err), &err, CB_E_SYS, "the builder ended");
    session_free(s);
    guest_release(&g);

    guest_init(&g);
    s = open_session(&g);
    session_cancel();
    assert_fails(one_step(s, &r, &err), &err, CB_E_CANCELED, "canceled");
    session_cancel_reset();
    session_free(s);
    guest_release(&g);
}

/* A machine that was saved: it parks when it may, and its hello must answer our RESUME. */
static void test_parking_and_resuming(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_ERROR stranger = CB_ERROR_INIT;
    CB_AUTO_ERROR unasked = CB_ERROR_INIT;
    struct guest g;
    struct session *s = NULL;
    const struct session_callbacks cb = {.output = on_output, .note = on_note, .arg = &g};

    guest_init(&g); /* one that cannot park just says hello */
    say_hello(&g, FRAME_VERSION);
    assert_int_equal(session_open_parking(g.host, 1000, &cb, &s, &err), 0);
    session_free(s);
    guest_release(&g);

    guest_init(&g); /* one that parks, and then says hello without having been told to go on */
    say_numbers(&g, FRAME_PARKED, 0, 0, NULL);
    assert_int_equal(session_open_parking(g.host, 1000, &cb, &s, &err), 1);
    say_hello(&g, FRAME_VERSION);
    assert_fails(session_resume(s, 1000, &stranger), &stranger, CB_E_UNTRUSTED,
                 "resume the machine: the builder sent a hello that answers somebody else");
    session_free(s);
    guest_release(&g);

    guest_init(&g);
    say_numbers(&g, FRAME_PARKED, 0, 0, NULL);
    s = NULL;
    assert_fails(session_open(g.host, 1000, &cb, &s, &unasked), &unasked, CB_E_UNTRUSTED,
                 "wait for the agent: the builder sent an answer of the wrong kind");
    assert_null(s);
    guest_release(&g);
}

static void test_other_version_is_refused(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct guest g;
    struct session *s = NULL;
    const struct session_callbacks cb = {0};
    guest_init(&g);
    say_hello(&g, FRAME_VERSION + 1);
    assert_fails(session_open(g.host, 1000, &cb, &s, &err), &err, CB_E_ENV, "version 2");
    guest_release(&g);
    guest_init(&g);
    assert_fails(session_open(g.host, 10, &cb, &s, &err), &err, CB_E_TIMEOUT, "wait for the agent");
    guest_release(&g);
}

static void test_texts_of_the_guest_are_made_printable(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct guest g;
    struct step_result r;
    uint8_t buf[256];
    struct frame_out o;
    guest_init(&g);
    struct session *s = open_session(&g);
    static const char text[] = "a\0b\xff\xc3\xa9\xe2\x82";
    frame_begin(&o, buf, sizeof buf, FRAME_FAILED, 5);
    frame_put_number(&o, TAG_KIND, FAIL_SYSTEM);
    frame_put(&o, TAG_TEXT, text, sizeof text - 1);
    say(&g, &o);
    assert_int_equal(one_step(s, &r, &err), -CB_E_SYS);
    assert_string_equal(err.msg, "a?b?\xc3\xa9??");
    session_free(s);
    guest_release(&g);
}

static void test_readiness_is_told(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct guest g;
    CB_AUTO_FREE char *how = NULL;
    guest_init(&g);
    struct session *s = open_session(&g);
    say_numbers(&g, FRAME_DONE, 0, 0, NULL);
    say_text(&g, FRAME_READY, 0, "GET / on port 80 answered 200");
    assert_int_equal(session_wait_ready(s, 1000, &how, &err), 1);
    assert_string_equal(how, "GET / on port 80 answered 200");
    free(cb_take_ptr(&how));
    say_numbers(&g, FRAME_DONE, 0, 0, NULL);
    say_text(&g, FRAME_PROBE, 0, "port 80: Connection refused");
    assert_int_equal(session_wait_ready(s, 20, &how, &err), 0);
    assert_string_equal(how, "not ready in time; last probe: port 80: Connection refused");
    free(cb_take_ptr(&how));
    say_numbers(&g, FRAME_DONE, 0, 0, NULL);
    say_numbers(&g, FRAME_START_EXITED, 0, 2,
                (const uint64_t[][2]){{TAG_EXIT, 1}, {TAG_SIGNAL, 0}});
    assert_int_equal(session_wait_ready(s, 1000, &how, &err), 0);
    assert_string_equal(how, "the start command ended with exit code 1; last probe: "
                             "port 80: Connection refused");
    session_free(s);
    guest_release(&g);
}

static void test_too_large_a_request_is_refused(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct guest g;
    struct step_result r;
    guest_init(&g);
    struct session *s = open_session(&g);
    CB_AUTO_FREE char *script = cb_xcalloc(1, FRAME_REQUEST_MAX + 1);
    memset(script, '#', FRAME_REQUEST_MAX);
    const struct guest_step st = {.step = 1, .script = script};
    assert_fails(session_step(s, &st, &r, &err), &err, CB_E_LIMIT, "larger than 256 KiB");
    session_free(s);
    guest_release(&g);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_reach_the_caller),
        cmocka_unit_test(test_a_limit_is_told),
        cmocka_unit_test(test_notes_have_an_end),
        cmocka_unit_test(test_a_lying_guest_is_untrusted),
        cmocka_unit_test(test_diffs_lie_where_they_can),
        cmocka_unit_test(test_failures_have_a_class),
        cmocka_unit_test(test_end_and_silence_and_cancel),
        cmocka_unit_test(test_parking_and_resuming),
        cmocka_unit_test(test_other_version_is_refused),
        cmocka_unit_test(test_texts_of_the_guest_are_made_printable),
        cmocka_unit_test(test_readiness_is_told),
        cmocka_unit_test(test_too_large_a_request_is_refused),
    };
    return cmocka_run_group_tests_name("frames", tests, NULL, NULL);
}
