/*
 * Writes the tree of an image layer. What the entries say comes from a stranger's archive, so that the process which does
 * this (unpack-main.c) has nothing but the tree; that it also stays inside by how it opens things is the second lock.
 */
#define _GNU_SOURCE
#include "unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "files.h"
#include "sys.h"

enum {
  NAME_BYTES_MAX = 255,
  /* Removing a tree by path must still be possible from outside: with what stands before it, within PATH_MAX. */
  PATH_BYTES_MAX = 3072,
  TARGET_BYTES_MAX = 4095,
  XATTR_BYTES_MAX = 64 << 10,
  MODE_DIRECTORY = 0755,
  HOLE_BYTES = 4096,
  NANOSECONDS = 1000000000,
};

static int fail_step(struct unpacker *unpacker, const char *what) {
  unpacker->what = what;
  return -1;
}

static int fail_as(struct unpacker *unpacker, int error, const char *what) {
  errno = error;
  return fail_step(unpacker, what);
}

int unpack_open(struct unpacker *unpacker, int many_ids, int user_overlay) {
  *unpacker = (struct unpacker){
      .many_ids = many_ids, .user_overlay = user_overlay, .parent_fd = -1, .node_fd = -1, .what = "open"};
  unpacker->root_fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return unpacker->root_fd < 0 ? -1 : 0;
}

static void forget_node(struct unpacker *unpacker) {
  if (unpacker->node_fd >= 0) close(unpacker->node_fd);
  unpacker->node_fd = -1;
  unpacker->node_is_link = 0;
  unpacker->node_bytes = 0;
}

static void forget_parent(struct unpacker *unpacker) {
  if (unpacker->parent_fd >= 0) close(unpacker->parent_fd);
  unpacker->parent_fd = -1;
}

void unpack_close(struct unpacker *unpacker) {
  forget_node(unpacker);
  forget_parent(unpacker);
  if (unpacker->root_fd >= 0) close(unpacker->root_fd);
  unpacker->root_fd = -1;
}

/* Paths */

/* Relative, and made of proper names only. The empty path is the root. */
static int path_is_clean(const char *path) {
  size_t length = strlen(path);
  if (length == 0) return 1;
  if (length > PATH_BYTES_MAX) return 0;
  for (const char *name = path;;) {
    const char *end = strchrnul(name, '/');
    size_t bytes = (size_t)(end - name);
    if (bytes == 0 || bytes > NAME_BYTES_MAX) return 0;
    if (name[0] == '.' && (bytes == 1 || (bytes == 2 && name[1] == '.'))) return 0;
    if (!*end) return 1;
    name = end + 1;
  }
}

/* Links on the way lead to places below the root. */
static int open_beneath(const struct unpacker *unpacker, const char *path, int flags) {
  struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC), .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
  return (int)syscall(SYS_openat2, unpacker->root_fd, path[0] ? path : ".", &how, sizeof how);
}

static int is_whiteout(const struct stat *status) {
  return S_ISCHR(status->st_mode) && status->st_rdev == makedev(0, 0);
}

static int mark_opaque(const struct unpacker *unpacker, int directory_fd) {
  const char *name = unpacker->user_overlay ? "user.overlay.opaque" : "trusted.overlay.opaque";
  return fsetxattr(directory_fd, name, "y", 1, 0);
}

static int make_opaque_at(const struct unpacker *unpacker, int parent_fd, const char *name) {
  int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return -1;
  int result = mark_opaque(unpacker, fd);
  int error = errno;
  close(fd);
  errno = error;
  return result;
}

/*
 * A directory at `name`. One over a whiteout hides what lower layers have there, which is what the whiteout said.
 * 1: made, 0: was there.
 */
