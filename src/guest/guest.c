/* Process 1: the event loop, its connections, its end. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

enum {
  EVENTS_MAX = 64,
  REAPED_PER_ROUND_MAX = 1024,
  SIGTERM_GRACE_MS = 5000,
  KILLED_WAIT_MS = 2000, /* from SIGKILL to all until we end without having seen every child's end */
  SWEEP_MS = 100, /* between SIGKILLs while ending, and between tries to accept while descriptors are out */
  FLUSH_MS = 200, /* for the last events, once everything ended */
  PATH_BYTES = 4096,
};

static int epoll_fd = -1, listen_fd = -1, signal_fd = -1, is_init;
static struct source listen_source = {SOURCE_LISTEN}, signal_source = {SOURCE_SIGNAL};
static struct connection *connections;
static uint32_t control_count, pending_count;
static pid_t workers[WORKERS_MAX];
static uint64_t boot_id;
static int reap_wanted, accept_paused, no_children;
static int stopping;
static uint64_t kill_at_ms, end_at_ms;

static uint64_t monotonic_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int watch(int fd, struct source *source, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = source};
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0) return 0;
  return errno == EEXIST ? epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) : -1;
}

void unwatch(int fd) { epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL); }

/* Connections */

void connection_close(struct connection *connection) {
  if (connection->closed) return;
  connection->closed = 1;
  if (connection->control) control_count--;
  else pending_count--;
  unwatch(connection->fd);
  close(connection->fd);
}

/* What processes hold of a connection goes here, not in connection_close, which runs while they walk their lists. */
static void connections_sweep(void) {
  for (struct connection **at = &connections; *at;) {
    struct connection *connection = *at;
    if (!connection->closed) {
      at = &connection->next;
      continue;
    }
    *at = connection->next;
    if (connection->control) processes_disconnect(connection);
    frame_reader_free(&connection->reader);
    frame_writer_free(&connection->writer);
    free(connection);
  }
}

void connection_flush(struct connection *connection) {
  if (connection->closed) return;
  int flushed = frame_writer_flush(&connection->writer, connection->fd);
  size_t pending = frame_writer_pending(&connection->writer);
  if (flushed < 0 || pending > CONNECTION_OUTPUT_BYTES_MAX) {
    connection_close(connection);
    return;
  }
  int reading = pending <= CONNECTION_OUTPUT_BYTES_PAUSE;
  /* Requests that were left in the reader have no other event that would bring them up again. */
  int writable_wanted = !flushed || (reading && !connection->reading);
  if (connection->writable_wanted == writable_wanted && connection->reading == reading) return;
  connection->writable_wanted = (uint8_t)writable_wanted;
  connection->reading = (uint8_t)reading;
  watch(connection->fd, &connection->source, (reading ? EPOLLIN : 0) | (writable_wanted ? EPOLLOUT : 0));
}

void connection_answer(struct connection *connection, uint32_t id, int error, const char *message) {
  if (connection->closed) return;
  char text[256];
  if (error) snprintf(text, sizeof text, "%s: %s", message, strerror(error));
  if (error) frame_error(&connection->writer, id, error, text);
  else frame_ok(&connection->writer, id);
  connection_flush(connection);
}

void put_process(struct frame_writer *writer, const struct process *process) {
  put_u32(writer, process->id);
  put_u32(writer, (uint32_t)process->pid);
  put_u8(writer, process->state);
  put_u32(writer, process->code);
  put_u64(writer, process->started_ms);
  put_u64(writer, process->ended_ms);
  put_u64(writer, process->log.end);
}

void connection_output(struct connection *connection, const struct process *process, uint64_t start, uint64_t end,
                       int eof) {
  if (connection->closed) return;
  frame_begin(&connection->writer, FRAME_OUTPUT, process->id);
  put_u64(&connection->writer, start);
  put_u64(&connection->writer, end);
  put_u8(&connection->writer, (uint8_t)eof);
  frame_end(&connection->writer);
  connection_flush(connection);
}

static void broadcast_exit(const struct process *process) {
  for (struct connection *connection = connections; connection; connection = connection->next) {
    if (!connection->control || connection->closed) continue;
    frame_begin(&connection->writer, FRAME_EXIT, process->id);
    put_process(&connection->writer, process);
    frame_end(&connection->writer);
    connection_flush(connection);
  }
}

/* End */

