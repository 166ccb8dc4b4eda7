/* What is written to a program: its pipe or pseudo terminal, and the bytes that it has not taken yet. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "guest.h"

static void input_pop(struct input *input, int error) {
  struct chunk *chunk = input->first;
  input->first = chunk->next;
  if (!input->first) input->last = NULL;
  input->pending_bytes -= chunk->length - chunk->at;
  if (chunk->asker) connection_answer(chunk->asker, input->process->id, error, "stdin");
  free(chunk);
}

void input_close(struct input *input) {
  while (input->first) input_pop(input, EPIPE);
  if (input->watched) unwatch(input->fd);
  input->watched = 0;
  close_fd(&input->fd);
}

/* Bytes written, 0 when the pipe is full, -1 when nobody will ever read it. */
static ssize_t input_write(const struct input *input, const uint8_t *bytes, size_t length) {
  ssize_t written;
  do written = write(input->fd, bytes, length);
  while (written < 0 && errno == EINTR);
  if (written < 0) return errno == EAGAIN ? 0 : -1;
  return written;
}

/* A terminal has no end but the character for it; it ends the input only at the beginning of a line. */
static void input_end(struct input *input) {
  struct termios settings;
  if (input->process->is_pty && tcgetattr(input->fd, &settings) == 0)
    (void)!write(input->fd, &settings.c_cc[VEOF], 1);
  input_close(input);
}

void input_ready(struct input *input) {
  while (input->fd >= 0 && input->first) {
    struct chunk *chunk = input->first;
    ssize_t written = input_write(input, chunk->bytes + chunk->at, chunk->length - chunk->at);
    if (written < 0) {
      input_close(input);
      return;
    }
    if (written == 0) return;
    chunk->at += (uint32_t)written;
    input->pending_bytes -= (uint32_t)written;
    if (chunk->at == chunk->length) input_pop(input, 0);
  }
  if (input->fd < 0) return;
  if (input->watched) unwatch(input->fd);
  input->watched = 0;
  if (input->closing) input_end(input);
}

int process_input(struct process *process, struct connection *asker, const uint8_t *bytes, size_t length) {
  struct input *input = &process->input;
  if (!input->opened) return -EBADF;
  if (input->fd < 0 || input->closing || process->state != STATE_RUNNING) return -EPIPE;
  if (length > STDIN_BYTES_MAX) return -EMSGSIZE;
  if (length == 0) return 1;
  size_t written = 0;
  while (!input->first && written < length) {
    ssize_t taken = input_write(input, bytes + written, length - written);
    if (taken < 0) {
      input_close(input);
      return -EPIPE;
    }
    if (taken == 0) break;
    written += (size_t)taken;
  }
  if (written == length) return 1;
  size_t rest = length - written;
  if (written == 0 && input->pending_bytes + rest > STDIN_PENDING_BYTES_MAX) return -EAGAIN;
  struct chunk *chunk = malloc(sizeof *chunk + rest);
  if (!chunk) return -ENOMEM;
  *chunk = (struct chunk){.asker = asker, .length = (uint32_t)rest};
  memcpy(chunk->bytes, bytes + written, rest);
  if (input->last) input->last->next = chunk;
  else input->first = chunk;
  input->last = chunk;
  input->pending_bytes += (uint32_t)rest;
  if (!input->watched) input->watched = watch(input->fd, &input->source, EPOLLOUT) == 0;
  return 0;
}

void process_input_accept(struct process *process, const struct connection *asker) {
  for (struct chunk *chunk = process->input.first; chunk; chunk = chunk->next) {
    if (chunk->asker != asker) continue;
    connection_answer(chunk->asker, process->id, 0, "");
    chunk->asker = NULL;
  }
}

int process_input_close(struct process *process) {
  struct input *input = &process->input;
  if (!input->opened) return EBADF;
  if (input->fd < 0 || input->closing) return 0;
  if (input->first) input->closing = 1;
  else input_end(input);
  return 0;
}

int process_resize(struct process *process, uint16_t cols, uint16_t rows) {
  if (!process->is_pty) return ENOTTY;
  if (process->streams[0].fd < 0) return ESRCH;
  struct winsize size = {.ws_row = rows, .ws_col = cols};
  return ioctl(process->streams[0].fd, TIOCSWINSZ, &size) < 0 ? errno : 0;
}
