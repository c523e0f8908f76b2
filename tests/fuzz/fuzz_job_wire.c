/* What a build process may send to its worker, in two pieces: the first byte says where it is cut.
 */
#include "queue/wire.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_message(const struct wire_msg *m)
{
    struct wire_event e;
    struct wire_finish f;
    struct wire_job j;
    uint64_t bytes;
    switch (m->type) {
    case WIRE_EVENT:
        if (wire_event_parse(m, &e, NULL) == 0) {
            if (event_check(e.type, e.payload, NULL) < 0)
                abort();
            json_decref(e.payload);
        }
        break;
    case WIRE_FINISH:
        if (wire_finish_parse(m, &f, NULL) == 0) {
            if (!f.ok && (!f.code || !f.message))
                abort();
            wire_finish_release(&f);
        }
        break;
    case WIRE_JOB:
        if (wire_job_parse(m, &j, NULL) == 0)
            wire_job_release(&j);
        break;
    case WIRE_ACK: (void)wire_ack_parse(m, &bytes, NULL); break;
    case WIRE_DONE: break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    size_t cut = size == 1 ? 0 : data[0] % size;
    data++;
    size--;
    if (cut > size)
        cut = size;
    struct wire_reader r;
    wire_reader_init(&r, WIRE_MAX);
    for (int i = 0; i < 2; i++) {
        const uint8_t *p = i ? data + cut : data;
        size_t n = i ? size - cut : cut;
        struct wire_msg m;
        int rc = 0;
        if (n && wire_feed(&r, p, n) < 0)
            break;
        while ((rc = wire_next(&r, &m, NULL)) > 0)
            read_message(&m);
        if (rc < 0)
            break;
    }
    wire_reader_release(&r);
    return 0;
}