void guest_shutdown(uint64_t grace_ms) {
  uint64_t kill_at = monotonic_ms() + grace_ms;
  if (stopping) {
    if (kill_at < kill_at_ms) kill_at_ms = kill_at;
    return;
  }
  stopping = 1;
  kill_at_ms = kill_at;
  signal_all(is_init, SIGTERM);
  /* Shells of people ignore that, and end when their terminal does. */
  for (struct process *process = processes_first(); process; process = process->next)
    if (process->is_pty && process->state == STATE_RUNNING) kill(-process->pid, SIGHUP);
  signal_all(is_init, SIGCONT);
  reap_wanted = 1;
}

int guest_stopping(void) { return stopping; }

/* HELLO */

static void hello_refuse(struct connection *connection, int error, const char *message) {
  connection_answer(connection, 0, error, message);
  connection_close(connection);
}

static void hello_ok(struct frame_writer *writer) {
  frame_begin(writer, FRAME_HELLO_OK, 0);
  put_u32(writer, PROTOCOL_VERSION);
  put_u64(writer, boot_id);
  frame_end(writer);
}

/* In the forked worker: nothing of process 1 is left but this one connection. */
static void worker_main(int fd, uint8_t role, uint32_t uid, uint32_t gid) {
  if (fd != 3) dup2(fd, 3);
  syscall(SYS_close_range, 4, ~0U, 0);
  fcntl(3, F_SETFD, FD_CLOEXEC);
  fcntl(3, F_SETFL, fcntl(3, F_GETFL) & ~O_NONBLOCK);
  int error = credentials_take(uid, gid) < 0 ? errno : 0;
  prctl(PR_SET_DUMPABLE, 0);
  struct frame_writer writer = {0};
  if (error) frame_error(&writer, 0, error, "credentials cannot be taken on");
  else hello_ok(&writer);
  int flushed = frame_writer_flush(&writer, 3);
  frame_writer_free(&writer);
  _exit(error || flushed < 0 ? 1 : role == ROLE_SOCKETS ? sockets_serve(3) : files_serve(3));
}

static void hello_worker(struct connection *connection, uint8_t role, uint32_t uid, uint32_t gid) {
  size_t slot = 0;
  while (slot < WORKERS_MAX && workers[slot]) slot++;
  if (slot == WORKERS_MAX || stopping) {
    hello_refuse(connection, stopping ? ESHUTDOWN : EAGAIN, "worker");
    return;
  }
  pid_t pid = fork();
  if (pid == 0) worker_main(connection->fd, role, uid, gid);
  if (pid < 0) {
    hello_refuse(connection, errno, "worker");
    return;
  }
  workers[slot] = pid;
  connection_close(connection);
}

static void hello_done(struct connection *connection) {
  struct frame frame;
  frame_reader_push(&connection->reader, connection->hello, connection->hello_bytes);
  if (frame_reader_next(&connection->reader, &frame) != 1 || frame.type != FRAME_HELLO) {
    connection_close(connection);
    return;
  }
  struct payload payload = payload_of(&frame);
  uint32_t version = payload_u32(&payload);
  uint8_t role = payload_u8(&payload);
  uint32_t uid = payload_u32(&payload), gid = payload_u32(&payload);
  if (!payload_done(&payload)) {
    connection_close(connection);
  } else if (version != PROTOCOL_VERSION) {
    hello_refuse(connection, EPROTONOSUPPORT, "the guest speaks version 1 only");
  } else if (role == ROLE_FILES || role == ROLE_SOCKETS) {
    hello_worker(connection, role, uid, gid);
  } else if (role != ROLE_CONTROL) {
    hello_refuse(connection, EINVAL, "role");
  } else if (control_count >= CONTROL_CONNECTIONS_MAX) {
    hello_refuse(connection, EAGAIN, "control connection");
  } else {
    pending_count--;
    control_count++;
    connection->control = 1;
    hello_ok(&connection->writer);
    connection_flush(connection);
  }
}

/* Not a byte beyond HELLO is read: what follows on a files connection is for its worker. */
static void hello_read(struct connection *connection) {
  ssize_t got = read(connection->fd, connection->hello + connection->hello_bytes, HELLO_BYTES - connection->hello_bytes);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    connection_close(connection);
    return;
  }
  connection->hello_bytes += (uint32_t)got;
  const uint8_t *header = connection->hello;
  int wrong = connection->hello_bytes >= FRAME_HEADER_BYTES &&
              (header[0] != HELLO_BYTES - FRAME_HEADER_BYTES || header[1] || header[2] || header[3]);
  if (wrong) connection_close(connection);
  else if (connection->hello_bytes == HELLO_BYTES) hello_done(connection);
}

