#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disk.h"
#include "frame.h"
#include "helper.h"
#include "sys.h"

enum {
  CONTROLS_MAX = 16,
  EVENTS_PER_TURN = 32,
  ANSWERS_BYTES_MAX = 256 * 1024, /* a peer that reads none of its answers loses its connection */
  DESCRIPTORS_WANTED = 16384,
};

enum guest_state { GUEST_RUNNING = 1, GUEST_EXITED = 2, GUEST_SIGNALED = 3 };

struct control {
  struct source source;
  int fd; /* -1: free */
  int greeted, waits_to_write;
  int descriptor; /* came beside what was read last, until a request takes it; -1: none */
  struct frame_reader reader;
  struct frame_writer writer;
};

static struct keeper {
  const struct keeper_start *start;
  int epoll_fd;
  uint64_t boot_id;
  struct source listener, guest, directory;
  int directory_fd; /* tells what is removed where the sockets are; -1: nothing does */
  int unreachable;
  enum guest_state state;
  uint32_t code;
  struct control controls[CONTROLS_MAX];
  struct control *egress; /* who decides on what leaves */
  int disk_device; /* -1: there is none, or it was settled */
} keeper;

int loop_add(int fd, uint32_t events, struct source *source) {
  struct epoll_event event = {.events = events, .data.ptr = source};
  if (epoll_ctl(keeper.epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0) return 0;
  return errno == EEXIST ? epoll_ctl(keeper.epoll_fd, EPOLL_CTL_MOD, fd, &event) : -1;
}

void loop_remove(int fd) { (void)epoll_ctl(keeper.epoll_fd, EPOLL_CTL_DEL, fd, NULL); }

/* Control connections */

static void control_close(struct control *control) {
  if (control->fd < 0) return;
  if (keeper.egress == control) keeper.egress = NULL;
  reaches_forget(control);
  if (control->descriptor >= 0) close(control->descriptor);
  control->descriptor = -1;
  close(control->fd);
  control->fd = -1;
  frame_reader_free(&control->reader);
  frame_writer_free(&control->writer);
}

static void control_flush(struct control *control) {
  int done = frame_writer_flush(&control->writer, control->fd);
  if (done < 0 || frame_writer_pending(&control->writer) > ANSWERS_BYTES_MAX) {
    control_close(control);
    return;
  }
  if (done != !control->waits_to_write) {
    control->waits_to_write = !done;
    if (loop_add(control->fd, EPOLLIN | (done ? 0 : EPOLLOUT), &control->source) < 0) control_close(control);
  }
}

struct frame_writer *egress_writer(void) { return keeper.egress ? &keeper.egress->writer : NULL; }

void egress_flush(void) {
  if (keeper.egress && frame_writer_pending(&keeper.egress->writer) > 0) control_flush(keeper.egress);
}

static void put_guest(struct control *control, uint32_t id) {
  frame_begin(&control->writer, FRAME_GUEST, id);
  put_u8(&control->writer, (uint8_t)keeper.state);
  put_u32(&control->writer, keeper.code);
  frame_end(&control->writer);
}

static void put_answer(struct control *control, uint32_t id, int error, const char *what) {
  if (!error) frame_ok(&control->writer, id);
  else frame_error(&control->writer, id, error, what);
}

static void reached(void *asker, uint32_t id, int error) {
  put_answer(asker, id, error, "this cannot be reached");
  control_flush(asker);
}

static void reach(struct control *control, uint32_t id, const struct place *place) {
  int over = control->descriptor;
  control->descriptor = -1;
  place_reach(place, over, control, id, reached);
}

/* 1 when the frame was understood. */
static int depart(struct control *control, uint32_t id, struct payload *payload) {
  struct place place = {.port = payload_u16(payload)};
  size_t length;
  const uint8_t *address = payload_bytes(payload, &length);
  if (!payload_done(payload) || (length != 4 && length != 16)) return 0;
  place.address_length = (uint8_t)length;
  memcpy(place.address, address, length);
  reach(control, id, &place);
  return 1;
}

static void kill_guest(void) {
  (void)syscall(SYS_pidfd_send_signal, keeper.start->guest_pidfd, SIGKILL, NULL, 0);
}

/* 1 when the frame was understood. */
static int serve(struct control *control, const struct frame *frame) {
  struct payload payload = payload_of(frame);
  struct frame_writer *writer = &control->writer;
  if (!control->greeted) {
    uint32_t version = payload_u32(&payload);
    (void)payload_u8(&payload); /* role, uid and gid mean nothing here */
    (void)payload_u32(&payload);
    (void)payload_u32(&payload);
    if (frame->type != FRAME_HELLO || !payload_done(&payload)) return 0;
    if (version != PROTOCOL_VERSION) {
      frame_error(writer, frame->id, EPROTONOSUPPORT, "protocol version 1 is spoken here");
      return 1;
    }
    control->greeted = 1;
    frame_begin(writer, FRAME_HELLO_OK, frame->id);
    put_u32(writer, PROTOCOL_VERSION);
    put_u64(writer, keeper.boot_id);
    frame_end(writer);
    return 1;
  }
  if (frame->type == FRAME_ANSWER) {
    size_t length;
    const uint8_t *bytes = payload_bytes(&payload, &length);
    egress_answer(frame->id, bytes, length);
    return 1;
  }
  if (frame->type == FRAME_DEPART) return depart(control, frame->id, &payload);
  int names_port = frame->type == FRAME_LISTEN || frame->type == FRAME_PROBE || frame->type == FRAME_REACH;
  uint16_t port = names_port ? payload_u16(&payload) : 0;
  if (!payload_done(&payload)) return 0;
  switch (frame->type) {
    case FRAME_PING:
      frame_begin(writer, FRAME_PONG, frame->id);
      frame_end(writer);
      return 1;
    case FRAME_PONG: return 1;
    case FRAME_LISTEN: put_answer(control, frame->id, port_listen(port), "this port cannot be opened now"); return 1;
    case FRAME_PROBE:
      put_answer(control, frame->id, port_listens(port) ? 0 : ECONNREFUSED, "nothing accepts connections on this port");
      return 1;
    case FRAME_REACH: reach(control, frame->id, &(struct place){.port = port}); return 1;
    case FRAME_STATUS: put_guest(control, frame->id); return 1;
    case FRAME_KILL: kill_guest(); return 1;
    case FRAME_SETTLE:
      if (keeper.disk_device >= 0) disk_settle(keeper.disk_device);
      keeper.disk_device = -1;
      return 1;
    case FRAME_EGRESS:
      keeper.egress = control;
      frame_ok(writer, frame->id);
      egress_tell(1);
      return 1;
    case FRAME_REFUSE: egress_refuse(frame->id); return 1;
    default: return 0;
  }
}

static void control_ready(struct source *source, uint32_t events) {
  struct control *control = (struct control *)source;
  if (control->fd < 0) return;
  if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
    ssize_t got = frame_reader_receive(&control->reader, control->fd, &control->descriptor);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
      control_close(control);
      return;
    }
    struct frame frame;
    int next;
    while (control->fd >= 0 && (next = frame_reader_next(&control->reader, &frame)) != 0)
      if (next < 0 || !serve(control, &frame)) {
        control_close(control);
        return;
      }
  }
  if (control->fd >= 0) control_flush(control);
  if (control == keeper.egress) egress_tell(0);
}

