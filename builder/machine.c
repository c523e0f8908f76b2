#include "builder/machine.h"

#include "builder/console.h"
#include "builder/session.h"

#include "support/cleanup.h"
#include "support/file.h"
#include "support/limits.h"
#include "support/mem.h"
#include "support/proc.h"
#include "support/self.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { TAIL_BYTES = 32 << 10, HELLO_TIMEOUT_MS = 30000 };

static volatile sig_atomic_t canceled;

void machine_cancel(void)
{
    canceled = 1;
}

bool machine_canceled(void)
{
    return canceled != 0;
}

int64_t machine_limit(const struct machine *m, int64_t ms)
{
    return m->emulated ? ms * EMULATION_FACTOR : ms;
}

int session_with(struct machine *m, int64_t most_ms, const struct session_callbacks *cb,
                 struct session **out, struct cb_error *err)
{
    int64_t hello = machine_limit(m, HELLO_TIMEOUT_MS);
    int stream = m->stream;
    m->stream = -1;
    int64_t wait = most_ms && most_ms < hello ? most_ms : hello;
    int rc = m->resumed ? session_open_resumed(stream, wait, cb, out, err)
             : m->parks ? session_open_parking(stream, wait, cb, out, err)
                        : session_open(stream, wait, cb, out, err);
    if (rc >= 0 && m->emulated)
        session_scale(*out, EMULATION_FACTOR);
    return rc;
}

void machine_identity_release(struct machine_identity *id)
{
    free(id->qemu);
    free(id->machine);
    free(id->cpu);
    free(id->network);
    *id = (struct machine_identity){0};
}

/* Two measurements of one clock differ by less. */
static bool same_rate(uint32_t a, uint32_t b)
{
    uint32_t more = a > b ? a : b, less = a > b ? b : a;
    return (more == 0) == (less == 0) && more - less <= more / 50;
}

char *machine_identity_differs(const struct machine_identity *saved,
                               const struct machine_identity *here)
{
    const struct {
        const char *what, *was, *is;
    } texts[] = {{"QEMU", saved->qemu, here->qemu},
                 {"the machine type", saved->machine, here->machine},
                 {"the CPU", saved->cpu, here->cpu},
                 {"the network", saved->network, here->network}};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        const char *was = texts[i].was ? texts[i].was : "unknown";
        const char *is = texts[i].is ? texts[i].is : "unknown";
        if (strcmp(was, is) != 0)
            return cb_xasprintf("%s is %s here, it was saved with %s", texts[i].what, is, was);
    }
    if (!cb_digest_eq(&saved->cmdline, &here->cmdline))
        return cb_xstrdup("the kernel is told something else here");
    if (saved->vcpus != here->vcpus)
        return cb_xasprintf("it has %u CPUs here, it was saved with %u", here->vcpus, saved->vcpus);
    if (saved->memory_mib != here->memory_mib)
        return cb_xasprintf("it has %u MiB here, it was saved with %u", here->memory_mib,
                            saved->memory_mib);
    if (!same_rate(saved->tsc_khz, here->tsc_khz))
        return cb_xasprintf("the CPU counts at %u kHz here, it was saved at %u", here->tsc_khz,
                            saved->tsc_khz);
    return NULL;
}

char *machine_agent(void)
{
    return cb_find_beside("capsule-agent");
}

/* The last TAIL_BYTES of a file; "" when it cannot be read. */
static char *read_tail(const char *path)
{
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    CB_AUTO_BUF b = CB_BUF_INIT(TAIL_BYTES);
    CB_AUTO_FD fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return cb_xstrdup("");
    off_t at = st.st_size > TAIL_BYTES ? st.st_size - TAIL_BYTES : 0;
    size_t n = (size_t)(st.st_size - at);
    CB_AUTO_FREE char *raw = cb_xmalloc(n + 1);
    if (cb_pread_all(fd, raw, n, at, &ignored) < 0)
        return cb_xstrdup("");
    for (size_t i = 0; i < n; i++)
        if (!raw[i])
            raw[i] = ' ';
    (void)cb_buf_add(&b, raw, n);
    return cb_buf_take(&b);
}

