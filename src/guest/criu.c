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
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <linux/capability.h>
#include <poll.h>
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
  FREEZER_FD = 102,
  STREAM_FD = 110, /* the first; the others follow */
  STREAMS_MAX = 4096,
  GROUPS_MAX = 16,
  PENDING_BYTES_MAX = 1 << 20, /* in a pipe; the kernel has no larger ones for who has no power over the host */
  LOG_BYTES_MAX = 65536,
  REMOVAL_ROUNDS_MAX = 100,
  DESCRIPTORS_MAX = 16384,
  NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET,
};

/* What CRIU writes beside its images lies in memory, and is gone with it: so much of it. */
static const char WORK_SIZE[] = "1m", WORK_FILES[] = "64";

struct stream {
  uint32_t descriptor; /* of process 1 */
  uint32_t key; /* of the pipe, where it was kept */
};

struct work {
  int restores;
  pid_t process1;
  uint64_t started; /* process 1, in clock ticks since boot */
  uint32_t uidbase;
  uint32_t last_pid; /* what comes before the pids of what is run, which must be none that it gives away; 0: any */
  uint64_t file_bytes_max, file_bytes_last; /* the second once it is called off */
  int stop_ms_max; /* once it is not wanted: for CRIU to put right what it did to programs, before it is killed */
  const char *program, *images, *freezer;
  int images_parent; /* as the host's root has them; -1: images are only read */
  const char *images_name;
  const char *groups[GROUPS_MAX];
  int group_count;
  struct stream streams[STREAMS_MAX];
  int stream_count;
  char **arguments; /* those of CRIU, its name the first */
};

static void say_failure(const char *stage, int error, const char *message) {
  fprintf(stderr, "%s: %s: %s\n", stage, message, strerror(error));
}

static uint64_t number_of(const char *text, uint64_t max) {
  char *end;
  errno = 0;
  unsigned long long value = strtoull(text, &end, 10);
  if (*text < '0' || *text > '9' || *end || errno || value > max) fail_with(EINVAL, "criu", "%.40s", text);
  return value;
}

/* DESCRIPTOR,KEY */
static struct stream stream_of(char *text) {
  char *key = strchr(text, ',');
  if (!key) fail_with(EINVAL, "criu", "%.40s", text);
  *key++ = 0;
  return (struct stream){(uint32_t)number_of(text, INT32_MAX), (uint32_t)number_of(key, UINT32_MAX)};
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
    if (!strcmp(argv[i], "process1")) work->process1 = (pid_t)number_of(value, INT32_MAX);
    else if (!strcmp(argv[i], "started")) work->started = number_of(value, UINT64_MAX);
    else if (!strcmp(argv[i], "uidbase")) work->uidbase = (uint32_t)number_of(value, UINT32_MAX);
    else if (!strcmp(argv[i], "lastpid")) work->last_pid = (uint32_t)number_of(value, UINT32_MAX);
    else if (!strcmp(argv[i], "filebytes")) work->file_bytes_max = number_of(value, INT64_MAX);
    else if (!strcmp(argv[i], "lastbytes")) work->file_bytes_last = number_of(value, INT64_MAX);
    else if (!strcmp(argv[i], "stopms")) work->stop_ms_max = (int)number_of(value, INT32_MAX);
    else if (!strcmp(argv[i], "program")) work->program = value;
    else if (!strcmp(argv[i], "images")) work->images = value;
    else if (!strcmp(argv[i], "freezer")) work->freezer = value;
    else if (!strcmp(argv[i], "group") && work->group_count < GROUPS_MAX) work->groups[work->group_count++] = value;
    else if (!strcmp(argv[i], "stream") && work->stream_count < STREAMS_MAX)
      work->streams[work->stream_count++] = stream_of(value);
    else fail_with(EINVAL, "criu", "%.40s", argv[i]);
  }
  if (!work->arguments || work->process1 < 2 || !work->uidbase || !work->program || !work->images)
    fail_with(EINVAL, "criu", "something is missing");
  if (!work->restores && (!work->freezer || !work->file_bytes_max || !work->file_bytes_last)) fail_with(EINVAL, "criu", "something is missing");
}

