/* COPY: a file or a tree. Each file appears whole, or stays what it was. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files.h"
#include "tree.h"

enum {
  PENDING_BYTES_MAX = 32 << 20,
  CANCEL_ENTRIES = 64,
  NEW_FILES_ONLY = 31, /* bit of files_write_begin's mode */
};

struct pending {
  struct pending *next;
  mode_t mode;
  char path[]; /* relative to both ends */
};

struct copy {
  const struct tree_request *request;
  const char *what;
  struct tree_summary summary;
  struct pending *first;
  size_t pending_bytes;
  dev_t made_device; /* of the directory that all is copied into, wherever its path led */
  ino_t made_inode;
  struct pending *closed; /* directories that get a mode at the end which does not let us in */
};

/* Resolves what of a path there is; the rest is kept as it is. */
static int resolve_existing(const char *path, char resolved[PATH_MAX]) {
  char head[PATH_MAX];
  size_t length = strlen(path);
  memcpy(head, path, length + 1);
  while (!realpath(head, resolved)) {
    if (errno != ENOENT) return -1;
    char *slash = strrchr(head, '/');
    if (!slash || slash == head) {
      strcpy(resolved, "/");
      strcpy(head, "");
      break;
    }
    *slash = 0;
  }
  const char *rest = path + strlen(head);
  while (*rest == '/') rest++;
  if (!*rest) return 0;
  size_t used = strcmp(resolved, "/") == 0 ? 0 : strlen(resolved);
  errno = ENAMETOOLONG;
  if (used + 1 + strlen(rest) >= PATH_MAX) return -1;
  resolved[used] = '/';
  strcpy(resolved + used + 1, rest);
  return 0;
}

static int is_within(const char *from, const char *to) {
  char real_from[PATH_MAX], real_to[PATH_MAX];
  if (!realpath(from, real_from) || resolve_existing(to, real_to) < 0) return -1;
  size_t length = strlen(real_from);
  if (length == 1) return 1;
  return strncmp(real_to, real_from, length) == 0 && (!real_to[length] || real_to[length] == '/');
}

static int take_attributes(const char *to, const struct stat *stat, int is_link) {
  struct timespec times[2] = {stat->st_atim, stat->st_mtim};
  if (lchown(to, stat->st_uid, stat->st_gid) < 0 && errno != EPERM) return -1;
  if (!is_link && chmod(to, stat->st_mode & 07777) < 0) return -1;
  return utimensat(AT_FDCWD, to, times, AT_SYMLINK_NOFOLLOW);
}

static int copy_file(struct copy *copy, int dir_fd, const char *name, const char *to) {
  struct files_write write;
  struct stat stat;
  copy->what = "open";
  int from = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (from < 0) return -1;
  int result = fstat(from, &stat);
  if (result == 0) {
    int attributes = copy->request->flags & COPY_ATTRIBUTES;
    uint32_t mode = attributes ? stat.st_mode & 07777 : 1U << NEW_FILES_ONLY | (stat.st_mode & 0777);
    result = files_write_begin(&write, to, mode);
    copy->what = write.what;
    if (result == 0) {
      write.exclusive = !!(copy->request->flags & COPY_EXCLUSIVE);
      result = files_write_from(&write, from, UINT64_MAX);
      copy->what = write.what;
      copy->summary.bytes += write.bytes;
      struct stat made;
      if (result < 0) files_write_abort(&write);
      else if ((result = files_write_end(&write, &made)) < 0) copy->what = write.what;
    }
    if (result == 0 && attributes) result = take_attributes(to, &stat, 0);
  }
  int error = errno;
  close(from);
  errno = error;
  return result;
}

static int replace(const struct copy *copy, const char *to, int (*make)(const char *, const char *),
                   const char *with) {
  if (make(with, to) == 0) return 0;
  if (copy->request->flags & COPY_EXCLUSIVE) return -1;
  if (errno != EEXIST || unlink(to) < 0) return -1;
  return make(with, to);
}

