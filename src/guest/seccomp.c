/*
 * The system call filter. The user namespace already makes most of these fail; the filter takes away the code behind
 * them, which is where kernel bugs are found. What programs commonly need (ptrace of own processes, chroot, landlock,
 * memfd) stays.
 */
#define _GNU_SOURCE
#include "seccomp.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "failure.h"
#include "sys.h"

#if defined(__x86_64__)
#define FILTER_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define FILTER_ARCH AUDIT_ARCH_AARCH64
#else
#error "the system call filter knows x86_64 and aarch64"
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "argument halves are taken as little endian"
#endif

enum {
  FILTER_INSTRUCTIONS_MAX = 512,
  X32_SYSCALL_BIT = 0x40000000,
  SYSCALL_UNKNOWN_FROM = 471, /* newer ones answer ENOSYS until someone has looked at them */
  NAMESPACE_FLAGS = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |
                    CLONE_NEWNET | CLONE_NEWTIME,
  NETLINK_ROUTE_PROTOCOL = 0,
  NETLINK_SOCK_DIAG_PROTOCOL = 4,
  NETLINK_UEVENT_PROTOCOL = 15,
};

/* Numbers that the C library's headers may be too old for; these are the same on every architecture. */
#ifndef SYS_fspick
#define SYS_fspick 433
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_quotactl_fd
#define SYS_quotactl_fd 443
#endif
#ifndef SYS_open_tree_attr
#define SYS_open_tree_attr 467
#endif

struct denied {
  int number, error;
};

static const struct denied denied_calls[] = {
    /* clone3 passes its flags in memory that a filter cannot read; C libraries fall back to clone. */
    {SYS_clone3, ENOSYS},
    {SYS_setns, EPERM},
    {SYS_mount, EPERM},
    {SYS_umount2, EPERM},
    {SYS_pivot_root, EPERM},
    {SYS_open_tree, EPERM},
    {SYS_open_tree_attr, EPERM},
    {SYS_move_mount, EPERM},
    {SYS_fsopen, EPERM},
    {SYS_fsconfig, EPERM},
    {SYS_fsmount, EPERM},
    {SYS_fspick, EPERM},
    {SYS_mount_setattr, EPERM},
    {SYS_open_by_handle_at, EPERM},
    {SYS_fanotify_init, EPERM},
    {SYS_quotactl, EPERM},
    {SYS_quotactl_fd, EPERM},
    {SYS_swapon, EPERM},
    {SYS_swapoff, EPERM},
    {SYS_acct, EPERM},
    {SYS_reboot, EPERM},
    {SYS_sethostname, EPERM},
    {SYS_setdomainname, EPERM},
    {SYS_kexec_load, EPERM},
#ifdef SYS_kexec_file_load
    {SYS_kexec_file_load, EPERM},
#endif
    {SYS_init_module, EPERM},
    {SYS_finit_module, EPERM},
    {SYS_delete_module, EPERM},
    {SYS_bpf, EPERM},
    {SYS_perf_event_open, EPERM},
    {SYS_userfaultfd, EPERM},
    {SYS_keyctl, ENOSYS},
    {SYS_add_key, ENOSYS},
    {SYS_request_key, ENOSYS},
    {SYS_io_uring_setup, ENOSYS},
    {SYS_io_uring_enter, ENOSYS},
    {SYS_io_uring_register, ENOSYS},
    {SYS_process_vm_readv, EPERM},
    {SYS_process_vm_writev, EPERM},
    {SYS_pidfd_getfd, EPERM},
    {SYS_kcmp, EPERM},
    {SYS_settimeofday, EPERM},
    {SYS_clock_settime, EPERM},
    {SYS_clock_adjtime, EPERM},
    {SYS_adjtimex, EPERM},
    {SYS_syslog, EPERM},
    {SYS_vhangup, EPERM},
    {SYS_nfsservctl, ENOSYS},
    {SYS_lookup_dcookie, ENOSYS},
#ifdef SYS_iopl
    {SYS_iopl, EPERM},
#endif
#ifdef SYS_ioperm
    {SYS_ioperm, EPERM},
#endif
#ifdef SYS_modify_ldt
    {SYS_modify_ldt, ENOSYS},
#endif
#ifdef SYS_uselib
    {SYS_uselib, ENOSYS},
#endif
#ifdef SYS_ustat
    {SYS_ustat, ENOSYS},
#endif
#ifdef SYS_sysfs
    {SYS_sysfs, ENOSYS},
#endif
#ifdef SYS__sysctl
    {SYS__sysctl, ENOSYS},
#endif
};

