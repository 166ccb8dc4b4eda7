/* REMOVE, also of trees deeper than there are descriptors. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files.h"

enum {
  LEVELS_MAX = 256, /* directories held open at once */
  RESCANS_MAX = 1000, /* of directories that others fill while they are emptied */
  CANCEL_STEPS = 256,
};

struct level {
  DIR *dir;
  char *name; /* in the level before, unless there is a gap between them */
  int gap;
};

struct removal {
  struct level levels[LEVELS_MAX];
  int depth, rescans;
  dev_t device;
};

static int level_push(struct removal *removal, int parent_fd, const char *name) {
  int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return -1;
  struct stat stat;
  if (fstat(fd, &stat) < 0) stat.st_dev = removal->device + 1;
  if (removal->depth == 0) removal->device = stat.st_dev;
  struct level *level = &removal->levels[removal->depth];
  *level = (struct level){.name = strdup(name)};
  errno = stat.st_dev == removal->device ? ENOMEM : EXDEV;
  if (stat.st_dev == removal->device && level->name) level->dir = fdopendir(fd);
  if (level->dir) {
    removal->depth++;
    return 0;
  }
  int error = errno;
  free(level->name);
  close(fd);
  errno = error;
  return -1;
}

static void level_close(struct level *level) {
  closedir(level->dir);
  free(level->name);
}

/* Lets go of every other level; who comes back to a gap starts again from the level above it. */
static void levels_thin(struct removal *removal) {
  int kept = 1;
  for (int i = 1; i < removal->depth; i++) {
    if (i % 2 == 1 && i != removal->depth - 1) {
      level_close(&removal->levels[i]);
      removal->levels[i + 1].gap = 1;
    } else {
      removal->levels[kept++] = removal->levels[i];
    }
  }
  removal->depth = kept;
}

static int is_not_empty(void) { return errno == ENOTEMPTY || errno == EEXIST; }

/* Removes `name`, or opens it as the next level when it is a directory that is not empty. */
static int remove_item(struct removal *removal, int dir_fd, const char *name, int known_directory) {
  if (!known_directory) {
    if (unlinkat(dir_fd, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return -1;
  }
  int error = errno;
  if (unlinkat(dir_fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return 0;
  if (errno == ENOTDIR) {
    if (unlinkat(dir_fd, name, 0) == 0 || errno == ENOENT) return 0;
    if (!known_directory) errno = error;
    return -1;
  }
  if (!is_not_empty()) return -1;
  if (removal->depth == LEVELS_MAX) levels_thin(removal);
  return level_push(removal, dir_fd, name) == 0 || errno == ENOENT ? 0 : -1;
}

static int rescan(struct removal *removal) {
  if (removal->rescans++ >= RESCANS_MAX) {
    errno = ENOTEMPTY;
    return -1;
  }
  rewinddir(removal->levels[removal->depth - 1].dir);
  return 0;
}

/* The deepest level is empty. */
static int level_pop(struct removal *removal) {
  struct level level = removal->levels[--removal->depth];
  int result = 0;
  DIR *above = removal->levels[removal->depth - 1].dir;
  if (level.gap) rewinddir(above);
  else if (unlinkat(dirfd(above), level.name, AT_REMOVEDIR) < 0 && errno != ENOENT)
    result = is_not_empty() ? rescan(removal) : -1;
  int error = errno;
  level_close(&level);
  errno = error;
  return result;
}

static int remove_tree(struct removal *removal, int parent_fd, const char *name) {
  if (level_push(removal, parent_fd, name) < 0) return -1;
  for (unsigned step = 0;; step++) {
    struct level *level = &removal->levels[removal->depth - 1];
    errno = step % CANCEL_STEPS == 0 && worker_cancelled() ? ECANCELED : 0;
    if (errno) return -1;
    const struct dirent *item = readdir(level->dir);
    if (item) {
      if (strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0) continue;
      if (remove_item(removal, dirfd(level->dir), item->d_name, item->d_type == DT_DIR) < 0) return -1;
      continue;
    }
    if (errno) return -1;
    if (removal->depth > 1) {
      if (level_pop(removal) < 0) return -1;
      continue;
    }
    if (unlinkat(parent_fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return 0;
    if (!is_not_empty() || rescan(removal) < 0) return -1;
  }
}

int files_remove_at(int parent_fd, const char *name, int recursive) {
  if (unlinkat(parent_fd, name, 0) == 0) return 0;
  if (errno != EISDIR && errno != EPERM) return -1;
  int error = errno;
  if (unlinkat(parent_fd, name, AT_REMOVEDIR) == 0) return 0;
  if (errno == ENOTDIR) errno = error;
  if (!recursive || !is_not_empty()) return -1;
  static struct removal removal;
  removal.depth = removal.rescans = 0;
  int result = remove_tree(&removal, parent_fd, name);
  error = errno;
  while (removal.depth > 0) level_close(&removal.levels[--removal.depth]);
  errno = error;
  return result;
}

int files_remove(const char *path, int recursive) {
  char copy[PATH_MAX];
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/') length--;
  memcpy(copy, path, length);
  copy[length] = 0;
  char *name = strrchr(copy, '/') + 1;
  errno = !name[0] ? EBUSY : EINVAL;
  if (!name[0] || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) return -1;
  char last[NAME_MAX + 1];
  errno = ENAMETOOLONG;
  if (strlen(name) > NAME_MAX) return -1;
  strcpy(last, name);
  *name = 0;
  int parent_fd = open(copy, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (parent_fd < 0) return -1;
  int result = files_remove_at(parent_fd, last, recursive);
  int error = errno;
  close(parent_fd);
  errno = error;
  return result;
}
