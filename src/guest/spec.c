#include "spec.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "failure.h"

static _Noreturn void refuse(const char *key, const char *expected) {
  fail_with(EINVAL, "spec", "%.32s: %s", key, expected);
}

static char *absolute(const char *key, char *value) {
  if (value[0] != '/') refuse(key, "an absolute path is wanted");
  return value;
}

static uint32_t number(const char *key, const char *value, uint32_t min, uint32_t max) {
  char *end;
  errno = 0;
  unsigned long long parsed = strtoull(value, &end, 10);
  if (value[0] < '0' || value[0] > '9' || *end || errno || parsed < min || parsed > max)
    refuse(key, "a number in range is wanted");
  return (uint32_t)parsed;
}

static void once(const char *key, char **slot, char *value) {
  if (*slot) refuse(key, "given twice");
  if (!value[0]) refuse(key, "empty");
  *slot = value;
}

static void append(const char *key, char **list, size_t *count, size_t max, char *value) {
  if (*count == max) refuse(key, "too many");
  list[(*count)++] = value;
}

static void add_mount(struct spec *spec, const char *key, char *value, int writable) {
  char *colon = strrchr(value, ':');
  if (!colon) refuse(key, "source:target is wanted");
  if (spec->mount_count == SPEC_MOUNTS_MAX) refuse(key, "too many");
  *colon = 0;
  struct spec_mount *mount = &spec->mounts[spec->mount_count++];
  mount->source = absolute(key, value);
  mount->target = absolute(key, colon + 1);
  mount->writable = writable;
  if (!mount->target[1]) refuse(key, "the target cannot be the root");
}

/* A mask that covers nothing would leave open what it was made to hide. */
static void add_mask(struct spec *spec, const char *key, char *value) {
  char *colon = strrchr(value, ':');
  if (!colon) refuse(key, "layer:target is wanted");
  *colon = 0;
  for (size_t i = 0; i < spec->mount_count; i++) {
    struct spec_mount *mount = &spec->mounts[i];
    if (!mount->writable || strcmp(mount->target, colon + 1)) continue;
    once(key, &mount->mask, absolute(key, value));
    return;
  }
  refuse(key, "an overlay with this target is wanted before it");
}

static void set_key(struct spec *spec, const char *key, char *value) {
  if (!strcmp(key, "id")) once(key, &spec->id, value);
  else if (!strcmp(key, "hostname")) once(key, &spec->hostname, value);
  else if (!strcmp(key, "dir")) once(key, &spec->dir, absolute(key, value));
  else if (!strcmp(key, "workdir")) once(key, &spec->workdir, absolute(key, value));
  else if (!strcmp(key, "disktemplate")) once(key, &spec->disk_template, absolute(key, value));
  else if (!strcmp(key, "ownmounts")) {
    once(key, &spec->own_mounts, absolute(key, value));
    if (!value[1]) refuse(key, "the root cannot be it");
  } else if (!strcmp(key, "layer")) append(key, spec->layers, &spec->layer_count, SPEC_LAYERS_MAX, absolute(key, value));
  else if (!strcmp(key, "overlay")) add_mount(spec, key, value, 1);
  else if (!strcmp(key, "bind")) add_mount(spec, key, value, 0);
  else if (!strcmp(key, "mask")) add_mask(spec, key, value);
  else if (!strcmp(key, "cgroup1"))
    append(key, spec->cgroups1, &spec->cgroup1_count, SPEC_CGROUPS_MAX, absolute(key, value));
  else if (!strcmp(key, "cgroup2")) once(key, &spec->cgroup2, absolute(key, value));
  else if (!strcmp(key, "programs")) once(key, &spec->programs[0], absolute(key, value));
  else if (!strcmp(key, "programsstat")) once(key, &spec->programs_stat[0], absolute(key, value));
  else if (!strcmp(key, "programsmemory")) once(key, &spec->programs[1], absolute(key, value));
  else if (!strcmp(key, "programsmemorystat")) once(key, &spec->programs_stat[1], absolute(key, value));
  else if (!strcmp(key, "exec")) append(key, spec->exec, &spec->exec_count, SPEC_EXEC_MAX, value);
  else if (!strcmp(key, "uidbase")) {
    if (spec->has_uidbase) refuse(key, "given twice");
    /* Two ranges: the instance's own, and the one whose first uid the keeper has. */
    spec->uidbase = number(key, value, UID_RANGE, UINT32_MAX - 2 * UID_RANGE);
    spec->has_uidbase = 1;
  } else if (!strcmp(key, "pidsmax")) spec->pids_max = number(key, value, 1, 1 << 22);
  else if (!strcmp(key, "programsmax")) spec->programs_max = number(key, value, 1, 1 << 22);
  else if (!strcmp(key, "shmmb")) spec->shm_mb = number(key, value, 1, 1 << 20);
  else if (!strcmp(key, "disk")) {
    if (!strcmp(value, "loop")) spec->disk = DISK_LOOP;
    else if (!strcmp(value, "dir")) spec->disk = DISK_DIRECTORY;
    else refuse(key, "loop or dir is wanted");
  } else if (!strcmp(key, "transient")) {
    if (strcmp(value, "yes")) refuse(key, "yes is wanted");
    spec->transient = 1;
  } else if (!strcmp(key, "pids")) {
    if (strcmp(value, "own")) refuse(key, "own is wanted");
    spec->own_pids = 1;
  } else if (!strcmp(key, "lastpid")) {
    spec->last_pid = number(key, value, 1, 1 << 22);
  } else if (!strcmp(key, "api")) {
    if (strcmp(value, "no")) refuse(key, "no is wanted");
    spec->without_api = 1;
  } else if (!strcmp(key, "seccomp")) {
    if (!strcmp(value, "default")) spec->seccomp = 1;
    else if (!strcmp(value, "none")) spec->seccomp = 0;
    else refuse(key, "default or none is wanted");
  } else refuse(key, "unknown key");
}

void spec_parse(struct spec *spec, char *text, size_t length) {
  memset(spec, 0, sizeof *spec);
  spec->seccomp = 1;
  spec->shm_mb = SHM_MB_DEFAULT;
  if (length > 0 && text[length - 1]) refuse("input", "the last entry is not ended by NUL");
  for (char *entry = text; entry < text + length;) {
    char *next = entry + strlen(entry) + 1;
    char *equals = strchr(entry, '=');
    if (!equals) refuse("input", "an entry without =");
    *equals = 0;
    set_key(spec, entry, equals + 1);
    entry = next;
  }
  if (!spec->id) refuse("id", "missing");
  if (!spec->hostname) spec->hostname = spec->id;
  if (!spec->dir) refuse("dir", "missing");
  if (spec->layer_count == 0) refuse("layer", "missing");
  static char root[] = "/";
  if (!spec->workdir) spec->workdir = root;
}
