/*
 * The keeper: what a launch becomes once the instance runs. It stays in the instance's network namespace, relays
 * connections from unix sockets of the host to ports inside, hands connections that it makes there to hutch, relays what
 * leaves to where hutch says, and waits for process 1.
 */
#ifndef HUTCH_KEEPER_H
#define HUTCH_KEEPER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "network.h"

struct frame_writer;

struct keeper_start {
  pid_t guest;
  int guest_pidfd;
  int listen_fd;   /* listening, run/keeper.sock */
  int mailbox_fd;  /* datagrams, run/egress.sock */
  int disk_device; /* as disk_open gives it: until it was settled */
  int uid_of_its_own;
  struct network network;
};

/* The present directory is `run/`. Answers when the guest ended and everything of the keeper is cleaned up. */
void keeper_run(const struct keeper_start *start);

/* Parts of the keeper */

/* Something in the event loop: what epoll's data points to. */
struct source {
  void (*handle)(struct source *source, uint32_t events);
};

/* Adds a descriptor, or changes what it waits for: 0, or -1 with errno. */
int loop_add(int fd, uint32_t events, struct source *source);
void loop_remove(int fd);

/* As the instance's network knows it: without an address 127.0.0.1 and then ::1. */
struct place {
  uint16_t port;
  uint8_t address_length; /* 0, 4 or 16 */
  uint8_t address[16];
};

/* `done` gets a connected descriptor, or -1 and an error; it may be called at once. */
struct dial {
  struct source source;
  void (*done)(struct dial *dial, int fd, int error);
  int fd; /* -1 when not dialling */
  struct place place;
  int second;
};

void place_dial(struct dial *dial, const struct place *place, void (*done)(struct dial *, int, int));
void place_dial_cancel(struct dial *dial);

/*
 * Dials a place and hands the connected socket over by `over`, which it takes (-1: there is none). `told`, perhaps at once:
 * 0, or an errno.
 */
void place_reach(const struct place *place, int over, void *asker, uint32_t id,
                 void (*told)(void *asker, uint32_t id, int error));
/* Nobody is to be told any more. */
void reaches_forget(const void *asker);
/* As ports_sweep. */
void reaches_sweep(void);

/* Opens the tables of listening sockets of the present network namespace: before /proc goes out of reach. */
void ports_open(void);
/* Whether something accepts connections on this port of a loopback or of every address. Disturbs nobody. */
int port_listens(uint16_t number);

/* Makes `p<number>` in the present directory: 0 or an errno. */
int port_listen(uint16_t number);
void ports_close(void);
/* Frees what was closed while events of the present batch may still point to it. */
void ports_sweep(void);

struct port;
void port_released(struct port *port);

/* Takes the descriptor and the caller's hold on `port`, which port_released gives back once the relay is over. */
void relay_open(int client, uint16_t number, struct port *port);
/* Goes on with relays that had more to move: 1 when there still are some. */
int relays_continue(void);
/* As ports_sweep. */
void relays_sweep(void);
/* Answers how many there may be to ports, and how many to the outside. */
size_t relays_limit(size_t descriptors);

/* Takes both descriptors, which are connected, and relays between them. */
void relay_join(int client, int server);
size_t relays_joined(void);
/* Ends those to the outside that have been idle for too long: called in every turn of the loop. */
void relays_end_idle(void);
/* After which the loop shall turn, to that end; -1: none is to be ended. */
int relays_idle_timeout_ms(void);
/* Closes with a reset, where the socket knows that. */
void reset_connection(int fd);

/* 0, or -1 with errno. */
int egress_open(const struct network *network, int mailbox, size_t relays_max);
/* Tells hutch of connections it has not heard of; `again`: of all that wait. */
void egress_tell(int again);
void egress_refuse(uint32_t id);
void egress_answer(uint32_t id, const uint8_t *bytes, size_t length);
/* As ports_sweep, and ends what has waited for too long. */
void egress_sweep(void);
/* Until then; -1: nothing waits. */
int egress_timeout_ms(void);

/* Of the control connection that wants to hear of what leaves; NULL when there is none. */
struct frame_writer *egress_writer(void);
void egress_flush(void);

#endif
