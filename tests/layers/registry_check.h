/* What the tests of registries share: a store, settings made by hand, and programs that listen. */
#pragma once

#include "check.h"

#include "layers/registry.h"
#include "support/proc.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <sys/wait.h>

/* A store and settings for one test, and what the progress functions heard. */
struct world {
    struct store *store;
    struct settings settings;
    struct registry_settings hosts[4];
    struct cb_buf notes;
    uint64_t bytes, total;
    struct layers_progress progress;
};

static inline void world_note(void *arg, const char *text)
{
    struct world *w = arg;
    cb_buf_addf(&w->notes, "%s\n", text);
}

static inline void world_bytes(void *arg, uint64_t current, uint64_t total, const char *unit)
{
    struct world *w = arg;
    assert_string_equal(unit, "bytes");
    assert_true(current <= total);
    w->bytes = current;
    w->total = total;
}

static inline void world_open(struct world *w, const char *dir)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *store = cb_xasprintf("%s/store", dir);
    *w = (struct world){.notes = CB_BUF_INIT(1 << 20)};
    w->settings.registries = w->hosts;
    w->progress = (struct layers_progress){world_bytes, world_note, w};
    assert_ok(store_open(store, &w->store, &err), &err);
    registry_second_ms = 1;
}

static inline void world_close(struct world *w)
{
    store_free(w->store);
    cb_buf_release(&w->notes);
    for (size_t i = 0; i < w->settings.n_registries; i++) {
        free(w->hosts[i].host);
        free(w->hosts[i].mirror);
        cb_strv_release(&w->hosts[i].mirrors);
        free(w->hosts[i].ca_file);
    }
}

static inline struct registry_settings *world_host(struct world *w, const char *host)
{
    struct registry_settings *r = &w->hosts[w->settings.n_registries++];
    r->host = cb_xstrdup(host);
    return r;
}

static inline int world_resolve(struct world *w, const char *text, enum pull_policy policy,
                                struct base_image *out, struct cb_error *err)
{
    return image_resolve(w->store, &w->settings, text, "amd64", policy, &w->progress, out, err);
}

static inline int world_fetch(struct world *w, const struct base_image *b, struct cb_error *err)
{
    return image_fetch(w->store, &w->settings, b, &w->progress, err);
}

/* Resolves and fetches; what it resolved to stays in @out when that succeeded. */
static inline int world_pull(struct world *w, const char *text, struct base_image *out,
                             struct cb_error *err)
{
    struct base_image b;
    int rc = world_resolve(w, text, PULL_ALWAYS, &b, err);
    if (rc < 0)
        return rc;
    rc = world_fetch(w, &b, err);
    if (rc < 0)
        base_image_release(&b);
    else
        *out = b;
    return rc;
}

static inline void assert_notes(const struct world *w, const char *text)
{
    if (!w->notes.data || !strstr(w->notes.data, text))
        fail_msg("no note holds \"%s\" in:\n%s", text, w->notes.data ? w->notes.data : "");
}

/* Every layer is in the store under its digest (which the store verified). */
static inline void assert_all_there(struct world *w, const struct base_image *b)
{
    assert_int_equal(b->n_layers, 2);
    for (size_t i = 0; i < b->n_layers; i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        uint64_t size;
        CB_AUTO_FD fd = store_blob_open(w->store, &b->layers[i].digest, &size, &err);
        struct cb_digest d;
        assert_ok(fd, &err);
        assert_int_equal(size, b->layers[i].size);
        assert_ok(cb_sha256_fd(fd, &d, &err), &err);
        assert_true(cb_digest_eq(&d, &b->layers[i].digest));
    }
}

/* Every blob that has a name has that digest, and nothing unfinished lies about. */
static inline void assert_store_is_good(const struct world *w)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *blobs = cb_xasprintf("%s/blobs/sha256", store_dir(w->store));
    CB_AUTO_FREE char *tmp = cb_xasprintf("%s/tmp", store_dir(w->store));
    CB_AUTO_DIR d = opendir(blobs);
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        struct cb_digest named, is;
        if (e->d_name[0] == '.')
            continue;
        assert_true(cb_digest_parse_hex(e->d_name, &named));
        CB_AUTO_FD fd = store_blob_open(w->store, &named, NULL, &err);
        assert_ok(fd, &err);
        assert_ok(cb_sha256_fd(fd, &is, &err), &err);
        assert_true(cb_digest_eq(&named, &is));
    }
    CB_AUTO_DIR t = opendir(tmp);
    for (const struct dirent *e; t && (e = readdir(t)) != NULL;) {
        if (e->d_name[0] == '.')
            continue;
        CB_AUTO_FREE char *own = cb_xasprintf("%s/%s", tmp, e->d_name);
        CB_AUTO_DIR inside = opendir(own); /* the handle's own folder, with what it holds on to */
        for (const struct dirent *f; inside && (f = readdir(inside)) != NULL;)
            if (f->d_name[0] != '.' && strcmp(f->d_name, "pins") != 0)
                fail_msg("%s/%s is left", own, f->d_name);
    }
}

/* The logins of who runs the test are nobody's business. */
static inline void check_no_logins(void)
{
    static const char *const variables[] = {"DOCKER_CONFIG", "REGISTRY_AUTH_FILE",
                                            "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME",
                                            "GCE_METADATA_HOST"};
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++)
        (void)unsetenv(variables[i]);
    (void)setenv("HOME", "/nonexistent", 1);
}

/* A program that serves until it is stopped, and the line in which it says where. */
struct server {
    pid_t pid;
    int in;  /* its stdin: it may end when this is closed */
    int out; /* kept open: a write of its must not kill it */
    struct cb_buf said;
};

/* Starts it and reads its output (1: stdout, 2: stderr) until a line holds @ready. */
static inline void server_start(struct server *s, const char *const *argv, const char *const *env,
                                int from, const char *ready)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int in[2], out[2];
    cb_buf_init(&s->said, 1 << 20);
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    struct cb_proc_fd fds[] = {{in[0], 0}, {out[1], from}};
    struct cb_proc_spec spec = {.argv = argv, .env = env, .fds = fds, .n_fds = 2};
    s->pid = cb_proc_start(&spec, &err);
    assert_ok(s->pid, &err);
    (void)close(in[0]);
    (void)close(out[1]);
    s->in = in[1];
    const char *at;
    while (!s->said.data || !(at = strstr(s->said.data, ready)) || !strchr(at, '\n')) {
        char chunk[512];
        ssize_t n = read(out[0], chunk, sizeof(chunk));
        if (n <= 0)
            fail_msg("%s ended: %s", argv[0], s->said.data ? s->said.data : "");
        cb_buf_add(&s->said, chunk, (size_t)n);
    }
    s->out = out[0];
}

static inline void server_stop(struct server *s)
{
    if (s->pid <= 0)
        return;
    (void)close(s->in);
    cb_proc_stop(s->pid, false, 2000);
    (void)close(s->out);
    cb_buf_release(&s->said);
    s->pid = 0;
}

/* The number behind @key in what it said. */
static inline int server_number(const struct server *s, const char *key)
{
    const char *at = strstr(s->said.data, key);
    assert_non_null(at);
    return (int)strtol(at + strlen(key), NULL, 10);
}
