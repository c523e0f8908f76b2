/* Archives as folders of members: what is found, what is refused. */
#include "check.h"

#include "layers/source.h"
#include "tar_build.h"

#include <sys/mman.h>

/* The tar in memory, as a file. Owned. */
static int as_file(const struct cb_buf *b)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int fd = memfd_create("tar", MFD_CLOEXEC);
    assert_true(fd >= 0);
    if (b->len)
        assert_ok(cb_write_all(fd, b->data, b->len, &err), &err);
    return fd;
}

static int read_index(const struct tar_build *t, struct tar_index **out, struct cb_error *err)
{
    CB_AUTO_FD fd = as_file(&t->out);
    return tar_index_read(fd, t->out.len, out, err);
}

/* Asserts that @name is there and holds @text. */
static void holds(const struct tar_build *t, const struct tar_index *index, const char *name,
                  const char *text)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    uint64_t at, size;
    assert_ok(tar_index_find(index, name, &at, &size, &err), &err);
    assert_int_equal(size, strlen(text));
    assert_memory_equal(t->out.data + at, text, size);
}

static void test_members_are_found(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_build t;
    struct tar_index *index = NULL;
    char longer[301];
    memset(longer, 'n', sizeof(longer) - 1);
    longer[300] = '\0';
    tb_init(&t);
    tb_raw(&t, 'g', "global", NULL, "18 path=everyone!\n", 18); /* of no member of its own */
    tb_dir(&t, "./");
    tb_dir(&t, "one/");
    tb_file(&t, "./one/layer.tar", "first");
    tb_file(&t, "empty", "");
    tb_raw(&t, 'L', "././@LongLink", NULL, longer, sizeof(longer));
    tb_file(&t, "cut", "GNU");
    tb_pax_text(&t, "path", "pax/./name");
    tb_file(&t, "short", "PAX");
    tb_pax_text(&t, "size", "5");
    tb_file(&t, "sized", "12345");
    tb_link(&t, '2', "two/layer.tar", "../one/layer.tar");
    tb_link(&t, '2', "three", "two/layer.tar");
    tb_link(&t, '1', "four/hard", "one/layer.tar");
    tb_raw(&t, 'K', "././@LongLink", NULL, "one/layer.tar", 14);
    tb_link(&t, '2', "five", "cut");
    tb_file(&t, "twice", "no");
    tb_raw(&t, '\0', "twice", NULL, "yes", 3);
    tb_raw(&t, 'V', "label", NULL, "unknown types have data", 23);
    tb_file(&t, "/absolute", "inside");
    tb_file(&t, "last", "last");
    tb_end(&t);
    assert_ok(read_index(&t, &index, &err), &err);
    holds(&t, index, "one/layer.tar", "first");
    holds(&t, index, "empty", "");
    holds(&t, index, longer, "GNU");
    holds(&t, index, "pax/name", "PAX");
    holds(&t, index, "sized", "12345");
    holds(&t, index, "two/layer.tar", "first");
    holds(&t, index, "three", "first");
    holds(&t, index, "four/hard", "first");
    holds(&t, index, "five", "first");
    holds(&t, index, "twice", "yes");
    holds(&t, index, "absolute", "inside");
    holds(&t, index, "last", "last");
    uint64_t at, size;
    static const char *const absent[] = {"one", "cut", "label", "everyone!", "nothing", ""};
    for (size_t i = 0; i < sizeof(absent) / sizeof(*absent); i++)
        assert_fails(tar_index_find(index, absent[i], &at, &size, &err), &err, CB_E_NOTFOUND,
                     "there is no ");
    tar_index_free(index);
    tb_release(&t);
}

