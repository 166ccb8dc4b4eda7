/*
 * The dialler: makes connections in the host's network for all instances, as hutch tells it, and puts each connected
 * socket into the mailbox of the keeper that waits for it. It reads nothing from them, and ends with hutch.
 */
#define _GNU_SOURCE
#include "dial.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "failure.h"
#include "helper.h"
#include "privileges.h"
#include "sys.h"

enum {
  DIALS_MAX = 4096,
  DESCRIPTORS_WANTED = 8192,
  EVENTS_PER_TURN = 64,
  START_MS_MAX = 20000,
  ANSWERS_BYTES_MAX = 1 << 20,
  SYN_RETRIES = 4,       /* given up after about 31 s */
  KEEPALIVE_IDLE_S = 60, /* a peer that is gone without a word is noticed after about three minutes */
  KEEPALIVE_INTERVAL_S = 30,
  KEEPALIVE_PROBES = 4,
  LETTER_WAIT_MS_MAX = 20000, /* a keeper empties its mailbox at once, unless it is starved or very busy */
  LETTER_RETRY_MS = 5,
  LETTERS_PER_TURN_MAX = 64, /* that are tried again */
};

struct dial {
  int fd; /* -1: over */
  uint32_t id, connection;
  char *mailbox;
  uint8_t *preamble;
  size_t preamble_length;
  uint64_t letter_deadline_ms; /* 0: its letter was not tried yet */
  struct dial *next; /* of those whose letter waits, or that are over */
};

static struct dialler {
  int epoll_fd, host_fd, mailbox_fd;
  struct frame_reader reader;
  struct frame_writer writer;
  int dials, waits_to_write;
  struct dial *over; /* events of the present batch may still point to them */
  struct dial *letters, **letters_end; /* connected; their mailboxes were full */
  uint64_t letters_next_ms;
} dialler = {.letters_end = &dialler.letters};

static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int dial_decode(const struct frame *frame, struct dial_request *request) {
  struct payload payload = payload_of(frame);
  if (frame->type != FRAME_DIAL) return -1;
  request->connection = payload_u32(&payload);
  request->port = payload_u16(&payload);
  request->mailbox = payload_str(&payload);
  request->target = payload_str(&payload);
  request->preamble = payload_bytes(&payload, &request->preamble_length);
  if (!payload_done(&payload) || !request->mailbox[0] || !request->target[0]) return -1;
  return request->preamble_length > DIAL_PREAMBLE_BYTES_MAX ? -1 : 0;
}

static void answer(const struct dial *dial, int error) {
  if (error) frame_error(&dialler.writer, dial->id, error, "dial");
  else frame_ok(&dialler.writer, dial->id);
}

static void dial_end(struct dial *dial, int error) {
  answer(dial, error);
  if (dial->fd >= 0) close(dial->fd);
  dial->fd = -1;
  dial->next = dialler.over;
  dialler.over = dial;
  dialler.dials--;
}

/*
 * The address of the unix socket at `path`, by a descriptor that the caller closes: a mailbox lies in a directory that
 * its keeper may change, and a path may be longer than an address. -1 with errno when there is none.
 */
static int open_place(const char *path, struct sockaddr_un *address) {
  int place = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  struct stat status;
  if (place < 0) return -1;
  if (fstat(place, &status) < 0 || !S_ISSOCK(status.st_mode)) {
    close(place);
    errno = ENOTSOCK;
    return -1;
  }
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d", place);
  return place;
}

/* 0, or an errno: EAGAIN when the mailbox is full. */
static int post(const struct dial *dial) {
  struct sockaddr_un address;
  int error = 0, place = open_place(dial->mailbox, &address);
  if (place < 0) return errno;
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control = {0};
  uint32_t id = dial->connection;
  struct iovec body = {&id, sizeof id};
  struct msghdr letter = {
      .msg_name = &address,
      .msg_namelen = sizeof address,
      .msg_iov = &body,
      .msg_iovlen = 1,
      .msg_control = control.bytes,
      .msg_controllen = sizeof control.bytes,
  };
  struct cmsghdr *header = CMSG_FIRSTHDR(&letter);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof dial->fd);
  memcpy(CMSG_DATA(header), &dial->fd, sizeof dial->fd);
  if (sendmsg(dialler.mailbox_fd, &letter, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) error = errno;
  close(place);
  return error;
}

