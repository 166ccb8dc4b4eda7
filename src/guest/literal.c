/* Looking for literals: sixteen places at once for two of their bytes, and a closer look where both stand. */
#ifndef __clang__
#pragma GCC optimize("O3")
#endif
#include <stdlib.h>
#include <string.h>

#include "pattern.h"

enum { LANES = 16, BLOCKS = 4 };

typedef uint8_t lanes __attribute__((vector_size(LANES)));
typedef uint64_t halves __attribute__((vector_size(LANES)));

/* Of source code and prose, the most frequent first. What is missing here is rare. */
static const char frequent[] = " etaoinsrlcdupmhgf\n_.,bv()y;=x\"'w-/0:1>{}k[]$#*2TESAIRCLNOD<P3MFUj4GB5VHqz";

static unsigned rarity(uint8_t byte, uint8_t mask) {
  const char *at = byte ? strchr(frequent, byte) : NULL;
  unsigned own = at ? (unsigned)(at - frequent) : (unsigned)sizeof frequent;
  if (!mask) return own;
  const char *upper = strchr(frequent, byte & ~mask);
  unsigned other = upper ? (unsigned)(upper - frequent) : (unsigned)sizeof frequent;
  return own < other ? own : other;
}

static void choose(struct literal *literal) {
  literal->rare = literal->rarer = 0;
  for (uint32_t i = 1; i < literal->length; i++)
    if (rarity(literal->bytes[i], literal->masks[i]) > rarity(literal->bytes[literal->rarer], literal->masks[literal->rarer]))
      literal->rarer = i;
  unsigned best = 0;
  literal->rare = literal->rarer;
  for (uint32_t i = 0; i < literal->length; i++) {
    unsigned own = rarity(literal->bytes[i], literal->masks[i]) + 1;
    if (i == literal->rarer || own <= best) continue;
    best = own;
    literal->rare = i;
  }
}

int literals_decode(struct payload *payload, struct literals *literals) {
  literals->count = payload_u32(payload);
  if (literals->count > PATTERN_LITERALS_MAX) return -1;
  for (uint32_t i = 0; i < literals->count; i++) {
    struct literal *literal = &literals->items[i];
    literal->length = payload_u32(payload);
    literal->bytes = payload_take(payload, literal->length);
    literal->masks = payload_take(payload, literal->length);
    if (!literal->bytes || !literal->masks || literal->length == 0) return -1;
    choose(literal);
  }
  return 0;
}

static int stands(const struct literal *literal, const uint8_t *at) {
  for (uint32_t i = 0; i < literal->length; i++)
    if ((at[i] | literal->masks[i]) != literal->bytes[i]) return 0;
  return 1;
}

static lanes load(const uint8_t *at) {
  lanes value;
  memcpy(&value, at, sizeof value);
  return value;
}

static lanes all(uint8_t byte) {
  lanes value = {0};
  return value + byte;
}

static int any(lanes value) {
  halves both = (halves)value;
  return (both[0] | both[1]) != 0;
}

static const uint8_t *find_one(const struct literal *literal, const uint8_t *from, const uint8_t *end) {
  if ((size_t)(end - from) < literal->length) return NULL;
  const uint8_t *last = end - literal->length; /* the last place where it fits */
  const lanes first_byte = all(literal->bytes[literal->rarer]), first_mask = all(literal->masks[literal->rarer]);
  const lanes second_byte = all(literal->bytes[literal->rare]), second_mask = all(literal->masks[literal->rare]);
  const uint8_t *at = from;
  while (last - at >= LANES * BLOCKS) {
    lanes hit[BLOCKS];
    for (int block = 0; block < BLOCKS; block++) {
      lanes first = load(at + block * LANES + literal->rarer) | first_mask;
      lanes second = load(at + block * LANES + literal->rare) | second_mask;
      hit[block] = (lanes)(first == first_byte) & (lanes)(second == second_byte);
    }
    if (!any(hit[0] | hit[1] | hit[2] | hit[3])) {
      at += LANES * BLOCKS;
      continue;
    }
    for (int block = 0; block < BLOCKS; block++, at += LANES) {
      if (!any(hit[block])) continue;
      for (int lane = 0; lane < LANES; lane++)
        if (hit[block][lane] && stands(literal, at + lane)) return at + lane;
    }
  }
  uint8_t byte = literal->bytes[literal->rarer], mask = literal->masks[literal->rarer];
  for (; at <= last; at++)
    if ((at[literal->rarer] | mask) == byte && stands(literal, at)) return at;
  return NULL;
}

enum { STRETCH_BYTES = 4096 };

const uint8_t *literals_find(const struct literals *literals, const uint8_t *from, const uint8_t *end,
                             const struct literal **which) {
  *which = &literals->items[0];
  if (literals->count == 1) return find_one(&literals->items[0], from, end);
  /* Stretch by stretch, so that the text is in the cache for all of them and none looks far behind another's find. */
  while (from < end) {
    const uint8_t *found = NULL;
    for (uint32_t i = 0; i < literals->count; i++) {
      const struct literal *literal = &literals->items[i];
      size_t room = (size_t)(end - from), wanted = (size_t)STRETCH_BYTES + literal->length - 1;
      const uint8_t *at = find_one(literal, from, from + (wanted < room ? wanted : room));
      if (!at || (found && at >= found)) continue;
      found = at;
      *which = literal;
    }
    if (found) return found;
    from += end - from < STRETCH_BYTES ? end - from : STRETCH_BYTES;
  }
  return NULL;
}
