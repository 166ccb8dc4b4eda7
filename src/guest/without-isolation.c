/* Role `guest`: the guest for the `process` runtime, in the namespaces of its caller. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "helper.h"

enum { SPEC_BYTES_MAX = 64 << 10 };

static int fail(const char *stage, int error, const char *message) {
  dprintf(1, "error stage=%s errno=%d %s\n", stage, error, message);
  return 1;
}

static ssize_t read_spec(char *spec) {
  size_t length = 0;
  for (;;) {
    ssize_t got = read(0, spec + length, SPEC_BYTES_MAX + 1 - length);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    length += (size_t)got;
    if (length > SPEC_BYTES_MAX) {
      errno = E2BIG;
      return -1;
    }
    if (got == 0) return (ssize_t)length;
  }
}

/* Relative to the directory, since the path of a unix socket may have 107 bytes only. */
static int listen_in(int run_fd) {
  struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "guest.sock"};
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || fchdir(run_fd) < 0) return -1;
  if (unlink(address.sun_path) < 0 && errno != ENOENT) return -1;
  mode_t mask = umask(0177);
  int bound = bind(fd, (struct sockaddr *)&address, sizeof address);
  umask(mask);
  return bound < 0 || listen(fd, 64) < 0 ? -1 : fd;
}

static int open_directory(int dir_fd, const char *name) {
  if (mkdirat(dir_fd, name, 0700) < 0 && errno != EEXIST) return -1;
  return openat(dir_fd, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

int guest_without_isolation(void) {
  static char spec[SPEC_BYTES_MAX + 1];
  const char *dir = NULL, *workdir = NULL;
  ssize_t length = read_spec(spec);
  if (length < 0) return fail("spec", errno, "cannot read the specification");
  if (length > 0 && spec[length - 1] != 0) return fail("spec", EINVAL, "the last entry does not end with NUL");
  for (char *entry = spec; entry < spec + length; entry += strlen(entry) + 1) {
    if (strncmp(entry, "dir=", 4) == 0) dir = entry + 4;
    else if (strncmp(entry, "workdir=", 8) == 0) workdir = entry + 8;
    else return fail("spec", EINVAL, "only dir and workdir are known");
  }
  if (!dir || dir[0] != '/') return fail("spec", EINVAL, "dir has to be an absolute path");
  if (workdir && workdir[0] != '/') return fail("spec", EINVAL, "workdir has to be an absolute path");
  int dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (dir_fd < 0) return fail("dir", errno, "cannot open the directory");
  int run_fd = open_directory(dir_fd, "run"), log_fd = open_directory(dir_fd, "log");
  if (run_fd < 0 || log_fd < 0) return fail("dir", errno, "cannot make run and log in it");
  int listen_fd = listen_in(run_fd);
  if (listen_fd < 0) return fail("listen", errno, "cannot listen at run/guest.sock");
  /* A leader of a process group, as an interactive shell starts one, cannot make a session. */
  if (setsid() < 0 && getsid(0) != getpid()) {
    pid_t pid = fork();
    if (pid < 0) return fail("session", errno, "cannot fork");
    if (pid > 0) _exit(0);
    setsid();
  }
  /* Who asked may be gone, and nobody would ever end us. */
  if (dprintf(1, "ok guest=%d keeper=0\n", (int)getpid()) < 0) return 1;
  struct guest_start start = {.listen_fd = listen_fd, .log_dir_fd = log_fd, .ready_fd = -1, .groups = {{-1, -1}, {-1, -1}}, .workdir = workdir};
  return guest_main(&start);
}