/* Serial consoles end lines with CR LF and programs colour them: CR goes, other control characters
 * become ^X, bytes that are no ASCII stay (UTF-8). */
static void add_visible(struct cb_buf *out, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        if (c == '\r')
            continue;
        if ((c < 32 && c != '\n' && c != '\t') || c == 127)
            (void)cb_buf_addf(out, "^%c", c ^ 64);
        else
            (void)cb_buf_add(out, &p[i], 1);
    }
}

#define PANIC "Kernel panic - not syncing: "

/* A kernel that panics says why and then much else: of @lines half are from there on, the others
 * from before. Moves @at, where they begin; the end of them. */
static size_t from_panic(const char *raw, size_t n, size_t *at, unsigned lines)
{
    const char *last = NULL;
    for (const char *p = raw; (p = strstr(p, PANIC)) && p < raw + *at; p++)
        last = p;
    if (!last || lines < 2)
        return n;
    for (unsigned before = 0; last > raw && (last[-1] != '\n' || before++ < lines / 2); last--)
        ;
    *at = (size_t)(last - raw);
    for (n = *at; raw[n] && (raw[n] != '\n' || --lines); n++)
        ;
    return n;
}

char *machine_console_tail(const struct machine *m, unsigned lines)
{
    CB_AUTO_BUF out = CB_BUF_INIT((size_t)4 * TAIL_BYTES);
    console_sync(m->console_log);
    CB_AUTO_FREE char *raw = read_tail(m->console);
    size_t n = strlen(raw);
    while (n && (raw[n - 1] == '\n' || raw[n - 1] == '\r'))
        n--;
    size_t at = n;
    for (unsigned seen = 0; at > 0; at--)
        if (raw[at - 1] == '\n' && ++seen == lines)
            break;
    n = from_panic(raw, n, &at, lines);
    if (lines)
        add_visible(&out, raw + at, n - at);
    return cb_buf_take(&out);
}

/* Why the guest's kernel gave up, or NULL. Owned. */
static char *panic_text(const struct machine *m)
{
    CB_AUTO_BUF out = CB_BUF_INIT((size_t)4 * TAIL_BYTES);
    console_sync(m->console_log);
    CB_AUTO_FREE char *raw = read_tail(m->console);
    const char *panic = strstr(raw, PANIC);
    if (!panic)
        return NULL;
    add_visible(&out, panic + strlen(PANIC), strcspn(panic + strlen(PANIC), "\n"));
    return cb_buf_take(&out);
}

char *machine_end_text(struct machine *m)
{
    if (!m->ended) {
        if (m->pid <= 0 || waitpid(m->pid, &m->status, WNOHANG) != m->pid)
            return NULL;
        m->ended = true;
    }
    char st[64];
    cb_status_text(m->status, st, sizeof(st));
    if (WIFEXITED(m->status) && WEXITSTATUS(m->status) == 0) {
        /* a kernel that panics is told to start anew, which is QEMU's end */
        CB_AUTO_FREE char *panic = panic_text(m);
        return panic ? cb_xasprintf("%s: the guest's kernel panicked: %s", m->program, panic)
                     : cb_xasprintf("%s: powered off", m->program);
    }
    struct machine log = {.console = m->log};
    console_sync(m->console_log); /* a container's log is its console */
    CB_AUTO_FREE char *last = machine_console_tail(&log, 1);
    return cb_xasprintf("%s: %s%s%s", m->program, st, *last ? ": " : "", last);
}

void machine_wait_end(struct machine *m, int64_t timeout_ms)
{
    enum { STEP_MS = 100 }; /* between two looks whether somebody wants us to stop */
    CB_AUTO_ERROR ignored = CB_ERROR_INIT;
    for (; !m->ended && m->pid > 0 && timeout_ms > 0 && !machine_canceled(); timeout_ms -= STEP_MS)
        m->ended = cb_proc_wait(m->pid, STEP_MS, &m->status, &ignored) == 1;
}
