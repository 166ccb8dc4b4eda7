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

enum { SEGMENTS_PER_LOG = 8, RECORD_DATA_BYTES_MIN = 4096, NAME_BYTES = 32 };

static int log_dir_fd = -1;

void logs_init(int dir_fd) { log_dir_fd = dir_fd; }

static void segment_name(char *name, uint32_t process_id, uint64_t start) {
  snprintf(name, NAME_BYTES, "%u/%016llx", process_id, (unsigned long long)start);
}

/* What an earlier life of this guest left under the same process id. */
static void remove_stale(const char *name) {
  int fd = openat(log_dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  DIR *dir = fd < 0 ? NULL : fdopendir(fd);
  if (!dir) {
    if (fd >= 0) close(fd);
    return;
  }
  struct dirent *entry;
  while ((entry = readdir(dir)))
    if (entry->d_name[0] != '.') unlinkat(fd, entry->d_name, 0);
  closedir(dir);
}

static int make_directory(uint32_t process_id) {
  char name[NAME_BYTES];
  snprintf(name, sizeof name, "%u", process_id);
  int made = mkdirat(log_dir_fd, name, 0700);
  if (made < 0 && errno == EEXIST) remove_stale(name);
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

static uint64_t segment_left(const struct log *log) {
  return log->last ? log->segment_bytes_max - (log->end - log->last->start) : 0;
}

static void drop_first(struct log *log) {
  struct segment *first = log->first;
  char name[NAME_BYTES];
  segment_name(name, log->process_id, first->start);
  unlinkat(log_dir_fd, name, 0);
  if (first == log->last) {
    log_idle(log);
    log->last = NULL;
  }
  log->first = first->next;
  log->start = log->first ? log->first->start : log->end;
  free(first);
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
  if (written == (ssize_t)bytes) log->end += bytes;
  /* A full disk: half a record must not stay, and the next one is tried at the same place. */
  else if (written > 0 && ftruncate(log->fd, at) < 0) return;
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
