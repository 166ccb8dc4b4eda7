/* WALK, and what the requests about directory trees have in common. */
#define _GNU_SOURCE
#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.h"

enum {
  FOUND_BYTES = 64 << 10, /* a FOUND frame is sent once it is this long */
  FOUND_MAX = 1000,
  PENDING_BYTES_MAX = 32 << 20, /* paths of directories that are still to be walked */
  SORTED_MAX = 1 << 20, /* entries of one directory that are put in order together */
  SORTED_BYTES_MAX = 48 << 20,
  CONTEXT_LINES_MAX = 1000,
  CANCEL_DIRECTORIES = 16,
};

/* Requests */

int tree_decode(const struct frame *frame, struct tree_request *request) {
  struct payload payload = payload_of(frame);
  memset(request, 0, sizeof *request);
  request->type = frame->type;
  request->id = frame->id;
  int wrong = 0;
  switch (frame->type) {
    case FRAME_WALK:
      request->flags = payload_u8(&payload);
      request->depth_max = payload_u32(&payload);
      request->results_max = payload_u32(&payload);
      break;
    case FRAME_SEARCH:
      request->flags = payload_u8(&payload);
      request->results_max = payload_u32(&payload);
      request->context_before = payload_u32(&payload);
      request->context_after = payload_u32(&payload);
      wrong = request->context_before > CONTEXT_LINES_MAX || request->context_after > CONTEXT_LINES_MAX;
      break;
    case FRAME_WATCH:
    case FRAME_COPY:
      request->flags = payload_u8(&payload);
      break;
    case FRAME_CHOWN:
      request->flags = payload_u8(&payload);
      request->uid = payload_u32(&payload);
      request->gid = payload_u32(&payload);
      break;
    default:
      return -1;
  }
  request->path = payload_str(&payload);
  if (frame->type == FRAME_COPY) request->to = payload_str(&payload);
  int has_patterns = frame->type == FRAME_WALK || frame->type == FRAME_SEARCH;
  if (has_patterns || frame->type == FRAME_WATCH) wrong |= pattern_decode(&payload, &request->prune) < 0;
  if (has_patterns) {
    wrong |= pattern_decode(&payload, &request->include) < 0;
    wrong |= pattern_decode(&payload, &request->exclude) < 0;
  }
  if (frame->type == FRAME_SEARCH) {
    wrong |= pattern_decode(&payload, &request->lines) != 1;
    wrong |= literals_decode(&payload, &request->literals) < 0;
    wrong |= request->flags & TREE_EXACT && request->literals.count != 1;
  }
  return !wrong && payload_done(&payload) ? 0 : -1;
}

void tree_request_free(struct tree_request *request) {
  pattern_free(&request->prune);
  pattern_free(&request->include);
  pattern_free(&request->exclude);
  pattern_free(&request->lines);
}

void tree_answer_summary(uint32_t id, const struct tree_summary *summary) {
  struct frame_writer *writer = &worker.writer;
  frame_begin(writer, FRAME_SUMMARY, id);
  put_u64(writer, summary->entries);
  put_u64(writer, summary->bytes);
  put_u64(writer, summary->skipped);
  put_u8(writer, summary->truncated);
  frame_end(writer);
}

/* What belongs to the result */

static int matcher_of(const struct pattern *pattern, struct matcher **matcher) {
  if (pattern->count == 0) return 0;
  *matcher = matcher_new(pattern, 0);
  return *matcher ? 0 : -1;
}

int tree_filter_init(struct tree_filter *filter, const struct tree_request *request) {
  memset(filter, 0, sizeof *filter);
  filter->skip_hidden = request->flags & TREE_SKIP_HIDDEN;
  if (matcher_of(&request->prune, &filter->prune) == 0 && matcher_of(&request->include, &filter->include) == 0 &&
      matcher_of(&request->exclude, &filter->exclude) == 0)
    return 0;
  tree_filter_free(filter);
  errno = ENOMEM;
  return -1;
}

