/* The metadata server's paths. Only what leads to a token is there. */
#include "builder/gcp.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define ROOT "/computeMetadata/v1"
#define ACCOUNTS ROOT "/instance/service-accounts"

static void say(struct metadata_reply *out, unsigned status, const char *type, char *body)
{
    free(out->body);
    *out = (struct metadata_reply){.status = status, .type = type, .body = body};
}

static void say_text(struct metadata_reply *out, const char *text)
{
    say(out, 200, "application/text", cb_xstrdup(text));
}

static void say_json(struct metadata_reply *out, json_t *o)
{
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    say(out, text ? 200 : 503, "application/json", text);
}

/* @text with each ',' a newline, and one at the end. Owned. */
static char *lines(const char *text)
{
    char *out = cb_xasprintf("%s\n", text);
    for (char *p = out; *p; p++)
        if (*p == ',')
            *p = '\n';
    return out;
}

static json_t *scopes_json(const struct gcp *g)
{
    json_t *list = json_array();
    for (const char *p = gcp_scopes(g); *p;) {
        size_t n = strcspn(p, ",");
        (void)json_array_append_new(list, json_stringn(p, n));
        p += n + (p[n] == ',');
    }
    return list;
}

static json_t *account_json(const struct gcp *g)
{
    return json_pack("{s:[s], s:s, s:o}", "aliases", "default", "email", gcp_email(g), "scopes",
                     scopes_json(g));
}

/* The value of @name in a query, %XX decoded. Owned; NULL: it is not there, or is malformed. */
static char *query_value(const char *query, const char *name)
{
    size_t len = strlen(name);
    for (const char *p = query; p && *p; p = strchr(p, '&') ? strchr(p, '&') + 1 : NULL) {
        if (strncmp(p, name, len) != 0 || p[len] != '=')
            continue;
        size_t n = strcspn(p + len + 1, "&");
        char *out = cb_xcalloc(1, n + 1), *to = out;
        for (const char *from = p + len + 1, *end = from + n; from < end; from++) {
            char hex[3] = "";
            if (*from != '%') {
                *to++ = *from;
                continue;
            }
            if (end - from < 3 || strspn(from + 1, "0123456789abcdefABCDEF") < 2) {
                free(out);
                return NULL;
            }
            memcpy(hex, from + 1, 2);
            *to++ = (char)strtol(hex, NULL, 16);
            from += 2;
        }
        return out;
    }
    return NULL;
}

static void say_token(struct gcp *g, const char *query, struct metadata_reply *out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *scopes = query_value(query, "scopes");
    const char *token = NULL;
    int64_t left = 0;
    if (gcp_token(g, scopes, &token, &left, &err) < 0) {
        say(out, err.code == CB_E_AUTH || err.code == CB_E_CONFIG ? 403 : 503, "text/plain",
            cb_xasprintf("%s\n", err.msg));
        return;
    }
    say_json(out, json_pack("{s:s, s:I, s:s}", "access_token", token, "expires_in",
                            (json_int_t)left, "token_type", "Bearer"));
}

/* @rest: behind ".../service-accounts/NAME/". */
static bool answer_account(struct gcp *g, const char *rest, const char *query, bool recursive,
                           struct metadata_reply *out)
{
    if (!*rest && recursive) {
        say_json(out, account_json(g));
    } else if (!*rest) {
        say_text(out, "aliases\nemail\nscopes\ntoken\n");
    } else if (strcmp(rest, "token") == 0) {
        say_token(g, query, out);
    } else if (strcmp(rest, "email") == 0) {
        say_text(out, gcp_email(g));
    } else if (strcmp(rest, "aliases") == 0) {
        say_text(out, "default\n");
    } else if (strcmp(rest, "scopes") == 0) {
        CB_AUTO_FREE char *text = lines(gcp_scopes(g));
        say_text(out, text);
    } else {
        return false;
    }
    return true;
}

static bool answer_accounts(struct gcp *g, const char *rest, const char *query, bool recursive,
                            struct metadata_reply *out)
{
    const char *slash = strchr(rest, '/');
    if (!*rest && recursive) {
        json_t *o = json_pack("{s:o}", "default", account_json(g));
        (void)json_object_set_new(o, gcp_email(g), account_json(g));
        say_json(out, o);
        return true;
    }
    if (!*rest) {
        bool named = strcmp(gcp_email(g), "default") != 0;
        say(out, 200, "application/text",
            cb_xasprintf("default/\n%s%s", named ? gcp_email(g) : "", named ? "/\n" : ""));
        return true;
    }
    size_t n = slash ? (size_t)(slash - rest) : strlen(rest);
    bool known = (n == 7 && strncmp(rest, "default", n) == 0) ||
                 (n == strlen(gcp_email(g)) && strncmp(rest, gcp_email(g), n) == 0);
    return known && answer_account(g, slash ? slash + 1 : "", query, recursive, out);
}

/* What is the same for every path: false when it is not there. */
static bool answer(struct gcp *g, const char *path, const char *query, struct metadata_reply *out)
{
    CB_AUTO_FREE char *want = query_value(query, "recursive");
    bool recursive = want && (strcmp(want, "true") == 0 || strcmp(want, "True") == 0);
    static const struct {
        const char *path, *text;
    } folders[] = {{"/", "computeMetadata/\n"},
                   {"/computeMetadata/", "v1/\n"},
                   {ROOT "/", "instance/\nproject/\nuniverse/\n"},
                   {ROOT "/instance/", "service-accounts/\n"},
                   {ROOT "/project/", "project-id\n"},
                   {ROOT "/universe/universe-domain", "googleapis.com"}};
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        if (strcmp(path, folders[i].path) == 0 && !recursive) {
            say_text(out, folders[i].text);
            return true;
        }
    }
    if (strcmp(path, ROOT "/project/project-id") == 0 && *gcp_project(g)) {
        say_text(out, gcp_project(g));
        return true;
    }
    size_t n = strlen(ACCOUNTS "/");
    return strncmp(path, ACCOUNTS "/", n) == 0 &&
           answer_accounts(g, path + n, query, recursive, out);
}

void gcp_answer(struct gcp *g, const char *target, bool flavor, bool forwarded,
                struct metadata_reply *out)
{
    const char *mark = strchr(target, '?');
    CB_AUTO_FREE char *path =
        mark ? cb_xstrndup(target, (size_t)(mark - target)) : cb_xstrdup(target);
    bool open = strcmp(path, "/") == 0; /* how programs find out where they are */
    if (forwarded)
        say(out, 403, "text/html", cb_xstrdup("X-Forwarded-For is not accepted.\n"));
    else if (!flavor && !open)
        say(out, 403, "text/html", cb_xstrdup("Missing Metadata-Flavor:Google header.\n"));
    else if (!g || !answer(g, path, mark ? mark + 1 : "", out))
        say(out, 404, "text/html", cb_xstrdup("Not Found\n"));
}
