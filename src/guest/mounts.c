#define _GNU_SOURCE
#include "mounts.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <linux/securebits.h>

#include "disk.h"
#include "failure.h"
#include "sys.h"

enum {
  NAME_BYTES_MAX = 255,
  TREE_FLAGS = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC,
  DIRECTORY_FLAGS = O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW,
  TTY_GID = 5,
};

/* File system contexts */

static _Noreturn void fail_filesystem(int fs, const char *stage, const char *what) {
  int error = errno;
  char reason[160];
  ssize_t length = read(fs, reason, sizeof reason - 1);
  reason[length > 0 ? length : 0] = 0;
  fail_with(error, stage, "%s%s%s", what, reason[0] ? ": " : "", reason);
}

int filesystem_open(const char *stage, const char *type) {
  int fs = sys_fsopen(type);
  if (fs < 0) fail(stage, "file system %s", type);
  /* What the first column of /proc/mounts says; a disk names its own. */
  if (strcmp(type, "ext4")) filesystem_set(fs, stage, "source", type);
  return fs;
}

void filesystem_set(int fs, const char *stage, const char *key, const char *value) {
  if (sys_fsconfig(fs, CONFIG_STRING, key, value, 0) < 0) fail_filesystem(fs, stage, key);
}

void filesystem_flag(int fs, const char *stage, const char *key) {
  if (sys_fsconfig(fs, CONFIG_FLAG, key, NULL, 0) < 0) fail_filesystem(fs, stage, key);
}

int filesystem_mount(int fs, const char *stage, unsigned attributes) {
  if (sys_fsconfig(fs, CONFIG_CREATE, NULL, NULL, 0) < 0) fail_filesystem(fs, stage, "create");
  int mount = sys_fsmount(fs, attributes);
  if (mount < 0) fail_filesystem(fs, stage, "mount");
  close(fs);
  return mount;
}

/* A detached copy of a tree of the host with the ids of the sandbox. */
static int clone_tree(const char *stage, int at, const char *path, unsigned flags, uint64_t attributes,
                      const struct identity *identity) {
  int tree = sys_open_tree(at, path, TREE_FLAGS | flags);
  if (tree < 0) fail(stage, "%s", path);
  struct mount_attributes wanted = {.set = attributes};
  if (identity->userns_fd >= 0) {
    wanted.set |= MOUNT_ATTR_IDMAP;
    wanted.userns_fd = (uint64_t)identity->userns_fd;
  }
  if (sys_mount_setattr(tree, flags & AT_RECURSIVE, &wanted) < 0)
    fail(stage, "%s: %s", path,
         errno == EINVAL && identity->userns_fd >= 0 ? "its file system takes no id mapping" : "mount attributes");
  return tree;
}

static void attach(const char *stage, int mount, int at, const char *path) {
  unsigned flags = MOVE_MOUNT_F_EMPTY_PATH | (path[0] ? 0 : MOVE_MOUNT_T_EMPTY_PATH);
  if (sys_move_mount(mount, "", at, path, flags) < 0) fail(stage, "%s", path[0] ? path : "root");
}

/* Overlays */

/* Kernels before 6.13 take layers by path only, and only attached ones: they are put on a hidden file system. */
struct scratch {
  int fd;
  int count;
};

struct builder {
  const struct identity *identity;
  int dir_fd, disk_fd;
  struct scratch scratch;
};

static void scratch_open(struct builder *builder) {
  if (builder->scratch.fd >= 0) return;
  int fs = filesystem_open("overlay", "tmpfs");
  builder->scratch.fd = filesystem_mount(fs, "overlay", MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID);
  attach("overlay", builder->scratch.fd, builder->dir_fd, "");
  if (mkdirat(builder->scratch.fd, "disk", 0700) < 0) fail("overlay", "disk");
  attach("overlay", builder->disk_fd, builder->scratch.fd, "disk");
}

