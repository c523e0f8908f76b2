/* logs, builds, templates, show: what is stored, for people and as JSON. */
#include "cli/cli.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/mem.h"

#include <stdlib.h>
#include <string.h>

static int show_log(struct cli_args *a, struct settings *s, struct queue *q)
{
    (void)s;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    char id[BUILD_ID_LEN + 1];
    if (queue_find(q, a->words.n ? a->words.v[0] : NULL, id, &err) < 0)
        return cli_fail(&err);
    struct render *r = render_new(a->progress, stdout, id);
    uint64_t seq = 0;
    bool interrupted = false;
    if (a->follow) {
        CB_AUTO_FD sig = cli_signal_fd();
        (void)render_follow(r, q, id, &seq, sig, &interrupted);
    } else {
        (void)render_catch_up(r, q, id, &seq);
    }
    render_free(r);
    return interrupted ? EXIT_INTERRUPTED : EXIT_DONE;
}

int cmd_logs(struct cli_args *a)
{
    return cli_with_queue(a, show_log);
}

static json_t *build_json(const struct build_record *b)
{
    char created[CB_RFC3339_LEN + 1], finished[CB_RFC3339_LEN + 1];
    cb_rfc3339(b->created_ms, created);
    cb_rfc3339(b->finished_ms, finished);
    return json_pack("{s:s, s:s, s:s, s:i, s:s*, s:s*, s:s, s:s*, s:I}", "id", b->id, "name",
                     b->name, "status", build_status_name(b->status), "attempt", b->attempt,
                     "error", b->error, "error_class", b->error_class, "created_at", created,
                     "finished_at", b->finished_ms ? finished : NULL, "last_seq",
                     (json_int_t)b->last_seq);
}

static void print_build(const struct build_record *b)
{
    char created[CB_RFC3339_LEN + 1];
    cb_rfc3339(b->created_ms, created);
    created[19] = '\0';
    char took[32] = "";
    if (b->finished_ms && b->started_ms)
        (void)snprintf(took, sizeof(took), "%.1f s",
                       (double)(b->finished_ms - b->started_ms) / 1000);
    printf("%s  %-20s %-9s %s  %8s", b->id, b->name, build_status_name(b->status), created, took);
    if (b->error) {
        fputs("  ", stdout);
        cli_put_text(stdout, b->error, "\n");
    }
    putchar('\n');
}

static int list_builds(struct cli_args *a, struct settings *s, struct queue *q)
{
    (void)s;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct build_record *v = NULL;
    size_t n = 0;
    if (queue_list(q, a->words.n ? a->words.v[0] : NULL, 0, &v, &n, &err) < 0)
        return cli_fail(&err);
    json_auto_t *all = json_array();
    for (size_t i = 0; i < n; i++) {
        if (a->json)
            json_array_append_new(all, build_json(&v[i]));
        else
            print_build(&v[i]);
        build_record_release(&v[i]);
    }
    free(v);
    if (a->json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
    } else if (n == 0 && a->words.n) {
        printf("no builds of %s: `capsule-build builds` lists all\n", a->words.v[0]);
    } else if (n == 0) {
        puts("no builds yet: capsule-build FILE makes one");
    }
    return EXIT_DONE;
}

int cmd_builds(struct cli_args *a)
{
    return cli_with_queue(a, list_builds);
}

static int with_store(struct cli_args *a, int (*fn)(struct cli_args *, struct store *))
{
    struct settings *s = NULL;
    struct store *store = NULL;
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    if ((rc = cli_open_store(s, &store)) == 0)
        rc = fn(a, store);
    store_free(store);
    settings_free(s);
    return rc;
}

static int list_templates(struct cli_args *a, struct store *store)
{
    if (a->words.n)
        return cli_remove_template(store, a->words.v[1]);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_STRV names = {0};
    if (store_template_names(store, &names, &err) < 0)
        return cli_fail(&err);
    json_auto_t *all = json_array();
    for (size_t i = 0; i < names.n; i++) {
        CB_AUTO_ERROR one = CB_ERROR_INIT;
        struct template_manifest *m = NULL;
        if (store_template_get(store, names.v[i], 0, &m, &one) < 0) {
            (void)cb_wrap(&one, "%s", names.v[i]);
            (void)cli_fail(&one);
            continue;
        }
        char created[CB_RFC3339_LEN + 1], used[32];
        cb_rfc3339(m->created_ms, created);
        cb_human_bytes(m->image_allocated, used, sizeof(used));
        if (a->json)
            json_array_append_new(all, json_pack("{s:s, s:I, s:s, s:s, s:I, s:s}", "name", m->name,
                                                 "version", (json_int_t)m->version, "workload_key",
                                                 m->workload_key, "created_at", created,
                                                 "size_bytes", (json_int_t)m->image_allocated,
                                                 "tier", tier_name(m->tier)));
        else
            printf("%-24s version %-4llu %s  %-3s %10s  %.19s\n", m->name,
                   (unsigned long long)m->version, m->workload_key, tier_name(m->tier), used,
                   created);
        template_manifest_free(m);
    }
    if (a->json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
    } else if (names.n == 0) {
        puts("no templates yet: capsule-build FILE makes one");
    }
    return EXIT_DONE;
}

int cmd_templates(struct cli_args *a)
{
    if (a->words.n && (a->words.n != 2 || strcmp(a->words.v[0], "rm") != 0)) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        (void)cb_fail(&err, CB_E_CONFIG, "usage: capsule-build templates [rm NAME[:VERSION]]");
        return cli_fail(&err);
    }
    return with_store(a, list_templates);
}

