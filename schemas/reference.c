#include "schemas/reference.h"

#include "support/buf.h"
#include "support/cleanup.h"
#include "support/limits.h"
#include "support/mem.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define REF_TEXT_MAX (CB_PATH_MAX + 64)
#define REF_NAME_MAX 255 /* domain + "/" + path: the limit of Docker's own clients */
#define REF_TAG_MAX 128

static const char accepted[] =
    "a base image is [host[:port]/]path[:tag][@sha256:...] (\"debian:bookworm\", "
    "\"ghcr.io/org/app:1\"), oci:DIR[:tag], docker-archive:FILE[:name:tag], "
    "template:NAME[:version], a built-in one (minimal-debian, minimal-debian:trixie), or scratch";

/* layers/builtin.c has the recipe of each. */
static const char *const builtins[] = {
    "minimal-debian", "minimal-debian:bookworm", "minimal-debian:trixie", "minimal-debian:bullseye",
    "minimal-ubuntu", "minimal-ubuntu:noble",    "minimal-ubuntu:jammy"};

bool image_ref_is_builtin(const char *text)
{
    for (size_t i = 0; i < sizeof(builtins) / sizeof(builtins[0]); i++)
        if (strcmp(text, builtins[i]) == 0)
            return true;
    return false;
}

void image_ref_release(struct image_ref *r)
{
    free(r->text);
    free(r->domain);
    free(r->path);
    free(r->tag);
    *r = (struct image_ref){0};
}

char *image_ref_canonical(const struct image_ref *r)
{
    char digest[CB_DIGEST_LEN + 1] = "";
    if (r->has_digest)
        cb_digest_text(&r->digest, digest);
    switch (r->kind) {
    case SOURCE_REGISTRY:
        return cb_xasprintf("%s/%s%s%s%s%s", r->domain, r->path, r->tag ? ":" : "",
                            r->tag ? r->tag : "", r->has_digest ? "@" : "", digest);
    case SOURCE_OCI_LAYOUT:
        return cb_xasprintf("oci:%s%s%s", r->path, r->tag ? ":" : "", r->tag ? r->tag : "");
    case SOURCE_DOCKER_ARCHIVE:
        return cb_xasprintf("docker-archive:%s%s%s", r->path, r->tag ? ":" : "",
                            r->tag ? r->tag : "");
    case SOURCE_TEMPLATE:
        return cb_xasprintf("template:%s%s%s", r->path, r->tag ? ":" : "", r->tag ? r->tag : "");
    case SOURCE_BUILTIN:
    case SOURCE_SCRATCH: return cb_xstrdup(r->path);
    }
    return cb_xstrdup("");
}

/* ASCII only, whatever the locale. */
static bool is_lower_alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_upper(char c)
{
    return c >= 'A' && c <= 'Z';
}

static bool is_alnum(char c)
{
    return is_lower_alnum(c) || is_upper(c);
}

static int bad(struct cb_error *err, const char *text, const char *why)
{
    /* what the user wrote goes back to a terminal: nothing in it may control that */
    CB_AUTO_FREE char *shown = cb_xstrndup(text, 200);
    for (char *c = shown; *c; c++)
        if ((unsigned char)*c < 0x20 || (unsigned char)*c >= 0x7f)
            *c = '?';
    cb_fail(err, CB_E_CONFIG, "image \"%s\": %s", shown, why);
    return cb_hint(err, "%s", accepted);
}

/* alnum (separator alnum)*, separator one of "." "_" "__" or dashes. */
static bool path_component_ok(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n && is_lower_alnum(s[i]))
        i++;
    if (i == 0)
        return false;
    while (i < n) {
        size_t at = i;
        if (s[i] == '.')
            i++;
        else if (s[i] == '_')
            i += i + 1 < n && s[i + 1] == '_' ? 2 : 1;
        else
            while (i < n && s[i] == '-')
                i++;
        if (i == at)
            return false; /* no separator at all: a character of neither kind */
        at = i;
        while (i < n && is_lower_alnum(s[i]))
            i++;
        if (i == at)
            return false;
    }
    return true;
}

static const char *path_problem(const char *path)
{
    if (!*path)
        return "the repository's name is missing";
    for (const char *c = path; *c; c++)
        if (is_upper(*c))
            return "the repository's name must be lower case";
    const char *at = path;
    for (;;) {
        size_t n = strcspn(at, "/");
        if (!path_component_ok(at, n))
            return "each part of the repository's name is made of a-z and 0-9, joined by \".\", "
                   "\"_\", \"__\" or dashes";
        if (!at[n])
            return NULL;
        at += n + 1;
    }
}

static const char *port_problem(const char *port)
{
    size_t n = strlen(port);
    long v = 0;
    if (n == 0 || n > 5)
        return "a port is a number from 1 to 65535";
    for (size_t i = 0; i < n; i++) {
        if (!is_digit(port[i]))
            return "a port is a number from 1 to 65535";
        v = v * 10 + (port[i] - '0');
    }
    return v >= 1 && v <= 65535 ? NULL : "a port is a number from 1 to 65535";
}

