/* config_fields: what is between config.c and the files that read and check the model. Private to
 * schemas/. */
#pragma once

#include "schemas/reader.h"

/* Reads the whole document into @c. */
void config_read(struct reader *r, struct workload_config *c);

/* Field readers and checks that several tables use (config_commands.c, config_layers.c). */
bool read_commands(struct reader *r, const struct at *at, const struct doc_node *n,
                   const struct field *f, void *to); /* struct commands */
bool read_layers(struct reader *r, const struct at *at, const struct doc_node *n,
                 const struct field *f, void *to); /* struct workload_config */
bool read_task(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to); /* char *: canonical JSON */
void command_release(struct command *c);
extern const struct field command_fields[];
extern const struct field layer_fields[];
bool read_absolute_path(struct reader *r, const struct at *at, const struct doc_node *n,
                        const struct field *f, void *to); /* char * */
bool read_user(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to); /* char * */

bool read_id(struct reader *r, const struct at *at, const struct doc_node *n, const struct field *f,
             void *to); /* char *: fit for the name of a file */
bool read_inner_path(struct reader *r, const struct at *at, const struct doc_node *n,
                     const struct field *f, void *to); /* char *: relative, without ".." */
bool user_valid(const char *text);
/* network_policy.c */
bool read_host(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to); /* char * */
bool read_hosts(struct reader *r, const struct at *at, const struct doc_node *n,
                const struct field *f, void *to); /* cb_strv: host_pattern_valid() */
bool read_network_policy(struct reader *r, const struct at *at, const struct doc_node *n,
                         const struct field *f, void *to); /* char *: canonical JSON */
/* config_trust.c */
#define VARIABLE_ACCEPTS "the name of a variable: NAME or ${NAME}"
bool read_variable(struct reader *r, const struct at *at, const struct doc_node *n,
                   const struct field *f, void *to); /* char *: as it is written */
bool read_credentials(struct reader *r, const struct at *at, const struct doc_node *n,
                      const struct field *f, void *to); /* char *: canonical JSON */
bool read_auth(struct reader *r, const struct at *at, const struct doc_node *n,
               const struct field *f, void *to); /* char *: canonical JSON */

/* Limits of the language. */
#define CONFIG_LAYERS_MAX 256u
#define CONFIG_COMMANDS_MAX 1000u        /* of one list */
#define CONFIG_COMMANDS_TOTAL_MAX 10000u /* of a config */
#define CONFIG_STEP_MS_MAX (INT64_C(7) * 24 * 3600 * 1000)
#define CONFIG_NAME_MAX 128
