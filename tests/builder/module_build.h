/* Kernels and modules for tests: as much of them as is looked at. */
#pragma once

#include <elf.h>
#include <stdio.h>
#include <string.h>

/* Writes an ELF object with a .modinfo section that says "depends=@depends". */
static inline size_t make_module(const char *depends, unsigned char *out)
{
    static const char names[] = "\0.shstrtab\0.modinfo";
    char info[256];
    int len = snprintf(info, sizeof(info), "license=GPL%cdepends=%s%cname=x", 0, depends, 0) + 1;
    Elf64_Ehdr h = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                    .e_type = ET_REL,
                    .e_machine = EM_X86_64,
                    .e_shoff = sizeof(h),
                    .e_shentsize = sizeof(Elf64_Shdr),
                    .e_shnum = 3,
                    .e_shstrndx = 1};
    size_t names_at = sizeof(h) + 3 * sizeof(Elf64_Shdr), info_at = names_at + sizeof(names);
    Elf64_Shdr s[3] = {
        {0},
        {.sh_name = 1, .sh_type = SHT_STRTAB, .sh_offset = names_at, .sh_size = sizeof(names)},
        {.sh_name = 11, .sh_type = SHT_PROGBITS, .sh_offset = info_at, .sh_size = (size_t)len}};
    memcpy(out, &h, sizeof(h));
    memcpy(out + sizeof(h), s, sizeof(s));
    memcpy(out + names_at, names, sizeof(names));
    memcpy(out + info_at, info, (size_t)len);
    return info_at + (size_t)len;
}

/* The head of a bzImage that says that it is @release. Returns its length. */
static inline size_t make_bzimage(const char *release, unsigned char *out)
{
    memset(out, 0, 0x400);
    memcpy(out + 0x202, "HdrS", 4);
    out[0x20f] = 0x01; /* the text is at 0x100 + 0x200 */
    (void)snprintf((char *)out + 0x300, 0x100, "%s (somebody@somewhere) #1 SMP", release);
    return 0x400;
}
