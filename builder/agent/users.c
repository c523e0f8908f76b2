/* users: who a command runs as, from the image's own /etc/passwd and /etc/group. Parsed by hand: a
 * static program has no name service switch, and must not load the image's. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ACCOUNTS_MAX (4u << 20)

struct line {
    char field[7][256];
    size_t n;
};

/* Takes one line off @p into fields; a field that is too long makes the line one of no fields.
 * Returns the rest, or NULL at the end. */
static const char *next_line(const char *p, struct line *l)
{
    if (!p || !*p)
        return NULL;
    l->n = 0;
    size_t end = strcspn(p, "\n");
    size_t at = 0;
    bool ok = true;
    for (size_t k = 0; k < ARRAY_LEN(l->field) && at <= end; k++) {
        size_t n = 0;
        while (at + n < end && p[at + n] != ':')
            n++;
        if (n < sizeof l->field[k]) {
            memcpy(l->field[k], p + at, n);
            l->field[k][n] = 0;
        } else {
            l->field[k][0] = 0;
            ok = ok && k >= 3; /* a long list of members is read elsewhere */
        }
        l->n = k + 1;
        at += n + 1;
    }
    if (!ok)
        l->n = 0;
    return p[end] ? p + end + 1 : p + end;
}

/* Is @user in the member list (fourth field) of the group line at @p? */
static bool is_member(const char *p, const char *user)
{
    size_t end = strcspn(p, "\n"), colons = 0, at = 0;
    while (at < end && colons < 3)
        colons += p[at++] == ':';
    if (colons < 3)
        return false;
    size_t len = strlen(user);
    while (at < end) {
        size_t n = 0;
        while (at + n < end && p[at + n] != ',')
            n++;
        if (n == len && memcmp(p + at, user, n) == 0)
            return true;
        at += n + 1;
    }
    return false;
}

static bool id_of(const char *s, uint32_t *id)
{
    uint64_t v;
    if (!parse_number(s, 0xfffffffeu, &v))
        return false;
    *id = (uint32_t)v;
    return true;
}

static bool find_user(const char *passwd, const char *name, bool by_id, uint32_t id,
                      struct ident *out)
{
    struct line l;
    for (const char *p = passwd; (p = next_line(p, &l));) {
        uint32_t uid, gid;
        if (l.n < 4 || !l.field[0][0] || !id_of(l.field[2], &uid) || !id_of(l.field[3], &gid))
            continue;
        if (by_id ? uid != id : strcmp(l.field[0], name) != 0)
            continue;
        out->uid = uid;
        out->gid = gid;
        (void)snprintf(out->name, sizeof out->name, "%s", l.field[0]);
        (void)snprintf(out->home, sizeof out->home, "%s",
                       l.n > 5 && l.field[5][0] == '/' ? l.field[5] : "/");
        (void)snprintf(out->shell, sizeof out->shell, "%s", l.n > 6 ? l.field[6] : "");
        return true;
    }
    return false;
}

static bool find_group(const char *group, const char *name, gid_t *gid)
{
    struct line l;
    for (const char *p = group; (p = next_line(p, &l));) {
        uint32_t id;
        if (l.n >= 3 && strcmp(l.field[0], name) == 0 && id_of(l.field[2], &id)) {
            *gid = id;
            return true;
        }
    }
    return false;
}

static void add_groups(const char *group, struct ident *who)
{
    struct line l;
    const char *at = group;
    for (const char *p = group; (p = next_line(p, &l)); at = p) {
        uint32_t id;
        if (l.n < 3 || !id_of(l.field[2], &id) || id == who->gid || !is_member(at, who->name))
            continue;
        if (who->n_groups < ARRAY_LEN(who->groups))
            who->groups[who->n_groups++] = id;
    }
}

int ident_resolve(const char *spec, const char *passwd, const char *group, struct ident *out,
                  struct fail *f)
{
    char user[128], grp[128] = "";
    *out = (struct ident){.home = "/"};
    const char *colon = strchr(spec, ':');
    size_t n = colon ? (size_t)(colon - spec) : strlen(spec);
    if (n >= sizeof user || (colon && strlen(colon + 1) >= sizeof grp))
        return fail_set(f, FAIL_COMMAND, "user: the name is too long");
    memcpy(user, spec, n);
    user[n] = 0;
    if (colon)
        (void)snprintf(grp, sizeof grp, "%s", colon + 1);
    if (!user[0])
        (void)snprintf(user, sizeof user, "0");

    uint32_t id = 0;
    bool number = id_of(user, &id);
    bool known = find_user(passwd, user, false, 0, out) ||
                 (number && find_user(passwd, NULL, true, id, out));
    if (!known && !number && strcmp(user, "root") != 0)
        return fail_set(f, FAIL_COMMAND, "user \"%s\" is not in the image's /etc/passwd", user);
    if (!known) {
        out->uid = id;
        out->gid = 0;
        (void)snprintf(out->name, sizeof out->name, "%s", id == 0 ? "root" : user);
        (void)snprintf(out->home, sizeof out->home, "%s", id == 0 ? "/root" : "/");
    }
    if (!grp[0]) {
        if (known)
            add_groups(group, out);
        return 0;
    }
    gid_t gid;
    if (find_group(group, grp, &gid))
        out->gid = gid;
    else if (id_of(grp, &id))
        out->gid = id;
    else
        return fail_set(f, FAIL_COMMAND, "group \"%s\" is not in the image's /etc/group", grp);
    return 0;
}

/* A missing file is an empty one. */
static int load(const char *path, struct text *t, struct fail *f)
{
    if (read_file(path, ACCOUNTS_MAX, t) < 0 && errno != ENOENT)
        return fail_sys(f, errno, "read the image's %s", path);
    return 0;
}

