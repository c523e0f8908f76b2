/* What the tests of machines share: settings with a kernel that all of them use, and talking to the
 * stub agent, one line each way. */
#pragma once

#include "check.h"

#include "builder/machine.h"
#include "support/clock.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum { ANSWER_TIMEOUT_MS = 30000, LINE_MAX_BYTES = 4096 };

static inline struct settings machine_settings(void)
{
    const char *home = getenv("CAPSULE_BUILD_TEST_HOME");
    const char *mirror = getenv("CAPSULE_BUILD_DEBIAN_MIRROR");
    return (struct settings){.home = cb_xstrdup(home ? home : CB_BINARY_DIR "/test-home"),
                             .debian_mirror =
                                 cb_xstrdup(mirror ? mirror : "http://deb.debian.org/debian")};
}

static inline void machine_settings_release(struct settings *s)
{
    free(s->home);
    free(s->debian_mirror);
}

static inline void machine_say(void *arg, const char *text)
{
    (void)arg;
    print_message("%s\n", text);
}

/* Gets the kernel, or says why the test is skipped. */
static inline bool machine_have_kernel(void)
{
    struct settings s = machine_settings();
    struct kernel k = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    int rc = kernel_get(&s, machine_say, NULL, &k, &err);
    if (rc < 0)
        print_message("skipped: %s\n", err.msg);
    kernel_release(&k);
    machine_settings_release(&s);
    return rc == 0;
}

/* One line from the stub, without its newline; "" at the end of the stream or after 30 s. */
static inline char *machine_line(int fd)
{
    char line[LINE_MAX_BYTES];
    size_t n = 0;
    int64_t end = cb_monotonic_ms() + ANSWER_TIMEOUT_MS;
    while (n + 1 < sizeof(line) && cb_monotonic_ms() < end) {
        struct pollfd w = {.fd = fd, .events = POLLIN};
        if (poll(&w, 1, 1000) <= 0)
            continue;
        if (read(fd, &line[n], 1) != 1 || line[n] == '\n')
            break;
        n++;
    }
    return cb_xstrndup(line, n);
}

static inline char *machine_ask(int fd, const char *question)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *line = cb_xasprintf("%s\n", question);
    assert_ok(cb_write_all(fd, line, strlen(line), &err), &err);
    return machine_line(fd);
}

#define assert_answer(fd, question, expected)                                                      \
    do {                                                                                           \
        CB_AUTO_FREE char *answer_ = machine_ask((fd), (question));                                \
        if (strcmp(answer_, (expected)) != 0)                                                      \
            fail_msg("%s: \"%s\", expected \"%s\"", (question), answer_, (expected));              \
    } while (0)

/* A sparse file. Owned path. */
static inline char *machine_disk_file(const char *dir, const char *name, off_t size)
{
    char *path = cb_xasprintf("%s/%s", dir, name);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, size), 0);
    cb_close(fd);
    return path;
}
