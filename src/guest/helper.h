/* hutch-helper: launcher, keeper and guest. The protocol is docs/guest-protocol.md. */
#ifndef HUTCH_HELPER_H
#define HUTCH_HELPER_H

#include <stdint.h>
#include <stddef.h>
#include <sys/types.h>

enum { PROTOCOL_VERSION = 1 };
enum { FRAME_HEADER_BYTES = 12, FRAME_PAYLOAD_BYTES_MAX = 1 << 20 };

/* A control group that programs belong to and process 1 does not, by descriptors; -1: there is none. */
struct programs_group {
  int fd;      /* takes the pid of a program */
  int stat_fd; /* where the kernel counts how often it held the group up; -1: a program cannot join it by itself */
};
/* Of their processors, and of their memory. */
enum { GROUP_CPU, GROUP_MEMORY, PROGRAMS_GROUPS };

/* What the launcher hands to the guest; descriptors are CLOEXEC and owned by the guest from then on. */
struct guest_start {
  int listen_fd;     /* listening unix socket, run/guest.sock */
  int log_dir_fd;    /* O_PATH|O_DIRECTORY of the log directory */
  struct programs_group groups[PROGRAMS_GROUPS];
  int ready_fd;      /* written one byte, then closed, once the guest accepts connections */
  int is_init;       /* 1: process 1 of a pid namespace; 0: child subreaper */
  const char *workdir;
  uint32_t programs_max; /* RLIMIT_NPROC of spawned programs, below what process 1 may fork; 0: as inherited */
};

/* Runs until SHUTDOWN or a fatal error; the value is the exit status of process 1. */
int guest_main(const struct guest_start *start);

int launcher_main(void);         /* role `launch`: makes the instances that stdin asks for, until its end */
int guest_without_isolation(void); /* role `guest` */
int unpack_main(void);           /* role `unpack`: writes an image layer into the present directory */
int criu_main(int argc, char **argv); /* role `criu`: runs CRIU in the namespaces of an instance */
int empty_main(void);            /* role `empty`: removes what is in the present directory */

/* Serves one files connection until it closes; called in a forked worker that already has its credentials. */
int files_serve(int fd);

#endif
