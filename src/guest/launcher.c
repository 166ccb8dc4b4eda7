/*
 * The launcher that stays: one a platform. Starting a program from a large process, and loading it, costs more than
 * the fork that each instance gets here. It holds nothing of any instance, and ends with its platform.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "frame.h"
#include "helper.h"
#include "launch.h"
#include "sys.h"

extern char **environ;

/* A launch under way, or the keeper that it became. */
struct child {
  pid_t pid;
  uint32_t request;
};

static struct {
  struct child *items;
  size_t count, capacity;
} children;

static void forget_environment(void) {
  /* The platform's secrets may be in it, and what runs inside is a copy of this process. */
  for (char **entry = environ; *entry; entry++) memset(*entry, 0, strlen(*entry));
  environ[0] = NULL;
}

static int reserve_child(void) {
  if (children.count < children.capacity) return 1;
  size_t capacity = children.capacity ? children.capacity * 2 : 64;
  struct child *items = realloc(children.items, capacity * sizeof *items);
  if (!items) return 0;
  children.items = items;
  children.capacity = capacity;
  return 1;
}

static void refuse(uint32_t request, int error, const char *message) {
  struct frame_writer writer = {0};
  frame_error(&writer, request, error, message);
  /* One write: launches answer on the same pipe. */
  (void)!write(STDOUT_FILENO, writer.data + writer.start, frame_writer_pending(&writer));
  frame_writer_free(&writer);
}

static void start(const struct frame *frame) {
  pid_t pid = reserve_child() ? fork() : -1;
  if (pid < 0) {
    refuse(frame->id, errno, "start: the launcher cannot fork");
    return;
  }
  if (pid > 0) {
    children.items[children.count++] = (struct child){pid, frame->id};
    return;
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  (void)sys_close_range(STDERR_FILENO + 1, ~0U);
  free(children.items);
  launch(frame->id, frame->payload, frame->length);
}

/* A launch that was given up. Its process 1 dies with it. */
static void cancel(uint32_t request) {
  for (size_t i = 0; i < children.count; i++)
    if (children.items[i].request == request) kill(children.items[i].pid, SIGKILL);
}

static void reap(void) {
  int status;
  pid_t pid;
  while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
    for (size_t i = 0; i < children.count; i++) {
      if (children.items[i].pid != pid) continue;
      /* One that ends by itself has answered. A late word on one that had is not listened to. */
      if (WIFSIGNALED(status)) refuse(children.items[i].request, ECHILD, "start: the launch was killed");
      children.items[i] = children.items[--children.count];
      break;
    }
  }
}

static int serve(const struct frame *frame) {
  switch (frame->type) {
    case FRAME_LAUNCH: start(frame); return 1;
    case FRAME_CANCEL_LAUNCH: cancel(frame->id); return 1;
    default: return 0;
  }
}

int launcher_main(void) {
  forget_environment();
  (void)sys_close_range(STDERR_FILENO + 1, ~0U);
  for (int signal_number = 1; signal_number < 32; signal_number++) signal(signal_number, SIG_DFL);
  signal(SIGPIPE, SIG_IGN);
  umask(0077);
  sigset_t watched;
  sigemptyset(&watched);
  sigaddset(&watched, SIGCHLD);
  sigprocmask(SIG_SETMASK, &watched, NULL);
  int signals = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals < 0) return 1;

  struct frame_reader reader = {0};
  struct pollfd waiting[] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
  for (;;) {
    if (poll(waiting, 2, -1) < 0 && errno != EINTR) return 1;
    if (waiting[1].revents) {
      struct signalfd_siginfo info;
      while (read(signals, &info, sizeof info) > 0) {}
      reap();
    }
    /* Nobody would know of what a platform that is gone asked for. */
    if (waiting[0].revents & (POLLHUP | POLLERR)) return 0;
    if (!(waiting[0].revents & POLLIN)) continue;
    if (frame_reader_fill(&reader, STDIN_FILENO) <= 0) return 0;
    struct frame frame;
    int next;
    while ((next = frame_reader_next(&reader, &frame)) > 0)
      if (!serve(&frame)) return 1;
    if (next < 0) return 1;
  }
}
