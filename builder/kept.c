#include "builder/kept.h"

#include "builder/sweep.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FORMAT = 1, STATE_MAX = 1 << 20, PLACE_MAX = 100000 };
#define SCRATCH "scratch.ext4"
#define STATE "state.json"

void kept_state_release(struct kept_state *k)
{
    char *const owned[] = {k->name, k->driver, k->layer_name, k->title, k->user, k->workdir};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++)
        free(owned[i]);
    cb_strv_release(&k->env);
    cb_strv_release(&k->hosts);
    *k = (struct kept_state){0};
}

char *kept_file(const char *home, const char *id, const char *leaf)
{
    return cb_xasprintf("%s/failed/%s/%s", home, id, leaf);
}

/* -- writing -- */

static json_t *texts(const struct cb_strv *v)
{
    json_t *list = json_array();
    for (size_t i = 0; i < v->n; i++)
        (void)json_array_append_new(list, json_string(v->v[i]));
    return list;
}

static int write_state(const char *dir, const struct kept_state *k, struct cb_error *err)
{
    char key[CB_DIGEST_LEN + 1], content[CB_DIGEST_LEN + 1];
    cb_digest_text(&k->layer_key, key);
    cb_digest_text(&k->content, content);
    json_t *env = texts(&k->env), *hosts = k->watched ? texts(&k->hosts) : json_null();
    json_auto_t *o = json_pack(
        "{s:i, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:o, s:s, s:s, s:o}", "format", FORMAT,
        "name", k->name, "driver", k->driver, "layer_name", k->layer_name, "title", k->title,
        "first", (json_int_t)k->first, "layer", (json_int_t)k->layer, "command",
        (json_int_t)k->command, "layer_key", key, "content", content, "env", env, "user", k->user,
        "workdir", k->workdir, "hosts", hosts);
    CB_AUTO_FREE char *text = o ? json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    if (!text)
        return cb_fail(err, CB_E_CORRUPT, "the state has a text that is not UTF-8");
    CB_AUTO_FREE char *path = cb_xasprintf("%s/" STATE, dir);
    return cb_write_file(path, text, strlen(text), 0600, err);
}

/* Another name for the same bytes, which stay when the store's name goes. */
static int bring_lower(const char *dir, const char *lower, struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/" KEPT_LOWER, dir);
    if (link(lower, path) == 0)
        return 0;
    CB_AUTO_FD from = open(lower, O_RDONLY | O_CLOEXEC);
    CB_AUTO_FD to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (from < 0 || to < 0)
        return cb_fail_sys(err, errno, "copy %s", lower);
    return cb_clone_file(from, to, err);
}

static int fill(const char *dir, const struct kept_state *k, const char *scratch, const char *lower,
                struct cb_error *err)
{
    CB_AUTO_FREE char *to = cb_xasprintf("%s/" SCRATCH, dir);
    int rc = bring_lower(dir, lower, err);
    if (rc == 0)
        rc = write_state(dir, k, err);
    if (rc == 0 && rename(scratch, to) < 0)
        rc = cb_fail_sys(err, errno, "keep %s", scratch);
    if (rc == 0 && chmod(to, 0600) < 0)
        rc = cb_fail_sys(err, errno, "keep %s", scratch);
    return rc;
}

