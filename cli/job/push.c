/* push: a template into a registry, as an OCI image (layers/registry_push.h). */
#include "cli/cli.h"
#include "layers/registry_push.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <inttypes.h>
#include <unistd.h>

enum { SHOW_EVERY_MS = 100 };

struct shown {
    bool terminal, line; /* a line stands there that is not ended */
    int64_t at_ms;
};

static void on_bytes(void *arg, uint64_t current, uint64_t total, const char *unit)
{
    struct shown *s = arg;
    int64_t now = cb_monotonic_ms();
    (void)unit;
    if (!s->terminal || (s->line && now - s->at_ms < SHOW_EVERY_MS))
        return;
    char done[32], all[32];
    cb_human_bytes(current, done, sizeof(done));
    cb_human_bytes(total, all, sizeof(all));
    fprintf(stderr, "\r\033[Kpushing: %s of %s", done, all);
    s->line = true;
    s->at_ms = now;
}

static void end_line(struct shown *s)
{
    if (s->line)
        fputs("\r\033[K", stderr);
    s->line = false;
}

static void on_note(void *arg, const char *text)
{
    end_line(arg);
    fputs("note: ", stderr);
    cli_put_text(stderr, text, "");
    fputc('\n', stderr);
}

/* What became of it to stderr, and on stdout what to pull. */
static void say_done(const struct template_manifest *t, const struct image_ref *to,
                     const struct cb_digest *digest, const struct push_result *r, size_t artifacts)
{
    char human[32], text[CB_DIGEST_LEN + 1];
    cb_human_bytes(r->bytes, human, sizeof(human));
    cb_digest_text(digest, text);
    fprintf(stderr, "%s version %" PRIu64 ": %zu blobs sent (%s), %zu mounted, %zu were there",
            t->name, t->version, r->sent, human, r->mounted, r->there);
    if (artifacts)
        fprintf(stderr, "; %zu documents attached", artifacts);
    fprintf(stderr, "\n");
    printf("%s/%s@%s\n", to->domain, to->path, text);
}

static int push_with(const struct settings *settings, struct store *store,
                     const struct template_manifest *t, const struct image_ref *to)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct shown shown = {.terminal = isatty(STDERR_FILENO)};
    const struct layers_progress progress = {on_bytes, on_note, &shown};
    struct push_result result;
    struct cb_digest digest;
    size_t artifacts = 0;
    int rc = push_template(store, settings, t, to, &progress, &result, &digest, &artifacts, &err);
    end_line(&shown);
    if (rc < 0)
        return cli_fail(&err);
    say_done(t, to, &digest, &result, artifacts);
    return EXIT_DONE;
}

int cmd_push(struct cli_args *a)
{
    struct settings *s = NULL;
    struct store *store = NULL;
    struct template_manifest *t = NULL;
    struct image_ref to = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *name = NULL;
    uint64_t version = 0;
    int rc = cli_template_name(a, &name, &version);
    if (rc == 0 && image_ref_parse(a->words.v[1], &to, &err) < 0)
        rc = cli_fail(&err);
    if (rc == 0)
        rc = cli_settings(a, &s);
    if (rc == 0)
        rc = cli_open_store(s, &store);
    if (rc == 0)
        rc = store_template_get(store, name, version, &t, &err) < 0 ? cli_fail(&err)
                                                                    : push_with(s, store, t, &to);
    template_manifest_free(t);
    store_free(store);
    settings_free(s);
    image_ref_release(&to);
    return rc;
}
