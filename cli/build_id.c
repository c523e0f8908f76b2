/* Apart, because it is compiled again whenever any file of ours changes. */
#include "cli/cli.h"

#include "cb_build_id.h"

const char cli_version[] = CB_VERSION;
const char cli_build_id[] = CB_BUILD_ID;
