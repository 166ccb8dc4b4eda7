/*
 * probe ATTEMPT [ARGUMENT...]: tries one thing that a sandbox must not be able to do, and says how it went.
 * Prints `done` and exits 0 when it worked, prints `errno N` and exits 1 when it was refused.
 * Run on the host it shows that an attempt can succeed, so that a refusal inside means something.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <arpa/inet.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <unistd.h>

static int refused(void) {
  printf("errno %d\n", errno);
  return 1;
}

static int done(long result) {
  if (result < 0) return refused();
  printf("done\n");
  return 0;
}

/* A child that waits, to be the harmless victim of an attempt on another process. */
static pid_t victim(void) {
  pid_t pid = fork();
  if (pid == 0) {
    for (;;) pause();
  }
  return pid;
}

static int read_file(const char *path) {
  int fd = open(path, O_RDONLY | O_NONBLOCK);
  if (fd < 0) return refused();
  char buffer[64];
  return done(read(fd, buffer, sizeof buffer));
}

static int write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_NONBLOCK);
  if (fd < 0) return refused();
  return done(write(fd, text, strlen(text)));
}

static int clone_with(unsigned long flags) {
  long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
  if (pid == 0) _exit(0);
  if (pid > 0) waitpid(pid, NULL, 0);
  return done(pid);
}

static int clone3_with(uint64_t flags) {
  struct {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
  } arguments = {.flags = flags, .exit_signal = SIGCHLD};
  long pid = syscall(435, &arguments, sizeof arguments);
  if (pid == 0) _exit(0);
  if (pid > 0) waitpid(pid, NULL, 0);
  return done(pid);
}

static int vm_write(void) {
  static char theirs[8], ours[8] = "written";
  pid_t pid = victim();
  struct iovec local = {ours, sizeof ours}, remote = {theirs, sizeof theirs};
  long result = syscall(SYS_process_vm_writev, pid, &local, 1, &remote, 1, 0);
  int saved = errno;
  kill(pid, SIGKILL);
  errno = saved;
  return done(result);
}

static int steal_descriptor(void) {
  pid_t pid = victim();
  int pidfd = syscall(434, pid, 0);
  long result = pidfd < 0 ? -1 : syscall(438, pidfd, 0, 0);
  int saved = errno;
  kill(pid, SIGKILL);
  errno = saved;
  return done(result);
}

static int trace(pid_t pid) {
  long result = ptrace(PTRACE_ATTACH, pid, 0, 0);
  int saved = errno;
  if (result == 0) {
    waitpid(pid, NULL, 0);
    ptrace(PTRACE_DETACH, pid, 0, 0);
  }
  errno = saved;
  return done(result);
}

/* To what it is already, so that nothing changes where it works. */
static int limit_init(void) {
  struct rlimit limit;
  if (prlimit(1, RLIMIT_NOFILE, NULL, &limit) < 0) return refused();
  return done(prlimit(1, RLIMIT_NOFILE, &limit, NULL));
}

static int by_handle(const char *path) {
  struct {
    struct file_handle head;
    unsigned char bytes[128];
  } handle = {.head = {.handle_bytes = 128}};
  int mount_id;
  if (name_to_handle_at(AT_FDCWD, path, &handle.head, &mount_id, 0) < 0) return refused();
  int mount_fd = open(path, O_RDONLY);
  return done(syscall(SYS_open_by_handle_at, mount_fd, &handle.head, O_RDONLY));
}

static int bpf_map(void) {
  struct {
    uint32_t type, key_size, value_size, entries, flags;
    char rest[100];
  } attribute = {2, 4, 4, 1, 0, {0}};
  return done(syscall(SYS_bpf, 0, &attribute, sizeof attribute));
}

static int perf(void) {
  struct {
    uint32_t type, size;
    uint64_t config;
    char rest[112];
  } attribute = {.type = 1, .size = 128, .config = 0};
  return done(syscall(SYS_perf_event_open, &attribute, 0, -1, -1, 0));
}

static int connect_unix(const char *path, int abstract) {
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  size_t length = strlen(path);
  if (length > sizeof address.sun_path - 2) return errno = ENAMETOOLONG, refused();
  memcpy(address.sun_path + abstract, path, length);
  return done(connect(fd, (void *)&address, offsetof(struct sockaddr_un, sun_path) + abstract + length + !abstract));
}

