/* WRITE: readers see the old content or the new, and whatever fails leaves the old one. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "files.h"
#include "sys.h"

enum {
  LINKS_MAX = 40,
  COPY_BYTES = 64 << 10,
  KERNEL_COPY_BYTES = 16 << 20, /* at once, so that a cancelled copy ends soon */
  MODE_KEEP = -1, /* that of the old file, or MODE_NEW */
  MODE_KEEP_BIT = 31, /* that of the old file, or the one given with this bit */
  MODE_NEW = 0644,
  MODE_PARENT = 0755,
};

/* The temporary file, as the signal handler finds it. */
static struct {
  volatile sig_atomic_t armed;
  int dir_fd;
  char name[32];
} temporary;

void files_write_unlink(void) {
  if (!temporary.armed) return;
  unlinkat(temporary.dir_fd, temporary.name, 0);
  temporary.armed = 0;
}

int files_make_parents(const char *path) {
  char part[PATH_MAX];
  for (size_t i = 1; path[i] && i < sizeof part; i++) {
    if (path[i] != '/' || path[i - 1] == '/' || !path[i + 1]) continue;
    memcpy(part, path, i);
    part[i] = 0;
    struct stat stat;
    if (mkdir(part, MODE_PARENT) == 0 || errno == EEXIST) continue;
    int error = errno;
    if (fstatat(AT_FDCWD, part, &stat, 0) == 0 && S_ISDIR(stat.st_mode)) continue;
    errno = error;
    return -1;
  }
  return 0;
}

/* Follows links in the last component; directories' are followed by the kernel. */
static int resolve(const char *path, char target[PATH_MAX]) {
  snprintf(target, PATH_MAX, "%s", path);
  for (int links = 0; links < LINKS_MAX; links++) {
    char link[PATH_MAX];
    ssize_t length = readlink(target, link, sizeof link - 1);
    if (length < 0) return errno == EINVAL || errno == ENOENT ? 0 : -1;
    link[length] = 0;
    size_t keep = link[0] == '/' ? 0 : (size_t)(strrchr(target, '/') + 1 - target);
    errno = ENAMETOOLONG;
    if (keep + (size_t)length >= PATH_MAX) return -1;
    memcpy(target + keep, link, (size_t)length + 1);
  }
  errno = ELOOP;
  return -1;
}

