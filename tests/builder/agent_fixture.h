/* agent_fixture: the agent in build mode as a child process, in namespaces of its own, over plain
 * folders and a socket: what a builder does, without a machine around it. Needs root. */
#pragma once

#include "builder/session.h"
#include "check.h"
#include "support/buf.h"
#include "support/proc.h"

#include <sys/types.h>

enum agent_kind {
    AGENT_NATIVE, /* agentlib in a forked child: under the sanitizers */
    AGENT_STATIC, /* build/capsule-agent */
};

struct agent_fixture {
    char *dir; /* image/ scratch/ output below it */
    pid_t pid;
    int fd;
    struct session *s;
    struct cb_buf out, err, notes; /* all that commands wrote, what the agent noted */
};

/* A small image (shells and core tools of this machine with their libraries) at @path. */
void fixture_make_image(const char *path);
/* What the tests of a program share: a folder, and such an image in it; from fixture_run_tests()
 * on. */
extern char *fixture_work, *fixture_image;
/* A fresh folder in fixture_work. Owned. */
char *fixture_dir(void);
/* cmocka_run_group_tests_name() with the above; 77 where this is not root. */
#define fixture_run_tests(name, tests)                                                             \
    (fixture_needs_root()                                                                          \
         ? 77                                                                                      \
         : cmocka_run_group_tests_name(name, tests, fixture_make_work, fixture_remove_work))
bool fixture_needs_root(void); /* says so when it is not */
int fixture_make_work(void **state);
int fixture_remove_work(void **state);
void fixture_start(struct agent_fixture *f, const char *dir, const char *image,
                   enum agent_kind kind);
/* A native agent in a fresh folder over @image, set up without more than a @runner (or NULL). */
void fixture_begin(struct agent_fixture *f, const char *image, const char *runner);
/* The same in @dir, which is made when it is missing. */
void fixture_begin_in(struct agent_fixture *f, const char *dir, const char *image,
                      const char *runner);
void fixture_stop(struct agent_fixture *f);
/* One script as a step; asserts that the session worked. */
struct step_result fixture_run(struct agent_fixture *f, const char *script);
void fixture_ok(struct agent_fixture *f, const char *script); /* asserts exit code 0, too */
void fixture_layer(struct agent_fixture *f);
/* Ends the layer; the diff as lines (tests/builder/list_tar.py). Owned. */
char *fixture_diff(struct agent_fixture *f);
/* Lines of the tar at [offset, offset + length) of @file, with times when @times. Owned. */
char *fixture_list_tar(const char *file, uint64_t offset, uint64_t length, bool times);
