#include "schemas/attest.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <jansson.h>
#include <string.h>

#define SIGNATURES_MAX 16u

/* ---- base64 ---- */

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static int encode(const uint8_t *p, size_t n, struct cb_buf *out)
{
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i += 3) {
        uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) |
                     (i + 2 < n ? p[i + 2] : 0);
        char four[4] = {alphabet[v >> 18], alphabet[v >> 12 & 63],
                        i + 1 < n ? alphabet[v >> 6 & 63] : '=',
                        i + 2 < n ? alphabet[v & 63] : '='};
        rc = cb_buf_add(out, four, 4);
    }
    return rc;
}

static int digit(char c)
{
    const char *at = c ? strchr(alphabet, c) : NULL;
    return at ? (int)(at - alphabet) : -1;
}

/* Strict: padded, nothing else in it, no bits behind the end. */
static bool decode(const char *text, size_t n, struct cb_buf *out)
{
    if (n % 4)
        return false;
    for (size_t i = 0; i < n; i += 4) {
        size_t pad = 0;
        if (i + 4 == n)
            pad = (text[n - 1] == '=') + (text[n - 1] == '=' && text[n - 2] == '=');
        uint32_t v = 0;
        for (size_t j = 0; j < 4; j++) {
            int d = j < 4 - pad ? digit(text[i + j]) : 0;
            if (d < 0)
                return false;
            v = v << 6 | (uint32_t)d;
        }
        if ((pad == 1 && (v & 0xff)) || (pad == 2 && (v & 0xffff)))
            return false;
        const uint8_t three[3] = {(uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
        if (cb_buf_add(out, three, 3 - pad) < 0)
            return false;
    }
    return true;
}

/* ---- envelopes ---- */

static int too_large(struct cb_error *err)
{
    return cb_fail(err, CB_E_LIMIT, "a statement is larger than an envelope may be");
}

int attest_pae(const char *type, const void *payload, size_t len, struct cb_buf *out,
               struct cb_error *err)
{
    if (cb_buf_addf(out, "DSSEv1 %zu %s %zu ", strlen(type), type, len) < 0 ||
        cb_buf_add(out, payload, len) < 0)
        return too_large(err);
    return 0;
}

int attest_seal(const void *payload, size_t len, const struct cb_sign_key *key, struct cb_buf *out,
                struct cb_error *err)
{
    CB_AUTO_BUF pae = CB_BUF_INIT(ATTEST_MAX);
    uint8_t sig[CB_SIGNATURE_LEN];
    int rc = attest_pae(ATTEST_PAYLOAD_TYPE, payload, len, &pae, err);
    if (rc == 0)
        rc = cb_sign(key, pae.data, pae.len, sig, err);
    if (rc < 0)
        return rc;
    if (cb_buf_adds(out, "{\"payload\":\"") < 0 || encode(payload, len, out) < 0 ||
        cb_buf_addf(out, "\",\"payloadType\":\"%s\",\"signatures\":[{\"keyid\":\"%s\",\"sig\":\"",
                    ATTEST_PAYLOAD_TYPE, cb_sign_key_id(key)) < 0 ||
        encode(sig, sizeof(sig), out) < 0 || cb_buf_adds(out, "\"}]}\n") < 0)
        return too_large(err);
    return 0;
}

static int not_one(struct cb_error *err, const char *why)
{
    return cb_fail(err, CB_E_CORRUPT, "not a signed envelope: %s", why);
}

/* The name of a key in an envelope is a hint and no more: every signature is tried. */
static int check_signatures(const json_t *list, const struct cb_buf *pae,
                            const struct cb_sign_key *key, struct cb_error *err)
{
    size_t n = json_array_size(list);
    if (n == 0 || n > SIGNATURES_MAX)
        return not_one(err, "signatures: must be an array of 1 to 16");
    for (size_t i = 0; i < n; i++) {
        const json_t *sig = json_object_get(json_array_get(list, i), "sig");
        CB_AUTO_BUF raw = CB_BUF_INIT(CB_SIGNATURE_LEN * 2);
        if (!json_is_string(sig))
            return not_one(err, "signatures: one has no text");
        if (decode(json_string_value(sig), json_string_length(sig), &raw) &&
            raw.len == CB_SIGNATURE_LEN &&
            cb_verify(key, pae->data, pae->len, (const uint8_t *)raw.data))
            return 0;
    }
    return cb_fail(err, CB_E_UNTRUSTED, "it is not signed by the key %.16s...",
                   cb_sign_key_id(key));
}

int attest_open(const char *text, size_t len, const struct cb_sign_key *key, struct cb_buf *out,
                struct cb_error *err)
{
    json_error_t je;
    if (len > ATTEST_MAX)
        return not_one(err, "too large");
    json_auto_t *doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    if (!doc)
        return cb_fail(err, CB_E_CORRUPT, "not a signed envelope: %s (line %d)", je.text, je.line);
    const json_t *payload = json_object_get(doc, "payload");
    const char *type = json_string_value(json_object_get(doc, "payloadType"));
    if (!json_is_string(payload) || !type)
        return not_one(err, "payload and payloadType: must be texts");
    if (strcmp(type, ATTEST_PAYLOAD_TYPE) != 0)
        return not_one(err, "payloadType: must be " ATTEST_PAYLOAD_TYPE);
    CB_AUTO_BUF body = CB_BUF_INIT(ATTEST_MAX), pae = CB_BUF_INIT(ATTEST_MAX + 1024);
    if (!decode(json_string_value(payload), json_string_length(payload), &body))
        return not_one(err, "payload: is not base64");
    const char *bytes = body.data ? body.data : "";
    int rc = attest_pae(type, bytes, body.len, &pae, err);
    if (rc == 0)
        rc = check_signatures(json_object_get(doc, "signatures"), &pae, key, err);
    if (rc == 0 && cb_buf_add(out, bytes, body.len) < 0)
        rc = too_large(err);
    return rc;
}

/* ---- statements ---- */

int attest_manifest_digest(const char *text, size_t len, struct cb_digest *out,
                           struct cb_error *err)
{
    json_error_t je;
    json_auto_t *doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    if (!json_is_object(doc))
        return cb_fail(err, CB_E_CORRUPT, "template manifest: %s",
                       doc ? "must be an object" : je.text);
    (void)json_object_del(doc, "documents");
    (void)json_object_del(doc, "version");
    CB_AUTO_FREE char *canonical = json_dumps(doc, JSON_COMPACT | JSON_SORT_KEYS);
    cb_sha256(canonical, strlen(canonical), out);
    return 0;
}

static char *subject_text(const struct attest_subject *s)
{
    char image[CB_HEX_LEN + 1], manifest[CB_HEX_LEN + 1];
    cb_digest_hex(&s->image, image);
    cb_digest_hex(&s->manifest, manifest);
    json_auto_t *v = json_pack("[{s:o, s:{s:s}}, {s:s, s:{s:s}}]", "name",
                               json_sprintf("%s.ext4", s->name), "digest", ATTEST_IMAGE_DIGEST,
                               image, "name", "manifest.json", "digest", "sha256", manifest);
    return v ? json_dumps(v, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
}

int attest_statement(const struct attest_subject *s, const char *type, const void *predicate,
                     size_t len, struct cb_buf *out, struct cb_error *err)
{
    CB_AUTO_FREE char *subject = subject_text(s);
    if (!subject)
        return cb_fail(err, CB_E_BUG, "the name of the template is not UTF-8");
    if (cb_buf_addf(out, "{\"_type\":\"%s\",\"subject\":%s,\"predicateType\":\"%s\",\"predicate\":",
                    ATTEST_STATEMENT_TYPE, subject, type) < 0 ||
        cb_buf_add(out, predicate, len) < 0 || cb_buf_adds(out, "}\n") < 0)
        return too_large(err);
    return 0;
}
