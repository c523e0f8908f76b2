#include "check.h"
#include "sign_keys.h"

#include "schemas/attest.h"

#include <jansson.h>

static struct cb_sign_key *key_of(const char *pem, bool private_key)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_sign_key *k = NULL;
    assert_ok(cb_sign_key_parse(pem, strlen(pem), private_key, "test", &k, &err), &err);
    return k;
}

/* The example of the specification (DSSE, protocol.md). */
static void test_pae(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF out = CB_BUF_INIT(100);
    assert_ok(attest_pae("http://example.com/HelloWorld", "hello world", 11, &out, &err), &err);
    assert_string_equal(out.data, "DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    CB_AUTO_BUF small = CB_BUF_INIT(10);
    assert_fails(attest_pae("a", "hello world", 11, &small, &err), &err, CB_E_LIMIT,
                 "larger than an envelope may be");
}

static void test_envelopes_of_every_length(void **state)
{
    (void)state;
    struct cb_sign_key *key = key_of(KEY_ED25519, true),
                       *public = key_of(KEY_ED25519_PUBLIC, false);
    uint8_t bytes[70];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 37 + 200);
    for (size_t n = 0; n <= sizeof(bytes); n++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_BUF sealed = CB_BUF_INIT(4096), again = CB_BUF_INIT(4096), out = CB_BUF_INIT(4096);
        assert_ok(attest_seal(bytes, n, key, &sealed, &err), &err);
        assert_ok(attest_seal(bytes, n, key, &again, &err), &err);
        assert_string_equal(sealed.data, again.data);
        assert_ok(attest_open(sealed.data, sealed.len, public, &out, &err), &err);
        assert_int_equal(out.len, n);
        assert_true(n == 0 || memcmp(out.data, bytes, n) == 0);
    }
    cb_sign_key_free(key);
    cb_sign_key_free(public);
}

static void test_what_is_not_signed_by_the_key(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct cb_sign_key *key = key_of(KEY_ED25519, true), *other = key_of(KEY_OTHER, true);
    CB_AUTO_BUF sealed = CB_BUF_INIT(4096), out = CB_BUF_INIT(4096);
    assert_ok(attest_seal("{\"a\":1}", 7, key, &sealed, &err), &err);
    assert_fails(attest_open(sealed.data, sealed.len, other, &out, &err), &err, CB_E_UNTRUSTED,
                 "it is not signed by the key");
    char *payload = strstr(sealed.data, "eyJhIjoxfQ=="); /* {"a":1} becomes {"a":2} */
    assert_non_null(payload);
    memcpy(payload, "eyJhIjoyfQ==", 12);
    assert_fails(attest_open(sealed.data, sealed.len, key, &out, &err), &err, CB_E_UNTRUSTED,
                 "it is not signed by the key");
    memcpy(payload, "eyJhIjoxfR==", 12); /* the same bytes, and bits behind them */
    assert_fails(attest_open(sealed.data, sealed.len, key, &out, &err), &err, CB_E_CORRUPT,
                 "payload: is not base64");
    assert_int_equal(out.len, 0);
    cb_sign_key_free(key);
    cb_sign_key_free(other);
}

#define TYPE "\"payloadType\":\"application/vnd.in-toto+json\","

