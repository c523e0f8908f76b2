/* The session's part of a shell: input towards the guest, one piece at a time. */
#include "builder/session_wire.h"

#include "support/cleanup.h"
#include "support/clock.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

struct talk_in {
    const struct shell_io *io;
    bool open;  /* there may be more input */
    bool asked; /* the guest has not said TAKEN yet */
    bool size;  /* the terminal has another size now */
};

static int send_size(struct session *s, struct talk_in *t, struct cb_error *err)
{
    struct frame_out o;
    unsigned rows = 0, cols = 0;
    t->io->size(t->io->arg, &rows, &cols);
    t->size = false;
    t->asked = true;
    sess_begin(s, &o, FRAME_INPUT, s->step);
    frame_put_number(&o, TAG_ROWS, rows ? rows : 24);
    frame_put_number(&o, TAG_COLS, cols ? cols : 80);
    return sess_send(s, &o, err);
}

static int send_input(struct session *s, struct talk_in *t, struct cb_error *err)
{
    struct frame_out o;
    char buf[FRAME_INPUT_MAX];
    ssize_t n = read(t->io->input, buf, sizeof buf);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    sess_begin(s, &o, FRAME_INPUT, s->step);
    if (n > 0)
        frame_put(&o, TAG_DATA, buf, (size_t)n);
    else
        frame_put_number(&o, TAG_END, 1);
    t->open = n > 0;
    t->asked = true;
    return sess_send(s, &o, err);
}

/* What of the terminal and the input can be sent now. */
static int look(struct session *s, struct talk_in *t, struct cb_error *err)
{
    char trash[64];
    struct pollfd p[2] = {{.fd = t->io->resized, .events = POLLIN},
                          {.fd = t->open && !t->asked ? t->io->input : -1, .events = POLLIN}};
    if (poll(p, 2, 0) < 0)
        return errno == EINTR ? 0 : cb_fail_sys(err, errno, "poll");
    if (p[0].revents && t->io->size) {
        t->size = true;
        while (read(t->io->resized, trash, sizeof trash) == (ssize_t)sizeof trash)
            ;
    }
    return p[1].revents ? send_input(s, t, err) : 0;
}

/* 1 and *@out when the command ended. */
static int on_answer(struct session *s, struct talk_in *t, const struct reply *r,
                     struct step_result *out, struct cb_error *err)
{
    if (r->type == FRAME_TAKEN && t->asked) {
        t->asked = false;
        sess_pop(s, r);
        return 0;
    }
    if (r->type == FRAME_FAILED) {
        int rc = sess_raise_failed(s, r, err);
        if (!s->dead)
            sess_pop(s, r);
        return rc;
    }
    if (r->type != FRAME_STEP_DONE)
        return sess_untrusted(s, err, "an answer of the wrong kind");
    int rc = sess_step_result(s, r, out, err);
    return rc < 0 ? rc : 1;
}

int session_shell(struct session *s, const struct guest_step *st, const struct shell_io *io,
                  struct step_result *out, struct cb_error *err)
{
    struct frame_out o;
    struct talk_in t = {.io = io, .open = true};
    unsigned rows = 0, cols = 0;
    sess_begin(s, &o, FRAME_SHELL, st->step);
    sess_put_step(&o, st);
    if (io->size) {
        io->size(io->arg, &rows, &cols);
        frame_put_number(&o, TAG_ROWS, rows ? rows : 24);
        frame_put_number(&o, TAG_COLS, cols ? cols : 80);
    }
    s->step = st->step;
    int rc = sess_send(s, &o, err);
    while (rc == 0) {
        struct reply r = {0};
        /* while a piece is on its way the next one waits in its own descriptor */
        const int fds[2] = {io->resized, t.open && !t.asked ? io->input : -1};
        if (t.size && !t.asked)
            rc = send_size(s, &t, err);
        if (rc == 0)
            rc = sess_next_or(s, fds, INT64_MAX / 2, &r, err);
        if (rc == 0)
            rc = on_answer(s, &t, &r, out, err);
        else if (rc == 1)
            rc = look(s, &t, err);
    }
    return rc < 0 ? rc : 0;
}

int session_shutdown_keeping(struct session *s, struct cb_error *err)
{
    struct frame_out o;
    sess_begin(s, &o, FRAME_SHUTDOWN, 0);
    frame_put_number(&o, TAG_KEEP, 1);
    int rc = sess_ask(s, &o, SETUP_MS * s->factor, err);
    return rc < 0 ? cb_wrap(err, "write the state to the disk") : 0;
}
