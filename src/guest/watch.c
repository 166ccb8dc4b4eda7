/* WATCH: what changes in a directory, or in all of a tree, until the connection closes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

#include "files.h"
#include "tree.h"

enum {
  DIRECTORIES_MAX = 100000,
  BUCKETS = 1 << 14,
  EVENTS_BYTES = 64 << 10,
  CHANGES_BYTES = 32 << 10, /* a CHANGES frame is sent once it is this long */
  ANNOUNCED_MAX = 1 << 12, /* names that were told of before the kernel did */
  ANNOUNCED_SLOTS = 2 * ANNOUNCED_MAX,
  RESCAN_SLACK_S = 2,
};

/* As CHANGES tells them. */
enum { CREATED = 1, WRITTEN = 2, REMOVED = 3, RENAMED = 4, ATTRIBUTES = 5, LOST = 6 };

static const uint32_t wanted = IN_CREATE | IN_MODIFY | IN_ATTRIB | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO |
                               IN_DELETE_SELF | IN_ONLYDIR | IN_EXCL_UNLINK;

struct watched {
  struct watched *next;
  int wd;
  uint32_t generation;
  char path[]; /* relative, '' for the root */
};

struct waiting {
  struct waiting *next;
  int announce;
  char path[];
};

struct watch {
  const struct tree_request *request;
  struct tree_root root;
  struct matcher *ignored;
  struct watched *buckets[BUCKETS];
  uint32_t count, generation, in_frame;
  int fd, root_wd, lost, ended;
  uint64_t announced[ANNOUNCED_SLOTS]; /* hashes of paths; 1: one was taken out */
  uint32_t announced_count;
  uint32_t moved_cookie; /* of a temporary file on its way to its name */
  int moved_replaces;
  struct timespec quiet_at; /* when all there was had been told */
  char written[PATH_MAX]; /* what was told last, when it was a change of content */
};

/* Telling */

static int flush_changes(struct watch *watch) {
  struct frame_writer *writer = &worker.writer;
  watch->written[0] = 0;
  if (watch->in_frame == 0) return 0;
  if (!writer->failed) {
    uint8_t *at = writer->data + writer->frame + FRAME_HEADER_BYTES;
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(watch->in_frame >> (8 * i));
  }
  frame_end(writer);
  watch->in_frame = 0;
  return worker_flush();
}

static int tell(struct watch *watch, uint8_t kind, int is_directory, const char *path) {
  struct frame_writer *writer = &worker.writer;
  if (kind == WRITTEN && strcmp(watch->written, path) == 0) return 0;
  strcpy(watch->written, kind == WRITTEN ? path : "");
  if (watch->in_frame == 0) {
    frame_begin(writer, FRAME_CHANGES, watch->request->id);
    put_u32(writer, 0);
  }
  put_u8(writer, kind);
  put_u8(writer, (uint8_t)is_directory);
  put_str(writer, path);
  watch->in_frame++;
  return writer->end - writer->frame > CHANGES_BYTES ? flush_changes(watch) : 0;
}

static int is_ignored(struct watch *watch, const char *path) {
  char absolute[PATH_MAX];
  if (!watch->ignored) return 0;
  const char *root = strcmp(watch->request->path, "/") == 0 ? "" : watch->request->path;
  if (strlen(root) + 1 + strlen(path) >= PATH_MAX) return 0;
  strcpy(absolute, root);
  strcat(absolute, "/");
  strcat(absolute, path);
  return matcher_find(watch->ignored, (uint8_t *)absolute, (uint8_t *)absolute + strlen(absolute)) != NULL;
}

/* What was told of already, so that the kernel's own event for it is not told again */

static uint64_t hash_of(const char *path) {
  uint64_t hash = 14695981039346656037ULL;
  for (; *path; path++) hash = (hash ^ (uint8_t)*path) * 1099511628211ULL;
  return hash | 2;
}

static uint64_t *announced_slot(struct watch *watch, const char *path) {
  uint64_t hash = hash_of(path);
  uint64_t *slot = &watch->announced[hash % ANNOUNCED_SLOTS];
  while (*slot && *slot != hash)
    slot = slot + 1 == watch->announced + ANNOUNCED_SLOTS ? watch->announced : slot + 1;
  return slot;
}