static void test_what_is_no_envelope(void **state)
{
    (void)state;
    static const struct {
        const char *text, *why;
    } bad[] = {
        {"", "not a signed envelope: "},
        {"{\"payload\":\"\",\"payload\":\"\"}", "not a signed envelope: duplicate"},
        {"[]", "payload and payloadType: must be texts"},
        {"{\"payload\":\"\"}", "payload and payloadType: must be texts"},
        {"{\"payload\":1," TYPE "\"signatures\":[]}", "payload and payloadType: must be texts"},
        {"{\"payload\":\"\",\"payloadType\":\"x\"}", "payloadType: must be application/vnd"},
        {"{\"payload\":\"A\"," TYPE "\"signatures\":[]}", "payload: is not base64"},
        {"{\"payload\":\"AA=A\"," TYPE "\"signatures\":[]}", "payload: is not base64"},
        {"{\"payload\":\"A===\"," TYPE "\"signatures\":[]}", "payload: is not base64"},
        {"{\"payload\":\"AA\\n=\"," TYPE "\"signatures\":[]}", "payload: is not base64"},
        {"{\"payload\":\"\"," TYPE "\"signatures\":[]}", "signatures: must be an array of 1 to 16"},
        {"{\"payload\":\"\"," TYPE "\"signatures\":{}}", "signatures: must be an array of 1 to 16"},
        {"{\"payload\":\"\"," TYPE "\"signatures\":[1]}", "signatures: one has no text"},
    };
    struct cb_sign_key *key = key_of(KEY_ED25519, true);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_BUF out = CB_BUF_INIT(100);
        assert_fails(attest_open(bad[i].text, strlen(bad[i].text), key, &out, &err), &err,
                     CB_E_CORRUPT, bad[i].why);
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF out = CB_BUF_INIT(100);
    assert_fails(attest_open("", (size_t)ATTEST_MAX + 1, key, &out, &err), &err, CB_E_CORRUPT,
                 "not a signed envelope: too large");
    static const char many[] = "{\"payload\":\"\"," TYPE "\"signatures\":[{\"sig\":\"AA==\"},"
                               "{\"sig\":\"no base64\"}]}";
    assert_fails(attest_open(many, strlen(many), key, &out, &err), &err, CB_E_UNTRUSTED,
                 "it is not signed by the key");
    cb_sign_key_free(key);
}

static void test_statement(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct attest_subject about = {.name = "hello"};
    static const char one[] =
        "{\"version\": 3, \"b\": [1, 2], \"documents\": {\"x\": 1}, \"a\": 1}";
    static const char two[] = "{\"a\":1,\n\"b\":[1,2],\"version\":4}";
    struct cb_digest other;
    memset(&about.image, 0x11, sizeof(about.image));
    assert_ok(attest_manifest_digest(one, strlen(one), &about.manifest, &err), &err);
    assert_ok(attest_manifest_digest(two, strlen(two), &other, &err), &err);
    assert_memory_equal(&about.manifest, &other, sizeof(other));
    struct cb_digest by_hand;
    cb_sha256("{\"a\":1,\"b\":[1,2]}", 17, &by_hand);
    assert_memory_equal(&by_hand, &other, sizeof(other));
    assert_fails(attest_manifest_digest("[]", 2, &other, &err), &err, CB_E_CORRUPT,
                 "template manifest: must be an object");
    assert_fails(attest_manifest_digest("{", 1, &other, &err), &err, CB_E_CORRUPT,
                 "template manifest: ");
    CB_AUTO_BUF out = CB_BUF_INIT(4096);
    assert_ok(attest_statement(&about, ATTEST_SLSA_TYPE, "{\"p\":1}", 7, &out, &err), &err);
    json_auto_t *doc = json_loads(out.data, JSON_REJECT_DUPLICATES, NULL);
    const char *type = NULL, *predicate = NULL, *name = NULL, *digest = NULL;
    int p = 0;
    assert_int_equal(json_unpack(doc, "{s:s, s:s, s:{s:i}, s:[{s:s, s:{s:s}}, o]}", "_type", &type,
                                 "predicateType", &predicate, "predicate", "p", &p, "subject",
                                 "name", &name, "digest", ATTEST_IMAGE_DIGEST, &digest,
                                 &(json_t *){NULL}),
                     0);
    assert_string_equal(type, "https://in-toto.io/Statement/v1");
    assert_string_equal(predicate, "https://slsa.dev/provenance/v1");
    assert_string_equal(name, "hello.ext4");
    assert_string_equal(digest, "1111111111111111111111111111111111111111111111111111111111111111");
    CB_AUTO_BUF small = CB_BUF_INIT(50);
    assert_fails(attest_statement(&about, "x", "{}", 2, &small, &err), &err, CB_E_LIMIT,
                 "larger than an envelope may be");
    about.name = "\xff";
    assert_fails(attest_statement(&about, "x", "{}", 2, &out, &err), &err, CB_E_BUG,
                 "the name of the template is not UTF-8");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pae),
        cmocka_unit_test(test_envelopes_of_every_length),
        cmocka_unit_test(test_what_is_not_signed_by_the_key),
        cmocka_unit_test(test_what_is_no_envelope),
        cmocka_unit_test(test_statement),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
