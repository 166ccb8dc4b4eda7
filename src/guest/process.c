/* Spawned programs: starting, signalling, their pipes and pseudo terminals, their end. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

enum {
  BUCKETS = 512,
  CHILD_STACK_BYTES = 64 << 10,
  CHILD_PATH_BYTES = 4096,
  CHILD_FILES_MAX = 65536, /* soft RLIMIT_NOFILE of spawned programs */
  FILES_RESERVE = 64, /* descriptors that spawning leaves for connections */
  PUMP_BYTES_MAX = 1 << 20, /* read from one pipe before others get their turn */
  TREE_ROUNDS_MAX = 8,
  TREE_PASSES_MAX = 64,
  TREE_TASKS_MAX = 1 << 16,
  STAT_BYTES = 512,
};

static const char PATH_DEFAULT[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static struct process *by_id[BUCKETS], *by_pid[BUCKETS], *first_process, *last_process, *dead_processes;
static uint32_t process_count;
static int null_fd = -1;
static const char *workdir = "/";
static struct rlimit files_limit;
static int oom_score_adjusted;
static uint8_t record_buffer[RECORD_HEADER_BYTES + RECORD_DATA_BYTES_MAX];
static char child_stack[CHILD_STACK_BYTES] __attribute__((aligned(16)));

/* What the child says of itself, in memory shared with it. */
struct child_report {
  int stage, error;
};
enum { STAGE_NONE, STAGE_SETUP, STAGE_CREDENTIALS, STAGE_CHDIR, STAGE_EXEC };
static volatile struct child_report *report;

uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void processes_init(const struct guest_start *start) {
  null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (start->workdir && start->workdir[0]) workdir = start->workdir;
  report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (report == MAP_FAILED) report = NULL;
  getrlimit(RLIMIT_NOFILE, &files_limit);
  struct rlimit raised = {.rlim_cur = files_limit.rlim_max, .rlim_max = files_limit.rlim_max};
  setrlimit(RLIMIT_NOFILE, &raised);
  files_limit.rlim_cur = files_limit.rlim_max < CHILD_FILES_MAX ? files_limit.rlim_max : CHILD_FILES_MAX;
  char score[16] = "";
  int fd = open("/proc/self/oom_score_adj", O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    if (read(fd, score, sizeof score - 1) > 0) oom_score_adjusted = atoi(score) != 0;
    close(fd);
  }
}

/* Table */

struct process *process_of(uint32_t id) {
  struct process *process = by_id[id % BUCKETS];
  while (process && process->id != id) process = process->next_by_id;
  return process;
}

struct process *processes_first(void) { return first_process; }

static void table_add(struct process *process) {
  process->next_by_id = by_id[process->id % BUCKETS];
  by_id[process->id % BUCKETS] = process;
  process->next_by_pid = by_pid[(uint32_t)process->pid % BUCKETS];
  by_pid[(uint32_t)process->pid % BUCKETS] = process;
  process->previous = last_process;
  if (last_process) last_process->next = process;
  else first_process = process;
  last_process = process;
}

static void table_remove_id(struct process *process) {
  struct process **at = &by_id[process->id % BUCKETS];
  while (*at != process) at = &(*at)->next_by_id;
  *at = process->next_by_id;
  if (process->previous) process->previous->next = process->next;
  else first_process = process->next;
  if (process->next) process->next->previous = process->previous;
  else last_process = process->previous;
}

static struct process *table_take_pid(pid_t pid) {
  struct process **at = &by_pid[(uint32_t)pid % BUCKETS];
  while (*at && (*at)->pid != pid) at = &(*at)->next_by_pid;
  struct process *process = *at;
  if (process) *at = process->next_by_pid;
  return process;
}

static void process_die(struct process *process) {
  if (process->dead) return;
  process->dead = 1;
  process->next = dead_processes;
  dead_processes = process;
  process_count--;
}

void processes_sweep(void) {
  while (dead_processes) {
    struct process *process = dead_processes;
    dead_processes = process->next;
    free(process);
  }
}

/* The child, between clone and exec. It may share our memory: system calls only, and nothing of ours is changed. */

struct child {
  const struct spawn *spawn;
  int fds[3];
  int changes_user;
};

int credentials_take(uint32_t uid, uint32_t gid) {
  if (geteuid() != 0) {
    if ((uid == 0 && gid == 0) || (uid == geteuid() && gid == getegid())) return 0;
    errno = EPERM;
    return -1;
  }
  /* Where setgroups is denied (a mapping of one uid) there are none to clear that could be. */
  if (syscall(SYS_setgroups, 0, NULL) < 0 && (errno != EPERM || uid != 0)) return -1;
  if (syscall(SYS_setresgid, gid, gid, gid) < 0) return -1;
  if (uid == 0) return 0;
  if (syscall(SYS_setresuid, uid, uid, uid) < 0) return -1;
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct none[2];
  memset(none, 0, sizeof none);
  syscall(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  return (int)syscall(SYS_capset, &header, none);
}

static int write_zero(const char *path) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t written = write(fd, "0", 1);
  close(fd);
  return written == 1 ? 0 : -1;
}

static void child_fail(int stage) {
  int error = errno;
  report->error = error;
  report->stage = stage;
  _exit(127);
}

static void child_exec(const struct spawn *spawn) {
  const char *name = spawn->argv[0];
  if (strchr(name, '/') || !name[0]) {
    execve(name, spawn->argv, spawn->envp);
    return;
  }
  const char *path = PATH_DEFAULT;
  for (char **entry = spawn->envp; *entry; entry++) {
    if (strncmp(*entry, "PATH=", 5) == 0) {
      path = *entry + 5;
      break;
    }
  }
  size_t name_length = strlen(name);
  int error = ENOENT;
  char candidate[CHILD_PATH_BYTES];
  for (;;) {
    const char *end = strchrnul(path, ':');
    size_t length = (size_t)(end - path);
    if (length + name_length + 2 <= sizeof candidate) {
      memcpy(candidate, path, length);
      if (length > 0) candidate[length++] = '/';
      memcpy(candidate + length, name, name_length + 1);
      execve(candidate, spawn->argv, spawn->envp);
      if (errno == EACCES) error = EACCES;
      else if (errno != ENOENT && errno != ENOTDIR) return;
    }
    if (!*end) break;
    path = end + 1;
  }
  errno = error;
}

static int child_main(void *argument) {
  const struct child *child = argument;
  const struct spawn *spawn = child->spawn;
  setsid();
  for (int fd = 0; fd < 3; fd++)
    if (dup2(child->fds[fd], fd) < 0) child_fail(STAGE_SETUP);
  syscall(SYS_close_range, 3, ~0U, 0);
  if (spawn->flags & SPAWN_PTY && ioctl(0, TIOCSCTTY, 0) < 0) child_fail(STAGE_SETUP);
  if (oom_score_adjusted) write_zero("/proc/self/oom_score_adj");
  struct rlimit no_core = {0, 0};
  syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, &files_limit, NULL);
  syscall(SYS_prlimit64, 0, RLIMIT_CORE, &no_core, NULL);
  umask(022);
  if (credentials_take(spawn->uid, spawn->gid) < 0) child_fail(STAGE_CREDENTIALS);
  if (chdir(spawn->cwd[0] ? spawn->cwd : workdir) < 0) child_fail(STAGE_CHDIR);
  uint64_t empty_mask = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &empty_mask, NULL, sizeof empty_mask);
  child_exec(spawn);
  child_fail(STAGE_EXEC);
  return 127;
}

