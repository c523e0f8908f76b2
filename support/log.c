#include "support/log.h"

#include "support/buf.h"
#include "support/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static enum cb_log_level max_level = CB_LOG_WARN;
static const char *const names[] = {"error", "warn", "info", "debug"};

void cb_log_set_level(enum cb_log_level level)
{
    max_level = level;
}

static void add_json(struct cb_buf *b, const char *s)
{
    cb_buf_adds(b, "\"");
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            cb_buf_addf(b, "\\%c", c);
        else if (c < 0x20)
            cb_buf_addf(b, "\\u%04x", c);
        else
            cb_buf_add(b, s, 1);
    }
    cb_buf_adds(b, "\"");
}

void cb_log(enum cb_log_level level, const char *event, ...)
{
    if (level > max_level)
        return;
    CB_AUTO_BUF b = CB_BUF_INIT(64 << 10);
    bool text = isatty(STDERR_FILENO) == 1;
    char ts[CB_RFC3339_LEN + 1];
    cb_rfc3339(cb_now_ms(), ts);
    if (text)
        cb_buf_addf(&b, "%s %s", names[level], event);
    else
        cb_buf_addf(&b, "{\"ts\":\"%s\",\"level\":\"%s\",\"event\":\"%s\"", ts, names[level],
                    event);
    va_list ap;
    va_start(ap, event);
    const char *key;
    while ((key = va_arg(ap, const char *)) != NULL) {
        const char *value = va_arg(ap, const char *);
        if (!value)
            value = "";
        if (text) {
            cb_buf_addf(&b, " %s=%s", key, value);
        } else {
            cb_buf_adds(&b, ",");
            add_json(&b, key);
            cb_buf_adds(&b, ":");
            add_json(&b, value);
        }
    }
    va_end(ap);
    cb_buf_adds(&b, text ? "\n" : "}\n");
    if (b.data)
        (void)!write(STDERR_FILENO, b.data, b.len);
}
