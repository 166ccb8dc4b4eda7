/*
 * Process 1 of an instance, from its fork to the guest that it becomes:
 *   cgroups | mount, uts, ipc and cgroup namespaces | file systems, root | user namespace | privileges
 */
#define _GNU_SOURCE
#include "process1.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "helper.h"
#include "privileges.h"
#include "seccomp.h"
#include "sys.h"

enum {
  OPEN_FILES_SOFT = 65536,
  OPEN_FILES_HARD = 1048576,
  PARKED = 64, /* descriptors on their way to the numbers that they are to have */
  CORE_BYTES = 1, /* the one value that also keeps the kernel from starting the host's core handler */
  /* Process 1 goes last when memory runs out; it gives what it starts the usual score. */
  OOM_SCORE_GUEST = -900,
  /* Against the programs of its own group only: it must be able to end thousands that are busy. */
  NICE_GUEST = -20,
};

static int child_channel = -1;

static void send_failure(const char *stage, int error, const char *message) {
  struct report report = {.error = error};
  strncpy(report.stage, stage, sizeof report.stage - 1);
  strncpy(report.message, message, sizeof report.message - 1);
  (void)send(child_channel, &report, sizeof report, MSG_NOSIGNAL);
}

/* The launcher's end must be this process's end; a change of credentials clears the wish. */
static void die_with_launcher(void) {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) fail("privileges", "parent death signal");
}

static void join_cgroups(const struct spec *spec) {
  for (size_t i = 0; i < spec->cgroup1_count; i++) {
    int directory = open(spec->cgroups1[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
    /* `tasks`, by the thread itself: a write to cgroup.procs waits for all of the host's processors. */
    if (directory < 0 || write_file_at(directory, "tasks", "0") < 0) fail("cgroup", "%s", spec->cgroups1[i]);
    close(directory);
  }
}

static void take_precedence(const struct spec *spec) {
  char score[16];
  snprintf(score, sizeof score, "%d", OOM_SCORE_GUEST);
  (void)write_file_at(AT_FDCWD, "/proc/self/oom_score_adj", score); /* an ordinary user may not lower it */
  if (spec->cgroup1_count > 0 || spec->cgroup2) (void)setpriority(PRIO_PROCESS, 0, NICE_GUEST);
}

static void set_limits(const struct spec *spec) {
  struct rlimit files = {0};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    if (files.rlim_max > OPEN_FILES_HARD) files.rlim_max = OPEN_FILES_HARD;
    files.rlim_cur = files.rlim_max < OPEN_FILES_SOFT ? files.rlim_max : OPEN_FILES_SOFT;
    if (setrlimit(RLIMIT_NOFILE, &files) < 0) fail("limits", "open files");
  }
  struct rlimit core = {CORE_BYTES, CORE_BYTES};
  (void)setrlimit(RLIMIT_CORE, &core); /* a lower limit of the host is as good */
  struct rlimit processes = {spec->pids_max, spec->pids_max};
  if (spec->pids_max && setrlimit(RLIMIT_NPROC, &processes) < 0) fail("limits", "processes");
}

static void become_root_inside(const struct guest_plan *plan) {
  const struct identity *identity = &plan->identity;
  if (identity->userns_fd >= 0 && setns(identity->userns_fd, CLONE_NEWUSER) < 0) fail("identity", "user namespace");
  /* With one id only, the kernel does not let go of the user's groups. */
  if (identity->many && syscall(SYS_setgroups, 0, NULL) < 0) fail("identity", "groups");
  if (syscall(SYS_setresgid, 0, 0, 0) < 0 || syscall(SYS_setresuid, 0, 0, 0) < 0) fail("identity", "root inside");
}

static void forbid_user_namespaces(int proc_fd) {
  if (write_file_at(proc_fd, "sys/user/max_user_namespaces", "0") < 0) fail("identity", "max_user_namespaces");
}

/*
 * Root inside may mount, in a copy of the mounts that its user namespace owns: what the host's root mounted cannot be
 * taken away or made writable there. Its network, process ids and host name stay the host's.
 */
static void own_mounts(void) {
  if (unshare(CLONE_NEWNS) < 0) fail("namespaces", "mounts of its own");
}

/*
 * Where it cannot be, because something else is there, the instance starts all the same: whoever is to run there is told
 * so, and can be helped by way of its files.
 */
static void make_workdir(char *path) {
  for (char *at = path + 1;; at++) {
    if (*at && *at != '/') continue;
    char kept = *at;
    *at = 0;
    int made = mkdir(path, 0755);
    *at = kept;
    if (!kept || (made < 0 && errno != EEXIST)) return;
  }
}

static void start_program(const struct spec *spec) {
  if (spec->exec_count == 0) return;
  pid_t pid = fork();
  if (pid < 0) fail("exec", "fork");
  if (pid > 0) return;
  char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", NULL};
  signal(SIGPIPE, SIG_DFL);
  setsid();
  if (chdir(spec->workdir) == 0) execve(spec->exec[0], spec->exec, environment);
  _exit(127);
}

/* Moves `fd` to `to` and up to there nothing else stays open. */
static int keep_at(int fd, int to) {
  if (fd == to) return fd;
  if (dup3(fd, to, O_CLOEXEC) < 0) fail("guest", "descriptors");
  return to;
}

/* Out of the way of the numbers that descriptors get in the end. */
static int open_group_file(const char *path, int flags) {
  if (!path) return -1;
  int fd = open(path, flags | O_CLOEXEC);
  int parked = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, PARKED);
  if (parked < 0) fail("cgroup", "%s", path);
  close(fd);
  return parked;
}