static int overlay_by_path(struct builder *builder, const int *lower, size_t lower_count, const char *name) {
  scratch_open(builder);
  int scratch = builder->scratch.fd;
  char *options = malloc(4096);
  if (!options) fail("overlay", "options");
  size_t used = (size_t)snprintf(options, 4096, "xino=off,%supperdir=disk/%s/upper,workdir=disk/%s/work,lowerdir=",
                                 builder->identity->userns_fd < 0 ? "userxattr," : "redirect_dir=on,", name, name);
  for (size_t i = 0; i < lower_count; i++) {
    char place[16];
    snprintf(place, sizeof place, "%d", builder->scratch.count++);
    if (mkdirat(scratch, place, 0700) < 0) fail("overlay", "layer %s", place);
    attach("overlay", lower[i], scratch, place);
    used += (size_t)snprintf(options + used, 4096 - used, "%s%s", i ? ":" : "", place);
  }
  char target[16];
  snprintf(target, sizeof target, "m%d", builder->scratch.count++);
  if (mkdirat(scratch, target, 0700) < 0 || fchdir(scratch) < 0) fail("overlay", "%s", target);
  if (mount("overlay", target, "overlay", MS_NODEV, options) < 0) fail("overlay", "mount");
  free(options);
  int tree = sys_open_tree(scratch, target, TREE_FLAGS);
  if (tree < 0) fail("overlay", "%s", target);
  return tree;
}

static int open_directory(int at, const char *name, const char *part) {
  char path[NAME_BYTES_MAX + 16];
  snprintf(path, sizeof path, "%s/%s", name, part);
  int fd = openat(at, path, DIRECTORY_FLAGS);
  if (fd < 0) fail("overlay", "%s", path);
  return fd;
}

/* `name` is the directory on the disk that has `upper` and `work`. */
static int overlay_mount(struct builder *builder, const int *lower, size_t lower_count, const char *name) {
#ifdef HUTCH_TEST_OVERLAY_BY_PATH /* the way of older kernels, for the tests */
  return overlay_by_path(builder, lower, lower_count, name);
#endif
  int fs = filesystem_open("overlay", "overlay");
  if (sys_fsconfig(fs, CONFIG_FD, "lowerdir+", NULL, lower[0]) < 0) {
    if (errno != EINVAL && errno != EBADF) fail_filesystem(fs, "overlay", "lowerdir");
    close(fs);
    return overlay_by_path(builder, lower, lower_count, name);
  }
  for (size_t i = 1; i < lower_count; i++)
    if (sys_fsconfig(fs, CONFIG_FD, "lowerdir+", NULL, lower[i]) < 0) fail_filesystem(fs, "overlay", "lowerdir");
  int upper = open_directory(builder->disk_fd, name, "upper");
  int work = open_directory(builder->disk_fd, name, "work");
  if (sys_fsconfig(fs, CONFIG_FD, "upperdir", NULL, upper) < 0) fail_filesystem(fs, "overlay", "upperdir");
  if (sys_fsconfig(fs, CONFIG_FD, "workdir", NULL, work) < 0) fail_filesystem(fs, "overlay", "workdir");
  close(upper);
  close(work);
  filesystem_set(fs, "overlay", "xino", "off");
  if (builder->identity->userns_fd < 0) filesystem_flag(fs, "overlay", "userxattr");
  else filesystem_set(fs, "overlay", "redirect_dir", "on"); /* directories of a layer can be renamed */
  return filesystem_mount(fs, "overlay", MOUNT_ATTR_NODEV);
}

/* Makes `<name>/upper` and `<name>/work`. The merged directory shows the upper's owner and mode: those of `lower`. */
static void writable_layer(int disk_fd, const char *name, int lower) {
  char path[NAME_BYTES_MAX + 16];
  if (mkdirat(disk_fd, name, 0755) < 0 && errno != EEXIST) fail("disk", "%s", name);
  snprintf(path, sizeof path, "%s/work", name);
  if (mkdirat(disk_fd, path, 0755) < 0 && errno != EEXIST) fail("disk", "%s", path);
  snprintf(path, sizeof path, "%s/upper", name);
  if (mkdirat(disk_fd, path, 0755) < 0) {
    if (errno == EEXIST) return;
    fail("disk", "%s", path);
  }
  struct stat status;
  if (fstat(lower, &status) < 0 || fchmodat(disk_fd, path, status.st_mode & 07777, 0) < 0) fail("disk", "%s", path);
  /* An owner that is not mapped stays the sandbox's root. */
  (void)fchownat(disk_fd, path, status.st_uid, status.st_gid, AT_SYMLINK_NOFOLLOW);
}

