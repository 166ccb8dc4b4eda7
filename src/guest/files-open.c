/* Handing an open file over to the host, which sends it on without another copy of its bytes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "files.h"
#include "handover.h"

enum { PIPE_BYTES = 1 << 20 };

ssize_t files_receive(struct worker *worker, void *bytes, size_t length) {
  return receive_beside(worker->fd, bytes, length, &worker->descriptors);
}

/* Where reading what is in memory never waits for a program: not FUSE, and nothing that is made up while it is read. */
static int is_ordinary(int fd) {
  static const uint32_t ordinary[] = {
    0x794c7630, /* overlay */
    0xef53, /* ext2 to ext4 */
    0x01021994, /* tmpfs */
    0x58465342, /* xfs */
    0x9123683e, /* btrfs */
  };
  struct statfs fs;
  if (fstatfs(fd, &fs) < 0) return 0;
  for (size_t i = 0; i < sizeof ordinary / sizeof *ordinary; i++) {
    if ((uint32_t)fs.f_type == ordinary[i]) return 1;
  }
  return 0;
}

/* The device, or -1 where a program has put something else in its place. */
static int open_null(void) {
  struct stat stat;
  int fd = open("/dev/null", O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) return -1;
  if (fstat(fd, &stat) == 0 && S_ISCHR(stat.st_mode) && stat.st_rdev == makedev(1, 3)) return fd;
  close(fd);
  return -1;
}

/*
 * Waits here, in the sandbox, for what the disk has to give, so that the host need not. The pages pass through a pipe
 * and are not copied. 0, or -1: it cannot be read to its end like this.
 */
static int bring_to_memory(int fd, uint64_t size) {
  static int ends[2] = {-1, -1}, null = -1;
  if (ends[0] < 0) {
    if (null < 0) null = open_null();
    if (null < 0 || pipe2(ends, O_CLOEXEC) < 0) return -1;
    (void)!fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES);
  }
  for (off_t at = 0; (uint64_t)at < size;) {
    ssize_t held = splice(fd, &at, ends[1], NULL, PIPE_BYTES, SPLICE_F_NONBLOCK);
    if (held <= 0) return -1;
    while (held > 0) {
      ssize_t dropped = splice(ends[0], NULL, null, NULL, (size_t)held, 0);
      if (dropped < 0 && errno == EINTR) continue;
      if (dropped <= 0) _exit(1); /* what is left in the pipe would belong to the next file */
      held -= dropped;
    }
  }
  return 0;
}

int files_hand_over(const struct worker *worker, int fd, const struct stat *stat, uint64_t min, uint64_t max) {
  uint64_t size = (uint64_t)stat->st_size;
  if (worker->descriptors < 0 || size < min || size > max) return 0;
  if (!is_ordinary(fd) || bring_to_memory(fd, size) < 0) return 0;
  return hand_over(worker->descriptors, fd);
}
