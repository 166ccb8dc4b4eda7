#ifndef __clang__
#pragma GCC optimize("O2")
#endif
#include "pattern.h"

#include <stdlib.h>
#include <string.h>

enum { OP_MATCH, OP_BYTES, OP_SPLIT, OP_ASSERT };
enum { ASSERT_START, ASSERT_END, ASSERT_WORD, ASSERT_NO_WORD };

enum {
  INSTRUCTION_BYTES = 8,
  CACHE_WORDS = 512 << 10, /* of a matcher's table and states together, 4 bytes each */
  STATES_MAX = 16384,
  HASH_SLOTS = 2 * STATES_MAX,
};

/* Decoding */

static void find_classes(struct pattern *pattern) {
  uint8_t starts[257] = {[0] = 1, ['\n'] = 1, ['\n' + 1] = 1};
  for (uint32_t i = 0; i < pattern->count; i++) {
    const struct instruction *one = &pattern->code[i];
    if (one->op != OP_BYTES) continue;
    starts[one->low] = 1;
    starts[one->high + 1] = 1;
  }
  if (pattern->uses_word) {
    static const char edges[] = {'0', '9' + 1, 'A', 'Z' + 1, '_', '_' + 1, 'a', 'z' + 1};
    for (size_t i = 0; i < sizeof edges; i++) starts[(uint8_t)edges[i]] = 1;
  }
  uint32_t class = 0;
  for (int byte = 0; byte < 256; byte++) {
    if (starts[byte] && byte > 0) class++;
    if (starts[byte]) pattern->representative[class] = (uint8_t)byte;
    pattern->class_of[byte] = (uint8_t)class;
  }
  pattern->class_count = class + 1;
}

static int read_instruction(const uint8_t *at, uint32_t count, struct instruction *to) {
  *to = (struct instruction){at[0], at[1], at[2], (uint16_t)(at[4] | at[5] << 8), (uint16_t)(at[6] | at[7] << 8)};
  if (at[3] || to->op > OP_ASSERT) return -1;
  if (to->op == OP_ASSERT && to->low > ASSERT_NO_WORD) return -1;
  if (to->op == OP_BYTES && to->low > to->high) return -1;
  if (to->op != OP_MATCH && to->out >= count) return -1;
  return to->op == OP_SPLIT && to->alt >= count ? -1 : 0;
}

int pattern_decode(struct payload *payload, struct pattern *pattern) {
  memset(pattern, 0, sizeof *pattern);
  pattern->start = payload_u16(payload);
  pattern->count = payload_u32(payload);
  if (pattern->count == 0) return pattern->start == 0 ? 0 : -1;
  if (pattern->count > PATTERN_INSTRUCTIONS_MAX || pattern->start >= pattern->count) return -1;
  const uint8_t *at = payload_take(payload, (size_t)pattern->count * INSTRUCTION_BYTES);
  if (!at) return -1;
  pattern->code = malloc(pattern->count * sizeof *pattern->code);
  if (!pattern->code) return -1;
  for (uint32_t i = 0; i < pattern->count; i++, at += INSTRUCTION_BYTES) {
    if (read_instruction(at, pattern->count, &pattern->code[i]) < 0) {
      pattern_free(pattern);
      return -1;
    }
    if (pattern->code[i].op != OP_ASSERT) continue;
    if (pattern->code[i].low == ASSERT_START) pattern->uses_start = 1;
    if (pattern->code[i].low >= ASSERT_WORD) pattern->uses_word = 1;
  }
  find_classes(pattern);
  return 1;
}

void pattern_free(struct pattern *pattern) {
  free(pattern->code);
  memset(pattern, 0, sizeof *pattern);
}

static int is_word(uint8_t byte) {
  uint8_t lower = byte | 0x20;
  return (byte >= '0' && byte <= '9') || byte == '_' || (lower >= 'a' && lower <= 'z');
}

/* Sets of instructions, in the order in which they were added */

struct set {
  uint32_t count;
  uint16_t *dense, *sparse;
};

static int set_has(const struct set *set, uint16_t item) {
  return set->sparse[item] < set->count && set->dense[set->sparse[item]] == item;
}

