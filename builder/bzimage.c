#include "builder/bzimage.h"

#include <string.h>

bool kernel_release_ok(const char *s)
{
    size_t n = strlen(s);
    return n > 0 && n <= KERNEL_RELEASE_MAX && *s != '.' &&
           strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-_~") == n;
}

/* "HdrS" is at 0x202, and at 0x20e the place of the version text less 0x200. */
bool bzimage_release(const void *head, size_t n, char *text)
{
    const unsigned char *p = head;
    if (n < 0x210 || memcmp(p + 0x202, "HdrS", 4) != 0)
        return false;
    size_t at = (size_t)(p[0x20e] | p[0x20f] << 8);
    if (at == 0 || (at += 0x200) >= n)
        return false;
    size_t len = 0;
    while (at + len < n && len <= KERNEL_RELEASE_MAX && p[at + len] > ' ')
        len++;
    if (len > KERNEL_RELEASE_MAX)
        return false;
    memcpy(text, p + at, len);
    text[len] = '\0';
    return kernel_release_ok(text);
}
