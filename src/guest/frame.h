/* Frames of docs/guest-protocol.md: an incremental reader, a payload cursor and a queue of frames to write. */
#ifndef HUTCH_FRAME_H
#define HUTCH_FRAME_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "helper.h"

enum {
  FRAME_HELLO = 1,
  FRAME_HELLO_OK = 2,
  FRAME_ERROR = 3,
  FRAME_OK = 4,
  FRAME_PING = 5,
  FRAME_PONG = 6,

  FRAME_SPAWN = 16,
  FRAME_SPAWNED = 17,
  FRAME_SIGNAL = 18,
  FRAME_LIST = 19,
  FRAME_ITEM = 20,
  FRAME_END = 21,
  FRAME_EXIT = 22,
  FRAME_FORGET = 23,
  FRAME_ATTACH = 24,
  FRAME_DETACH = 25,
  FRAME_OUTPUT = 26,
  FRAME_STDIN = 27,
  FRAME_CLOSE_STDIN = 28,
  FRAME_RESIZE = 29,
  FRAME_SHUTDOWN = 30,
  FRAME_ADOPT = 31,
  FRAME_ADOPTED = 32,
  FRAME_DESCRIPTORS = 33,
  FRAME_DESCRIPTORS_OK = 34,

  FRAME_STAT = 64,
  FRAME_ENTRY_OK = 65,
  FRAME_READDIR = 66,
  FRAME_ENTRIES = 67,
  FRAME_READ = 68,
  FRAME_DATA = 69,
  FRAME_WRITE = 70,
  FRAME_ABORT = 71,
  FRAME_MKDIR = 72,
  FRAME_REMOVE = 73,
  FRAME_RENAME = 74,
  FRAME_CHMOD = 75,
  FRAME_REALPATH = 76,
  FRAME_PATH = 77,
  FRAME_APPEND = 78,
  FRAME_RENAME_NEW = 79,

  FRAME_WALK = 80,
  FRAME_FOUND = 81,
  FRAME_SEARCH = 82,
  FRAME_MATCHES = 83,
  FRAME_SUMMARY = 84,
  FRAME_WATCH = 85,
  FRAME_CHANGES = 86,
  FRAME_COPY = 87,
  FRAME_CHOWN = 88,
  FRAME_OPEN = 90,
  FRAME_OPENED = 91,

  FRAME_LISTEN = 96,
  FRAME_PROBE = 97,
  FRAME_STATUS = 98,
  FRAME_GUEST = 99,
  FRAME_KILL = 100,
  FRAME_EGRESS = 101,
  FRAME_CONNECT = 102,
  FRAME_REFUSE = 103,
  FRAME_QUERY = 104,
  FRAME_ANSWER = 105,
  FRAME_SETTLE = 106,
  FRAME_REACH = 107,
  FRAME_DEPART = 108,

  FRAME_SOCKETS = 112,
  FRAME_SOCKET = 113,
  FRAME_DESCENT = 114,

  FRAME_DIAL = 120,

  FRAME_UNPACK_DIRECTORY = 144,
  FRAME_UNPACK_FILE = 145,
  FRAME_UNPACK_DATA = 146,
  FRAME_UNPACK_SYMLINK = 147,
  FRAME_UNPACK_LINK = 148,
  FRAME_UNPACK_FIFO = 149,
  FRAME_UNPACK_ATTRIBUTES = 150,
  FRAME_UNPACK_XATTR = 151,
  FRAME_UNPACK_TIMES = 152,
  FRAME_UNPACK_WHITEOUT = 153,
  FRAME_UNPACK_OPAQUE = 154,
  FRAME_UNPACK_FINISH = 155,

  FRAME_LAUNCH = 128,
  FRAME_LAUNCHED = 129,
  FRAME_CANCEL_LAUNCH = 130,
};

enum { ROLE_CONTROL = 1, ROLE_FILES = 2, ROLE_SOCKETS = 3 };

/* One frame inside a reader's buffer: valid until the reader is filled, pushed to or freed. */
struct frame {
  uint8_t type;
  uint32_t id;
  uint8_t *payload;
  uint32_t length;
};