static void announce(struct watch *watch, const char *path) {
  uint64_t *slot = announced_slot(watch, path);
  if (*slot || watch->announced_count == ANNOUNCED_MAX) return;
  *slot = hash_of(path);
  watch->announced_count++;
}

static int take_announced(struct watch *watch, const char *path) {
  uint64_t *slot = watch->announced_count > 0 ? announced_slot(watch, path) : NULL;
  if (!slot || !*slot) return 0;
  *slot = 1;
  return 1;
}

/* Directories */

static struct watched *find(struct watch *watch, int wd) {
  struct watched *one = watch->buckets[(unsigned)wd % BUCKETS];
  while (one && one->wd != wd) one = one->next;
  return one;
}

static void drop(struct watch *watch, int wd) {
  struct watched **at = &watch->buckets[(unsigned)wd % BUCKETS];
  while (*at && (*at)->wd != wd) at = &(*at)->next;
  struct watched *one = *at;
  if (!one) return;
  *at = one->next;
  free(one);
  watch->count--;
}

static int is_below(const char *path, const char *dir) {
  size_t length = strlen(dir);
  return strncmp(path, dir, length) == 0 && (!path[length] || path[length] == '/');
}

/* Of a directory that is no longer where it was, with all below it; or, without one, of all that no rescan has found. */
static void drop_tree(struct watch *watch, const char *path) {
  for (int bucket = 0; bucket < BUCKETS; bucket++) {
    for (struct watched **at = &watch->buckets[bucket]; *at;) {
      struct watched *one = *at;
      int gone = path ? is_below(one->path, path) : one->generation != watch->generation;
      if (!gone) {
        at = &one->next;
        continue;
      }
      inotify_rm_watch(watch->fd, one->wd);
      *at = one->next;
      free(one);
      watch->count--;
    }
  }
}

/* 1: new, 0: it was watched already, -1 with errno. */
static int add(struct watch *watch, const char *path) {
  char absolute[PATH_MAX];
  uint32_t mask = wanted | (path[0] ? IN_DONT_FOLLOW : 0);
  errno = ENAMETOOLONG;
  if (strlen(watch->request->path) + 1 + strlen(path) >= PATH_MAX) return -1;
  strcpy(absolute, watch->request->path);
  strcat(absolute, path[0] ? "/" : "");
  strcat(absolute, path);
  errno = ENOSPC;
  if (watch->count >= DIRECTORIES_MAX) return -1;
  int wd = inotify_add_watch(watch->fd, absolute, mask);
  if (wd < 0) return -1;
  if (!path[0]) watch->root_wd = wd;
  struct watched *one = find(watch, wd);
  int known = one && strcmp(one->path, path) == 0;
  if (known) {
    one->generation = watch->generation;
    return 0;
  }
  if (one) drop(watch, wd);
  one = malloc(sizeof *one + strlen(path) + 1);
  if (!one) return -1;
  *one = (struct watched){.next = watch->buckets[(unsigned)wd % BUCKETS], .wd = wd, .generation = watch->generation};
  strcpy(one->path, path);
  watch->buckets[(unsigned)wd % BUCKETS] = one;
  watch->count++;
  return 1;
}

static int push(struct waiting **list, const char *path, int announce_it) {
  struct waiting *one = malloc(sizeof *one + strlen(path) + 1);
  if (!one) return -1;
  *one = (struct waiting){.next = *list, .announce = announce_it};
  strcpy(one->path, path);
  *list = one;
  return 0;
}

static int changed_since_quiet(const struct watch *watch, int dir_fd, const char *name) {
  struct stat stat;
  if (fstatat(dir_fd, name, &stat, AT_SYMLINK_NOFOLLOW) < 0) return 0;
  return stat.st_ctim.tv_sec >= watch->quiet_at.tv_sec - RESCAN_SLACK_S;
}

