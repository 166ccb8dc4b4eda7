/* Giving up power for good. All fail with stage `privileges`. */
#ifndef HUTCH_PRIVILEGES_H
#define HUTCH_PRIVILEGES_H

#include <stdint.h>

/* What root inside keeps, over its own user namespace only: the usual set of containers. */
#define CAPABILITIES_INSIDE 0xa00425fbULL
#define CAPABILITIES_NONE 0ULL

/* Bounds every capability set to `keep` and sets no_new_privs. Takes CAP_SETPCAP. */
void privileges_bound(uint64_t keep);

#endif
