/* What a guest may send: the session reads it as the answers to one of each request. */
#include "builder/session.h"
#include "support/cleanup.h"

#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void on_output(void *arg, uint32_t step, int stream, const void *data, size_t len)
{
    (void)arg;
    (void)step;
    (void)data;
    if ((stream != STREAM_STDOUT && stream != STREAM_STDERR) || len == 0 || len > 32768)
        abort();
}

static void on_note(void *arg, const char *text)
{
    (void)arg;
    for (; *text; text++)
        if ((unsigned char)*text < ' ')
            abort();
}

static void talk(struct session *s, bool is_shell)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *how = NULL;
    struct step_result r = {0};
    struct guest_diff d = {0};
    const struct guest_setup g = {.hostname = "h"};
    const struct guest_layer l = {.name = "l"};
    const struct guest_step st = {.step = 1, .script = "true"};
    if (session_setup(s, &g, &err) < 0)
        return;
    if (session_layer_begin(s, &l, &err) < 0)
        return;
    const struct shell_io io = {.input = -1, .resized = -1};
    int rc = is_shell ? session_shell(s, &st, &io, &r, &err) : session_step(s, &st, &r, &err);
    if (rc == 0 && (r.exit_code < 0 || r.exit_code > 255 || r.signal < 0 || r.signal > 64 ||
                    r.limit >= LIMIT_KIND_END))
        abort();
    cb_error_clear(&err);
    if (session_layer_end(s, &d, &err) == 0 && (d.offset + d.length < d.offset || d.offset % 4096))
        abort();
    cb_error_clear(&err);
    if (session_wait_ready(s, 1000, &how, &err) >= 0 && !how)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int pair[2];
    struct session *s = NULL;
    const struct session_callbacks cb = {.output = on_output, .note = on_note};
    (void)signal(SIGPIPE, SIG_IGN);
    if (size > 100000 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return 0;
    /* All of it fits the socket's buffer; then the stream ends for the reader, so nothing waits. */
    if (write(pair[1], data, size) == (ssize_t)size) {
        (void)shutdown(pair[1], SHUT_WR);
        if (session_open(pair[0], 1000, &cb, &s, &err) == 0)
            talk(s, size % 2); /* a step's answers are a shell's, but for one */
        session_free(s);
    } else {
        cb_close(pair[0]);
    }
    cb_close(pair[1]);
    return 0;
}