/* What builders of images need, where the mounts are their own. */
static const int mount_calls[] = {SYS_mount, SYS_umount2, SYS_pivot_root, SYS_sethostname};
enum { MOUNT_NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS };

static int is_mount_call(int number) {
  for (size_t i = 0; i < sizeof mount_calls / sizeof *mount_calls; i++)
    if (mount_calls[i] == number) return 1;
  return 0;
}

struct program {
  struct sock_filter code[FILTER_INSTRUCTIONS_MAX];
  unsigned short length;
};

static void emit(struct program *program, unsigned short code, uint32_t k, uint8_t yes, uint8_t no) {
  if (program->length == FILTER_INSTRUCTIONS_MAX) fail_with(E2BIG, "seccomp", "the filter is too long");
  program->code[program->length++] = (struct sock_filter){code, yes, no, k};
}

static void load(struct program *program, size_t offset) {
  emit(program, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}

static void answer(struct program *program, int error) {
  emit(program, BPF_RET | BPF_K, error ? SECCOMP_RET_ERRNO | (uint32_t)error : SECCOMP_RET_ALLOW, 0, 0);
}

/* If the accumulator relates to `value`, go on; else skip the next `skip` instructions. */
static void when(struct program *program, unsigned short relation, uint32_t value, uint8_t skip) {
  emit(program, (unsigned short)(BPF_JMP | relation | BPF_K), value, 0, skip);
}

/* The low half of an argument: all that the kernel looks at for flags, families and ioctl commands. */
static void load_argument(struct program *program, int index) {
  load(program, offsetof(struct seccomp_data, args) + 8 * (size_t)index);
}

static void deny_namespace_flags(struct program *program, int number, uint32_t flags) {
  when(program, BPF_JEQ, (uint32_t)number, 4);
  load_argument(program, 0);
  when(program, BPF_JSET, flags, 1);
  answer(program, EPERM);
  answer(program, 0);
}

static void filter_sockets(struct program *program) {
  static const uint32_t families[] = {AF_UNIX, AF_INET, AF_INET6};
  static const uint32_t netlinks[] = {NETLINK_ROUTE_PROTOCOL, NETLINK_SOCK_DIAG_PROTOCOL, NETLINK_UEVENT_PROTOCOL};
  enum { FAMILIES = 3, NETLINKS = 3 };
  when(program, BPF_JEQ, SYS_socket, 2 * FAMILIES + 2 * NETLINKS + 5);
  load_argument(program, 0);
  for (int i = 0; i < FAMILIES; i++) {
    when(program, BPF_JEQ, families[i], 1);
    answer(program, 0);
  }
  when(program, BPF_JEQ, AF_NETLINK, 2 * NETLINKS + 2);
  load_argument(program, 2);
  for (int i = 0; i < NETLINKS; i++) {
    when(program, BPF_JEQ, netlinks[i], 1);
    answer(program, 0);
  }
  answer(program, EPROTONOSUPPORT);
  answer(program, EAFNOSUPPORT);
}

/* Typing into the terminal of another session. */
static void filter_ioctls(struct program *program) {
  when(program, BPF_JEQ, SYS_ioctl, 6);
  load_argument(program, 1);
  when(program, BPF_JEQ, TIOCSTI, 1);
  answer(program, EPERM);
  when(program, BPF_JEQ, TIOCLINUX, 1);
  answer(program, EPERM);
  answer(program, 0);
}

/*
 * Root inside may change the limits of every process that has its uid. Process 1 without descriptors or files would
 * leave a sandbox that runs and can be neither used nor seen to be broken.
 */
static void protect_init_limits(struct program *program) {
  const uint32_t high_half = offsetof(struct seccomp_data, args) + 8 * 2 + 4;
  when(program, BPF_JEQ, SYS_prlimit64, 8);
  load_argument(program, 0);
  when(program, BPF_JEQ, 1, 5);
  load_argument(program, 2); /* the new limit, a pointer: both of its halves */
  when(program, BPF_JEQ, 0, 2);
  load(program, high_half);
  emit(program, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0);
  answer(program, EPERM);
  answer(program, 0);
}

static void install(struct program *program) {
  struct sock_fprog filter = {.len = program->length, .filter = program->code};
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) < 0) fail("seccomp", "the filter was refused");
}