/* A relay accepts before it knows whether it may dial: what counts is whether anyone is there to talk to. */
static int talk(int fd, const struct sockaddr *address, socklen_t length) {
  struct timeval limit = {8, 0};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (connect(fd, address, length) < 0) return refused();
  char byte;
  return done(recv(fd, &byte, 1, 0));
}

static int connect_tcp(const char *host, int port) {
  struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  if (inet_pton(AF_INET, host, &v4.sin_addr) == 1)
    return talk(socket(AF_INET, SOCK_STREAM, 0), (void *)&v4, sizeof v4);
  if (inet_pton(AF_INET6, host, &v6.sin6_addr) != 1) return errno = EINVAL, refused();
  return talk(socket(AF_INET6, SOCK_STREAM, 0), (void *)&v6, sizeof v6);
}

/* From an address that is not this machine's own. */
static int connect_spoofed(const char *host, int port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, "127.7.7.7", &from.sin_addr);
  inet_pton(AF_INET, host, &to.sin_addr);
  (void)setsockopt(fd, IPPROTO_IP, IP_FREEBIND, &on, sizeof on);
  if (bind(fd, (void *)&from, sizeof from) < 0) return refused();
  return talk(fd, (void *)&to, sizeof to);
}

/* A datagram, and what comes back. */
static int send_udp(const char *host, int port) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  struct timeval limit = {2, 0};
  inet_pton(AF_INET, host, &to.sin_addr);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (connect(fd, (void *)&to, sizeof to) < 0 || send(fd, "x", 1, 0) < 0) return refused();
  char byte;
  return done(recv(fd, &byte, 1, 0));
}

/* The classic way out of a chroot: keep a directory open, chroot below it, climb from there. */
static int climb(const char *path) {
  int root = open("/", O_RDONLY | O_DIRECTORY);
  mkdir("/tmp/below", 0755);
  if (root < 0 || chroot("/tmp/below") < 0 || fchdir(root) < 0) return refused();
  for (int depth = 0; depth < 64; depth++)
    if (chdir("..") < 0) return refused();
  if (chroot(".") < 0) return refused();
  return read_file(path);
}

static int ask_kernel(int protocol, const void *message, size_t length) {
  int fd = socket(AF_NETLINK, SOCK_RAW, protocol);
  struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
  char buffer[4096];
  if (fd < 0 || sendto(fd, message, length, 0, (void *)&kernel, sizeof kernel) < 0) return -1;
  if (recv(fd, buffer, sizeof buffer, 0) < 0) return -1;
  const struct nlmsghdr *header = (void *)buffer;
  const struct nlmsgerr *answer = NLMSG_DATA(header);
  if (header->nlmsg_type != NLMSG_ERROR || answer->error == 0) return 0;
  errno = -answer->error;
  return -1;
}

/* Flushing the rules of the present network, which outside is one made for the attempt. */
static int change_netfilter(void) {
  struct {
    struct nlmsghdr begin;
    struct nfgenmsg begin_body;
    struct nlmsghdr remove;
    struct nfgenmsg remove_body;
    struct nlmsghdr end;
    struct nfgenmsg end_body;
  } batch = {
      .begin = {sizeof batch.begin + sizeof batch.begin_body, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 1, 0},
      .begin_body = {.res_id = htons(NFNL_SUBSYS_NFTABLES)},
      .remove = {sizeof batch.remove + sizeof batch.remove_body, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE,
                 NLM_F_REQUEST | NLM_F_ACK, 2, 0},
      .end = {sizeof batch.end + sizeof batch.end_body, NFNL_MSG_BATCH_END, NLM_F_REQUEST, 3, 0},
      .end_body = {.res_id = htons(NFNL_SUBSYS_NFTABLES)},
  };
  return ask_kernel(NETLINK_NETFILTER, &batch, sizeof batch);
}

static int add_address(void) {
  struct {
    struct nlmsghdr header;
    struct ifaddrmsg body;
    struct rtattr attribute;
    unsigned char address[4];
  } message = {
      .header = {sizeof message, RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, 1, 0},
      .body = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = 1},
      .attribute = {sizeof message.attribute + 4, IFA_LOCAL},
      .address = {192, 0, 2, 77},
  };
  return ask_kernel(NETLINK_ROUTE, &message, sizeof message);
}

