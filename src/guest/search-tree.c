/* SEARCH: the files of a tree, looked through by as many processes as there are processors. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "files.h"
#include "search.h"

enum {
  PROCESSES_MAX = 8,
  BUFFER_BYTES = 128 << 10,
  TASKS_MAX = 16 << 10, /* before a directory of very many rests until others are done */
  SHARED_FILES_MIN = 32, /* of a batch of names that is given to an idle process */
};

/* Behind a record's path, with its NUL, and its names, which are as the kernel gave them. */
struct trailer {
  uint32_t path_bytes, names_bytes;
};

static long futex(atomic_int *word, int operation, int value) {
  return syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

/* 0 free, 1 held, 2 held and waited for. */
void shared_lock(atomic_int *word) {
  int seen = 0;
  if (atomic_compare_exchange_strong(word, &seen, 1)) return;
  if (seen != 2) seen = atomic_exchange(word, 2);
  while (seen != 0) {
    futex(word, FUTEX_WAIT, 2);
    seen = atomic_exchange(word, 2);
  }
}

void shared_unlock(atomic_int *word) {
  if (atomic_fetch_sub(word, 1) == 1) return;
  atomic_store(word, 0);
  futex(word, FUTEX_WAKE, 1);
}

static void wait_for_change(struct shared *shared) {
  int seen = shared->changes;
  shared_unlock(&shared->lock);
  futex(&shared->changes, FUTEX_WAIT, seen);
  shared_lock(&shared->lock);
}

static void wake(struct shared *shared, int count) {
  shared->changes++;
  futex(&shared->changes, FUTEX_WAKE, count);
}

/* 0, or -1 when there is no room. */
static int push(struct shared *shared, const char *path, const uint8_t *names, size_t names_bytes) {
  struct trailer trailer = {(uint32_t)strlen(path) + 1, (uint32_t)names_bytes};
  size_t bytes = trailer.path_bytes + names_bytes + sizeof trailer;
  shared_lock(&shared->lock);
  int fits = shared->top + bytes <= STACK_BYTES;
  if (fits) {
    uint8_t *at = shared->stack + shared->top;
    memcpy(at, path, trailer.path_bytes);
    if (names_bytes > 0) memcpy(at + trailer.path_bytes, names, names_bytes);
    memcpy(at + trailer.path_bytes + names_bytes, &trailer, sizeof trailer);
    shared->top += bytes;
    if (shared->waiting > 0) wake(shared, 1);
  }
  shared_unlock(&shared->lock);
  return fits ? 0 : -1;
}

/* The next record: 1 with its path and, unless it is the whole directory, its names; 0 when none will come any more. */
static int take(struct searcher *searcher, long *names_bytes) {
  struct shared *shared = searcher->shared;
  shared_lock(&shared->lock);
  shared->waiting++;
  while (shared->top == 0 && shared->active > 0 && !shared->stop) wait_for_change(shared);
  shared->waiting--;
  int taken = shared->top > 0 && !shared->stop;
  if (taken) {
    struct trailer trailer;
    shared->top -= sizeof trailer;
    memcpy(&trailer, shared->stack + shared->top, sizeof trailer);
    shared->top -= trailer.path_bytes + trailer.names_bytes;
    memcpy(searcher->path, shared->stack + shared->top, trailer.path_bytes);
    memcpy(searcher->dents.buffer, shared->stack + shared->top + trailer.path_bytes, trailer.names_bytes);
    *names_bytes = trailer.names_bytes;
    shared->active++;
  }
  shared_unlock(&shared->lock);
  return taken;
}

static void done(struct shared *shared) {
  shared_lock(&shared->lock);
  shared->active--;
  if (shared->active == 0 || shared->stop) wake(shared, INT_MAX);
  shared_unlock(&shared->lock);
}

static int push_own(struct searcher *searcher, const char *path, int fd) {
  struct task *task = malloc(sizeof *task + strlen(path) + 1);
  if (!task) return -1;
  task->next = searcher->tasks;
  task->fd = fd;
  strcpy(task->path, path);
  searcher->tasks = task;
  searcher->task_count++;
  return 0;
}

static void search_names(struct searcher *searcher, int fd, const char *dir) {
  struct tree_filter *filter = &searcher->filter;
  struct dent dent;
  char path[PATH_MAX];
  searcher->dents.fd = fd;
  searcher->dents.at = 0;
  int by_path = filter->include || filter->exclude;
  while (!searcher->shared->stop && dents_next(&searcher->dents, &dent)) {
    if (dent.type != DT_REG) continue;
    if (by_path && tree_join(path, dir, dent.name) < 0) continue;
    if (tree_filter_test(filter, by_path ? path : "", dent.name, 0) != TREE_IN) continue;
    search_file(searcher, fd, dir, dent.name, dent.name);
  }
}

/* To an idle process, when there is one: 1 when it was given away. */
static int give_away(struct searcher *searcher, const char *dir, uint32_t files) {
  struct shared *shared = searcher->shared;
  if (files < SHARED_FILES_MIN || searcher->alone) return 0;
  shared_lock(&shared->lock);
  int idle = shared->waiting > 0 && shared->top == 0;
  shared_unlock(&shared->lock);
  return idle && push(shared, dir, searcher->dents.buffer, (size_t)searcher->dents.bytes) == 0;
}

/* Its directories are put aside for whoever has time; answers how many files there are. */
static uint32_t push_directories(struct searcher *searcher, const char *dir) {
  struct dent dent;
  char path[PATH_MAX];
  uint32_t files = 0;
  while (dents_next(&searcher->dents, &dent)) {
    files += dent.type == DT_REG;
    if (dent.type != DT_DIR) continue;
    int joined = tree_join(path, dir, dent.name);
    if (joined == 0 && tree_filter_test(&searcher->filter, path, dent.name, 1) == TREE_OUT) continue;
    if (joined < 0 || (push(searcher->shared, path, NULL, 0) < 0 && push_own(searcher, path, -1) < 0))
      searcher->shared->skipped++;
  }
  return files;
}

/* Takes the descriptor. */
static void search_directory(struct searcher *searcher, int fd, const char *dir) {
  int filled = 0;
  searcher->dents.fd = fd;
  while (!searcher->shared->stop && (filled = dents_fill(&searcher->dents)) > 0) {
    uint32_t files = push_directories(searcher, dir);
    if (files > 0 && !give_away(searcher, dir, files)) search_names(searcher, fd, dir);
    if (searcher->task_count < TASKS_MAX) continue;
    /* Under the ones that it brought, which come first. */
    struct task *brought = searcher->tasks;
    searcher->tasks = NULL;
    int rests = push_own(searcher, dir, fd) == 0;
    struct task *self = searcher->tasks;
    searcher->tasks = brought;
    if (!rests) continue;
    struct task **last = &searcher->tasks;
    while (*last && (*last)->fd < 0) last = &(*last)->next;
    self->next = *last;
    *last = self;
    return;
  }
  if (filled < 0) searcher->shared->skipped++;
  close(fd);
}

static void open_and_search(struct searcher *searcher, const char *dir, long names_bytes) {
  int fd = tree_open_directory(searcher->root, dir);
  if (fd < 0) {
    searcher->shared->skipped++;
    return;
  }
  if (names_bytes == 0) {
    search_directory(searcher, fd, dir);
    return;
  }
  searcher->dents.bytes = names_bytes;
  search_names(searcher, fd, dir);
  close(fd);
}

static void run_own(struct searcher *searcher) {
  while (searcher->tasks) {
    struct task *task = searcher->tasks;
    searcher->tasks = task->next;
    searcher->task_count--;
    if (task->fd >= 0 && !searcher->shared->stop) search_directory(searcher, task->fd, task->path);
    else if (task->fd >= 0) close(task->fd);
    else if (!searcher->shared->stop) open_and_search(searcher, task->path, 0);
    free(task);
  }
}

static void work(struct searcher *searcher) {
  long names_bytes;
  while (take(searcher, &names_bytes)) {
    char dir[PATH_MAX];
    strcpy(dir, searcher->path);
    open_and_search(searcher, dir, names_bytes);
    run_own(searcher);
    done(searcher->shared);
  }
  search_flush(searcher);
}

/* Processes */

static void searcher_free(struct searcher *searcher) {
  if (!searcher) return;
  matcher_free(searcher->lines);
  tree_filter_free(&searcher->filter);
  free(searcher->buffer);
  free(searcher);
}

static struct searcher *searcher_new(const struct tree_request *request, struct shared *shared,
                                     const struct tree_root *root) {
  struct searcher *searcher = calloc(1, sizeof *searcher);
  if (!searcher) return NULL;
  searcher->request = request;
  searcher->shared = shared;
  searcher->root = root;
  searcher->capacity = BUFFER_BYTES;
  searcher->buffer = malloc(BUFFER_BYTES);
  searcher->lines = matcher_new(&request->lines, 1);
  int filter = tree_filter_init(&searcher->filter, request);
  if (filter == 0 && searcher->buffer && searcher->lines) return searcher;
  searcher_free(searcher);
  errno = ENOMEM;
  return NULL;
}

static int processors(void) {
#ifdef HUTCH_FUZZ
  return 1;
#endif
  cpu_set_t set;
  int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return count < 1 ? 1 : count > PROCESSES_MAX ? PROCESSES_MAX : count;
}

/* One of the processes: its id, and a pipe that closes with its end. */
struct child {
  pid_t pid;
  int fd;
};

static int start_child(struct searcher *searcher, struct child *child) {
  int ends[2];
  pid_t parent = getpid();
  if (pipe2(ends, O_CLOEXEC) < 0) return -1;
  child->pid = fork();
  if (child->pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == parent) work(searcher);
    _exit(0);
  }
  close(ends[1]);
  child->fd = ends[0];
  if (child->pid > 0) return 0;
  close(ends[0]);
  return -1;
}