static int make_directory(struct unpacker *unpacker, int parent_fd, const char *name) {
  struct stat status;
  int hides = 0;
  if (fstatat(parent_fd, name, &status, AT_SYMLINK_NOFOLLOW) == 0) {
    if (S_ISDIR(status.st_mode)) return 0;
    hides = is_whiteout(&status);
    if (unlinkat(parent_fd, name, 0) < 0) return -1;
    forget_parent(unpacker);
  } else if (errno != ENOENT) {
    return -1;
  }
  if (mkdirat(parent_fd, name, MODE_DIRECTORY) < 0) return -1;
  return hides && make_opaque_at(unpacker, parent_fd, name) < 0 ? -1 : 1;
}

/* Opens the directory `path`, making what is missing of it. Links and files in the way are not replaced. */
static int open_parents(struct unpacker *unpacker, char *path) {
  int fd = open_beneath(unpacker, path, O_PATH | O_DIRECTORY);
  if (fd >= 0 || (errno != ENOENT && errno != ENOTDIR)) return fd;
  int at = dup(unpacker->root_fd);
  for (char *end = path; at >= 0;) {
    char *name = end;
    end = strchrnul(name, '/');
    char kept = *end;
    *end = 0;
    int next = open_beneath(unpacker, path, O_PATH | O_DIRECTORY);
    if (next < 0 && (errno == ENOENT || errno == ENOTDIR)) {
      struct stat status;
      int there = fstatat(at, name, &status, AT_SYMLINK_NOFOLLOW) == 0;
      if (there && !is_whiteout(&status)) errno = ENOTDIR;
      else if (make_directory(unpacker, at, name) >= 0) next = open_beneath(unpacker, path, O_PATH | O_DIRECTORY);
    }
    int error = errno;
    *end = kept;
    close(at);
    errno = error;
    at = next;
    if (!kept) break;
    end++;
  }
  return at;
}

/* The directory of `path`, which stays the unpacker's; `name` is what stands in it. */
static int locate(struct unpacker *unpacker, char *path, const char **name) {
  if (!path_is_clean(path) || !path[0]) return fail_as(unpacker, EINVAL, "path");
  char *slash = strrchr(path, '/');
  *name = slash ? slash + 1 : path;
  if (slash) *slash = 0;
  const char *directory = slash ? path : "";
  if (unpacker->parent_fd < 0 || strcmp(unpacker->parent, directory) != 0) {
    forget_parent(unpacker);
    char copy[PATH_BYTES_MAX + 1];
    strcpy(copy, directory);
    unpacker->parent_fd = open_parents(unpacker, copy);
    if (unpacker->parent_fd < 0) return fail_step(unpacker, "directory");
    /* After: making directories may have let go of it. */
    strcpy(unpacker->parent, directory);
  }
  return 0;
}

