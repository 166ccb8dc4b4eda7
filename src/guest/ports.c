#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "keeper.h"

enum { PORTS_MAX = 256, PORT_BACKLOG = 256, ACCEPTS_PER_TURN_MAX = 32 };

struct port {
  struct source source;
  int fd;
  uint16_t number;
  unsigned relays;
  struct port *next_closed;
  uint64_t used; /* counts on: when it was last asked for or connected to */
};

static struct port *ports[PORTS_MAX];
static int port_count;
static uint64_t uses;
static struct port *closed; /* events of the present batch may still point to them */

static int tables[2] = {-1, -1};

void ports_open(void) {
  tables[0] = open("/proc/self/net/tcp", O_RDONLY | O_CLOEXEC);
  tables[1] = open("/proc/self/net/tcp6", O_RDONLY | O_CLOEXEC);
}

/* 1: a socket that a relay would reach; 0: another one that listens; -1: listening sockets come first, and are over. */
static int listening_line(const char *line, uint16_t number) {
  static const char *const reached[] = {
      "00000000", "0100007F", "00000000000000000000000000000000", "00000000000000000000000001000000",
      "0000000000000000FFFF00000100007F"};
  char address[33];
  unsigned port, state;
  if (sscanf(line, " %*u: %32[0-9A-F]:%4x %*[0-9A-F:] %2x", address, &port, &state) != 3) return 0; /* the heading */
  if (state != TCP_LISTEN) return -1;
  for (size_t i = 0; port == number && i < sizeof reached / sizeof *reached; i++)
    if (!strcmp(address, reached[i])) return 1;
  return 0;
}

static int table_has(int table, uint16_t number) {
  char buffer[2048];
  size_t held = 0;
  if (table < 0 || lseek(table, 0, SEEK_SET) < 0) return 0;
  for (;;) {
    ssize_t got = read(table, buffer + held, sizeof buffer - 1 - held);
    if (got <= 0) return 0;
    held += (size_t)got;
    buffer[held] = 0;
    char *line = buffer, *end;
    while ((end = strchr(line, '\n'))) {
      *end = 0;
      int found = listening_line(line, number);
      if (found) return found > 0;
      line = end + 1;
    }
    held -= (size_t)(line - buffer);
    if (held == sizeof buffer - 1) return 0;
    memmove(buffer, line, held);
  }
}

int port_listens(uint16_t number) { return table_has(tables[0], number) || table_has(tables[1], number); }

static void socket_name(uint16_t number, struct sockaddr_un *address) {
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  snprintf(address->sun_path, sizeof address->sun_path, "p%u", number);
}

static void port_close(int index) {
  struct sockaddr_un address;
  socket_name(ports[index]->number, &address);
  unlink(address.sun_path);
  close(ports[index]->fd);
  ports[index]->fd = -1;
  ports[index]->next_closed = closed;
  closed = ports[index];
  ports[index] = ports[--port_count];
}

void port_released(struct port *port) { port->relays--; }

static void port_ready(struct source *source, uint32_t events) {
  (void)events;
  struct port *port = (struct port *)source;
  if (port->fd < 0) return;
  for (int i = 0; i < ACCEPTS_PER_TURN_MAX; i++) {
    int client = accept4(port->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0) return;
    port->used = ++uses;
    port->relays++;
    relay_open(client, port->number, port);
  }
}

static int open_socket(uint16_t number) {
  struct sockaddr_un address;
  socket_name(number, &address);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  unlink(address.sun_path); /* left by an earlier keeper: this one holds the lock on the directory */
  if (bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, PORT_BACKLOG) == 0) return fd;
  int error = errno;
  close(fd);
  errno = error;
  return -1;
}

/* Closes the least recently used port that no connection is using: 0 when there is none. */
static int evict(void) {
  int oldest = -1;
  for (int i = 0; i < port_count; i++)
    if (ports[i]->relays == 0 && (oldest < 0 || ports[i]->used < ports[oldest]->used)) oldest = i;
  if (oldest < 0) return 0;
  port_close(oldest);
  return 1;
}

int port_listen(uint16_t number) {
  if (number == 0) return EINVAL;
  for (int i = 0; i < port_count; i++) {
    if (ports[i]->number != number) continue;
    ports[i]->used = ++uses;
    return 0;
  }
  if (port_count == PORTS_MAX && !evict()) return EAGAIN;
  struct port *port = calloc(1, sizeof *port);
  if (!port) return ENOMEM;
  *port = (struct port){.source = {port_ready}, .number = number, .used = ++uses, .fd = open_socket(number)};
  if (port->fd < 0 || loop_add(port->fd, EPOLLIN, &port->source) < 0) {
    int error = errno;
    if (port->fd >= 0) close(port->fd);
    free(port);
    return error;
  }
  ports[port_count++] = port;
  return 0;
}

void ports_sweep(void) {
  while (closed) {
    struct port *port = closed;
    closed = port->next_closed;
    free(port);
  }
}

void ports_close(void) {
  while (port_count > 0) port_close(port_count - 1);
}