static const char *domain_problem(const char *d)
{
    if (*d == '[') {
        size_t n = strspn(d + 1, "0123456789abcdefABCDEF:");
        if (n < 2 || d[1 + n] != ']')
            return "the host is not an IPv6 address in brackets";
        const char *rest = d + 1 + n + 1;
        if (!*rest)
            return NULL;
        return *rest == ':' ? port_problem(rest + 1) : "the host is followed by something unknown";
    }
    const char *colon = strchr(d, ':');
    size_t len = colon ? (size_t)(colon - d) : strlen(d);
    size_t start = 0;
    for (size_t i = 0; i <= len; i++) {
        if (i < len && d[i] != '.') {
            if (!is_alnum(d[i]) && d[i] != '-')
                return "the host holds a character that no host name has";
            continue;
        }
        if (i == start || d[start] == '-' || d[i - 1] == '-')
            return "the host is not a host name";
        start = i + 1;
    }
    return colon ? port_problem(colon + 1) : NULL;
}

static const char *tag_problem(const char *tag)
{
    size_t n = strlen(tag);
    if (n == 0)
        return "the tag behind \":\" is missing";
    if (n > REF_TAG_MAX)
        return "the tag is longer than 128 characters";
    for (size_t i = 0; i < n; i++)
        if (!is_alnum(tag[i]) && tag[i] != '_' && (i == 0 || (tag[i] != '.' && tag[i] != '-')))
            return "a tag is made of letters, digits, \"_\", \".\" and \"-\"";
    return NULL;
}

static bool is_domain(const char *s, size_t n)
{
    if (n == strlen("localhost") && memcmp(s, "localhost", n) == 0)
        return true;
    for (size_t i = 0; i < n; i++)
        if (s[i] == '.' || s[i] == ':' || is_upper(s[i]))
            return true;
    return false;
}

/* host/path[:tag][@digest]; @out->text is set already. */
static int parse_registry(const char *text, struct image_ref *out, struct cb_error *err)
{
    const char *why;
    struct cb_digest id;
    out->kind = SOURCE_REGISTRY;
    if (strstr(text, "://"))
        return bad(err, text, "a reference has no \"://\": leave out what stands before the host");
    if (cb_digest_parse_hex(text, &id))
        return bad(err, text, "this is the id of a local image; a registry is asked by name");

    CB_AUTO_FREE char *rest = cb_xstrdup(text);
    char *at = strchr(rest, '@');
    if (at) {
        *at = '\0';
        if (!cb_digest_parse(at + 1, &out->digest))
            return bad(err, text, "behind \"@\" stands sha256: and 64 lower-case hex digits");
        out->has_digest = true;
    }
    const char *name = rest;
    const char *slash = strchr(rest, '/');
    if (slash && is_domain(rest, (size_t)(slash - rest))) {
        out->domain = cb_xstrndup(rest, (size_t)(slash - rest));
        name = slash + 1;
        why = domain_problem(out->domain);
        if (why)
            return bad(err, text, why);
    }
    if (!out->domain || strcmp(out->domain, "index.docker.io") == 0) {
        free(out->domain);
        out->domain = cb_xstrdup("docker.io");
    }
    size_t n = strcspn(name, ":");
    if (name[n] == ':') {
        why = tag_problem(name + n + 1);
        if (why)
            return bad(err, text, why);
        out->tag = cb_xstrdup(name + n + 1);
    } else if (!out->has_digest) {
        out->tag = cb_xstrdup("latest");
    }
    CB_AUTO_FREE char *path = cb_xstrndup(name, n);
    why = path_problem(path);
    if (why)
        return bad(err, text, why);
    if (strcmp(out->domain, "docker.io") == 0 && !strchr(path, '/'))
        out->path = cb_xasprintf("library/%s", path);
    else
        out->path = cb_take_ptr(&path);
    if (strlen(out->domain) + 1 + strlen(out->path) > REF_NAME_MAX)
        return bad(err, text, "host and name together are longer than 255 characters");
    return 0;
}

static int parse_oci_layout(const char *text, const char *rest, struct image_ref *out,
                            struct cb_error *err)
{
    out->kind = SOURCE_OCI_LAYOUT;
    const char *colon = strrchr(rest, ':');
    if (colon && !strchr(colon, '/')) {
        const char *why = tag_problem(colon + 1);
        if (why)
            return bad(err, text, why);
        out->tag = cb_xstrdup(colon + 1);
        out->path = cb_xstrndup(rest, (size_t)(colon - rest));
    } else {
        out->path = cb_xstrdup(rest);
    }
    return *out->path ? 0 : bad(err, text, "the folder behind \"oci:\" is missing");
}

