/* The door of layers/: image content. */
#pragma once

#include "layers/flatten.h"
#include "layers/image.h"
#include "layers/prefix.h"
#include "layers/store.h"