void tree_filter_free(struct tree_filter *filter) {
  matcher_free(filter->prune);
  matcher_free(filter->include);
  matcher_free(filter->exclude);
  memset(filter, 0, sizeof *filter);
}

static int fits(struct matcher *matcher, const char *path) {
  return matcher_find(matcher, (const uint8_t *)path, (const uint8_t *)path + strlen(path)) != NULL;
}

int tree_filter_test(struct tree_filter *filter, const char *path, const char *name, int is_directory) {
  if (filter->skip_hidden && name[0] == '.') return TREE_OUT;
  if (is_directory && filter->prune && fits(filter->prune, path)) return TREE_OUT;
  if (filter->exclude && fits(filter->exclude, path)) return TREE_OUT;
  return !filter->include || fits(filter->include, path) ? TREE_IN : TREE_IN_UNLISTED;
}

int tree_join(char path[PATH_MAX], const char *dir, const char *name) {
  size_t dir_length = strlen(dir), name_length = strlen(name);
  size_t slash = dir_length > 0;
  errno = ENAMETOOLONG;
  if (dir_length + slash + name_length >= PATH_MAX) return -1;
  memcpy(path, dir, dir_length);
  if (slash) path[dir_length] = '/';
  memcpy(path + dir_length + slash, name, name_length + 1);
  return 0;
}

/* Directories */

enum { OPEN_DIRECTORY = O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC };

int tree_open(struct tree_root *root, const char *path) {
  struct stat stat;
  root->fd = open(path, OPEN_DIRECTORY);
  if (root->fd < 0) return -1;
  if (fstat(root->fd, &stat) < 0) {
    close(root->fd);
    return -1;
  }
  root->device = stat.st_dev;
  root->synthetic = is_synthetic(root->fd);
  return 0;
}

int tree_open_directory(const struct tree_root *root, const char *path) {
  struct stat stat;
  int fd = openat(root->fd, path[0] ? path : ".", OPEN_DIRECTORY | O_NOFOLLOW);
  if (fd < 0) return -1;
  if (root->synthetic || (fstat(fd, &stat) == 0 && (stat.st_dev == root->device || !is_synthetic(fd)))) return fd;
  close(fd);
  errno = EXDEV;
  return -1;
}

struct kernel_dent {
  uint64_t inode;
  int64_t offset;
  uint16_t bytes;
  uint8_t type;
  char name[];
};

int dents_fill(struct dents *dents) {
  dents->at = 0;
  dents->bytes = syscall(SYS_getdents64, dents->fd, dents->buffer, sizeof dents->buffer);
  if (dents->bytes > 0) return 1;
  int result = dents->bytes < 0 ? -1 : 0;
  dents->bytes = 0;
  return result;
}

int dents_next(struct dents *dents, struct dent *dent) {
  while (dents->at < dents->bytes) {
    const struct kernel_dent *one = (const struct kernel_dent *)(dents->buffer + dents->at);
    dents->at += one->bytes;
    const char *name = one->name;
    if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]) || files_is_temporary(name))) continue;
    *dent = (struct dent){name, one->type};
    if (dent->type != DT_UNKNOWN) return 1;
    struct stat stat;
    if (fstatat(dents->fd, name, &stat, AT_SYMLINK_NOFOLLOW) < 0) continue;
    dent->type = (uint8_t)IFTODT(stat.st_mode);
    return 1;
  }
  return 0;
}

/* WALK: level by level, each directory in the order of its names */

struct pending {
  struct pending *next;
  uint32_t depth;
  char path[];
};

struct named {
  uint8_t type;
  char name[];
};

struct walk {
  const struct tree_request *request;
  struct tree_root root;
  struct tree_filter filter;
  struct tree_summary summary;
  struct pending *first, **last;
  size_t pending_bytes;
  uint32_t results, in_frame;
  struct named **sorted; /* into `arena`, as offsets until they are put in order */
  size_t sorted_count, sorted_room;
  char *arena;
  size_t arena_used, arena_room;
};

