/* The built-in bases: made on this machine from the distribution's own packages, once, and from
 * then on ordinary images in the store (a layer, a config and a manifest). */
#include "layers/registry.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"
#include "support/proc.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

enum {
    LINE_MAX_BYTES = 4096,
    TAIL_LINES = 6, /* of mmdebstrap's complaints, in an error */
    INRELEASE_TRIES = 3,
};

/* Where packages come from: while the image is made, from the mirror of the settings; in the image,
 * from the public archive. */
struct distribution {
    const char *name; /* of the file below sources.list.d */
    const char *setting;
    const char *keyring; /* NULL: the one that apt uses on this machine */
    const char *include; /* packages beside those that the distribution requires, or NULL */
    const char *keys_in; /* the package that has it */
    const char *sources; /* the lines of that file, as a shell quotes them */
};
static const struct distribution debian = {
    .name = "debian",
    .setting = "debian_mirror",
    .keys_in = "debian-archive-keyring",
    .sources = "'Types: deb' 'URIs: http://deb.debian.org/debian' "
               "'Suites: SUITE SUITE-updates' 'Components: main' "
               "'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' '' "
               "'Types: deb' 'URIs: http://deb.debian.org/debian-security' "
               "'Suites: SUITE-security' 'Components: main' "
               "'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' ",
};
static const struct distribution ubuntu = {
    .name = "ubuntu",
    .setting = "ubuntu_mirror",
    .keyring = "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
    .include = "apt", /* not required there, as it is in Debian; brings the keyring along */
    .keys_in = "ubuntu-keyring",
    .sources = "'Types: deb' 'URIs: http://archive.ubuntu.com/ubuntu' "
               "'Suites: SUITE SUITE-updates' 'Components: main universe' "
               "'Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg' '' "
               "'Types: deb' 'URIs: http://security.ubuntu.com/ubuntu' "
               "'Suites: SUITE-security' 'Components: main universe' "
               "'Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg' ",
};

/* schemas/reference.c has the names. */
struct recipe {
    const char *name;
    const struct distribution *of;
    const char *suite;
    const char *variant;
    const char *kept; /* the name it is kept under: two names of one thing are made once */
};
static const struct recipe recipes[] = {
    {"minimal-debian", &debian, "bookworm", "minbase", "minimal-debian"},
    {"minimal-debian:bookworm", &debian, "bookworm", "minbase", "minimal-debian"},
    {"minimal-debian:trixie", &debian, "trixie", "minbase", "minimal-debian:trixie"},
    {"minimal-debian:bullseye", &debian, "bullseye", "minbase", "minimal-debian:bullseye"},
    {"minimal-ubuntu", &ubuntu, "noble", "minbase", "minimal-ubuntu"},
    {"minimal-ubuntu:noble", &ubuntu, "noble", "minbase", "minimal-ubuntu"},
    {"minimal-ubuntu:jammy", &ubuntu, "jammy", "minbase", "minimal-ubuntu:jammy"},
};

/* What the image is told of where packages come from: the public archive, whoever made the image.
 * Nothing of this machine stays: mmdebstrap copies its resolv.conf and hostname in for the time of
 * the installation, and dpkg, debconf and ldconfig keep backups and caches that differ from run to
 * run. */
static const char clean_up[] =
    "set -e; "
    "rm -f \"$1/etc/resolv.conf\" \"$1/etc/hostname\" \"$1/etc/apt/sources.list\" "
    "\"$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap\"; "
    "rm -rf \"$1\"/etc/apt/sources.list.d/*; "
    "printf '%s\\n' SOURCES"
    ">\"$1/etc/apt/sources.list.d/DISTRIBUTION.sources\"; "
    "chmod 0644 \"$1/etc/apt/sources.list.d/DISTRIBUTION.sources\"; "
    "rm -f \"$1\"/var/log/*.log \"$1\"/var/log/apt/* \"$1\"/var/lib/dpkg/*-old "
    "\"$1\"/var/cache/debconf/*-old \"$1\"/var/cache/ldconfig/aux-cache "
    "\"$1\"/var/cache/apt/*.bin; "
    "rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/archives/*; "
    ": >\"$1/etc/machine-id\"; "
    "find \"$1/var/log\" -type f -exec truncate -s 0 {} +";

static const char *mirror_of(const struct settings *settings, const struct recipe *r)
{
    return r->of == &ubuntu ? settings->ubuntu_mirror : settings->debian_mirror;
}