/* Once it ended its number is another's: what was opened by that is of process 1 if it lives still. */
static int process1_lives(const struct work *work, int pidfd) {
  struct pollfd ended = {.fd = pidfd, .events = POLLIN};
  return poll(&ended, 1, 0) == 0 && process_started(work->process1) == work->started;
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

/* To take the images away with, where we see the sandbox's files instead of the host's. */
static void keep_parent(struct work *work) {
  char path[PATH_MAX];
  const char *name = strrchr(work->images, '/');
  work->images_parent = -1;
  if (work->restores) return;
  if (!name || name == work->images || !name[1]) fail_with(EINVAL, "criu", "%s", work->images);
  snprintf(path, sizeof path, "%.*s", (int)(name - work->images), work->images);
  work->images_name = name + 1;
  work->images_parent = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (work->images_parent < 0) fail("criu", "%s", path);
}

/*
 * Nothing can be made in a directory that is gone. There and where a write is too much CRIU has a way to put right what it
 * did to programs, which it has not where the memory that it shares with them fails; so that is left room.
 */
static void take_images_away(const struct work *work, pid_t pid) {
  struct rlimit little = {work->file_bytes_last, work->file_bytes_last};
  (void)prlimit(pid, RLIMIT_FSIZE, &little, NULL);
  for (int round = 0; round < REMOVAL_ROUNDS_MAX; round++) {
    int fd = openat(work->images_parent, work->images_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
      if (fd >= 0) close(fd);
      return;
    }
    for (struct dirent *entry; (entry = readdir(dir));) (void)unlinkat(fd, entry->d_name, 0);
    closedir(dir);
    /* Not empty: another was made meanwhile. */
    if (unlinkat(work->images_parent, work->images_name, AT_REMOVEDIR) == 0) return;
  }
}

/* A directory for the log and for statistics, with an empty one in which CRIU looks for its plugins. */
static void open_work(uint32_t uidbase) {
  char owner[16];
  snprintf(owner, sizeof owner, "%u", uidbase);
  int made = sys_fsopen("tmpfs");
  if (made < 0 || sys_fsconfig(made, CONFIG_STRING, "size", WORK_SIZE, 0) < 0 ||
      sys_fsconfig(made, CONFIG_STRING, "nr_inodes", WORK_FILES, 0) < 0 ||
      sys_fsconfig(made, CONFIG_STRING, "mode", "0700", 0) < 0 ||
      sys_fsconfig(made, CONFIG_STRING, "uid", owner, 0) < 0 || sys_fsconfig(made, CONFIG_STRING, "gid", owner, 0) < 0 ||
      sys_fsconfig(made, CONFIG_CREATE, NULL, NULL, 0) < 0)
    fail("criu", "work directory");
  int mount = sys_fsmount(made, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
  int dir = mount < 0 ? -1 : openat(mount, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0 || mkdirat(dir, "plugins", 0755) < 0) fail("criu", "work directory");
  close(made);
  close(mount);
  place(dir, WORK_FD);
}

static void name_pending(char name[32], uint32_t key) { snprintf(name, 32, "pending-%u", key); }

/* What is on its way between a program and process 1, neither of which runs, is copied; it stays where it is. */
static void keep_pending(int stream, uint32_t key, int dir) {
  static char bytes[PENDING_BYTES_MAX];
  char name[32];
  int pending = 0, pipe_fds[2];
  if (ioctl(stream, FIONREAD, &pending) < 0) fail("streams", "pipe");
  if (pending == 0) return;
  if (pending > PENDING_BYTES_MAX) fail_with(EFBIG, "streams", "pipe");
  if (pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) < 0) fail("streams", "pipe");
  /* As many pieces as there may be there. */
  int size = fcntl(stream, F_GETPIPE_SZ);
  if (size < 0 || fcntl(pipe_fds[1], F_SETPIPE_SZ, size) < 0) fail("streams", "size of a pipe");
  ssize_t copied = tee(stream, pipe_fds[1], PENDING_BYTES_MAX, SPLICE_F_NONBLOCK);
  if (copied < pending) fail_with(EIO, "streams", "pipe");
  name_pending(name, key);
  int file = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file < 0) fail("streams", "%s", name);
  for (ssize_t left = copied; left > 0;) {
    ssize_t got = read(pipe_fds[0], bytes, sizeof bytes);
    if (got <= 0 || write(file, bytes, (size_t)got) != got) fail("streams", "%s", name);
    left -= got;
  }
  close(file);
  close(pipe_fds[0]);
  close(pipe_fds[1]);
}