static int make_fifo(const char *with, const char *to) {
  (void)with;
  return mkfifo(to, 0644);
}

static int push(struct copy *copy, struct pending **list, const char *path, mode_t mode) {
  size_t bytes = sizeof(struct pending) + strlen(path) + 1;
  errno = ENOMEM;
  if (copy->pending_bytes + bytes > PENDING_BYTES_MAX) return -1;
  struct pending *pending = malloc(bytes);
  if (!pending) return -1;
  *pending = (struct pending){.next = *list, .mode = mode};
  strcpy(pending->path, path);
  *list = pending;
  copy->pending_bytes += bytes;
  return 0;
}

static struct pending *pop(struct copy *copy, struct pending **list) {
  struct pending *first = *list;
  *list = first->next;
  copy->pending_bytes -= sizeof *first + strlen(first->path) + 1;
  return first;
}

static int target_of(const struct copy *copy, const char *path, char target[PATH_MAX]) {
  if (!path[0]) {
    strcpy(target, copy->request->to);
    return 0;
  }
  return tree_join(target, copy->request->to, path);
}

static int make_target_directory(struct copy *copy, const char *path, mode_t mode) {
  char target[PATH_MAX];
  struct stat stat;
  copy->what = "mkdir";
  if (target_of(copy, path, target) < 0) return -1;
  if (mkdir(target, (mode & 0777) | 0700) < 0) {
    int error = errno;
    int merges = !(copy->request->flags & COPY_EXCLUSIVE);
    if (error != EEXIST || !merges || fstatat(AT_FDCWD, target, &stat, 0) < 0) {
      errno = error;
      return -1;
    }
    errno = ENOTDIR;
    if (!S_ISDIR(stat.st_mode)) return -1;
  } else if ((mode & 0700) != 0700 && push(copy, &copy->closed, path, mode) < 0) {
    return -1;
  }
  return push(copy, &copy->first, path, mode);
}

static int copy_entry(struct copy *copy, int dir_fd, const char *dir, const struct dent *dent) {
  char path[PATH_MAX], target[PATH_MAX], link_target[PATH_MAX];
  struct stat stat;
  copy->what = "path";
  if (tree_join(path, dir, dent->name) < 0 || target_of(copy, path, target) < 0) return -1;
  copy->what = "stat";
  if (fstatat(dir_fd, dent->name, &stat, AT_SYMLINK_NOFOLLOW) < 0) return errno == ENOENT ? 0 : -1;
  copy->summary.entries++;
  int attributes = copy->request->flags & COPY_ATTRIBUTES;
  switch (stat.st_mode & S_IFMT) {
    case S_IFREG:
      return copy_file(copy, dir_fd, dent->name, target);
    case S_IFDIR:
      copy->what = "into itself";
      errno = EINVAL;
      if (stat.st_dev == copy->made_device && stat.st_ino == copy->made_inode) return -1;
      return make_target_directory(copy, path, stat.st_mode & 07777);
    case S_IFLNK:
      copy->what = "link";
      read_link(dir_fd, dent->name, stat.st_mode, link_target);
      if (replace(copy, target, symlink, link_target) < 0) return -1;
      return attributes ? take_attributes(target, &stat, 1) : 0;
    case S_IFIFO:
      copy->what = "fifo";
      if (replace(copy, target, make_fifo, NULL) < 0) return -1;
      return attributes ? take_attributes(target, &stat, 0) : chmod(target, stat.st_mode & 0777);
  }
  copy->summary.skipped++;
  return 0;
}