/* -1 where there is none; the number stays free then. */
static int keep_group_file(int fd, int to) {
  if (fd >= 0) return keep_at(fd, to);
  close(to);
  return -1;
}

/* Small regular files only: what is there may be the sandbox's own doing by now. */
static ssize_t read_small(const char *path, char *buffer, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return -1;
  struct stat found;
  ssize_t got = fstat(fd, &found) == 0 && S_ISREG(found.st_mode) && (size_t)found.st_size < size
                    ? read(fd, buffer, size)
                    : -1;
  close(fd);
  return got;
}

/* In its place, not into it: writing into a file of a lower layer would copy it up, and wait for the disk. */
static void replace_small(const char *path, const char *content, size_t size) {
  static const char draft[] = "/etc/.hutch-name";
  unlink(draft); /* of a start that was cut short */
  int fd = open(draft, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) return;
  ssize_t written = write(fd, content, size);
  close(fd);
  if (written != (ssize_t)size || rename(draft, path) < 0) unlink(draft);
}

/* The instance's own name where images have a general one; once, so that what is changed inside stays. */
static void name_files(const char *hostname) {
  static const char general[] = "sandbox\n";
  char content[4096];
  ssize_t size = read_small("/etc/hostname", content, sizeof content);
  if (size != (ssize_t)strlen(general) || memcmp(content, general, (size_t)size) != 0) return;
  size = read_small("/etc/hosts", content, sizeof content);
  if (size >= 0 && (size_t)size + strlen(hostname) + sizeof "127.0.1.1 \n" <= sizeof content) {
    int more = snprintf(content + size, sizeof content - (size_t)size, "127.0.1.1 %s\n", hostname);
    replace_small("/etc/hosts", content, (size_t)(size + more));
  }
  int length = snprintf(content, sizeof content, "%s\n", hostname);
  if (length > 0 && (size_t)length < sizeof content) replace_small("/etc/hostname", content, (size_t)length);
}

/* To the keeper: what goes on inside does not reach it. */
static int hand_over(int channel, const void *text, size_t size, int fd) {
  union {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
  } control = {0};
  struct iovec note = {(void *)text, size};
  struct msghdr message = {.msg_iov = &note, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return sendmsg(channel, &message, MSG_NOSIGNAL) < 0 ? -1 : 0;
}

static void hand_over_device(int channel, int device) {
  static const char text[DEVICE_NOTE_BYTES] = "d";
  if (device < 0) return;
  if (hand_over(channel, text, sizeof text, device) < 0) fail("disk", "its device");
  close(device);
}

/* With the host's power, in the pid namespace of the process: what its /proc shows. */
static void mount_proc_of(int pidfd, struct root *root) {
  if (setns(pidfd, CLONE_NEWPID) < 0) fail("proc", "pid namespace");
  pid_t inside = fork();
  if (inside < 0) fail("proc", "fork");
  if (inside == 0) {
    proc_enter(root);
    _exit(0);
  }
  int status;
  while (waitpid(inside, &status, 0) < 0 && errno == EINTR) {}
  _exit(status == 0 ? 0 : 1);
}

/*
 * Splits process 1 off, into a pid namespace that the sandbox's user namespace owns: only there may a process of that
 * give others the pids that they had elsewhere. Nothing inside has the capability for it once process 1 runs programs.
 * Returns in process 1; the caller ends. The mounts are made, but for /proc, which takes both the new namespace and the
 * host's power: a child of the caller keeps that meanwhile.
 */
static void enter_own_pids(const struct guest_plan *plan, struct root *root) {
  int pids[2], go[2];
  if (pipe2(go, O_CLOEXEC) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pids) < 0)
    fail("namespaces", "pipes");
  pid_t powerful = fork();
  if (powerful < 0) fail("namespaces", "fork");
  if (powerful == 0) {
    die_with_launcher();
    close(pids[1]);
    int pidfd = -1;
    pid_t pid;
    if (read(pids[0], &pid, sizeof pid) != sizeof pid) _exit(1);
    pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) fail("proc", "process 1");
    mount_proc_of(pidfd, root);
  }
  become_root_inside(plan);
  die_with_launcher();
  int pidfd = -1;
  struct clone_arguments arguments = {.flags = CLONE_NEWPID | CLONE_PARENT | CLONE_PIDFD};
  arguments.pidfd = (uint64_t)(uintptr_t)&pidfd;
  pid_t pid = sys_clone3(&arguments);
  if (pid < 0) fail("namespaces", "process 1 cannot be made");
  if (pid == 0) {
    die_with_launcher();
    close(go[1]);
    char byte;
    ssize_t got;
    do got = read(go[0], &byte, 1);
    while (got < 0 && errno == EINTR);
    if (got != 1) _exit(1);
    close(go[0]);
    close(pids[0]);
    close(pids[1]);
    close(root->dev_fd);
    root->proc_fd = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root->proc_fd < 0) fail("proc", "/proc");
    return;
  }
  int status = -1;
  if (write(pids[1], &pid, sizeof pid) != sizeof pid) fail("namespaces", "pipe");
  while (waitpid(powerful, &status, 0) < 0 && errno == EINTR) {}
  /* What went wrong there was said. */
  if (status != 0) _exit(1);
  struct process1_note note = {.kind = "pid", .pid = pid};
  if (hand_over(plan->channel, &note, sizeof note, pidfd) < 0) fail("namespaces", "process 1");
  if (write(go[1], "g", 1) != 1) fail("namespaces", "pipe");
  _exit(0);
}