/* Opens the directory of `target`, made when missing, and cuts its name off. */
static int open_parent(struct files_write *write, char target[PATH_MAX]) {
  char *slash = strrchr(target, '/');
  const char *name = slash + 1;
  write->what = "target";
  errno = EISDIR;
  if (!name[0] || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) return -1;
  errno = ENAMETOOLONG;
  if (strlen(name) >= sizeof write->name) return -1;
  strcpy(write->name, name);
  write->what = "parents";
  for (int made = 0;; made = 1) {
    *slash = 0;
    write->dir_fd = open(target[0] ? target : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    *slash = '/';
    if (write->dir_fd >= 0) return 0;
    if (made || errno != ENOENT || files_make_parents(target) < 0) return -1;
  }
}

/* Its name tells watchers whether it is going to replace a file. */
static int open_temporary(struct files_write *write, int replaces) {
  uint64_t random;
  if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random) return -1;
  temporary.dir_fd = write->dir_fd;
  snprintf(temporary.name, sizeof temporary.name, FILES_TEMPORARY "%c%016llx",
           replaces ? FILES_REPLACES : FILES_CREATES, (unsigned long long)random);
  temporary.armed = 1;
  write->fd = openat(write->dir_fd, temporary.name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (write->fd < 0) temporary.armed = 0;
  return write->fd < 0 ? -1 : 0;
}

static int open_spool(struct files_write *write) {
  write->spooled = 1;
  write->fd = openat(write->dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (write->fd < 0) write->fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (write->fd >= 0) return 0;
  if (open_temporary(write, 1) < 0) return -1;
  files_write_unlink();
  return 0;
}

static int open_in_place(struct files_write *write, int regular) {
  write->what = "open";
  write->in_place = openat(write->dir_fd, write->name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (write->in_place < 0) return -1;
  struct stat stat;
  if (fstat(write->in_place, &stat) < 0) return -1;
  errno = EBUSY;
  if (S_ISREG(stat.st_mode) != regular) return -1;
  if (regular) return open_spool(write);
  write->fd = write->in_place;
  return 0;
}

static int open_over(struct files_write *write, const struct stat *old) {
  write->what = "target";
  errno = S_ISDIR(old->st_mode) ? EISDIR : S_ISLNK(old->st_mode) ? ELOOP : EINVAL;
  if (S_ISCHR(old->st_mode) || S_ISBLK(old->st_mode)) return open_in_place(write, 0);
  if (!S_ISREG(old->st_mode)) return -1;
  if (!write->mode_given) write->mode = old->st_mode & 07777;
  if (faccessat(write->dir_fd, write->name, W_OK, 0) < 0) return -1;
  if (old->st_nlink > 1) return open_in_place(write, 1);
  struct stat stat;
  write->what = "temporary file";
  if (open_temporary(write, 1) == 0) {
    if (fstat(write->fd, &stat) == 0 && stat.st_uid == old->st_uid && stat.st_gid == old->st_gid) return 0;
    if (fchown(write->fd, old->st_uid, old->st_gid) == 0) return 0;
    int error = errno;
    files_write_unlink();
    close(write->fd);
    write->fd = -1;
    errno = error;
  }
  /* The file may be written, but its directory not, or its owner not be taken over. */
  return errno == EACCES || errno == EPERM ? open_in_place(write, 1) : -1;
}

static void close_all(struct files_write *write) {
  int error = errno;
  if (write->fd >= 0) close(write->fd);
  if (write->in_place >= 0 && write->in_place != write->fd) close(write->in_place);
  if (write->dir_fd >= 0) close(write->dir_fd);
  write->fd = write->in_place = write->dir_fd = -1;
  errno = error;
}

int files_write_begin(struct files_write *write, const char *path, uint32_t mode) {
  char target[PATH_MAX];
  struct stat old;
  *write = (struct files_write){.what = "target", .dir_fd = -1, .fd = -1, .in_place = -1};
  write->mode_given = !(mode >> MODE_KEEP_BIT);
  write->mode = mode == (uint32_t)MODE_KEEP ? MODE_NEW : mode & 07777;
  if (resolve(path, target) == 0 && open_parent(write, target) == 0) {
    write->what = "target";
    if (fstatat(write->dir_fd, write->name, &old, AT_SYMLINK_NOFOLLOW) == 0) {
      if (open_over(write, &old) == 0) return 0;
    } else if (errno == ENOENT) {
      write->what = "temporary file";
      if (open_temporary(write, 0) == 0) return 0;
    }
  }
  files_write_abort(write);
  return -1;
}

static int write_whole(int fd, const uint8_t *bytes, size_t length) {
  while (length > 0) {
    ssize_t written = write(fd, bytes, length);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return -1;
    bytes += written;
    length -= (size_t)written;
  }
  return 0;
}

int files_write_data(struct files_write *write, const uint8_t *bytes, size_t length) {
  write->what = "write";
  write->bytes += length;
  return write_whole(write->fd, bytes, length);
}

static ssize_t copy_some(int from, int to, uint64_t bytes_max, int by_kernel) {
  static uint8_t buffer[COPY_BYTES];
  size_t most = by_kernel ? KERNEL_COPY_BYTES : sizeof buffer;
  if (bytes_max < most) most = (size_t)bytes_max;
  if (by_kernel) return copy_file_range(from, NULL, to, NULL, most, 0);
  ssize_t got = read(from, buffer, most);
  return got > 0 && write_whole(to, buffer, (size_t)got) < 0 ? -1 : got;
}

int files_write_from(struct files_write *write, int from, uint64_t bytes_max) {
  int by_kernel = !is_synthetic(from), begun = 0;
  write->what = "copy";
  while (bytes_max > 0) {
    ssize_t got = copy_some(from, write->fd, bytes_max, by_kernel);
    int refused = got < 0 && (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS);
    if (by_kernel && refused && !begun) {
      by_kernel = 0;
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return (int)got;
    begun = 1;
    bytes_max -= (uint64_t)got;
    write->bytes += (uint64_t)got;
    errno = ECANCELED;
    if (worker_cancelled()) return -1;
  }
  return 0;
}

/* Reserves the space before the first old byte goes, so that a full disk leaves the old content. */
static int copy_in_place(struct files_write *write) {
  static uint8_t buffer[COPY_BYTES];
  struct stat old;
  write->what = "reserve";
  if (fstat(write->in_place, &old) < 0) return -1;
  if (write->bytes > 0 && fallocate(write->in_place, FALLOC_FL_KEEP_SIZE, 0, (off_t)write->bytes) < 0 &&
      errno != EOPNOTSUPP && errno != ENOSYS) {
    int error = errno;
    (void)!ftruncate(write->in_place, old.st_size);
    errno = error;
    return -1;
  }
  write->what = "copy";
  for (uint64_t at = 0; at < write->bytes;) {
    ssize_t got = pread(write->fd, buffer, sizeof buffer, (off_t)at);
    if (got == 0) errno = EIO;
    if (got <= 0 || write_whole(write->in_place, buffer, (size_t)got) < 0) return -1;
    at += (uint64_t)got;
  }
  return ftruncate(write->in_place, (off_t)write->bytes);
}

static int rename_into_place(const struct files_write *write) {
  if (!write->exclusive) return renameat(write->dir_fd, temporary.name, write->dir_fd, write->name);
  unsigned flags = RENAME_NOREPLACE;
  return (int)syscall(SYS_renameat2, write->dir_fd, temporary.name, write->dir_fd, write->name, flags);
}

static int finish(struct files_write *write, struct stat *stat) {
  int renames = write->in_place < 0;
  write->what = "target";
  errno = EEXIST;
  if (write->exclusive && !renames) return -1;
  if (write->spooled && copy_in_place(write) < 0) return -1;
  write->what = "mode";
  int target_fd = renames ? write->fd : write->in_place;
  if ((renames || (write->spooled && write->mode_given)) && fchmod(target_fd, write->mode) < 0) return -1;
  if (fstat(target_fd, stat) < 0) return -1;
  write->what = "write";
  errno = EIO;
  if (renames && (uint64_t)stat->st_size != write->bytes) return -1;
  write->fd = renames ? -1 : write->fd;
  if (!renames) return 0;
  if (close(target_fd) < 0) return -1;
  write->what = "rename";
  if (rename_into_place(write) < 0) return -1;
  temporary.armed = 0;
  return 0;
}

int files_write_end(struct files_write *write, struct stat *stat) {
  /* What was begun here is finished, also when process 1 is ending. */
  sigset_t terminate, before;
  sigemptyset(&terminate);
  sigaddset(&terminate, SIGTERM);
  sigprocmask(SIG_BLOCK, &terminate, &before);
  int result = finish(write, stat);
  files_write_abort(write);
  sigprocmask(SIG_SETMASK, &before, NULL);
  return result;
}

void files_write_abort(struct files_write *write) {
  int error = errno;
  files_write_unlink();
  close_all(write);
  errno = error;
}
