/* Requests about a whole directory tree: tree.c (WALK, and what all share), search.c, watch.c, copy.c. */
#ifndef HUTCH_TREE_H
#define HUTCH_TREE_H

#include <dirent.h>
#include <limits.h>
#include <stdint.h>
#include <sys/stat.h>

#include "frame.h"
#include "pattern.h"

/* One request, of any of these types; what a type has no use for is zero. The pointers are into the frame. */
struct tree_request {
  uint8_t type, flags;
  uint32_t id, depth_max, results_max, context_before, context_after, uid, gid;
  char *path, *to;
  struct pattern prune, include, exclude; /* of relative paths (WATCH: prune, of absolute ones) */
  struct pattern lines;
  struct literals literals;
};

enum { /* of WALK and SEARCH */
  TREE_SKIP_HIDDEN = 1,
  TREE_STAT = 2,
  TREE_FILES = 4,
  TREE_DIRECTORIES = 8,
  TREE_EXACT = 16,
  TREE_BINARY = 32,
};
enum { WATCH_RECURSIVE = 1 };
enum { COPY_EXCLUSIVE = 1, COPY_ATTRIBUTES = 2 };
enum { CHOWN_FOLLOW = 1 };

/* 0, or -1: close the connection. tree_request_free in either case. */
int tree_decode(const struct frame *frame, struct tree_request *request);
void tree_request_free(struct tree_request *request);
/* 0, or -1: the connection ended, or broke the protocol. */
int tree_serve(const struct frame *frame);

int serve_search(const struct tree_request *request);
int serve_watch(const struct tree_request *request);
void serve_copy(const struct tree_request *request);

/* What was looked at, as SUMMARY tells it. */
struct tree_summary {
  uint64_t entries, bytes, skipped;
  uint8_t truncated;
};
void tree_answer_summary(uint32_t id, const struct tree_summary *summary);

/* The matchers of one thread. */
struct tree_filter {
  struct matcher *prune, *include, *exclude;
  uint8_t skip_hidden;
};
int tree_filter_init(struct tree_filter *filter, const struct tree_request *request);
void tree_filter_free(struct tree_filter *filter);

enum { TREE_OUT, TREE_IN, TREE_IN_UNLISTED };
/* Whether an entry is left out, belongs to the result, or is a directory (or file) that only leads to others. */
int tree_filter_test(struct tree_filter *filter, const char *path, const char *name, int is_directory);

/* Joins a directory and a name: 0, or -1 when it is too long. '' is the root of the tree. */
int tree_join(char path[PATH_MAX], const char *dir, const char *name);

/* A directory of the tree that began at `root_fd`: a descriptor, or -1. Never a link, nor /proc and the like unless
   the tree began in one. */
struct tree_root {
  int fd;
  dev_t device;
  int synthetic;
};
int tree_open(struct tree_root *root, const char *path);
int tree_open_directory(const struct tree_root *root, const char *path);

/* Names by the batch, straight from the kernel. */
enum { DENTS_BYTES = 32 << 10 };
struct dents {
  int fd;
  long bytes, at;
  _Alignas(8) uint8_t buffer[DENTS_BYTES];
};
struct dent {
  const char *name;
  uint8_t type; /* DT_* other than DT_UNKNOWN, unless it is gone */
};
/* 1, 0 when the batch is used up. */
int dents_next(struct dents *dents, struct dent *dent);
/* The next batch: 1, 0 at the end, -1. */
int dents_fill(struct dents *dents);

#endif
