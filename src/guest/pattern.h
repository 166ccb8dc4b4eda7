/* Patterns compiled by the host (docs/guest-protocol.md): their automaton, run lazily as a deterministic one. */
#ifndef HUTCH_PATTERN_H
#define HUTCH_PATTERN_H

#include <stddef.h>
#include <stdint.h>

#include "frame.h"

enum {
  PATTERN_INSTRUCTIONS_MAX = 16384,
  PATTERN_LITERALS_MAX = 8,
};

struct instruction {
  uint8_t op, low, high;
  uint16_t out, alt;
};

/* Shared by the threads that run it; all of it is freed by pattern_free. */
struct pattern {
  struct instruction *code;
  uint32_t count;
  uint16_t start;
  uint8_t uses_start, uses_word; /* assertions that states have to remember something for */
  uint8_t class_of[256];         /* bytes that no instruction tells apart */
  uint8_t representative[256];
  uint32_t class_count;
};

/* u16 start, u32 count, count instructions. 1, 0 when the count is 0, -1 when it is malformed or memory is missing. */
int pattern_decode(struct payload *payload, struct pattern *pattern);
void pattern_free(struct pattern *pattern);

/* What one thread remembers of a pattern's states: bounded, and thrown away when full. */
struct matcher;

/* lines: a line end in the text is an end and a start. */
struct matcher *matcher_new(const struct pattern *pattern, int lines);
void matcher_free(struct matcher *matcher);

/* Where the match that ends first ends; NULL when there is none. `from` is taken for the start of a line. */
const uint8_t *matcher_find(struct matcher *matcher, const uint8_t *from, const uint8_t *end);

/* The leftmost match in a line, by the pattern's preferences: 1, 0 when there is none, -1 when memory is missing. */
int pattern_locate(const struct pattern *pattern, const uint8_t *line, size_t length, size_t *start, size_t *end);

/* Literals: where the mask of a byte is 0x20, it stands for a letter in both cases. */
struct literal {
  const uint8_t *bytes, *masks;
  uint32_t length, rare, rarer; /* offsets of the two bytes that are looked for */
};

struct literals {
  struct literal items[PATTERN_LITERALS_MAX];
  uint32_t count;
};

/* u32 count, then each as u32 length, bytes, masks. They stay in the payload. 0, or -1. */
int literals_decode(struct payload *payload, struct literals *literals);

/* The first place where one of them stands, and which; NULL when there is none. */
const uint8_t *literals_find(const struct literals *literals, const uint8_t *from, const uint8_t *end,
                             const struct literal **which);

#endif
