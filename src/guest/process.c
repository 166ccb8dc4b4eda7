/* The table of spawned programs, their output and their end. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

enum {
  BUCKETS = 512,
  PUMP_BYTES_MAX = 1 << 20, /* read from one pipe before others get their turn */
};

static struct process *by_id[BUCKETS], *by_pid[BUCKETS], *first_process, *last_process, *dead_processes;
static uint32_t process_count;
static struct stream *resting;
static uint64_t resting_since_us;
static uint8_t record_buffer[RECORD_HEADER_BYTES + RECORD_DATA_BYTES_MAX];

uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Table */

struct process *process_of(uint32_t id) {
  struct process *process = by_id[id % BUCKETS];
  while (process && process->id != id) process = process->next_by_id;
  return process;
}

struct process *processes_first(void) { return first_process; }

static void table_add(struct process *process) {
  process->next_by_id = by_id[process->id % BUCKETS];
  by_id[process->id % BUCKETS] = process;
  if (process->state == STATE_RUNNING) {
    process->next_by_pid = by_pid[(uint32_t)process->pid % BUCKETS];
    by_pid[(uint32_t)process->pid % BUCKETS] = process;
  }
  process->previous = last_process;
  if (last_process) last_process->next = process;
  else first_process = process;
  last_process = process;
}

static void table_remove_id(struct process *process) {
  struct process **at = &by_id[process->id % BUCKETS];
  while (*at != process) at = &(*at)->next_by_id;
  *at = process->next_by_id;
  if (process->previous) process->previous->next = process->next;
  else first_process = process->next;
  if (process->next) process->next->previous = process->previous;
  else last_process = process->previous;
}

static struct process *table_take_pid(pid_t pid) {
  struct process **at = &by_pid[(uint32_t)pid % BUCKETS];
  while (*at && (*at)->pid != pid) at = &(*at)->next_by_pid;
  struct process *process = *at;
  if (process) *at = process->next_by_pid;
  return process;
}

static void process_die(struct process *process) {
  if (process->dead) return;
  process->dead = 1;
  process->next = dead_processes;
  dead_processes = process;
  process_count--;
}

void processes_sweep(void) {
  while (dead_processes) {
    struct process *process = dead_processes;
    dead_processes = process->next;
    free(process);
  }
}

/* Spawn */

static void stream_open(struct process *process, int index, int fd, int is_pty) {
  struct stream *stream = &process->streams[index];
  *stream = (struct stream){.source = {SOURCE_STREAM}, .process = process, .fd = fd};
  stream->number = (uint8_t)(index + 1);
  stream->is_pty = (uint8_t)is_pty;
  if (fd >= 0) stream->watched = watch(fd, &stream->source, EPOLLIN) == 0;
}

struct process *process_spawn(const struct spawn *spawn, const char **stage) {
  int ours[3] = {-1, -1, -1}, terminal_fd;
  *stage = "spawn";
  errno = EAGAIN;
  if (process_count >= PROCESSES_MAX) return NULL;
  errno = EINVAL;
  if (spawn->id == 0 || !spawn->argv[0] || spawn->flags & ~(uint32_t)(SPAWN_STDIN | SPAWN_PTY)) return NULL;
  errno = EEXIST;
  if (process_of(spawn->id)) return NULL;
  struct process *process = calloc(1, sizeof *process);
  errno = ENOMEM;
  if (!process) return NULL;
  process->started_ms = now_ms();
  process->pid = spawn_child(spawn, ours, &terminal_fd, stage);
  if (process->pid < 0) {
    int error = errno;
    free(process);
    errno = error;
    return NULL;
  }
  process->id = spawn->id;
  process->state = STATE_RUNNING;
  process->is_pty = (spawn->flags & SPAWN_PTY) != 0;
  for (int i = 0; i < 3; i++) process->far_fds[i] = -1;
  process->terminal_fd = terminal_fd;
  log_open(&process->log, process->id, spawn->output_bytes_max);
  process->input = (struct input){.source = {SOURCE_INPUT}, .process = process, .fd = ours[0]};
  process->input.opened = ours[0] >= 0;
  stream_open(process, 0, ours[1], process->is_pty);
  stream_open(process, 1, ours[2], 0);
  table_add(process);
  process_count++;
  return process;
}

/* Adoption */

/* Our end of a new pipe; the program's is put in `far`. */
static int far_pipe(int writes, int *far) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) < 0) return -1;
  int ours = writes ? ends[1] : ends[0];
  *far = writes ? ends[0] : ends[1];
  fcntl(ours, F_SETFL, fcntl(ours, F_GETFL) | O_NONBLOCK);
  return ours;
}

