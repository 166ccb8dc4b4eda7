/* Writing the tree of an image layer, entry by entry, as the host read them out of an archive. */
#ifndef HUTCH_UNPACK_H
#define HUTCH_UNPACK_H

#include <stdint.h>

#include "frame.h"

/*
 * The tree's root is the present root directory. Paths are relative, without `.`, `..` and empty names, and links in
 * what stands before the last name lead to places below the root.
 */
struct unpacker {
  int root_fd;
  int many_ids;      /* 0: owners cannot be set, all belongs to the one user */
  int user_overlay;  /* 1: overlayfs reads its records in user.overlay.* */
  int finished;
  const char *what;  /* which step failed */
  /* The directory of the last path, kept open since entries come directory by directory. */
  int parent_fd;
  char parent[4096];
  /* What the last entry made: attributes and data go to it. */
  int node_fd; /* -1: none, or a symbolic link */
  int node_is_link;
  uint64_t node_bytes;
  char node_name[256];
};

int unpack_open(struct unpacker *unpacker, int many_ids, int user_overlay);
void unpack_close(struct unpacker *unpacker);

/* 0, or -1 with errno and `what`; EPROTO: not a frame of this kind. */
int unpack_frame(struct unpacker *unpacker, const struct frame *frame);

#endif
