/* self: what belongs to this installation: the programs that were installed with the running one.
 */
#pragma once

/* The program @name of this installation: beside the running one, or in ../libexec/capsule-build of
 * it. Owned, or NULL when it is in neither. */
char *cb_find_beside(const char *name);