int ident_load(const char *spec, struct ident *out, struct fail *f)
{
    struct text passwd = {0}, group = {0};
    int rc = load("/etc/passwd", &passwd, f);
    if (rc == 0)
        rc = load("/etc/group", &group, f);
    if (rc == 0)
        rc = ident_resolve(spec, passwd.p, group.p, out, f);
    text_release(&passwd);
    text_release(&group);
    return rc;
}

bool user_name_ok(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > 32)
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
        bool more = (c >= '0' && c <= '9') || c == '-' || c == '.';
        if (!letter && (i == 0 || !more))
            return false;
    }
    return true;
}

static bool id_taken(const char *text, uint32_t id, size_t field)
{
    struct line l;
    for (const char *p = text; (p = next_line(p, &l));) {
        uint32_t have;
        if (l.n > field && id_of(l.field[field], &have) && have == id)
            return true;
    }
    return false;
}

/* Appends @line to a file of accounts; one that is missing is made when @mode is not 0. */
static int append(const char *path, const struct text *old, const char *line, mode_t mode,
                  struct fail *f)
{
    int fd = open(
        path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (mode ? O_CREAT : 0), mode);
    if (fd < 0)
        return !mode && errno == ENOENT ? 0 : fail_sys(f, errno, "open %s", path);
    int rc = 0;
    if (old->n && old->p[old->n - 1] != '\n')
        rc = write_all(fd, "\n", 1);
    if (rc == 0)
        rc = write_all(fd, line, strlen(line));
    if (rc < 0)
        (void)fail_sys(f, errno, "write %s", path);
    (void)close(fd);
    return rc;
}

static int append_secret(const char *path, const char *line, struct fail *f)
{
    struct text old = {0};
    int rc = load(path, &old, f);
    if (rc == 0)
        rc = append(path, &old, line, 0, f);
    text_release(&old);
    return rc;
}

static int make_home(const char *home, uid_t uid, gid_t gid, struct fail *f)
{
    if (make_dirs("/home", 0755) < 0)
        return fail_sys(f, errno, "make /home");
    if (mkdir(home, 0755) < 0)
        return errno == EEXIST ? 0 : fail_sys(f, errno, "make %s", home);
    if (lchown(home, uid, gid) < 0)
        return fail_sys(f, errno, "chown %s", home);
    return 0;
}

/* Also where sudo is not installed yet: it may come by a later command, and what an image holds
 * must not depend on which layers ran together. (A name with a dot in it is one that sudo would not
 * read.) */
static int allow_sudo(const char *name, struct fail *f)
{
    if (make_dirs("/etc/sudoers.d", 0750) < 0)
        return fail_sys(f, errno, "make /etc/sudoers.d");
    char path[96], line[96];
    (void)snprintf(path, sizeof path, "/etc/sudoers.d/90-capsule-%s", name);
    for (char *p = path + strlen("/etc/sudoers.d/"); *p; p++)
        if (*p == '.')
            *p = '_';
    (void)snprintf(line, sizeof line, "%s ALL=(ALL:ALL) NOPASSWD:ALL\n", name);
    if (write_file(path, line, strlen(line), 0440) < 0)
        return fail_sys(f, errno, "write %s", path);
    return 0;
}

static int make_user(const char *name, const struct text *passwd, const struct text *group,
                     struct fail *f)
{
    uint32_t uid = 1000;
    gid_t gid = 0;
    bool has_group = find_group(group->p, name, &gid);
    while (uid < 60000 &&
           (id_taken(passwd->p, uid, 2) || (!has_group && id_taken(group->p, uid, 2))))
        uid++;
    if (!has_group)
        gid = uid;
    char home[64], line[256];
    (void)snprintf(home, sizeof home, "/home/%s", name);
    const char *shell = program_exists("/bin/bash", NULL) ? "/bin/bash" : "/bin/sh";
    (void)snprintf(line, sizeof line, "%s:x:%u:%u::%s:%s\n", name, uid, (unsigned)gid, home, shell);
    if (append("/etc/passwd", passwd, line, 0644, f) < 0)
        return -1;
    (void)snprintf(line, sizeof line, "%s:x:%u:\n", name, (unsigned)gid);
    if (!has_group && append("/etc/group", group, line, 0644, f) < 0)
        return -1;
    /* No password fits, and the account does not age. */
    (void)snprintf(line, sizeof line, "%s:*:::::::\n", name);
    if (append_secret("/etc/shadow", line, f) < 0)
        return -1;
    (void)snprintf(line, sizeof line, "%s:!::\n", name);
    if (!has_group && append_secret("/etc/gshadow", line, f) < 0)
        return -1;
    if (make_home(home, uid, gid, f) < 0)
        return -1;
    return allow_sudo(name, f);
}

int user_ensure(const char *name, struct fail *f)
{
    struct text passwd = {0}, group = {0};
    struct ident who;
    int rc = -1;
    if (!user_name_ok(name)) {
        (void)fail_set(f, FAIL_COMMAND, "runner_user: \"%.40s\" is not a user name", name);
        return -1;
    }
    if (make_dirs("/etc", 0755) < 0)
        return fail_sys(f, errno, "make /etc");
    if (load("/etc/passwd", &passwd, f) == 0 && load("/etc/group", &group, f) == 0) {
        if (find_user(passwd.p, name, false, 0, &who))
            rc = 0;
        else
            rc = make_user(name, &passwd, &group, f) < 0 ? -1 : 1;
    }
    text_release(&passwd);
    text_release(&group);
    return rc;
}
