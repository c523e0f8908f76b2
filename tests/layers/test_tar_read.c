/* Entry types, as the headers say them, whatever pieces the tar comes in. */
#include "check.h"

#include "layers/tar_pax.h"
#include "layers/tar_read.h"
#include "tar_build.h"

struct pieces {
    const struct cb_buf *tar;
    size_t at, size;
    char *copy; /* of the piece at hand, of its exact length: owned */
};

static int next_piece(void *arg, const void **data, size_t *len, struct cb_error *err)
{
    struct pieces *p = arg;
    (void)err;
    size_t left = p->tar->len - p->at, n = left < p->size ? left : p->size;
    free(p->copy);
    p->copy = n ? cb_xmemdup(p->tar->data + p->at, n) : NULL;
    *data = p->copy;
    *len = n;
    p->at += n;
    return n > 0;
}

/* The names of all entries, or the error. */
static int read_names(const struct cb_buf *tar, size_t size, struct cb_buf *names,
                      struct cb_error *err)
{
    struct pieces p = {.tar = tar, .size = size};
    const struct tar_source source = {next_piece, &p};
    struct tar_reader *r = NULL;
    struct tar_entry e = {0};
    int rc = tar_reader_open(&source, &r, err);
    while (rc >= 0 && (rc = tar_reader_next(r, &e, err)) > 0) {
        const void *data;
        size_t len;
        uint64_t at;
        cb_buf_addf(names, "%s ", e.path);
        while (e.kind == TAR_FILE && (rc = tar_reader_data(r, &data, &len, &at, err)) > 0)
            ;
    }
    tar_reader_close(r);
    free(p.copy);
    return rc;
}

static const size_t sizes[] = {1, 100, 511, 512, 513, 1000, 1024, 1536, 100000};
#define N_SIZES (sizeof(sizes) / sizeof(*sizes))

/* One entry of GNU's old sparse format whose map goes on in a block behind the header. In that
 * block stands a blank where a header has its type. */
static void add_old_sparse(struct tar_build *t, const char *name)
{
    enum { PARTS = 11, IN_HEADER = 4, PART = 512 };
    char map[512] = {0}, data[PARTS * PART];
    size_t start = t->out.len;
    memset(data, 's', sizeof(data));
    tb_header(t, 'S', name, NULL, sizeof(data));
    char *h = t->out.data + start;
    memcpy(h + 257, "ustar  ", 8);
    memset(h + 329, 0, 16);
    h[482] = 1; /* the map goes on */
    tb_number(h + 483, 12, PARTS * 4096);
    for (int i = 0; i < PARTS; i++) {
        char *at = i < IN_HEADER ? h + 386 + i * 24 : map + (i - IN_HEADER) * 24;
        tb_number(at, 12, (uint64_t)i * 4096);
        tb_number(at + 12, 12, PART);
    }
    map[156] = ' ';
    unsigned sum = 0;
    memset(h + 148, ' ', 8);
    for (int i = 0; i < 512; i++)
        sum += (unsigned char)h[i];
    (void)snprintf(h + 148, 7, "%06o", sum);
    cb_buf_add(&t->out, map, sizeof(map));
    cb_buf_add(&t->out, data, sizeof(data));
}

static void build_known(struct tar_build *t)
{
    char long_name[300], data[1300];
    memset(long_name, 'n', sizeof(long_name));
    long_name[200] = '/';
    long_name[250] = '\0';
    memset(data, 'd', sizeof(data));
    tb_init(t);
    tb_raw(t, '0', "file", NULL, data, sizeof(data));
    tb_raw(t, '\0', "old", NULL, data, 7);
    tb_raw(t, '7', "in-a-row", NULL, data, 512);
    tb_header(t, '1', "hard-with-size", "file", 1300); /* but no data */
    tb_raw(t, 'L', "././@LongLink", NULL, long_name, strlen(long_name) + 1);
    tb_raw(t, '0', "short", NULL, data, 513);
    tb_pax_text(t, "path", "a/pax/name");
    tb_raw(t, '0', "x", NULL, data, sizeof(data));
    tb_raw(t, 'g', "global", NULL, "19 comment=nothing\n", 19);
    tb_dir(t, "d/");
    tb_link(t, '1', "hard", "file");
    tb_link(t, '2', "soft", "file");
    add_old_sparse(t, "holes");
    tb_raw(t, '6', "pipe", NULL, NULL, 0);
    t->major = 1;
    tb_raw(t, '3', "char", NULL, NULL, 0);
    tb_raw(t, '4', "block", NULL, NULL, 0);
}