/* Nobody waits for the mailbox of another: a letter that does not fit in is tried again later. */
static void deliver(struct dial *dial) {
  int error = post(dial);
  if (error != EAGAIN && error != EINTR) {
    dial_end(dial, error);
    return;
  }
  uint64_t now = now_ms();
  if (dial->letter_deadline_ms == 0) dial->letter_deadline_ms = now + LETTER_WAIT_MS_MAX;
  if (dial->letter_deadline_ms <= now) {
    dial_end(dial, ETIMEDOUT);
    return;
  }
  dial->next = NULL;
  *dialler.letters_end = dial;
  dialler.letters_end = &dial->next;
}

static void deliver_again(void) {
  struct dial *last = NULL;
  for (int i = 0; i < LETTERS_PER_TURN_MAX && dialler.letters; i++) {
    struct dial *dial = dialler.letters;
    if (dial == last) return;
    dialler.letters = dial->next;
    if (!dialler.letters) dialler.letters_end = &dialler.letters;
    deliver(dial);
    /* It went to the end of the line: with it this turn has come round. */
    if (!last && dial->fd >= 0) last = dial;
  }
}

static void connected(struct dial *dial) {
  size_t length = dial->preamble_length;
  int error = 0;
  if (length > 0 && send(dial->fd, dial->preamble, length, MSG_NOSIGNAL) != (ssize_t)length) error = EPIPE;
  if (error) dial_end(dial, error);
  else deliver(dial);
}

static void dial_ready(struct dial *dial) {
  if (dial->fd < 0) return;
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(dial->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) error = errno;
  if (error) dial_end(dial, error);
  else connected(dial);
}

static void set_number(int fd, int level, int option, int value) {
  (void)setsockopt(fd, level, option, &value, sizeof value);
}