static void connection_ready(struct connection *connection, uint32_t events) {
  if (connection->closed) return;
  if (!connection->control) {
    hello_read(connection);
    return;
  }
  if (events & EPOLLOUT) {
    connection_flush(connection);
    control_serve(connection);
  }
  if (connection->closed || !connection->reading) {
    if (events & (EPOLLHUP | EPOLLERR)) connection_close(connection);
    return;
  }
  if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
  ssize_t got = frame_reader_fill(&connection->reader, connection->fd);
  if (got > 0) control_serve(connection);
  else if (got == 0 || (errno != EAGAIN && errno != EINTR)) connection_close(connection);
}

static void close_oldest_pending(void) {
  struct connection *oldest = NULL;
  for (struct connection *connection = connections; connection; connection = connection->next)
    if (!connection->control && !connection->closed) oldest = connection;
  if (oldest) connection_close(oldest);
}

static void accept_ready(void) {
  int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) {
    if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS) return;
    accept_paused = 1;
    unwatch(listen_fd);
    return;
  }
  if (pending_count >= PENDING_CONNECTIONS_MAX) close_oldest_pending();
  struct connection *connection = calloc(1, sizeof *connection);
  if (!connection) {
    close(fd);
    return;
  }
  *connection = (struct connection){.source = {SOURCE_CONNECTION}, .fd = fd, .reading = 1, .next = connections};
  if (watch(fd, &connection->source, EPOLLIN) < 0) {
    close(fd);
    free(connection);
    return;
  }
  connections = connection;
  pending_count++;
}

/* Children */

static void reap(void) {
  reap_wanted = 0;
  for (int reaped = 0; reaped < REAPED_PER_ROUND_MAX; reaped++) {
    int status;
    pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid < 0 && errno == EINTR) continue;
    no_children = pid < 0;
    if (pid <= 0) return;
    struct process *process = process_reaped(pid, status);
    if (process) {
      broadcast_exit(process);
      continue;
    }
    for (size_t i = 0; i < WORKERS_MAX; i++)
      if (workers[i] == pid) workers[i] = 0;
  }
  reap_wanted = 1;
}

static void signals_ready(void) {
  struct signalfd_siginfo info;
  while (read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
    if (info.ssi_signo == SIGCHLD) reap_wanted = 1;
    /* In a pid namespace only the host's signals come from pid 0: the sandbox cannot stop itself by this way. */
    else if (!is_init || (info.ssi_code == SI_USER && info.ssi_pid == 0)) guest_shutdown(SIGTERM_GRACE_MS);
  }
}

/* 1 once everything ended, or will not end. */
static int stop_step(void) {
  uint64_t now = monotonic_ms();
  if (no_children) return 1;
  if (now < kill_at_ms) return 0;
  if (!end_at_ms) end_at_ms = now + KILLED_WAIT_MS;
  signal_all(is_init, SIGKILL);
  return now >= end_at_ms;
}

static int loop_timeout_ms(void) {
  if (reap_wanted) return 0;
  if (streams_rest()) return REST_MS;
  if (stopping) {
    uint64_t now = monotonic_ms();
    if (kill_at_ms > now && kill_at_ms - now < SWEEP_MS) return (int)(kill_at_ms - now);
    return SWEEP_MS;
  }
  return accept_paused ? SWEEP_MS : -1;
}

static void dispatch(struct epoll_event *event) {
  struct source *source = event->data.ptr;
  switch (source->kind) {
    case SOURCE_LISTEN:
      accept_ready();
      break;
    case SOURCE_SIGNAL:
      signals_ready();
      break;
    case SOURCE_CONNECTION:
      connection_ready((struct connection *)source, event->events);
      break;
    case SOURCE_STREAM:
      stream_ready((struct stream *)source);
      break;
    case SOURCE_INPUT:
      input_ready((struct input *)source);
      break;
  }
}

static void loop_step(int timeout_ms) {
  struct epoll_event events[EVENTS_MAX];
  int count = epoll_wait(epoll_fd, events, EVENTS_MAX, timeout_ms);
  for (int i = 0; i < count; i++) dispatch(&events[i]);
  streams_wake();
  if (reap_wanted || stopping) reap();
  if (accept_paused && watch(listen_fd, &listen_source, EPOLLIN) == 0) accept_paused = 0;
  processes_sweep();
  connections_sweep();
}

