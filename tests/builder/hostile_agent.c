/* A stand-in for the agent that means harm: it comes up as the real one does, in either builder,
 * and then says or does what its own file ends with. tests/e2e/test_hostile.py puts it beside a
 * copy of capsule-build. Static, libc and builder/frames.h. */
#define _GNU_SOURCE
#include "builder/frames.h"
#include "stub_guest.h"

#include <signal.h>
#include <stdint.h>

enum { TRICK_MAX = 64 };

static int host = -1;
static char trick[TRICK_MAX];
static const unsigned char *layer; /* what it hands over as one */
static size_t layer_len;

static bool is(const char *name)
{
    return strcmp(trick, name) == 0;
}

static void put_all(int fd, const void *p, size_t n)
{
    for (const char *at = p; n;) {
        ssize_t w = write(fd, at, n);
        if (w <= 0)
            _exit(1); /* the host has had enough */
        at += w;
        n -= (size_t)w;
    }
}

/* The file's last line is "TRICK NAME LENGTH"; so many bytes before it are the layer. */
static void read_trick(void)
{
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return;
    size_t len = 0, end = (size_t)st.st_size;
    unsigned char *self = malloc(end + 1);
    while (self && len < end) {
        ssize_t n = read(fd, self + len, end - len);
        if (n <= 0)
            return;
        len += (size_t)n;
    }
    close(fd);
    if (!self || len < 2)
        return;
    self[len - 1] = '\0'; /* in the place of the last newline */
    const unsigned char *line = memrchr(self, '\n', len);
    unsigned long tar = 0;
    if (!line || sscanf((const char *)line, "\nTRICK %63s %lu", trick, &tar) != 2 ||
        tar > (size_t)(line - self))
        return;
    layer = line - tar;
    layer_len = tar;
}

static void frame(enum frame_type type, uint32_t step, const uint64_t (*fields)[2], size_t n)
{
    static unsigned char buf[4096];
    struct frame_out o;
    frame_begin(&o, buf, sizeof(buf), type, step);
    for (size_t i = 0; i < n; i++)
        frame_put_number(&o, (enum frame_tag)fields[i][0], fields[i][1]);
    put_all(host, buf, o.len);
}

static void hello(void)
{
    static unsigned char buf[256];
    struct frame_out o;
    frame_begin(&o, buf, sizeof(buf), FRAME_HELLO, 0);
    frame_put_number(&o, TAG_VERSION, FRAME_VERSION);
    frame_put_text(&o, TAG_MODE, "build");
    put_all(host, buf, o.len);
}

static void step_done(uint32_t step)
{
    static const uint64_t fields[][2] = {{TAG_EXIT, 0},    {TAG_SIGNAL, 0}, {TAG_TIMED_OUT, 0},
                                         {TAG_ELAPSED, 1}, {TAG_CPU, 1},    {TAG_RSS, 1}};
    frame(FRAME_STEP_DONE, step, fields, 6);
}

static void power_off(void)
{
    reboot(RB_AUTOBOOT); /* QEMU ends at a reboot */
    _exit(0);
}

/* What the host asked a command for. */
static void on_step(uint32_t step)
{
    static unsigned char junk[65536];
    if (is("garbage")) {
        for (size_t i = 0; i < sizeof(junk); i++)
            junk[i] = (unsigned char)(i * 2654435761u >> 7);
        put_all(host, junk, sizeof(junk));
    } else if (is("length")) {
        frame_store(junk, FRAME_MAGIC, 4);
        frame_store(junk + 4, FRAME_OUTPUT, 2);
        frame_store(junk + 12, UINT32_MAX, 4);
        put_all(host, junk, FRAME_HEAD);
    } else if (is("number")) {
        step_done(step + 1);
    } else if (is("type")) {
        frame(FRAME_LAYER_DONE, 0, NULL, 0);
    } else if (is("off")) {
        power_off();
    } else if (is("exit")) {
        _exit(0); /* as init of a guest: the kernel panics */
    } else if (is("half")) {
        frame_store(junk, FRAME_MAGIC, 4);
        put_all(host, junk, 7);
        _exit(0);
    } else {
        step_done(step);
        return;
    }
    for (;;)
        pause();
}

static int open_output(void)
{
    char path[300], serial[64];
    if (getpid() != 1 || access("/output", F_OK) == 0)
        return open("/output", O_RDWR | O_CLOEXEC);
    for (char c = 'a'; c < 'h'; c++) {
        snprintf(path, sizeof(path), "/sys/block/vd%c/serial", c);
        slurp(path, serial, sizeof(serial));
        snprintf(path, sizeof(path), "/dev/vd%c", c);
        if (strcmp(serial, "output") == 0)
            return open(path, O_RDWR | O_CLOEXEC);
    }
    return -1;
}

static void on_layer_end(void)
{
    uint64_t length = (layer_len + 511) / 512 * 512;
    uint64_t fields[][2] = {
        {TAG_OFFSET, 0}, {TAG_LENGTH, length}, {TAG_ENTRIES, 1}, {TAG_WHITEOUTS, 0}};
    if (is("far"))
        fields[0][1] = UINT64_C(1) << 41;
    if (is("long"))
        fields[1][1] = UINT64_C(1) << 41;
    int fd = open_output();
    for (uint64_t at = 0; fd >= 0 && at < layer_len;) {
        ssize_t n = pwrite(fd, layer + at, layer_len - at, (off_t)at);
        if (n <= 0)
            break;
        at += (uint64_t)n;
    }
    if (fd >= 0)
        (void)fsync(fd);
    frame(FRAME_LAYER_DONE, 0, (const uint64_t(*)[2])fields, 4);
}

static void answer(const struct frame_head *h)
{
    switch (h->type) {
    case FRAME_STEP: on_step(h->step); break;
    case FRAME_LAYER_END: on_layer_end(); break;
    case FRAME_SHUTDOWN:
        frame(FRAME_DONE, 0, NULL, 0);
        power_off();
        break;
    default: frame(FRAME_DONE, 0, NULL, 0); break;
    }
}

int main(int argc, char **argv)
{
    (void)argv;
    static unsigned char in[FRAME_HEAD + FRAME_REQUEST_MAX];
    bool guest = argc < 2 && getpid() == 1;
    if (guest)
        stub_mount();
    read_trick();
    if (is("panic"))
        return 1; /* before a word */
    if (guest)
        stub_devices();
    host = guest ? stub_port() : 3;
    if (host < 0)
        return 1;
    hello();
    for (size_t have = 0;;) {
        struct frame_head h;
        ssize_t n = read(host, in + have, sizeof(in) - have);
        if (n <= 0)
            break;
        have += (size_t)n;
        while (have >= FRAME_HEAD && frame_head_parse(in, FRAME_REQUEST_MAX, &h) &&
               have >= FRAME_HEAD + h.length) {
            answer(&h);
            have -= FRAME_HEAD + h.length;
            memmove(in, in + FRAME_HEAD + h.length, have);
        }
    }
    if (guest)
        power_off();
    return 0;
}
