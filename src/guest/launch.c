/*
 * One launch. The order of its steps is what matters:
 *   launcher: own user namespace (by a child) | network namespace | process 1 | network
 *   process 1: cgroups | mount, uts, ipc and cgroup namespaces | file systems, root | user namespace | privileges
 * Every namespace but the user namespace is made by, and stays owned by, the host's root: root inside has no power
 * over mounts, network or host name. An ordinary user's instance owns them all through one user namespace.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "failure.h"
#include "frame.h"
#include "helper.h"
#include "keeper.h"
#include "launch.h"
#include "mounts.h"
#include "network.h"
#include "privileges.h"
#include "seccomp.h"
#include "spec.h"
#include "sys.h"
#include "userns.h"

enum {
  START_MS_MAX = 20000,
  SOCKET_BACKLOG = 128,
  OPEN_FILES_SOFT = 65536,
  OPEN_FILES_HARD = 1048576,
  PARKED = 64, /* descriptors on their way to the numbers that they are to have */
  CORE_BYTES = 1, /* the one value that also keeps the kernel from starting the host's core handler */
  /* Process 1 goes last when memory runs out; it gives what it starts the usual score. */
  OOM_SCORE_GUEST = -900,
  /* Against the programs of its own group only: it must be able to end thousands that are busy. */
  NICE_GUEST = -20,
};

/* What process 1 says to the launcher before it is ready: two bytes with its disk's device; then one byte. Or why not. */
static const char device_note[2] = "d";

struct report {
  char stage[16];
  int error;
  char message[FAILURE_MESSAGE_BYTES_MAX];
};

/* What a failing launcher takes back. */
static struct {
  pid_t guest;
  int run; /* holds the lock of run/, when we got so far */
  int sockets; /* the present directory is run/, and the sockets in it are ours */
  uint32_t request;
} launched;

/* In one write, which pipes take whole: others answer on the same one. Answers whether it was heard. */
static int answer(struct frame_writer *writer) {
  size_t length = frame_writer_pending(writer);
  int heard = write(STDOUT_FILENO, writer->data + writer->start, length) == (ssize_t)length;
  frame_writer_free(writer);
  return heard;
}

static void report_failure(const char *stage, int error, const char *message) {
  if (launched.guest > 0) {
    kill(launched.guest, SIGKILL);
    while (waitpid(launched.guest, NULL, __WALL) < 0 && errno == EINTR) {}
  }
  if (launched.sockets) {
    unlink("guest.sock");
    unlink("keeper.sock");
    unlink("egress.sock");
    /* Whoever hears the answer may launch anew before we have ended. */
    flock(launched.run, LOCK_UN);
  }
  char said[sizeof(struct report) + 128];
  snprintf(said, sizeof said, "%s: %s: %s", stage, message, strerror(error));
  struct frame_writer writer = {0};
  frame_error(&writer, launched.request, error, said);
  (void)answer(&writer);
}

static int child_channel = -1;

static void send_failure(const char *stage, int error, const char *message) {
  struct report report = {.error = error};
  strncpy(report.stage, stage, sizeof report.stage - 1);
  strncpy(report.message, message, sizeof report.message - 1);
  (void)send(child_channel, &report, sizeof report, MSG_NOSIGNAL);
}

/* Process 1 */

struct guest_plan {
  const struct spec *spec;
  struct identity identity;
  int channel, listen_fd;
};

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

static void become_root_inside(const struct guest_plan *plan, int proc_fd) {
  const struct identity *identity = &plan->identity;
  if (identity->userns_fd >= 0 && setns(identity->userns_fd, CLONE_NEWUSER) < 0) fail("identity", "user namespace");
  /* With one id only, the kernel does not let go of the user's groups. */
  if (identity->many && syscall(SYS_setgroups, 0, NULL) < 0) fail("identity", "groups");
  if (syscall(SYS_setresgid, 0, 0, 0) < 0 || syscall(SYS_setresuid, 0, 0, 0) < 0) fail("identity", "root inside");
  if (write_file_at(proc_fd, "sys/user/max_user_namespaces", "0") < 0) fail("identity", "max_user_namespaces");
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
static void hand_over_device(int channel, int device) {
  if (device < 0) return;
  union {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
  } control = {0};
  struct iovec note = {(void *)(uintptr_t)device_note, sizeof device_note};
  struct msghdr message = {.msg_iov = &note, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof device);
  memcpy(CMSG_DATA(header), &device, sizeof device);
  if (sendmsg(channel, &message, MSG_NOSIGNAL) < 0) fail("disk", "its device");
  close(device);
}

static _Noreturn void guest_process(struct guest_plan *plan, struct spec *spec) {
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
  become_root_inside(plan, root.proc_fd);
  umask(022);
  name_files(spec->hostname);
  make_workdir(spec->workdir);
  set_limits(spec);
  privileges_bound(CAPABILITIES_INSIDE);
  privileges_reduce(CAPABILITIES_INSIDE);
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
  if (spec->seccomp) seccomp_install();
  start_program(spec);
  _exit(guest_main(&start));
}

/* The launcher */

/* When a process was started, in clock ticks since the boot: with its pid its name for ever. */
static uint64_t start_time(pid_t pid) {
  char path[32], text[512];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  if (length <= 0) fail("guest", "%s", path);
  text[length] = 0;
  /* The name in parentheses may contain anything: fields count from behind it. */
  char *at = strrchr(text, ')');
  for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
  if (!at) fail_with(EPROTO, "guest", "%s", path);
  return strtoull(at + 1, NULL, 10);
}

static void replace_stdin_and_stderr(void) {
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDERR_FILENO) < 0) fail("dir", "/dev/null");
  if (null > STDERR_FILENO) close(null);
}

