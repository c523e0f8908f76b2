/* git_source: repositories by their URLs, and what a .gitmodules says about those inside others. */
#pragma once

#include "support/error.h"

#include <stdbool.h>
#include <stddef.h>

/* One that can be fetched: https, http, ssh, git, file:///, or user@host:path. */
bool git_url_valid(const char *text);
/* Is there a password in it? */
bool git_url_has_password(const char *text);

enum { GIT_MODULES_MAX = 1000 };

struct git_modules {
    struct git_module {
        char *path, *url; /* owned; NULL: not said */
    } * v;
    size_t n, cap;
};
/* What is not of a section [submodule "NAME"], or neither path nor url, is skipped; nothing is
 * included. -CB_E_CORRUPT with the line where it cannot be read. @out is released on failure. */
int git_modules_parse(const char *text, size_t len, struct git_modules *out, struct cb_error *err);
void git_modules_release(struct git_modules *m);
/* The URL of the module at @path, or NULL. Borrowed. */
const char *git_modules_url(const struct git_modules *m, const char *path);

/* The login for @url in a file of `git credential-store`: a line "https://USER:PASSWORD@HOST" whose
 * scheme, host and port are those of @url, and its path and user where the line or @url has them.
 * False: there is none. *@user and *@password are owned. */
bool git_credentials_find(const char *text, const char *url, char **user, char **password);

/* What @url in a .gitmodules of repository @parent means: `./x` and `../x` are relative to it.
 * *@out is owned. -CB_E_UNTRUSTED when it is not a URL that can be fetched, or leads to files of
 * this machine from a repository that is not one of them. */
int git_module_url(const char *parent, const char *url, char **out, struct cb_error *err);