struct process *process_adopt(const struct adoption *adoption) {
  static const uint32_t flags[3] = {ADOPT_STDIN, ADOPT_STDOUT, ADOPT_STDERR};
  int runs = adoption->state == STATE_RUNNING;
  errno = EAGAIN;
  if (process_count >= PROCESSES_MAX) return NULL;
  errno = EINVAL;
  if (adoption->id == 0 || adoption->flags & ~(uint32_t)(ADOPT_STDIN | ADOPT_STDOUT | ADOPT_STDERR)) return NULL;
  if (adoption->state < STATE_RUNNING || adoption->state > STATE_SIGNALED) return NULL;
  if (runs && (adoption->pid < 2 || adoption->pid > INT32_MAX)) return NULL;
  errno = EEXIST;
  if (process_of(adoption->id)) return NULL;
  struct process *process = calloc(1, sizeof *process);
  errno = ENOMEM;
  if (!process) return NULL;
  int ours[3] = {-1, -1, -1};
  for (int i = 0; i < 3; i++) process->far_fds[i] = -1;
  for (int i = 0; i < 3; i++) {
    if (!(adoption->flags & flags[i])) continue;
    ours[i] = far_pipe(i == 0, &process->far_fds[i]);
    if (ours[i] >= 0) continue;
    int error = errno;
    for (int j = 0; j < 3; j++) {
      close_fd(&ours[j]);
      close_fd(&process->far_fds[j]);
    }
    free(process);
    errno = error;
    return NULL;
  }
  process->id = adoption->id;
  process->pid = (pid_t)adoption->pid;
  process->state = adoption->state;
  process->code = adoption->code;
  process->started_ms = adoption->started_ms;
  process->ended_ms = runs ? 0 : adoption->ended_ms;
  process->terminal_fd = -1;
  process->adopting = 1;
  log_resume(&process->log, process->id, adoption->output_bytes_max);
  process->input = (struct input){.source = {SOURCE_INPUT}, .process = process, .fd = ours[0]};
  process->input.opened = ours[0] >= 0;
  stream_open(process, 0, ours[1], 0);
  stream_open(process, 1, ours[2], 0);
  table_add(process);
  process_count++;
  return process;
}

int process_adopted(struct process *process, int there) {
  if (!process->adopting) return EALREADY;
  process->adopting = 0;
  for (int i = 0; i < 3; i++) close_fd(&process->far_fds[i]);
  if (there) return 0;
  if (process->state == STATE_RUNNING) table_take_pid(process->pid);
  process->state = STATE_EXITED;
  input_close(&process->input);
  process_forget(process);
  return 0;
}

/* Output */

static uint64_t slowest_follower(const struct process *process) {
  uint64_t slowest = UINT64_MAX;
  for (const struct follower *follower = process->followers; follower; follower = follower->next)
    if (follower->consumed < slowest) slowest = follower->consumed;
  return slowest;
}

void process_announce(struct process *process) {
  int eof = process->state != STATE_RUNNING;
  for (struct follower *follower = process->followers; follower; follower = follower->next) {
    int news = process->log.end > follower->announced || (eof && !follower->eof_announced);
    if (!follower->armed || !news) continue;
    follower->armed = 0;
    follower->announced = process->log.end;
    follower->eof_announced = (uint8_t)eof;
    connection_output(follower->connection, process, process->log.start, process->log.end, eof);
  }
}

static void stream_watch(struct stream *stream, int on) {
  if (stream->fd < 0 || stream->watched == on) return;
  if (!on) unwatch(stream->fd);
  else if (watch(stream->fd, &stream->source, EPOLLIN) < 0) return;
  stream->watched = (uint8_t)on;
}

static uint64_t monotonic_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* A program that writes piece after piece costs a turn for each: its pipe is left to fill for a moment instead. */
static void stream_rest(struct stream *stream, size_t got) {
  uint64_t now = monotonic_us();
  int flood = got >= REST_BYTES_MIN && now - stream->read_us < REST_MS * 1000;
  stream->read_us = now;
  if (!flood || stream->resting) return;
  if (!resting) resting_since_us = now;
  stream->resting = 1;
  stream->next_resting = resting;
  resting = stream;
  stream_watch(stream, 0);
}

int streams_rest(void) { return resting != NULL; }

void streams_wake(void) {
  if (resting && monotonic_us() - resting_since_us < REST_MS * 1000) return;
  while (resting) {
    struct stream *stream = resting;
    resting = stream->next_resting;
    stream->resting = 0;
    stream_watch(stream, 1);
  }
}

static void stream_forget_rest(struct stream *stream) {
  struct stream **at = &resting;
  while (*at && *at != stream) at = &(*at)->next_resting;
  if (*at) *at = stream->next_resting;
  stream->resting = 0;
}

