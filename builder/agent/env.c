/* env: environments as lists of "K=V", and what a login shell does to PATH. */
#include "builder/agent/agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char **env_find(const struct words *env, const char *name, size_t len)
{
    for (size_t i = 0; i < env->n; i++)
        if (strncmp(env->v[i], name, len) == 0 && env->v[i][len] == '=')
            return &env->v[i];
    return NULL;
}

void env_set(struct words *env, const char *pair)
{
    const char *eq = strchr(pair, '=');
    if (!eq || eq == pair)
        return;
    char **have = env_find(env, pair, (size_t)(eq - pair));
    if (!have) {
        words_add(env, pair);
        return;
    }
    free(*have);
    *have = ag_strdup(pair);
}

const char *env_get(const struct words *env, const char *name)
{
    char **have = env_find(env, name, strlen(name));
    return have ? *have + strlen(name) + 1 : NULL;
}

void env_default(struct words *env, const char *name, const char *value)
{
    if (env_get(env, name))
        return;
    size_t size = strlen(name) + strlen(value) + 2;
    char *pair = ag_alloc(size);
    (void)snprintf(pair, size, "%s=%s", name, value);
    words_take(env, pair);
}

static bool runnable(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0111) != 0;
}

bool program_exists(const char *name, const char *path)
{
    if (strchr(name, '/'))
        return runnable(name);
    for (const char *p = path ? path : DEFAULT_PATH; *p;) {
        size_t n = strcspn(p, ":");
        char full[512];
        if (n > 0 && *p == '/' && n + strlen(name) + 2 <= sizeof full) {
            (void)snprintf(full, sizeof full, "%.*s/%s", (int)n, p, name);
            if (runnable(full))
                return true;
        }
        p += n;
        p += *p == ':';
    }
    return false;
}

/* In single quotes for a shell. */
static void quote(struct text *t, const char *s, size_t n)
{
    text_puts(t, "'");
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\'')
            text_puts(t, "'\\''");
        else
            text_add(t, s + i, 1);
    }
    text_puts(t, "'");
}

/* One line, in words that every POSIX shell has; line numbers in SCRIPT's own errors stay. */
char *login_script(const char *path, const char *script)
{
    struct text t = {0};
    if (path && *path) {
        text_puts(&t, "_cb_add=; for _cb_dir in");
        for (const char *p = path; *p;) {
            size_t n = strcspn(p, ":");
            if (n) {
                text_puts(&t, " ");
                quote(&t, p, n);
            }
            p += n;
            p += *p == ':';
        }
        text_puts(&t, "; do case \":$PATH:\" in *\":$_cb_dir:\"*) ;; "
                      "*) _cb_add=$_cb_add$_cb_dir: ;; esac; done; "
                      "PATH=$_cb_add$PATH; export PATH; unset _cb_add _cb_dir; ");
    }
    text_puts(&t, script);
    return t.p;
}

void script_argv(struct words *argv, const char *script, const char *path)
{
    words_add(argv, program_exists("bash", path) ? "bash" : "sh");
    words_add(argv, "-lc");
    words_take(argv, login_script(path, script));
}

static bool is_login_shell(const char *word)
{
    static const char *const names[] = {"bash",          "sh",         "/bin/bash", "/bin/sh",
                                        "/usr/bin/bash", "/usr/bin/sh"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(word, names[i]) == 0)
            return true;
    return false;
}

void mend_login_argv(struct words *argv, const char *path)
{
    if (argv->n < 3 || !is_login_shell(argv->v[0]) || strcmp(argv->v[1], "-lc") != 0)
        return;
    char *script = login_script(path, argv->v[2]);
    free(argv->v[2]);
    argv->v[2] = script;
}
