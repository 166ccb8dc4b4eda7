/* What the parts of the guest role share: guest.c (loop, connections), process.c, logs.c, files.c. */
#ifndef HUTCH_GUEST_H
#define HUTCH_GUEST_H

#include <stdint.h>
#include <sys/types.h>

#include "frame.h"
#include "helper.h"

enum {
  CONTROL_CONNECTIONS_MAX = 8,
  PENDING_CONNECTIONS_MAX = 16, /* accepted, HELLO not read yet; beyond that the oldest is closed */
  WORKERS_MAX = 128,
  PROCESSES_MAX = 4096,
  CONNECTION_OUTPUT_BYTES_MAX = 4 << 20, /* a control connection that lets more pile up is closed */
  CONNECTION_OUTPUT_BYTES_PAUSE = 256 << 10, /* above it no further request of that connection is served */
  STDIN_BYTES_MAX = 64 << 10, /* of one STDIN */
  STDIN_PENDING_BYTES_MAX = 256 << 10, /* of one process, not yet taken by its pipe */
  HELLO_BYTES = FRAME_HEADER_BYTES + 13,
  RECORD_HEADER_BYTES = 16,
  RECORD_DATA_BYTES_MAX = (64 << 10) - RECORD_HEADER_BYTES, /* a whole record fits the smallest segment */
  SEGMENT_BYTES_MIN = 64 << 10,
  LOGS_BYTES_MAX = 256 << 20, /* of all processes: logs are on the host's disk, not on the sandbox's own */
  PIPE_BYTES = 1 << 20, /* what the pipe of a program that floods it is grown to */
  REST_MS = 1, /* in which such a pipe fills, instead of being read at every write */
  REST_BYTES_MIN = 4096, /* less at once is no flood */
};

/* First member of everything that epoll reports about. */
enum source_kind { SOURCE_LISTEN, SOURCE_SIGNAL, SOURCE_CONNECTION, SOURCE_STREAM, SOURCE_INPUT };
struct source {
  enum source_kind kind;
};

struct process;

struct connection {
  struct source source;
  struct connection *next;
  int fd;
  uint8_t control; /* after HELLO */
  uint8_t closed, writable_wanted, reading;
  uint8_t hello[HELLO_BYTES];
  uint32_t hello_bytes;
  struct frame_reader reader;
  struct frame_writer writer;
};

/* logs.c: the segmented record log of one process */

struct segment {
  struct segment *next;
  uint64_t start;
};

struct log {
  uint32_t process_id;
  int fd; /* of the last segment, -1 */
  uint64_t bytes_max, segment_bytes_max;
  uint64_t start, end; /* offsets of the oldest kept byte and behind the newest */
  struct segment *first, *last;
};

/* Finds what earlier lives of this machine left, which stays until it is forgotten or room is needed. */
void logs_init(int dir_fd);
void logs_forget(uint32_t process_id); /* of a process that is not known (any more) */
/* Makes the directory empty and ready. A log that cannot be kept loses its output, nothing else. */
void log_open(struct log *log, uint32_t process_id, uint64_t bytes_max);
/* The same, but goes on behind what is there. */
void log_resume(struct log *log, uint32_t process_id, uint64_t bytes_max);
/*
 * How many bytes of data the next record may have, after dropping old segments to make room for it: of this log, and
 * when all logs are too large together, of processes that ended first. 0: the oldest one has to stay for a follower
 * that consumed only up to `slowest`; never 0 with `force`.
 */
size_t log_room(struct log *log, uint64_t slowest, int force);
/* Appends one record; `record` has RECORD_HEADER_BYTES free in front of its `length` bytes of data. */
void log_append(struct log *log, uint8_t stream, uint8_t *record, size_t length, uint64_t now_ms);
void log_idle(struct log *log); /* lets go of the descriptor until the next record */
void log_remove(struct log *log);

/* process.c, spawn.c, stdin.c, signals.c */

enum { STATE_RUNNING = 1, STATE_EXITED = 2, STATE_SIGNALED = 3 };
enum { SPAWN_STDIN = 1, SPAWN_PTY = 2 };
enum { SCOPE_PROCESS = 0, SCOPE_GROUP = 1, SCOPE_TREE = 2 };

struct spawn {
  uint32_t id, flags, uid, gid;
  uint16_t cols, rows;
  uint64_t output_bytes_max;
  char *cwd, **argv, **envp;
};

/* A program that somebody else is going to put here, as it ran, or ran before it ended, in another machine. */
struct adoption {
  uint32_t id, flags, pid, code;
  uint32_t mark; /* of the guest that it was with */
  uint8_t state;
  uint64_t started_ms, ended_ms, output_bytes_max;
};
enum { ADOPT_STDIN = 1, ADOPT_STDOUT = 2, ADOPT_STDERR = 4 };

/* One end that output is read from. */
struct stream {
  struct source source;
  struct process *process;
  int fd; /* -1 after its end */
  uint8_t number; /* 1 stdout (and a pty), 2 stderr */
  uint8_t is_pty, watched, grown;
  uint8_t resting; /* not read for now */
  uint64_t read_us; /* when it was last read */
  struct stream *next_resting;
};

