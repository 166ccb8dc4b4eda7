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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "failure.h"
#include "frame.h"
#include "helper.h"
#include "keeper.h"
#include "launch.h"
#include "network.h"
#include "privileges.h"
#include "process1.h"
#include "spec.h"
#include "sys.h"
#include "userns.h"

enum {
  START_MS_MAX = 20000,
  SOCKET_BACKLOG = 128,
};

/* What a failing launcher takes back. */
static struct {
  pid_t guest;
  pid_t maker; /* of process 1, where the launcher did not make it itself */
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
  if (launched.maker > 0) kill(launched.maker, SIGKILL);
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
  struct clone_arguments arguments = {.flags = (spec->own_pids ? 0 : CLONE_NEWPID) | CLONE_PIDFD, .exit_signal = SIGCHLD};
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
static ssize_t hear(int channel, void *said_in, size_t size, int *device) {
  struct pollfd waiting = {.fd = channel, .events = POLLIN};
  int ready;
  do ready = poll(&waiting, 1, START_MS_MAX);
  while (ready < 0 && errno == EINTR);
  if (ready == 0) fail_with(ETIMEDOUT, "guest", "process 1 was not ready after %d ms", START_MS_MAX);
  union {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
  } control;
  struct iovec said = {said_in, size};
  struct msghdr message = {.msg_iov = &said, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t got = recvmsg(channel, &message, MSG_CMSG_CLOEXEC);
  struct cmsghdr *header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
  if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
      header->cmsg_len == CMSG_LEN(sizeof *device))
    memcpy(device, CMSG_DATA(header), sizeof *device);
  return got;
}

/* Process 1 is another than we made. */
static void follow_guest(const struct process1_note *note, int pidfd, int *guest_pidfd) {
  launched.maker = launched.guest;
  launched.guest = note->pid;
  close(*guest_pidfd);
  *guest_pidfd = pidfd;
}

/* Answers the device of its disk, or -1. */
static int await_guest(int channel, int *guest_pidfd) {
  union {
    struct report report;
    struct process1_note note;
  } said;
  int device = -1, resets = 0;
  ssize_t got;
  for (;;) {
    int fd = -1;
    got = hear(channel, &said, sizeof said, &fd);
    if (got == DEVICE_NOTE_BYTES) device = fd;
    else if (got == (ssize_t)sizeof said.note && fd >= 0) follow_guest(&said.note, fd, guest_pidfd);
    /* It ended without reading our go, which is told before its last words. */
    else if (got >= 0 || errno != ECONNRESET || resets++ > 0) break;
  }
  if (launched.maker > 0) {
    while (waitpid(launched.maker, NULL, __WALL) < 0 && errno == EINTR) {}
    launched.maker = 0;
  }
  if (got == 1) return device;
  if (got == (ssize_t)sizeof said.report) {
    said.report.stage[sizeof said.report.stage - 1] = 0;
    said.report.message[sizeof said.report.message - 1] = 0;
    fail_with(said.report.error, said.report.stage, "%s", said.report.message);
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
  put_u64(&writer, process_started(guest));
  put_u32(&writer, (uint32_t)getpid());
  put_u64(&writer, process_started(getpid()));
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
  if (!spec.has_uidbase && spec.own_pids) fail_with(EPERM, "spec", "pids: only root has namespaces to keep apart");
  if (!spec.own_pids && spec.last_pid) fail_with(EINVAL, "spec", "lastpid: without pids=own");
  if (!spec.has_uidbase && spec.own_mounts) fail_with(EPERM, "spec", "ownmounts: only root has namespaces to keep apart");
  replace_stdin_and_stderr();
  uid_t keeper_uid = spec.uidbase + UID_RANGE;
  enter_run_directory(&spec, keeper_uid);
  int keeper_listen = listen_at("keeper.sock");
  int mailbox = bind_at("egress.sock", SOCK_DGRAM);

  int channel[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) < 0) fail("sockets", "channel");
  struct guest_plan plan = {.channel = channel[1], .listen_fd = listen_at("guest.sock")};
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
  if (launched.guest == 0) process1(&plan, &spec);
  close(channel[1]);
  close(plan.listen_fd);
  if (plan.identity.userns_fd >= 0) close(plan.identity.userns_fd);
  struct network network = network_setup(!spec.without_api); /* while process 1 mounts */
  if (send(channel[0], "g", 1, MSG_NOSIGNAL) < 0 && errno != EPIPE) fail("guest", "channel");
  int disk_device = await_guest(channel[0], &guest_pidfd);
  close(channel[0]);
  pid_t guest = launched.guest;
  struct keeper_start start = {
      .guest = guest,
      .guest_pidfd = guest_pidfd,
      .listen_fd = keeper_listen,
      .mailbox_fd = mailbox,
      .disk_device = disk_device,
      .uid_of_its_own = spec.has_uidbase,
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