static const int layer_calls[] = {
    SYS_read, SYS_write, SYS_writev, SYS_pwrite64, SYS_close, SYS_lseek, SYS_ftruncate, SYS_fstat, SYS_syncfs,
    SYS_openat, SYS_openat2, SYS_dup, SYS_fcntl, SYS_getdents64,
    SYS_mkdirat, SYS_mknodat, SYS_symlinkat, SYS_linkat, SYS_unlinkat,
    SYS_fchown, SYS_fchownat, SYS_fchmod, SYS_utimensat, SYS_fsetxattr,
    SYS_ppoll, SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_madvise, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_exit, SYS_exit_group,
#ifdef SYS_newfstatat
    SYS_newfstatat,
#endif
#ifdef SYS_statx
    SYS_statx,
#endif
#ifdef SYS_open
    SYS_open, SYS_poll,
#endif
};

void seccomp_allow_layers(void) {
  struct program program;
  program.length = 0;
  load(&program, offsetof(struct seccomp_data, arch));
  emit(&program, BPF_JMP | BPF_JEQ | BPF_K, FILTER_ARCH, 1, 0);
  emit(&program, BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS, 0, 0);
  load(&program, offsetof(struct seccomp_data, nr));
  for (size_t i = 0; i < sizeof layer_calls / sizeof *layer_calls; i++) {
    when(&program, BPF_JEQ, (uint32_t)layer_calls[i], 1);
    answer(&program, 0);
  }
  emit(&program, BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS, 0, 0);
  install(&program);
}

void seccomp_install(int mounts) {
  struct program program;
  program.length = 0;
  load(&program, offsetof(struct seccomp_data, arch));
  emit(&program, BPF_JMP | BPF_JEQ | BPF_K, FILTER_ARCH, 1, 0);
  answer(&program, ENOSYS); /* 32-bit programs */
  load(&program, offsetof(struct seccomp_data, nr));
#if defined(__x86_64__)
  when(&program, BPF_JGE, X32_SYSCALL_BIT, 1);
  answer(&program, ENOSYS);
#endif
  when(&program, BPF_JGE, SYSCALL_UNKNOWN_FROM, 1);
  answer(&program, ENOSYS);
  for (size_t i = 0; i < sizeof denied_calls / sizeof *denied_calls; i++) {
    if (mounts && is_mount_call(denied_calls[i].number)) continue;
    when(&program, BPF_JEQ, (uint32_t)denied_calls[i].number, 1);
    answer(&program, denied_calls[i].error);
  }
  deny_namespace_flags(&program, SYS_clone, NAMESPACE_FLAGS);
  deny_namespace_flags(&program, SYS_unshare, NAMESPACE_FLAGS & ~(mounts ? MOUNT_NAMESPACES : 0));
  filter_sockets(&program);
  filter_ioctls(&program);
  protect_init_limits(&program);
  answer(&program, 0);
  install(&program);
}