static void flush_all(void) {
  uint64_t end_ms = monotonic_ms() + FLUSH_MS;
  for (;;) {
    size_t pending = 0;
    for (struct connection *connection = connections; connection; connection = connection->next) {
      connection_flush(connection);
      if (!connection->closed) pending += frame_writer_pending(&connection->writer);
    }
    if (pending == 0 || monotonic_ms() >= end_ms) return;
    struct epoll_event events[EVENTS_MAX];
    epoll_wait(epoll_fd, events, EVENTS_MAX, 10);
  }
}

/* Start */

/* No descriptor stays but those that `start` names; 0-2 become /dev/null so that a pipe never gets their numbers. */
static int close_leaked(const struct guest_start *start) {
  enum { KEPT = 3 + 2 * PROGRAMS_GROUPS };
  int kept[KEPT] = {start->listen_fd, start->log_dir_fd, start->ready_fd};
  for (int i = 0; i < PROGRAMS_GROUPS; i++) {
    kept[3 + 2 * i] = start->groups[i].fd;
    kept[4 + 2 * i] = start->groups[i].stat_fd;
  }
  int null = open("/dev/null", O_RDWR | O_CLOEXEC | O_NOCTTY);
  for (int fd = 0; null >= 0 && fd < 3; fd++) {
    int is_kept = 0;
    for (int i = 0; i < KEPT; i++) is_kept |= kept[i] == fd;
    if (!is_kept) dup2(null, fd);
  }
  if (null > 2) close(null);
  unsigned from = 3;
  while (from) {
    unsigned next = 0;
    for (int i = 0; i < KEPT; i++)
      if (kept[i] >= (int)from && (next == 0 || (unsigned)kept[i] < next)) next = (unsigned)kept[i];
    if (!next) syscall(SYS_close_range, from, ~0U, 0);
    else if (next > from) syscall(SYS_close_range, from, next - 1, 0);
    from = next ? next + 1 : 0;
  }
  for (int i = 0; i < KEPT; i++)
    if (kept[i] >= 0) fcntl(kept[i], F_SETFD, FD_CLOEXEC);
  return null < 0 ? -1 : 0;
}

static void make_directories(const char *path) {
  char part[PATH_BYTES];
  size_t length = strlen(path);
  if (length == 0 || length >= sizeof part) return;
  for (size_t i = 1; i <= length; i++) {
    if (path[i] != '/' && path[i] != 0) continue;
    memcpy(part, path, i);
    part[i] = 0;
    mkdir(part, 0755);
  }
}

static void signals_init(void) {
  struct sigaction by_default = {.sa_handler = SIG_DFL};
  for (int signal = 1; signal <= 64; signal++) sigaction(signal, &by_default, NULL);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGCHLD);
  sigaddset(&mask, SIGTERM);
  if (!is_init) sigaddset(&mask, SIGINT);
  signal_fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
  /* Blocked, not ignored: what is ignored would stay so in spawned programs. */
  sigaddset(&mask, SIGPIPE);
  if (!is_init) sigaddset(&mask, SIGHUP);
  sigprocmask(SIG_SETMASK, &mask, NULL);
}

static int loop_init(const struct guest_start *start) {
  listen_fd = start->listen_fd;
  is_init = start->is_init;
  if (prctl(PR_SET_DUMPABLE, 0) < 0) return -1;
  if (!is_init && prctl(PR_SET_CHILD_SUBREAPER, 1) < 0) return -1;
  umask(022);
  if (chdir("/") < 0) return -1;
  if (start->workdir) make_directories(start->workdir);
  if (getrandom(&boot_id, sizeof boot_id, 0) != (ssize_t)sizeof boot_id) return -1;
  signals_init();
  logs_init(start->log_dir_fd);
  spawn_init(start);
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0 || signal_fd < 0) return -1;
  fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
  if (watch(listen_fd, &listen_source, EPOLLIN) < 0) return -1;
  return watch(signal_fd, &signal_source, EPOLLIN);
}

int guest_main(const struct guest_start *start) {
  if (close_leaked(start) < 0 || loop_init(start) < 0) return 1;
  if (start->ready_fd >= 0) {
    (void)!write(start->ready_fd, "", 1);
    close(start->ready_fd);
  }
  /* Programs that ended before SIGCHLD was listened to (`exec` of the launcher) are reaped in the first round. */
  reap_wanted = 1;
  while (!stopping || !stop_step()) loop_step(loop_timeout_ms());
  flush_all();
  return 0;
}