static void set_add(struct set *set, uint16_t item) {
  set->sparse[item] = (uint16_t)set->count;
  set->dense[set->count++] = item;
}

/* What is known of a place in the text. */
struct place {
  uint8_t known; /* 0: assertions stay in the set, to be decided at the next byte */
  uint8_t start, end, word_before, word_after;
};

static int holds(uint8_t assertion, const struct place *place) {
  switch (assertion) {
    case ASSERT_START:
      return place->start;
    case ASSERT_END:
      return place->end;
  }
  return (place->word_before != place->word_after) == (assertion == ASSERT_WORD);
}

/* Adds all that is reached from `from` without a byte. The stack has room for two entries an instruction. */
static void close_over(const struct pattern *pattern, struct set *set, uint16_t *stack, uint16_t from,
                       const struct place *place) {
  size_t depth = 0;
  stack[depth++] = from;
  while (depth > 0) {
    uint16_t at = stack[--depth];
    if (set_has(set, at)) continue;
    set_add(set, at);
    const struct instruction *one = &pattern->code[at];
    if (one->op == OP_SPLIT) {
      stack[depth++] = one->alt;
      stack[depth++] = one->out;
    } else if (one->op == OP_ASSERT && place->known && holds(one->low, place)) {
      stack[depth++] = one->out;
    }
  }
}

/* The deterministic automaton */

/* Values of the table; a state is its row's offset, and the first row starts at STATE_FIRST or later. */
enum { STATE_UNKNOWN, STATE_MATCH_BEFORE, STATE_MATCH_AFTER, STATE_FIRST };

enum { FLAG_START = 1, FLAG_WORD = 2 };

struct state {
  uint32_t row, items, count; /* its row in the table; its instructions in `items` */
  uint8_t flags;
};

struct matcher {
  const struct pattern *pattern;
  int lines;
  uint32_t stride, rows_from;
  uint32_t *table;
  uint16_t *items;
  uint32_t table_used, items_used, table_max, items_max;
  struct state states[STATES_MAX];
  uint32_t state_count;
  uint16_t slots[HASH_SLOTS]; /* state + 1 */
  uint32_t first;             /* the row that a search starts in, 0: not made yet */
  struct set now, then;
  uint16_t *stack, *kept;
};

static int set_new(struct set *set, uint32_t count) {
  set->count = 0;
  set->dense = malloc(count * sizeof *set->dense);
  /* Read before it is written, by design; what is there does not matter. */
  set->sparse = calloc(count, sizeof *set->sparse);
  return set->dense && set->sparse ? 0 : -1;
}

static void set_free(struct set *set) {
  free(set->dense);
  free(set->sparse);
}

static void forget_states(struct matcher *matcher) {
  matcher->state_count = 0;
  matcher->items_used = 0;
  matcher->table_used = matcher->rows_from;
  matcher->first = 0;
  memset(matcher->slots, 0, sizeof matcher->slots);
}

struct matcher *matcher_new(const struct pattern *pattern, int lines) {
  struct matcher *matcher = calloc(1, sizeof *matcher);
  if (!matcher) return NULL;
  matcher->pattern = pattern;
  matcher->lines = lines;
  matcher->stride = pattern->class_count + 1; /* and the end of the text */
  matcher->rows_from = STATE_FIRST;
  matcher->table_max = CACHE_WORDS;
  matcher->items_max = CACHE_WORDS;
  matcher->table = malloc(matcher->table_max * sizeof *matcher->table);
  matcher->items = malloc(matcher->items_max * sizeof *matcher->items);
  matcher->stack = malloc((2 * pattern->count + 1) * sizeof *matcher->stack);
  matcher->kept = malloc(pattern->count * sizeof *matcher->kept);
  int sets = set_new(&matcher->now, pattern->count) == 0 && set_new(&matcher->then, pattern->count) == 0;
  if (!sets || !matcher->table || !matcher->items || !matcher->stack || !matcher->kept) {
    matcher_free(matcher);
    return NULL;
  }
  forget_states(matcher);
  return matcher;
}

void matcher_free(struct matcher *matcher) {
  if (!matcher) return;
  set_free(&matcher->now);
  set_free(&matcher->then);
  free(matcher->table);
  free(matcher->items);
  free(matcher->stack);
  free(matcher->kept);
  free(matcher);
}