static const struct recipe *find_recipe(const char *name)
{
    for (size_t i = 0; i < sizeof(recipes) / sizeof(recipes[0]); i++)
        if (strcmp(recipes[i].name, name) == 0)
            return &recipes[i];
    return NULL;
}

__attribute__((format(printf, 2, 3))) static void note(const struct layers_progress *p,
                                                       const char *fmt, ...)
{
    if (!p || !p->note)
        return;
    va_list ap;
    va_start(ap, fmt);
    CB_AUTO_FREE char *text = cb_xvasprintf(fmt, ap);
    va_end(ap);
    p->note(p->arg, text);
}

/* --- the archive's InRelease: the time that the image is given, and what it was made from --- */

struct release {
    int64_t epoch; /* its Date */
    struct cb_digest digest;
};

static int read_release(const struct cb_buf *text, const char *url, const struct recipe *recipe,
                        struct release *out, struct cb_error *err)
{
    const char *line = text->data ? text->data : "";
    cb_sha256(line, text->len, &out->digest);
    for (; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        if (strncmp(line, "Date: ", 6) != 0)
            continue;
        CB_AUTO_FREE char *date = cb_xstrndup(line + 6, strcspn(line + 6, "\r\n"));
        out->epoch = curl_getdate(date, NULL);
        if (out->epoch > 0)
            return 0;
    }
    cb_fail(err, CB_E_CORRUPT, "%s has no date", url);
    return cb_hint(err, "Is %s in the settings really the address of an archive?",
                   recipe->of->setting);
}

static int ask_release(const char *mirror, const struct recipe *recipe, struct release *out,
                       struct cb_error *err)
{
    size_t n = strlen(mirror);
    while (n && mirror[n - 1] == '/')
        n--;
    CB_AUTO_FREE char *url = cb_xasprintf("%.*s/dists/%s/InRelease", (int)n, mirror, recipe->suite);
    if (strncasecmp(mirror, "http://", 7) != 0 && strncasecmp(mirror, "https://", 8) != 0)
        return cb_fail(err, CB_E_CONFIG, "%s \"%s\" is no http or https address",
                       recipe->of->setting, mirror);
    struct http_client *c = http_client_new(0);
    struct http_request req = {.url = url, .body_max = CB_JSON_MAX};
    struct http_response res = HTTP_RESPONSE_INIT;
    int rc = 0;
    for (int i = 0; i < INRELEASE_TRIES; i++) {
        cb_error_clear(err);
        http_response_release(&res);
        rc = http_exchange(c, &req, &res, err);
        if (rc == 0 ? res.status < 500 : rc != -CB_E_NET)
            break;
    }
    if (rc == 0 && res.status == 200)
        rc = read_release(&res.body, url, recipe, out, err);
    else if (rc == 0) {
        cb_fail(err, res.status == 404 ? CB_E_NOTFOUND : CB_E_NET, "%s: the server answered %ld",
                url, res.status);
        rc = cb_hint(err, "Check %s in the settings.", recipe->of->setting);
    }
    http_response_release(&res);
    http_client_free(c);
    return rc;
}

/* --- mmdebstrap --- */

/* A list of the last lines that matter, and what kind of failure they mean. */
struct complaints {
    char *line[TAIL_LINES];
    size_t n;
};

static void complaints_release(struct complaints *c)
{
    for (size_t i = 0; i < TAIL_LINES; i++)
        free(c->line[i]);
}

static void complain(struct complaints *c, const char *line)
{
    size_t at = c->n++ % TAIL_LINES;
    free(c->line[at]);
    c->line[at] = cb_xstrndup(line, 300);
}

static char *complaints_text(const struct complaints *c)
{
    CB_AUTO_BUF b = CB_BUF_INIT(TAIL_LINES * 400);
    size_t first = c->n > TAIL_LINES ? c->n - TAIL_LINES : 0;
    for (size_t i = first; i < c->n; i++)
        (void)cb_buf_addf(&b, "%s%s", b.len ? "; " : "", c->line[i % TAIL_LINES]);
    for (size_t i = 0; i < b.len; i++)
        if ((unsigned char)b.data[i] < 0x20 || b.data[i] == 0x7f)
            b.data[i] = ' ';
    return cb_buf_take(&b);
}

static bool mentions(const char *text, const char *const *words)
{
    for (; *words; words++)
        if (strcasestr(text, *words))
            return true;
    return false;
}

