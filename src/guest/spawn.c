/* The start of a program: its descriptors, the moment between clone and exec, and what went wrong there. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "descent.h"
#include "guest.h"

enum {
  CHILD_STACK_BYTES = 64 << 10,
  CHILD_PATH_BYTES = 4096,
  CHILD_FILES_MAX = 65536, /* soft RLIMIT_NOFILE of spawned programs */
  HELD_UP_MS = 1000, /* processors are counted once in a period of 100 ms */
  FILES_RESERVE = 64, /* descriptors that spawning leaves for connections */
};

static const char PATH_DEFAULT[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static int null_fd = -1;
static struct programs_group groups[PROGRAMS_GROUPS];
static const char *workdir = "/";
static struct rlimit files_limit;
static rlim_t programs_max;
static int oom_score_adjusted, priority_raised;
static char child_stack[CHILD_STACK_BYTES] __attribute__((aligned(16)));

/* What the child says of itself, in memory shared with it. */
struct child_report {
  int stage, error;
  int stops;
};
enum { STAGE_NONE, STAGE_SETUP, STAGE_CREDENTIALS, STAGE_CHDIR, STAGE_EXEC };
static volatile struct child_report *report;

void spawn_init(const struct guest_start *start) {
  null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (start->workdir && start->workdir[0]) workdir = start->workdir;
  report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (report == MAP_FAILED) report = NULL;
  getrlimit(RLIMIT_NOFILE, &files_limit);
  struct rlimit raised = {.rlim_cur = files_limit.rlim_max, .rlim_max = files_limit.rlim_max};
  setrlimit(RLIMIT_NOFILE, &raised);
  files_limit.rlim_cur = files_limit.rlim_max < CHILD_FILES_MAX ? files_limit.rlim_max : CHILD_FILES_MAX;
  programs_max = start->programs_max;
  memcpy(groups, start->groups, sizeof groups);
  descent_init();
  priority_raised = getpriority(PRIO_PROCESS, 0) < 0;
  char score[16] = "";
  int fd = open("/proc/self/oom_score_adj", O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    if (read(fd, score, sizeof score - 1) > 0) oom_score_adjusted = atoi(score) != 0;
    close(fd);
  }
}

/* The child, between clone and exec. It may share our memory: system calls only, and nothing of ours is changed. */

struct child {
  const struct spawn *spawn;
  int fds[3];
  int joins[PROGRAMS_GROUPS]; /* by itself */
  int stops; /* before its first instruction */
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
  if (child->stops && syscall(SYS_ptrace, PTRACE_TRACEME, 0, NULL, NULL) == 0) report->stops = 1;
  /* The thread itself may write 0 at once; a pid makes the writer wait until all of the host's processors know. */
  for (int i = 0; i < PROGRAMS_GROUPS; i++)
    if (child->joins[i]) (void)!write(groups[i].fd, "0", 1);
  for (int fd = 0; fd < 3; fd++)
    if (dup2(child->fds[fd], fd) < 0) child_fail(STAGE_SETUP);
  syscall(SYS_close_range, 3, ~0U, 0);
  if (spawn->flags & SPAWN_PTY && ioctl(0, TIOCSCTTY, 0) < 0) child_fail(STAGE_SETUP);
  if (oom_score_adjusted) write_zero("/proc/self/oom_score_adj");
  struct rlimit no_core = {0, 0};
  syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, &files_limit, NULL);
  syscall(SYS_prlimit64, 0, RLIMIT_CORE, &no_core, NULL);
  umask(022);
  struct rlimit processes = {programs_max, programs_max};
  if (programs_max) syscall(SYS_prlimit64, 0, RLIMIT_NPROC, &processes, NULL);
  descent_mark_self(spawn->id);
  if (credentials_take(spawn->uid, spawn->gid) < 0) child_fail(STAGE_CREDENTIALS);
  if (chdir(spawn->cwd[0] ? spawn->cwd : workdir) < 0) child_fail(STAGE_CHDIR);
  uint64_t empty_mask = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &empty_mask, NULL, sizeof empty_mask);
  /* Late, since process 1 waits for us. */
  if (priority_raised) syscall(SYS_setpriority, PRIO_PROCESS, 0, 0);
  child_exec(spawn);
  child_fail(STAGE_EXEC);
  return 127;
}

