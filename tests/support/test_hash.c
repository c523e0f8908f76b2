#include "check.h"

#include "support/hash.h"

/* FIPS 180-2, appendix B: the vectors for "abc" and the empty message. */
static void test_known_vectors(void **state)
{
    (void)state;
    struct cb_digest d;
    char text[CB_DIGEST_LEN + 1];
    cb_sha256("abc", 3, &d);
    cb_digest_text(&d, text);
    assert_string_equal(text, "sha256:"
                              "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    struct cb_hasher *h = cb_hasher_new();
    cb_hasher_update(h, "a", 1);
    cb_hasher_update(h, "bc", 2);
    struct cb_digest e;
    cb_hasher_final(h, &e);
    assert_true(cb_digest_eq(&d, &e));
    cb_hasher_final(h, &e);
    cb_digest_hex(&e, text);
    assert_string_equal(text, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    cb_hasher_free(h);
}

static void test_parse_is_strict(void **state)
{
    (void)state;
    struct cb_digest d;
#define HEX63 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85"
    assert_true(cb_digest_parse("sha256:" HEX63 "5", &d));
    static const char *const bad[] = {"",
                                      "sha256:",
                                      "sha256:" HEX63,
                                      "sha256:" HEX63 "55",
                                      "sha256:" HEX63 "A",
                                      "sha256:" HEX63 "/",
                                      "sha512:" HEX63 "5",
                                      HEX63 "5"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_false(cb_digest_parse(bad[i], &d));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_vectors),
        cmocka_unit_test(test_parse_is_strict),
    };
    return cmocka_run_group_tests_name("support/hash", tests, NULL, NULL);
}