static int raise_mmdebstrap(int status, const struct recipe *r, const struct complaints *c,
                            struct cb_error *err)
{
    static const char *const network[] = {
        "could not resolve", "temporary failure", "unable to connect", "connection",
        "failed to fetch",   "could not connect", "hash sum mismatch", NULL};
    static const char *const rights[] = {"subuid", "newuidmap", "unshare", "user namespace", NULL};
    static const char *const keys[] = {"no_pubkey", "keyring", "is not signed", NULL};
    static const char *const space[] = {"no space left", NULL};
    char how[64];
    CB_AUTO_FREE char *text = complaints_text(c);
    cb_status_text(status, how, sizeof(how));
    if (mentions(text, space)) {
        cb_fail(err, CB_E_ENV, "mmdebstrap: %s: %s", how, text);
        return cb_hint(err, "Free about 1 GiB, or set CAPSULE_BUILD_HOME to where there is space.");
    }
    if (mentions(text, keys)) {
        cb_fail(err, CB_E_ENV, "mmdebstrap: %s: %s", how, text);
        return cb_hint(err, "apt-get install %s", r->of->keys_in);
    }
    if (mentions(text, network)) {
        cb_fail(err, CB_E_NET, "mmdebstrap: %s: %s", how, text);
        return cb_hint(err, "Check the network and %s in the settings.", r->of->setting);
    }
    if (mentions(text, rights)) {
        cb_fail(err, CB_E_ENV, "mmdebstrap: %s: %s", how, text);
        return cb_hint(err, "Without root it needs user namespaces and subordinate ids: apt-get "
                            "install uidmap, and a line for you in /etc/subuid and /etc/subgid.");
    }
    return cb_fail(err, CB_E_SYS, "mmdebstrap: %s: %s", how, text);
}

static void take_line(const char *line, const struct layers_progress *p, struct complaints *c)
{
    if (strncmp(line, "I: ", 3) == 0) { /* the text of a hook, and folders, are of no interest */
        const char *shell = strstr(line, " in shell: ");
        note(p, "mmdebstrap: %.*s", (int)(shell ? shell - line - 3 : 200), line + 3);
    } else if (*line) {
        complain(c, line);
    }
}

/* Its stderr, line by line, until it is closed. */
static int read_lines(int fd, const struct layers_progress *p, struct complaints *c,
                      struct cb_error *err)
{
    char line[LINE_MAX_BYTES], chunk[1024];
    size_t len = 0;
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof(chunk));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return cb_fail_sys(err, errno, "read what mmdebstrap says");
        for (ssize_t i = 0; i < n; i++) {
            if (chunk[i] != '\n' && chunk[i] != '\r' && len + 1 < sizeof(line)) {
                line[len++] = chunk[i] ? chunk[i] : ' ';
                continue;
            }
            line[len] = '\0';
            take_line(line, p, c);
            len = 0;
        }
        if (n == 0) {
            line[len] = '\0';
            take_line(line, p, c);
            return 0;
        }
    }
}

/* Our environment with what decides about the result set by us. */
static void make_env(int64_t epoch, const char *tmp, struct cb_strv *env)
{
    static const char *const ours[] = {
        "SOURCE_DATE_EPOCH=", "TMPDIR=",     "LC_ALL=",         "LANG=",
        "LANGUAGE=",          "APT_CONFIG=", "DEBIAN_FRONTEND="};
    for (char **e = environ; *e; e++) {
        bool skip = false;
        for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
            skip = skip || strncmp(*e, ours[i], strlen(ours[i])) == 0;
        if (!skip)
            cb_strv_add(env, *e);
    }
    cb_strv_add(env, "LC_ALL=C.UTF-8");
    cb_strv_addf(env, "SOURCE_DATE_EPOCH=%lld", (long long)epoch);
    if (tmp)
        cb_strv_addf(env, "TMPDIR=%s", tmp);
}

/* Adds @text with its words in capitals replaced. */
static void expand(const char *text, const struct recipe *r, struct cb_buf *out)
{
    while (*text) {
        if (strncmp(text, "SOURCES", 7) == 0) {
            expand(r->of->sources, r, out);
            text += 7;
        } else if (strncmp(text, "DISTRIBUTION", 12) == 0) {
            (void)cb_buf_adds(out, r->of->name);
            text += 12;
        } else if (strncmp(text, "SUITE", 5) == 0) {
            (void)cb_buf_adds(out, r->suite);
            text += 5;
        } else {
            (void)cb_buf_add(out, text++, 1);
        }
    }
}

