/* What is kept of a step's output: the beginning, the end, and how much lay between. */
#include "builder/outlog.h"
#include "check.h"
#include "support/buf.h"

struct seen {
    struct cb_buf out[2], all;
    uint64_t left_out;
    unsigned marks;
    size_t before_mark; /* bytes that were handed on before it */
};

static void on_piece(void *arg, int stream, const void *data, uint64_t len)
{
    struct seen *s = arg;
    if (!data) {
        s->left_out += len;
        s->marks++;
        s->before_mark = s->all.len;
        return;
    }
    assert_true(stream == 1 || stream == 2);
    assert_int_equal(cb_buf_add(&s->out[stream - 1], data, (size_t)len), 0);
    assert_int_equal(cb_buf_add(&s->all, data, (size_t)len), 0);
}

static struct seen seen_new(void)
{
    struct seen s = {0};
    cb_buf_init(&s.out[0], 64u << 20);
    cb_buf_init(&s.out[1], 64u << 20);
    cb_buf_init(&s.all, 64u << 20);
    return s;
}

static void seen_release(struct seen *s)
{
    cb_buf_release(&s->out[0]);
    cb_buf_release(&s->out[1]);
    cb_buf_release(&s->all);
}

static void test_what_fits_comes_at_once_and_whole(void **state)
{
    (void)state;
    struct seen s = seen_new();
    struct outlog *o = outlog_new(100, on_piece, &s);
    outlog_begin(o);
    for (int i = 0; i < 7; i++) {
        outlog_add(o, 1 + i % 2, "0123456789", 10);
        assert_int_equal(s.all.len, 10 * (i + 1));
    }
    outlog_add(o, 1, "12345", 5); /* three quarters are the beginning */
    assert_int_equal(s.all.len, 75);
    assert_int_equal(outlog_withheld(o), 0);
    outlog_add(o, 2, "the end", 7);
    assert_int_equal(s.all.len, 75);
    assert_int_equal(outlog_withheld(o), 82);
    outlog_end(o);
    assert_int_equal(s.all.len, 82); /* it fitted after all */
    assert_int_equal(s.marks, 0);
    assert_string_equal(s.out[1].data + s.out[1].len - 7, "the end");
    outlog_free(o);
    seen_release(&s);
}

static void test_the_middle_is_left_out_and_counted(void **state)
{
    (void)state;
    struct seen s = seen_new();
    struct outlog *o = outlog_new(4u << 20, on_piece, &s);
    outlog_begin(o);
    uint64_t total = 0;
    char line[64];
    for (unsigned i = 0; i < 2000000; i++) {
        int n = snprintf(line, sizeof(line), "line %u\n", i);
        outlog_add(o, 1, line, (size_t)n);
        total += (uint64_t)n;
    }
    outlog_add(o, 2, "error: it broke\n", 16);
    total += 16;
    assert_int_equal(outlog_withheld(o), total);
    assert_true(s.all.len <= (3u << 20) + 4096);
    outlog_end(o);
    assert_int_equal(s.marks, 1);
    assert_int_equal(s.all.len + s.left_out, total);
    assert_true(s.all.len <= (4u << 20) + 4096);
    assert_true(s.all.len > (4u << 20) - (64u << 10));
    assert_int_equal(strncmp(s.all.data, "line 0\nline 1\n", 14), 0);
    assert_int_equal(s.all.data[s.before_mark - 1], '\n'); /* whole lines on both sides */
    assert_int_equal(strncmp(s.all.data + s.before_mark, "line ", 5), 0);
    assert_string_equal(s.out[1].data, "error: it broke\n");
    assert_string_equal(s.out[0].data + s.out[0].len - 13, "line 1999999\n");
    outlog_free(o);
    seen_release(&s);
}

static void test_one_endless_line_is_cut_too(void **state)
{
    (void)state;
    struct seen s = seen_new();
    struct outlog *o = outlog_new(1u << 20, on_piece, &s);
    char block[32768];
    memset(block, 'x', sizeof(block));
    outlog_begin(o);
    for (unsigned i = 0; i < 1000; i++)
        outlog_add(o, 1, block, sizeof(block));
    outlog_end(o);
    assert_int_equal(s.marks, 1);
    assert_int_equal(s.all.len + s.left_out, 1000 * sizeof(block));
    assert_true(s.all.len <= 1u << 20);
    outlog_free(o);
    seen_release(&s);
}

/* A guest that changes the stream with each byte cannot make us keep a record for each. */
static void test_tiny_pieces_are_bounded(void **state)
{
    (void)state;
    struct seen s = seen_new();
    struct outlog *o = outlog_new(4u << 20, on_piece, &s);
    outlog_begin(o);
    for (unsigned i = 0; i < 8u << 20; i++)
        outlog_add(o, 1 + (int)(i % 2), "x", 1);
    outlog_end(o);
    assert_int_equal(s.all.len + s.left_out, 8u << 20);
    assert_true(s.all.len < (3u << 20) + 8192);
    outlog_free(o);
    seen_release(&s);
}

static void test_each_step_begins_anew(void **state)
{
    (void)state;
    struct seen s = seen_new();
    struct outlog *o = outlog_new(40, on_piece, &s);
    for (int i = 0; i < 3; i++) {
        outlog_begin(o);
        outlog_add(o, 1, "no line of output", 17);
        assert_int_equal(outlog_withheld(o), 0);
        outlog_add(o, 1, "no line of output", 17);
        assert_int_not_equal(outlog_withheld(o), 0);
        if (i == 1)
            continue; /* what did not end is forgotten */
        outlog_end(o);
    }
    assert_int_equal(s.all.len, 34 + 30 + 34);
    outlog_free(o);
    outlog_free(NULL);
    seen_release(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_fits_comes_at_once_and_whole),
        cmocka_unit_test(test_the_middle_is_left_out_and_counted),
        cmocka_unit_test(test_one_endless_line_is_cut_too),
        cmocka_unit_test(test_tiny_pieces_are_bounded),
        cmocka_unit_test(test_each_step_begins_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
