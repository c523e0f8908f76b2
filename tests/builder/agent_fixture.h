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
void fixture_start(struct agent_fixture *f, const char *dir, const char *image,
                   enum agent_kind kind);
void fixture_stop(struct agent_fixture *f);
/* One script as a step; asserts that the session worked. */
struct step_result fixture_run(struct agent_fixture *f, const char *script);
void fixture_layer(struct agent_fixture *f);
/* Ends the layer; the diff as lines (tests/builder/list_tar.py). Owned. */
char *fixture_diff(struct agent_fixture *f);
/* Lines of the tar at [offset, offset + length) of @file, with times when @times. Owned. */
char *fixture_list_tar(const char *file, uint64_t offset, uint64_t length, bool times);
