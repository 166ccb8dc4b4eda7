#define _GNU_SOURCE
#include "handover.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

union control {
  struct cmsghdr header;
  char bytes[CMSG_SPACE(sizeof(int))];
};

ssize_t receive_beside(int socket, void *bytes, size_t length, int *descriptor) {
  union control control;
  struct iovec part = {.iov_base = bytes, .iov_len = length};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  message.msg_control = &control;
  /* Room for one: what else came along is closed by the kernel. */
  message.msg_controllen = CMSG_LEN(sizeof(int));
  ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  const struct cmsghdr *header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
  if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
    if (*descriptor >= 0) close(*descriptor);
    memcpy(descriptor, CMSG_DATA(header), sizeof *descriptor);
  }
  return got;
}

int hand_over(int socket, int descriptor) {
  char byte = 0;
  union control control = {.header = {.cmsg_len = CMSG_LEN(sizeof descriptor)}};
  control.header.cmsg_level = SOL_SOCKET;
  control.header.cmsg_type = SCM_RIGHTS;
  memcpy(CMSG_DATA(&control.header), &descriptor, sizeof descriptor);
  struct iovec part = {.iov_base = &byte, .iov_len = 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  message.msg_control = &control;
  message.msg_controllen = sizeof control;
  return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
}
