/* Tokens signed with RSA: openssl itself is asked whether they are right. */
#include "check.h"

#include "support/jwt.h"
#include "support/proc.h"

static void sh(const char *script, const char *a, const char *b)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_proc_result res = {0};
    const struct cb_proc_spec spec = {
        .argv = (const char *const[]){"sh", "-ec", script, "sh", a, b, NULL}};
    assert_ok(cb_proc_run(&spec, NULL, 1 << 16, 60000, &res, &err), &err);
    assert_ok(cb_proc_check(&res, "openssl", &err), &err);
    cb_proc_result_release(&res);
}

static char *key(const char *dir, const char *options)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/key.pem", dir);
    struct cb_buf text = CB_BUF_INIT(1 << 16);
    sh("openssl genpkey $2 -out $1 2>/dev/null", path, options);
    assert_ok(cb_read_file(path, 1 << 16, &text, &err), &err);
    return cb_buf_take(&text);
}

static void test_it_verifies(void **state)
{
    const char *dir = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *pem = key(dir, "-algorithm RSA -pkeyopt rsa_keygen_bits:2048");
    CB_AUTO_FREE char *jwt = NULL;
    assert_ok(cb_jwt_rs256(pem, "{\"alg\":\"RS256\"}", "{\"iss\":\"\xc3\xbf?\"}", &jwt, &err),
              &err);
    /* the alphabet of URLs, and no padding */
    assert_null(strpbrk(jwt, "+/="));
    assert_int_equal(strncmp(jwt, "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiLDvz8ifQ.", 40), 0);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/jwt", dir);
    assert_ok(cb_write_file(path, jwt, strlen(jwt), 0600, &err), &err);
    sh("cd $2; openssl pkey -in key.pem -pubout -out pub.pem; printf %s \"$(cut -d. -f1,2 $1)\" "
       ">signed; "
       "s=$(cut -d. -f3 $1 | tr _- /+); while [ $((${#s} % 4)) != 0 ]; do s=$s=; done; "
       "echo $s | openssl base64 -d -A >sig; "
       "openssl dgst -sha256 -verify pub.pem -signature sig signed",
       path, dir);
}

static void test_other_keys_are_refused(void **state)
{
    static const char *const options[] = {"-algorithm ED25519",
                                          "-algorithm RSA -pkeyopt rsa_keygen_bits:1024",
                                          ("-algorithm RSA -pkeyopt rsa_keygen_bits:2048 -aes256 "
                                           "-pass pass:x")};
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *pem = key(*state, options[i]);
        char *jwt = NULL;
        assert_fails(cb_jwt_rs256(pem, "{}", "{}", &jwt, &err), &err, CB_E_CONFIG,
                     "no RSA key of at least 2048 bits");
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char *jwt = NULL;
    assert_fails(cb_jwt_rs256("", "{}", "{}", &jwt, &err), &err, CB_E_CONFIG, "no RSA key");
}

int main(void)
{
    const struct CMUnitTest tests[] = {test_in_dir(test_it_verifies),
                                       test_in_dir(test_other_keys_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
