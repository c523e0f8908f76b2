/* What a program in the guest sends to the metadata server: parsed by the agent, answered by the
 * host. The credential is this file's: its token may come out for one path alone, and never without
 * the header. */
#include "builder/agent/agent.h"
#include "builder/gcp.h"

#include <stdlib.h>
#include <string.h>

struct gcp {
    int unused;
};
static const char secret[] = "ya29.secret";
#define EMAIL "a@b.iam.gserviceaccount.com"

const char *gcp_email(const struct gcp *g)
{
    (void)g;
    return EMAIL;
}

const char *gcp_scopes(const struct gcp *g)
{
    (void)g;
    return "https://a,https://b";
}

const char *gcp_project(const struct gcp *g)
{
    (void)g;
    return "p";
}

int gcp_token(struct gcp *g, const char *scopes, const char **token, int64_t *expires_in_s,
              struct cb_error *err)
{
    (void)g;
    if (scopes && strchr(scopes, ' '))
        return cb_fail(err, CB_E_CONFIG, "these are no scopes");
    *token = secret;
    *expires_in_s = 1;
    return 0;
}

static bool leads_to_token(const char *target)
{
    static const char root[] = "/computeMetadata/v1/instance/service-accounts/";
    return strncmp(target, root, sizeof root - 1) == 0 && strstr(target, "/token");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct metadata_request r;
    struct gcp g = {0};
    if (size > METADATA_REQUEST_MAX || metadata_parse((const char *)data, size, &r) == 0 ||
        r.status)
        return 0;
    if (r.target[0] != '/' || strlen(r.target) > METADATA_TARGET_MAX)
        abort();
    struct metadata_reply a = {.status = 503};
    gcp_answer(&g, r.target, r.flavor, r.forwarded, &a);
    if (!a.body || (a.status != 200 && a.status != 403 && a.status != 404))
        abort();
    if (strstr(a.body, secret) && (!r.flavor || r.forwarded || !leads_to_token(r.target)))
        abort();
    free(a.body);
    return 0;
}
