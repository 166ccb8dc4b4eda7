/* READ and OPEN: the content of files, by splice where that serves. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "files.h"

enum {
  DATA_BYTES_MAX = 256 << 10, /* of one DATA frame */
  SPLICE_BYTES_MIN = 64 << 10, /* below it a copy costs less */
  SPLICE_BYTES_MAX = 1 << 20, /* of one DATA frame that is spliced */
};

/* Files that say size 0 and have content all the same, as those of /proc. */
int is_synthetic(int fd) {
  enum { PROC_MAGIC = 0x9fa0, SYSFS_MAGIC = 0x62656572, CGROUP_MAGIC = 0x27e0eb, CGROUP2_MAGIC = 0x63677270 };
  struct statfs fs;
  if (fstatfs(fd, &fs) < 0) return 0;
  return fs.f_type == PROC_MAGIC || fs.f_type == SYSFS_MAGIC || fs.f_type == CGROUP_MAGIC ||
         fs.f_type == CGROUP2_MAGIC;
}

/* Looked at before it is opened, since to open a fifo or a device can mean something to others. */
static int open_regular(const char *path, struct stat *stat, const char **what) {
  *what = "stat";
  if (fstatat(AT_FDCWD, path, stat, 0) < 0) return -1;
  errno = S_ISDIR(stat->st_mode) ? EISDIR : EINVAL;
  *what = "not a regular file";
  if (!S_ISREG(stat->st_mode)) return -1;
  *what = "open";
  int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd >= 0 && fstat(fd, stat) == 0 && S_ISREG(stat->st_mode)) return fd;
  if (fd < 0) return -1;
  close(fd);
  errno = EINVAL;
  return -1;
}

enum { SENT_UNSUPPORTED = -2, SENT_BROKEN = -3 }; /* besides -1, an error of the file */

/* One DATA frame by way of memory. Answers its length, 0 at the end of the file. */
static ssize_t send_copied(int fd, uint32_t id, uint64_t offset, size_t wanted) {
  struct frame_writer *writer = &worker.writer;
  frame_begin(writer, FRAME_DATA, id);
  uint8_t *to = put_reserve(writer, wanted);
  ssize_t got = to ? pread(fd, to, wanted, (off_t)offset) : -1;
  if (got <= 0) {
    int error = errno;
    frame_cancel(writer);
    errno = error;
    return got;
  }
  put_reserved(writer, (size_t)got);
  frame_end(writer);
  return worker_flush() < 0 ? SENT_BROKEN : got;
}

/* The same without a copy here: the pipe holds what the frame announces before it is announced. */
static ssize_t send_spliced(int fd, uint32_t id, uint64_t offset, size_t wanted) {
  static int ends[2] = {-1, -1};
  static size_t room;
  if (ends[0] < 0) {
    if (pipe2(ends, O_CLOEXEC) < 0) return SENT_UNSUPPORTED;
    (void)!fcntl(ends[1], F_SETPIPE_SZ, SPLICE_BYTES_MAX);
    int bytes = fcntl(ends[1], F_GETPIPE_SZ);
    room = bytes < 0 ? 0 : (size_t)bytes;
  }
  if (wanted > room) wanted = room;
  off_t at = (off_t)offset;
  ssize_t held = splice(fd, &at, ends[1], NULL, wanted, SPLICE_F_NONBLOCK);
  if (held < 0) return errno == EIO ? -1 : SENT_UNSUPPORTED;
  if (held == 0) return 0;
  frame_header(&worker.writer, FRAME_DATA, id, (uint32_t)held);
  if (worker_flush() < 0) return SENT_BROKEN;
  for (size_t left = (size_t)held; left > 0;) {
    ssize_t sent = splice(ends[0], NULL, worker.fd, NULL, left, 0);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return SENT_BROKEN;
    left -= (size_t)sent;
  }
  return held;
}

/*
 * What a frame announces was read before, so that its length is always true; a file that shrinks meanwhile ends
 * early, one that grows ends at the size it had. OPEN is READ of the whole file, where the file itself is not better.
 */
int files_serve_read(const struct files_request *request) {
  struct stat stat;
  const char *what;
  int fd = open_regular(request->path, &stat, &what);
  if (fd < 0) {
    worker_fail(request->id, errno, what);
    return 0;
  }
  uint64_t size = (uint64_t)stat.st_size, offset = request->offset, left = request->length;
  if (request->type == FRAME_OPEN) {
    if (files_hand_over(&worker, fd, &stat, request->offset, request->length)) {
      close(fd);
      files_answer_entry(request->id, &stat, request->path, "");
      frame_begin(&worker.writer, FRAME_OPENED, request->id);
      frame_end(&worker.writer);
      return 0;
    }
    offset = 0;
    left = UINT64_MAX;
  }
  int spliced = size > 0 || !is_synthetic(fd);
  if (spliced) {
    uint64_t behind = offset < size ? size - offset : 0;
    if (left > behind) left = behind;
  }
  files_answer_entry(request->id, &stat, request->path, "");
  ssize_t sent = 0;
  int error = 0;
  if (offset > INT64_MAX) left = 0;
  if (left > DATA_BYTES_MAX) posix_fadvise(fd, (off_t)offset, 0, POSIX_FADV_SEQUENTIAL);
  while (left > 0) {
    size_t wanted = left < SPLICE_BYTES_MAX ? (size_t)left : SPLICE_BYTES_MAX;
    if (left < SPLICE_BYTES_MIN) spliced = 0;
    if (!spliced && wanted > DATA_BYTES_MAX) wanted = DATA_BYTES_MAX;
    sent = spliced ? send_spliced(fd, request->id, offset, wanted)
                   : send_copied(fd, request->id, offset, wanted);
    if (sent == SENT_UNSUPPORTED) {
      spliced = 0;
      continue;
    }
    if (sent < 0) error = errno;
    if (sent <= 0) break;
    offset += (uint64_t)sent;
    left -= (uint64_t)sent;
  }
  close(fd);
  if (sent == SENT_BROKEN) return -1;
  if (error) {
    worker_fail(request->id, error, "read");
  } else {
    frame_begin(&worker.writer, FRAME_END, request->id);
    frame_end(&worker.writer);
  }
  return 0;
}
