#include "layers/export_private.h"
int export_make_disk(struct export *x, struct cb_error *err)
{
    return cb_fail(err, CB_E_CONFIG, "--format %s: not here yet", export_format_name(x->s->format));
}
