/* boot_conf: the agent's boot file in the finished image, /.capsule/boot.conf: lines "key value",
 * where a value has "\n" for a newline and "\\" for a backslash. Keys that may repeat keep their
 * order.
 *
 *     hostname NAME          env K=V            start-arg WORD      command
 *     port NUMBER            user NAME          start-env K=V       command-script TEXT
 *     health PATH            workdir PATH                           command-arg WORD
 *     default-user NAME      default-workdir PATH                   command-env K=V
 *     init NAME                                                     command-root 1
 *                                                                   command-timeout MS
 *                                                                   command-user NAME
 *                                                                   command-workdir PATH
 *     drive LABEL        drive-path PATH                            command-start 1
 *     drive-own 1        drive-read-only 1
 *
 * "command" begins a boot command, the "command-" lines after it belong to it. One with
 * command-start goes on running: the next does not wait for its end. So for "drive": a disk with
 * that label is mounted there; with drive-own its root folder is given to the default user. */
#pragma once

#include "schemas/manifest.h"
#include "support/buf.h"

#define BOOT_CONF_PATH "/.capsule/boot.conf"
#define BOOT_AGENT_PATH "/.capsule/agent"
#define BOOT_CONF_MAX (1u << 20) /* what the agent reads */

/* Appends the file's text to @out. -CB_E_CONFIG for a boot command of a type that does not run at
 * boot, -CB_E_LIMIT above BOOT_CONF_MAX. Same input, same bytes. */
int boot_conf_dump(const struct boot_info *b, const struct config_pairs *default_env,
                   const char *default_user, const char *default_workdir, struct cb_buf *out,
                   struct cb_error *err);
/* The same for the drives of @c. */
int boot_conf_drives(const struct workload_config *c, struct cb_buf *out, struct cb_error *err);
