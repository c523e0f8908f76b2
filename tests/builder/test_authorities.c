/* `ca_bundle` on its way to the commands of a layer, through a session into a real agent. */
#include "builder/agent_fixture.h"

#include "builder/authorities.h"
#include "builder/frames.h"

static void start(struct agent_fixture *f, const struct cb_buf *bundle)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    fixture_begin(f, fixture_image, NULL);
    assert_ok(authorities_send(f->s, bundle, &err), &err);
    fixture_layer(f);
}

static void look(struct agent_fixture *f, const char *script, const char *want)
{
    struct step_result r = fixture_run(f, script);
    assert_int_equal(r.exit_code, 0);
    assert_string_equal(f->out.data ? f->out.data : "", want);
}

#define FILE_OF FRAME_AUTHORITIES_PATH

static void test_commands_trust_the_images_and_the_hosts(void **state)
{
    (void)state;
    struct agent_fixture f;
    CB_AUTO_BUF bundle = CB_BUF_INIT(100);
    (void)cb_buf_adds(&bundle, "OURS\n");
    start(&f, &bundle);
    look(&f, "cat " FILE_OF "; stat -c %a:%u " FILE_OF, "OURS\n444:0\n");
    /* as the image's change, so does the file; a device in their place is left alone */
    look(&f, "mkdir -p /etc/ssl/certs; printf THEIRS >/etc/ssl/certs/ca-certificates.crt", "");
    look(&f, "cat " FILE_OF, "THEIRS\nOURS\n");
    look(&f, "rm /etc/ssl/certs/ca-certificates.crt; mkfifo /etc/ssl/certs/ca-certificates.crt",
         "");
    look(&f, "cat " FILE_OF "; rm /etc/ssl/certs/ca-certificates.crt", "OURS\n");
    /* root cannot change it, and no diff has it */
    look(&f,
         "echo x 2>/dev/null >" FILE_OF " || echo no; rm -f " FILE_OF " 2>/dev/null || echo no; "
         "cat " FILE_OF,
         "no\nno\nOURS\n");
    CB_AUTO_FREE char *diff = fixture_diff(&f);
    assert_null(strstr(diff, "capsule-build"));
    assert_null(strstr(diff, "run/"));
    fixture_stop(&f);
}

static void test_a_bundle_of_many_pieces(void **state)
{
    (void)state;
    struct agent_fixture f;
    CB_AUTO_BUF bundle = CB_BUF_INIT(AUTHORITIES_MAX);
    for (int i = 0; i < 30000; i++)
        (void)cb_buf_addf(&bundle, "%09d\n", i);
    start(&f, &bundle);
    look(&f, "stat -c %s " FILE_OF "; while read l; do n=$l; done <" FILE_OF "; echo $n",
         "300000\n000029999\n");
    fixture_stop(&f);
}

static void test_without_a_bundle_there_is_no_file(void **state)
{
    (void)state;
    struct agent_fixture f;
    const struct cb_buf none = CB_BUF_INIT(0);
    start(&f, &none);
    look(&f, "test -e /run/capsule-build || echo none", "none\n");
    fixture_stop(&f);
}

static void test_a_bundle_that_is_none_is_refused(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *path = cb_xasprintf("%s/bundle.pem", fixture_work);
    struct settings s = {.ca_bundle = path};
    CB_AUTO_BUF b = CB_BUF_INIT(AUTHORITIES_MAX);
    assert_fails(authorities_read(&s, &b, &err), &err, CB_E_CONFIG, "bundle.pem: ");
    assert_ok(cb_write_file(path, "what", 4, 0644, &err), &err);
    assert_fails(authorities_read(&s, &b, &err), &err, CB_E_CONFIG, "no certificate in PEM");
    static const char pem[] = "-----BEGIN CERTIFICATE-----\n";
    assert_ok(cb_write_file(path, pem, strlen(pem), 0644, &err), &err);
    assert_ok(authorities_read(&s, &b, &err), &err);
    assert_int_equal(b.len, strlen(pem));
    s.ca_bundle = NULL;
    cb_buf_clear(&b);
    assert_ok(authorities_read(&s, &b, &err), &err);
    assert_int_equal(b.len, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commands_trust_the_images_and_the_hosts),
        cmocka_unit_test(test_a_bundle_of_many_pieces),
        cmocka_unit_test(test_without_a_bundle_there_is_no_file),
        cmocka_unit_test(test_a_bundle_that_is_none_is_refused),
    };
    return fixture_run_tests("authorities", tests);
}
