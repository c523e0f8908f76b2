#include "schemas/copy_args.h"

#include "schemas/config_fields.h"

#include <string.h>

bool inner_path_valid(const char *text)
{
    bool ok = *text && *text != '/' && strlen(text) < 4096;
    for (const char *p = text; ok && p; p = strchr(p, '/') ? strchr(p, '/') + 1 : NULL)
        ok = !(p[0] == '.' && p[1] == '.' && (p[2] == '/' || p[2] == '\0'));
    return ok;
}

/* Three or four octal digits, or -1. */
static int parse_mode(const char *text)
{
    size_t n = strlen(text);
    int mode = 0;
    if (n < 3 || n > 4 || strspn(text, "01234567") != n)
        return -1;
    for (size_t i = 0; i < n; i++)
        mode = mode * 8 + (text[i] - '0');
    return mode;
}

static const char *option_value(const char *arg, const char *name)
{
    size_t n = strlen(name);
    return strncmp(arg, name, n) == 0 ? arg + n : NULL;
}

const char *copy_args_parse(const struct cb_strv *args, struct copy_args *out)
{
    size_t i = 0;
    *out = (struct copy_args){.chmod = -1};
    for (; i < args->n && strncmp(args->v[i], "--", 2) == 0; i++) {
        const char *chown = option_value(args->v[i], "--chown=");
        const char *chmod = option_value(args->v[i], "--chmod=");
        if (!chown && !chmod)
            return "options --chown=USER[:GROUP] and --chmod=MODE, and no other";
        if (chown && !user_valid(chown))
            return "--chown=USER or --chown=USER:GROUP, by name or number";
        if (chmod && (out->chmod = parse_mode(chmod)) < 0)
            return "--chmod=MODE in octal, such as --chmod=0755";
        if (chown)
            out->chown = chown;
    }
    if (args->n - i < 2 || *args->v[args->n - 1] != '/')
        return "`args`: one source or more, then the absolute destination";
    out->sources = (const char *const *)args->v + i;
    out->n_sources = args->n - i - 1;
    out->to = args->v[args->n - 1];
    for (size_t k = 0; k < out->n_sources; k++)
        if (!inner_path_valid(out->sources[k]))
            return "sources beside the config: relative, without \"..\"";
    return NULL;
}
