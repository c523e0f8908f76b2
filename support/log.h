/* log: what an operator of the program reads, on stderr: text on a terminal, else JSON lines.
 * Build output is data (events), not logging. Secrets, tokens and environment values never go in.
 */
#pragma once

enum cb_log_level { CB_LOG_ERROR, CB_LOG_WARN, CB_LOG_INFO, CB_LOG_DEBUG };

/* Messages above @level are dropped. Default: CB_LOG_WARN. */
void cb_log_set_level(enum cb_log_level level);
/* @event is a stable word ("job.claimed"); then key, value pairs of strings, ended by NULL. */
void cb_log(enum cb_log_level level, const char *event, ...) __attribute__((sentinel));
