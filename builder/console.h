/* console: what a guest's serial line or a container's stderr says, kept in a file of bounded size.
 * The other side gets a pipe, never the file: a hostile guest can neither fill the disk nor open
 * the file through its own descriptors. A thread of ours drains the pipe. Private to builder/. */
#pragma once

#include "support/error.h"

struct console;
/* Makes (or empties) the file at @path. *@write_end is the pipe's end for the child; owned, close
 * it when the child has it. *@out is owned: console_close(). */
int console_open(const char *path, struct console **out, int *write_end, struct cb_error *err);
/* Waits until what was written so far is in the file (not long). NULL is fine. */
void console_sync(struct console *c);
/* Takes what is still in the pipe, ends the thread. NULL is fine. */
void console_close(struct console *c);