/* Spawn */

static void close_fd(int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

static int fits(int fd) {
  if (fd >= 0 && (rlim_t)fd + FILES_RESERVE > files_limit.rlim_max) {
    errno = EMFILE;
    return 0;
  }
  return fd >= 0;
}

static int set_nonblocking(int fd) { return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

static int open_pty(const struct spawn *spawn, int *ours, int *theirs) {
  int unlock = 0;
  *ours = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  if (!fits(*ours) || ioctl(*ours, TIOCSPTLCK, &unlock) < 0) return -1;
  *theirs = ioctl(*ours, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (*theirs < 0) return -1;
  struct winsize size = {.ws_row = spawn->rows, .ws_col = spawn->cols};
  struct termios settings;
  if (ioctl(*ours, TIOCSWINSZ, &size) < 0 || tcgetattr(*theirs, &settings) < 0) return -1;
  settings.c_iflag |= IUTF8;
  tcsetattr(*theirs, TCSANOW, &settings);
  if (spawn->uid != 0 && fchown(*theirs, spawn->uid, (gid_t)-1) < 0) return -1;
  return 0;
}

/* ours[0..2]: our ends of stdin, stdout, stderr; theirs[0..2]: the child's. -1 where there is none. */
static int open_ends(const struct spawn *spawn, int ours[3], int theirs[3]) {
  if (spawn->flags & SPAWN_PTY) {
    if (open_pty(spawn, &ours[1], &theirs[1]) < 0) return -1;
    ours[0] = fcntl(ours[1], F_DUPFD_CLOEXEC, 3);
    return fits(ours[0]) ? 0 : -1;
  }
  int ends[2];
  for (int i = 0; i < 3; i++) {
    if (i == 0 && !(spawn->flags & SPAWN_STDIN)) continue;
    if (pipe2(ends, O_CLOEXEC) < 0) return -1;
    ours[i] = i == 0 ? ends[1] : ends[0];
    theirs[i] = i == 0 ? ends[0] : ends[1];
    if (!fits(ends[0]) || !fits(ends[1]) || set_nonblocking(ours[i]) < 0) return -1;
  }
  return 0;
}

static pid_t start_child(const struct spawn *spawn, const int theirs[3], const char **stage) {
  static const char *const stages[] = {"", "setup", "credentials", "chdir", "exec"};
  struct child child = {.spawn = spawn};
  for (int i = 0; i < 3; i++) child.fds[i] = theirs[i];
  if (spawn->flags & SPAWN_PTY) child.fds[0] = child.fds[2] = theirs[1];
  else if (!(spawn->flags & SPAWN_STDIN)) child.fds[0] = null_fd;
  report->stage = STAGE_NONE;
  report->error = 0;
  /*
   * A child that becomes another user gets a copy of our memory instead of sharing it for the moment until exec: a
   * change of uid makes the memory that it happens in dumpable where the host's fs.suid_dumpable says so.
   */
  int changes_user = geteuid() == 0 && (spawn->uid != 0 || spawn->gid != 0);
  int flags = CLONE_VFORK | SIGCHLD | (changes_user ? 0 : CLONE_VM);
  /* Every signal is blocked meanwhile, so that none is handled in memory that two processes share. */
  uint64_t all = ~UINT64_C(0), before;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
  pid_t pid = clone(child_main, child_stack + sizeof child_stack, flags, &child);
  int error = errno;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
  *stage = "fork";
  errno = error;
  if (pid < 0) return -1;
  if (report->stage == STAGE_NONE) {
    if (oom_score_adjusted) {
      char path[48];
      snprintf(path, sizeof path, "/proc/%d/oom_score_adj", (int)pid);
      write_zero(path);
    }
    return pid;
  }
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) continue;
  *stage = stages[report->stage];
  errno = report->error;
  return -1;
}

static void stream_open(struct process *process, int index, int fd, int is_pty) {
  struct stream *stream = &process->streams[index];
  *stream = (struct stream){.source = {SOURCE_STREAM}, .process = process, .fd = fd};
  stream->number = (uint8_t)(index + 1);
  stream->is_pty = (uint8_t)is_pty;
  if (fd >= 0) stream->watched = watch(fd, &stream->source, EPOLLIN) == 0;
}

struct process *process_spawn(const struct spawn *spawn, const char **stage) {
  int ours[3] = {-1, -1, -1}, theirs[3] = {-1, -1, -1};
  struct process *process = NULL;
  pid_t pid = -1;
  *stage = "spawn";
  errno = EAGAIN;
  if (process_count >= PROCESSES_MAX) return NULL;
  errno = EINVAL;
  if (spawn->id == 0 || !spawn->argv[0] || spawn->flags & ~(uint32_t)(SPAWN_STDIN | SPAWN_PTY)) return NULL;
  errno = EEXIST;
  if (process_of(spawn->id)) return NULL;
  errno = ENOMEM;
  if (!report || !(process = calloc(1, sizeof *process))) return NULL;
  uint64_t started_ms = now_ms();
  *stage = spawn->flags & SPAWN_PTY ? "pty" : "pipe";
  if (open_ends(spawn, ours, theirs) == 0) pid = start_child(spawn, theirs, stage);
  int error = errno;
  int terminal_fd = pid >= 0 && spawn->flags & SPAWN_PTY ? theirs[1] : -1;
  for (int i = 0; i < 3; i++)
    if (theirs[i] != terminal_fd) close_fd(&theirs[i]);
  if (pid < 0) {
    for (int i = 0; i < 3; i++) close_fd(&ours[i]);
    free(process);
    errno = error;
    return NULL;
  }
  process->id = spawn->id;
  process->pid = pid;
  process->state = STATE_RUNNING;
  process->is_pty = (spawn->flags & SPAWN_PTY) != 0;
  process->started_ms = started_ms;
  process->terminal_fd = terminal_fd;
  log_open(&process->log, process->id, spawn->output_bytes_max);
  process->input = (struct input){.source = {SOURCE_INPUT}, .process = process, .fd = ours[0]};
  process->input.opened = ours[0] >= 0;
  stream_open(process, 0, ours[1], process->is_pty);
  stream_open(process, 1, ours[2], 0);
  table_add(process);
  process_count++;
  return process;
}

/* Output */

static uint64_t slowest_follower(const struct process *process) {
  uint64_t slowest = UINT64_MAX;
  for (const struct follower *follower = process->followers; follower; follower = follower->next)
    if (follower->consumed < slowest) slowest = follower->consumed;
  return slowest;
}

void process_announce(struct process *process) {
  int eof = process->state != STATE_RUNNING;
  for (struct follower *follower = process->followers; follower; follower = follower->next) {
    int news = process->log.end > follower->announced || (eof && !follower->eof_announced);
    if (!follower->armed || !news) continue;
    follower->armed = 0;
    follower->announced = process->log.end;
    follower->eof_announced = (uint8_t)eof;
    connection_output(follower->connection, process, process->log.start, process->log.end, eof);
  }
}

static void stream_watch(struct stream *stream, int on) {
  if (stream->fd < 0 || stream->watched == on) return;
  if (!on) unwatch(stream->fd);
  else if (watch(stream->fd, &stream->source, EPOLLIN) < 0) return;
  stream->watched = (uint8_t)on;
}

static void stream_close(struct stream *stream) {
  stream_watch(stream, 0);
  close_fd(&stream->fd);
  struct process *process = stream->process;
  if (process->streams[0].fd >= 0 || process->streams[1].fd >= 0) return;
  if (!process->forgotten) log_idle(&process->log);
  else if (process->state != STATE_RUNNING) process_die(process);
}

/* Reads at most about `bytes_max`. With `force` also past what a slow follower has not consumed. */
static void stream_pump(struct stream *stream, size_t bytes_max, int force) {
  struct process *process = stream->process;
  uint8_t *data = record_buffer + RECORD_HEADER_BYTES;
  size_t pumped = 0;
  while (stream->fd >= 0 && pumped < bytes_max) {
    size_t room = RECORD_DATA_BYTES_MAX;
    if (!process->forgotten) room = log_room(&process->log, slowest_follower(process), force);
    if (room == 0) {
      stream_watch(stream, 0);
      return;
    }
    if (force && room > bytes_max - pumped) room = bytes_max - pumped;
    ssize_t got = read(stream->fd, data, room);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      stream_close(stream);
      return;
    }
    pumped += (size_t)got;
    if (!process->forgotten) log_append(&process->log, stream->number, record_buffer, (size_t)got, now_ms());
    if ((size_t)got < room && !stream->is_pty) return;
    if (!stream->grown && !stream->is_pty && got == RECORD_DATA_BYTES_MAX) {
      stream->grown = 1;
      fcntl(stream->fd, F_SETPIPE_SZ, PIPE_BYTES);
    }
  }
}

void stream_ready(struct stream *stream) {
  if (stream->fd < 0 || !stream->watched) return;
  stream_pump(stream, PUMP_BYTES_MAX, 0);
  process_announce(stream->process);
}

/* Takes over what was written before the end, however much others that hold the pipe write meanwhile. */
static void stream_drain(struct stream *stream) {
  if (stream->fd < 0) return;
  int available = 0;
  size_t bytes_max = PIPE_BYTES;
  if (!stream->is_pty && ioctl(stream->fd, FIONREAD, &available) == 0) bytes_max = (size_t)available;
  /* At its end the pipe is closed here; a pipe that is only empty stays, held by background children. */
  stream_pump(stream, bytes_max, 1);
}

int process_follow(struct process *process, struct connection *connection, uint64_t consumed) {
  if (consumed > process->log.end) return EINVAL;
  struct follower *follower = process->followers;
  while (follower && follower->connection != connection) follower = follower->next;
  if (!follower) {
    follower = calloc(1, sizeof *follower);
    if (!follower) return ENOMEM;
    follower->connection = connection;
    follower->announced = consumed;
    follower->next = process->followers;
    process->followers = follower;
  }
  follower->consumed = consumed;
  follower->armed = 1;
  for (int i = 0; i < 2; i++) stream_watch(&process->streams[i], 1);
  return 0;
}

void process_unfollow(struct process *process, struct connection *connection) {
  for (struct follower **at = &process->followers; *at;) {
    struct follower *follower = *at;
    if (connection && follower->connection != connection) {
      at = &follower->next;
      continue;
    }
    *at = follower->next;
    free(follower);
  }
  for (int i = 0; i < 2; i++) stream_watch(&process->streams[i], 1);
}

void processes_disconnect(struct connection *connection) {
  for (struct process *process = first_process; process; process = process->next) {
    if (process->followers) process_unfollow(process, connection);
    for (struct chunk *chunk = process->input.first; chunk; chunk = chunk->next)
      if (chunk->asker == connection) chunk->asker = NULL;
  }
}

/* Stdin */

static void input_pop(struct input *input, int error) {
  struct chunk *chunk = input->first;
  input->first = chunk->next;
  if (!input->first) input->last = NULL;
  input->pending_bytes -= chunk->length - chunk->at;
  if (chunk->asker) connection_answer(chunk->asker, input->process->id, error, "stdin");
  free(chunk);
}

static void input_close(struct input *input) {
  while (input->first) input_pop(input, EPIPE);
  if (input->watched) unwatch(input->fd);
  input->watched = 0;
  close_fd(&input->fd);
}

/* Bytes written, 0 when the pipe is full, -1 when nobody will ever read it. */
static ssize_t input_write(const struct input *input, const uint8_t *bytes, size_t length) {
  ssize_t written;
  do written = write(input->fd, bytes, length);
  while (written < 0 && errno == EINTR);
  if (written < 0) return errno == EAGAIN ? 0 : -1;
  return written;
}

/* A terminal has no end but the character for it; it ends the input only at the beginning of a line. */
static void input_end(struct input *input) {
  struct termios settings;
  if (input->process->is_pty && tcgetattr(input->fd, &settings) == 0)
    (void)!write(input->fd, &settings.c_cc[VEOF], 1);
  input_close(input);
}

void input_ready(struct input *input) {
  while (input->fd >= 0 && input->first) {
    struct chunk *chunk = input->first;
    ssize_t written = input_write(input, chunk->bytes + chunk->at, chunk->length - chunk->at);
    if (written < 0) {
      input_close(input);
      return;
    }
    if (written == 0) return;
    chunk->at += (uint32_t)written;
    input->pending_bytes -= (uint32_t)written;
    if (chunk->at == chunk->length) input_pop(input, 0);
  }
  if (input->fd < 0) return;
  if (input->watched) unwatch(input->fd);
  input->watched = 0;
  if (input->closing) input_end(input);
}

int process_input(struct process *process, struct connection *asker, const uint8_t *bytes, size_t length) {
  struct input *input = &process->input;
  if (!input->opened) return -EBADF;
  if (input->fd < 0 || input->closing || process->state != STATE_RUNNING) return -EPIPE;
  if (length > STDIN_BYTES_MAX) return -EMSGSIZE;
  if (length == 0) return 1;
  size_t written = 0;
  while (!input->first && written < length) {
    ssize_t taken = input_write(input, bytes + written, length - written);
    if (taken < 0) {
      input_close(input);
      return -EPIPE;
    }
    if (taken == 0) break;
    written += (size_t)taken;
  }
  if (written == length) return 1;
  size_t rest = length - written;
  if (written == 0 && input->pending_bytes + rest > STDIN_PENDING_BYTES_MAX) return -EAGAIN;
  struct chunk *chunk = malloc(sizeof *chunk + rest);
  if (!chunk) return -ENOMEM;
  *chunk = (struct chunk){.asker = asker, .length = (uint32_t)rest};
  memcpy(chunk->bytes, bytes + written, rest);
  if (input->last) input->last->next = chunk;
  else input->first = chunk;
  input->last = chunk;
  input->pending_bytes += (uint32_t)rest;
  if (!input->watched) input->watched = watch(input->fd, &input->source, EPOLLOUT) == 0;
  return 0;
}

void process_input_accept(struct process *process, const struct connection *asker) {
  for (struct chunk *chunk = process->input.first; chunk; chunk = chunk->next) {
    if (chunk->asker != asker) continue;
    connection_answer(chunk->asker, process->id, 0, "");
    chunk->asker = NULL;
  }
}

int process_input_close(struct process *process) {
  struct input *input = &process->input;
  if (!input->opened) return EBADF;
  if (input->fd < 0 || input->closing) return 0;
  if (input->first) input->closing = 1;
  else input_end(input);
  return 0;
}

int process_resize(struct process *process, uint16_t cols, uint16_t rows) {
  if (!process->is_pty) return ENOTTY;
  if (process->streams[0].fd < 0) return ESRCH;
  struct winsize size = {.ws_row = rows, .ws_col = cols};
  return ioctl(process->streams[0].fd, TIOCSWINSZ, &size) < 0 ? errno : 0;
}

/* End */

struct process *process_reaped(pid_t pid, int status) {
  struct process *process = table_take_pid(pid);
  if (!process) return NULL;
  process->state = WIFSIGNALED(status) ? STATE_SIGNALED : STATE_EXITED;
  process->code = (uint32_t)(WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
  process->ended_ms = now_ms();
  if (process->ended_ms < process->started_ms) process->ended_ms = process->started_ms;
  input_close(&process->input);
  close_fd(&process->terminal_fd);
  for (int i = 0; i < 2; i++) stream_drain(&process->streams[i]);
  log_idle(&process->log);
  process_announce(process);
  return process;
}

void process_forget(struct process *process) {
  table_remove_id(process);
  process->forgotten = 1;
  process_unfollow(process, NULL);
  log_remove(&process->log);
  if (process->streams[0].fd < 0 && process->streams[1].fd < 0) process_die(process);
}

/* Signals */

struct task {
  pid_t pid, parent, group, session;
  uint8_t below;
};

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
  return count;
}

static const struct task *find_below(const struct task *tasks, size_t count, pid_t pid) {
  for (size_t i = 0; i < count; i++)
    if (tasks[i].pid == pid) return tasks[i].below ? &tasks[i] : NULL;
  return NULL;
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
      if (find_below(tasks, count, task->parent)) task->below = 1, changed = 1;
    }
  }
}

/* Repeats until no process is found that has not had the signal, since they may be forking meanwhile. */
static void signal_tree(pid_t root, int signal) {
  struct task *tasks = NULL;
  pid_t *done = NULL;
  size_t done_count = 0;
  for (int round = 0; round < TREE_ROUNDS_MAX; round++) {
    size_t count = read_tasks(&tasks), sent = 0;
    mark_tree(tasks, count, root);
    pid_t *grown = realloc(done, (done_count + count + 1) * sizeof *done);
    if (!grown) break;
    done = grown;
    size_t known = done_count;
    for (size_t i = 0; i < count; i++) {
      size_t at = 0;
      while (at < known && done[at] != tasks[i].pid) at++;
      if (!tasks[i].below || at < known) continue;
      kill(tasks[i].pid, signal);
      done[done_count++] = tasks[i].pid;
      sent++;
    }
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
