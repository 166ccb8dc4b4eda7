/*
 * The roles `unpack` and `empty`: write a layer into the present directory, or take everything out of it. Before the
 * first byte of an archive is looked at, the process has no other file system than that directory, no network, only the
 * capabilities that owners and modes take, and only the system calls of this work.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "failure.h"
#include "files.h"
#include "helper.h"
#include "privileges.h"
#include "seccomp.h"
#include "sys.h"
#include "unpack.h"
#include "userns.h"

enum {
  OPEN_FILES_MAX = 512, /* removal holds up to 256 directories */
  MEMORY_BYTES_MAX = 64 << 20,
  PIPE_BYTES = 1 << 20,
};

/* chown, dac_override, fowner, fsetid, setfcap, and sys_admin for trusted.overlay.opaque alone. */
#define CAPABILITIES_OF_LAYERS (1ULL << 0 | 1ULL << 1 | 1ULL << 3 | 1ULL << 4 | 1ULL << 31 | 1ULL << 21)

extern char **environ;

static void report_failure(const char *stage, int error, const char *message) {
  dprintf(STDOUT_FILENO, "error stage=%s errno=%d %s: %s\n", stage, error, message, strerror(error));
}

/* Answers whether files can have more than one owner. */
static int confine(void) {
  if (sys_close_range(STDERR_FILENO + 1, ~0U) < 0) fail("layer", "descriptors");
  for (char **entry = environ; *entry; entry++) memset(*entry, 0, strlen(*entry));
  signal(SIGPIPE, SIG_IGN);
  int many_ids = 1;
  if (geteuid() != 0) many_ids = userns_enter_unprivileged();
  if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET) < 0) fail("namespaces", "unshare");
  /* After the namespace: a descriptor from before belongs to the mounts of the host, which cannot be copied here. */
  int directory = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) fail("layer", "directory");
  if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) fail("mounts", "private");
  int tree = sys_open_tree(directory, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
  if (tree < 0) fail("mounts", "tree");
  struct mount_attributes wanted = {.set = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC};
  if (sys_mount_setattr(tree, 0, &wanted) < 0) fail("mounts", "attributes");
  if (sys_move_mount(tree, "", directory, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
    fail("mounts", "root");
  if (fchdir(tree) < 0 || sys_pivot_root(".", ".") < 0) fail("mounts", "pivot_root");
  if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0) fail("mounts", "the host's root");
  close(tree);
  close(directory);
  umask(0);
  struct rlimit files = {OPEN_FILES_MAX, OPEN_FILES_MAX}, memory = {MEMORY_BYTES_MAX, MEMORY_BYTES_MAX}, core = {0, 0};
  if (setrlimit(RLIMIT_NOFILE, &files) < 0 || setrlimit(RLIMIT_AS, &memory) < 0 || setrlimit(RLIMIT_CORE, &core) < 0)
    fail("layer", "limits");
  privileges_bound(CAPABILITIES_OF_LAYERS);
  privileges_reduce(CAPABILITIES_OF_LAYERS);
  return many_ids;
}

int unpack_main(void) {
  on_failure(report_failure);
  int user_overlay = geteuid() != 0;
  (void)fcntl(STDIN_FILENO, F_SETPIPE_SZ, PIPE_BYTES);
  int many_ids = confine();
  struct unpacker unpacker;
  if (unpack_open(&unpacker, many_ids, user_overlay) < 0) fail("layer", "root");
  seccomp_allow_layers();
  struct frame_reader reader = {0};
  struct frame frame;
  while (!unpacker.finished) {
    int more = frame_reader_next(&reader, &frame);
    if (more < 0) fail("frame", "header");
    if (more == 0) {
      ssize_t got = frame_reader_fill(&reader, STDIN_FILENO);
      if (got < 0) fail("frame", "stdin");
      if (got == 0) fail_with(EPIPE, "frame", "the archive ended early");
      continue;
    }
    if (unpack_frame(&unpacker, &frame) < 0) fail("entry", "%s", unpacker.what);
  }
  if (write(STDOUT_FILENO, "ok\n", 3) != 3) return 1;
  return 0;
}

int empty_main(void) {
  on_failure(report_failure);
  confine();
  seccomp_allow_layers();
  DIR *root = opendir("/");
  if (!root) fail("layer", "root");
  for (struct dirent *entry; (entry = readdir(root));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    if (files_remove_at(dirfd(root), entry->d_name, 1) < 0) fail("entry", "remove");
    rewinddir(root);
  }
  if (write(STDOUT_FILENO, "ok\n", 3) != 3) return 1;
  return 0;
}