/* A target's name on the disk: `/` and everything unusual as %xx. */
static void layer_name(const char *target, char *name) {
  static const char prefix[] = "mount-";
  size_t used = sizeof prefix - 1;
  memcpy(name, prefix, used);
  for (const char *at = target; *at; at++) {
    unsigned char byte = (unsigned char)*at;
    int plain = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '0' && byte <= '9') ||
                byte == '-' || byte == '_';
    if (used + 4 > NAME_BYTES_MAX) fail_with(ENAMETOOLONG, "spec", "%.100s", target);
    used += (size_t)snprintf(name + used, 4, plain ? "%c" : "%%%02x", byte);
  }
}

static int root_overlay(struct builder *builder, const struct spec *spec) {
  int layers[SPEC_LAYERS_MAX];
  for (size_t i = 0; i < spec->layer_count; i++)
    layers[i] = clone_tree("layers", AT_FDCWD, spec->layers[i], 0, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
                           builder->identity);
  writable_layer(builder->disk_fd, "root", layers[0]);
  int root = overlay_mount(builder, layers, spec->layer_count, "root");
  for (size_t i = 0; i < spec->layer_count; i++) close(layers[i]);
  return root;
}

/* Copying a file up takes its owner along, which an ordinary user can do with its own files only. */
static int can_copy_up(const struct identity *identity, const char *source) {
  struct stat status;
  return identity->userns_fd >= 0 || (stat(source, &status) == 0 && status.st_uid == geteuid());
}

static int extra_mount(struct builder *builder, const struct spec_mount *wanted) {
  if (!wanted->writable || !can_copy_up(builder->identity, wanted->source)) {
    if (wanted->mask) fail_with(EPERM, "mounts", "%.100s: only a writable overlay takes a mask", wanted->target);
    /* In a namespace of their own ordinary users may not uncover what is mounted below. */
    unsigned flags = builder->identity->userns_fd < 0 ? AT_RECURSIVE : 0;
    return clone_tree("mounts", AT_FDCWD, wanted->source, flags, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
                      builder->identity);
  }
  char name[NAME_BYTES_MAX + 1];
  layer_name(wanted->target, name);
  const char *const layers[] = {wanted->mask ? wanted->mask : wanted->source, wanted->source};
  size_t count = wanted->mask ? 2 : 1;
  int lower[2];
  for (size_t i = 0; i < count; i++)
    lower[i] = clone_tree("mounts", AT_FDCWD, layers[i], 0, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV, builder->identity);
  writable_layer(builder->disk_fd, name, lower[count - 1]);
  int mount = overlay_mount(builder, lower, count, name);
  for (size_t i = 0; i < count; i++) close(lower[i]);
  return mount;
}

/* The disk itself at a place inside: file systems that are stacked there have their upper directories on it. */
static int plain_directory(struct builder *builder) {
  static const char name[] = "own";
  if (mkdirat(builder->disk_fd, name, 0755) < 0 && errno != EEXIST) fail("disk", "%s", name);
  int tree = sys_open_tree(builder->disk_fd, name, TREE_FLAGS);
  struct mount_attributes wanted = {.set = MOUNT_ATTR_NODEV};
  if (tree < 0 || sys_mount_setattr(tree, 0, &wanted) < 0) fail("disk", "%s", name);
  return tree;
}

/* Devices */

struct device {
  const char *name;
  unsigned major, minor;
};

