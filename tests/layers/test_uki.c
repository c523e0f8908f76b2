/* Unified kernel images: sections where a loader looks for them; stubs that are none. */
#include "check.h"

#include "layers/uki.h"

#include <fcntl.h>
#include <sys/stat.h>

enum { PE = 64, OPT = PE + 24, OPT_SIZE = 240, TABLE = OPT + OPT_SIZE, HEADERS = 1024 };

static void set(unsigned char *p, size_t at, size_t n, uint64_t v)
{
    for (size_t i = 0; i < n; i++, v >>= 8)
        p[at + i] = (unsigned char)v;
}

static uint32_t get(const unsigned char *p, size_t at)
{
    return p[at] | (uint32_t)p[at + 1] << 8 | (uint32_t)p[at + 2] << 16 | (uint32_t)p[at + 3] << 24;
}

/* A PE file of one section of 512 bytes. */
static void make_stub(unsigned char *p)
{
    memset(p, 0, HEADERS);
    memset(p + HEADERS, 'c', 512);
    memcpy(p, "MZ", 2);
    set(p, 0x3c, 4, PE);
    memcpy(p + PE, "PE\0\0", 4);
    set(p, PE + 4, 2, 0x8664);
    set(p, PE + 6, 2, 1);
    set(p, PE + 20, 2, OPT_SIZE);
    set(p, OPT, 2, 0x20b);
    set(p, OPT + 32, 4, 512);
    set(p, OPT + 36, 4, 512);
    set(p, OPT + 60, 4, HEADERS);
    set(p, OPT + 64, 4, 0x1234);
    memcpy(p + TABLE, ".text", 5);
    set(p, TABLE + 8, 4, 500);
    set(p, TABLE + 12, 4, 0x1000);
    set(p, TABLE + 16, 4, 512);
    set(p, TABLE + 20, 4, HEADERS);
}

static int make(const char *dir, const unsigned char *stub, size_t size, size_t n_sections,
                struct cb_buf *out, struct cb_error *err)
{
    CB_AUTO_FREE char *from_path = cb_xasprintf("%s/stub", dir);
    CB_AUTO_FREE char *to_path = cb_xasprintf("%s/uki", dir);
    CB_AUTO_ERROR ours = CB_ERROR_INIT;
    assert_ok(cb_write_file(from_path, stub, size, 0600, &ours), &ours);
    CB_AUTO_FD from = open(from_path, O_RDONLY | O_CLOEXEC);
    CB_AUTO_FD to = open(to_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    struct uki_section s[32];
    for (size_t i = 0; i < 32; i++)
        s[i] = (struct uki_section){i + 1 == n_sections ? ".linux" : ".cmdline", -1, "root=x", 6};
    int rc = uki_make(from, s, n_sections, to, err);
    if (rc == 0)
        assert_ok(cb_read_fd(to, "uki", 1 << 20, out, &ours), &ours);
    return rc;
}

static void test_sections_follow_the_stub(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    unsigned char stub[HEADERS + 512];
    CB_AUTO_BUF out = CB_BUF_INIT(1 << 20);
    make_stub(stub);
    assert_ok(make(*state, stub, sizeof(stub), 2, &out, &err), &err);
    const unsigned char *p = (const unsigned char *)out.data;
    assert_int_equal(out.len, HEADERS + 3 * 512);
    assert_int_equal(p[PE + 6], 3);
    assert_int_equal(get(p, OPT + 64), 0);
    assert_int_equal(get(p, OPT + 56), 0x4000); /* all of it in memory */
    const unsigned char *s = p + TABLE + 40;
    assert_memory_equal(s, ".cmdline", 8);
    assert_int_equal(get(s, 8), 6);
    assert_int_equal(get(s, 12), 0x2000);
    assert_int_equal(get(s, 16), 512);
    assert_int_equal(get(s, 20), HEADERS + 512);
    assert_memory_equal(p + HEADERS + 512, "root=x\0", 7);
    s += 40;
    assert_memory_equal(s, ".linux\0", 8);
    assert_int_equal(get(s, 12), 0x3000);
    assert_int_equal(get(s, 36), 0x60000020);
}

static void test_a_stub_that_is_none(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    unsigned char stub[HEADERS + 512];
    CB_AUTO_BUF out = CB_BUF_INIT(1 << 20);
    static const struct {
        size_t at, n;
        uint64_t v;
    } wrong[] = {
        {0, 2, 0},
        {0x3c, 4, 0xffffffff},
        {0x3c, 4, 1500},
        {PE, 4, 0},
        {PE + 4, 2, 0x14c},
        {PE + 6, 2, 0},
        {PE + 6, 2, 60},
        {PE + 20, 2, 0xffff},
        {PE + 20, 2, 8},
        {OPT, 2, 0x10b},
        {OPT + 36, 4, 0},
        {OPT + 36, 4, 700},
        {OPT + 60, 4, 1u << 31},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        make_stub(stub);
        set(stub, wrong[i].at, wrong[i].n, wrong[i].v);
        assert_fails(make(*state, stub, sizeof(stub), 1, &out, &err), &err, CB_E_CORRUPT,
                     "the EFI stub is not a PE file for x86-64");
    }
    make_stub(stub);
    for (size_t n = 0; n < HEADERS; n++) /* cut off anywhere: an error, whichever */
        assert_int_equal(make(*state, stub, n, 1, &out, NULL), -CB_E_CORRUPT);
    assert_fails(make(*state, stub, sizeof(stub), 20, &out, &err), &err, CB_E_CORRUPT,
                 "no room for 20 more sections");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_sections_follow_the_stub),
        test_in_dir(test_a_stub_that_is_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
