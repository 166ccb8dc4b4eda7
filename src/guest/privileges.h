/* Giving up power for good. All fail with stage `privileges`. */
#ifndef HUTCH_PRIVILEGES_H
#define HUTCH_PRIVILEGES_H

#include <stdint.h>

/* What root inside keeps, over its own user namespace only: the usual set of containers. */
#define CAPABILITIES_INSIDE 0xa00425fbULL
/* Besides, where mounts are its own: CAP_SYS_ADMIN. */
#define CAPABILITIES_MOUNTS 0x200000ULL
/* To reach the mailboxes of keepers, in directories that are theirs alone. */
#define CAPABILITIES_DIALLER 0x2ULL
#define CAPABILITIES_NONE 0ULL

/* Nothing executed from now on can have more than `keep`. Takes CAP_SETPCAP. */
void privileges_bound(uint64_t keep);
/* The caller itself has `keep` and passes none of it on as inheritable. */
void privileges_reduce(uint64_t keep);

#endif
