/* First byte: the event type; the rest: a payload as it arrives. What the check accepts can be
 * read. */
#include "schemas/event.h"
#include "support/limits.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    json_auto_t *o = json_loadb((const char *)data + 1, size - 1, JSON_REJECT_DUPLICATES, NULL);
    if (!o)
        return 0;
    enum event_type t = (enum event_type)(data[0] % (EVENT_TYPE_N + 1));
    if (event_check(t, o, NULL) == 0 && t == EVENT_OUTPUT) {
        CB_AUTO_BUF out = CB_BUF_INIT(CB_EVENT_MAX);
        if (event_output_bytes(o, &out, NULL) < 0)
            abort();
    }
    return 0;
}