static void listener_ready(struct source *source, uint32_t events) {
  (void)source;
  (void)events;
  int fd = accept4(keeper.start->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return;
  for (int i = 0; i < CONTROLS_MAX; i++) {
    struct control *control = &keeper.controls[i];
    if (control->fd >= 0) continue;
    *control = (struct control){.source = {control_ready}, .fd = fd, .descriptor = -1};
    if (loop_add(fd, EPOLLIN, &control->source) < 0) control_close(control);
    return;
  }
  close(fd);
}

/* The guest's end */

static void write_exit(void) {
  char text[32];
  int length = snprintf(text, sizeof text, "%s %u\n", keeper.state == GUEST_EXITED ? "exited" : "signaled", keeper.code);
  int fd = open("exit.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return;
  int written = write(fd, text, (size_t)length) == length;
  close(fd);
  if (written) (void)rename("exit.new", "exit");
}

static void guest_ended(struct source *source, uint32_t events) {
  (void)source;
  (void)events;
  int status;
  if (waitpid(keeper.start->guest, &status, WNOHANG | __WALL) != keeper.start->guest) return;
  keeper.state = WIFSIGNALED(status) ? GUEST_SIGNALED : GUEST_EXITED;
  keeper.code = (uint32_t)(WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

static void farewell(void) {
  /* First the file: whoever sees the sockets gone finds it. */
  write_exit();
  unlink("guest.sock");
  unlink("keeper.sock");
  unlink("egress.sock");
  ports_close();
  for (int i = 0; i < CONTROLS_MAX; i++) {
    struct control *control = &keeper.controls[i];
    if (control->fd < 0) continue;
    if (control->greeted) put_guest(control, 0);
    (void)frame_writer_flush(&control->writer, control->fd);
    control_close(control);
  }
}

/* Its directory */

static void directory_changed(struct source *source, uint32_t events) {
  (void)source;
  (void)events;
  char notes[4096];
  while (read(keeper.directory_fd, notes, sizeof notes) > 0) {}
  struct stat found;
  keeper.unreachable = lstat("keeper.sock", &found) < 0 && errno == ENOENT;
}

static void watch_directory(void) {
  keeper.directory_fd = -1;
  /* A uid has 128 of them, which are not to be taken from the other programs of a user. */
  if (!keeper.start->uid_of_its_own) return;
  keeper.directory_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (keeper.directory_fd < 0) return;
  keeper.directory = (struct source){directory_changed};
  if (inotify_add_watch(keeper.directory_fd, ".", IN_DELETE) < 0 ||
      loop_add(keeper.directory_fd, EPOLLIN, &keeper.directory) < 0) {
    close(keeper.directory_fd);
    keeper.directory_fd = -1;
  }
}

/* The data directory of a platform that was killed was removed: nobody will ever come for this instance. */
static void end_where_nobody_comes(void) {
  if (!keeper.unreachable) return;
  for (int i = 0; i < CONTROLS_MAX; i++)
    if (keeper.controls[i].fd >= 0) return;
  kill_guest();
}

static size_t raise_descriptors(void) {
  struct rlimit limit = {0};
  if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return 0;
  limit.rlim_cur = limit.rlim_max < DESCRIPTORS_WANTED ? limit.rlim_max : DESCRIPTORS_WANTED;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
  return (size_t)limit.rlim_cur;
}

void keeper_run(const struct keeper_start *start) {
  keeper.start = start;
  keeper.state = GUEST_RUNNING;
  keeper.disk_device = start->disk_device;
  for (int i = 0; i < CONTROLS_MAX; i++) keeper.controls[i].fd = -1;
  if (getrandom(&keeper.boot_id, sizeof keeper.boot_id, 0) < 0) keeper.boot_id = (uint64_t)getpid();
  size_t relays_max = relays_limit(raise_descriptors());
  keeper.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  keeper.listener = (struct source){listener_ready};
  keeper.guest = (struct source){guest_ended};
  if (keeper.epoll_fd < 0 || loop_add(start->listen_fd, EPOLLIN, &keeper.listener) < 0 ||
      loop_add(start->guest_pidfd, EPOLLIN, &keeper.guest) < 0 ||
      egress_open(&start->network, start->mailbox_fd, relays_max) < 0)
    _exit(1); /* the guest dies with its parent */
  watch_directory();

  struct epoll_event events[EVENTS_PER_TURN];
  int more = 0;
  while (keeper.state == GUEST_RUNNING) {
    int timeout_ms = egress_timeout_ms();
    if (timeout_ms < 0) timeout_ms = relays_idle_timeout_ms();
    int count = epoll_wait(keeper.epoll_fd, events, EVENTS_PER_TURN, more ? 0 : timeout_ms);
    if (count < 0 && errno != EINTR) _exit(1);
    for (int i = 0; i < count; i++) {
      struct source *source = events[i].data.ptr;
      source->handle(source, events[i].events);
    }
    more = relays_continue();
    relays_end_idle();
    relays_sweep();
    ports_sweep();
    reaches_sweep();
    egress_sweep();
    end_where_nobody_comes();
  }
  farewell();
}