/* Makes run/ the present directory. Its lock says that a keeper is there, and lives as long as the keeper. */
static void enter_run_directory(const struct spec *spec, uid_t keeper_uid) {
  int dir = open(spec->dir, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (dir < 0) fail("dir", "%s", spec->dir);
  if (mkdirat(dir, "run", 0700) < 0 && errno != EEXIST) fail("dir", "run");
  if (mkdirat(dir, "log", 0700) < 0 && errno != EEXIST) fail("dir", "log");
  int run = openat(dir, "run", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (run < 0) fail("dir", "run");
  if (flock(run, LOCK_EX | LOCK_NB) < 0) fail_with(EBUSY, "dir", "the instance runs already");
  if (spec->has_uidbase && fchown(run, keeper_uid, keeper_uid) < 0) fail("dir", "run");
  if (fchdir(run) < 0) fail("dir", "run");
  close(dir);
  launched.run = run;
  launched.sockets = 1;
  if (unlink("exit") < 0 && errno != ENOENT) fail("dir", "exit");
}

static int bind_at(const char *name, int type) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, name, sizeof address.sun_path - 1);
  int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) fail("sockets", "socket");
  unlink(name);
  if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) fail("sockets", "%s", name);
  return fd;
}

static int listen_at(const char *name) {
  int fd = bind_at(name, SOCK_STREAM);
  if (listen(fd, SOCKET_BACKLOG) < 0) fail("sockets", "%s", name);
  return fd;
}

static pid_t clone_guest(const struct spec *spec, int *pidfd) {
  struct clone_arguments arguments = {.flags = CLONE_NEWPID | CLONE_PIDFD, .exit_signal = SIGCHLD};
  arguments.pidfd = (uint64_t)(uintptr_t)pidfd;
  int cgroup = -1;
  if (spec->cgroup2) {
    cgroup = open(spec->cgroup2, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (cgroup < 0) fail("cgroup", "%s", spec->cgroup2);
    arguments.flags |= CLONE_INTO_CGROUP_FLAG;
    arguments.cgroup = (uint64_t)cgroup;
  }
  pid_t pid = sys_clone3(&arguments);
  if (pid < 0) fail(spec->cgroup2 ? "cgroup" : "namespaces", "process 1 cannot be made");
  if (pid > 0 && cgroup >= 0) close(cgroup);
  return pid;
}

/* What process 1 says next; a descriptor that comes with it is put in `device`. */
static ssize_t hear(int channel, struct report *report, int *device) {
  struct pollfd waiting = {.fd = channel, .events = POLLIN};
  int ready;
  do ready = poll(&waiting, 1, START_MS_MAX);
  while (ready < 0 && errno == EINTR);
  if (ready == 0) fail_with(ETIMEDOUT, "guest", "process 1 was not ready after %d ms", START_MS_MAX);
  union {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
  } control;
  struct iovec said = {report, sizeof *report};
  struct msghdr message = {.msg_iov = &said, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t got = recvmsg(channel, &message, MSG_CMSG_CLOEXEC);
  struct cmsghdr *header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
  if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
      header->cmsg_len == CMSG_LEN(sizeof *device))
    memcpy(device, CMSG_DATA(header), sizeof *device);
  return got;
}

/* Answers the device of its disk, or -1. */
static int await_guest(int channel) {
  struct report report;
  int device = -1;
  ssize_t got = hear(channel, &report, &device);
  if (got == (ssize_t)sizeof device_note) got = hear(channel, &report, &device);
  /* It ended without reading our go, which is told before its last words. */
  if (got < 0 && errno == ECONNRESET) got = hear(channel, &report, &device);
  if (got == (ssize_t)sizeof device_note) got = hear(channel, &report, &device);
  if (got == 1) return device;
  if (got == (ssize_t)sizeof report) {
    report.stage[sizeof report.stage - 1] = 0;
    report.message[sizeof report.message - 1] = 0;
    fail_with(report.error, report.stage, "%s", report.message);
  }
  int status = 0;
  if (waitpid(launched.guest, &status, __WALL) == launched.guest) launched.guest = 0;
  if (WIFSIGNALED(status)) fail_with(ECHILD, "guest", "process 1 was killed by signal %d", WTERMSIG(status));
  fail_with(ECHILD, "guest", "process 1 ended with code %d", WEXITSTATUS(status));
}

/* From here only what is in run/ can be reached, as a uid that owns nothing else. */
static void become_keeper(const struct spec *spec, uid_t keeper_uid) {
  setsid();
  prctl(PR_SET_NAME, "hutch-keeper");
  ports_open();
  if (chroot(".") < 0) fail("keeper", "chroot");
  umask(0077);
  privileges_bound(CAPABILITIES_NONE);
  if (spec->has_uidbase) {
    if (syscall(SYS_setgroups, 0, NULL) < 0) fail("keeper", "groups");
    if (syscall(SYS_setresgid, keeper_uid, keeper_uid, keeper_uid) < 0) fail("keeper", "gid");
    /* The real uid lets it signal the guest, which is also how the guest dies with it; files are the keeper's own. */
    if (syscall(SYS_setresuid, spec->uidbase, keeper_uid, keeper_uid) < 0) fail("keeper", "uid");
  }
  privileges_reduce(CAPABILITIES_NONE);
}

static struct frame_writer launched_answer(pid_t guest, const struct network *network) {
  struct frame_writer writer = {0};
  frame_begin(&writer, FRAME_LAUNCHED, launched.request);
  put_u32(&writer, (uint32_t)guest);
  put_u64(&writer, start_time(guest));
  put_u32(&writer, (uint32_t)getpid());
  put_u64(&writer, start_time(getpid()));
  put_u8(&writer, network->redirects ? 1 : 0);
  frame_end(&writer);
  return writer;
}

/* After the last change of credentials, which clears the wish. */
static void end_with(pid_t launcher) {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != launcher) fail("keeper", "the launcher's end");
}

