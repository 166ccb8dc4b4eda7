/* What search.c (one file) and search-tree.c (all of them, by several processes) share. */
#ifndef HUTCH_SEARCH_H
#define HUTCH_SEARCH_H

#include <limits.h>
#include <stdatomic.h>

#include "tree.h"

enum {
  STACK_BYTES = 4 << 20,
  TEXT_BYTES_MAX = 16 << 10, /* of a line, and of its context on either side */
};

/* What the searching processes share. Directories that nobody has taken yet lie in a stack of records. */
struct shared {
  atomic_int lock; /* of all up to the next lock */
  atomic_int changes; /* what idle processes wait for */
  size_t top;
  int active, waiting;
  atomic_int writing; /* of the connection */
  atomic_uint results;
  atomic_int stop, broken;
  atomic_uchar truncated;
  atomic_ullong files, bytes, skipped;
  uint8_t stack[STACK_BYTES];
};

/* A directory that did not fit the stack: this process's alone. */
struct task {
  struct task *next;
  int fd; /* of the rest of one that is open, or -1 */
  char path[];
};

/* What one process has. */
struct searcher {
  const struct tree_request *request;
  struct shared *shared;
  const struct tree_root *root;
  struct matcher *lines;
  struct tree_filter filter;
  struct dents dents;
  uint8_t *buffer;
  size_t capacity;
  uint8_t context[2][TEXT_BYTES_MAX];
  uint32_t files, in_frame;
  int alone, notes_access;
  struct task *tasks;
  uint32_t task_count;
  char path[PATH_MAX]; /* of the record that was taken */
};

void shared_lock(atomic_int *word);
void shared_unlock(atomic_int *word);

/* Searches the file that `open_as` leads to from the directory; results say dir/name. */
void search_file(struct searcher *searcher, int dir_fd, const char *dir, const char *name, const char *open_as);
/* Sends what was found and not sent yet: 0, or -1. */
int search_flush(struct searcher *searcher);

#endif