static const struct device devices[] = {{"null", 1, 3},   {"zero", 1, 5},    {"full", 1, 7},
                                        {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
enum { DEVICES = sizeof devices / sizeof *devices };

struct device_mounts {
  int dev, pts, shm;
  int bound[DEVICES]; /* the host's nodes, for those who may not make their own */
};

static void make_devices(struct device_mounts *mounts, const struct spec *spec, const struct identity *identity) {
  int fs = filesystem_open("devices", "tmpfs");
  filesystem_set(fs, "devices", "mode", "0755");
  filesystem_set(fs, "devices", "size", "64k");
  mounts->dev = filesystem_mount(fs, "devices", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
  for (int i = 0; i < DEVICES; i++) {
    mounts->bound[i] = -1;
    if (mknodat(mounts->dev, devices[i].name, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)) == 0)
      continue;
    if (errno != EPERM) fail("devices", "%s", devices[i].name);
    char host[32];
    snprintf(host, sizeof host, "/dev/%s", devices[i].name);
    mounts->bound[i] = sys_open_tree(AT_FDCWD, host, TREE_FLAGS);
    if (mounts->bound[i] < 0 || mknodat(mounts->dev, devices[i].name, S_IFREG | 0666, 0) < 0)
      fail("devices", "%s", host);
  }
  static const char *const links[][2] = {{"/proc/self/fd", "fd"},         {"/proc/self/fd/0", "stdin"},
                                         {"/proc/self/fd/1", "stdout"},   {"/proc/self/fd/2", "stderr"},
                                         {"pts/ptmx", "ptmx"}};
  for (size_t i = 0; i < sizeof links / sizeof *links; i++)
    if (symlinkat(links[i][0], mounts->dev, links[i][1]) < 0) fail("devices", "%s", links[i][1]);
  if (mkdirat(mounts->dev, "pts", 0755) < 0 || mkdirat(mounts->dev, "shm", 01777) < 0) fail("devices", "pts, shm");

  fs = filesystem_open("devices", "devpts");
  filesystem_set(fs, "devices", "ptmxmode", "0666");
  filesystem_set(fs, "devices", "mode", "0620");
  filesystem_set(fs, "devices", "max", "256"); /* pseudo terminals are a resource of the whole host */
  if (identity->many) {
    char gid[16];
    snprintf(gid, sizeof gid, "%u", (spec->has_uidbase ? spec->uidbase : 0) + TTY_GID);
    filesystem_set(fs, "devices", "gid", gid);
  }
  mounts->pts = filesystem_mount(fs, "devices", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);

  fs = filesystem_open("devices", "tmpfs");
  filesystem_set(fs, "devices", "mode", "1777");
  /* It counts as memory of the instance, and no end of a process gives it back: it must not take all of that. */
  char size[16];
  snprintf(size, sizeof size, "%um", spec->shm_mb);
  filesystem_set(fs, "devices", "size", size);
  mounts->shm = filesystem_mount(fs, "devices", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
}

/* Inside the new root: links in paths lead to places in that root at worst. */

static void make_parents(const char *stage, char *path) {
  for (char *at = path + 1; *at; at++) {
    if (*at != '/') continue;
    *at = 0;
    int made = mkdir(path, 0755);
    *at = '/';
    if (made < 0 && errno != EEXIST) fail(stage, "%s", path);
  }
}

/* A place to mount on: made when missing, of the kind of what is mounted. */
static void attach_inside(int mount, const char *target) {
  char path[PATH_MAX];
  if (strlen(target) >= sizeof path) fail_with(ENAMETOOLONG, "mounts", "%.100s", target);
  strcpy(path, target);
  struct stat status, wanted;
  if (fstat(mount, &wanted) < 0) fail("mounts", "%s", path);
  if (stat(path, &status) < 0) {
    if (errno != ENOENT) fail("mounts", "%s", path);
    make_parents("mounts", path);
    int made = S_ISDIR(wanted.st_mode) ? mkdir(path, 0755) : mknod(path, S_IFREG | 0644, 0);
    if (made < 0 && errno != EEXIST) fail("mounts", "%s", path);
  } else if (S_ISDIR(status.st_mode) != S_ISDIR(wanted.st_mode)) {
    fail_with(S_ISDIR(wanted.st_mode) ? ENOTDIR : EISDIR, "mounts", "%s", path);
  }
  attach("mounts", mount, AT_FDCWD, path);
  close(mount);
}

static void attach_devices(struct device_mounts *mounts) {
  int dev = mounts->dev;
  int kept = fcntl(dev, F_DUPFD_CLOEXEC, 0);
  attach_inside(kept, "/dev");
  for (int i = 0; i < DEVICES; i++) {
    if (mounts->bound[i] < 0) continue;
    attach("devices", mounts->bound[i], dev, devices[i].name);
    close(mounts->bound[i]);
  }
  attach("devices", mounts->pts, dev, "pts");
  attach("devices", mounts->shm, dev, "shm");
  close(mounts->pts);
  close(mounts->shm);
}

/*
 * Root inside owns none of these files, so that modes keep it from writing them. They are covered because they tell
 * of the host, or because one of them left open by a mode would be grave.
 */
static void mask_proc(int proc_fd, int dev_fd) {
  static const char *const files[] = {"kcore", "keys", "sysrq-trigger", "timer_list"};
  static const char *const directories[] = {"acpi", "scsi"};
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    if (faccessat(proc_fd, files[i], F_OK, 0) < 0) continue;
    int null = sys_open_tree(dev_fd, "null", TREE_FLAGS);
    if (null < 0) fail("proc", "%s", files[i]);
    attach("proc", null, proc_fd, files[i]);
    close(null);
  }
  int empty = -1;
  for (size_t i = 0; i < sizeof directories / sizeof *directories; i++) {
    if (faccessat(proc_fd, directories[i], F_OK, 0) < 0) continue;
    if (empty < 0) empty = filesystem_mount(filesystem_open("proc", "tmpfs"), "proc", MOUNT_ATTR_RDONLY);
    int copy = sys_open_tree(empty, "", TREE_FLAGS | AT_EMPTY_PATH);
    if (copy < 0) fail("proc", "%s", directories[i]);
    attach("proc", copy, proc_fd, directories[i]);
    close(copy);
  }
  if (empty >= 0) close(empty);
}

static void become_root_owner(const struct spec *spec) {
  if (!spec->has_uidbase) return;
  /* Capabilities must survive the change. Without it overlayfs would create as an unmapped owner, and be read-only. */
  if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP) < 0) fail("identity", "securebits");
  setfsuid(spec->uidbase);
  setfsgid(spec->uidbase);
  if ((uint32_t)setfsuid((uid_t)-1) != spec->uidbase) fail_with(EPERM, "identity", "file system uid");
}