/* A numeric address, or the path of a socket of hutch's, whose descriptor `place` the caller closes. 0, or an errno. */
static int target_address(const struct dial_request *request, struct sockaddr_storage *address, socklen_t *length,
                          int *place) {
  struct sockaddr_in *v4 = (void *)address;
  struct sockaddr_in6 *v6 = (void *)address;
  memset(address, 0, sizeof *address);
  if (request->port == 0) {
    *place = open_place(request->target, (struct sockaddr_un *)address);
    *length = sizeof(struct sockaddr_un);
    return *place < 0 ? errno : 0;
  }
  if (inet_pton(AF_INET, request->target, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(request->port);
    *length = sizeof *v4;
  } else if (inet_pton(AF_INET6, request->target, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(request->port);
    *length = sizeof *v6;
  } else return EINVAL;
  return 0;
}

static void dial_begin(struct dial *dial, const struct dial_request *request) {
  struct sockaddr_storage address;
  socklen_t length = 0;
  int place = -1, error = target_address(request, &address, &length, &place);
  if (!error) {
    dial->fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (dial->fd < 0) error = errno;
  }
  if (error) {
    if (place >= 0) close(place);
    dial_end(dial, error);
    return;
  }
  if (address.ss_family != AF_UNIX) {
    set_number(dial->fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_number(dial->fd, IPPROTO_TCP, TCP_SYNCNT, SYN_RETRIES);
    set_number(dial->fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_number(dial->fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    set_number(dial->fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_number(dial->fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
  }
  error = connect(dial->fd, (struct sockaddr *)&address, length) < 0 ? errno : 0;
  if (place >= 0) close(place);
  if (!error) {
    connected(dial);
    return;
  }
  struct epoll_event event = {.events = EPOLLOUT | EPOLLONESHOT, .data.ptr = dial};
  if (error != EINPROGRESS) dial_end(dial, error);
  else if (epoll_ctl(dialler.epoll_fd, EPOLL_CTL_ADD, dial->fd, &event) < 0) dial_end(dial, errno);
}

/* The strings are copied: the frame's buffer is used again. */
static void dial_request(uint32_t id, const struct dial_request *request) {
  size_t mailbox = strlen(request->mailbox) + 1;
  struct dial *dial = dialler.dials < DIALS_MAX ? malloc(sizeof *dial + mailbox + request->preamble_length) : NULL;
  if (!dial) {
    frame_error(&dialler.writer, id, EAGAIN, "too many dials at once");
    return;
  }
  *dial = (struct dial){.fd = -1, .id = id, .connection = request->connection};
  dial->mailbox = (char *)(dial + 1);
  dial->preamble = (uint8_t *)dial->mailbox + mailbox;
  dial->preamble_length = request->preamble_length;
  memcpy(dial->mailbox, request->mailbox, mailbox);
  memcpy(dial->preamble, request->preamble, request->preamble_length);
  dialler.dials++;
  dial_begin(dial, request);
}

static void flush(void) {
  int done = frame_writer_flush(&dialler.writer, dialler.host_fd);
  if (done < 0 || frame_writer_pending(&dialler.writer) > ANSWERS_BYTES_MAX) _exit(1);
  if (done == !dialler.waits_to_write) return;
  dialler.waits_to_write = !done;
  struct epoll_event event = {.events = EPOLLIN | (done ? 0 : EPOLLOUT)};
  if (epoll_ctl(dialler.epoll_fd, EPOLL_CTL_MOD, dialler.host_fd, &event) < 0) _exit(1);
}

static void host_ready(int *greeted) {
  ssize_t got = frame_reader_fill(&dialler.reader, dialler.host_fd);
  if (got == 0) _exit(0);
  if (got < 0 && errno != EAGAIN) _exit(1);
  struct frame frame;
  int next;
  while ((next = frame_reader_next(&dialler.reader, &frame)) > 0) {
    struct dial_request request;
    if (!*greeted && frame.type == FRAME_HELLO) {
      *greeted = 1;
      frame_begin(&dialler.writer, FRAME_HELLO_OK, frame.id);
      put_u32(&dialler.writer, PROTOCOL_VERSION);
      put_u64(&dialler.writer, (uint64_t)getpid());
      frame_end(&dialler.writer);
    } else if (*greeted && dial_decode(&frame, &request) == 0) dial_request(frame.id, &request);
    else _exit(1);
  }
  if (next < 0) _exit(1);
}

static void print_failure(const char *stage, int error, const char *message) {
  dprintf(STDOUT_FILENO, "error stage=%s errno=%d %s: %s\n", stage, error, message, strerror(error));
}

/* Listens on `path`, for the one connection of the hutch that started it. */
static int await_host(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) fail_with(ENAMETOOLONG, "dial", "%s", path);
  strcpy(address.sun_path, path);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  unlink(path);
  if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0)
    fail("dial", "%s", path);
  dprintf(STDOUT_FILENO, "ok\n");
  struct pollfd waiting = {.fd = listener, .events = POLLIN};
  int fd = poll(&waiting, 1, START_MS_MAX) == 1 ? accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
  unlink(path);
  close(listener);
  return fd;
}

int dial_main(const char *path) {
  on_failure(print_failure);
  signal(SIGPIPE, SIG_IGN);
  umask(0077);
  if (sys_close_range(STDERR_FILENO + 1, ~0U) < 0) fail("dial", "descriptors");
  prctl(PR_SET_NAME, "hutch-dialler");
  struct rlimit limit = {0};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max < DESCRIPTORS_WANTED ? limit.rlim_max : DESCRIPTORS_WANTED;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
  }
  dialler.mailbox_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  dialler.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (dialler.mailbox_fd < 0 || dialler.epoll_fd < 0) fail("dial", "sockets");
  if (geteuid() == 0) {
    privileges_bound(CAPABILITIES_DIALLER);
    privileges_reduce(CAPABILITIES_DIALLER);
  }
  dialler.host_fd = await_host(path);
  if (dialler.host_fd < 0) return 1;
  struct epoll_event host = {.events = EPOLLIN};
  if (epoll_ctl(dialler.epoll_fd, EPOLL_CTL_ADD, dialler.host_fd, &host) < 0) return 1;
  int greeted = 0;
  for (;;) {
    struct epoll_event events[EVENTS_PER_TURN];
    int count = epoll_wait(dialler.epoll_fd, events, EVENTS_PER_TURN, dialler.letters ? LETTER_RETRY_MS : -1);
    if (count < 0 && errno != EINTR) return 1;
    for (int i = 0; i < count; i++) {
      if (events[i].data.ptr) dial_ready(events[i].data.ptr);
      else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) host_ready(&greeted);
    }
    if (dialler.letters && now_ms() >= dialler.letters_next_ms) {
      deliver_again();
      dialler.letters_next_ms = now_ms() + LETTER_RETRY_MS;
    }
    flush();
    while (dialler.over) {
      struct dial *dial = dialler.over;
      dialler.over = dial->next;
      free(dial);
    }
  }
}