static char *hook_text(const struct recipe *r)
{
    CB_AUTO_BUF b = CB_BUF_INIT(16 << 10);
    expand(clean_up, r, &b);
    return cb_buf_take(&b);
}

/* As root it mounts proc and sys into the tree that it makes. In namespaces of its own these
 * mounts, and every process that it started, end with it, however it ends. */
static bool can_unshare(void)
{
    static const char *const argv[] = {"unshare",      "--mount",      "--pid", "--fork",
                                       "--kill-child", "--mount-proc", "true",  NULL};
    struct cb_proc_spec spec = {.argv = argv};
    struct cb_proc_result res = {0};
    bool ok = cb_proc_run(&spec, NULL, 4096, 10000, &res, NULL) == 0 && res.status == 0;
    cb_proc_result_release(&res);
    return ok;
}

static void make_argv(const struct recipe *r, const char *arch, const char *mirror,
                      struct cb_strv *argv)
{
    CB_AUTO_FREE char *hook = hook_text(r);
    if (geteuid() == 0 && can_unshare()) {
        static const char *const outer[] = {"unshare", "--mount",      "--pid",
                                            "--fork",  "--kill-child", "--mount-proc"};
        for (size_t i = 0; i < sizeof(outer) / sizeof(outer[0]); i++)
            cb_strv_add(argv, outer[i]);
    }
    cb_strv_add(argv, "mmdebstrap");
    cb_strv_add(argv, "--mode=auto");
    cb_strv_addf(argv, "--variant=%s", r->variant);
    cb_strv_addf(argv, "--architectures=%s", arch);
    cb_strv_add(argv, "--format=tar");
    if (r->of->keyring)
        cb_strv_addf(argv, "--keyring=%s", r->of->keyring);
    if (r->of->include)
        cb_strv_addf(argv, "--include=%s", r->of->include);
    /* a tree that a crash leaves is thrown away: dpkg need not wait for the disk at each package.
     * The hook removes the file that says so. */
    cb_strv_add(argv, "--dpkgopt=force-unsafe-io");
    cb_strv_add(argv, "--skip=cleanup/apt"); /* the hook does it: apt's own way leaves folders whose
                                                owner depends on how private the store is */
    const char *ca =
        getenv("CURL_CA_BUNDLE"); /* `ca_bundle` of the settings; the proxy apt finds */
    if (ca && *ca)
        cb_strv_addf(argv, "--aptopt=Acquire::https::CAInfo \"%s\"", ca);
    cb_strv_addf(argv, "--customize-hook=%s", hook);
    cb_strv_add(argv, r->suite);
    cb_strv_add(argv, "-");
    cb_strv_add(argv, mirror);
}

/* Runs it with its tar going to @tar. @tmp NULL: its own choice of a folder. */
static int run_mmdebstrap(const struct recipe *r, const char *arch, const char *mirror,
                          int64_t epoch, const char *tmp, int tar, const struct layers_progress *p,
                          struct cb_error *err)
{
    CB_AUTO_STRV argv = {0};
    CB_AUTO_STRV env = {0};
    int ends[2];
    make_argv(r, arch, mirror, &argv);
    make_env(epoch, tmp, &env);
    if (pipe2(ends, O_CLOEXEC) < 0)
        return cb_fail_sys(err, errno, "start mmdebstrap");
    CB_AUTO_FD in = ends[0];
    CB_AUTO_FD out = ends[1];
    struct cb_proc_fd fds[] = {{tar, 1}, {out, 2}};
    union {
        char **in;
        const char *const *out;
    } a = {argv.v}, e = {env.v};
    struct cb_proc_spec spec = {.argv = a.out, .env = e.out, .fds = fds, .n_fds = 2};
    pid_t pid = cb_proc_start(&spec, err);
    if (pid < 0)
        return (int)pid;
    cb_close(cb_take_fd(&out));

    struct complaints said = {0};
    int status = 0;
    int rc = read_lines(in, p, &said, err);
    if (rc < 0)
        cb_proc_stop(pid, false, 2000);
    else
        rc = cb_proc_wait(pid, -1, &status, err);
    if (rc >= 0)
        rc = status == 0 ? 0 : raise_mmdebstrap(status, r, &said, err);
    complaints_release(&said);
    return rc;
}