static int copy_directory(struct copy *copy, const struct tree_root *root, const struct pending *dir) {
  static struct dents dents;
  struct dent dent;
  struct stat stat;
  char target[PATH_MAX];
  copy->what = "open";
  dents.fd = tree_open_directory(root, dir->path);
  if (dents.fd < 0) {
    if (errno != EXDEV) return -1;
    copy->summary.skipped++;
    return 0;
  }
  int result = fstat(dents.fd, &stat), filled = 0;
  for (unsigned count = 1; result == 0 && (filled = dents_fill(&dents)) > 0;) {
    while (result == 0 && dents_next(&dents, &dent)) {
      errno = ECANCELED;
      result = count++ % CANCEL_ENTRIES == 0 && worker_cancelled() ? -1 : copy_entry(copy, dents.fd, dir->path, &dent);
    }
  }
  if (filled < 0) result = -1;
  /* All that comes into it is there: its own directories are made, only not filled yet. */
  if (result == 0 && copy->request->flags & COPY_ATTRIBUTES && target_of(copy, dir->path, target) == 0) {
    copy->what = "attributes";
    stat.st_mode |= 0700;
    result = take_attributes(target, &stat, 0);
  }
  int error = errno;
  close(dents.fd);
  errno = error;
  return result;
}

static int copy_tree(struct copy *copy, mode_t mode) {
  struct tree_root root;
  copy->what = "open";
  if (tree_open(&root, copy->request->path) < 0) return -1;
  int result = files_make_parents(copy->request->to);
  if (result == 0) result = make_target_directory(copy, "", mode);
  struct stat made;
  if (result == 0 && fstatat(AT_FDCWD, copy->request->to, &made, 0) == 0) {
    copy->made_device = made.st_dev;
    copy->made_inode = made.st_ino;
  }
  while (copy->first) {
    struct pending *dir = pop(copy, &copy->first);
    if (result == 0) result = copy_directory(copy, &root, dir);
    free(dir);
  }
  int error = errno;
  while (copy->closed) {
    struct pending *dir = pop(copy, &copy->closed);
    char target[PATH_MAX];
    if (target_of(copy, dir->path, target) == 0) (void)!chmod(target, dir->mode & 07777);
    free(dir);
  }
  close(root.fd);
  errno = error;
  return result;
}

static int copy_all(struct copy *copy) {
  const struct tree_request *request = copy->request;
  struct stat from, to;
  copy->what = "stat";
  if (fstatat(AT_FDCWD, request->path, &from, AT_SYMLINK_NOFOLLOW) < 0) return -1;
  int exists = fstatat(AT_FDCWD, request->to, &to, AT_SYMLINK_NOFOLLOW) == 0;
  errno = EEXIST;
  copy->what = "target";
  if (exists && request->flags & COPY_EXCLUSIVE) return -1;
  int same = fstatat(AT_FDCWD, request->to, &to, 0) == 0 && to.st_dev == from.st_dev && to.st_ino == from.st_ino;
  errno = EINVAL;
  copy->what = "onto itself";
  if (same) return -1;
  if (S_ISDIR(from.st_mode)) {
    int within = is_within(request->path, request->to);
    if (within > 0) errno = EINVAL;
    copy->what = "into itself";
    if (within != 0) return -1;
    return copy_tree(copy, from.st_mode & 07777);
  }
  if (S_ISREG(from.st_mode)) {
    copy->summary.entries++;
    return copy_file(copy, AT_FDCWD, request->path, request->to);
  }
  copy->what = "not a file, directory or link";
  errno = EINVAL;
  if (!S_ISLNK(from.st_mode)) return -1;
  char link_target[PATH_MAX];
  copy->what = "link";
  read_link(AT_FDCWD, request->path, from.st_mode, link_target);
  if (files_make_parents(request->to) < 0 || replace(copy, request->to, symlink, link_target) < 0) return -1;
  copy->summary.entries++;
  return request->flags & COPY_ATTRIBUTES ? take_attributes(request->to, &from, 1) : 0;
}

void serve_copy(const struct tree_request *request) {
  struct copy copy = {.request = request};
  if (copy_all(&copy) < 0) worker_fail(request->id, errno, copy.what);
  else tree_answer_summary(request->id, &copy.summary);
}
