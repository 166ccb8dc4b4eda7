/* What the parts of the files worker share: files.c (requests), files-read.c, files-write.c, files-remove.c,
   files-open.c. */
#ifndef HUTCH_FILES_H
#define HUTCH_FILES_H

#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "frame.h"

enum { FILES_BUFFER_BYTES = 256 << 10 };

/* A worker blocks on its connection; `buffer` holds what was read ahead. */
struct worker {
  int fd;
  int descriptors; /* the socket that open files are handed over on, or -1 */
  struct frame_writer writer;
  size_t start, end;
  uint8_t buffer[FILES_BUFFER_BYTES];
};

struct files_header {
  uint8_t type;
  uint32_t id, length;
};

/* Of this worker: it serves one connection, so there is one of each. */
extern struct worker worker;

/* 1, 0 at the end of the connection, -1 with an error of it or of the header. */
int files_read_header(struct worker *from, struct files_header *header);
/* At most `wanted` bytes of payload, valid until the next read; 0 when the connection ended. */
size_t files_read_some(struct worker *from, size_t wanted, const uint8_t **bytes);

int worker_flush(void);
/* ERROR to a request, with what failed. */
void worker_fail(uint32_t id, int error, const char *what);
/* The host closed the connection: whatever takes long stops. */
int worker_cancelled(void);

/* ENTRY of the frame that is being made. */
void put_entry(const struct stat *stat, const char *name, const char *link_target);
/* '' unless the mode is a link's. */
void read_link(int dir_fd, const char *name, mode_t mode, char target[PATH_MAX]);
/* ENTRY_OK to a request, with the last name of `path`. */
void files_answer_entry(uint32_t id, const struct stat *stat, const char *path, const char *link_target);
/* Files that say size 0 and have content all the same, as those of /proc. */
int is_synthetic(int fd);

struct files_request {
  uint8_t type, flag; /* flag: follow, parents, recursive */
  uint32_t id, mode;
  uint64_t offset, length; /* of OPEN: the smallest and the largest file to hand over */
  char *path, *to;
};

/* 0, or -1: close the connection. */
int files_decode(const struct frame *frame, struct files_request *request);

/* READ, and OPEN; 0, or -1: close the connection. */
int files_serve_read(const struct files_request *request);

/* Names of temporary files: this, one of the two letters, 16 hexadecimal digits. They are nobody's business. */
#define FILES_TEMPORARY ".hutch-"
enum { FILES_CREATES = 'n', FILES_REPLACES = 'r', FILES_TEMPORARY_BYTES = 7 + 1 + 16 };
static inline int files_is_temporary(const char *name) {
  return name[0] == '.' && strncmp(name, FILES_TEMPORARY, 7) == 0 && strlen(name) == FILES_TEMPORARY_BYTES &&
         (name[7] == FILES_CREATES || name[7] == FILES_REPLACES);
}

/* One WRITE. All answer 0, or -1 with errno and `what` failed. After a failure of data, call abort; after one of begin
   or end there is nothing left to do. */
struct files_write {
  const char *what;
  int dir_fd, fd; /* the target's directory; what the data goes to */
  int in_place; /* the target, or -1: then the temporary file is renamed over it */
  uint8_t spooled; /* data goes to `fd` first and is copied to `in_place` at the end */
  mode_t mode;
  uint8_t mode_given;
  uint8_t exclusive; /* set after begin: end fails with EEXIST rather than replace anything */
  uint64_t bytes;
  char name[256];
};
int files_write_begin(struct files_write *write, const char *path, uint32_t mode);
int files_write_data(struct files_write *write, const uint8_t *bytes, size_t length);
/* What is to be read from a descriptor, by the kernel where it can. */
int files_write_from(struct files_write *write, int from, uint64_t bytes_max);
int files_write_end(struct files_write *write, struct stat *stat);
void files_write_abort(struct files_write *write);
/* From a signal handler: removes the temporary file that there may be. */
void files_write_unlink(void);
/* mkdir -p of what stands before the last component. */
int files_make_parents(const char *path);

/* read(2) of the connection, which keeps the descriptor that came along, if one did. */
ssize_t files_receive(struct worker *worker, void *bytes, size_t length);
/* 1: the host has the file, open as it is here, and its content is in memory. 0: it has to be sent another way. */
int files_hand_over(const struct worker *worker, int fd, const struct stat *stat, uint64_t min, uint64_t max);

/* Never follows a link, never leaves the file system, uses no stack by depth. */
int files_remove(const char *path, int recursive);
int files_remove_at(int directory_fd, const char *name, int recursive);

#endif