struct chunk {
  struct chunk *next;
  struct connection *asker; /* who gets OK; NULL when it was answered or went away */
  uint32_t length, at;
  uint8_t bytes[];
};

struct input {
  struct source source;
  struct process *process;
  int fd; /* -1: never opened, or closed */
  uint8_t opened, closing, watched;
  uint32_t pending_bytes;
  struct chunk *first, *last;
};

struct follower {
  struct follower *next;
  struct connection *connection;
  uint64_t consumed, announced;
  uint8_t armed, eof_announced;
};

struct process {
  struct process *next, *previous; /* in order of spawn */
  struct process *next_by_id, *next_by_pid;
  uint32_t id, code;
  pid_t pid;
  uint8_t state, is_pty;
  uint8_t forgotten; /* no record any more, but its pipes are read to their end so that nobody gets SIGPIPE */
  uint8_t dead;
  uint64_t started_ms, ended_ms;
  /* The pty's other end, ours until the process ended: one that closes its three descriptors before it exits would
     otherwise end the terminal, and die of SIGHUP. */
  int terminal_fd;
  int far_fds[3]; /* of one being adopted: the program's ends, until it has them */
  uint8_t adopting;
  struct stream streams[2];
  struct input input;
  struct log log;
  struct follower *followers;
};

void spawn_init(const struct guest_start *start);
/* The child's pid, or -1 with errno and `stage`. Fills our ends of stdin, stdout, stderr, and the pty's other end. */
pid_t spawn_child(const struct spawn *spawn, int ours[3], int *terminal_fd, const char **stage);
/* NULL with errno, and `stage` saying what failed. */
struct process *process_spawn(const struct spawn *spawn, const char **stage);
/* NULL with errno. The program has its ends of the pipes from us, and process_adopted is called when it does. */
struct process *process_adopt(const struct adoption *adoption);
/* 0 or an errno. `there`: otherwise it is as if it had never been told of. */
int process_adopted(struct process *process, int there);
struct process *process_of(uint32_t id); /* NULL when unknown or forgotten */
struct process *processes_first(void);
/* 0, or an errno. */
int process_signal(struct process *process, int signal, int scope);
/* Sends `signal` to every process below this one. */
void signal_all(int is_init, int signal);
/* The child `pid` was reaped: NULL when it is no spawned program. Its output so far is in the log afterwards. */
struct process *process_reaped(pid_t pid, int status);
void process_forget(struct process *process);
/* 0 or an errno; what there is to announce is left to process_announce. */
int process_follow(struct process *process, struct connection *connection, uint64_t consumed);
void process_announce(struct process *process);
void process_unfollow(struct process *process, struct connection *connection);
void processes_disconnect(struct connection *connection); /* drops followers and pending answers of it */
/* Takes the bytes: 1 written, 0 pending (its answer follows), or -errno. */
int process_input(struct process *process, struct connection *asker, const uint8_t *bytes, size_t length);
/* Answers what is pending, early: its bytes still go out. */
void process_input_accept(struct process *process, const struct connection *asker);
int process_input_close(struct process *process); /* 0 or an errno */
int process_resize(struct process *process, uint16_t cols, uint16_t rows); /* 0 or an errno */
void stream_ready(struct stream *stream);
int streams_rest(void); /* 1 when some are not read for REST_MS */
void streams_wake(void); /* those that rested long enough */
void input_ready(struct input *input);
void input_close(struct input *input); /* refuses what is pending */
void processes_sweep(void); /* frees what died during this round of events */
void close_fd(int *fd); /* and sets it to -1 */
/* Of the calling process; -1 with errno. */
int credentials_take(uint32_t uid, uint32_t gid);
uint64_t now_ms(void);

/* sockets.c */

int sockets_serve(int fd);
/* 0, or -1: close the connection. */
int sockets_decode(const struct frame *frame, uint32_t *id, uint32_t *root);

/* guest.c */

int watch(int fd, struct source *source, uint32_t events); /* adds or changes */
void unwatch(int fd);
void connection_close(struct connection *connection);
void connection_flush(struct connection *connection);
void connection_output(struct connection *connection, const struct process *process, uint64_t start, uint64_t end, int eof);
void connection_answer(struct connection *connection, uint32_t id, int error, const char *message);
void put_process(struct frame_writer *writer, const struct process *process);
void guest_shutdown(uint64_t grace_ms);
int guest_stopping(void);

/* control.c */

/* Serves the requests that were read, until answers pile up. */
void control_serve(struct connection *connection);

/* Decoding of control requests, apart from what they do, for the fuzzer. 0, or -1: close the connection. */
struct control_request {
  uint8_t type;
  uint32_t id;
  struct adoption adoption;
  struct spawn spawn; /* its vectors are owned by the request */
  uint32_t number; /* signal, grace */
  uint8_t scope;
  uint64_t consumed;
  uint16_t cols, rows;
  const uint8_t *bytes;
  size_t bytes_length;
};
int control_decode(const struct frame *frame, struct control_request *request);
void control_request_free(struct control_request *request);

#endif
