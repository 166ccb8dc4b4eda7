#define _GNU_SOURCE
#include "sys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "failure.h"

int write_file_at(int at, const char *path, const char *text) {
  int fd = openat(at, path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t length = (ssize_t)strlen(text), written;
  do written = write(fd, text, (size_t)length);
  while (written < 0 && errno == EINTR);
  int error = written < 0 ? errno : EIO;
  close(fd);
  if (written == length) return 0;
  errno = error;
  return -1;
}

uint64_t process_started(pid_t pid) {
  char path[32], text[512];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  if (length <= 0) fail("process", "%s", path);
  text[length] = 0;
  /* The name in parentheses may contain anything: fields count from behind it. */
  char *at = strrchr(text, ')');
  for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
  if (!at) fail_with(EPROTO, "process", "%s", path);
  return strtoull(at + 1, NULL, 10);
}
