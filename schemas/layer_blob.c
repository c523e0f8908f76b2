#include "schemas/manifest.h"

#include <stdlib.h>

void layer_blob_release(struct layer_blob *b)
{
    free(b->media_type);
    *b = (struct layer_blob){0};
}
