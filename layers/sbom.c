/* SPDX 2.3 as JSON. Written piece by piece: a list of many packages is never a tree in memory. */
#include "layers/sbom.h"

#include "support/cleanup.h"
#include "support/clock.h"
#include "support/mem.h"

#include <ctype.h>
#include <jansson.h>
#include <string.h>

#define NONE "NOASSERTION"

/* ---- package URLs ---- */

static void add_encoded(struct cb_buf *b, const char *text)
{
    for (const char *p = text; *p; p++) {
        if (isalnum((unsigned char)*p) || strchr("-._~:", *p))
            (void)cb_buf_add(b, p, 1);
        else
            (void)cb_buf_addf(b, "%%%02X", (unsigned char)*p);
    }
}

static void add_qualifier(struct cb_buf *b, char *sep, const char *key, const char *a,
                          const char *between, const char *c)
{
    (void)cb_buf_addf(b, "%c%s=", *sep, key);
    *sep = '&';
    add_encoded(b, a);
    if (c) {
        (void)cb_buf_adds(b, between);
        add_encoded(b, c);
    }
}

char *package_purl(const struct package *p, const char *distro, const char *distro_version)
{
    static const char *const usual[] = {
        [PACKAGE_APK] = "alpine", [PACKAGE_DEB] = "debian", [PACKAGE_RPM] = NULL};
    CB_AUTO_BUF b = CB_BUF_INIT(64u << 10);
    const char *namespace = distro ? distro : usual[p->kind];
    (void)cb_buf_addf(&b, "pkg:%s/", package_kind_name(p->kind));
    if (namespace) {
        add_encoded(&b, namespace);
        (void)cb_buf_adds(&b, "/");
    }
    add_encoded(&b, p->name);
    (void)cb_buf_adds(&b, "@");
    add_encoded(&b, p->version);
    char sep = '?'; /* qualifiers in the order of their names */
    if (p->arch)
        add_qualifier(&b, &sep, "arch", p->arch, "", NULL);
    if (distro)
        add_qualifier(&b, &sep, "distro", distro, "-", distro_version);
    if (p->epoch)
        add_qualifier(&b, &sep, "epoch", p->epoch, "", NULL);
    if (p->source)
        add_qualifier(&b, &sep, "upstream", p->source, "%40", p->source_version);
    return cb_buf_take(&b);
}

char *image_purl(const char *domain, const char *path, const char *tag,
                 const struct cb_digest *manifest)
{
    CB_AUTO_BUF b = CB_BUF_INIT(64u << 10);
    const char *slash = strrchr(path, '/');
    char digest[CB_DIGEST_LEN + 1], sep = '?';
    cb_digest_text(manifest, digest);
    (void)cb_buf_adds(&b, "pkg:oci/");
    add_encoded(&b, slash ? slash + 1 : path);
    (void)cb_buf_adds(&b, "@");
    add_encoded(&b, digest);
    CB_AUTO_FREE char *repository = cb_xasprintf("%s/%s", domain, path);
    add_qualifier(&b, &sep, "repository_url", repository, "", NULL);
    if (tag)
        add_qualifier(&b, &sep, "tag", tag, "", NULL);
    return cb_buf_take(&b);
}

/* ---- the document ---- */

struct writer {
    struct cb_buf *out;
    const struct sbom_spec *spec;
    struct cb_strv licenses; /* declared ones without a name in the list, each once */
    size_t n;                /* elements of the array that is being written */
    bool failed;             /* it did not fit */
};

static void put(struct writer *w, const char *text)
{
    w->failed |= cb_buf_adds(w->out, text) < 0;
}

/* @v is taken. */
static void put_value(struct writer *w, json_t *v)
{
    CB_AUTO_FREE char *text = v ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    json_decref(v);
    if (text)
        put(w, text);
    else
        w->failed = true;
}

static void put_member(struct writer *w, const char *name, json_t *v)
{
    put(w, ",\n\"");
    put(w, name);
    put(w, "\":");
    put_value(w, v);
}

static void begin_array(struct writer *w, const char *name)
{
    put(w, ",\n\"");
    put(w, name);
    put(w, "\":[");
    w->n = 0;
}

static void put_element(struct writer *w, json_t *v)
{
    put(w, w->n++ ? ",\n" : "\n");
    put_value(w, v);
}

static void hex_of(const char *text, char hex[CB_HEX_LEN + 1], size_t keep)
{
    struct cb_digest d;
    cb_sha256(text, strlen(text), &d);
    cb_digest_hex(&d, hex);
    hex[keep] = '\0';
}