static int make_layer(struct store *s, const struct recipe *r, const char *arch, const char *mirror,
                      int64_t epoch, const struct layers_progress *p, struct layer_blob *out,
                      struct cb_error *err)
{
    CB_AUTO_FREE char *tar = store_tmp_path(s, "base.tar");
    /* Not root: mmdebstrap works as other ids, which cannot look into a private store */
    CB_AUTO_FREE char *tmp = geteuid() == 0 ? store_tmp_path(s, "mmdebstrap") : NULL;
    if (!tar || (geteuid() == 0 && !tmp))
        return cb_fail(err, CB_E_ENV, "no temporary file can be made in %s", store_dir(s));
    CB_AUTO_FD fd = open(tar, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return cb_fail_sys(err, errno, "make %s", tar);
    (void)unlink(tar);
    int rc = tmp ? cb_mkdir_p(tmp, 0755, err) : 0;
    if (rc == 0)
        rc = run_mmdebstrap(r, arch, mirror, epoch, tmp, fd, p, err);
    if (tmp)
        (void)cb_remove_tree(tmp, NULL);
    if (rc < 0)
        return rc;
    off_t len = lseek(fd, 0, SEEK_END);
    if (len < 0)
        return cb_fail_sys(err, errno, "%s", tar);
    return store_layer_import(s, fd, 0, (uint64_t)len, out, err);
}

/* --- config and manifest, as any builder of images writes them --- */

static int put_json(struct store *s, json_t *o, struct cb_digest *d, size_t *size,
                    struct cb_error *err)
{
    char *text = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text)
        return cb_fail(err, CB_E_BUG, "a document of the image cannot be written");
    *size = strlen(text);
    int rc = store_blob_put(s, text, *size, d, err);
    free(text);
    return rc;
}

static int put_image(struct store *s, const struct recipe *r, const char *arch, int64_t epoch,
                     const struct layer_blob *layer, struct cb_digest *manifest,
                     struct cb_error *err)
{
    char when[CB_RFC3339_LEN + 1], diff_id[CB_DIGEST_LEN + 1], text[CB_DIGEST_LEN + 1];
    CB_AUTO_FREE char *by = cb_xasprintf("mmdebstrap --variant=%s %s", r->variant, r->suite);
    struct cb_digest config;
    size_t size = 0;
    cb_rfc3339(epoch * 1000, when);
    cb_digest_text(&layer->diff_id, diff_id);
    json_auto_t *c =
        json_pack("{s:s, s:s, s:s, s:{s:[s], s:[s]}, s:{s:s, s:[s]}, s:[{s:s, s:s}]}",
                  "architecture", arch, "created", when, "os", "linux", "config", "Env",
                  "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "Cmd",
                  "bash", "rootfs", "type", "layers", "diff_ids", diff_id, "history", "created",
                  when, "created_by", by);
    int rc = put_json(s, c, &config, &size, err);
    if (rc < 0)
        return rc;
    char config_text[CB_DIGEST_LEN + 1];
    cb_digest_text(&config, config_text);
    cb_digest_text(&layer->digest, text);
    json_auto_t *m =
        json_pack("{s:i, s:s, s:{s:s, s:s, s:I}, s:[{s:s, s:s, s:I}]}", "schemaVersion", 2,
                  "mediaType", OCI_MANIFEST, "config", "mediaType", OCI_CONFIG, "digest",
                  config_text, "size", (json_int_t)size, "layers", "mediaType", layer->media_type,
                  "digest", text, "size", (json_int_t)layer->size);
    return put_json(s, m, manifest, &size, err);
}

/* --- kept under the name --- */

static char *note_name(const char *name, const char *arch)
{
    return cb_xasprintf("lock:%s:%s", name, arch);
}

static int put_lock(struct store *s, const struct recipe *r, const char *arch,
                    const struct cb_digest *manifest, const struct release *from,
                    struct cb_error *err)
{
    char m[CB_DIGEST_LEN + 1], in[CB_DIGEST_LEN + 1];
    cb_digest_text(manifest, m);
    cb_digest_text(&from->digest, in);
    json_auto_t *o = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I}", "manifest", m, "inrelease", in,
                               "suite", r->suite, "arch", arch, "archive_s",
                               (json_int_t)from->epoch, "resolved_ms", (json_int_t)cb_now_ms());
    CB_AUTO_FREE char *name = note_name(r->kept, arch);
    char *text = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);
    int rc = store_note_put(s, name, text, err);
    free(text);
    return rc;
}