/* Nobody has written to the pipe yet. */
static void put_pending(int stream, uint32_t key, int dir) {
  static char bytes[PENDING_BYTES_MAX];
  char name[32];
  name_pending(name, key);
  int file = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (file < 0 && errno == ENOENT) return;
  ssize_t size = file < 0 ? -1 : read(file, bytes, sizeof bytes);
  if (size < 0) fail("streams", "%s", name);
  close(file);
  if (fcntl(stream, F_GETPIPE_SZ) < size && fcntl(stream, F_SETPIPE_SZ, (int)size) < 0) fail("streams", "%s", name);
  for (ssize_t done = 0; done < size;) {
    ssize_t written = write(stream, bytes + done, (size_t)(size - done));
    if (written <= 0) fail("streams", "%s", name);
    done += written;
  }
}

/* The other ends of what process 1 holds; to be handed out, where programs are put back. */
static void open_streams(const struct work *work) {
  /* As ourselves: where ids are mapped the host's root is nobody. */
  int dir = open(work->images, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) fail("criu", "%s", work->images);
  for (int i = 0; i < work->stream_count; i++) {
    char path[48];
    const struct stream *stream = &work->streams[i];
    snprintf(path, sizeof path, "/proc/%d/fd/%u", work->process1, stream->descriptor);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    struct stat found;
    if (fd < 0 || fstat(fd, &found) < 0) fail("criu", "%s", path);
    if (!S_ISFIFO(found.st_mode)) fail_with(EINVAL, "criu", "%s is no pipe", path);
    if (!work->restores) {
      keep_pending(fd, stream->key, dir);
      close(fd);
      continue;
    }
    put_pending(fd, stream->key, dir);
    /* Neither end is made to wait by us; what a program makes of it, is in what was kept of it. */
    fcntl(fd, F_SETFL, O_RDWR);
    place(fd, STREAM_FD + i);
  }
  close(dir);
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

static _Noreturn void run(const struct work *work, int program, int userns, int nothing) {
  static char name[] = "criu";
  char *environment[] = {"PATH=/nonexistent", NULL};
  setsid();
  /* No keys of whoever started us. */
  (void)syscall(SYS_keyctl, 1, NULL);
  if (dup2(nothing, STDIN_FILENO) < 0) fail("criu", "descriptors");
  if (work->restores) become_root_inside(userns);
  else become_number(work->uidbase);
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) fail("criu", "prctl");
  if (work->restores) seccomp_install(0);
  else {
    /* A write that is too much fails: so CRIU hears of it, and leaves programs as they were. */
    struct rlimit bytes = {work->file_bytes_max, work->file_bytes_max};
    if (signal(SIGXFSZ, SIG_IGN) == SIG_ERR || setrlimit(RLIMIT_FSIZE, &bytes) < 0) fail("criu", "limits");
  }
  work->arguments[0] = name;
  syscall(SYS_execveat, program, "", work->arguments, environment, AT_EMPTY_PATH);
  fail("criu", "%s", work->program);
}

