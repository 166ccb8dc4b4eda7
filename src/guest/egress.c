/*
 * What leaves the instance. Connections that the network redirects here wait until hutch has said what becomes of them:
 * a refused one is reset, for any other the dialler brings a socket that is connected already, and bytes move between
 * the two. The keeper itself can reach nothing outside.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "frame.h"
#include "keeper.h"

enum {
  CONNECTIONS_MAX = 1 << 10, /* waiting and relayed together */
  SLOT_BITS = 10,
  WAIT_MS_MAX = 45000, /* for hutch to come back, its word, and the dial */
  QUERIES_MAX = 1 << 7, /* DNS queries that wait for an answer; the oldest is forgotten */
  QUERY_BYTES_MAX = 1500,
  ACCEPTS_PER_TURN_MAX = 32,
  /* Connections and queries of one instance: hutch decides on each, for all instances. */
  EVENTS_PER_SECOND_MAX = 1000,
  EVENTS_AT_ONCE_MAX = 1000,
  PAUSE_MS = 20,
  TOLD_BYTES_MAX = 64 * 1024, /* more is not told to a hutch that does not read what it was told */
  ORIGINAL_DESTINATION = 80, /* of either family */
};

enum connection_kind { OUTGOING = 1, API = 2 };

struct connection {
  struct source source;
  int fd;
  uint32_t id;
  uint8_t kind, family; /* 4 or 6 */
  uint8_t address[16];
  uint16_t port;
  int told;
  uint64_t deadline_ms;
};

struct query {
  uint32_t id; /* 0: none */
  struct sockaddr_in from;
};

static struct connection *waiting[CONNECTIONS_MAX];
static size_t waiting_count, relays_allowed = CONNECTIONS_MAX;
static uint32_t generation;
static struct query queries[QUERIES_MAX];
static uint32_t query_next = 1;
static struct source tcp_source, api_source, dns_source, mailbox_source;
static int tcp_fd = -1, api_fd = -1, dns_fd = -1, mailbox_fd = -1;
static uint64_t allowance = EVENTS_AT_ONCE_MAX, allowance_ms;
static int paused; /* no new connections until there is allowance again */
static struct connection *let_go; /* events of the present batch may still point to them */

static uint64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* 1 when there is allowance for one more. */
static int spend(void) {
  uint64_t now = now_ms(), earned = (now - allowance_ms) * EVENTS_PER_SECOND_MAX / 1000;
  if (earned > 0) {
    allowance = allowance + earned > EVENTS_AT_ONCE_MAX ? EVENTS_AT_ONCE_MAX : allowance + earned;
    allowance_ms = now;
  }
  if (allowance == 0) return 0;
  allowance--;
  return 1;
}

static void listen_again(void) {
  paused = 0;
  if (api_fd >= 0) (void)loop_add(api_fd, EPOLLIN, &api_source);
  if (tcp_fd >= 0) (void)loop_add(tcp_fd, EPOLLIN, &tcp_source);
}

static void pause_listening(void) {
  paused = 1;
  if (api_fd >= 0) (void)loop_add(api_fd, 0, &api_source);
  if (tcp_fd >= 0) (void)loop_add(tcp_fd, 0, &tcp_source);
}

void reset_connection(int fd) {
  struct linger now = {.l_onoff = 1};
  (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close(fd);
}

/* Takes it out of the table; the descriptor stays open, and is answered. */
static int connection_take(struct connection *connection) {
  int fd = connection->fd;
  waiting[connection->id & (CONNECTIONS_MAX - 1)] = NULL;
  waiting_count--;
  connection->fd = -1;
  /* The address of the next one in the free list is kept where it is needed no more. */
  memcpy(connection->address, &let_go, sizeof let_go);
  let_go = connection;
  return fd;
}

static void connection_gone(struct source *source, uint32_t events) {
  struct connection *connection = (struct connection *)source;
  (void)events;
  if (connection->fd >= 0) close(connection_take(connection));
}

static int tell(const struct connection *connection) {
  struct frame_writer *writer = egress_writer();
  if (!writer || frame_writer_pending(writer) > TOLD_BYTES_MAX) return 0;
  frame_begin(writer, FRAME_CONNECT, connection->id);
  put_u8(writer, connection->kind);
  put_u8(writer, connection->family);
  put_u16(writer, connection->port);
  put_bytes(writer, connection->address, connection->family == 4 ? 4 : connection->family == 6 ? 16 : 0);
  frame_end(writer);
  return 1;
}

void egress_tell(int again) {
  if (waiting_count == 0) return;
  for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
    if (!waiting[i] || (waiting[i]->told && !again)) continue;
    waiting[i]->told = tell(waiting[i]);
    if (!waiting[i]->told && !again) return;
  }
  egress_flush();
}