/* Watches a directory, then looks into it: what came to be before it was watched is told here. */
static int scan(struct watch *watch, struct waiting **list, const struct waiting *dir) {
  static struct dents dents;
  struct dent dent;
  char path[PATH_MAX];
  int rescans = watch->generation > 0;
  dents.fd = tree_open_directory(&watch->root, dir->path);
  if (dents.fd < 0) return errno == EMFILE || errno == ENFILE ? -1 : 0;
  int added = add(watch, dir->path), result = 0;
  if (added < 0) {
    int error = errno;
    close(dents.fd);
    errno = error;
    /* Gone again, or not ours to look into. */
    return error == ENOENT || error == ENOTDIR || error == EACCES || error == ENAMETOOLONG ? 0 : -1;
  }
  int announces = dir->announce || (rescans && added == 1);
  int recursive = watch->request->flags & WATCH_RECURSIVE;
  int looks = announces || rescans || recursive;
  while (looks && result == 0 && dents_fill(&dents) > 0) {
    while (result == 0 && dents_next(&dents, &dent)) {
      int is_directory = dent.type == DT_DIR;
      if (!announces && !rescans && !is_directory) continue;
      if (tree_join(path, dir->path, dent.name) < 0 || is_ignored(watch, path)) continue;
      if (announces) {
        announce(watch, path);
        result = tell(watch, CREATED, is_directory, path);
      } else if (rescans && !is_directory && changed_since_quiet(watch, dents.fd, dent.name)) {
        result = tell(watch, WRITTEN, 0, path);
      }
      if (result == 0 && is_directory && recursive) result = push(list, path, announces);
    }
  }
  close(dents.fd);
  return result;
}

/* The root is open only meanwhile: a directory that is held open does not tell that it was removed. */
static int add_tree(struct watch *watch, const char *path, int announces) {
  struct waiting *list = NULL;
  if (tree_open(&watch->root, watch->request->path) < 0) return -1;
  int result = push(&list, path, announces);
  while (list) {
    struct waiting *one = list;
    list = one->next;
    if (result == 0) result = scan(watch, &list, one);
    int error = errno;
    free(one);
    errno = error;
  }
  int error = errno;
  close(watch->root.fd);
  errno = error;
  return result;
}

/* Events */

static int tell_lost(struct watch *watch) { return tell(watch, LOST, 0, ""); }

static int rescan(struct watch *watch) {
  watch->generation++;
  memset(watch->announced, 0, sizeof watch->announced);
  watch->announced_count = 0;
  if (tell_lost(watch) < 0) return -1;
  if (add_tree(watch, "", 0) == 0) drop_tree(watch, NULL);
  else if (errno == ENOENT || errno == ENOTDIR) watch->ended = 1;
  else if (errno != ENOSPC) return -1;
  return 0;
}

/* A new name, by whatever way it came. */
static int appeared(struct watch *watch, const char *path, int is_directory) {
  if (take_announced(watch, path)) return 0;
  if (tell(watch, CREATED, is_directory, path) < 0) return -1;
  if (!is_directory || !(watch->request->flags & WATCH_RECURSIVE)) return 0;
  if (add_tree(watch, path, 1) == 0) return 0;
  /* More than can be watched: what happens there stays unseen, and that is said. */
  return tell_lost(watch);
}

static int on_named(struct watch *watch, const struct inotify_event *event, const char *path) {
  int is_directory = (event->mask & IN_ISDIR) != 0;
  if (files_is_temporary(event->name)) {
    if (!(event->mask & IN_MOVED_FROM)) return 0;
    watch->moved_cookie = event->cookie;
    watch->moved_replaces = event->name[strlen(FILES_TEMPORARY)] == FILES_REPLACES;
    return 0;
  }
  if (is_ignored(watch, path)) return 0;
  if (event->mask & IN_MOVED_TO && event->cookie && event->cookie == watch->moved_cookie) {
    watch->moved_cookie = 0;
    if (!watch->moved_replaces && appeared(watch, path, 0) < 0) return -1;
    return tell(watch, WRITTEN, 0, path);
  }
  if (event->mask & (IN_CREATE | IN_MOVED_TO)) return appeared(watch, path, is_directory);
  if (event->mask & IN_MODIFY) return tell(watch, WRITTEN, is_directory, path);
  if (event->mask & IN_ATTRIB) return tell(watch, ATTRIBUTES, is_directory, path);
  if (!(event->mask & (IN_DELETE | IN_MOVED_FROM))) return 0;
  take_announced(watch, path);
  if (is_directory) drop_tree(watch, path);
  return tell(watch, event->mask & IN_DELETE ? REMOVED : RENAMED, is_directory, path);
}

