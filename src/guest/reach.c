/*
 * Connections made in the instance's network: to ports inside for the relays, and for hutch to have and use itself, which
 * also gets those that leave, as programs make them.
 */
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
  REACHES_MAX = 64,     /* ports dialled for hutch at once */
  DEPARTURES_MAX = 32,  /* and addresses */
};

static void dial_next(struct dial *dial);

static void dial_finish(struct dial *dial, int error) {
  int fd = dial->fd;
  dial->fd = -1;
  if (error && fd >= 0) close(fd);
  if (error && !dial->second && dial->place.address_length == 0) {
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
  const struct place *place = &dial->place;
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(place->port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
  struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(place->port)};
  v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (place->address_length == sizeof v6.sin6_addr) memcpy(&v6.sin6_addr, place->address, sizeof v6.sin6_addr);
  if (place->address_length == sizeof v4.sin_addr) memcpy(&v4.sin_addr, place->address, sizeof v4.sin_addr);
  int six = dial->second || place->address_length == sizeof v6.sin6_addr;
  dial->fd = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (dial->fd < 0) {
    dial_finish(dial, errno);
    return;
  }
  int retries = DIAL_SYN_RETRIES, on = 1;
  setsockopt(dial->fd, IPPROTO_TCP, TCP_SYNCNT, &retries, sizeof retries);
  setsockopt(dial->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  int done = six ? connect(dial->fd, (struct sockaddr *)&v6, sizeof v6)
                 : connect(dial->fd, (struct sockaddr *)&v4, sizeof v4);
  if (done == 0) {
    dial_finish(dial, 0);
    return;
  }
  if (errno != EINPROGRESS || loop_add(dial->fd, EPOLLOUT | EPOLLONESHOT, &dial->source) < 0)
    dial_finish(dial, errno);
}

void place_dial(struct dial *dial, const struct place *place, void (*done)(struct dial *, int, int)) {
  *dial = (struct dial){.source = {dial_ready}, .done = done, .fd = -1, .place = *place};
  dial_next(dial);
}

void place_dial_cancel(struct dial *dial) {
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

/* Those to addresses are behind those to ports: neither takes the room of the other. */
static struct reach reaches[REACHES_MAX + DEPARTURES_MAX];
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

void place_reach(const struct place *place, int over, void *asker, uint32_t id, void (*told)(void *, uint32_t, int)) {
  reach_told = told;
  int error = over < 0 || place->port == 0 ? EINVAL : EAGAIN;
  int first = place->address_length == 0 ? 0 : REACHES_MAX;
  int end = place->address_length == 0 ? REACHES_MAX : REACHES_MAX + DEPARTURES_MAX;
  for (int i = first; error == EAGAIN && i < end; i++) {
    struct reach *reach = &reaches[i];
    if (reach->state != FREE) continue;
    *reach = (struct reach){.state = DIALLING, .over = over, .asker = asker, .id = id};
    place_dial(&reach->dial, place, reach_dialled);
    return;
  }
  if (over >= 0) close(over);
  told(asker, id, error);
}

void reaches_forget(const void *asker) {
  for (int i = 0; i < REACHES_MAX + DEPARTURES_MAX; i++) {
    if (reaches[i].state != DIALLING || reaches[i].asker != asker) continue;
    place_dial_cancel(&reaches[i].dial);
    reach_end(&reaches[i]);
  }
}

void reaches_sweep(void) {
  for (int i = 0; i < REACHES_MAX + DEPARTURES_MAX; i++)
    if (reaches[i].state == OVER) reaches[i].state = FREE;
}