/* SPDXRef-deb-libc6-0123456789ab: readable, and one for each package. */
static char *package_id(const struct package *p)
{
    char hex[CB_HEX_LEN + 1];
    CB_AUTO_FREE char *all =
        cb_xasprintf("%s\n%s\n%s\n%s\n%s", package_kind_name(p->kind), p->name,
                     p->epoch ? p->epoch : "", p->version, p->arch ? p->arch : "");
    hex_of(all, hex, 12);
    char *id = cb_xasprintf("SPDXRef-%s-%s-%s", package_kind_name(p->kind), p->name, hex);
    for (char *c = id; *c; c++)
        if (!isalnum((unsigned char)*c) && *c != '.' && *c != '-')
            *c = '-';
    return id;
}

static char *license_ref(const char *declared)
{
    char hex[CB_HEX_LEN + 1];
    hex_of(declared, hex, 16);
    return cb_xasprintf("LicenseRef-declared-%s", hex);
}

static json_t *license_value(struct writer *w, const char *declared)
{
    if (!declared)
        return json_string(NONE);
    CB_AUTO_FREE char *expression = spdx_license(declared);
    if (expression)
        return json_string(expression);
    cb_strv_add(&w->licenses, declared);
    CB_AUTO_FREE char *ref = license_ref(declared);
    return json_string(ref);
}

/* "Organization: Fedora Project", or "Person: Name (address)" of "Name <address>". */
static json_t *supplier(const struct package *p)
{
    if (p->vendor)
        return json_sprintf("Organization: %s", p->vendor);
    if (!p->maintainer)
        return json_string(NONE);
    const char *open = strrchr(p->maintainer, '<');
    const char *close = open ? strchr(open, '>') : NULL;
    size_t name = open ? (size_t)(open - p->maintainer) : 0;
    while (name && p->maintainer[name - 1] == ' ')
        name--;
    if (!close || close[1] || close == open + 1 || name == 0)
        return json_sprintf("Person: %s", p->maintainer);
    return json_sprintf("Person: %.*s (%.*s)", (int)name, p->maintainer, (int)(close - open - 1),
                        open + 1);
}

static json_t *purl_refs(const char *purl)
{
    return json_pack("[{s:s, s:s, s:s}]", "referenceCategory", "PACKAGE-MANAGER", "referenceType",
                     "purl", "referenceLocator", purl);
}

static void put_package(struct writer *w, const struct package *p)
{
    const struct image_packages *in = w->spec->packages;
    CB_AUTO_FREE char *id = package_id(p);
    CB_AUTO_FREE char *purl = package_purl(p, in->distro, in->distro_version);
    CB_AUTO_FREE char *version =
        p->epoch ? cb_xasprintf("%s:%s", p->epoch, p->version) : cb_xstrdup(p->version);
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:b, s:o, s:s, s:o, s:s, s:o}", "SPDXID", id,
                          "name", p->name, "versionInfo", version, "downloadLocation", NONE,
                          "filesAnalyzed", 0, "supplier", supplier(p), "licenseConcluded", NONE,
                          "licenseDeclared", license_value(w, p->license), "copyrightText", NONE,
                          "externalRefs", purl_refs(purl));
    if (o && p->source)
        (void)json_object_set_new(o, "sourceInfo",
                                  json_sprintf("built from the source package %s %s", p->source,
                                               p->source_version        ? p->source_version
                                               : p->kind == PACKAGE_RPM ? ""
                                                                        : p->version));
    put_element(w, o);
}

static json_t *main_package(const struct sbom_spec *s)
{
    char digest[CB_DIGEST_LEN + 1];
    cb_digest_text(&s->image, digest);
    return json_pack("{s:s, s:s, s:s, s:s, s:b, s:s, s:s, s:s, s:s, s:s}", "SPDXID",
                     "SPDXRef-Image", "name", s->name, "versionInfo", digest, "downloadLocation",
                     NONE, "filesAnalyzed", 0, "licenseConcluded", NONE, "licenseDeclared", NONE,
                     "copyrightText", NONE, "primaryPackagePurpose", "OPERATING-SYSTEM", "comment",
                     "A root file system of capsule-build. Its version is the digest that its "
                     "manifest names, of what the file consists of; not the SHA-256 of the file.");
}

static json_t *base_package(const struct sbom_spec *s)
{
    char digest[CB_DIGEST_LEN + 1];
    cb_digest_text(&s->base, digest);
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:s, s:b, s:s, s:s, s:s, s:s, s:[{s:s, s:s}]}", "SPDXID",
                  "SPDXRef-Base", "name", s->base_ref, "versionInfo", digest, "downloadLocation",
                  NONE, "filesAnalyzed", 0, "licenseConcluded", NONE, "licenseDeclared", NONE,
                  "copyrightText", NONE, "primaryPackagePurpose", "CONTAINER", "checksums",
                  "algorithm", "SHA256", "checksumValue", digest + strlen("sha256:"));
    if (o && s->base_purl)
        (void)json_object_set_new(o, "externalRefs", purl_refs(s->base_purl));
    return o;
}

