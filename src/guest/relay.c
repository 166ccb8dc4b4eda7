#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "keeper.h"

enum {
  RELAYS_MAX = 1024,             /* to ports inside, and as many to the outside */
  RELAY_DESCRIPTORS = 6,
  DESCRIPTORS_RESERVED = 512,    /* ports, control connections, dials */
  PIPE_BYTES = 512 * 1024,       /* what a direction holds at most besides the sockets' own buffers */
  PIPES_SPARE_MAX = 4,
  TURN_ROUNDS_MAX = 8,           /* then other connections get their turn */
  JOINED_IDLE_S_MAX = 2 * 3600,  /* to the outside: a connection without a byte for so long is over */
  IDLE_CHECK_S = 60,
};

/* Pipes: a direction holds one only while bytes are in it, so that idle connections cost two descriptors. */

struct pipe_ends {
  int read, write;
};

static struct pipe_ends spare[PIPES_SPARE_MAX];
static int spare_count;

static int pipe_take(struct pipe_ends *ends) {
  if (spare_count > 0) {
    *ends = spare[--spare_count];
    return 0;
  }
  int fds[2];
  if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0) return -1;
  (void)fcntl(fds[1], F_SETPIPE_SZ, PIPE_BYTES);
  *ends = (struct pipe_ends){fds[0], fds[1]};
  return 0;
}

static void pipe_return(struct pipe_ends *ends, int empty) {
  if (ends->read < 0) return;
  if (empty && spare_count < PIPES_SPARE_MAX) {
    spare[spare_count++] = *ends;
  } else {
    close(ends->read);
    close(ends->write);
  }
  ends->read = ends->write = -1;
}

/* Relays */

struct relay;

struct endpoint {
  struct source source;
  struct relay *relay;
  int fd;
  int readable, writable, gone;
};

struct direction {
  struct endpoint *from, *to;
  struct pipe_ends pipe;
  size_t held;
  int ended; /* `from` has no more bytes */
  int broken; /* ... and not because it said so */
  int done;  /* and `to` was told, or takes none */
};

struct relay {
  struct dial dial;
  struct endpoint client, server;
  struct direction up, down;
  struct port *port; /* NULL: joined to the outside */
  struct relay *next_queued, *next_dead;
  struct relay *next_joined, **joined_link;
  time_t used_s;
  int queued, closed;
};

static size_t relay_count, joined_count, relays_max = RELAYS_MAX;
static struct relay *queue, *dead, *joined;

size_t relays_limit(size_t descriptors) {
  size_t reserved = DESCRIPTORS_RESERVED;
  size_t possible = descriptors > reserved ? (descriptors - reserved) / RELAY_DESCRIPTORS / 2 : 1;
  relays_max = possible < RELAYS_MAX ? possible : RELAYS_MAX;
  return relays_max;
}

size_t relays_joined(void) { return joined_count; }

static time_t now_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return now.tv_sec;
}

/* An end without a farewell is passed on as one, so that nobody takes a part for the whole. */
static void endpoint_close(struct endpoint *endpoint, int reset) {
  if (endpoint->fd < 0) return;
  if (reset) reset_connection(endpoint->fd);
  else close(endpoint->fd);
}

static void relay_close(struct relay *relay) {
  if (relay->closed) return;
  relay->closed = 1;
  place_dial_cancel(&relay->dial);
  pipe_return(&relay->up.pipe, relay->up.held == 0);
  pipe_return(&relay->down.pipe, relay->down.held == 0);
  endpoint_close(&relay->client, relay->down.broken);
  endpoint_close(&relay->server, relay->up.broken);
  if (relay->port) {
    relay_count--;
    port_released(relay->port);
  } else {
    joined_count--;
    *relay->joined_link = relay->next_joined;
    if (relay->next_joined) relay->next_joined->joined_link = relay->joined_link;
  }
  relay->next_dead = dead;
  dead = relay;
}

void relays_sweep(void) {
  /* Those still queued are freed after their turn. */
  struct relay **link = &dead;
  while (*link) {
    struct relay *relay = *link;
    if (relay->queued) {
      link = &relay->next_dead;
      continue;
    }
    *link = relay->next_dead;
    free(relay);
  }
}

static int is_blocked(void) { return errno == EAGAIN || errno == EINTR; }