static int on_event(struct watch *watch, const struct inotify_event *event) {
  char path[PATH_MAX];
  if (event->mask & IN_Q_OVERFLOW) {
    watch->lost = 1;
    return 0;
  }
  struct watched *dir = find(watch, event->wd);
  if (!dir) return 0;
  if (event->mask & IN_DELETE_SELF && event->wd == watch->root_wd) {
    watch->ended = 1;
    return tell(watch, REMOVED, 1, "");
  }
  if (event->mask & IN_IGNORED) {
    if (event->wd == watch->root_wd) watch->ended = 1;
    drop(watch, event->wd);
    return 0;
  }
  if (event->len == 0 || tree_join(path, dir->path, event->name) < 0) return 0;
  return on_named(watch, event, path);
}

static int on_events(struct watch *watch) {
  static _Alignas(struct inotify_event) uint8_t buffer[EVENTS_BYTES];
  ssize_t got = read(watch->fd, buffer, sizeof buffer);
  if (got < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
  for (ssize_t at = 0; at < got;) {
    const struct inotify_event *event = (const struct inotify_event *)(buffer + at);
    if (on_event(watch, event) < 0) return -1;
    at += (ssize_t)sizeof *event + event->len;
  }
  if (watch->lost) {
    watch->lost = 0;
    if (rescan(watch) < 0) return -1;
  }
  return flush_changes(watch);
}

static int follow(struct watch *watch) {
  while (!watch->ended) {
    struct pollfd pollers[] = {{.fd = watch->fd, .events = POLLIN}, {.fd = worker.fd, .events = POLLRDHUP}};
    int ready = poll(pollers, 2, 0);
    if (ready == 0) {
      clock_gettime(CLOCK_REALTIME, &watch->quiet_at);
      if (watch->announced_count > 0) memset(watch->announced, 0, sizeof watch->announced);
      watch->announced_count = 0;
      ready = poll(pollers, 2, -1);
    }
    if (ready < 0 && errno != EINTR) return -1;
    if (ready <= 0) continue;
    if (pollers[1].revents) return -1;
    if (on_events(watch) < 0) return -1;
  }
  if (flush_changes(watch) < 0) return -1;
  frame_begin(&worker.writer, FRAME_END, watch->request->id);
  frame_end(&worker.writer);
  return 0;
}

static int begin(struct watch *watch) {
  watch->fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  if (watch->fd < 0) return -1;
  clock_gettime(CLOCK_REALTIME, &watch->quiet_at);
  if (watch->request->prune.count > 0 && !(watch->ignored = matcher_new(&watch->request->prune, 0))) return -1;
  return add_tree(watch, "", 0);
}

int serve_watch(const struct tree_request *request) {
  struct watch *watch = calloc(1, sizeof *watch);
  if (!watch) {
    worker_fail(request->id, ENOMEM, "watch");
    return 0;
  }
  watch->request = request;
  watch->fd = -1;
  int result = 0;
  if (begin(watch) < 0) {
    worker_fail(request->id, errno, "watch");
  } else {
    frame_ok(&worker.writer, request->id);
    result = worker_flush() < 0 ? -1 : follow(watch);
  }
  if (watch->fd >= 0) close(watch->fd);
  for (int bucket = 0; bucket < BUCKETS; bucket++) {
    while (watch->buckets[bucket]) {
      struct watched *next = watch->buckets[bucket]->next;
      free(watch->buckets[bucket]);
      watch->buckets[bucket] = next;
    }
  }
  matcher_free(watch->ignored);
  free(watch);
  return result;
}
