/* What a job carries besides its config, as JSON in the queue. */
#include "builder/builder.h"

#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

static const char *const isolation_names[] = {"auto", "vm", "container"};
static const char *const pull_names[] = {"always", "missing", "never"};

static int find_name(const char *name, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0)
            return (int)i;
    return -1;
}

int isolation_from_name(const char *name)
{
    return find_name(name, isolation_names, 3);
}

int pull_from_name(const char *name)
{
    return find_name(name, pull_names, 3);
}

char *build_options_dump(const struct build_options *o)
{
    json_t *j = json_pack("{s:s, s:s, s:b, s:b, s:b, s:b, s:b, s:I}", "isolation",
                          isolation_names[o->isolation], "pull", pull_names[o->pull], "force",
                          o->force, "clean", o->clean, "renew_builtin", o->renew_builtin, "locked",
                          o->locked, "no_boot_check", o->no_boot_check, "boot_timeout_ms",
                          (json_int_t)o->boot_timeout_ms);
    char *text = j ? json_dumps(j, JSON_SORT_KEYS | JSON_COMPACT) : NULL;
    json_decref(j);
    return text ? text : cb_xstrdup("{}");
}

int build_options_parse(const char *text, struct build_options *o, struct cb_error *err)
{
    json_error_t je;
    json_auto_t *j = json_loads(text, JSON_REJECT_DUPLICATES, &je);
    const char *iso = "auto", *pull = "always";
    int force = 0, clean = 0, renew = 0, locked = 0, no_check = 0;
    json_int_t timeout = 0;
    if (!j || json_unpack_ex(j, &je, JSON_STRICT, "{s?s, s?s, s?b, s?b, s?b, s?b, s?b, s?I}",
                             "isolation", &iso, "pull", &pull, "force", &force, "clean", &clean,
                             "renew_builtin", &renew, "locked", &locked, "no_boot_check", &no_check,
                             "boot_timeout_ms", &timeout) < 0)
        return cb_fail(err, CB_E_CORRUPT, "build options: %s", je.text);
    int i = isolation_from_name(iso), p = pull_from_name(pull);
    if (i < 0 || p < 0 || timeout < 0 || timeout > 86400000)
        return cb_fail(err, CB_E_CORRUPT, "build options: a value is out of range");
    o->isolation = (enum isolation)i;
    o->pull = (enum pull_policy)p;
    o->force = force != 0;
    o->clean = clean != 0;
    o->renew_builtin = renew != 0;
    o->locked = locked != 0;
    o->no_boot_check = no_check != 0;
    o->boot_timeout_ms = timeout;
    return 0;
}

void build_result_release(struct build_result *r)
{
    free(r->name);
    *r = (struct build_result){0};
}
