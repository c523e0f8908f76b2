/* show --sizes: where the bytes of a template are. */
#include "cli/job/image_of.h"

#include "layers/image_sizes.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <jansson.h>
#include <string.h>

static void print_layer(const char *name, const uint64_t *blob, const struct layer_size *l)
{
    char compressed[32] = "", content[32] = "?", allocated[32], gone[32] = "";
    if (blob)
        cb_human_bytes(*blob, compressed, sizeof(compressed));
    cb_human_bytes(l->allocated, allocated, sizeof(allocated));
    if (l->known) {
        cb_human_bytes(l->content, content, sizeof(content));
        cb_human_bytes(l->content > l->kept ? l->content - l->kept : 0, gone, sizeof(gone));
    }
    printf("%-20s %12s %12s %12s %12s\n", name, compressed, content, allocated, gone);
}

static void print_text(const struct template_manifest *m, const struct image_sizes *s)
{
    printf("%-20s %12s %12s %12s %12s\n", "layer", "compressed", "content", "in the image",
           "gone again");
    for (size_t i = 0; i < s->n_layers; i++)
        print_layer(m->layer_names[i], &m->layers[i].size, &s->layers[i]);
    if (s->other.kept)
        print_layer("(not known)", NULL, &s->other);
    printf("\n%12s %12s %9s  %s\n", "in the image", "content", "files", "folder");
    for (size_t i = 0; i < s->n_folders; i++) {
        const struct folder_size *f = &s->folders[i];
        char content[32], allocated[32];
        cb_human_bytes(f->content, content, sizeof(content));
        cb_human_bytes(f->allocated, allocated, sizeof(allocated));
        printf("%12s %12s %9llu  /", allocated, content, (unsigned long long)f->files);
        cli_put_text(stdout, strcmp(f->path, ".") == 0 ? "" : f->path, "\n");
        putchar('\n');
    }
}

static json_t *layer_json(const char *name, const uint64_t *blob, const struct layer_size *l)
{
    json_t *o = json_pack("{s:s, s:I, s:I}", "name", name, "kept_bytes", (json_int_t)l->kept,
                          "allocated_bytes", (json_int_t)l->allocated);
    if (blob)
        (void)json_object_set_new(o, "compressed_bytes", json_integer((json_int_t)*blob));
    (void)json_object_set_new(o, "content_bytes",
                              l->known ? json_integer((json_int_t)l->content) : json_null());
    return o;
}

static void print_json(const struct template_manifest *m, const struct image_sizes *s)
{
    json_t *layers = json_array(), *folders = json_array();
    for (size_t i = 0; i < s->n_layers; i++)
        (void)json_array_append_new(
            layers, layer_json(m->layer_names[i], &m->layers[i].size, &s->layers[i]));
    for (size_t i = 0; i < s->n_folders; i++) {
        const struct folder_size *f = &s->folders[i];
        json_t *o = json_pack("{s:I, s:I, s:I}", "files", (json_int_t)f->files, "content_bytes",
                              (json_int_t)f->content, "allocated_bytes", (json_int_t)f->allocated);
        cli_json_path(o, f->path);
        (void)json_array_append_new(folders, o);
    }
    json_auto_t *doc = json_pack("{s:i, s:s, s:I, s:o, s:o, s:o}", "schema_version", 1, "name",
                                 m->name, "version", (json_int_t)m->version, "layers", layers,
                                 "other", layer_json("", NULL, &s->other), "folders", folders);
    (void)json_dumpf(doc, stdout, JSON_INDENT(2));
    putchar('\n');
}

static int show_sizes(struct cli_args *a, struct store *store, struct cb_error *err)
{
    struct image_of i = IMAGE_OF_INIT;
    struct image_sizes s = {0};
    CB_AUTO_FREE char *word =
        a->version ? cb_xasprintf("%s:%llu", a->words.v[0], (unsigned long long)a->version)
                   : cb_xstrdup(a->words.v[0]);
    int rc = image_of_open(store, word, &i, err);
    if (rc >= 0)
        rc = image_sizes_get(store, i.m->layers, i.n_layers, i.path, a->depth ? a->depth : 2,
                             a->top ? a->top : 20, &s, err);
    if (rc >= 0 && a->json)
        print_json(i.m, &s);
    else if (rc >= 0)
        print_text(i.m, &s);
    image_sizes_release(&s);
    image_of_release(&i);
    return rc < 0 ? cli_fail(err) : EXIT_DONE;
}

int cmd_show_sizes(struct cli_args *a)
{
    struct settings *s = NULL;
    struct store *store = NULL;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (a->sbom || a->provenance || a->verify_key) {
        cb_fail(&err, CB_E_CONFIG, "--sizes goes with none of the documents");
        cb_hint(&err, "show them in a call of their own");
        return cli_fail(&err);
    }
    int rc = cli_settings(a, &s);
    if (rc)
        return rc;
    if ((rc = cli_open_store(s, &store)) == 0)
        rc = show_sizes(a, store, &err);
    store_free(store);
    settings_free(s);
    return rc;
}
