#include "builder/authorities.h"

#include "builder/session_wire.h"
#include "support/cleanup.h"
#include "support/file.h"

#include <string.h>

enum { PIECE = 128 << 10 };

int authorities_read(const struct settings *s, struct cb_buf *out, struct cb_error *err)
{
    if (!s->ca_bundle)
        return 0;
    CB_AUTO_ERROR why = CB_ERROR_INIT;
    int rc = cb_read_file(s->ca_bundle, FRAME_AUTHORITIES_MAX, out, &why);
    if (rc == 0 && (!out->len || memchr(out->data, 0, out->len) ||
                    !strstr(out->data, "-----BEGIN CERTIFICATE-----")))
        cb_fail(&why, CB_E_CONFIG, "it holds no certificate in PEM");
    if (why.code == CB_OK)
        return 0;
    cb_fail(err, CB_E_CONFIG, "ca_bundle %s: %s", s->ca_bundle, why.msg);
    return cb_hint(err, "commands are to trust what it holds: name a PEM file of at most 2 MiB in "
                        "the settings, or none");
}

int authorities_send(struct session *s, const struct cb_buf *bundle, struct cb_error *err)
{
    int rc = 0;
    for (size_t at = 0; at < bundle->len && rc >= 0;) {
        size_t n = bundle->len - at < PIECE ? bundle->len - at : PIECE;
        struct frame_out o;
        sess_begin(s, &o, FRAME_AUTHORITIES, 0);
        frame_put(&o, TAG_DATA, bundle->data + at, n);
        rc = sess_ask(s, &o, SETUP_MS * s->factor, err);
        at += n;
    }
    return rc < 0 ? cb_wrap(err, "hand on ca_bundle") : 0;
}

void authorities_env(struct cb_strv *env)
{
    static const char *const names[] = {
        "SSL_CERT_FILE",       /* OpenSSL, Go, Ruby, Rust */
        "CURL_CA_BUNDLE",      /* curl */
        "REQUESTS_CA_BUNDLE",  /* Python's requests, and pip */
        "PIP_CERT",            /* pip where it is isolated */
        "NODE_EXTRA_CA_CERTS", /* Node, npm */
        "GIT_SSL_CAINFO",
        "CARGO_HTTP_CAINFO",
        "AWS_CA_BUNDLE",
        "DENO_CERT",
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        cb_strv_addf(env, "%s=" FRAME_AUTHORITIES_PATH, names[i]);
}
