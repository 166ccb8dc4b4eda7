/*
 * Runs CRIU where the programs of an instance are: it opens their files by the paths that they know, and sees their pids.
 * It is a static program, opened before we go there: nothing of the sandbox's file system is ever executed.
 *
 * To look at programs takes power over the host, which a sandbox's own root has not: `dump` keeps it, in the sandbox's
 * mount, pid, network, uts, ipc and cgroup namespaces, as a user who is the sandbox's root by number alone. All that
 * could act on it there stands still. To put them back takes none: `restore` is the sandbox's own root in its user
 * namespace, behind the same system call filter as every program, which what it makes inherits.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "failure.h"
#include "helper.h"
#include "seccomp.h"
#include "sys.h"

enum {
  IMAGES_FD = 100,
  WORK_FD = 101,
  STREAM_FD = 110, /* the first; the others follow */
  STREAMS_MAX = 4096,
  GROUPS_MAX = 16,
  STREAMS_MS_MAX = 20000,
  DESCRIPTORS_MAX = 16384,
  NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET,
};

struct work {
  int restores;
  pid_t process1;
  uint32_t uidbase;
  uint32_t last_pid; /* what comes before the pids of what is run, which must be none that it gives away; 0: any */
  const char *program, *images, *work;
  const char *groups[GROUPS_MAX];
  int group_count;
  int streams[STREAMS_MAX]; /* descriptors of process 1 */
  uint8_t inputs[STREAMS_MAX]; /* 1: of the stdin of a program */
  int stream_count;
  char **arguments; /* those of CRIU, its name the first */
};

static void say_failure(const char *stage, int error, const char *message) {
  fprintf(stderr, "%s: %s: %s\n", stage, message, strerror(error));
}

static uint32_t number_of(const char *text) {
  char *end;
  unsigned long value = strtoul(text, &end, 10);
  if (!*text || *end || value > UINT32_MAX) fail_with(EINVAL, "criu", "%.40s", text);
  return (uint32_t)value;
}

/* KEY=VALUE ... -- ARGUMENT ... */
static void parse(struct work *work, int argc, char **argv) {
  memset(work, 0, sizeof *work);
  work->restores = !strcmp(argv[0], "restore");
  if (!work->restores && strcmp(argv[0], "dump")) fail_with(EINVAL, "criu", "dump or restore is wanted");
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--")) {
      work->arguments = argv + i; /* -- becomes the name */
      break;
    }
    char *value = strchr(argv[i], '=');
    if (!value) fail_with(EINVAL, "criu", "%.40s", argv[i]);
    *value++ = 0;
    if (!strcmp(argv[i], "process1")) work->process1 = (pid_t)number_of(value);
    else if (!strcmp(argv[i], "uidbase")) work->uidbase = number_of(value);
    else if (!strcmp(argv[i], "lastpid")) work->last_pid = number_of(value);
    else if (!strcmp(argv[i], "program")) work->program = value;
    else if (!strcmp(argv[i], "images")) work->images = value;
    else if (!strcmp(argv[i], "work")) work->work = value;
    else if (!strcmp(argv[i], "group") && work->group_count < GROUPS_MAX) work->groups[work->group_count++] = value;
    else if ((!strcmp(argv[i], "stream") || !strcmp(argv[i], "input")) && work->stream_count < STREAMS_MAX) {
      work->inputs[work->stream_count] = argv[i][0] == 'i';
      work->streams[work->stream_count++] = (int)number_of(value);
    }
    else fail_with(EINVAL, "criu", "%.40s", argv[i]);
  }
  if (!work->arguments || work->process1 < 2 || !work->uidbase || !work->program || !work->images || !work->work)
    fail_with(EINVAL, "criu", "something is missing");
}

static void place(int fd, int at) {
  if (fd == at) return;
  if (dup2(fd, at) < 0) fail("criu", "descriptors");
  close(fd);
}

/* As the sandbox's root sees and makes files of the host's there: they are the host's root's on the disk. */
static void open_mapped(const char *path, int userns, uint64_t attributes, int at) {
  int tree = sys_open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  struct mount_attributes wanted = {.set = attributes | MOUNT_ATTR_IDMAP | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
                                           MOUNT_ATTR_NOEXEC};
  wanted.userns_fd = (uint64_t)userns;
  if (tree < 0 || sys_mount_setattr(tree, 0, &wanted) < 0) fail("criu", "%s", path);
  /* To be read as a directory, which what open_tree gives cannot be. */
  int dir = openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) fail("criu", "%s", path);
  close(tree);
  place(dir, at);
}

/* The other ends of what process 1 holds, for programs that are to have them. */
static void open_streams(const struct work *work) {
  for (int i = 0; i < work->stream_count; i++) {
    char path[48];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", work->process1, work->streams[i]);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) fail("criu", "%s", path);
    /* Neither end is made to wait by us; what a program makes of it, is in what was kept of it. */
    fcntl(fd, F_SETFL, O_RDWR);
    place(fd, STREAM_FD + i);
  }
}