static uint32_t hash_of(const uint16_t *items, uint32_t count, uint8_t flags) {
  uint32_t hash = 2166136261U ^ flags;
  for (uint32_t i = 0; i < count; i++) hash = (hash ^ items[i]) * 16777619U;
  return hash ^ hash >> 15;
}

/* The state of the instructions in `then`; a new one may cost all that there were. */
static struct state *state_of(struct matcher *matcher, uint8_t flags) {
  const struct set *set = &matcher->then;
  uint32_t count = 0;
  for (uint32_t i = 0; i < set->count; i++)
    if (matcher->pattern->code[set->dense[i]].op != OP_SPLIT) matcher->kept[count++] = set->dense[i];
  uint32_t slot = hash_of(matcher->kept, count, flags) % HASH_SLOTS;
  for (; matcher->slots[slot]; slot = (slot + 1) % HASH_SLOTS) {
    struct state *state = &matcher->states[matcher->slots[slot] - 1];
    if (state->flags == flags && state->count == count &&
        memcmp(matcher->items + state->items, matcher->kept, count * sizeof *matcher->kept) == 0)
      return state;
  }
  if (matcher->state_count == STATES_MAX || matcher->table_used + matcher->stride > matcher->table_max ||
      matcher->items_used + count > matcher->items_max) {
    forget_states(matcher);
    slot = hash_of(matcher->kept, count, flags) % HASH_SLOTS;
  }
  struct state *state = &matcher->states[matcher->state_count++];
  *state = (struct state){.row = matcher->table_used, .items = matcher->items_used, .count = count, .flags = flags};
  memcpy(matcher->items + state->items, matcher->kept, count * sizeof *matcher->kept);
  memset(matcher->table + state->row, 0, matcher->stride * sizeof *matcher->table);
  matcher->items_used += count;
  matcher->table_used += matcher->stride;
  matcher->slots[slot] = (uint16_t)matcher->state_count;
  return state;
}

static int has_match(const struct matcher *matcher, const struct set *set) {
  for (uint32_t i = 0; i < set->count; i++)
    if (matcher->pattern->code[set->dense[i]].op == OP_MATCH) return 1;
  return 0;
}

static const struct place undecided = {0};

static struct state *first_state(struct matcher *matcher) {
  matcher->then.count = 0;
  close_over(matcher->pattern, &matcher->then, matcher->stack, matcher->pattern->start, &undecided);
  uint8_t flags = matcher->pattern->uses_start ? FLAG_START : 0;
  return state_of(matcher, flags);
}

/* Where the byte class `class` (or the end) leads from the state with this row. */
static uint32_t step(struct matcher *matcher, uint32_t row, uint32_t class) {
  const struct pattern *pattern = matcher->pattern;
  struct state *state = &matcher->states[(row - matcher->rows_from) / matcher->stride];
  int at_end = class == pattern->class_count;
  uint8_t byte = at_end ? 0 : pattern->representative[class];
  int line_end = !at_end && matcher->lines && byte == '\n';
  int word = !at_end && is_word(byte);
  struct place place = {.known = 1,
                        .start = (state->flags & FLAG_START) != 0,
                        .end = (uint8_t)(at_end || line_end),
                        .word_before = (state->flags & FLAG_WORD) != 0,
                        .word_after = (uint8_t)word};
  matcher->now.count = 0;
  for (uint32_t i = 0; i < state->count; i++)
    close_over(pattern, &matcher->now, matcher->stack, matcher->items[state->items + i], &place);
  uint32_t result;
  if (has_match(matcher, &matcher->now)) {
    result = STATE_MATCH_BEFORE;
  } else if (at_end) {
    return matcher->table[row + class] = STATE_MATCH_AFTER; /* read as "no match" at the end */
  } else {
    matcher->then.count = 0;
    for (uint32_t i = 0; i < matcher->now.count; i++) {
      const struct instruction *one = &pattern->code[matcher->now.dense[i]];
      if (one->op == OP_BYTES && byte >= one->low && byte <= one->high)
        close_over(pattern, &matcher->then, matcher->stack, one->out, &undecided);
    }
    if (has_match(matcher, &matcher->then)) {
      result = STATE_MATCH_AFTER;
    } else {
      close_over(pattern, &matcher->then, matcher->stack, pattern->start, &undecided);
      uint8_t flags = (uint8_t)((pattern->uses_start && line_end ? FLAG_START : 0) |
                                (pattern->uses_word && word ? FLAG_WORD : 0));
      uint32_t before = matcher->state_count;
      struct state *next = state_of(matcher, flags);
      /* All were forgotten for it: there is no row left to note it in. */
      if (matcher->state_count < before) return next->row;
      result = next->row;
    }
  }
  return matcher->table[row + class] = result;
}