static int flush_found(struct walk *walk) {
  struct frame_writer *writer = &worker.writer;
  if (walk->in_frame == 0) return 0;
  if (!writer->failed) {
    uint8_t *at = writer->data + writer->frame + FRAME_HEADER_BYTES;
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(walk->in_frame >> (8 * i));
  }
  frame_end(writer);
  walk->in_frame = 0;
  return worker_flush();
}

/* 1: the most wanted are there already. */
static int list_entry(struct walk *walk, int dir_fd, const struct named *one, const char *path) {
  struct frame_writer *writer = &worker.writer;
  struct stat stat = {.st_mode = DTTOIF(one->type)};
  char target[PATH_MAX] = "";
  if (walk->results == walk->request->results_max) {
    walk->summary.truncated = 1;
    return 1;
  }
  if (walk->request->flags & TREE_STAT) {
    if (fstatat(dir_fd, one->name, &stat, AT_SYMLINK_NOFOLLOW) < 0) return 0;
    read_link(dir_fd, one->name, stat.st_mode, target);
  }
  if (walk->in_frame == 0) {
    frame_begin(writer, FRAME_FOUND, walk->request->id);
    put_u32(writer, 0);
  }
  put_entry(&stat, path, target);
  walk->results++;
  walk->in_frame++;
  int full = walk->in_frame == FOUND_MAX || writer->end - writer->frame > FOUND_BYTES;
  return full ? flush_found(walk) : 0;
}

static int push_pending(struct walk *walk, const char *path, uint32_t depth) {
  size_t bytes = sizeof(struct pending) + strlen(path) + 1;
  if (walk->pending_bytes + bytes > PENDING_BYTES_MAX) return -1;
  struct pending *pending = malloc(bytes);
  if (!pending) return -1;
  *pending = (struct pending){.depth = depth};
  strcpy(pending->path, path);
  *walk->last = pending;
  walk->last = &pending->next;
  walk->pending_bytes += bytes;
  return 0;
}

static int keep_name(struct walk *walk, const struct dent *dent) {
  size_t bytes = sizeof(struct named) + strlen(dent->name) + 1;
  if (walk->arena_used + bytes > walk->arena_room) {
    size_t room = walk->arena_room ? 2 * walk->arena_room : DENTS_BYTES;
    char *grown = realloc(walk->arena, room);
    if (!grown) return -1;
    walk->arena = grown;
    walk->arena_room = room;
  }
  if (walk->sorted_count == walk->sorted_room) {
    size_t room = walk->sorted_room ? 2 * walk->sorted_room : 1024;
    struct named **grown = realloc(walk->sorted, room * sizeof *grown);
    if (!grown) return -1;
    walk->sorted = grown;
    walk->sorted_room = room;
  }
  struct named *named = (struct named *)(walk->arena + walk->arena_used);
  named->type = dent->type;
  strcpy(named->name, dent->name);
  walk->sorted[walk->sorted_count++] = (struct named *)walk->arena_used;
  walk->arena_used += bytes;
  return 0;
}

static int by_name(const void *a, const void *b) {
  return strcmp((*(struct named *const *)a)->name, (*(struct named *const *)b)->name);
}

/* What was kept of one directory: 1 when enough is found, -1 when the connection ended. */
static int walk_sorted(struct walk *walk, int fd, const struct pending *dir) {
  for (size_t i = 0; i < walk->sorted_count; i++)
    walk->sorted[i] = (struct named *)(walk->arena + (size_t)walk->sorted[i]);
  qsort(walk->sorted, walk->sorted_count, sizeof *walk->sorted, by_name);
  uint32_t depth_max = walk->request->depth_max;
  int result = 0;
  for (size_t i = 0; i < walk->sorted_count && result == 0; i++) {
    const struct named *one = walk->sorted[i];
    char path[PATH_MAX];
    int is_directory = one->type == DT_DIR;
    walk->summary.entries++;
    if (tree_join(path, dir->path, one->name) < 0) {
      walk->summary.skipped++;
      continue;
    }
    int tested = tree_filter_test(&walk->filter, path, one->name, is_directory);
    if (tested == TREE_OUT) continue;
    int wanted = walk->request->flags & (is_directory ? TREE_DIRECTORIES : TREE_FILES);
    if (tested == TREE_IN && wanted) result = list_entry(walk, fd, one, path);
    if (result != 0 || !is_directory || (depth_max && dir->depth >= depth_max)) continue;
    if (push_pending(walk, path, dir->depth + 1) < 0) walk->summary.truncated = 1;
  }
  walk->sorted_count = walk->arena_used = 0;
  return result;
}

