/* verify: compares everything in the store with its name. */
#include "cli/cli.h"

#include "layers/store_verify.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <jansson.h>
#include <unistd.h>

static void on_progress(void *arg, uint64_t bytes, uint64_t of)
{
    (void)arg;
    char done[32], all[32];
    cb_human_bytes(bytes, done, sizeof(done));
    cb_human_bytes(of, all, sizeof(all));
    fprintf(stderr, "\r\033[Kverified %s of %s%s", done, all, bytes == of ? "\n" : "");
}

static void print_json(const struct verify_report *r)
{
    json_t *faults = json_array(), *checked = json_object();
    for (size_t i = 0; i < r->n; i++) {
        const struct verify_fault *f = &r->v[i];
        json_array_append_new(faults, json_pack("{s:s, s:s, s:s*, s:b, s:b}", "what", f->what,
                                                "why", f->why, "needed_by", f->hits, "moved",
                                                (int)f->moved, "solved", (int)f->solved));
    }
    for (int k = 0; k < STORE_KIND_N; k++)
        if (r->checked[k].n)
            json_object_set_new(checked, store_kind_name((enum store_kind)k),
                                json_pack("{s:I, s:I}", "count", (json_int_t)r->checked[k].n,
                                          "bytes", (json_int_t)r->checked[k].bytes));
    json_auto_t *o =
        json_pack("{s:b, s:o, s:o}", "good", (int)r->good, "checked", checked, "faults", faults);
    json_dumpf(o, stdout, JSON_INDENT(2));
    putchar('\n');
}

static void print_text(const struct verify_report *r, bool repair)
{
    uint64_t n = 0, bytes = 0;
    for (int k = 0; k < STORE_KIND_N; k++) {
        n += r->checked[k].n;
        bytes += r->checked[k].bytes;
    }
    char size[32];
    cb_human_bytes(bytes, size, sizeof(size));
    for (size_t i = 0; i < r->n; i++) {
        const struct verify_fault *f = &r->v[i];
        printf("%s: ", f->what);
        cli_put_text(stdout, f->why, "\n");
        if (f->hits)
            printf("; needed by %s", f->hits);
        if (repair)
            printf("; %s%s", f->moved ? "moved to damaged/" : "cannot be moved",
                   f->solved ? ", solved" : "");
        putchar('\n');
    }
    printf("%llu files, %s: %s\n", (unsigned long long)n, size,
           r->good ? (r->n ? "good after the repair" : "good") : "damaged");
    if (!r->good)
        fputs(repair ? "  build the templates that are named again: what is missing is fetched or "
                       "made\n"
                     : "  `capsule-build verify --repair` puts aside what is bad\n",
              stderr);
}

int cmd_verify(struct cli_args *a)
{
    struct settings *s = NULL;
    struct store *store = NULL;
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    if ((rc = cli_open_store(s, &store)) == 0) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct verify_report r;
        bool tty = isatty(STDERR_FILENO) && !a->json;
        struct verify_options o = {.repair = a->repair, .progress = tty ? on_progress : NULL};
        if (store_verify(store, &o, &r, &err) < 0) {
            rc = cli_fail(&err);
        } else {
            if (a->json)
                print_json(&r);
            else
                print_text(&r, a->repair);
            rc = r.good ? EXIT_DONE : EXIT_BUILD_FAILED;
        }
        verify_report_release(&r);
    }
    store_free(store);
    settings_free(s);
    return rc;
}