static json_t *relation(const char *from, const char *type, const char *to)
{
    return json_pack("{s:s, s:s, s:s}", "spdxElementId", from, "relationshipType", type,
                     "relatedSpdxElement", to);
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void put_licenses(struct writer *w)
{
    struct cb_strv *l = &w->licenses;
    if (l->n == 0)
        return;
    qsort(l->v, l->n, sizeof(*l->v), compare_strings);
    begin_array(w, "hasExtractedLicensingInfos");
    for (size_t i = 0; i < l->n; i++) {
        if (i && strcmp(l->v[i - 1], l->v[i]) == 0)
            continue;
        CB_AUTO_FREE char *ref = license_ref(l->v[i]);
        put_element(w, json_pack("{s:s, s:s, s:s}", "licenseId", ref, "name", l->v[i],
                                 "extractedText", l->v[i]));
    }
    put(w, "]");
}

/* What a reader must know about the list: where it comes from, and what is missing. */
static json_t *comment(const struct image_packages *p)
{
    CB_AUTO_BUF b = CB_BUF_INIT(1u << 20);
    if (p->sources.n == 0)
        (void)cb_buf_adds(&b, "No database of a package manager was found.");
    else
        (void)cb_buf_addf(&b, "Packages as listed in %s", p->sources.v[0]);
    for (size_t i = 1; i < p->sources.n && i < 16; i++)
        (void)cb_buf_addf(&b, ", %s", p->sources.v[i]);
    if (p->sources.n > 16)
        (void)cb_buf_addf(&b, " and %zu more files", p->sources.n - 16);
    for (size_t i = 0; i < p->notes.n && i < 64; i++)
        (void)cb_buf_addf(&b, "\n%s", p->notes.v[i]);
    return json_stringn(b.data, b.len);
}

/* SPDX has times without fractions. */
static json_t *created(int64_t seconds)
{
    char text[CB_RFC3339_LEN + 1];
    cb_rfc3339((seconds > 0 ? seconds : 0) * 1000, text);
    return json_sprintf("%.19sZ", text);
}

static void put_relations(struct writer *w)
{
    const struct image_packages *in = w->spec->packages;
    begin_array(w, "relationships");
    put_element(w, relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image"));
    if (w->spec->base_ref)
        put_element(w, relation("SPDXRef-Image", "DESCENDANT_OF", "SPDXRef-Base"));
    for (size_t i = 0; i < in->list.n; i++) {
        CB_AUTO_FREE char *id = package_id(&in->list.v[i]);
        put_element(w, relation("SPDXRef-Image", "CONTAINS", id));
    }
    put(w, "]");
}

/* A version 5 UUID in shape, from the digest of what stands before. */
static json_t *namespace_of(const struct sbom_spec *s, const void *text, size_t len)
{
    struct cb_digest d;
    char h[CB_HEX_LEN + 1];
    cb_sha256(text, len, &d);
    d.b[6] = (uint8_t)((d.b[6] & 0x0f) | 0x50);
    d.b[8] = (uint8_t)((d.b[8] & 0x3f) | 0x80);
    cb_digest_hex(&d, h);
    CB_AUTO_BUF name = CB_BUF_INIT(4096);
    add_encoded(&name, s->name);
    return json_sprintf("https://spdx.org/spdxdocs/capsule-build/%s-%.8s-%.4s-%.4s-%.4s-%.12s",
                        name.data ? name.data : "", h, h + 8, h + 12, h + 16, h + 20);
}

int sbom_spdx(const struct sbom_spec *spec, struct cb_buf *out, struct cb_error *err)
{
    const struct image_packages *in = spec->packages;
    struct writer w = {.out = out, .spec = spec};
    size_t start = out->len;
    put(&w, "{\"spdxVersion\":\"SPDX-2.3\"");
    put_member(&w, "dataLicense", json_string("CC0-1.0"));
    put_member(&w, "SPDXID", json_string("SPDXRef-DOCUMENT"));
    put_member(&w, "name", json_string(spec->name));
    put_member(&w, "comment", comment(in));
    put_member(&w, "creationInfo",
               json_pack("{s:o, s:[s]}", "created", created(in->newest), "creators",
                         "Tool: capsule-build-" CB_VERSION));
    begin_array(&w, "packages");
    put_element(&w, main_package(spec));
    if (spec->base_ref)
        put_element(&w, base_package(spec));
    for (size_t i = 0; i < in->list.n && !w.failed; i++)
        put_package(&w, &in->list.v[i]);
    put(&w, "]");
    put_relations(&w);
    put_licenses(&w);
    cb_strv_release(&w.licenses);
    if (!w.failed)
        put_member(&w, "documentNamespace",
                   namespace_of(spec, out->data + start, out->len - start));
    put(&w, "}\n");
    if (w.failed)
        return cb_fail(err, CB_E_LIMIT, "the list of %zu packages is too large", in->list.n);
    return 0;
}