/* Usable from a nonblocking loop: fill when readable, then take frames until there is none. Starts all zero. */
struct frame_reader {
  uint8_t *buffer;
  size_t capacity, start, end;
};

void frame_reader_free(struct frame_reader *reader);

/* One read(2) into the buffer: bytes read, 0 at end of stream, -1 with errno (EAGAIN, ENOMEM, EPROTO ...). */
ssize_t frame_reader_fill(struct frame_reader *reader, int fd);

/* The same with recvmsg(2): a descriptor that comes beside the bytes replaces the one in `descriptor`, as in handover.h. */
ssize_t frame_reader_receive(struct frame_reader *reader, int fd, int *descriptor);

/* The same from memory: 0, or -1 with errno. At most one whole frame fits beside what was not taken yet. */
int frame_reader_push(struct frame_reader *reader, const void *bytes, size_t length);

/* 1: `frame` is the next one; 0: more bytes are needed; -1: protocol error (errno EPROTO), close the connection. */
int frame_reader_next(struct frame_reader *reader, struct frame *frame);

/*
 * Reads fields off a payload. The first failure sticks: later reads yield zero or "". Check payload_done at the end:
 * it is 1 only when every field was there and no byte is left.
 */
struct payload {
  uint8_t *at, *end;
  int failed;
};

struct payload payload_of(const struct frame *frame);
uint8_t payload_u8(struct payload *payload);
uint16_t payload_u16(struct payload *payload);
uint32_t payload_u32(struct payload *payload);
uint64_t payload_u64(struct payload *payload);
int64_t payload_i64(struct payload *payload);
/* A C string inside the payload, ended in place (it moves one byte towards its length field): read it once only. */
char *payload_str(struct payload *payload);
/* The next `length` bytes, whatever they are; NULL when there are not so many. */
const uint8_t *payload_take(struct payload *payload, size_t length);
/* The rest of the payload. */
const uint8_t *payload_bytes(struct payload *payload, size_t *length);
int payload_done(const struct payload *payload);

/*
 * Frames waiting to be written. Starts all zero. A frame is made by frame_begin, put_*, frame_end; one that would be
 * too long, or that memory is missing for, sets `failed` and the connection must be closed.
 */
struct frame_writer {
  uint8_t *data;
  size_t capacity, start, end, frame;
  int failed;
};

void frame_writer_free(struct frame_writer *writer);
void frame_begin(struct frame_writer *writer, uint8_t type, uint32_t id);
void put_u8(struct frame_writer *writer, uint8_t value);
void put_u16(struct frame_writer *writer, uint16_t value);
void put_u32(struct frame_writer *writer, uint32_t value);
void put_u64(struct frame_writer *writer, uint64_t value);
void put_i64(struct frame_writer *writer, int64_t value);
void put_str(struct frame_writer *writer, const char *value);
void put_bytes(struct frame_writer *writer, const void *bytes, size_t length);
/* Room for `length` bytes at the end of the open frame, to read(2) into; NULL when failed. Commit with put_reserved. */
uint8_t *put_reserve(struct frame_writer *writer, size_t length);
void put_reserved(struct frame_writer *writer, size_t length);
void frame_end(struct frame_writer *writer);
/* The header of a frame whose payload goes to the connection by another way. */
void frame_header(struct frame_writer *writer, uint8_t type, uint32_t id, uint32_t length);
/* Drops the frame that was begun and not ended. */
void frame_cancel(struct frame_writer *writer);

void frame_ok(struct frame_writer *writer, uint32_t id);
/* ERROR with `message`, cut to 1 KiB. */
void frame_error(struct frame_writer *writer, uint32_t id, int error, const char *message);

size_t frame_writer_pending(const struct frame_writer *writer);
/* Writes what the descriptor takes: 1 when nothing is left, 0 when some is (blocked), -1 with errno. Never SIGPIPE. */
int frame_writer_flush(struct frame_writer *writer, int fd);

#endif