/* Spawn */

void close_fd(int *fd) {
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

/* Whether the kernel held the group up lately, for want of processors or of memory. */
static int is_held_up(int group) {
  static uint64_t seen[PROGRAMS_GROUPS], seen_ms[PROGRAMS_GROUPS];
  char text[256];
  ssize_t length = pread(groups[group].stat_fd, text, sizeof text - 1, 0);
  text[length > 0 ? length : 0] = 0;
  const char *line = group == GROUP_CPU ? strstr(text, "nr_throttled ") : text;
  if (line && group == GROUP_CPU) line += strlen("nr_throttled ");
  uint64_t count = line ? strtoull(line, NULL, 10) : 0;
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  uint64_t now_ms = (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
  if (count != seen[group]) seen_ms[group] = now_ms;
  seen[group] = count;
  return count > 0 && now_ms - seen_ms[group] < HELD_UP_MS;
}

/*
 * A program joins its groups by itself where that costs nothing. In one that is held up it might not run for seconds, and
 * we wait for its exec: then it stops there, before its first instruction, until we have moved it. What it started before
 * would stay with us, and could take all that is ours.
 */
static int program_joins(int group) {
  return groups[group].fd >= 0 && groups[group].stat_fd >= 0 && !is_held_up(group);
}

static void move_program(pid_t pid, int group) {
  char text[16];
  int length = snprintf(text, sizeof text, "%d", (int)pid);
  if (groups[group].fd >= 0) (void)!write(groups[group].fd, text, (size_t)length);
}

/* Waits for the stop behind exec. It may have been ended instead, which is left for who reaps. */
static int has_stopped(pid_t pid) {
  siginfo_t info;
  int done;
  do {
    info.si_pid = 0;
    done = waitid(P_PID, (id_t)pid, &info, WSTOPPED | WEXITED | WNOWAIT);
  } while (done < 0 && errno == EINTR);
  if (done < 0 || info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED) return 0;
  return waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOHANG) == 0;
}

static void move_child(pid_t pid, const struct child *child) {
  int stopped = report->stops && has_stopped(pid);
  for (int i = 0; i < PROGRAMS_GROUPS; i++)
    if (!child->joins[i]) move_program(pid, i);
  if (stopped) syscall(SYS_ptrace, PTRACE_DETACH, pid, NULL, NULL);
}

static pid_t start_child(const struct spawn *spawn, const int theirs[3], const char **stage) {
  static const char *const stages[] = {"", "setup", "credentials", "chdir", "exec"};
  struct child child = {.spawn = spawn};
  for (int i = 0; i < PROGRAMS_GROUPS; i++) {
    child.joins[i] = program_joins(i);
    child.stops |= groups[i].fd >= 0 && !child.joins[i];
  }
  for (int i = 0; i < 3; i++) child.fds[i] = theirs[i];
  if (spawn->flags & SPAWN_PTY) child.fds[0] = child.fds[2] = theirs[1];
  else if (!(spawn->flags & SPAWN_STDIN)) child.fds[0] = null_fd;
  report->stage = STAGE_NONE;
  report->error = 0;
  report->stops = 0;
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
    move_child(pid, &child);
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

pid_t spawn_child(const struct spawn *spawn, int ours[3], int *terminal_fd, const char **stage) {
  int theirs[3] = {-1, -1, -1};
  pid_t pid = -1;
  *stage = spawn->flags & SPAWN_PTY ? "pty" : "pipe";
  errno = ENOMEM;
  if (report && open_ends(spawn, ours, theirs) == 0) pid = start_child(spawn, theirs, stage);
  int error = errno;
  *terminal_fd = pid >= 0 && spawn->flags & SPAWN_PTY ? theirs[1] : -1;
  for (int i = 0; i < 3; i++) {
    if (theirs[i] != *terminal_fd) close_fd(&theirs[i]);
    if (pid < 0) close_fd(&ours[i]);
  }
  errno = error;
  return pid;
}