int kept_save(const char *home, const char *id, const struct kept_limits *limits,
              const struct kept_state *k, const char *scratch, const char *lower,
              struct cb_error *err)
{
    struct stat st;
    if (stat(scratch, &st) < 0)
        return cb_fail_sys(err, errno, "%s", scratch);
    uint64_t bytes = (uint64_t)st.st_blocks * 512;
    if (limits->count == 0 || bytes > limits->bytes) {
        char is[32], most[32];
        cb_human_bytes(bytes, is, sizeof(is));
        cb_human_bytes(limits->bytes, most, sizeof(most));
        return cb_fail(err, CB_E_LIMIT, "it takes %s, and at most %s are kept (keep_failed_gb)", is,
                       most);
    }
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/failed/%s", home, id);
    CB_AUTO_FREE char *tmp = cb_xasprintf("%s/failed/.%s", home, id); /* swept when it stays */
    int rc = cb_remove_tree(tmp, err);
    if (rc == 0)
        rc = cb_mkdir_p(tmp, 0700, err);
    if (rc == 0)
        rc = fill(tmp, k, scratch, lower, err);
    if (rc == 0)
        rc = cb_remove_tree(dir, err); /* of an earlier attempt of this build */
    if (rc == 0 && rename(tmp, dir) < 0)
        rc = cb_fail_sys(err, errno, "keep %s", dir);
    if (rc < 0) {
        CB_AUTO_ERROR ignored = CB_ERROR_INIT;
        (void)cb_remove_tree(tmp, &ignored);
        return rc;
    }
    struct kept_sum gone;
    kept_trim(home, limits, false, &gone);
    return 0;
}

/* -- reading -- */

static int take_texts(json_t *list, struct cb_strv *out)
{
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        if (!json_is_string(v))
            return -1;
        cb_strv_add(out, json_string_value(v));
    }
    return 0;
}

static int parse(const char *text, size_t n, struct kept_state *k)
{
    json_auto_t *o = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    int format = 0;
    json_int_t first = 0, layer = 0, command = 0;
    const char *name, *driver, *layer_name, *title, *key, *content, *user, *workdir;
    json_t *env = NULL;
    if (!o ||
        json_unpack(o, "{s:i, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:o, s:s, s:s}",
                    "format", &format, "name", &name, "driver", &driver, "layer_name", &layer_name,
                    "title", &title, "first", &first, "layer", &layer, "command", &command,
                    "layer_key", &key, "content", &content, "env", &env, "user", &user, "workdir",
                    &workdir) < 0 ||
        format != FORMAT || first < 0 || layer < first || layer > PLACE_MAX || command < 0 ||
        command > PLACE_MAX || !json_is_array(env) || !cb_digest_parse(key, &k->layer_key) ||
        !cb_digest_parse(content, &k->content))
        return -1;
    k->name = cb_xstrdup(name);
    k->driver = cb_xstrdup(driver);
    k->layer_name = cb_xstrdup(layer_name);
    k->title = cb_xstrdup(title);
    k->user = cb_xstrdup(user);
    k->workdir = cb_xstrdup(workdir);
    k->first = (uint64_t)first;
    k->layer = (uint64_t)layer;
    k->command = (uint64_t)command;
    json_t *hosts = json_object_get(o, "hosts");
    k->watched = json_is_array(hosts);
    return take_texts(env, &k->env) < 0 ? -1 : take_texts(hosts, &k->hosts);
}

int kept_load(const char *home, const char *id, struct kept_state *out, struct cb_error *err)
{
    CB_AUTO_FREE char *path = kept_file(home, id, STATE);
    CB_AUTO_BUF text = CB_BUF_INIT(STATE_MAX);
    *out = (struct kept_state){0};
    int rc = cb_read_file(path, STATE_MAX, &text, err);
    if (rc < 0)
        return rc;
    if (parse(text.data ? text.data : "", text.len, out) == 0)
        return 0;
    kept_state_release(out);
    return cb_fail(err, CB_E_CORRUPT, "%s is not one of ours, or of another version", path);
}

int kept_copy_scratch(const char *home, const char *id, const char *path, struct cb_error *err)
{
    CB_AUTO_FREE char *kept = kept_file(home, id, SCRATCH);
    CB_AUTO_FD from = open(kept, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (from < 0)
        return cb_fail_sys(err, errno, "open %s", kept);
    CB_AUTO_FD to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return cb_fail_sys(err, errno, "make %s", path);
    return cb_clone_file(from, to, err);
}
