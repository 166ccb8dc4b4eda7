/* Signals to a program, its group or everything below it. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "descent.h"
#include "guest.h"

enum { TREE_ROUNDS_MAX = 8 };

static int compare_tasks(const void *left, const void *right) {
  pid_t a = ((const struct task *)left)->pid, b = ((const struct task *)right)->pid;
  return (a > b) - (a < b);
}

/* Repeats until no process is found that has not had the signal, since they may be forking meanwhile. */
static void signal_tree(pid_t root, uint32_t id, int signal) {
  struct task *tasks = NULL, *done = NULL;
  size_t done_count = 0;
  for (int round = 0; round < TREE_ROUNDS_MAX; round++) {
    size_t count = tasks_read(&tasks), sent = 0;
    descent_of(tasks, count, root, id, done, done_count);
    struct task *grown = realloc(done, (done_count + count + 1) * sizeof *done);
    if (!grown) break;
    done = grown;
    size_t known = done_count;
    for (size_t i = 0; i < count; i++) {
      if (!tasks[i].below || tasks_find(done, known, tasks[i].pid)) continue;
      kill(tasks[i].pid, signal);
      done[done_count++] = tasks[i];
      sent++;
    }
    qsort(done, done_count, sizeof *done, compare_tasks);
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
  if (scope == SCOPE_TREE && signal != 0) signal_tree(process->pid, process->id, signal);
  return 0;
}

void signal_all(int is_init, int signal) {
  if (is_init) kill(-1, signal);
  else signal_tree(getpid(), 0, signal);
}