static void test_links_stay_inside(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_build t;
    struct tar_index *index = NULL;
    uint64_t at, size;
    tb_init(&t);
    tb_link(&t, '2', "out", "../x");
    tb_link(&t, '2', "deep/out", "../../etc/passwd");
    tb_link(&t, '1', "hard", "../x");
    tb_link(&t, '2', "self", "self");
    tb_link(&t, '2', "a", "b");
    tb_link(&t, '2', "b", "a");
    tb_link(&t, '2', "absolute", "/etc/passwd");
    tb_pax_text(&t, "GNU.sparse.major", "1");
    tb_file(&t, "sparse", "map");
    tb_end(&t);
    assert_ok(read_index(&t, &index, &err), &err);
    static const struct {
        const char *name, *says;
        enum cb_code code;
    } cases[] = {
        {"out", "leads out of the archive", CB_E_UNTRUSTED},
        {"deep/out", "leads out of the archive", CB_E_UNTRUSTED},
        {"hard", "leads out of the archive", CB_E_UNTRUSTED},
        {"self", "a link to a link, 8 times over", CB_E_UNTRUSTED},
        {"a", "a link to a link", CB_E_UNTRUSTED},
        {"absolute", "there is no absolute", CB_E_NOTFOUND}, /* no etc/passwd in the archive */
        {"sparse", "sparse is a sparse member", CB_E_CORRUPT},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        assert_fails(tar_index_find(index, cases[i].name, &at, &size, &err), &err, cases[i].code,
                     cases[i].says);
    tar_index_free(index);
    tb_release(&t);
}

static void refused(const struct tar_build *t, enum cb_code code, const char *says)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_index *index = NULL;
    assert_fails(read_index(t, &index, &err), &err, code, says);
    assert_null(index);
}

static void test_broken_archives_are_refused(void **state)
{
    (void)state;
    struct tar_build t;
    static const struct {
        const char *size; /* of the field */
        const char *says;
    } sizes[] = {
        {"00000100000\0", "truncated: member \"liar\" has 32768 bytes where 512 are left"},
        {"77777777777\0", "truncated: member \"liar\" has 8589934591 bytes"},
        {"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", "truncated: member \"liar\""},
        {"\x80\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "no tar header at byte 0"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "no tar header at byte 0"},
        {"12x45678901\0", "no tar header at byte 0"},
    };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        tb_init(&t);
        tb_file(&t, "liar", "text");
        memcpy(t.out.data + 124, sizes[i].size, 12);
        memset(t.out.data + 148, ' ', 8);
        unsigned sum = 0;
        for (int k = 0; k < 512; k++)
            sum += (unsigned char)t.out.data[k];
        (void)snprintf(t.out.data + 148, 7, "%06o", sum);
        refused(&t, CB_E_CORRUPT, sizes[i].says);
        tb_release(&t);
    }

    tb_init(&t); /* a sum that is wrong */
    tb_file(&t, "first", "x");
    tb_file(&t, "second", "y");
    t.out.data[1024] = 'S';
    refused(&t, CB_E_CORRUPT, "no tar header at byte 1024");
    tb_release(&t);

    static const char *const pax[] = {
        "x",        "5 a=b\n",      "999 a=b\n", "6 ab\n\n",
        "6 a=b\nz", "11 size=-1\n", "0 =\n",     "12345678901234567890 a=b\n"};
    for (size_t i = 0; i < sizeof(pax) / sizeof(*pax); i++) {
        tb_init(&t);
        tb_raw(&t, 'x', "x", NULL, pax[i], strlen(pax[i]));
        tb_file(&t, "file", "x");
        refused(&t, CB_E_CORRUPT, "an extended header that is none");
        tb_release(&t);
    }

    tb_init(&t);
    CB_AUTO_FREE char *big = cb_xcalloc(1, (1 << 20) + 1);
    tb_raw(&t, 'L', "x", NULL, big, (1 << 20) + 1);
    refused(&t, CB_E_LIMIT, "an extended header of 1048577 bytes");
    tb_release(&t);
}

/* Cut anywhere, it is an error or what is there is as it was. */
static void test_cut_archives(void **state)
{
    (void)state;
    struct tar_build t;
    tb_init(&t);
    tb_file(&t, "first", "1");
    tb_pax_text(&t, "path", "second");
    tb_file(&t, "x", "2");
    tb_end(&t);
    size_t whole = t.out.len;
    for (t.out.len = 0; t.out.len < whole; t.out.len += 128) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct tar_index *index = NULL;
        if (read_index(&t, &index, &err) == 0 && t.out.len >= 1024)
            holds(&t, index, "first", "1");
        tar_index_free(index);
    }
    tb_release(&t);
}

static void test_members_have_a_ceiling(void **state)
{
    (void)state;
    struct tar_build t;
    tb_init(&t);
    for (int i = 0; i <= 100000; i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "m%d", i);
        tb_file(&t, name, "");
    }
    refused(&t, CB_E_LIMIT, "more than 100000 members");
    tb_release(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_members_are_found),
        cmocka_unit_test(test_links_stay_inside),
        cmocka_unit_test(test_broken_archives_are_refused),
        cmocka_unit_test(test_cut_archives),
        cmocka_unit_test(test_members_have_a_ceiling),
    };
    return cmocka_run_group_tests_name("layers/source_tar", tests, NULL, NULL);
}