static void leave_pids(const struct spec *spec, int proc_fd) {
  char text[16];
  if (!spec->last_pid) return;
  snprintf(text, sizeof text, "%u", spec->last_pid);
  if (write_file_at(proc_fd, "sys/kernel/ns_last_pid", text) < 0) fail("namespaces", "ns_last_pid");
}

_Noreturn void process1(struct guest_plan *plan, struct spec *spec) {
  enum { CHANNEL = 3, LISTEN = 4, LOG = 5, PROGRAMS = 6, AFTER_PROGRAMS = PROGRAMS + 2 * PROGRAMS_GROUPS };
  child_channel = plan->channel;
  on_failure(send_failure);
  dup2(STDIN_FILENO, STDOUT_FILENO); /* /dev/null: the launcher alone answers */
  die_with_launcher();
  prctl(PR_SET_NAME, "hutch-guest");
  /* A session keyring of its own, where the kernel has keyrings. */
  (void)syscall(SYS_keyctl, 1, NULL);
  join_cgroups(spec);
  struct programs_group groups[PROGRAMS_GROUPS];
  for (int i = 0; i < PROGRAMS_GROUPS; i++)
    groups[i] = (struct programs_group){.fd = open_group_file(spec->programs[i], O_WRONLY),
                                        .stat_fd = open_group_file(spec->programs_stat[i], O_RDONLY)};
  take_precedence(spec);
  if (unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP) < 0) fail("namespaces", "unshare");
  if (sethostname(spec->hostname, strlen(spec->hostname)) < 0) fail("hostname", "%s", spec->hostname);

  struct root root;
  root_enter(spec, &plan->identity, &root);
  hand_over_device(plan->channel, root.disk_device);
  if (spec->own_pids) {
    enter_own_pids(plan, &root);
    leave_pids(spec, root.proc_fd);
  } else {
    proc_enter(&root);
    become_root_inside(plan);
  }
  forbid_user_namespaces(root.proc_fd);
  if (spec->own_mounts) own_mounts();
  umask(022);
  name_files(spec->hostname);
  make_workdir(spec->workdir);
  set_limits(spec);
  uint64_t capabilities = CAPABILITIES_INSIDE | (spec->own_mounts ? CAPABILITIES_MOUNTS : 0);
  privileges_bound(capabilities);
  privileges_reduce(capabilities);
  if (prctl(PR_SET_DUMPABLE, 0) < 0) fail("privileges", "dumpable");
  die_with_launcher();

  for (int fd = 0; fd < 3; fd++)
    if (dup2(root.null_fd, fd) < 0) fail("guest", "descriptors");
  int channel = fcntl(plan->channel, F_DUPFD_CLOEXEC, PARKED);
  int listening = fcntl(plan->listen_fd, F_DUPFD_CLOEXEC, PARKED);
  int log = fcntl(root.log_fd, F_DUPFD_CLOEXEC, PARKED);
  child_channel = keep_at(channel, CHANNEL);
  struct guest_start start = {
      .listen_fd = keep_at(listening, LISTEN),
      .log_dir_fd = keep_at(log, LOG),
      .ready_fd = CHANNEL,
      .is_init = 1,
      .workdir = spec->workdir,
      .programs_max = spec->programs_max,
  };
  for (int i = 0; i < PROGRAMS_GROUPS; i++) {
    start.groups[i].fd = keep_group_file(groups[i].fd, PROGRAMS + 2 * i);
    start.groups[i].stat_fd = keep_group_file(groups[i].stat_fd, PROGRAMS + 2 * i + 1);
  }
  if (sys_close_range(AFTER_PROGRAMS, ~0U) < 0) fail("guest", "descriptors");

  /* Until here the launcher may have died unnoticed; from here it is heard. */
  char go;
  ssize_t got;
  do got = read(CHANNEL, &go, 1);
  while (got < 0 && errno == EINTR);
  if (got != 1) _exit(1);
  if (spec->seccomp) seccomp_install(spec->own_mounts != NULL);
  start_program(spec);
  _exit(guest_main(&start));
}
