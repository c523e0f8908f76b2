#include "builder/fetch.h"

#include "builder/machine.h"
#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <curl/curl.h>

enum {
    CONNECT_SECONDS = 15,
    STALL_BYTES = 512, /* fewer a second over STALL_SECONDS is a dead line */
    STALL_SECONDS = 30,
    REDIRECTS = 5,
    NOTE_MS = 5000,
};

CB_DEFINE_CLEANUP(curl, CURL *, curl_easy_cleanup);
CB_DEFINE_CLEANUP(hasher, struct cb_hasher *, cb_hasher_free);

struct transfer {
    const struct fetch_spec *spec;
    CURL *curl;
    int fd;
    struct cb_hasher *hasher;
    uint64_t size;
    int64_t next_note;
    struct cb_error *err; /* raised in a callback; curl then ends with CURLE_WRITE_ERROR */
    bool failed;
};

static size_t on_body(char *p, size_t one, size_t n, void *arg)
{
    struct transfer *t = arg;
    n *= one;
    if (n > t->spec->max - t->size) {
        cb_fail(t->err, CB_E_LIMIT, "%s: more than %llu bytes", t->spec->url,
                (unsigned long long)t->spec->max);
        t->failed = true;
        return 0;
    }
    if (cb_write_all(t->fd, p, n, t->err) < 0) {
        t->failed = true;
        return 0;
    }
    cb_hasher_update(t->hasher, p, n);
    t->size += n;
    return n;
}

static int on_progress(void *arg, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up_now)
{
    struct transfer *t = arg;
    (void)up_total;
    (void)up_now;
    if (machine_canceled())
        return 1;
    int64_t ms = cb_monotonic_ms();
    if (t->spec->note && ms >= t->next_note) {
        t->next_note = ms + NOTE_MS;
        char have[32], all[32] = "?";
        cb_human_bytes((uint64_t)now, have, sizeof(have));
        if (total > 0)
            cb_human_bytes((uint64_t)total, all, sizeof(all));
        CB_AUTO_FREE char *text =
            cb_xasprintf("downloading %s: %s of %s", t->spec->what, have, all);
        t->spec->note(t->spec->note_arg, text);
    }
    return 0;
}

static CURLcode set_options(struct transfer *t, char *why)
{
#define SET(option, value)                                                                         \
    do {                                                                                           \
        CURLcode set_rc_ = curl_easy_setopt(t->curl, option, value);                               \
        if (set_rc_ != CURLE_OK)                                                                   \
            return set_rc_;                                                                        \
    } while (0)
    SET(CURLOPT_ERRORBUFFER, why);
    SET(CURLOPT_URL, t->spec->url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 1L);
    SET(CURLOPT_MAXREDIRS, (long)REDIRECTS);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS);
    SET(CURLOPT_LOW_SPEED_LIMIT, (long)STALL_BYTES);
    SET(CURLOPT_LOW_SPEED_TIME, (long)STALL_SECONDS);
    SET(CURLOPT_FAILONERROR, 1L);
    SET(CURLOPT_USERAGENT, "capsule-build");
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, (void *)t);
    SET(CURLOPT_XFERINFOFUNCTION, on_progress);
    SET(CURLOPT_XFERINFODATA, (void *)t);
    SET(CURLOPT_NOPROGRESS, 0L);
    const char *ca = getenv("CURL_CA_BUNDLE"); /* `ca_bundle` of the settings */
    if (ca && *ca)
        SET(CURLOPT_CAINFO, ca);
#undef SET
    return CURLE_OK;
}

int fetch_to_fd(const struct fetch_spec *spec, int fd, struct fetch_result *out,
                struct cb_error *err)
{
    CB_AUTO(curl) curl = curl_easy_init();
    CB_AUTO(hasher) hasher = cb_hasher_new();
    if (!curl)
        return cb_fail(err, CB_E_BUG, "libcurl does not start");
    struct transfer t = {.spec = spec,
                         .curl = curl,
                         .fd = fd,
                         .hasher = hasher,
                         .next_note = cb_monotonic_ms() + NOTE_MS,
                         .err = err};
    char why[CURL_ERROR_SIZE] = "";
    CURLcode rc = set_options(&t, why);
    if (rc == CURLE_OK)
        rc = curl_easy_perform(curl);
    if (t.failed)
        return cb_wrap(err, "download %s", spec->what);
    if (rc == CURLE_ABORTED_BY_CALLBACK)
        return cb_fail(err, CB_E_CANCELED, "download %s: stopped", spec->what);
    long status = 0;
    (void)curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (rc == CURLE_HTTP_RETURNED_ERROR)
        return cb_fail(err, status == 404 || status == 410 ? CB_E_NOTFOUND : CB_E_NET,
                       "download %s: %s answered %ld", spec->what, spec->url, status);
    if (rc != CURLE_OK)
        return cb_fail(err, CB_E_NET, "download %s: %s: %s", spec->what, spec->url,
                       *why ? why : curl_easy_strerror(rc));
    out->size = t.size;
    cb_hasher_final(hasher, &out->digest);
    return 0;
}