/* Moves bytes until one side blocks or the turn is over: 1 when there is more to do at once. */
static int pump(struct direction *way) {
  for (int round = 0; !way->done; round++) {
    if (round == TURN_ROUNDS_MAX) return 1;
    if (way->held == 0 && !way->ended) {
      if (!way->from->readable) break;
      if (way->pipe.read < 0 && pipe_take(&way->pipe) < 0) {
        way->ended = way->broken = 1;
        continue;
      }
      ssize_t got = splice(way->from->fd, NULL, way->pipe.write, NULL, PIPE_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
      if (got > 0) way->held = (size_t)got;
      else if (got < 0 && is_blocked()) way->from->readable = errno == EINTR;
      else {
        way->ended = 1;
        way->broken = got < 0;
      }
    }
    if (way->held > 0) {
      if (!way->to->writable) break;
      ssize_t put = splice(way->pipe.read, NULL, way->to->fd, NULL, way->held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
      if (put > 0) way->held -= (size_t)put;
      else if (put < 0 && is_blocked()) way->to->writable = errno == EINTR;
      else {
        /* The receiver takes no more: tell the sender, and let the other direction finish. */
        way->done = 1;
        (void)shutdown(way->from->fd, SHUT_RD);
      }
    }
    if (way->held == 0 && way->ended && !way->done) {
      way->done = 1;
      if (!way->broken) (void)shutdown(way->to->fd, SHUT_WR);
    }
  }
  if (way->held == 0 || way->done) pipe_return(&way->pipe, way->held == 0);
  return 0;
}

static void relay_turn(struct relay *relay) {
  if (relay->closed || relay->server.fd < 0) return;
  int more = pump(&relay->down);
  more |= pump(&relay->up);
  /* A side that is gone for good, not only done with sending, takes nothing any more. */
  int broken = (relay->up.done && relay->up.broken) || (relay->down.done && relay->down.broken);
  if (broken || (relay->up.done && relay->down.done) || (relay->client.gone && relay->up.done) ||
      (relay->server.gone && relay->down.done)) {
    relay_close(relay);
  } else if (more && !relay->queued) {
    relay->queued = 1;
    relay->next_queued = queue;
    queue = relay;
  }
}

int relays_continue(void) {
  struct relay *turn = queue;
  queue = NULL;
  while (turn) {
    struct relay *relay = turn;
    turn = relay->next_queued;
    relay->queued = 0;
    relay_turn(relay);
  }
  return queue != NULL;
}

static void endpoint_ready(struct source *source, uint32_t events) {
  struct endpoint *endpoint = (struct endpoint *)source;
  if (endpoint->relay->closed) return;
  endpoint->relay->used_s = now_s();
  if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) endpoint->readable = 1;
  if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) endpoint->writable = 1;
  if (events & (EPOLLHUP | EPOLLERR)) endpoint->gone = 1;
  relay_turn(endpoint->relay);
}

static void relay_connected(struct relay *relay, int server) {
  relay->server.fd = server;
  relay->server.writable = 1;
  uint32_t events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  if (loop_add(relay->client.fd, events, &relay->client.source) < 0 ||
      loop_add(server, events, &relay->server.source) < 0)
    relay_close(relay);
  else relay_turn(relay);
}

static void relay_dialled(struct dial *dial, int fd, int error) {
  struct relay *relay = (struct relay *)dial;
  (void)error;
  if (fd < 0) relay_close(relay);
  else relay_connected(relay, fd);
}

static struct relay *relay_new(int client, struct port *port) {
  struct relay *relay = calloc(1, sizeof *relay);
  if (!relay) return NULL;
  relay->port = port;
  relay->dial.fd = -1;
  relay->used_s = now_s();
  relay->client = (struct endpoint){.source = {endpoint_ready}, .relay = relay, .fd = client, .readable = 1, .writable = 1};
  relay->server = (struct endpoint){.source = {endpoint_ready}, .relay = relay, .fd = -1};
  relay->up = (struct direction){.from = &relay->client, .to = &relay->server, .pipe = {-1, -1}};
  relay->down = (struct direction){.from = &relay->server, .to = &relay->client, .pipe = {-1, -1}};
  return relay;
}

void relay_open(int client, uint16_t number, struct port *port) {
  struct relay *relay = relay_count < relays_max ? relay_new(client, port) : NULL;
  if (!relay) {
    close(client);
    port_released(port);
    return;
  }
  relay_count++;
  place_dial(&relay->dial, &(struct place){.port = number}, relay_dialled);
}

void relay_join(int client, int server) {
  struct relay *relay = relay_new(client, NULL);
  if (!relay) {
    reset_connection(client);
    reset_connection(server);
    return;
  }
  joined_count++;
  relay->next_joined = joined;
  relay->joined_link = &joined;
  if (joined) joined->joined_link = &relay->next_joined;
  joined = relay;
  relay_connected(relay, server);
}

int relays_idle_timeout_ms(void) { return joined_count > 0 ? IDLE_CHECK_S * 1000 : -1; }

/* By the clock: in a busy sandbox the loop never runs into a timeout. */
void relays_end_idle(void) {
  static time_t checked_s;
  time_t now = now_s();
  if (joined_count == 0 || now - checked_s < IDLE_CHECK_S) return;
  checked_s = now;
  struct relay *next;
  for (struct relay *relay = joined; relay; relay = next) {
    next = relay->next_joined;
    if (now - relay->used_s > JOINED_IDLE_S_MAX) relay_close(relay);
  }
}