_Noreturn void launch(uint32_t request, const void *specification, size_t length) {
  pid_t launcher = getppid();
  launched.request = request;
  on_failure(report_failure);
  if (length > SPEC_BYTES_MAX) fail_with(E2BIG, "spec", "more than %d bytes", SPEC_BYTES_MAX);
  char *text = mmap(NULL, SPEC_BYTES_MAX + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (text == MAP_FAILED) fail("spec", "memory");
  memcpy(text, specification, length);
  struct spec spec;
  spec_parse(&spec, text, length);
  if (spec.has_uidbase && geteuid() != 0) fail_with(EPERM, "spec", "uidbase: only root has uid ranges to give");
  if (!spec.has_uidbase && geteuid() == 0) fail_with(EINVAL, "spec", "uidbase: missing, as root");
  if (!spec.has_uidbase && spec.disk == DISK_LOOP) fail_with(EPERM, "spec", "disk: only root can mount images");
  replace_stdin_and_stderr();
  uid_t keeper_uid = spec.uidbase + UID_RANGE;
  enter_run_directory(&spec, keeper_uid);
  int keeper_listen = listen_at("keeper.sock");
  int mailbox = bind_at("egress.sock", SOCK_DGRAM);

  int channel[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) < 0) fail("sockets", "channel");
  struct guest_plan plan = {.spec = &spec, .channel = channel[1], .listen_fd = listen_at("guest.sock")};
  if (spec.has_uidbase) {
    struct userns_maker maker;
    userns_start(&maker, spec.uidbase, spec.pids_max);
    if (unshare(CLONE_NEWNET) < 0) fail("namespaces", "network");
    plan.identity = (struct identity){.userns_fd = userns_finish(&maker, spec.uidbase), .many = 1};
  } else {
    plan.identity = (struct identity){.userns_fd = -1, .many = userns_enter_unprivileged()};
  }

  int guest_pidfd = -1;
  launched.guest = clone_guest(&spec, &guest_pidfd);
  if (launched.guest == 0) guest_process(&plan, &spec);
  close(channel[1]);
  close(plan.listen_fd);
  if (plan.identity.userns_fd >= 0) close(plan.identity.userns_fd);
  struct network network = network_setup(); /* while process 1 mounts */
  if (send(channel[0], "g", 1, MSG_NOSIGNAL) < 0 && errno != EPIPE) fail("guest", "channel");
  int disk_device = await_guest(channel[0]);
  close(channel[0]);
  pid_t guest = launched.guest;
  struct keeper_start start = {
      .guest = guest,
      .guest_pidfd = guest_pidfd,
      .listen_fd = keeper_listen,
      .mailbox_fd = mailbox,
      .disk_device = disk_device,
      .network = network,
  };
  struct frame_writer writer = launched_answer(guest, &network);
  become_keeper(&spec, keeper_uid);
  if (spec.transient) end_with(launcher);
  munmap(text, SPEC_BYTES_MAX + 1);
  if (!answer(&writer)) fail("keeper", "stdout");
  dup2(STDIN_FILENO, STDOUT_FILENO);
  keeper_run(&start);
  _exit(0);
}