/*
 * Until all have ended. When the host goes first nobody is left to work for, and when one dies it may have left the
 * others waiting for it: then all are killed.
 */
static int wait_for(const struct child *children, int count) {
  struct pollfd pollers[PROCESSES_MAX + 1];
  int failed = 0, left = count;
  for (int i = 0; i < count; i++) pollers[i] = (struct pollfd){.fd = children[i].fd, .events = POLLIN};
  pollers[count] = (struct pollfd){.fd = worker.fd, .events = POLLRDHUP};
  while (left > 0) {
    if (poll(pollers, (nfds_t)count + 1, -1) < 0) continue;
    int gone = pollers[count].revents != 0;
    pollers[count].fd = gone ? -1 : pollers[count].fd;
    for (int i = 0; i < count; i++) {
      int status = 0;
      if (pollers[i].fd < 0 || !pollers[i].revents) continue;
      while (waitpid(children[i].pid, &status, 0) < 0 && errno == EINTR) continue;
      close(children[i].fd);
      pollers[i].fd = -1;
      left--;
      gone |= !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    }
    for (int i = 0; gone && i < count; i++)
      if (pollers[i].fd >= 0) kill(children[i].pid, SIGKILL);
    failed |= gone;
  }
  errno = ENOMEM;
  return failed ? -1 : 0;
}