/* 1 when the connection was meant for somebody outside. */
static int destination_of(int fd, struct connection *connection) {
  struct sockaddr_in v4;
  struct sockaddr_in6 v6;
  socklen_t length = sizeof v4;
  if (getsockopt(fd, IPPROTO_IP, ORIGINAL_DESTINATION, &v4, &length) == 0 && v4.sin_family == AF_INET) {
    connection->family = 4;
    connection->port = ntohs(v4.sin_port);
    memcpy(connection->address, &v4.sin_addr, 4);
    return connection->address[0] != 127;
  }
  length = sizeof v6;
  if (getsockopt(fd, IPPROTO_IPV6, ORIGINAL_DESTINATION, &v6, &length) < 0 || v6.sin6_family != AF_INET6) return 0;
  connection->family = 6;
  connection->port = ntohs(v6.sin6_port);
  memcpy(connection->address, &v6.sin6_addr, 16);
  return !IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr);
}

static size_t free_slot(void) {
  static size_t next;
  while (waiting[next]) next = (next + 1) % CONNECTIONS_MAX;
  return next++ % CONNECTIONS_MAX;
}

static void accepted(int fd, enum connection_kind kind) {
  struct connection found = {.source = {connection_gone}, .fd = fd, .kind = (uint8_t)kind};
  struct connection *connection = NULL;
  if (waiting_count + relays_joined() < relays_allowed && (kind == API || destination_of(fd, &found)))
    connection = malloc(sizeof *connection);
  if (!connection) {
    reset_connection(fd);
    return;
  }
  size_t slot = free_slot();
  *connection = found;
  connection->id = (uint32_t)slot | ++generation << SLOT_BITS;
  connection->deadline_ms = now_ms() + WAIT_MS_MAX;
  waiting[slot] = connection;
  waiting_count++;
  int on = 1;
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  /* Only its end is of interest until there is somebody to talk to. */
  if (loop_add(fd, 0, &connection->source) < 0) {
    reset_connection(connection_take(connection));
    return;
  }
  connection->told = tell(connection);
}

static void accept_all(int listener, enum connection_kind kind) {
  for (int i = 0; i < ACCEPTS_PER_TURN_MAX && !paused; i++) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) break;
    if (!spend()) pause_listening(); /* the one in hand still goes, so that nobody is refused for being early */
    accepted(fd, kind);
  }
  egress_flush();
}

static void tcp_ready(struct source *source, uint32_t events) {
  (void)source, (void)events;
  accept_all(tcp_fd, OUTGOING);
}

static void api_ready(struct source *source, uint32_t events) {
  (void)source, (void)events;
  accept_all(api_fd, API);
}

static struct connection *find(uint32_t id) {
  struct connection *connection = waiting[id & (CONNECTIONS_MAX - 1)];
  return connection && connection->id == id ? connection : NULL;
}

void egress_refuse(uint32_t id) {
  struct connection *connection = find(id);
  if (connection) reset_connection(connection_take(connection));
}