/* What is on its way between programs and process 1 is in no image: it has to arrive first. Who stands still reads nothing. */
static void await_streams(const struct work *work) {
  for (int waited_ms = 0;; waited_ms++) {
    int pending = 0;
    for (int i = 0; i < work->stream_count; i++) {
      int bytes = 0;
      if (ioctl(STREAM_FD + i, FIONREAD, &bytes) < 0 || bytes == 0) continue;
      if (work->inputs[i]) fail_with(EBUSY, "streams", "a process has input that it has not read");
      pending = 1;
    }
    if (!pending) break;
    if (waited_ms == STREAMS_MS_MAX) fail_with(EBUSY, "streams", "output of a process is on its way");
    struct timespec step = {.tv_nsec = 1000000};
    nanosleep(&step, NULL);
  }
  for (int i = 0; i < work->stream_count; i++) close(STREAM_FD + i);
}

static void raise_descriptors(void) {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) < 0) return;
  files.rlim_cur = files.rlim_max < DESCRIPTORS_MAX ? files.rlim_max : DESCRIPTORS_MAX;
  (void)setrlimit(RLIMIT_NOFILE, &files);
}

/* The number of the sandbox's root, so that its file systems take what is made there; the host's power stays. */
static void become_number(uint32_t uidbase) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[2];
  if (prctl(PR_SET_KEEPCAPS, 1) < 0 || syscall(SYS_setgroups, 0, NULL) < 0 ||
      syscall(SYS_setresgid, uidbase, uidbase, uidbase) < 0 || syscall(SYS_setresuid, uidbase, uidbase, uidbase) < 0 ||
      syscall(SYS_capget, &header, data) < 0)
    fail("criu", "identity");
  for (int i = 0; i < 2; i++) data[i].effective = data[i].inheritable = data[i].permitted;
  if (syscall(SYS_capset, &header, data) < 0) fail("criu", "capabilities");
  for (unsigned capability = 0; capability < 64; capability++)
    if (data[capability / 32].permitted >> capability % 32 & 1 &&
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) < 0)
      fail("criu", "capability %u", capability);
}

static void become_root_inside(int userns) {
  if (setns(userns, CLONE_NEWUSER) < 0 || syscall(SYS_setgroups, 0, NULL) < 0 ||
      syscall(SYS_setresgid, 0, 0, 0) < 0 || syscall(SYS_setresuid, 0, 0, 0) < 0)
    fail("criu", "user namespace");
}

static _Noreturn void run(const struct work *work, int program, int userns) {
  static char name[] = "criu";
  char *environment[] = {"PATH=/nonexistent", NULL};
  setsid();
  if (work->restores) become_root_inside(userns);
  else become_number(work->uidbase);
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) fail("criu", "prctl");
  if (work->restores) seccomp_install(0);
  work->arguments[0] = name;
  syscall(SYS_execveat, program, "", work->arguments, environment, AT_EMPTY_PATH);
  fail("criu", "%s", work->program);
}

static int wait_for(pid_t pid) {
  int status;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/*
 * A first child says from where pids go on, for that counts in its pid namespace only, and makes a second one, which waits
 * until the first is gone with the pid that it had.
 */
static int run_behind(const struct work *work, int program, int userns) {
  int go[2];
  if (pipe2(go, O_CLOEXEC) < 0) fail("criu", "pipe");
  pid_t first = fork();
  if (first < 0) fail("criu", "fork");
  if (first == 0) {
    char text[16];
    snprintf(text, sizeof text, "%u", work->last_pid);
    if (work->last_pid && write_file_at(AT_FDCWD, "/proc/sys/kernel/ns_last_pid", text) < 0)
      fail("criu", "ns_last_pid");
    struct clone_arguments arguments = {.flags = CLONE_PARENT};
    pid_t second = sys_clone3(&arguments);
    if (second < 0) fail("criu", "clone");
    if (second > 0) _exit(0);
    char byte;
    ssize_t got;
    close(go[1]);
    do got = read(go[0], &byte, 1);
    while (got < 0 && errno == EINTR);
    if (got == 1) run(work, program, userns);
    _exit(1);
  }
  close(go[0]);
  int status = wait_for(first);
  if (status != 0) return status;
  if (write(go[1], "g", 1) != 1) fail("criu", "pipe");
  return wait_for(-1);
}

int criu_main(int argc, char **argv) {
  struct work work;
  on_failure(say_failure);
  parse(&work, argc, argv);
  if (geteuid() != 0) fail_with(EPERM, "criu", "only root");
  char path[48];
  snprintf(path, sizeof path, "/proc/%d/ns/user", work.process1);
  int userns = open(path, O_RDONLY | O_CLOEXEC);
  int pidfd = (int)syscall(SYS_pidfd_open, work.process1, 0);
  int program = open(work.program, O_RDONLY | O_CLOEXEC);
  if (userns < 0 || pidfd < 0) fail("criu", "process 1");
  if (program < 0) fail("criu", "%s", work.program);
  raise_descriptors();
  open_mapped(work.images, userns, work.restores ? MOUNT_ATTR_RDONLY : 0, IMAGES_FD);
  open_mapped(work.work, userns, 0, WORK_FD);
  open_streams(&work);
  if (!work.restores) await_streams(&work);
  for (int i = 0; i < work.group_count; i++)
    if (write_file_at(AT_FDCWD, work.groups[i], "0") < 0) fail("criu", "%s", work.groups[i]);
  if (setns(pidfd, NAMESPACES) < 0) fail("criu", "namespaces");
  if (chdir("/") < 0) fail("criu", "root");
  umask(0077);
  /* What is made does not get more of the processors than programs do, which may not take it themselves. */
  if (work.restores) (void)setpriority(PRIO_PROCESS, 0, 0);
  return run_behind(&work, program, userns);
}
