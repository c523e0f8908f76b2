/* What a host may send to the agent: the first byte picks the request, the rest is its payload. */
#include "builder/agent/agent.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fail f;
    if (size == 0)
        return 0;
    struct setup setup = {0};
    struct layer_spec layer = {0};
    struct step_spec step = {0};
    struct resume resume;
    struct copy_spec copy = {0};
    struct frame_entry entry;
    if (data[0] == 0xff)
        (void)resume_parse(&resume, data + 1, size - 1, &f);
    if (data[0] == 0xfe && copy_parse(&copy, data + 1, size - 1, &f) == 0 && copy.to[0] != '/')
        abort();
    if (data[0] == 0xfd && frame_entry_parse(data + 1, size - 1, &entry) &&
        (entry.path[0] == '/' || memmem(entry.path, entry.path_len, "//", 2) ||
         memmem(entry.path, entry.path_len, "/../", 4)))
        abort();
    if (data[0] == 0xfb)
        (void)authorities_take(&setup.authorities, data + 1, size - 1, &f);
    if (data[0] == 0xfc)
        (void)drives_parse(&layer, data + 1, size - 1, &f);
    switch (data[0] % 3) {
    case 0: (void)setup_parse(&setup, data + 1, size - 1, &f); break;
    case 1:
        (void)layer_parse(&layer, data + 1, size - 1, &f);
        for (size_t i = 0; i < layer.secrets.n; i++)
            if (layer.secrets.v[i].path[0] != '/' || strlen(layer.secrets.v[i].path) < 2)
                abort();
        break;
    default:
        if (step_parse(&step, data + 1, size - 1, &f) == 0 && !step.script && step.argv.n == 0)
            abort();
        break;
    }
    setup_release(&setup);
    layer_spec_release(&layer);
    step_release(&step);
    copy_spec_release(&copy);
    return 0;
}