/* 1 when the image is there, whole; else 0. */
static int from_store(struct store *s, const char *base, const char *arch, struct base_image *out)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(0);
    CB_AUTO_FREE char *name = note_name(base, arch);
    json_error_t je;
    struct cb_digest d;
    if (store_note_get(s, name, &text, &err) < 0)
        return 0;
    json_auto_t *o = json_loadb(text.data ? text.data : "", text.len, 0, &je);
    const char *manifest = json_string_value(json_object_get(o, "manifest"));
    struct base_image got = {0};
    if (!manifest || !cb_digest_parse(manifest, &d) || image_load(s, &d, arch, &got, &err) < 0) {
        base_image_release(&got);
        return 0;
    }
    for (size_t i = 0; i < got.n_layers; i++) {
        if (!store_blob_has(s, &got.layers[i].digest)) {
            base_image_release(&got);
            return 0;
        }
    }
    *out = got;
    return 1;
}

static int make(struct store *s, const struct settings *settings, const struct recipe *r,
                const char *arch, const struct layers_progress *p, struct cb_error *err)
{
    CB_AUTO_FREE char *tool = cb_find_program("mmdebstrap");
    struct release from = {0};
    struct layer_blob layer = {0};
    struct cb_digest manifest;
    if (!tool) {
        cb_fail(err, CB_E_ENV, "making it needs mmdebstrap, which this machine does not have");
        return cb_hint(err, "apt-get install mmdebstrap");
    }
    if (r->of->keyring && !cb_path_exists(r->of->keyring)) {
        cb_fail(err, CB_E_ENV, "making it needs %s, which this machine does not have",
                r->of->keyring);
        return cb_hint(err, "It is in the distribution's package %s; copy it here.",
                       r->of->keys_in);
    }
    const char *mirror = mirror_of(settings, r);
    note(p, "making %s from %s; this is done once", r->name, mirror);
    int rc = ask_release(mirror, r, &from, err);
    if (rc == 0)
        rc = make_layer(s, r, arch, mirror, from.epoch, p, &layer, err);
    if (rc == 0)
        rc = put_image(s, r, arch, from.epoch, &layer, &manifest, err);
    if (rc == 0)
        rc = put_lock(s, r, arch, &manifest, &from, err);
    layer_blob_release(&layer);
    return rc;
}

/* Only one process makes a base; the others wait for it. Returns an owned fd. */
static int take_turn(struct store *s, const char *name, const struct layers_progress *p,
                     struct cb_error *err)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s.lock", store_dir(s), name);
    CB_AUTO_ERROR busy = CB_ERROR_INIT;
    int fd = cb_lock_file(path, false, &busy);
    if (fd >= 0)
        return fd;
    if (fd != -CB_E_CONFLICT)
        return cb_error_move(err, &busy);
    note(p, "another process is making %s; waiting for it", name);
    return cb_lock_file(path, true, err);
}

int builtin_resolve(struct store *s, const struct settings *settings, const char *name,
                    const char *arch, enum pull_policy policy, const struct layers_progress *p,
                    struct base_image *out, struct cb_error *err)
{
    const struct recipe *r = find_recipe(name);
    if (!r)
        return cb_fail(err, CB_E_BUG, "no built-in base of that name");
    if (from_store(s, r->kept, arch, out))
        return 0;
    if (policy == PULL_NEVER) {
        cb_fail(err, CB_E_NOTFOUND, "not made yet, and nobody may be asked (--pull never)");
        return cb_hint(err, "Build once with --pull missing or --pull always.");
    }
    CB_AUTO_FD turn = take_turn(s, r->kept, p, err);
    if (turn < 0)
        return turn;
    if (from_store(s, r->kept, arch, out))
        return 0; /* somebody made it while we waited */
    int rc = make(s, settings, r, arch, p, err);
    if (rc < 0)
        return rc;
    return from_store(s, r->kept, arch, out) ? 0
                                             : cb_fail(err, CB_E_BUG, "made, but not in the store");
}

int image_builtin_renew(struct store *s, const struct settings *settings, const char *name,
                        const struct layers_progress *p, struct cb_error *err)
{
    const struct recipe *r = find_recipe(name);
    if (!r)
        return cb_fail(err, CB_E_NOTFOUND, "image %s: no built-in base of that name", name);
    CB_AUTO_FD turn = take_turn(s, r->kept, p, err);
    if (turn < 0)
        return turn;
    return make(s, settings, r, "amd64", p, err) < 0 ? cb_wrap(err, "image %s", name) : 0;
}