static int status_of(pid_t pid) {
  int status;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Answers 1 once it ended. The end of our stdin is heard as soon as there is nobody who wants it, however that died. */
static int await_end(int pidfd, int control, int ms_max) {
  struct pollfd events[2] = {{.fd = pidfd, .events = POLLIN}, {.fd = control, .events = POLLIN}};
  for (;;) {
    int got = poll(events, control < 0 ? 1 : 2, ms_max);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("criu", "poll");
    return events[0].revents != 0;
  }
}

/* Whatever is let go of must not run before who wanted this knows: programs that it holds were frozen, and are again. */
static void freeze_again(const struct work *work) {
  if (work->restores) return;
  if (write_file_at(FREEZER_FD, "freezer.state", "FROZEN") < 0 && errno == ENOENT)
    (void)write_file_at(FREEZER_FD, "cgroup.freeze", "1");
}

/* In the namespaces of the sandbox, but for its pids, in which CRIU is. */
static int supervise(const struct work *work, pid_t pid) {
  int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (pidfd < 0) fail("criu", "pidfd");
  int called_off = !await_end(pidfd, STDIN_FILENO, -1);
  if (called_off) {
    /* Of what it puts back nothing is used. */
    if (!work->restores) take_images_away(work, pid);
    if (work->restores || !await_end(pidfd, -1, work->stop_ms_max)) {
      freeze_again(work);
      kill(pid, SIGKILL);
      (void)await_end(pidfd, -1, -1);
    }
  }
  /* Its number is still its own, and that of its group. */
  if (!work->restores) kill(-pid, SIGKILL);
  int status = status_of(pid);
  return called_off && status == 0 ? 1 : status;
}

/* What went wrong, as CRIU says it. */
static void tell_log(void) {
  static char text[LOG_BYTES_MAX];
  struct stat found;
  int file = openat(WORK_FD, "log", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (file < 0 || fstat(file, &found) < 0 || !S_ISREG(found.st_mode)) return;
  off_t from = found.st_size > LOG_BYTES_MAX ? found.st_size - LOG_BYTES_MAX : 0;
  ssize_t got = pread(file, text, sizeof text, from);
  if (got > 0) (void)!write(STDERR_FILENO, text, (size_t)got);
}

/* The only one that is left, as who reads this file sees it. */
static pid_t only_child(int children) {
  char text[32];
  ssize_t got = pread(children, text, sizeof text - 1, 0);
  if (got <= 0) fail_with(ECHILD, "criu", "children");
  text[got] = 0;
  return (pid_t)strtol(text, NULL, 10);
}

/*
 * A first child says from where pids go on, for that counts in its pid namespace only, and makes a second one, which waits
 * until the first is gone with the pid that it had.
 */
static int run_behind(const struct work *work, int program, int userns, int nothing, int children) {
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
    if (got == 1) run(work, program, userns, nothing);
    _exit(1);
  }
  close(go[0]);
  int status = status_of(first);
  if (status != 0) return status;
  pid_t second = only_child(children);
  if (write(go[1], "g", 1) != 1) fail("criu", "pipe");
  return supervise(work, second);
}

/* One byte, once it is written down who we are, for who comes after somebody who was killed. */
static void await_go(void) {
  char byte;
  ssize_t got;
  do got = read(STDIN_FILENO, &byte, 1);
  while (got < 0 && errno == EINTR);
  if (got != 1) fail_with(ECANCELED, "criu", "nobody wants it");
}

int criu_main(int argc, char **argv) {
  struct work work;
  on_failure(say_failure);
  parse(&work, argc, argv);
  if (geteuid() != 0) fail_with(EPERM, "criu", "only root");
  await_go();
  char path[48];
  snprintf(path, sizeof path, "/proc/%d/ns/user", work.process1);
  int pidfd = (int)syscall(SYS_pidfd_open, work.process1, 0);
  int userns = open(path, O_RDONLY | O_CLOEXEC);
  int program = open(work.program, O_RDONLY | O_CLOEXEC);
  /* Of this process alone, which has no other thread. */
  int children = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
  int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (userns < 0 || pidfd < 0) fail("criu", "process 1");
  if (program < 0) fail("criu", "%s", work.program);
  if (children < 0 || nothing < 0) fail("criu", "descriptors");
  raise_descriptors();
  open_mapped(work.images, userns, work.restores ? MOUNT_ATTR_RDONLY : 0, IMAGES_FD);
  keep_parent(&work);
  open_work(work.uidbase);
  if (!work.restores) {
    int freezer = open(work.freezer, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (freezer < 0) fail("criu", "%s", work.freezer);
    place(freezer, FREEZER_FD);
  }
  if (!process1_lives(&work, pidfd)) fail_with(ESRCH, "criu", "process 1");
  /* Its end at a bad moment hurts programs; what it makes for them is bounded by what they may have. */
  if (!work.restores) (void)write_file_at(AT_FDCWD, "/proc/self/oom_score_adj", "-1000");
  open_streams(&work);
  for (int i = 0; i < work.group_count; i++)
    if (write_file_at(AT_FDCWD, work.groups[i], "0") < 0) fail("criu", "%s", work.groups[i]);
  if (setns(pidfd, NAMESPACES) < 0) fail("criu", "namespaces");
  if (chdir("/") < 0) fail("criu", "root");
  umask(0077);
  /* What is made does not get more of the processors than programs do, which may not take it themselves. */
  if (work.restores) (void)setpriority(PRIO_PROCESS, 0, 0);
  int status = run_behind(&work, program, userns, nothing, children);
  if (status != 0) tell_log();
  return status;
}
