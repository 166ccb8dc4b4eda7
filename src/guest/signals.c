/* Signals to a program, its group or everything below it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

enum {
  TREE_ROUNDS_MAX = 8,
  TREE_PASSES_MAX = 64,
  TREE_TASKS_MAX = 1 << 16,
  STAT_BYTES = 512,
};

struct task {
  pid_t pid, parent, group, session;
  uint8_t below;
};

static int compare_pids(const void *left, const void *right) {
  pid_t a = ((const struct task *)left)->pid, b = ((const struct task *)right)->pid;
  return (a > b) - (a < b);
}

static int read_task(int proc_fd, const char *name, struct task *task) {
  char path[64], stat[STAT_BYTES];
  snprintf(path, sizeof path, "%.20s/stat", name);
  int fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t length = read(fd, stat, sizeof stat - 1);
  close(fd);
  if (length <= 0) return -1;
  stat[length] = 0;
  /* The name, in parentheses, may contain anything: the fields start behind the last one. */
  const char *fields = strrchr(stat, ')');
  char state;
  int parent, group, session;
  if (!fields || sscanf(fields + 1, " %c %d %d %d", &state, &parent, &group, &session) != 4) return -1;
  *task = (struct task){.pid = atoi(name), .parent = parent, .group = group, .session = session};
  return 0;
}

static size_t read_tasks(struct task **tasks) {
  DIR *dir = opendir("/proc");
  size_t count = 0, capacity = 0;
  struct dirent *entry;
  while (dir && count < TREE_TASKS_MAX && (entry = readdir(dir))) {
    if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
    if (count == capacity) {
      size_t wanted = capacity ? capacity * 2 : 256;
      struct task *grown = realloc(*tasks, wanted * sizeof **tasks);
      if (!grown) break;
      *tasks = grown;
      capacity = wanted;
    }
    if (read_task(dirfd(dir), entry->d_name, &(*tasks)[count]) == 0) count++;
  }
  if (dir) closedir(dir);
  if (count > 0) qsort(*tasks, count, sizeof **tasks, compare_pids);
  return count;
}

/* NULL when there is none. Both lists of tasks are in order of pid: there may be thousands, and little time. */
static struct task *find_task(struct task *tasks, size_t count, pid_t pid) {
  struct task wanted = {.pid = pid};
  return count ? bsearch(&wanted, tasks, count, sizeof *tasks, compare_pids) : NULL;
}

/* Everything below `root`; its session and group too unless `root` is ourselves. */
static void mark_tree(struct task *tasks, size_t count, pid_t root) {
  pid_t self = getpid();
  for (size_t i = 0; i < count; i++) {
    struct task *task = &tasks[i];
    int together = root != self && (task->session == root || task->group == root);
    task->below = task->pid != self && (task->parent == root || task->pid == root || together);
  }
  int changed = 1;
  for (int pass = 0; changed && pass < TREE_PASSES_MAX; pass++) {
    changed = 0;
    for (size_t i = 0; i < count; i++) {
      struct task *task = &tasks[i];
      if (task->below || task->pid == self || task->parent <= 1 || task->parent == self) continue;
      const struct task *parent = find_task(tasks, count, task->parent);
      if (parent && parent->below) task->below = 1, changed = 1;
    }
  }
}

/* Repeats until no process is found that has not had the signal, since they may be forking meanwhile. */
static void signal_tree(pid_t root, int signal) {
  struct task *tasks = NULL, *done = NULL;
  size_t done_count = 0;
  for (int round = 0; round < TREE_ROUNDS_MAX; round++) {
    size_t count = read_tasks(&tasks), sent = 0;
    mark_tree(tasks, count, root);
    struct task *grown = realloc(done, (done_count + count + 1) * sizeof *done);
    if (!grown) break;
    done = grown;
    size_t known = done_count;
    for (size_t i = 0; i < count; i++) {
      if (!tasks[i].below || find_task(done, known, tasks[i].pid)) continue;
      kill(tasks[i].pid, signal);
      done[done_count++] = tasks[i];
      sent++;
    }
    qsort(done, done_count, sizeof *done, compare_pids);
    if (sent == 0) break;
  }
  free(done);
  free(tasks);
}

int process_signal(struct process *process, int signal, int scope) {
  if (process->state != STATE_RUNNING) return ESRCH;
  if (signal < 0 || signal > 64) return EINVAL;
  /* It was not reaped yet, so its pid is its own. */
  if (kill(scope == SCOPE_GROUP ? -process->pid : process->pid, signal == 0 || scope != SCOPE_TREE ? signal : 0) < 0)
    return errno;
  if (scope == SCOPE_TREE && signal != 0) signal_tree(process->pid, signal);
  return 0;
}

void signal_all(int is_init, int signal) {
  if (is_init) kill(-1, signal);
  else signal_tree(getpid(), signal);
}
