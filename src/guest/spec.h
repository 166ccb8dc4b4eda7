/* The launcher's specification: the key=value entries of docs/guest-protocol.md. */
#ifndef HUTCH_SPEC_H
#define HUTCH_SPEC_H

#include <stddef.h>
#include <stdint.h>

enum {
  SPEC_BYTES_MAX = 64 * 1024,
  SPEC_LAYERS_MAX = 128,
  SPEC_MOUNTS_MAX = 64,
  SPEC_CGROUPS_MAX = 16,
  SPEC_EXEC_MAX = 32,
  UID_RANGE = 65536,
  SHM_MB_DEFAULT = 64,
};

enum disk_kind { DISK_DIRECTORY, DISK_LOOP };

struct spec_mount {
  char *source, *target;
  char *mask; /* a read-only layer above the source of an overlay; NULL: none */
  int writable; /* 1: overlay, 0: read-only bind */
};

struct spec {
  char *id, *hostname, *dir, *workdir, *cgroup2, *disk_template, *own_mounts, *programs[2], *programs_stat[2];
  char *layers[SPEC_LAYERS_MAX];
  size_t layer_count;
  struct spec_mount mounts[SPEC_MOUNTS_MAX];
  size_t mount_count;
  char *cgroups1[SPEC_CGROUPS_MAX];
  size_t cgroup1_count;
  char *exec[SPEC_EXEC_MAX + 1];
  size_t exec_count;
  int has_uidbase;
  uint32_t uidbase;
  uint32_t pids_max; /* 0: no limit by RLIMIT_NPROC */
  uint32_t programs_max; /* 0: programs may fork as much as process 1 */
  uint32_t shm_mb; /* size of /dev/shm */
  enum disk_kind disk;
  int seccomp;
  int transient; /* ends with the launcher */
  int own_pids; /* its user namespace owns its pid namespace, where processes that were elsewhere can have their pids */
  uint32_t last_pid; /* process ids that are left for them; 0: none */
  int without_api; /* nobody listens on API_PORT inside: it is free for programs */
};

/* Parses in place: the strings of `spec` stay inside `text`. Fails with stage `spec`. */
void spec_parse(struct spec *spec, char *text, size_t length);

#endif