static int walk_directory(struct walk *walk, const struct pending *dir) {
  static struct dents dents;
  struct dent dent;
  dents.fd = tree_open_directory(&walk->root, dir->path);
  if (dents.fd < 0) {
    walk->summary.skipped++;
    return 0;
  }
  int result = 0, filled;
  while (result == 0 && (filled = dents_fill(&dents)) > 0) {
    while (result == 0 && dents_next(&dents, &dent)) {
      if (keep_name(walk, &dent) < 0) {
        walk->summary.truncated = 1;
        result = walk_sorted(walk, dents.fd, dir);
      }
    }
    if (walk->sorted_count >= SORTED_MAX || walk->arena_used >= SORTED_BYTES_MAX)
      result = result ? result : walk_sorted(walk, dents.fd, dir);
  }
  if (result == 0 && filled < 0) walk->summary.skipped++;
  if (result == 0) result = walk_sorted(walk, dents.fd, dir);
  walk->sorted_count = walk->arena_used = 0;
  close(dents.fd);
  return result;
}

static int serve_walk(const struct tree_request *request) {
  struct walk walk = {.request = request};
  walk.last = &walk.first;
  if (tree_open(&walk.root, request->path) < 0) {
    worker_fail(request->id, errno, "open");
    return 0;
  }
  int result = tree_filter_init(&walk.filter, request) < 0 || push_pending(&walk, "", 1) < 0 ? -2 : 0;
  for (uint32_t count = 1; walk.first && result == 0; count++) {
    struct pending *dir = walk.first;
    walk.first = dir->next;
    if (!walk.first) walk.last = &walk.first;
    walk.pending_bytes -= sizeof *dir + strlen(dir->path) + 1;
    result = count % CANCEL_DIRECTORIES == 0 && worker_cancelled() ? -1 : walk_directory(&walk, dir);
    free(dir);
  }
  if (result == -2) {
    worker_fail(request->id, ENOMEM, "walk");
  } else if (result >= 0) {
    if (flush_found(&walk) < 0) result = -1;
    else tree_answer_summary(request->id, &walk.summary);
  }
  while (walk.first) {
    struct pending *next = walk.first->next;
    free(walk.first);
    walk.first = next;
  }
  free(walk.sorted);
  free(walk.arena);
  tree_filter_free(&walk.filter);
  close(walk.root.fd);
  return result == -1 ? -1 : 0;
}

static void serve_chown(const struct tree_request *request) {
  int flags = request->flags & CHOWN_FOLLOW ? 0 : AT_SYMLINK_NOFOLLOW;
  if (fchownat(AT_FDCWD, request->path, request->uid, request->gid, flags) < 0)
    worker_fail(request->id, errno, "chown");
  else
    frame_ok(&worker.writer, request->id);
}

static int path_error(const char *path) {
  if (path[0] != '/') return EINVAL;
  return strlen(path) >= PATH_MAX ? ENAMETOOLONG : 0;
}

static int serve(const struct tree_request *request) {
  int error = path_error(request->path);
  if (!error && request->to) error = path_error(request->to);
  if (error) {
    worker_fail(request->id, error, "path");
    return 0;
  }
  switch (request->type) {
    case FRAME_WALK:
      return serve_walk(request);
    case FRAME_SEARCH:
      return serve_search(request);
    case FRAME_WATCH:
      return serve_watch(request);
    case FRAME_COPY:
      serve_copy(request);
      return 0;
    default:
      serve_chown(request);
      return 0;
  }
}

int tree_serve(const struct frame *frame) {
  struct tree_request request;
  int result = tree_decode(frame, &request) < 0 ? -1 : serve(&request);
  tree_request_free(&request);
  return result;
}
