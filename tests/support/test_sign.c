#include "check.h"
#include "sign_keys.h"

#include "support/sign.h"

#include <sys/stat.h>

static char *put(const char *dir, const char *text, mode_t mode)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char *path = cb_xasprintf("%s/key.pem", dir);
    assert_ok(cb_write_file(path, text, strlen(text), mode, &err), &err);
    assert_int_equal(chmod(path, mode), 0); /* whatever the umask is */
    return path;
}

static void test_sign_and_verify(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = put(*state, KEY_ED25519, 0600);
    struct cb_sign_key *key = NULL, *public = NULL;
    assert_ok(cb_sign_key_load(path, &key, &err), &err);
    CB_AUTO_FREE char *again = put(*state, KEY_ED25519_PUBLIC, 0644);
    assert_ok(cb_verify_key_load(again, &public, &err), &err);
    assert_string_equal(cb_sign_key_id(key), KEY_ED25519_ID);
    assert_string_equal(cb_sign_key_id(public), KEY_ED25519_ID);
    uint8_t sig[CB_SIGNATURE_LEN];
    assert_ok(cb_sign(key, "text", 4, sig, &err), &err);
    assert_true(cb_verify(public, "text", 4, sig));
    assert_false(cb_verify(public, "texts", 5, sig));
    for (size_t i = 0; i < sizeof(sig); i++) {
        sig[i] ^= 1;
        assert_false(cb_verify(public, "text", 4, sig));
        sig[i] ^= 1;
    }
    cb_sign_key_free(key);
    cb_sign_key_free(public);
    cb_sign_key_free(NULL);
}

static void test_keys_that_cannot_sign(void **state)
{
    const struct {
        const char *text;
        mode_t mode;
        const char *why, *hint;
    } bad[] = {
        {KEY_ED25519, 0640, "can be read or changed by others (mode 0640)", "chmod 600"},
        {KEY_ED25519, 0602, "can be read or changed by others (mode 0602)", "chmod 600"},
        {KEY_ENCRYPTED, 0600, "behind a password", "without one"},
        {KEY_EC, 0600, "of the kind EC; only ED25519", "genpkey -algorithm ed25519"},
        {KEY_ED25519_PUBLIC, 0600, "no private key in PEM", "genpkey"},
        {"", 0600, "no private key in PEM", "genpkey"},
        {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0600,
         "no private key in PEM", "genpkey"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct cb_sign_key *key = NULL;
        CB_AUTO_FREE char *path = put(*state, bad[i].text, bad[i].mode);
        assert_int_equal(cb_sign_key_load(path, &key, &err), -(int)CB_E_CONFIG);
        assert_non_null(strstr(err.msg, bad[i].why));
        assert_non_null(strstr(err.hint, bad[i].hint));
        assert_non_null(strstr(err.msg, path));
        assert_null(key);
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_sign_key *key = NULL;
    assert_fails(cb_sign_key_load(*state, &key, &err), &err, CB_E_CONFIG, "is not a file");
    assert_fails(cb_sign_key_load("/nowhere/key", &key, &err), &err, CB_E_CONFIG,
                 "cannot be opened: No such file");
    CB_AUTO_FREE char *path = put(*state, KEY_ED25519, 0600);
    assert_fails(cb_verify_key_load(path, &key, &err), &err, CB_E_CONFIG, "no public key in PEM");
    CB_AUTO_FREE char *big = cb_xcalloc(1, 65538);
    memset(big, 'x', 65537);
    CB_AUTO_FREE char *large = put(*state, big, 0600);
    assert_fails(cb_sign_key_load(large, &key, &err), &err, CB_E_CONFIG, "cannot be read");
    if (geteuid() == 0) {
        CB_AUTO_FREE char *foreign = put(*state, KEY_ED25519, 0600);
        assert_int_equal(chown(foreign, 12345, 12345), 0);
        assert_fails(cb_sign_key_load(foreign, &key, &err), &err, CB_E_CONFIG,
                     "belongs to another user (12345)");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_dir(test_sign_and_verify),
        test_in_dir(test_keys_that_cannot_sign),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
