#define _GNU_SOURCE
#include "userns.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "failure.h"
#include "spec.h"
#include "sys.h"

static ssize_t read_once(int fd, void *buffer, size_t length) {
  ssize_t got;
  do got = read(fd, buffer, length);
  while (got < 0 && errno == EINTR);
  return got;
}

static pid_t wait_for(pid_t pid, int *status) {
  pid_t got;
  do got = waitpid(pid, status, 0);
  while (got < 0 && errno == EINTR);
  return got;
}

/* The child: answers errno as one int, then stays until the channel closes so that the namespace can be opened. */
static _Noreturn void make_namespace(int channel, uint32_t uidbase, uint32_t pids_max) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  /* The limit of a namespace's creator bounds all its processes together, whatever their uid inside. */
  struct rlimit processes = {pids_max, pids_max};
  int error = 0;
  if (pids_max && setrlimit(RLIMIT_NPROC, &processes) < 0) error = errno;
  /* The raw calls change this one thread only; the C library's would do no more here. */
  if (!error && syscall(SYS_setgroups, 0, NULL) < 0) error = errno;
  if (!error && syscall(SYS_setresgid, uidbase, uidbase, uidbase) < 0) error = errno;
  if (!error && syscall(SYS_setresuid, uidbase, uidbase, uidbase) < 0) error = errno;
  if (!error && unshare(CLONE_NEWUSER) < 0) error = errno;
  char byte;
  if (write(channel, &error, sizeof error) == sizeof error) (void)read_once(channel, &byte, 1);
  _exit(0);
}

void userns_start(struct userns_maker *maker, uint32_t uidbase, uint32_t pids_max) {
  int channel[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel) < 0) fail("userns", "socketpair");
  maker->pid = fork();
  if (maker->pid < 0) fail("userns", "fork");
  if (maker->pid == 0) {
    close(channel[0]);
    make_namespace(channel[1], uidbase, pids_max);
  }
  close(channel[1]);
  maker->channel = channel[0];
}

int userns_finish(struct userns_maker *maker, uint32_t uidbase) {
  int error = 0;
  if (read_once(maker->channel, &error, sizeof error) != sizeof error) error = ECHILD;
  if (error) fail_with(error, "userns", "a user namespace cannot be made");
  char path[64], map[64];
  snprintf(map, sizeof map, "0 %u %u\n", uidbase, (unsigned)UID_RANGE);
  snprintf(path, sizeof path, "/proc/%d/uid_map", maker->pid);
  if (write_file_at(AT_FDCWD, path, map) < 0) fail("userns", "uid_map of %u", uidbase);
  snprintf(path, sizeof path, "/proc/%d/gid_map", maker->pid);
  if (write_file_at(AT_FDCWD, path, map) < 0) fail("userns", "gid_map of %u", uidbase);
  snprintf(path, sizeof path, "/proc/%d/ns/user", maker->pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("userns", "%s", path);
  close(maker->channel);
  int status;
  (void)wait_for(maker->pid, &status);
  return fd;
}

/* Ordinary user */

/* The user's name from /etc/passwd, "" when it has none. No NSS: this program is static. */
static void user_name(uid_t uid, char *name, size_t size) {
  name[0] = 0;
  FILE *passwd = fopen("/etc/passwd", "re");
  if (!passwd) return;
  char line[1024];
  while (fgets(line, sizeof line, passwd)) {
    char *first = strchr(line, ':');
    char *second = first ? strchr(first + 1, ':') : NULL;
    if (!second || strtoul(second + 1, NULL, 10) != uid) continue;
    *first = 0;
    if (strlen(line) < size) strcpy(name, line);
    break;
  }
  fclose(passwd);
}

/* First line of /etc/subuid or /etc/subgid for the user: 1 when there is one. */
static int subordinate_range(const char *file, uid_t uid, const char *name, unsigned long *start, unsigned long *count) {
  FILE *ranges = fopen(file, "re");
  if (!ranges) return 0;
  char line[256], number[16];
  snprintf(number, sizeof number, "%u", uid);
  int found = 0;
  while (!found && fgets(line, sizeof line, ranges)) {
    char *colon = strchr(line, ':');
    if (!colon) continue;
    *colon = 0;
    if (strcmp(line, number) && (!name[0] || strcmp(line, name))) continue;
    found = sscanf(colon + 1, "%lu:%lu", start, count) == 2 && *count > 0;
  }
  fclose(ranges);
  return found;
}

/* Runs newuidmap or newgidmap for `target`: 0 when it could map. */
static int run_mapper(const char *program, pid_t target, unsigned id, unsigned long start, unsigned long count) {
  if (count > UID_RANGE - 1) count = UID_RANGE - 1;
  pid_t pid = fork();
  if (pid < 0) return -1;
  if (pid == 0) {
    char arguments[4][24];
    snprintf(arguments[0], sizeof arguments[0], "%d", target);
    snprintf(arguments[1], sizeof arguments[1], "%u", id);
    snprintf(arguments[2], sizeof arguments[2], "%lu", start);
    snprintf(arguments[3], sizeof arguments[3], "%lu", count);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    const char *argv[] = {program, arguments[0], "0", arguments[1], "1", "1", arguments[2], arguments[3], NULL};
    char *environment[] = {NULL};
    static const char *const directories[] = {"/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"};
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++) {
      char path[64];
      snprintf(path, sizeof path, "%s/%s", directories[i], program);
      execve(path, (char *const *)argv, environment);
    }
    _exit(127);
  }
  int status;
  return wait_for(pid, &status) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

/* Stays in the first user namespace and maps ids for its parent once told to. */
static _Noreturn void map_parent(int channel, uid_t uid, gid_t gid) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  char byte, name[256];
  if (read_once(channel, &byte, 1) != 1) _exit(1);
  user_name(uid, name, sizeof name);
  unsigned long uids, uid_count, gids, gid_count;
  int mapped = subordinate_range("/etc/subuid", uid, name, &uids, &uid_count) &&
               subordinate_range("/etc/subgid", uid, name, &gids, &gid_count) &&
               run_mapper("newuidmap", getppid(), uid, uids, uid_count) == 0 &&
               run_mapper("newgidmap", getppid(), gid, gids, gid_count) == 0;
  _exit(mapped ? 0 : 1);
}

int userns_enter_unprivileged(void) {
  uid_t uid = geteuid();
  gid_t gid = getegid();
  int channel[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel) < 0) fail("userns", "socketpair");
  pid_t mapper = fork();
  if (mapper < 0) fail("userns", "fork");
  if (mapper == 0) {
    close(channel[0]);
    map_parent(channel[1], uid, gid);
  }
  close(channel[1]);
  if (unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0) fail("userns", "this user cannot make a user namespace");
  int status = 1;
  if (write(channel[0], "m", 1) != 1 || wait_for(mapper, &status) != mapper) fail("userns", "the mapper is gone");
  close(channel[0]);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 1;

  char map[64];
  snprintf(map, sizeof map, "0 %u 1\n", uid);
  /* newuidmap may have worked where newgidmap did not. */
  if (write_file_at(AT_FDCWD, "/proc/self/uid_map", map) < 0 && errno != EPERM) fail("userns", "uid_map");
  if (write_file_at(AT_FDCWD, "/proc/self/setgroups", "deny") < 0) fail("userns", "setgroups");
  snprintf(map, sizeof map, "0 %u 1\n", gid);
  if (write_file_at(AT_FDCWD, "/proc/self/gid_map", map) < 0) fail("userns", "gid_map");
  return 0;
}
