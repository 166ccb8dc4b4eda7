/* SEARCH: the lines of one file that match. */
#define _GNU_SOURCE
#ifndef __clang__
#pragma GCC optimize("O2")
#endif
#include "search.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files.h"

enum {
  BUFFER_BYTES_MAX = 2 << 20, /* longer lines are searched in pieces */
  PIECE_OVERLAP_BYTES = 4 << 10,
  MATCHES_BYTES = 64 << 10, /* a MATCHES frame is sent once it is this long */
  CANCEL_FILES = 64,
};

/* Of the file that is being searched. */
struct text {
  int fd;
  const char *dir, *name;
  size_t have;         /* bytes in the buffer */
  uint64_t offset;     /* of the buffer's first byte in the file */
  uint64_t line;       /* number of the line that `counted` is in */
  size_t counted;      /* up to where in the buffer line ends are counted */
  int checked;         /* this buffer is known to be text */
  int continues;       /* the buffer begins within a line */
  int reported;        /* the line that it begins within was reported */
};

/* Results */

int search_flush(struct searcher *searcher) {
  struct frame_writer *writer = &worker.writer;
  if (searcher->in_frame == 0) return 0;
  if (!writer->failed) {
    uint8_t *at = writer->data + writer->frame + FRAME_HEADER_BYTES;
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(searcher->in_frame >> (8 * i));
  }
  frame_end(writer);
  searcher->in_frame = 0;
  shared_lock(&searcher->shared->writing);
  int result = worker_flush();
  shared_unlock(&searcher->shared->writing);
  if (result < 0) {
    searcher->shared->broken = 1;
    searcher->shared->stop = 1;
  }
  return result;
}

static uint64_t count_line_ends(const uint8_t *from, const uint8_t *end) {
  uint64_t count = 0;
  for (; from < end; from++) count += *from == '\n';
  return count;
}

static size_t without_return(const uint8_t *line, size_t length) {
  return length > 0 && line[length - 1] == '\r' ? length - 1 : length;
}

static void put_sized(struct frame_writer *writer, const uint8_t *bytes, size_t length) {
  put_u32(writer, (uint32_t)length);
  put_bytes(writer, bytes, length);
}

/*
 * At most `lines` whole lines before `offset`, which is the start of a line, each with its line end: they, the line
 * and what comes after it are the file's text as it stands.
 */
static size_t context_before(struct searcher *searcher, int fd, uint64_t offset, uint32_t lines, const uint8_t **start) {
  uint8_t *buffer = searcher->context[0];
  size_t wanted = offset < TEXT_BYTES_MAX ? (size_t)offset : TEXT_BYTES_MAX, from = wanted;
  if (lines == 0 || wanted == 0) return 0;
  ssize_t got = pread(fd, buffer, wanted, (off_t)(offset - wanted));
  if (got != (ssize_t)wanted || buffer[wanted - 1] != '\n') return 0;
  for (uint32_t count = 0; count < lines && from > 0; count++) {
    const uint8_t *line_end = memrchr(buffer, '\n', from - 1);
    if (!line_end && wanted < offset) break; /* a line that is cut off is left out */
    from = line_end ? (size_t)(line_end - buffer) + 1 : 0;
  }
  *start = buffer + from;
  return wanted - from;
}

/* At most `lines` lines behind `offset`, which is the end of a line, each with the line end before it. */
static size_t context_after(struct searcher *searcher, int fd, uint64_t offset, uint32_t lines) {
  uint8_t *buffer = searcher->context[1];
  ssize_t got = lines > 0 ? pread(fd, buffer, TEXT_BYTES_MAX, (off_t)offset) : 0;
  if (got <= 1 || buffer[0] != '\n') return 0;
  size_t end = 0;
  for (uint32_t count = 0; count < lines && end + 1 < (size_t)got; count++) {
    const uint8_t *line_end = memchr(buffer + end + 1, '\n', (size_t)got - end - 1);
    if (!line_end && got == TEXT_BYTES_MAX) break;
    end = line_end ? (size_t)(line_end - buffer) : (size_t)got;
  }
  return end;
}

static void put_match(struct searcher *searcher, struct text *text, const uint8_t *line, size_t length, size_t column,
                      size_t match_length) {
  struct frame_writer *writer = &worker.writer;
  const struct tree_request *request = searcher->request;
  char path[PATH_MAX];
  if (tree_join(path, text->dir, text->name) < 0) return;
  if (atomic_fetch_add(&searcher->shared->results, 1) >= request->results_max) {
    searcher->shared->truncated = 1;
    searcher->shared->stop = 1;
    return;
  }
  const uint8_t *before = NULL;
  uint64_t offset = text->offset + (uint64_t)(line - searcher->buffer);
  size_t before_length = context_before(searcher, text->fd, offset, request->context_before, &before);
  size_t after_length = context_after(searcher, text->fd, offset + length, request->context_after);
  size_t shown = without_return(line, length);
  if (shown > TEXT_BYTES_MAX) shown = TEXT_BYTES_MAX;
  if (searcher->in_frame == 0) {
    frame_begin(writer, FRAME_MATCHES, request->id);
    put_u32(writer, 0);
  }
  put_str(writer, path);
  put_u64(writer, text->line);
  put_u32(writer, (uint32_t)column);
  put_u32(writer, (uint32_t)match_length);
  put_sized(writer, line, shown);
  put_sized(writer, before, before_length);
  put_sized(writer, searcher->context[1], after_length);
  searcher->in_frame++;
  if (writer->end - writer->frame > MATCHES_BYTES) search_flush(searcher);
}

/* Searching one file */

