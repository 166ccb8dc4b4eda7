/* The dialler (docs/guest-protocol.md): the one part of the helper that reaches what is outside. */
#ifndef HUTCH_DIAL_H
#define HUTCH_DIAL_H

#include <stddef.h>
#include <stdint.h>

#include "frame.h"

enum { DIAL_PREAMBLE_BYTES_MAX = 4096 };

/* The strings and bytes stay inside the frame's payload. */
struct dial_request {
  uint32_t connection;
  uint16_t port; /* 0: `target` is a path */
  const char *mailbox, *target;
  const uint8_t *preamble;
  size_t preamble_length;
};

/* 0, or -1 when the frame is none or not well formed. */
int dial_decode(const struct frame *frame, struct dial_request *request);

/* Role `dial`: serves whoever connects to `path` first, in the present directory, until that connection closes. */
int dial_main(const char *path);

#endif