static void test_every_type_of_a_layer_is_read(void **state)
{
    (void)state;
    struct tar_build t;
    build_known(&t);
    tb_end(&t);
    for (size_t i = 0; i < N_SIZES; i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_BUF names = CB_BUF_INIT(1 << 16);
        if (read_names(&t.out, sizes[i], &names, &err) < 0)
            fail_msg("%s\nin pieces of %zu, after %s", err.msg, sizes[i], names.data);
        assert_non_null(strstr(names.data, "file old in-a-row hard-with-size nnn"));
        assert_non_null(strstr(names.data, " a/pax/name d/ hard soft holes pipe "
                                           "char block "));
    }
    tb_release(&t);
}

static void test_every_other_type_is_refused(void **state)
{
    (void)state;
    for (int type = 1; type < 256; type++) {
        if ((type >= '0' && type <= '7') || strchr("SKLgx", type))
            continue; /* known, or a header about the next entry */
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_BUF names = CB_BUF_INIT(1 << 16);
        struct tar_build t;
        char words[40];
        build_known(&t);
        tb_raw(&t, (char)type, "odd", NULL, "data", 4);
        tb_end(&t);
        (void)snprintf(words, sizeof(words), "its tar type is 0x%02x", type);
        assert_fails(read_names(&t.out, sizes[type % (int)N_SIZES], &names, &err), &err,
                     CB_E_CORRUPT, words);
        assert_non_null(strstr(names.data, "block "));
        tb_release(&t);
    }
}

static void test_fields_are_octal_or_base_256(void **state)
{
    (void)state;
    static const struct {
        const char *field;
        bool ok;
        int64_t value;
    } rows[] = {
        {"00000000001", true, 1},
        {"77777777777", true, INT64_C(0x1ffffffff)},
        {"777777777777", true, INT64_C(0xfffffffff)}, /* without a NUL */
        {"   644 ", true, 0644},
        {"644\0junk", true, 0644},
        {"", true, 0},
        {"            ", true, 0},
        {"8", false, 0},
        {"12x", false, 0},
        {"1 2", false, 0},
        {"-1", false, 0},
        {"\x80\0\0\0\0\0\0\0\0\0\1\2", true, 258},
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", true, -2},
        {"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", true, INT64_MAX},
        {"\x80\0\0\0\x80\0\0\0\0\0\0\0", false, 0},
        {"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", true, INT64_MIN},
        {"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", false, 0},
        {"\x80\1\0\0\0\0\0\0\0\0\0\0", false, 0},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        unsigned char field[12] = {0};
        int64_t got = 0;
        memcpy(field, rows[i].field, rows[i].field[0] & 0x80 ? 12 : strlen(rows[i].field));
        if (strcmp(rows[i].field, "644") == 0) /* the one with a NUL inside */
            memcpy(field, rows[i].field, 8);
        bool ok = tar_field(field, sizeof(field), &got);
        if (ok != rows[i].ok || (ok && got != rows[i].value))
            fail_msg("row %zu: %d, %lld", i, ok, (long long)got);
    }
}

static void test_times_have_nanoseconds_on_both_sides_of_1970(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool ok;
        int64_t sec;
        uint32_t ns;
    } rows[] = {
        {"0", true, 0, 0},
        {"1.5", true, 1, 500000000},
        {"5.", true, 5, 0},
        {"1.0000000019", true, 1, 1},
        {"-1", true, -1, 0},
        {"-1.25", true, -2, 750000000},
        {"-0.25", true, -1, 750000000},
        {"-0.0000000001", true, 0, 0},
        {"9223372036854775807", true, INT64_MAX, 0},
        {"9223372036854775808", false, 0, 0},
        {"", false, 0, 0},
        {"-", false, 0, 0},
        {".5", false, 0, 0},
        {"1,5", false, 0, 0},
        {"1.5x", false, 0, 0},
        {"1e9", false, 0, 0},
        {" 1", false, 0, 0},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        int64_t sec = 0;
        uint32_t ns = 0;
        bool ok = tar_time(rows[i].text, &sec, &ns);
        if (ok != rows[i].ok || (ok && (sec != rows[i].sec || ns != rows[i].ns)))
            fail_msg("%s: %d, %lld s, %u ns", rows[i].text, ok, (long long)sec, ns);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields_are_octal_or_base_256),
        cmocka_unit_test(test_times_have_nanoseconds_on_both_sides_of_1970),
        cmocka_unit_test(test_every_type_of_a_layer_is_read),
        cmocka_unit_test(test_every_other_type_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