/* Of the pid namespace that the caller is in. */
static int make_proc(void) {
  return filesystem_mount(filesystem_open("proc", "proc"), "proc",
                          MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
}

void root_enter(const struct spec *spec, const struct identity *identity, struct root *root) {
  umask(0);
  if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) fail("mounts", "private");
  struct builder builder = {.identity = identity, .scratch = {.fd = -1}};
  builder.dir_fd = open(spec->dir, DIRECTORY_FLAGS);
  if (builder.dir_fd < 0) fail("mounts", "%s", spec->dir);
  builder.disk_fd = disk_open(spec, builder.dir_fd, &root->disk_device);
  root->log_fd = clone_tree("log", builder.dir_fd, "log", 0, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
                            identity);
  become_root_owner(spec);
  if (identity->userns_fd >= 0) {
    struct mount_attributes mapped = {.set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)identity->userns_fd};
    if (sys_mount_setattr(builder.disk_fd, 0, &mapped) < 0) fail("disk", "its file system takes no id mapping");
  }

  int root_fd = root_overlay(&builder, spec);
  int mounts[SPEC_MOUNTS_MAX];
  for (size_t i = 0; i < spec->mount_count; i++) mounts[i] = extra_mount(&builder, &spec->mounts[i]);
  int own = spec->own_mounts ? plain_directory(&builder) : -1;
  struct device_mounts device_mounts;
  make_devices(&device_mounts, spec, identity);
  /* An ordinary user may mount it only while the host's is there to be seen. */
  root->proc_fd = spec->own_pids ? -1 : make_proc();

  attach("mounts", root_fd, builder.dir_fd, "");
  if (fchdir(root_fd) < 0) fail("mounts", "root");
  if (sys_pivot_root(".", ".") < 0) fail("mounts", "pivot_root");
  if (umount2(".", MNT_DETACH) < 0) fail("mounts", "the host's root");
  if (chdir("/") < 0) fail("mounts", "root");

  for (size_t i = 0; i < spec->mount_count; i++) attach_inside(mounts[i], spec->mounts[i].target);
  if (own >= 0) attach_inside(own, spec->own_mounts);
  attach_devices(&device_mounts);
  root->null_fd = openat(device_mounts.dev, "null", O_RDWR | O_CLOEXEC);
  if (root->null_fd < 0) fail("devices", "null");

  root->dev_fd = device_mounts.dev;
  close(root_fd);
  close(builder.disk_fd);
  close(builder.dir_fd);
  if (builder.scratch.fd >= 0) close(builder.scratch.fd);
}

void proc_enter(struct root *root) {
  if (root->proc_fd < 0) root->proc_fd = make_proc();
  /* Last: its links lead to descriptors. */
  attach_inside(fcntl(root->proc_fd, F_DUPFD_CLOEXEC, 0), "/proc");
  mask_proc(root->proc_fd, root->dev_fd);
  close(root->dev_fd);
  root->dev_fd = -1;
}
