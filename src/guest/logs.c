/* The segmented record logs that processes' output goes to. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

enum { SEGMENTS_PER_LOG = 8, RECORD_DATA_BYTES_MIN = 4096, NAME_BYTES = 32, SEGMENTS_RESUMED_MAX = 64 };

static int log_dir_fd = -1;
static uint64_t kept_bytes; /* in all segments */
static uint32_t stale_ids[PROCESSES_MAX]; /* processes of earlier lives, in order of their ids */
static size_t stale_first, stale_end;

static void segment_name(char *name, uint32_t process_id, uint64_t start) {
  snprintf(name, NAME_BYTES, "%u/%016llx", process_id, (unsigned long long)start);
}

static DIR *open_directory(const char *name) {
  int fd = openat(log_dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  DIR *dir = fd < 0 ? NULL : fdopendir(fd);
  if (!dir && fd >= 0) close(fd);
  return dir;
}

/* Counts what an earlier life of this guest left under a process id, or removes and discounts it. */
static void stale_walk(const char *name, int remove) {
  DIR *dir = open_directory(name);
  struct dirent *entry;
  while (dir && (entry = readdir(dir))) {
    struct stat status;
    if (entry->d_name[0] == '.' || fstatat(dirfd(dir), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0) continue;
    if (!remove) kept_bytes += (uint64_t)status.st_size;
    else if (unlinkat(dirfd(dir), entry->d_name, 0) == 0)
      kept_bytes -= kept_bytes < (uint64_t)status.st_size ? kept_bytes : (uint64_t)status.st_size;
  }
  if (dir) closedir(dir);
}

static int by_number(const void *left, const void *right) {
  uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
  return (a > b) - (a < b);
}

void logs_init(int dir_fd) {
  log_dir_fd = dir_fd;
  DIR *dir = dir_fd < 0 ? NULL : open_directory(".");
  struct dirent *entry;
  while (dir && (entry = readdir(dir)) && stale_end < PROCESSES_MAX) {
    if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
    stale_walk(entry->d_name, 0);
    stale_ids[stale_end++] = (uint32_t)strtoul(entry->d_name, NULL, 10);
  }
  if (dir) closedir(dir);
  qsort(stale_ids, stale_end, sizeof *stale_ids, by_number);
}

void logs_forget(uint32_t process_id) {
  char name[NAME_BYTES];
  snprintf(name, sizeof name, "%u", process_id);
  stale_walk(name, 1);
  unlinkat(log_dir_fd, name, AT_REMOVEDIR);
}

static int make_directory(uint32_t process_id) {
  char name[NAME_BYTES];
  snprintf(name, sizeof name, "%u", process_id);
  int made = mkdirat(log_dir_fd, name, 0700);
  if (made < 0 && errno == EEXIST) stale_walk(name, 1);
  return made;
}

void log_open(struct log *log, uint32_t process_id, uint64_t bytes_max) {
  memset(log, 0, sizeof *log);
  log->process_id = process_id;
  log->fd = -1;
  log->bytes_max = bytes_max;
  log->segment_bytes_max = bytes_max / SEGMENTS_PER_LOG;
  if (log->segment_bytes_max < SEGMENT_BYTES_MIN) log->segment_bytes_max = SEGMENT_BYTES_MIN;
  make_directory(process_id);
}

static int by_start(const void *left, const void *right) {
  uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
  return (a > b) - (a < b);
}

/* The starts of the segments that are there, in order, at most `max`; the number of them. */
static size_t find_segments(uint32_t process_id, uint64_t *starts, size_t max) {
  char name[NAME_BYTES];
  snprintf(name, sizeof name, "%u", process_id);
  DIR *dir = open_directory(name);
  struct dirent *entry;
  size_t count = 0;
  while (dir && count < max && (entry = readdir(dir))) {
    char *end;
    if (strlen(entry->d_name) != 16) continue;
    starts[count] = strtoull(entry->d_name, &end, 16);
    if (!*end) count++;
  }
  if (dir) closedir(dir);
  qsort(starts, count, sizeof *starts, by_start);
  return count;
}

void log_resume(struct log *log, uint32_t process_id, uint64_t bytes_max) {
  uint64_t starts[SEGMENTS_RESUMED_MAX];
  size_t count = find_segments(process_id, starts, SEGMENTS_RESUMED_MAX);
  char name[NAME_BYTES];
  struct stat status;
  if (count == 0) {
    log_open(log, process_id, bytes_max);
    return;
  }
  memset(log, 0, sizeof *log);
  log->process_id = process_id;
  log->fd = -1;
  log->bytes_max = bytes_max;
  log->segment_bytes_max = bytes_max / SEGMENTS_PER_LOG;
  if (log->segment_bytes_max < SEGMENT_BYTES_MIN) log->segment_bytes_max = SEGMENT_BYTES_MIN;
  for (size_t i = 0; i < count; i++) {
    struct segment *segment = calloc(1, sizeof *segment);
    if (!segment) break;
    segment->start = starts[i];
    if (log->last) log->last->next = segment;
    else log->first = segment;
    log->last = segment;
  }
  if (!log->last) return;
  segment_name(name, process_id, log->last->start);
  uint64_t size = fstatat(log_dir_fd, name, &status, AT_SYMLINK_NOFOLLOW) < 0 ? 0 : (uint64_t)status.st_size;
  log->start = log->first->start;
  log->end = log->last->start + size;
}

static uint64_t segment_left(const struct log *log) {
  uint64_t used = log->last ? log->end - log->last->start : log->segment_bytes_max;
  return used < log->segment_bytes_max ? log->segment_bytes_max - used : 0;
}

static void drop_first(struct log *log) {
  struct segment *first = log->first;
  char name[NAME_BYTES];
  segment_name(name, log->process_id, first->start);
  unlinkat(log_dir_fd, name, 0);
  kept_bytes -= (first->next ? first->next->start : log->end) - first->start;
  if (first == log->last) {
    log_idle(log);
    log->last = NULL;
  }
  log->first = first->next;
  log->start = log->first ? log->first->start : log->end;
  free(first);
}

/* Frees a part of the logs for this one. 0: nothing may go. */
static int evict(struct log *log, uint64_t slowest) {
  if (stale_first < stale_end) {
    uint32_t id = stale_ids[stale_first++];
    if (!process_of(id)) logs_forget(id);
    return 1;
  }
  struct log *largest = NULL;
  for (struct process *process = processes_first(); process; process = process->next) {
    struct log *other = &process->log;
    if (other == log || !other->first || process->followers) continue;
    if (process->state != STATE_RUNNING) {
      drop_first(other);
      return 1;
    }
    if (!largest || other->end - other->start > largest->end - largest->start) largest = other;
  }
  if (log->first && slowest >= (log->first->next ? log->first->next->start : log->end)) largest = log;
  if (!largest) return 0;
  drop_first(largest);
  return 1;
}

size_t log_room(struct log *log, uint64_t slowest, int force) {
  uint64_t left = segment_left(log);
  int rotate = left < RECORD_HEADER_BYTES + RECORD_DATA_BYTES_MIN;
  size_t room = RECORD_DATA_BYTES_MAX;
  if (!rotate && left - RECORD_HEADER_BYTES < room) room = (size_t)left - RECORD_HEADER_BYTES;
  while (log->first && (rotate || log->first != log->last) &&
         log->end - log->start + RECORD_HEADER_BYTES + room > log->bytes_max) {
    uint64_t segment_end = log->first->next ? log->first->next->start : log->end;
    if (slowest < segment_end) return force ? room : 0;
    drop_first(log);
  }
  while (kept_bytes + RECORD_HEADER_BYTES + room > LOGS_BYTES_MAX)
    if (!evict(log, slowest)) return force || slowest >= log->end ? room : 0;
  return room;
}

/* Makes `fd` the segment that the next record goes to. */
static int segment_ready(struct log *log, size_t bytes) {
  char name[NAME_BYTES];
  if (log->last && segment_left(log) >= bytes) {
    if (log->fd >= 0) return 0;
    segment_name(name, log->process_id, log->last->start);
    log->fd = openat(log_dir_fd, name, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    return log->fd < 0 ? -1 : 0;
  }
  log_idle(log);
  struct segment *segment = malloc(sizeof *segment);
  if (!segment) return -1;
  segment->next = NULL;
  segment->start = log->end;
  segment_name(name, log->process_id, segment->start);
  int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  log->fd = openat(log_dir_fd, name, flags, 0600);
  if (log->fd < 0 && errno == ENOENT && make_directory(log->process_id) == 0)
    log->fd = openat(log_dir_fd, name, flags, 0600);
  if (log->fd < 0) {
    free(segment);
    return -1;
  }
  if (log->last) log->last->next = segment;
  else log->first = segment;
  log->last = segment;
  return 0;
}

void log_append(struct log *log, uint8_t stream, uint8_t *record, size_t length, uint64_t now_ms) {
  size_t bytes = RECORD_HEADER_BYTES + length;
  if (segment_ready(log, bytes) < 0) return;
  for (int i = 0; i < 4; i++) record[i] = (uint8_t)(length >> (8 * i));
  record[4] = stream;
  record[5] = record[6] = record[7] = 0;
  for (int i = 0; i < 8; i++) record[8 + i] = (uint8_t)(now_ms >> (8 * i));
  off_t at = (off_t)(log->end - log->last->start);
  ssize_t written = pwrite(log->fd, record, bytes, at);
  if (written == (ssize_t)bytes) {
    log->end += bytes;
    kept_bytes += bytes;
    return;
  }
  /* A full disk: half a record must not stay, and the next one is tried at the same place. */
  if (written > 0 && ftruncate(log->fd, at) < 0) return;
}

void log_idle(struct log *log) {
  if (log->fd >= 0) close(log->fd);
  log->fd = -1;
}

void log_remove(struct log *log) {
  while (log->first) drop_first(log);
  char name[NAME_BYTES];
  snprintf(name, sizeof name, "%u", log->process_id);
  unlinkat(log_dir_fd, name, AT_REMOVEDIR);
}