/* Takes away what stands at `name`: the later entry of an archive wins. */
static int clear_place(struct unpacker *unpacker, const char *name) {
  struct stat status;
  if (fstatat(unpacker->parent_fd, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
    return errno == ENOENT ? 0 : fail_step(unpacker, "replace");
  if (files_remove_at(unpacker->parent_fd, name, 1) < 0) return fail_step(unpacker, "replace");
  return 0;
}

static int remember_node(struct unpacker *unpacker, int fd, const char *what) {
  if (fd < 0) return fail_step(unpacker, what);
  unpacker->node_fd = fd;
  return 0;
}

/* Entries */

static int directory_entry(struct unpacker *unpacker, char *path) {
  enum { FLAGS = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC };
  if (!path[0]) return remember_node(unpacker, open_beneath(unpacker, "", O_RDONLY | O_DIRECTORY), "directory");
  const char *name;
  if (locate(unpacker, path, &name) < 0) return -1;
  /* One that goes away here keeps its descriptor: what is made in it would be lost otherwise. */
  int parent_fd = dup(unpacker->parent_fd);
  if (parent_fd < 0) return fail_step(unpacker, "directory");
  int fd = make_directory(unpacker, parent_fd, name) < 0 ? -1 : openat(parent_fd, name, FLAGS);
  int error = errno;
  close(parent_fd);
  errno = error;
  return remember_node(unpacker, fd, "directory");
}

static int file_entry(struct unpacker *unpacker, char *path, uint64_t bytes) {
  const char *name;
  if (bytes > INT64_MAX) return fail_as(unpacker, EFBIG, "size");
  if (locate(unpacker, path, &name) < 0 || clear_place(unpacker, name) < 0) return -1;
  int fd = openat(unpacker->parent_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (remember_node(unpacker, fd, "file") < 0) return -1;
  unpacker->node_bytes = bytes;
  return bytes > 0 && ftruncate(fd, (off_t)bytes) < 0 ? fail_step(unpacker, "size") : 0;
}

static int is_zero(const uint8_t *bytes, size_t length) {
  return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* Whole blocks of zeros stay holes, so that an archive of nothing takes no disk. */
static int data_entry(struct unpacker *unpacker, uint64_t offset, const uint8_t *bytes, size_t length) {
  if (unpacker->node_fd < 0 || offset > unpacker->node_bytes || length > unpacker->node_bytes - offset)
    return fail_as(unpacker, EPROTO, "data");
  while (length > 0) {
    size_t part = HOLE_BYTES - offset % HOLE_BYTES;
    if (part > length) part = length;
    if (is_zero(bytes, part)) {
      bytes += part, offset += part, length -= part;
      continue;
    }
    /* Up to the next block of zeros in one go. */
    while (part < length) {
      size_t next = length - part < HOLE_BYTES ? length - part : HOLE_BYTES;
      if (is_zero(bytes + part, next)) break;
      part += next;
    }
    ssize_t written = pwrite(unpacker->node_fd, bytes, part, (off_t)offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return fail_step(unpacker, "data");
    bytes += written, offset += (uint64_t)written, length -= (size_t)written;
  }
  return 0;
}

static int symlink_entry(struct unpacker *unpacker, char *path, const char *target) {
  const char *name;
  size_t length = strlen(target);
  if (length == 0 || length > TARGET_BYTES_MAX) return fail_as(unpacker, EINVAL, "link target");
  if (locate(unpacker, path, &name) < 0 || clear_place(unpacker, name) < 0) return -1;
  if (symlinkat(target, unpacker->parent_fd, name) < 0) return fail_step(unpacker, "symbolic link");
  unpacker->node_is_link = 1;
  strcpy(unpacker->node_name, name);
  return 0;
}

static int link_entry(struct unpacker *unpacker, char *path, char *target) {
  const char *name, *target_name;
  if (locate(unpacker, target, &target_name) < 0) return -1;
  struct stat status, present;
  if (fstatat(unpacker->parent_fd, target_name, &status, AT_SYMLINK_NOFOLLOW) < 0)
    return fail_step(unpacker, "target of a hard link");
  if (S_ISDIR(status.st_mode)) return fail_as(unpacker, EPERM, "target of a hard link");
  int target_fd = dup(unpacker->parent_fd);
  if (target_fd < 0) return fail_step(unpacker, "hard link");
  int result = locate(unpacker, path, &name);
  int same = result == 0 && fstatat(unpacker->parent_fd, name, &present, AT_SYMLINK_NOFOLLOW) == 0 &&
             present.st_ino == status.st_ino && present.st_dev == status.st_dev;
  if (result == 0 && !same) {
    result = clear_place(unpacker, name);
    if (result == 0 && linkat(target_fd, target_name, unpacker->parent_fd, name, 0) < 0)
      result = fail_step(unpacker, "hard link");
  }
  int error = errno;
  close(target_fd);
  errno = error;
  return result;
}

static int fifo_entry(struct unpacker *unpacker, char *path) {
  const char *name;
  if (locate(unpacker, path, &name) < 0 || clear_place(unpacker, name) < 0) return -1;
  if (mknodat(unpacker->parent_fd, name, S_IFIFO | 0600, 0) < 0) return fail_step(unpacker, "fifo");
  /* For reading it would wait for a writer. */
  return remember_node(unpacker, openat(unpacker->parent_fd, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC), "fifo");
}

/* `path` of lower layers is gone. What this layer itself has there stays, and is all there is. */
static int whiteout_entry(struct unpacker *unpacker, char *path) {
  const char *name;
  struct stat status;
  if (locate(unpacker, path, &name) < 0) return -1;
  if (fstatat(unpacker->parent_fd, name, &status, AT_SYMLINK_NOFOLLOW) == 0) {
    if (S_ISDIR(status.st_mode) && make_opaque_at(unpacker, unpacker->parent_fd, name) < 0)
      return fail_step(unpacker, "whiteout");
    return 0;
  }
  if (errno != ENOENT || mknodat(unpacker->parent_fd, name, S_IFCHR, makedev(0, 0)) < 0)
    return fail_step(unpacker, "whiteout");
  return 0;
}

static int opaque_entry(struct unpacker *unpacker, char *path) {
  if (directory_entry(unpacker, path) < 0) return -1;
  int result = mark_opaque(unpacker, unpacker->node_fd);
  forget_node(unpacker);
  return result < 0 ? fail_step(unpacker, "opaque directory") : 0;
}

/* Attributes of the last entry */

static void times_of(int64_t modified_ns, struct timespec times[2]) {
  int64_t seconds = modified_ns / NANOSECONDS, rest = modified_ns % NANOSECONDS;
  if (rest < 0) rest += NANOSECONDS, seconds--;
  times[0] = (struct timespec){.tv_nsec = UTIME_OMIT};
  times[1] = (struct timespec){.tv_sec = (time_t)seconds, .tv_nsec = (long)rest};
}

struct attributes {
  uint32_t mode, uid, gid;
  int64_t modified_ns;
};

static int attributes_entry(struct unpacker *unpacker, const struct attributes *wanted) {
  struct timespec times[2];
  times_of(wanted->modified_ns, times);
  if (!unpacker->node_is_link && unpacker->node_fd < 0) return fail_as(unpacker, EPROTO, "attributes");
  if (unpacker->node_is_link) {
    if (unpacker->many_ids && fchownat(unpacker->parent_fd, unpacker->node_name, wanted->uid, wanted->gid,
                                       AT_SYMLINK_NOFOLLOW) < 0)
      return fail_step(unpacker, "owner");
    if (utimensat(unpacker->parent_fd, unpacker->node_name, times, AT_SYMLINK_NOFOLLOW) < 0)
      return fail_step(unpacker, "time");
    return 0;
  }
  if (unpacker->many_ids && fchown(unpacker->node_fd, wanted->uid, wanted->gid) < 0)
    return fail_step(unpacker, "owner");
  /* After the owner, whose change takes setuid away. */
  if (fchmod(unpacker->node_fd, wanted->mode & 07777) < 0) return fail_step(unpacker, "mode");
  return futimens(unpacker->node_fd, times) < 0 ? fail_step(unpacker, "time") : 0;
}

/* What overlayfs itself reads must not come from an archive. */
static int xattr_is_allowed(const char *name) {
  static const char user[] = "user.", overlay[] = "user.overlay.";
  if (strcmp(name, "security.capability") == 0) return 1;
  return strncmp(name, user, sizeof user - 1) == 0 && name[sizeof user - 1] &&
         strncmp(name, overlay, sizeof overlay - 1) != 0 && strlen(name) <= NAME_BYTES_MAX;
}

static int xattr_entry(struct unpacker *unpacker, const char *name, const uint8_t *value, size_t length) {
  if (!xattr_is_allowed(name) || length > XATTR_BYTES_MAX) return fail_as(unpacker, EINVAL, "extended attribute");
  /* Links have none of those that are allowed. */
  if (unpacker->node_fd < 0) return 0;
  if (fsetxattr(unpacker->node_fd, name, value, length, 0) == 0) return 0;
  /* A file system without them, or a user who may not give capabilities: the file is still of use. */
  return errno == ENOTSUP || errno == EPERM ? 0 : fail_step(unpacker, "extended attribute");
}

/* Last, since what is made in a directory changes its time. One that was replaced meanwhile is left alone. */
static int times_entry(struct unpacker *unpacker, char *path, int64_t modified_ns) {
  struct timespec times[2];
  times_of(modified_ns, times);
  if (!path_is_clean(path)) return fail_as(unpacker, EINVAL, "path");
  int fd = open_beneath(unpacker, path, O_RDONLY | O_DIRECTORY);
  if (fd < 0) return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0 : fail_step(unpacker, "time");
  int result = futimens(fd, times);
  int error = errno;
  close(fd);
  errno = error;
  return result < 0 ? fail_step(unpacker, "time") : 0;
}

/* Durable before it is answered. */
static int finish(struct unpacker *unpacker) {
  if (syncfs(unpacker->root_fd) < 0) return fail_step(unpacker, "sync");
  unpacker->finished = 1;
  return 0;
}

int unpack_frame(struct unpacker *unpacker, const struct frame *frame) {
  struct payload payload = payload_of(frame);
  uint64_t number = 0;
  struct attributes attributes = {0};
  char *path = NULL, *second = NULL;
  const uint8_t *bytes = NULL;
  size_t length = 0;
  switch (frame->type) {
    case FRAME_UNPACK_FILE:
    case FRAME_UNPACK_TIMES:
      number = payload_u64(&payload);
      path = payload_str(&payload);
      break;
    case FRAME_UNPACK_DIRECTORY:
    case FRAME_UNPACK_FIFO:
    case FRAME_UNPACK_WHITEOUT:
    case FRAME_UNPACK_OPAQUE:
      path = payload_str(&payload);
      break;
    case FRAME_UNPACK_SYMLINK:
    case FRAME_UNPACK_LINK:
      path = payload_str(&payload);
      second = payload_str(&payload);
      break;
    case FRAME_UNPACK_DATA:
      number = payload_u64(&payload);
      bytes = payload_bytes(&payload, &length);
      break;
    case FRAME_UNPACK_XATTR:
      path = payload_str(&payload);
      bytes = payload_bytes(&payload, &length);
      break;
    case FRAME_UNPACK_ATTRIBUTES:
      attributes.mode = payload_u32(&payload);
      attributes.uid = payload_u32(&payload);
      attributes.gid = payload_u32(&payload);
      attributes.modified_ns = payload_i64(&payload);
      break;
    case FRAME_UNPACK_FINISH:
      break;
    default:
      return fail_as(unpacker, EPROTO, "frame");
  }
  if (!payload_done(&payload) || unpacker->finished) return fail_as(unpacker, EPROTO, "frame");
  if (frame->type == FRAME_UNPACK_DATA) return data_entry(unpacker, number, bytes, length);
  if (frame->type == FRAME_UNPACK_ATTRIBUTES) return attributes_entry(unpacker, &attributes);
  if (frame->type == FRAME_UNPACK_XATTR) return xattr_entry(unpacker, path, bytes, length);

  forget_node(unpacker);
  if (path && !path_is_clean(path)) return fail_as(unpacker, EINVAL, "path");
  switch (frame->type) {
    case FRAME_UNPACK_DIRECTORY:
      return directory_entry(unpacker, path);
    case FRAME_UNPACK_FILE:
      return file_entry(unpacker, path, number);
    case FRAME_UNPACK_SYMLINK:
      return symlink_entry(unpacker, path, second);
    case FRAME_UNPACK_LINK:
      return link_entry(unpacker, path, second);
    case FRAME_UNPACK_FIFO:
      return fifo_entry(unpacker, path);
    case FRAME_UNPACK_TIMES:
      return times_entry(unpacker, path, (int64_t)number);
    case FRAME_UNPACK_WHITEOUT:
      return whiteout_entry(unpacker, path);
    case FRAME_UNPACK_OPAQUE:
      return opaque_entry(unpacker, path);
    default:
      return finish(unpacker);
  }
}