/* One letter of the dialler: the id of a connection, and a socket that is connected to where it goes. 0: none is left. */
static int take_letter(void) {
  uint32_t id = 0;
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec body = {&id, sizeof id};
  struct msghdr letter = {
      .msg_iov = &body, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
  ssize_t got = recvmsg(mailbox_fd, &letter, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got < 0) return 0;
  int fd = -1;
  struct cmsghdr *header = CMSG_FIRSTHDR(&letter);
  if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
      header->cmsg_len == CMSG_LEN(sizeof fd))
    memcpy(&fd, CMSG_DATA(header), sizeof fd);
  if (fd < 0) return 1;
  struct connection *connection = got == sizeof id ? find(id) : NULL;
  /* Its own end was given up meanwhile, or it is the second answer after hutch was started again. */
  if (!connection) reset_connection(fd);
  else relay_join(connection_take(connection), fd);
  return 1;
}

static void mailbox_ready(struct source *source, uint32_t events) {
  (void)source, (void)events;
  for (int i = 0; i < ACCEPTS_PER_TURN_MAX && take_letter(); i++) continue;
}

/* DNS */

static void dns_ready(struct source *source, uint32_t events) {
  (void)source, (void)events;
  for (int i = 0; i < ACCEPTS_PER_TURN_MAX; i++) {
    uint8_t bytes[QUERY_BYTES_MAX];
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    ssize_t got = recvfrom(dns_fd, bytes, sizeof bytes, MSG_DONTWAIT, (struct sockaddr *)&from, &length);
    if (got < 0) break;
    struct frame_writer *writer = egress_writer();
    /* Whoever asked asks again. */
    if (!writer || frame_writer_pending(writer) > TOLD_BYTES_MAX || !spend()) continue;
    uint32_t id = query_next;
    query_next = query_next == UINT32_MAX ? 1 : query_next + 1;
    queries[id & (QUERIES_MAX - 1)] = (struct query){.id = id, .from = from};
    frame_begin(writer, FRAME_QUERY, id);
    put_bytes(writer, bytes, (size_t)got);
    frame_end(writer);
  }
  egress_flush();
}

void egress_answer(uint32_t id, const uint8_t *bytes, size_t length) {
  struct query *query = &queries[id & (QUERIES_MAX - 1)];
  if (id == 0 || query->id != id) return;
  query->id = 0;
  (void)sendto(dns_fd, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&query->from, sizeof query->from);
}

/* The loop */

int egress_timeout_ms(void) {
  if (paused) return PAUSE_MS;
  if (waiting_count == 0) return -1;
  uint64_t first = UINT64_MAX, now = now_ms();
  for (size_t i = 0; i < CONNECTIONS_MAX; i++)
    if (waiting[i] && waiting[i]->deadline_ms < first) first = waiting[i]->deadline_ms;
  return first <= now ? 0 : (int)(first - now);
}

void egress_sweep(void) {
  while (let_go) {
    struct connection *connection = let_go;
    memcpy(&let_go, connection->address, sizeof let_go);
    free(connection);
  }
  if (paused && now_ms() - allowance_ms >= PAUSE_MS) listen_again();
  if (waiting_count == 0) return;
  uint64_t now = now_ms();
  for (size_t i = 0; i < CONNECTIONS_MAX; i++)
    if (waiting[i] && waiting[i]->deadline_ms <= now) reset_connection(connection_take(waiting[i]));
}

int egress_open(const struct network *network, int mailbox, size_t relays_max) {
  tcp_fd = network->tcp_fd;
  dns_fd = network->dns_fd;
  api_fd = network->api_fd;
  mailbox_fd = mailbox;
  if (relays_max < relays_allowed) relays_allowed = relays_max;
  tcp_source.handle = tcp_ready;
  api_source.handle = api_ready;
  dns_source.handle = dns_ready;
  mailbox_source.handle = mailbox_ready;
  if (loop_add(mailbox_fd, EPOLLIN, &mailbox_source) < 0) return -1;
  if (api_fd >= 0 && loop_add(api_fd, EPOLLIN, &api_source) < 0) return -1;
  if (tcp_fd < 0) return 0;
  return loop_add(tcp_fd, EPOLLIN, &tcp_source) < 0 || loop_add(dns_fd, EPOLLIN, &dns_source) < 0 ? -1 : 0;
}