/* "@2", or the name of an image as a registry has it. */
static const char *selector_problem(const char *text)
{
    if (*text == '@') {
        size_t n = strspn(text + 1, "0123456789");
        return n > 0 && n < 5 && !text[1 + n] ? NULL : "behind \"@\" stands the number of an image";
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct image_ref r = {0};
    int rc = parse_registry(text, &r, &err);
    image_ref_release(&r);
    return rc < 0 ? "behind the file stands the name of an image (\"app:1\") or its number (\"@0\")"
                  : NULL;
}

static int parse_docker_archive(const char *text, const char *rest, struct image_ref *out,
                                struct cb_error *err)
{
    out->kind = SOURCE_DOCKER_ARCHIVE;
    size_t n = strcspn(rest, ":"); /* names have colons, so the file's path has none */
    out->path = cb_xstrndup(rest, n);
    if (n == 0)
        return bad(err, text, "the file behind \"docker-archive:\" is missing");
    if (!rest[n])
        return 0;
    const char *why = selector_problem(rest + n + 1);
    if (why)
        return bad(err, text, why);
    out->tag = cb_xstrdup(rest + n + 1);
    return 0;
}

static int parse_template(const char *text, const char *rest, struct image_ref *out,
                          struct cb_error *err)
{
    out->kind = SOURCE_TEMPLATE;
    size_t n = strcspn(rest, ":@");
    out->path = cb_xstrndup(rest, n);
    if (n == 0 || n > REF_NAME_MAX || strspn(rest, "abcdefghijklmnopqrstuvwxyz0123456789-~") != n)
        return bad(err, text, "behind \"template:\" stands the name of a template");
    if (!rest[n])
        return 0;
    const char *version = rest + n + 1;
    size_t digits = strspn(version, "0123456789");
    if (digits == 0 || digits > 15 || version[digits] || *version == '0')
        return bad(err, text, "behind a template's name stands the number of a version");
    out->tag = cb_xstrdup(version);
    return 0;
}

/* A name that begins like a built-in one and is none. */
static int refuse_builtin(const char *text, struct cb_error *err)
{
    CB_AUTO_BUF list = CB_BUF_INIT(1024);
    for (size_t i = 0; i < sizeof(builtins) / sizeof(builtins[0]); i++)
        (void)cb_buf_addf(&list, "%s%s", i ? ", " : "", builtins[i]);
    CB_AUTO_FREE char *why = cb_xasprintf("the built-in base images are %s", list.data);
    return bad(err, text, why);
}

static const char *local_path(const char *text)
{
    static const char *const schemes[] = {"oci:", "docker-archive:"};
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
        if (strncmp(text, schemes[i], strlen(schemes[i])) == 0)
            return text + strlen(schemes[i]);
    return NULL;
}

bool image_ref_is_relative(const char *text)
{
    const char *path = local_path(text);
    return path && *path != '/';
}

char *image_ref_below(const char *text, const char *dir)
{
    const char *path = local_path(text);
    if (!path || *path == '/')
        return cb_xstrdup(text);
    int scheme = (int)(path - text);
    while (path[0] == '.' && path[1] == '/') {
        path += 2;
        while (*path == '/')
            path++;
    }
    size_t n = strlen(dir);
    return cb_xasprintf("%.*s%s%s%s", scheme, text, dir, n && dir[n - 1] == '/' ? "" : "/", path);
}

static int parse(const char *text, struct image_ref *out, struct cb_error *err)
{
    static const struct {
        const char *prefix;
        int (*parse)(const char *, const char *, struct image_ref *, struct cb_error *);
    } schemes[] = {
        {"oci:", parse_oci_layout},
        {"docker-archive:", parse_docker_archive},
        {"template:", parse_template},
    };
    if (!*text)
        return bad(err, text, "the name is empty");
    if (strlen(text) > REF_TEXT_MAX)
        return bad(err, text, "the name is too long");
    for (const char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return bad(err, text, "the name holds a control character");
    if (image_ref_is_builtin(text) || strcmp(text, "scratch") == 0) {
        out->kind = strcmp(text, "scratch") == 0 ? SOURCE_SCRATCH : SOURCE_BUILTIN;
        out->path = cb_xstrdup(text);
        return 0;
    }
    if (strncmp(text, "minimal-debian:", 15) == 0 || strncmp(text, "minimal-ubuntu:", 15) == 0)
        return refuse_builtin(text, err);
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        size_t n = strlen(schemes[i].prefix);
        if (strncmp(text, schemes[i].prefix, n) == 0)
            return schemes[i].parse(text, text + n, out, err);
    }
    return parse_registry(text, out, err);
}

int image_ref_parse(const char *text, struct image_ref *out, struct cb_error *err)
{
    struct image_ref r = {0};
    int rc = parse(text, &r, err);
    if (rc < 0) {
        image_ref_release(&r);
        return rc;
    }
    r.text = cb_xstrdup(text);
    *out = r;
    return 0;
}