/* 0, or -1: no more of this file. `hit` is where an exact literal stands. */
static int report(struct searcher *searcher, struct text *text, const uint8_t *line, const uint8_t *line_end,
                  const uint8_t *hit) {
  const struct tree_request *request = searcher->request;
  if (!text->checked && !(request->flags & TREE_BINARY) && memchr(searcher->buffer, 0, text->have)) return -1;
  text->checked = 1;
  if (line == searcher->buffer && text->continues && text->reported) return 0;
  text->line += count_line_ends(searcher->buffer + text->counted, line);
  text->counted = (size_t)(line - searcher->buffer);
  size_t length = (size_t)(line_end - line), start = 0, end = 0;
  if (hit) {
    start = (size_t)(hit - line);
    end = start + request->literals.items[0].length;
  } else if (pattern_locate(&request->lines, line, length, &start, &end) < 1) {
    start = end = 0;
  }
  put_match(searcher, text, line, length, start, end - start);
  return searcher->shared->stop ? -1 : 0;
}

/* The next line in [from, end) with a match: its start, NULL when there is none. */
static const uint8_t *next_line(struct searcher *searcher, const uint8_t *from, const uint8_t *end,
                                const uint8_t **line_end, const uint8_t **hit) {
  const struct tree_request *request = searcher->request;
  int exact = request->flags & TREE_EXACT;
  while (from < end) {
    const struct literal *which;
    const uint8_t *at = request->literals.count > 0 ? literals_find(&request->literals, from, end, &which)
                                                    : matcher_find(searcher->lines, from, end);
    if (!at) return NULL;
    const uint8_t *before = memrchr(from, '\n', (size_t)(at - from));
    const uint8_t *line = before ? before + 1 : from;
    const uint8_t *after = memchr(at, '\n', (size_t)(end - at));
    /* Behind the last line end is no line. */
    if (line == end) return NULL;
    *line_end = after ? after : end;
    *hit = exact ? at : NULL;
    if (exact || request->literals.count == 0 || matcher_find(searcher->lines, line, *line_end)) return line;
    from = *line_end + 1;
  }
  return NULL;
}

static int search_lines(struct searcher *searcher, struct text *text, size_t length) {
  const uint8_t *from = searcher->buffer, *end = from + length, *line_end, *hit;
  while (from < end) {
    const uint8_t *line = next_line(searcher, from, end, &line_end, &hit);
    if (!line) return 0;
    if (report(searcher, text, line, line_end, hit) < 0) return -1;
    if (line_end == end) text->reported = 1;
    from = line_end + 1;
  }
  return 0;
}

/* Drops the first `length` bytes of the buffer. */
static void advance(struct searcher *searcher, struct text *text, size_t length) {
  if (text->counted < length) {
    text->line += count_line_ends(searcher->buffer + text->counted, searcher->buffer + length);
    text->counted = length;
  }
  text->counted -= length;
  memmove(searcher->buffer, searcher->buffer + length, text->have - length);
  text->have -= length;
  text->offset += length;
  text->checked = 0;
}

static int grow(struct searcher *searcher) {
  if (searcher->capacity >= BUFFER_BYTES_MAX) return -1;
  uint8_t *grown = realloc(searcher->buffer, 2 * searcher->capacity);
  if (!grown) return -1;
  searcher->buffer = grown;
  searcher->capacity *= 2;
  return 0;
}

static void search_text(struct searcher *searcher, struct text *text) {
  struct shared *shared = searcher->shared;
  for (;;) {
    size_t wanted = searcher->capacity - text->have;
    ssize_t got = read(text->fd, searcher->buffer + text->have, wanted);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      shared->skipped++;
      return;
    }
    text->have += (size_t)got;
    shared->bytes += (unsigned long long)got;
    if (got == 0 || ((size_t)got < wanted && !searcher->root->synthetic)) {
      search_lines(searcher, text, text->have);
      return;
    }
    if (shared->stop) return;
    const uint8_t *last = memrchr(searcher->buffer, '\n', text->have);
    size_t whole = last ? (size_t)(last - searcher->buffer) + 1 : 0;
    if (whole == 0 && text->have == searcher->capacity) {
      if (grow(searcher) == 0) continue;
      if (search_lines(searcher, text, text->have) < 0) return;
      text->continues = 1;
      advance(searcher, text, text->have - PIECE_OVERLAP_BYTES);
      continue;
    }
    if (whole == 0) continue;
    if (search_lines(searcher, text, whole) < 0) return;
    advance(searcher, text, whole);
    text->continues = text->reported = 0;
  }
}

/* Without a note of it in the file system, which would have to be written, where that is allowed. */
static int open_text(struct searcher *searcher, int dir_fd, const char *open_as) {
  int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
  int fd = searcher->notes_access ? -1 : openat(dir_fd, open_as, flags | O_NOATIME);
  if (fd >= 0 || (!searcher->notes_access && errno != EPERM)) return fd;
  searcher->notes_access = 1;
  return openat(dir_fd, open_as, flags);
}

void search_file(struct searcher *searcher, int dir_fd, const char *dir, const char *name, const char *open_as) {
  struct shared *shared = searcher->shared;
  struct text text = {.dir = dir, .name = name, .line = 1};
  text.fd = open_text(searcher, dir_fd, open_as);
  if (text.fd < 0) {
    shared->skipped++;
    return;
  }
  shared->files++;
  search_text(searcher, &text);
  close(text.fd);
  if (searcher->alone && ++searcher->files % CANCEL_FILES == 0 && worker_cancelled()) {
    shared->broken = 1;
    shared->stop = 1;
  }
}
