#define _GNU_SOURCE
#include "frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handover.h"

enum {
  READER_BYTES_MIN = 4096,
  READER_BYTES_MAX = FRAME_PAYLOAD_BYTES_MAX + FRAME_HEADER_BYTES,
  WRITER_BYTES_MIN = 512,
  BUFFER_KEPT_BYTES_MAX = 64 * 1024, /* larger buffers go back to the system once they are empty */
  ERROR_MESSAGE_BYTES_MAX = 1024,
};

static uint32_t load32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void store32(uint8_t *p, uint32_t value) {
  for (int i = 0; i < 4; i++) p[i] = (uint8_t)(value >> (8 * i));
}

/* Reader */

void frame_reader_free(struct frame_reader *reader) {
  free(reader->buffer);
  memset(reader, 0, sizeof *reader);
}

/* The length of the frame at `start`, header included, 0 when its header is not there yet; -1 when not allowed. */
static ssize_t frame_bytes(const struct frame_reader *reader) {
  if (reader->end - reader->start < FRAME_HEADER_BYTES) return 0;
  const uint8_t *header = reader->buffer + reader->start;
  uint32_t length = load32(header);
  if (length > FRAME_PAYLOAD_BYTES_MAX || header[5] || header[6] || header[7]) {
    errno = EPROTO;
    return -1;
  }
  return (ssize_t)length + FRAME_HEADER_BYTES;
}

/* Moves what is left to the front and makes room for at least one more byte. */
static int reader_room(struct frame_reader *reader, size_t more) {
  size_t held = reader->end - reader->start;
  if (reader->start > 0) {
    if (held > 0) memmove(reader->buffer, reader->buffer + reader->start, held);
    reader->start = 0;
    reader->end = held;
  }
  ssize_t frame = frame_bytes(reader);
  if (frame < 0) return -1;
  size_t wanted = (size_t)frame > held + more ? (size_t)frame : held + more;
  if (wanted < READER_BYTES_MIN) wanted = READER_BYTES_MIN;
  if (wanted > READER_BYTES_MAX) {
    errno = ENOBUFS;
    return -1;
  }
  int too_large = reader->capacity > BUFFER_KEPT_BYTES_MAX && wanted <= READER_BYTES_MIN;
  if (wanted <= reader->capacity && !too_large) return 0;
  uint8_t *grown = realloc(reader->buffer, wanted);
  if (!grown) {
    errno = ENOMEM;
    return -1;
  }
  reader->buffer = grown;
  reader->capacity = wanted;
  return 0;
}

ssize_t frame_reader_fill(struct frame_reader *reader, int fd) {
  if (reader_room(reader, 1) < 0) return -1;
  ssize_t got;
  do got = read(fd, reader->buffer + reader->end, reader->capacity - reader->end);
  while (got < 0 && errno == EINTR);
  if (got > 0) reader->end += (size_t)got;
  return got;
}

ssize_t frame_reader_receive(struct frame_reader *reader, int fd, int *descriptor) {
  if (reader_room(reader, 1) < 0) return -1;
  ssize_t got;
  do got = receive_beside(fd, reader->buffer + reader->end, reader->capacity - reader->end, descriptor);
  while (got < 0 && errno == EINTR);
  if (got > 0) reader->end += (size_t)got;
  return got;
}

int frame_reader_push(struct frame_reader *reader, const void *bytes, size_t length) {
  if (length == 0) return 0;
  if (reader_room(reader, length) < 0) return -1;
  memcpy(reader->buffer + reader->end, bytes, length);
  reader->end += length;
  return 0;
}

int frame_reader_next(struct frame_reader *reader, struct frame *frame) {
  ssize_t bytes = frame_bytes(reader);
  if (bytes < 0) return -1;
  if (bytes == 0 || reader->end - reader->start < (size_t)bytes) return 0;
  uint8_t *header = reader->buffer + reader->start;
  frame->type = header[4];
  frame->id = load32(header + 8);
  frame->payload = header + FRAME_HEADER_BYTES;
  frame->length = (uint32_t)bytes - FRAME_HEADER_BYTES;
  reader->start += (size_t)bytes;
  return 1;
}

/* Payload cursor */

struct payload payload_of(const struct frame *frame) {
  return (struct payload){.at = frame->payload, .end = frame->payload + frame->length, .failed = 0};
}

const uint8_t *payload_take(struct payload *payload, size_t length) {
  if (payload->failed || (size_t)(payload->end - payload->at) < length) {
    payload->failed = 1;
    return NULL;
  }
  const uint8_t *at = payload->at;
  payload->at += length;
  return at;
}

static uint64_t take_integer(struct payload *payload, size_t length) {
  const uint8_t *at = payload_take(payload, length);
  uint64_t value = 0;
  for (size_t i = 0; at && i < length; i++) value |= (uint64_t)at[i] << (8 * i);
  return value;
}

uint8_t payload_u8(struct payload *payload) { return (uint8_t)take_integer(payload, 1); }
uint16_t payload_u16(struct payload *payload) { return (uint16_t)take_integer(payload, 2); }
uint32_t payload_u32(struct payload *payload) { return (uint32_t)take_integer(payload, 4); }
uint64_t payload_u64(struct payload *payload) { return take_integer(payload, 8); }
int64_t payload_i64(struct payload *payload) { return (int64_t)take_integer(payload, 8); }

