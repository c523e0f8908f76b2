#include "layers/sbom.h"

#include "support/buf.h"
#include "support/cleanup.h"

#include <string.h>
#include <strings.h>

/* Of the SPDX licence list, those that distributions declare. What is not here is shown by its own
 * words (a LicenseRef), which is right as well. Sorted without regard to case, as SPDX compares. */
/* clang-format off */
static const char *const licenses[] = {"0BSD", "AFL-2.0", "AFL-2.1", "AFL-3.0", "AGPL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-1.0", "Apache-1.1", "Apache-2.0", "APSL-2.0", "Artistic-1.0", "Artistic-1.0-cl8", "Artistic-1.0-Perl", "Artistic-2.0", "Beerware", "Bitstream-Vera", "blessing", "BlueOak-1.0.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-2-Clause-Patent", "BSD-2-Clause-Views", "BSD-3-Clause", "BSD-3-Clause-Clear", "BSD-3-Clause-LBNL", "BSD-3-Clause-Open-MPI", "BSD-4-Clause", "BSD-4-Clause-UC", "BSD-Attribution-HPND-disclaimer", "BSD-Protection", "BSD-Source-Code", "BSL-1.0", "bzip2-1.0.6", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-SA-2.0", "CC-BY-SA-2.5", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-PDDC", "CC0-1.0", "CDDL-1.0", "CDDL-1.1", "CECILL-2.0", "CECILL-2.1", "CECILL-B", "CECILL-C", "ClArtistic", "CNRI-Python", "copyleft-next-0.3.1", "CPL-1.0", "curl", "DOC", "dtoa", "ECL-2.0", "EFL-2.0", "Entessa", "EPL-1.0", "EPL-2.0", "EUPL-1.1", "EUPL-1.2", "FSFAP", "FSFUL", "FSFULLR", "FSFULLRWD", "FTL", "GD", "GFDL-1.1", "GFDL-1.1-only", "GFDL-1.1-or-later", "GFDL-1.2", "GFDL-1.2-only", "GFDL-1.2-or-later", "GFDL-1.3", "GFDL-1.3-no-invariants-or-later", "GFDL-1.3-only", "GFDL-1.3-or-later", "GPL-1.0", "GPL-1.0+", "GPL-1.0-only", "GPL-1.0-or-later", "GPL-2.0", "GPL-2.0+", "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0", "GPL-3.0+", "GPL-3.0-only", "GPL-3.0-or-later", "HPND", "HPND-sell-MIT-disclaimer-xserver", "HPND-sell-variant", "ICU", "IJG", "ImageMagick", "Info-ZIP", "Intel", "IPA", "IPL-1.0", "ISC", "JasPer-2.0", "JSON", "Knuth-CTAN", "Latex2e", "Leptonica", "LGPL-2.0", "LGPL-2.0+", "LGPL-2.0-only", "LGPL-2.0-or-later", "LGPL-2.1", "LGPL-2.1+", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0", "LGPL-3.0+", "LGPL-3.0-only", "LGPL-3.0-or-later", "Libpng", "libpng-2.0", "libtiff", "LOOP", "LPPL-1.0", "LPPL-1.2", "LPPL-1.3a", "LPPL-1.3c", "lsof", "MIT", "MIT-0", "MIT-advertising", "MIT-CMU", "MIT-feh", "MIT-Modern-Variant", "MIT-open-group", "MITNFA", "mpich2", "MPL-1.0", "MPL-1.1", "MPL-2.0", "MS-PL", "MS-RL", "MulanPSL-2.0", "Multics", "NAIST-2003", "NCSA", "Net-SNMP", "NetCDF", "NICTA-1.0", "NIST-PD", "NLPL", "NPL-1.1", "NTP", "OFL-1.0", "OFL-1.1", "OFL-1.1-RFN", "OLDAP-2.8", "OML", "OpenSSL", "OPL-1.0", "OSL-1.0", "OSL-2.1", "OSL-3.0", "PHP-3.0", "PHP-3.01", "Plexus", "PostgreSQL", "PSF-2.0", "psfrag", "psutils", "Python-2.0", "Python-2.0.1", "Qhull", "QPL-1.0", "RSA-MD", "Ruby", "SAX-PD", "SGI-B-2.0", "Sleepycat", "SMLNJ", "snprintf", "Spencer-86", "Spencer-94", "Spencer-99", "SSH-OpenSSH", "SSH-short", "SSLeay-standalone", "SunPro", "SWL", "TCL", "TCP-wrappers", "TU-Berlin-1.0", "Unicode-3.0", "Unicode-DFS-2015", "Unicode-DFS-2016", "Unicode-TOU", "Unlicense", "UPL-1.0", "Vim", "W3C", "W3C-19980720", "W3C-20150513", "Watcom-1.0", "WTFPL", "X11", "X11-distribute-modifications-variant", "Xerox", "XFree86-1.1", "xinetd", "Xnet", "xpp", "YPL-1.1", "Zend-2.0", "Zlib", "zlib-acknowledgement", "ZPL-2.0", "ZPL-2.1"};
static const char *const exceptions[] = {"389-exception", "Autoconf-exception-2.0", "Autoconf-exception-3.0", "Autoconf-exception-generic", "Autoconf-exception-macro", "Bison-exception-2.2", "Bootloader-exception", "Classpath-exception-2.0", "cryptsetup-OpenSSL-exception", "eCos-exception-2.0", "Font-exception-2.0", "GCC-exception-2.0", "GCC-exception-3.1", "GPL-3.0-linking-exception", "LGPL-3.0-linking-exception", "Libtool-exception", "Linux-syscall-note", "LLVM-exception", "OCaml-LGPL-linking-exception", "OpenJDK-assembly-exception-1.0", "openvpn-openssl-exception", "PS-or-PDF-font-exception-20170817", "Qt-GPL-exception-1.0", "Qt-LGPL-exception-1.1", "Qwt-exception-1.0", "Swift-exception", "Texinfo-exception", "u-boot-exception-2.0", "Universal-FOSS-exception-1.0", "vsftpd-openssl-exception", "WxWindows-exception-3.1", "x11vnc-openssl-exception"};
/* clang-format on */

#define DEPTH_MAX 16
#define COUNT(a) (sizeof(a) / sizeof(*(a)))

struct parser {
    const char *p;
    struct cb_buf *out;
    int depth;
};

/* The length of the word at @p: a parenthesis, or all up to a space or parenthesis. */
static size_t word_len(const char *p)
{
    return *p == '(' || *p == ')' ? 1 : strcspn(p, " ()");
}

static const char *look_up(const char *const *list, size_t n, const char *p, size_t len)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strncasecmp(list[mid], p, len);
        if (c == 0)
            c = list[mid][len] != '\0';
        if (c == 0)
            return list[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static void skip_spaces(struct parser *s)
{
    while (*s->p == ' ')
        s->p++;
}

/* Takes @word if it comes next. */
static bool take(struct parser *s, const char *word)
{
    skip_spaces(s);
    size_t n = word_len(s->p);
    if (n != strlen(word) || strncasecmp(s->p, word, n) != 0)
        return false;
    s->p += n;
    return true;
}

static bool take_known(struct parser *s, const char *const *list, size_t n)
{
    skip_spaces(s);
    size_t len = word_len(s->p);
    const char *id = len ? look_up(list, n, s->p, len) : NULL;
    if (!id)
        return false;
    s->p += len;
    return cb_buf_adds(s->out, id) == 0;
}

static bool expression(struct parser *s);

static bool operand(struct parser *s)
{
    if (take(s, "(")) {
        if (++s->depth > DEPTH_MAX)
            return false;
        bool ok = cb_buf_adds(s->out, "(") == 0 && expression(s) && take(s, ")") &&
                  cb_buf_adds(s->out, ")") == 0;
        s->depth--;
        return ok;
    }
    if (!take_known(s, licenses, COUNT(licenses)))
        return false;
    return !take(s, "WITH") ||
           (cb_buf_adds(s->out, " WITH ") == 0 && take_known(s, exceptions, COUNT(exceptions)));
}

static bool expression(struct parser *s)
{
    if (!operand(s))
        return false;
    for (;;) {
        const char *op = take(s, "AND") ? " AND " : take(s, "OR") ? " OR " : NULL;
        if (!op)
            return true;
        if (cb_buf_adds(s->out, op) < 0 || !operand(s))
            return false;
    }
}

char *spdx_license(const char *declared)
{
    CB_AUTO_BUF out = CB_BUF_INIT(4096);
    struct parser s = {.p = declared, .out = &out};
    if (!expression(&s))
        return NULL;
    skip_spaces(&s);
    return *s.p ? NULL : cb_buf_take(&out);
}
