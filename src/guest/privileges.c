#define _GNU_SOURCE
#include "privileges.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/prctl.h>

#include "failure.h"
#include "sys.h"

enum { CAPABILITIES_MAX = 64 };

void privileges_bound(uint64_t keep) {
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0) fail("privileges", "ambient capabilities");
  for (int capability = 0; capability < CAPABILITIES_MAX; capability++) {
    if (keep >> capability & 1) continue;
    /* EINVAL: past the last capability of this kernel. */
    if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0) {
      if (errno == EINVAL) break;
      fail("privileges", "capability %d cannot be dropped", capability);
    }
  }
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) fail("privileges", "no_new_privs");
}

void privileges_reduce(uint64_t keep) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[2] = {
      {.effective = (uint32_t)keep, .permitted = (uint32_t)keep},
      {.effective = (uint32_t)(keep >> 32), .permitted = (uint32_t)(keep >> 32)},
  };
  if (syscall(SYS_capset, &header, data) < 0) fail("privileges", "capset");
}