int main(int count, char **words) {
  if (count < 2) return 2;
  const char *what = words[1], *argument = count > 2 ? words[2] : "";
#define IS(name) (strcmp(what, name) == 0)
  if (IS("read")) return read_file(argument);
  if (IS("write")) return write_file(argument, count > 3 ? words[3] : "x");
  if (IS("climb")) return climb(argument);
  if (IS("link")) return done(link(argument, "/tmp/probe-link"));
  if (IS("list-fds")) return done(open(argument, O_RDONLY | O_DIRECTORY) < 0 ? -1 : 0);
  if (IS("readlink")) {
    char target[256];
    return done(readlink(argument, target, sizeof target));
  }
  if (IS("mount")) return done(mount("tmpfs", "/tmp", "tmpfs", 0, NULL));
  if (IS("remount")) return done(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL));
  if (IS("umount")) return done(umount2("/proc", MNT_DETACH));
  if (IS("fsopen")) return done(syscall(430, "tmpfs", 0));
  if (IS("open-tree")) return done(syscall(428, AT_FDCWD, "/tmp", 1));
  if (IS("pivot")) return done(syscall(SYS_pivot_root, ".", "."));
  if (IS("mknod-block")) return unlink("/tmp/probe-node"), done(mknod("/tmp/probe-node", S_IFBLK | 0600, makedev(7, 0)));
  if (IS("mknod-memory")) return unlink("/tmp/probe-node"), done(mknod("/tmp/probe-node", S_IFCHR | 0600, makedev(1, 1)));
  if (IS("unshare-user")) return done(unshare(CLONE_NEWUSER));
  if (IS("unshare-mount")) return done(unshare(CLONE_NEWNS));
  if (IS("unshare-net")) return done(unshare(CLONE_NEWNET));
  if (IS("clone-user")) return clone_with(CLONE_NEWUSER);
  if (IS("clone-mount")) return clone_with(CLONE_NEWNS);
  if (IS("clone3-user")) return clone3_with(CLONE_NEWUSER);
  if (IS("setns")) return done(setns(open(argument, O_RDONLY), 0));
  if (IS("trace-child")) {
    pid_t pid = victim();
    int status = trace(pid);
    kill(pid, SIGKILL);
    return status;
  }
  if (IS("trace")) return trace(atoi(argument));
  if (IS("vm-write")) return vm_write();
  if (IS("limit-init")) return limit_init();
  if (IS("steal-descriptor")) return steal_descriptor();
  if (IS("by-handle")) return by_handle(argument);
  if (IS("add-key")) return done(syscall(SYS_add_key, "user", "hutch-probe", "x", 1, -1));
  if (IS("keyctl")) return done(syscall(SYS_keyctl, 0, -3, 0, 0, 0));
  if (IS("bpf")) return bpf_map();
  if (IS("perf")) return perf();
  if (IS("userfaultfd")) return done(syscall(SYS_userfaultfd, 0));
  if (IS("io-uring")) {
    char parameters[120] = {0};
    return done(syscall(425, 4, parameters));
  }
  if (IS("packet-socket")) return done(socket(AF_PACKET, SOCK_RAW, 0));
  if (IS("vsock")) return done(socket(AF_VSOCK, SOCK_STREAM, 0));
  if (IS("hostname")) {
    char name[65] = {0};
    if (gethostname(name, 64) < 0) return refused();
    return done(sethostname(name, strlen(name)));
  }
  if (IS("kill")) return done(kill(atoi(argument), 0));
  if (IS("connect-unix")) return connect_unix(argument, 0);
  if (IS("connect-abstract")) return connect_unix(argument, 1);
  if (IS("connect-tcp")) return connect_tcp(argument, count > 3 ? atoi(words[3]) : 0);
  if (IS("connect-spoofed")) return connect_spoofed(argument, count > 3 ? atoi(words[3]) : 0);
  if (IS("send-udp")) return send_udp(argument, count > 3 ? atoi(words[3]) : 0);
  if (IS("raw-socket")) return done(socket(AF_INET, SOCK_RAW, IPPROTO_TCP));
  if (IS("raw-socket-6")) return done(socket(AF_INET6, SOCK_RAW, IPPROTO_TCP));
  if (IS("netfilter")) return done(change_netfilter());
  if (IS("add-address")) return done(add_address());
  if (IS("kernel-log")) return done(syscall(SYS_syslog, 10, 0, 0));
  if (IS("set-clock")) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return done(clock_settime(CLOCK_REALTIME, &now));
  }
  fprintf(stderr, "unknown attempt %s\n", what);
  return 2;
}