char *payload_str(struct payload *payload) {
  static char empty[1];
  uint32_t length = payload_u32(payload);
  uint8_t *at = (uint8_t *)payload_take(payload, length);
  if (!at || memchr(at, 0, length)) {
    payload->failed = 1;
    empty[0] = 0;
    return empty;
  }
  memmove(at - 1, at, length);
  at[-1 + (ssize_t)length] = 0;
  return (char *)at - 1;
}

const uint8_t *payload_bytes(struct payload *payload, size_t *length) {
  *length = payload->failed ? 0 : (size_t)(payload->end - payload->at);
  const uint8_t *at = payload->at;
  payload->at = payload->end;
  return at;
}

int payload_done(const struct payload *payload) { return !payload->failed && payload->at == payload->end; }

/* Writer */

void frame_writer_free(struct frame_writer *writer) {
  free(writer->data);
  memset(writer, 0, sizeof *writer);
}

uint8_t *put_reserve(struct frame_writer *writer, size_t length) {
  if (writer->failed) return NULL;
  if (length > FRAME_PAYLOAD_BYTES_MAX + FRAME_HEADER_BYTES) {
    writer->failed = 1;
    return NULL;
  }
  if (writer->capacity - writer->end >= length) return writer->data + writer->end;
  if (writer->start > 0) {
    memmove(writer->data, writer->data + writer->start, writer->end - writer->start);
    writer->end -= writer->start;
    writer->frame -= writer->start;
    writer->start = 0;
    if (writer->capacity - writer->end >= length) return writer->data + writer->end;
  }
  size_t wanted = writer->capacity ? writer->capacity : WRITER_BYTES_MIN;
  while (wanted - writer->end < length) wanted *= 2;
  uint8_t *grown = realloc(writer->data, wanted);
  if (!grown) {
    writer->failed = 1;
    return NULL;
  }
  writer->data = grown;
  writer->capacity = wanted;
  return writer->data + writer->end;
}

void put_reserved(struct frame_writer *writer, size_t length) {
  if (!writer->failed) writer->end += length;
}

void put_bytes(struct frame_writer *writer, const void *bytes, size_t length) {
  uint8_t *to = put_reserve(writer, length);
  if (!to || length == 0) return;
  memcpy(to, bytes, length);
  writer->end += length;
}

static void put_integer(struct frame_writer *writer, uint64_t value, size_t length) {
  uint8_t bytes[8];
  for (size_t i = 0; i < length; i++) bytes[i] = (uint8_t)(value >> (8 * i));
  put_bytes(writer, bytes, length);
}

void put_u8(struct frame_writer *writer, uint8_t value) { put_integer(writer, value, 1); }
void put_u16(struct frame_writer *writer, uint16_t value) { put_integer(writer, value, 2); }
void put_u32(struct frame_writer *writer, uint32_t value) { put_integer(writer, value, 4); }
void put_u64(struct frame_writer *writer, uint64_t value) { put_integer(writer, value, 8); }
void put_i64(struct frame_writer *writer, int64_t value) { put_integer(writer, (uint64_t)value, 8); }

void put_str(struct frame_writer *writer, const char *value) {
  size_t length = strlen(value);
  if (length > FRAME_PAYLOAD_BYTES_MAX) {
    writer->failed = 1;
    return;
  }
  put_u32(writer, (uint32_t)length);
  put_bytes(writer, value, length);
}

void frame_begin(struct frame_writer *writer, uint8_t type, uint32_t id) {
  writer->frame = writer->end;
  uint8_t header[FRAME_HEADER_BYTES] = {[4] = type};
  store32(header + 8, id);
  put_bytes(writer, header, sizeof header);
}

void frame_header(struct frame_writer *writer, uint8_t type, uint32_t id, uint32_t length) {
  frame_begin(writer, type, id);
  if (!writer->failed) store32(writer->data + writer->frame, length);
}

void frame_end(struct frame_writer *writer) {
  if (writer->failed) return;
  size_t length = writer->end - writer->frame - FRAME_HEADER_BYTES;
  if (length > FRAME_PAYLOAD_BYTES_MAX) {
    writer->failed = 1;
    return;
  }
  store32(writer->data + writer->frame, (uint32_t)length);
}

void frame_cancel(struct frame_writer *writer) {
  if (!writer->failed) writer->end = writer->frame;
}

void frame_ok(struct frame_writer *writer, uint32_t id) {
  frame_begin(writer, FRAME_OK, id);
  frame_end(writer);
}

void frame_error(struct frame_writer *writer, uint32_t id, int error, const char *message) {
  size_t length = strlen(message);
  if (length > ERROR_MESSAGE_BYTES_MAX) length = ERROR_MESSAGE_BYTES_MAX;
  frame_begin(writer, FRAME_ERROR, id);
  put_u32(writer, (uint32_t)error);
  put_u32(writer, (uint32_t)length);
  put_bytes(writer, message, length);
  frame_end(writer);
}

size_t frame_writer_pending(const struct frame_writer *writer) { return writer->end - writer->start; }

int frame_writer_flush(struct frame_writer *writer, int fd) {
  if (writer->failed) {
    errno = ENOBUFS;
    return -1;
  }
  while (writer->start < writer->end) {
    ssize_t sent = send(fd, writer->data + writer->start, writer->end - writer->start, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return errno == EAGAIN ? 0 : -1;
    writer->start += (size_t)sent;
  }
  writer->start = writer->end = writer->frame = 0;
  if (writer->capacity > BUFFER_KEPT_BYTES_MAX) {
    free(writer->data);
    writer->data = NULL;
    writer->capacity = 0;
  }
  return 1;
}