static void print_words(const char *label, const struct cb_strv *v)
{
    if (!v->n)
        return;
    printf("%-14s", label);
    for (size_t i = 0; i < v->n; i++) {
        putchar(' ');
        cli_put_text(stdout, v->v[i], "");
    }
    putchar('\n');
}

static void print_drives(const struct template_manifest *m)
{
    char size[32], text[CB_DIGEST_LEN + 1];
    for (size_t i = 0; i < m->n_drives; i++) {
        const struct drive_image *d = &m->drives[i];
        cb_human_bytes(d->size, size, sizeof(size));
        cb_digest_text(&d->image, text);
        printf("%-14s %-16s at %s, %s%s%s, %llu chunks\n%-14s %s\n", i == 0 ? "drives" : "",
               d->drive_id, d->mount_path, size, d->read_only ? ", read-only" : "",
               d->filled ? "" : ", empty", (unsigned long long)d->n_chunks, "", text);
    }
    if (m->workspace_gb)
        printf("%-14s at %s, %u GiB, empty at each boot\n", "workspace", WORKSPACE_PATH,
               m->workspace_gb);
}

static void print_template(const struct template_manifest *m, const char *image_path)
{
    char text[CB_DIGEST_LEN + 1], created[CB_RFC3339_LEN + 1], size[32], used[32];
    cb_rfc3339(m->created_ms, created);
    cb_human_bytes(m->image_size, size, sizeof(size));
    cb_human_bytes(m->image_allocated, used, sizeof(used));
    printf("%-14s %s version %llu\n", "template", m->name, (unsigned long long)m->version);
    printf("%-14s %s\n", "workload key", m->workload_key);
    printf("%-14s %s\n", "published", created);
    cb_digest_text(&m->base_digest, text);
    printf("%-14s %s\n%-14s %s\n", "base image", m->base_ref, "", text);
    for (size_t i = 0; i < m->n_layers; i++) {
        char blob[32];
        cb_human_bytes(m->layers[i].size, blob, sizeof(blob));
        cb_digest_text(&m->layers[i].digest, text);
        printf("%-14s %-16s %.19s... %10s compressed\n", i == 0 ? "layers" : "", m->layer_names[i],
               text, blob);
    }
    cb_digest_text(&m->image, text);
    printf("%-14s %s (%s on disk)\n%-14s %s\n", "image", size, used, "", text);
    if (m->n_chunks)
        printf("%-14s %llu chunks of %u KiB\n", "", (unsigned long long)m->n_chunks,
               m->chunk_size >> 10);
    if (image_path)
        printf("%-14s %s\n", "", image_path);
    else if (m->n_chunks)
        printf("%-14s its file was dropped and is made from them when it is needed\n", "");
    print_drives(m);
    printf("%-14s %s%s%s\n", "kernel", m->kernel_release, m->kernel_from ? ", the image's " : "",
           m->kernel_from ? m->kernel_from : "");
    printf("%-14s %s\n", "command line", m->cmdline);
    printf("%-14s %s: %u vCPU, %u MiB\n", "tier", tier_name(m->tier), tier_vcpus(m->tier),
           tier_memory_mib(m->tier));
    static const struct cb_digest none;
    cb_human_bytes(m->warm.size, size, sizeof(size));
    if (!cb_digest_eq(&m->warm.blob, &none))
        printf("%-14s %s, for QEMU %s, CPU %s, %u vCPU, %u MiB (boot --warm)\n", "saved machine",
               size, m->warm.qemu ? m->warm.qemu : "", m->warm.cpu ? m->warm.cpu : "",
               m->warm.vcpus, m->warm.memory_mib);
    print_words("starts", &m->boot.start_argv);
    if (m->boot.port)
        printf("%-14s %u%s%s\n", "port", m->boot.port,
               m->boot.health_path ? ", ready when GET " : "",
               m->boot.health_path ? m->boot.health_path : "");
    printf("%-14s %s\n", "user", m->default_user[0] ? m->default_user : "root");
}

static int show(struct cli_args *a, struct store *store)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct template_manifest *m = NULL;
    CB_AUTO_FREE char *name = NULL;
    uint64_t version = 0;
    int rc = cli_template_name(a, &name, &version);
    if (rc)
        return rc;
    if (store_template_get(store, name, version, &m, &err) < 0)
        return cli_fail(&err);
    if (a->sbom || a->provenance || a->verify_key) {
        rc = cli_show_documents(a, store, m);
    } else if (a->json) {
        CB_AUTO_FREE char *text = template_manifest_dump(m);
        puts(text);
    } else {
        CB_AUTO_FREE char *path = NULL;
        CB_AUTO_ERROR missing = CB_ERROR_INIT;
        if (store_image_find(store, &m->image, &path, &missing) < 0 && m->n_chunks == 0)
            (void)cli_fail(&missing);
        print_template(m, path);
    }
    template_manifest_free(m);
    return rc;
}

/* Each shows one thing; none is left out in silence. */
int cmd_show(struct cli_args *a)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (a->depth || a->top)
        cb_fail(&err, CB_E_CONFIG, "--depth and --top belong to --sizes");
    else if ((a->sbom != 0) + (a->provenance != 0) + (a->verify_key != NULL) > 1)
        cb_fail(&err, CB_E_CONFIG, "one of --sbom, --provenance and --verify-signature at a time");
    return err.code == CB_OK ? with_store(a, show) : cli_fail(&err);
}
