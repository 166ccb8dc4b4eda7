#define _GNU_SOURCE
#include "sys.h"

#include <errno.h>
#include <string.h>

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