const uint8_t *matcher_find(struct matcher *matcher, const uint8_t *from, const uint8_t *end) {
  if (matcher->first == 0) matcher->first = first_state(matcher)->row;
  const uint8_t *class_of = matcher->pattern->class_of;
  const uint32_t *table = matcher->table;
  uint32_t row = matcher->first;
  for (const uint8_t *at = from; at < end; at++) {
    uint32_t next = table[row + class_of[*at]];
    if (next < STATE_FIRST) {
      if (next == STATE_UNKNOWN) next = step(matcher, row, class_of[*at]);
      if (next == STATE_MATCH_BEFORE) return at;
      if (next == STATE_MATCH_AFTER) return at + 1;
    }
    row = next;
  }
  uint32_t last = table[row + matcher->pattern->class_count];
  if (last == STATE_UNKNOWN) last = step(matcher, row, matcher->pattern->class_count);
  return last == STATE_MATCH_BEFORE ? end : NULL;
}

/* Where in a line: all threads at once, those that started earlier first */

struct threads {
  struct set set;
  uint32_t *starts; /* by place in the set */
};

static void threads_add(const struct pattern *pattern, struct threads *threads, uint16_t *stack, uint16_t from,
                        uint32_t start, const struct place *place) {
  uint32_t before = threads->set.count;
  close_over(pattern, &threads->set, stack, from, place);
  for (uint32_t i = before; i < threads->set.count; i++) threads->starts[i] = start;
}

int pattern_locate(const struct pattern *pattern, const uint8_t *line, size_t length, size_t *start, size_t *end) {
  struct threads threads[2] = {0};
  uint16_t *stack = malloc((2 * pattern->count + 1) * sizeof *stack);
  int result = stack ? 0 : -1;
  for (int i = 0; i < 2; i++) {
    threads[i].starts = malloc(pattern->count * sizeof *threads[i].starts);
    if (set_new(&threads[i].set, pattern->count) < 0 || !threads[i].starts) result = -1;
  }
  struct threads *now = &threads[0], *then = &threads[1];
  /* `now` holds where threads go on from; they are closed over once it is known what stands behind. */
  for (size_t at = 0; result >= 0 && at <= length; at++) {
    struct place place = {.known = 1,
                          .start = at == 0,
                          .end = at == length,
                          .word_before = at > 0 && is_word(line[at - 1]),
                          .word_after = at < length && is_word(line[at])};
    then->set.count = 0;
    for (uint32_t i = 0; i < now->set.count; i++)
      threads_add(pattern, then, stack, now->set.dense[i], now->starts[i], &place);
    if (result == 0) threads_add(pattern, then, stack, pattern->start, (uint32_t)at, &place);
    now->set.count = 0;
    for (uint32_t i = 0; i < then->set.count; i++) {
      const struct instruction *one = &pattern->code[then->set.dense[i]];
      if (one->op == OP_MATCH) {
        *start = then->starts[i];
        *end = at;
        result = 1;
        break;
      }
      if (one->op != OP_BYTES || at == length || line[at] < one->low || line[at] > one->high) continue;
      if (set_has(&now->set, one->out)) continue;
      now->starts[now->set.count] = then->starts[i];
      set_add(&now->set, one->out);
    }
    if (result == 1 && now->set.count == 0) break;
  }
  for (int i = 0; i < 2; i++) {
    set_free(&threads[i].set);
    free(threads[i].starts);
  }
  free(stack);
  return result;
}
