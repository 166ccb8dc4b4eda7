#define _GNU_SOURCE
#include "descent.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
  PASSES_MAX = 64,
  TASKS_MAX = 1 << 16,
  STAT_BYTES = 512,
  LIMITS_BYTES = 2048,
};

static const char LIMIT_NAME[] = "Max file locks";

static rlim_t locks_max;
/* Of this guest alone: without a pid namespace it sees the programs of others, which have ids of their own. */
static uint64_t guest_mark;

void descent_init(void) {
  struct rlimit locks;
  uint32_t random = 0;
  if (getrandom(&random, sizeof random, 0) < 0) random = (uint32_t)getpid();
  guest_mark = (uint64_t)(random >> 1 | 1 << 30) << 32;
  if (getrlimit(RLIMIT_LOCKS, &locks) == 0) locks_max = locks.rlim_max;
}

uint32_t descent_own(void) { return (uint32_t)(guest_mark >> 32); }

void descent_take_over(uint32_t own) { guest_mark = (uint64_t)own << 32; }

void descent_mark_self(uint32_t id) {
  struct rlimit mark = {.rlim_cur = guest_mark | id, .rlim_max = locks_max};
  if (mark.rlim_cur <= mark.rlim_max) syscall(SYS_prlimit64, 0, RLIMIT_LOCKS, &mark, NULL);
}

static ssize_t read_file(int proc_fd, pid_t pid, const char *name, char *text, size_t bytes) {
  char path[64];
  snprintf(path, sizeof path, "%d/%s", (int)pid, name);
  int fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t length = read(fd, text, bytes - 1);
  close(fd);
  text[length > 0 ? length : 0] = 0;
  return length;
}

static int bears_mark(int proc_fd, pid_t pid, uint32_t id) {
  char limits[LIMITS_BYTES];
  if (read_file(proc_fd, pid, "limits", limits, sizeof limits) <= 0) return 0;
  const char *line = strstr(limits, LIMIT_NAME);
  return line && strtoull(line + sizeof LIMIT_NAME - 1, NULL, 10) == (guest_mark | id);
}

static int compare_pids(const void *left, const void *right) {
  pid_t a = ((const struct task *)left)->pid, b = ((const struct task *)right)->pid;
  return (a > b) - (a < b);
}

static int read_task(int proc_fd, pid_t pid, struct task *task) {
  char stat[STAT_BYTES];
  if (read_file(proc_fd, pid, "stat", stat, sizeof stat) <= 0) return -1;
  /* The name, in parentheses, may contain anything: the fields start behind the last one. */
  const char *fields = strrchr(stat, ')');
  char state;
  int parent, group, session;
  if (!fields || sscanf(fields + 1, " %c %d %d %d", &state, &parent, &group, &session) != 4) return -1;
  *task = (struct task){.pid = pid, .parent = parent, .group = group, .session = session};
  return 0;
}

size_t tasks_read(struct task **tasks) {
  DIR *dir = opendir("/proc");
  size_t count = 0, capacity = 0;
  struct dirent *entry;
  while (dir && count < TASKS_MAX && (entry = readdir(dir))) {
    if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
    if (count == capacity) {
      size_t wanted = capacity ? capacity * 2 : 256;
      struct task *grown = realloc(*tasks, wanted * sizeof **tasks);
      if (!grown) break;
      *tasks = grown;
      capacity = wanted;
    }
    if (read_task(dirfd(dir), atoi(entry->d_name), &(*tasks)[count]) == 0) count++;
  }
  if (dir) closedir(dir);
  if (count > 0) qsort(*tasks, count, sizeof **tasks, compare_pids);
  return count;
}

struct task *tasks_find(struct task *tasks, size_t count, pid_t pid) {
  struct task wanted = {.pid = pid};
  return count ? bsearch(&wanted, tasks, count, sizeof *tasks, compare_pids) : NULL;
}

/* Lists may have thousands of tasks, and there is little time: each pass is a search by pid a task. */
static void mark_children(struct task *tasks, size_t count, pid_t self) {
  int changed = 1;
  for (int pass = 0; changed && pass < PASSES_MAX; pass++) {
    changed = 0;
    for (size_t i = 0; i < count; i++) {
      struct task *task = &tasks[i];
      if (task->below || task->pid == self || task->parent <= 1 || task->parent == self) continue;
      const struct task *parent = tasks_find(tasks, count, task->parent);
      if (parent && parent->below) task->below = 1, changed = 1;
    }
  }
}

void descent_of(struct task *tasks, size_t count, pid_t root, uint32_t id, struct task *known, size_t known_count) {
  pid_t self = getpid();
  for (size_t i = 0; i < count; i++) {
    struct task *task = &tasks[i];
    int together = root != self && (task->session == root || task->group == root);
    task->below = task->pid != self && (task->parent == root || task->pid == root || together);
  }
  mark_children(tasks, count, self);
  int proc_fd = id == 0 ? -1 : open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (proc_fd < 0) return;
  for (size_t i = 0; i < count; i++) {
    struct task *task = &tasks[i];
    if (task->below || task->pid == self || tasks_find(known, known_count, task->pid)) continue;
    task->below = (uint8_t)bears_mark(proc_fd, task->pid, id);
  }
  close(proc_fd);
  mark_children(tasks, count, self);
}