/* By processes, or by this one alone where none can be had: 0, or -1 with errno. */
static int search_all(struct searcher *searcher) {
  struct child children[PROCESSES_MAX];
  int count = 0, wanted = processors();
  while (wanted > 1 && count < wanted && start_child(searcher, &children[count]) == 0) count++;
  if (count > 0) return wait_for(children, count);
  searcher->alone = 1;
  work(searcher);
  return 0;
}

/* A path that is no directory but a file. */
static int search_one(struct searcher *searcher) {
  const char *path = searcher->request->path;
  struct stat stat;
  char real[PATH_MAX];
  if (!realpath(path, real) || fstatat(AT_FDCWD, real, &stat, AT_SYMLINK_NOFOLLOW) < 0) return -1;
  errno = ENOTDIR;
  if (!S_ISREG(stat.st_mode)) return -1;
  searcher->alone = 1;
  search_file(searcher, AT_FDCWD, "", "", real);
  search_flush(searcher);
  return 0;
}

static int begin(struct shared *shared, const struct tree_request *request) {
  struct tree_root root = {.fd = -1};
  int is_directory = tree_open(&root, request->path) == 0;
  if (!is_directory && errno != ENOTDIR) return -1;
  struct searcher *searcher = searcher_new(request, shared, &root);
  int result = -1;
  if (searcher && !is_directory) result = search_one(searcher);
  if (searcher && is_directory) {
    push(shared, "", NULL, 0);
    result = search_all(searcher);
  }
  int error = errno;
  searcher_free(searcher);
  if (root.fd >= 0) close(root.fd);
  errno = error;
  return result;
}

int serve_search(const struct tree_request *request) {
  /* What waits to be sent would be sent by each process. */
  if (worker_flush() < 0) return -1;
  struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    worker_fail(request->id, errno, "search");
    return 0;
  }
  int result = begin(shared, request);
  if (result < 0) worker_fail(request->id, errno, "search");
  struct tree_summary summary = {shared->files, shared->bytes, shared->skipped, shared->truncated};
  int broken = shared->broken;
  munmap(shared, sizeof *shared);
  if (broken) return -1;
  if (result == 0) tree_answer_summary(request->id, &summary);
  return 0;
}
