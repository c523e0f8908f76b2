#include "support/error.h"

#include "support/mem.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void cb_error_clear(struct cb_error *err)
{
    if (!err)
        return;
    free(err->loc.file);
    free(err->loc.path);
    free(err->msg);
    free(err->hint);
    *err = (struct cb_error)CB_ERROR_INIT;
}

void cb_error_cleanup(struct cb_error *err)
{
    int saved = errno;
    cb_error_clear(err);
    errno = saved;
}

int cb_vfail(struct cb_error *err, enum cb_code code, const char *fmt, va_list ap)
{
    if (!err)
        return -(int)code;
    assert(err->code == CB_OK && "an error would be lost under another one");
    err->code = code;
    err->msg = cb_xvasprintf(fmt, ap);
    return -(int)code;
}

int cb_fail(struct cb_error *err, enum cb_code code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int rc = cb_vfail(err, code, fmt, ap);
    va_end(ap);
    return rc;
}

int cb_fail_sys(struct cb_error *err, int sys, const char *fmt, ...)
{
    bool env = sys == ENOSPC || sys == EROFS || sys == EDQUOT;
    enum cb_code code = env ? CB_E_ENV : CB_E_SYS;
    if (!err)
        return -(int)code;
    va_list ap;
    va_start(ap, fmt);
    int rc = cb_vfail(err, code, fmt, ap);
    va_end(ap);
    err->sys = sys;
    char *with = cb_xasprintf("%s: %s", err->msg, strerror(sys));
    free(err->msg);
    err->msg = with;
    if (sys == ENOSPC)
        cb_hint(err, "free some space on that disk (`df -h`), then run the same command again");
    return rc;
}

int cb_wrap(struct cb_error *err, const char *fmt, ...)
{
    if (!err)
        return -(int)CB_E_BUG;
    assert(err->code != CB_OK && "only an error that was raised can be wrapped");
    va_list ap;
    va_start(ap, fmt);
    char *front = cb_xvasprintf(fmt, ap);
    va_end(ap);
    char *with = cb_xasprintf("%s: %s", front, err->msg);
    free(front);
    free(err->msg);
    err->msg = with;
    return -(int)err->code;
}

int cb_hint(struct cb_error *err, const char *fmt, ...)
{
    if (!err)
        return -(int)CB_E_BUG;
    if (!err->hint) {
        va_list ap;
        va_start(ap, fmt);
        err->hint = cb_xvasprintf(fmt, ap);
        va_end(ap);
    }
    return -(int)err->code;
}

int cb_error_move(struct cb_error *to, struct cb_error *from)
{
    int rc = -(int)from->code;
    if (!to) {
        cb_error_clear(from);
        return rc;
    }
    assert(to->code == CB_OK);
    *to = *from;
    *from = (struct cb_error)CB_ERROR_INIT;
    return rc;
}

bool cb_error_is_transient(const struct cb_error *err)
{
    return err && (err->code == CB_E_NET || err->code == CB_E_TIMEOUT);
}

const char *cb_code_name(enum cb_code code)
{
    switch (code) {
    case CB_OK: return "OK";
    case CB_E_CONFIG: return "CONFIG";
    case CB_E_NOTFOUND: return "NOTFOUND";
    case CB_E_CONFLICT: return "CONFLICT";
    case CB_E_LIMIT: return "LIMIT";
    case CB_E_CORRUPT: return "CORRUPT";
    case CB_E_UNTRUSTED: return "UNTRUSTED";
    case CB_E_AUTH: return "AUTH";
    case CB_E_NET: return "NET";
    case CB_E_TIMEOUT: return "TIMEOUT";
    case CB_E_CANCELED: return "CANCELED";
    case CB_E_SYS: return "SYS";
    case CB_E_ENV: return "ENV";
    case CB_E_COMMAND: return "COMMAND";
    case CB_E_BUG: return "BUG";
    case CB_E_N: break;
    }
    return "?";
}
