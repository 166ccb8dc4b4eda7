/* Connections to ports inside, by loopback: for the relays, and for hutch to have and use itself. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handover.h"
#include "keeper.h"

enum {
  DIAL_SYN_RETRIES = 3, /* a full backlog is given up after about 15 s */
  REACHES_MAX = 64,     /* dialled for hutch at once */
};

static void dial_next(struct dial *dial);

static void dial_finish(struct dial *dial, int error) {
  int fd = dial->fd;
  dial->fd = -1;
  if (error && fd >= 0) close(fd);
  if (error && !dial->second) {
    dial->second = 1;
    dial_next(dial);
    return;
  }
  /* It may still be in the loop: its new owner adds it again with a source of its own, or closes it. */
  dial->done(dial, error ? -1 : fd, error);
}

static void dial_ready(struct source *source, uint32_t events) {
  (void)events;
  struct dial *dial = (struct dial *)source;
  if (dial->fd < 0) return;
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(dial->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) error = errno;
  dial_finish(dial, error);
}

static void dial_next(struct dial *dial) {
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(dial->port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
  struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(dial->port)};
  v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  dial->fd = socket(dial->second ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (dial->fd < 0) {
    dial_finish(dial, errno);
    return;
  }
  int retries = DIAL_SYN_RETRIES, on = 1;
  setsockopt(dial->fd, IPPROTO_TCP, TCP_SYNCNT, &retries, sizeof retries);
  setsockopt(dial->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  int done = dial->second ? connect(dial->fd, (struct sockaddr *)&v6, sizeof v6)
                          : connect(dial->fd, (struct sockaddr *)&v4, sizeof v4);
  if (done == 0) {
    dial_finish(dial, 0);
    return;
  }
  if (errno != EINPROGRESS || loop_add(dial->fd, EPOLLOUT | EPOLLONESHOT, &dial->source) < 0)
    dial_finish(dial, errno);
}

void port_dial(struct dial *dial, uint16_t port, void (*done)(struct dial *, int, int)) {
  *dial = (struct dial){.source = {dial_ready}, .done = done, .fd = -1, .port = port};
  dial_next(dial);
}

void port_dial_cancel(struct dial *dial) {
  if (dial->fd >= 0) close(dial->fd);
  dial->fd = -1;
}

/* For hutch */

struct reach {
  struct dial dial;
  enum { FREE, DIALLING, OVER } state; /* OVER: events of the present batch may still point to it */
  int over; /* where the socket is handed over */
  void *asker;
  uint32_t id;
};

static struct reach reaches[REACHES_MAX];
static void (*reach_told)(void *asker, uint32_t id, int error);

static void reach_end(struct reach *reach) {
  close(reach->over);
  reach->over = -1;
  reach->state = OVER;
}

static void reach_dialled(struct dial *dial, int fd, int error) {
  struct reach *reach = (struct reach *)dial;
  if (fd >= 0) {
    /* Open elsewhere from now on, it would stay in the loop. */
    loop_remove(fd);
    if (!hand_over(reach->over, fd)) error = EPIPE;
    close(fd);
  }
  reach_end(reach);
  reach_told(reach->asker, reach->id, error);
}

void port_reach(uint16_t number, int over, void *asker, uint32_t id, void (*told)(void *, uint32_t, int)) {
  reach_told = told;
  int error = over < 0 || number == 0 ? EINVAL : EAGAIN;
  for (int i = 0; error == EAGAIN && i < REACHES_MAX; i++) {
    struct reach *reach = &reaches[i];
    if (reach->state != FREE) continue;
    *reach = (struct reach){.state = DIALLING, .over = over, .asker = asker, .id = id};
    port_dial(&reach->dial, number, reach_dialled);
    return;
  }
  if (over >= 0) close(over);
  told(asker, id, error);
}

void reaches_forget(const void *asker) {
  for (int i = 0; i < REACHES_MAX; i++) {
    if (reaches[i].state != DIALLING || reaches[i].asker != asker) continue;
    port_dial_cancel(&reaches[i].dial);
    reach_end(&reaches[i]);
  }
}

void reaches_sweep(void) {
  for (int i = 0; i < REACHES_MAX; i++)
    if (reaches[i].state == OVER) reaches[i].state = FREE;
}
