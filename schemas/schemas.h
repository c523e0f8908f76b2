/* The door of schemas/: text from outside becomes checked structs, and back. No input or output
 * beyond reading a file. */
#pragma once

#include "schemas/attest.h"
#include "schemas/build_options.h"
#include "schemas/config.h"
#include "schemas/docker_archive.h"
#include "schemas/event.h"
#include "schemas/keys.h"
#include "schemas/manifest.h"
#include "schemas/network_policy.h"
#include "schemas/oci.h"
#include "schemas/reference.h"
#include "schemas/settings.h"