static void stream_close(struct stream *stream) {
  if (stream->resting) stream_forget_rest(stream);
  stream_watch(stream, 0);
  close_fd(&stream->fd);
  struct process *process = stream->process;
  if (process->streams[0].fd >= 0 || process->streams[1].fd >= 0) return;
  if (!process->forgotten) log_idle(&process->log);
  else if (process->state != STATE_RUNNING) process_die(process);
}

/* Reads at most about `bytes_max`. With `force` also past what a slow follower has not consumed. */
static void stream_pump(struct stream *stream, size_t bytes_max, int force) {
  struct process *process = stream->process;
  uint8_t *data = record_buffer + RECORD_HEADER_BYTES;
  size_t pumped = 0;
  while (stream->fd >= 0 && pumped < bytes_max) {
    size_t room = RECORD_DATA_BYTES_MAX;
    if (!process->forgotten) room = log_room(&process->log, slowest_follower(process), force);
    if (room == 0) {
      stream_watch(stream, 0);
      return;
    }
    if (force && room > bytes_max - pumped) room = bytes_max - pumped;
    ssize_t got = read(stream->fd, data, room);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      stream_close(stream);
      return;
    }
    pumped += (size_t)got;
    if (!process->forgotten) log_append(&process->log, stream->number, record_buffer, (size_t)got, now_ms());
    if (!stream->grown && !stream->is_pty && got == RECORD_DATA_BYTES_MAX) {
      stream->grown = 1;
      fcntl(stream->fd, F_SETPIPE_SZ, PIPE_BYTES);
    }
    if ((size_t)got < room && !stream->is_pty) {
      if (!force) stream_rest(stream, pumped);
      return;
    }
  }
}

void stream_ready(struct stream *stream) {
  if (stream->fd < 0 || !stream->watched) return;
  stream_pump(stream, PUMP_BYTES_MAX, 0);
  process_announce(stream->process);
}

/* Takes over what was written before the end, however much others that hold the pipe write meanwhile. */
static void stream_drain(struct stream *stream) {
  if (stream->fd < 0) return;
  int available = 0;
  size_t bytes_max = PIPE_BYTES;
  if (!stream->is_pty && ioctl(stream->fd, FIONREAD, &available) == 0) bytes_max = (size_t)available;
  /* At its end the pipe is closed here; a pipe that is only empty stays, held by background children. */
  stream_pump(stream, bytes_max, 1);
}

int process_follow(struct process *process, struct connection *connection, uint64_t consumed) {
  if (consumed > process->log.end) return EINVAL;
  struct follower *follower = process->followers;
  while (follower && follower->connection != connection) follower = follower->next;
  if (!follower) {
    follower = calloc(1, sizeof *follower);
    if (!follower) return ENOMEM;
    follower->connection = connection;
    follower->announced = consumed;
    follower->next = process->followers;
    process->followers = follower;
  }
  follower->consumed = consumed;
  follower->armed = 1;
  for (int i = 0; i < 2; i++) stream_watch(&process->streams[i], 1);
  return 0;
}

void process_unfollow(struct process *process, struct connection *connection) {
  for (struct follower **at = &process->followers; *at;) {
    struct follower *follower = *at;
    if (connection && follower->connection != connection) {
      at = &follower->next;
      continue;
    }
    *at = follower->next;
    free(follower);
  }
  for (int i = 0; i < 2; i++) stream_watch(&process->streams[i], 1);
}

void processes_disconnect(struct connection *connection) {
  for (struct process *process = first_process; process; process = process->next) {
    if (process->followers) process_unfollow(process, connection);
    for (struct chunk *chunk = process->input.first; chunk; chunk = chunk->next)
      if (chunk->asker == connection) chunk->asker = NULL;
  }
}

/* End */

struct process *process_reaped(pid_t pid, int status) {
  struct process *process = table_take_pid(pid);
  if (!process) return NULL;
  process->state = WIFSIGNALED(status) ? STATE_SIGNALED : STATE_EXITED;
  process->code = (uint32_t)(WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
  process->ended_ms = now_ms();
  if (process->ended_ms < process->started_ms) process->ended_ms = process->started_ms;
  input_close(&process->input);
  close_fd(&process->terminal_fd);
  for (int i = 0; i < 2; i++) stream_drain(&process->streams[i]);
  log_idle(&process->log);
  process_announce(process);
  return process;
}

void process_forget(struct process *process) {
  table_remove_id(process);
  process->forgotten = 1;
  process_unfollow(process, NULL);
  log_remove(&process->log);
  if (process->streams[0].fd < 0 && process->streams[1].fd < 0) process_die(process);
}
