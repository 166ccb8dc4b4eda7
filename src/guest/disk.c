#define _GNU_SOURCE
#include "disk.h"

#include <errno.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "failure.h"
#include "mounts.h"
#include "sys.h"

/* Headers of the C library's distribution may predate LOOP_CONFIGURE. */
#ifndef LOOP_CONFIGURE
#define LOOP_CONFIGURE 0x4C0A
struct loop_config {
  uint32_t fd, block_size;
  struct loop_info64 info;
  uint64_t reserved[8];
};
#endif

enum { LOOP_ATTEMPTS_MAX = 128, LOOP_BLOCK_BYTES = 4096, COPY_BYTES = 64 * 1024 };

/* Puts the image on a free loop device; others take devices at the same time, so ask again when one was faster. */
static int loop_open(int image, char *path, size_t path_size) {
  int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control < 0) fail("disk", "/dev/loop-control");
  /* In turns: the kernel names the same free device to all who ask at once, and all but one would have asked in vain. */
  (void)flock(control, LOCK_EX);
  for (int attempt = 0; attempt < LOOP_ATTEMPTS_MAX; attempt++) {
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0) fail("disk", "no free loop device");
    snprintf(path, path_size, "/dev/loop%d", number);
    int device = open(path, O_RDWR | O_CLOEXEC);
    if (device < 0) fail("disk", "%s", path);
    struct loop_config config = {.fd = (uint32_t)image, .block_size = LOOP_BLOCK_BYTES};
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (ioctl(device, LOOP_CONFIGURE, &config) == 0) {
      close(control);
      return device;
    }
    if (errno != EBUSY) fail("disk", "%s cannot take the image", path);
    close(device);
  }
  fail_with(EBUSY, "disk", "no loop device after %d attempts", LOOP_ATTEMPTS_MAX);
}

static void copy_range(int from, int to, off_t at, off_t end) {
  char buffer[COPY_BYTES];
  while (at < end) {
    size_t wanted = end - at < COPY_BYTES ? (size_t)(end - at) : COPY_BYTES;
    ssize_t got = pread(from, buffer, wanted, at);
    if (got <= 0) fail("disk", "the template cannot be read");
    if (pwrite(to, buffer, (size_t)got, at) != got) fail("disk", "disk.img");
    at += got;
  }
}

/* A new image: the template's size and its few blocks that are not holes. */
static int make_image(int dir_fd, const char *template_path) {
  int template = open(template_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  struct stat status;
  if (template < 0 || fstat(template, &status) < 0) fail("disk", "the template %s", template_path);
  int image = openat(dir_fd, "disk.img", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (image < 0 || ftruncate(image, status.st_size) < 0) fail("disk", "disk.img");
  for (off_t at = 0; (at = lseek(template, at, SEEK_DATA)) >= 0;) {
    off_t end = lseek(template, at, SEEK_HOLE);
    if (end < 0) fail("disk", "the template %s", template_path);
    copy_range(template, image, at, end);
    at = end;
  }
  close(template);
  return image;
}

static int open_image(int dir_fd, const char *template_path, int *device) {
  int image = template_path ? make_image(dir_fd, template_path)
                            : openat(dir_fd, "disk.img", O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (image < 0) fail("disk", "disk.img");
  char path[32];
  *device = loop_open(image, path, sizeof path);
  int fs = filesystem_open("disk", "ext4");
  filesystem_set(fs, "disk", "source", path);
  filesystem_set(fs, "disk", "errors", "remount-ro");
  filesystem_flag(fs, "disk", "discard"); /* what is deleted inside goes back to the host's disk */
  /* Without a journal the disk promises nothing after a loss of power but what was synced; flushing every file that a
   * rename replaces would cost a write to the disk for each save. */
  filesystem_flag(fs, "disk", "noauto_da_alloc");
  int mount = filesystem_mount(fs, "disk", MOUNT_ATTR_NODEV | MOUNT_ATTR_NOATIME);
  close(image);
  return mount;
}

int disk_open(const struct spec *spec, int dir_fd, int *device) {
  *device = -1;
  if (spec->disk == DISK_LOOP) return open_image(dir_fd, spec->disk_template, device);
  if (mkdirat(dir_fd, "disk", 0755) < 0 && errno != EEXIST) fail("disk", "disk");
  int tree = sys_open_tree(dir_fd, "disk", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (tree < 0) fail("disk", "disk");
  return tree;
}

void disk_settle(int device) {
  /* It waits until all that was written so far is on the host's disk: in a process of its own, which nobody waits for. */
  pid_t child = fork();
  if (child == 0) {
    pid_t own = fork();
    if (own != 0) _exit(0);
    if (device > 0) (void)sys_close_range(0, (unsigned)device - 1);
    (void)sys_close_range((unsigned)device + 1, ~0U);
    /* Where the image's file system cannot do that, it stays as it is. */
    _exit(ioctl(device, LOOP_SET_DIRECT_IO, 1UL) < 0);
  }
  close(device);
  if (child > 0)
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
}
