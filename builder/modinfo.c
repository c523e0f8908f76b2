#include "builder/modinfo.h"

#include "support/cleanup.h"
#include "support/mem.h"

#include <elf.h>
#include <stdint.h>
#include <string.h>

enum { DEPENDS_MAX = 64 };

/* Section @i of the object, checked to lie in it; false when there is no such thing. */
static bool section_at(const unsigned char *p, size_t n, const Elf64_Ehdr *h, size_t i,
                       Elf64_Shdr *out)
{
    uint64_t at;
    if (i >= h->e_shnum || h->e_shentsize != sizeof(*out) ||
        __builtin_add_overflow(h->e_shoff, (uint64_t)i * sizeof(*out), &at) || at > n ||
        n - at < sizeof(*out))
        return false;
    memcpy(out, p + at, sizeof(*out));
    return out->sh_type == SHT_NOBITS ||
           (out->sh_offset <= n && n - out->sh_offset >= out->sh_size);
}

static bool find_section(const unsigned char *p, size_t n, const char *name, const char **data,
                         size_t *len)
{
    Elf64_Ehdr h;
    Elf64_Shdr names, s;
    if (n < sizeof(h) || memcmp(p, ELFMAG, SELFMAG) != 0 || p[EI_CLASS] != ELFCLASS64)
        return false;
    memcpy(&h, p, sizeof(h));
    if (!section_at(p, n, &h, h.e_shstrndx, &names) || names.sh_type != SHT_STRTAB)
        return false;
    for (size_t i = 0; i < h.e_shnum; i++) {
        if (!section_at(p, n, &h, i, &s))
            return false;
        size_t want = strlen(name) + 1;
        if (s.sh_type != SHT_PROGBITS || s.sh_name > names.sh_size ||
            names.sh_size - s.sh_name < want ||
            memcmp(p + names.sh_offset + s.sh_name, name, want) != 0)
            continue;
        *data = (const char *)p + s.sh_offset;
        *len = s.sh_size;
        return true;
    }
    return false;
}

static int add_names(const char *v, struct cb_strv *depends, struct cb_error *err)
{
    while (*v) {
        size_t n = strcspn(v, ",");
        if (n && depends->n == DEPENDS_MAX)
            return cb_fail(err, CB_E_LIMIT, "kernel module: more than %d dependencies",
                           DEPENDS_MAX);
        if (n) {
            char *name = cb_xstrndup(v, n);
            for (char *c = name; *c; c++)
                if (*c == '-')
                    *c = '_';
            cb_strv_take(depends, name);
        }
        v += n + (v[n] == ',');
    }
    return 0;
}

int modinfo_depends(const void *p, size_t n, struct cb_strv *depends, struct cb_error *err)
{
    const char *info;
    size_t len;
    if (!find_section(p, n, ".modinfo", &info, &len))
        return cb_fail(err, CB_E_CORRUPT, "not a kernel module");
    while (len) { /* "key=value" texts, each ended by a NUL, NULs between them */
        const char *nul = memchr(info, '\0', len);
        if (!nul)
            return cb_fail(err, CB_E_CORRUPT, "kernel module: .modinfo is cut off");
        if (strncmp(info, "depends=", 8) == 0) {
            int rc = add_names(info + 8, depends, err);
            if (rc < 0)
                return rc;
        }
        len -= (size_t)(nul + 1 - info);
        info = nul + 1;
    }
    return 0;
}
