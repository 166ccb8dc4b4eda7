/* A files connection: one worker process, one request after the other, all with the credentials it was given. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"
#include "sys.h"
#include "tree.h"

enum {
  ENTRIES_BYTES = 64 << 10, /* an ENTRIES frame is sent once it is this long */
  ENTRIES_MAX = 1000,
  REQUEST_BYTES_MAX = 512 << 10, /* the patterns of a search fit */
  SEND_BUFFER_BYTES = 1 << 20,
  APPEND_BYTES_MAX = PATH_MAX + 8, /* the payload of one, and a byte that ends it */
};

/* Of this worker: it serves one connection, so there is one of each. */
struct worker worker;

static void fail(uint32_t id, int error, const char *what) {
  char text[256];
  snprintf(text, sizeof text, "%s: %s", what, strerror(error));
  frame_error(&worker.writer, id, error, text);
}

void worker_fail(uint32_t id, int error, const char *what) { fail(id, error, what); }

int worker_flush(void) { return frame_writer_flush(&worker.writer, worker.fd) == 1 ? 0 : -1; }

int worker_cancelled(void) {
  if (worker.fd == 0) return 0; /* who unpacks and empties layers is no worker */
  struct pollfd poller = {.fd = worker.fd, .events = POLLRDHUP};
  return poll(&poller, 1, 0) > 0 && poller.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

/* Entries */

static char type_letter(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG:
      return 'f';
    case S_IFDIR:
      return 'd';
    case S_IFLNK:
      return 'l';
    case S_IFIFO:
      return 'p';
    case S_IFSOCK:
      return 's';
    case S_IFCHR:
      return 'c';
  }
  return 'b';
}

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash && slash[1] ? slash + 1 : path;
}

void put_entry(const struct stat *stat, const char *name, const char *link_target) {
  struct frame_writer *writer = &worker.writer;
  put_u8(writer, (uint8_t)type_letter(stat->st_mode));
  put_u32(writer, stat->st_mode & 07777);
  put_u32(writer, stat->st_uid);
  put_u32(writer, stat->st_gid);
  put_u64(writer, stat->st_size < 0 ? 0 : (uint64_t)stat->st_size);
  put_i64(writer, (int64_t)stat->st_mtim.tv_sec * 1000 + stat->st_mtim.tv_nsec / 1000000);
  put_u32(writer, stat->st_nlink > UINT32_MAX ? UINT32_MAX : (uint32_t)stat->st_nlink);
  put_str(writer, name);
  put_str(writer, link_target);
}

void read_link(int dir_fd, const char *name, mode_t mode, char target[PATH_MAX]) {
  ssize_t length = S_ISLNK(mode) ? readlinkat(dir_fd, name, target, PATH_MAX - 1) : 0;
  target[length < 0 ? 0 : length] = 0;
}

void files_answer_entry(uint32_t id, const struct stat *stat, const char *path, const char *link_target) {
  frame_begin(&worker.writer, FRAME_ENTRY_OK, id);
  put_entry(stat, base_name(path), link_target);
  frame_end(&worker.writer);
}

static void serve_stat(const struct files_request *request) {
  struct stat stat;
  char target[PATH_MAX];
  if (fstatat(AT_FDCWD, request->path, &stat, request->flag ? 0 : AT_SYMLINK_NOFOLLOW) < 0) {
    fail(request->id, errno, "stat");
    return;
  }
  read_link(AT_FDCWD, request->path, stat.st_mode, target);
  files_answer_entry(request->id, &stat, request->path, target);
}

static void entries_end(size_t count_at, uint32_t count) {
  if (worker.writer.failed) return;
  uint8_t *at = worker.writer.data + worker.writer.frame + FRAME_HEADER_BYTES + count_at;
  for (int i = 0; i < 4; i++) at[i] = (uint8_t)(count >> (8 * i));
  frame_end(&worker.writer);
}

/* Batches of what is there; an entry that vanishes meanwhile is left out. */
static int serve_readdir(const struct files_request *request) {
  int fd = open(request->path, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  DIR *dir = fd < 0 ? NULL : fdopendir(fd);
  if (!dir) {
    fail(request->id, errno, "open");
    if (fd >= 0) close(fd);
    return 0;
  }
  struct frame_writer *writer = &worker.writer;
  uint32_t count = 0;
  int flushed = 0;
  for (;;) {
    errno = 0;
    const struct dirent *item = readdir(dir);
    int error = errno;
    if (item && (strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0)) continue;
    struct stat stat;
    if (item && fstatat(fd, item->d_name, &stat, AT_SYMLINK_NOFOLLOW) == 0) {
      char target[PATH_MAX];
      if (count == 0) {
        frame_begin(writer, FRAME_ENTRIES, request->id);
        put_u32(writer, 0);
      }
      read_link(fd, item->d_name, stat.st_mode, target);
      put_entry(&stat, item->d_name, target);
      count++;
    }
    int full = count == ENTRIES_MAX || writer->end - writer->frame > ENTRIES_BYTES;
    if (count > 0 && (full || !item)) {
      entries_end(0, count);
      count = 0;
      flushed = worker_flush();
    }
    if (flushed < 0) break;
    if (item) continue;
    if (error) {
      fail(request->id, error, "readdir");
    } else {
      frame_begin(writer, FRAME_END, request->id);
      frame_end(writer);
    }
    break;
  }
  closedir(dir);
  return flushed;
}

/* Small requests */

static int make_directory(const char *path, mode_t mode, int parents) {
  if (parents && files_make_parents(path) < 0) return -1;
  if (mkdir(path, mode & 07777) == 0) {
    /* mkdir leaves out the set-id bits. */
    return mode & 07000 ? chmod(path, mode & 07777) : 0;
  }
  struct stat stat;
  if (errno != EEXIST || !parents) return -1;
  if (fstatat(AT_FDCWD, path, &stat, 0) == 0 && S_ISDIR(stat.st_mode)) return 0;
  errno = EEXIST;
  return -1;
}

static void answer(uint32_t id, int result, const char *what) {
  if (result == 0) frame_ok(&worker.writer, id);
  else fail(id, errno, what);
}

static void serve_realpath(const struct files_request *request) {
  char resolved[PATH_MAX];
  if (!realpath(request->path, resolved)) {
    fail(request->id, errno, "realpath");
    return;
  }
  frame_begin(&worker.writer, FRAME_PATH, request->id);
  put_str(&worker.writer, resolved);
  frame_end(&worker.writer);
}

/* Writing: the transfer of WRITE */

static int path_error(const char *path) {
  if (path[0] != '/') return EINVAL;
  return strlen(path) >= PATH_MAX ? ENAMETOOLONG : 0;
}

static void fail_transfer(struct files_write *write, uint32_t id, int *failed) {
  int error = errno;
  *failed = 1;
  files_write_abort(write);
  fail(id, error, write->what);
}

/* The path of an APPEND, or NULL when it is none or the connection ended. */
static char *read_append(uint32_t length, char storage[APPEND_BYTES_MAX]) {
  if (length >= APPEND_BYTES_MAX) return NULL;
  for (uint32_t at = 0; at < length;) {
    const uint8_t *bytes;
    size_t got = files_read_some(&worker, length - at, &bytes);
    if (got == 0) return NULL;
    memcpy(storage + at, bytes, got);
    at += (uint32_t)got;
  }
  struct frame frame = {.type = FRAME_APPEND, .payload = (uint8_t *)storage, .length = length};
  struct payload payload = payload_of(&frame);
  char *path = payload_str(&payload);
  return payload_done(&payload) ? path : NULL;
}

/* As much as it has now: it may be growing, even by what is written here. */
static int append_file(struct files_write *write, const char *path) {
  write->what = "path";
  errno = path_error(path);
  if (errno) return -1;
  write->what = "open";
  int from = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (from < 0) return -1;
  struct stat stat;
  int result = fstat(from, &stat);
  if (result == 0 && !S_ISREG(stat.st_mode)) {
    errno = S_ISDIR(stat.st_mode) ? EISDIR : EINVAL;
    result = -1;
  }
  if (result == 0) result = files_write_from(write, from, (uint64_t)stat.st_size);
  int error = errno;
  close(from);
  errno = error;
  return result;
}

/* Takes DATA and APPEND up to END or ABORT. 1: END, 0: ABORT, -1: the connection ended or broke the protocol. */
static int transfer(struct files_write *write, uint32_t id, int *failed) {
  for (;;) {
    struct files_header header;
    if (files_read_header(&worker, &header) != 1 || header.id != id) return -1;
    int ends = header.type == FRAME_END || header.type == FRAME_ABORT;
    if (ends && header.length == 0) return header.type == FRAME_END;
    if (header.type == FRAME_APPEND) {
      char storage[APPEND_BYTES_MAX];
      const char *path = read_append(header.length, storage);
      if (!path) return -1;
      if (*failed) continue;
      if (append_file(write, path) == 0) frame_ok(&worker.writer, id);
      else fail_transfer(write, id, failed);
      if (worker_flush() < 0) return -1;
      continue;
    }
    if (header.type != FRAME_DATA) return -1;
    while (header.length > 0) {
      const uint8_t *bytes;
      size_t length = files_read_some(&worker, header.length, &bytes);
      if (length == 0) return -1;
      header.length -= (uint32_t)length;
      if (*failed || files_write_data(write, bytes, length) == 0) continue;
      fail_transfer(write, id, failed);
      if (worker_flush() < 0) return -1;
    }
  }
}

static int serve_write(const struct files_request *request) {
  struct files_write write;
  struct stat stat;
  char path[PATH_MAX];
  int failed = 0;
  /* The request's strings go with the buffer that the data is read into. */
  uint32_t id = request->id;
  snprintf(path, sizeof path, "%s", request->path);
  if (files_write_begin(&write, request->path, request->mode) < 0) {
    failed = 1;
    fail(id, errno, write.what);
    if (worker_flush() < 0) return -1;
  }
  int ended = transfer(&write, id, &failed);
  if (ended == 1 && !failed) {
    if (files_write_end(&write, &stat) == 0) files_answer_entry(id, &stat, path, "");
    else fail(id, errno, write.what);
    return 0;
  }
  if (!failed) files_write_abort(&write);
  if (ended == 0 && !failed) frame_ok(&worker.writer, id);
  return ended < 0 ? -1 : 0;
}

/* The kernel refuses where there is something already. File systems that cannot tell it so are looked at before. */
static int rename_new(const char *from, const char *to) {
  if (syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  struct stat present;
  int exists = lstat(to, &present) == 0;
  if (exists) errno = EEXIST;
  if (exists || errno != ENOENT) return -1;
  return rename(from, to);
}

/* Requests */

static int renames(uint8_t type) { return type == FRAME_RENAME || type == FRAME_RENAME_NEW; }

int files_decode(const struct frame *frame, struct files_request *request) {
  struct payload payload = payload_of(frame);
  memset(request, 0, sizeof *request);
  request->type = frame->type;
  request->id = frame->id;
  switch (frame->type) {
    case FRAME_PING:
      return payload_done(&payload) ? 0 : -1;
    case FRAME_STAT:
    case FRAME_REMOVE:
      request->flag = payload_u8(&payload);
      break;
    case FRAME_READ:
    case FRAME_OPEN:
      request->offset = payload_u64(&payload);
      request->length = payload_u64(&payload);
      break;
    case FRAME_WRITE:
    case FRAME_CHMOD:
      request->mode = payload_u32(&payload);
      break;
    case FRAME_MKDIR:
      request->mode = payload_u32(&payload);
      request->flag = payload_u8(&payload);
      break;
    case FRAME_READDIR:
    case FRAME_RENAME:
    case FRAME_RENAME_NEW:
    case FRAME_REALPATH:
      break;
    default:
      return -1;
  }
  request->path = payload_str(&payload);
  if (renames(frame->type)) request->to = payload_str(&payload);
  return payload_done(&payload) ? 0 : -1;
}

static int serve(const struct files_request *request) {
  uint32_t id = request->id;
  if (request->type == FRAME_PING) {
    frame_begin(&worker.writer, FRAME_PONG, id);
    frame_end(&worker.writer);
    return 0;
  }
  int error = path_error(request->path);
  if (!error && renames(request->type)) error = path_error(request->to);
  if (error) {
    fail(id, error, "path");
    int failed = 1;
    if (request->type != FRAME_WRITE) return 0;
    return worker_flush() < 0 || transfer(NULL, id, &failed) < 0 ? -1 : 0;
  }
  switch (request->type) {
    case FRAME_STAT:
      serve_stat(request);
      return 0;
    case FRAME_READDIR:
      return serve_readdir(request);
    case FRAME_READ:
    case FRAME_OPEN:
      return files_serve_read(request);
    case FRAME_WRITE:
      return serve_write(request);
    case FRAME_MKDIR:
      answer(id, make_directory(request->path, request->mode, request->flag), "mkdir");
      return 0;
    case FRAME_REMOVE:
      answer(id, files_remove(request->path, request->flag), "remove");
      return 0;
    case FRAME_RENAME:
      answer(id, rename(request->path, request->to), "rename");
      return 0;
    case FRAME_RENAME_NEW:
      answer(id, rename_new(request->path, request->to), "rename");
      return 0;
    case FRAME_CHMOD:
      answer(id, chmod(request->path, request->mode & 07777), "chmod");
      return 0;
    default:
      serve_realpath(request);
      return 0;
  }
}

/* Connection */

int files_read_header(struct worker *from, struct files_header *header) {
  while (from->end - from->start < FRAME_HEADER_BYTES) {
    size_t held = from->end - from->start;
    memmove(from->buffer, from->buffer + from->start, held);
    from->start = 0;
    from->end = held;
    ssize_t got = files_receive(from, from->buffer + held, sizeof from->buffer - held);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return (int)got;
    from->end += (size_t)got;
  }
  const uint8_t *at = from->buffer + from->start;
  header->length = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
  header->type = at[4];
  header->id = (uint32_t)at[8] | (uint32_t)at[9] << 8 | (uint32_t)at[10] << 16 | (uint32_t)at[11] << 24;
  from->start += FRAME_HEADER_BYTES;
  return header->length > FRAME_PAYLOAD_BYTES_MAX || at[5] || at[6] || at[7] ? -1 : 1;
}

size_t files_read_some(struct worker *from, size_t wanted, const uint8_t **bytes) {
  while (from->start == from->end) {
    size_t room = wanted < sizeof from->buffer ? wanted : sizeof from->buffer;
    ssize_t got = read(from->fd, from->buffer, room);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return 0;
    from->start = 0;
    from->end = (size_t)got;
  }
  size_t held = from->end - from->start;
  *bytes = from->buffer + from->start;
  if (held > wanted) held = wanted;
  from->start += held;
  return held;
}

/* 1, 0 at the end of the connection, -1 when it broke the protocol. The frame lies in `storage`. */
static int read_request(struct frame *frame, uint8_t storage[REQUEST_BYTES_MAX]) {
  struct files_header header;
  int got = files_read_header(&worker, &header);
  if (got != 1) return got;
  if (header.length > REQUEST_BYTES_MAX) return -1;
  *frame = (struct frame){.type = header.type, .id = header.id, .payload = storage, .length = header.length};
  for (uint32_t at = 0; at < header.length;) {
    const uint8_t *bytes;
    size_t length = files_read_some(&worker, header.length - at, &bytes);
    if (length == 0) return -1;
    memcpy(storage + at, bytes, length);
    at += (uint32_t)length;
  }
  return 1;
}

/* Ends the worker as a closed connection would: without a half-written file. */
static void on_terminate(int signal) {
  (void)signal;
  files_write_unlink();
  _exit(0);
}

int files_serve(int fd) {
  static uint8_t storage[REQUEST_BYTES_MAX];
  struct sigaction terminate = {.sa_handler = on_terminate};
  struct sigaction ignore = {.sa_handler = SIG_IGN};
  sigset_t none;
  worker.fd = fd;
  worker.descriptors = -1;
  worker.start = worker.end = 0;
  umask(0);
  /* As much as the host allows, so that reading ahead and the other end's reading overlap. */
  int send_buffer_bytes = SEND_BUFFER_BYTES;
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_buffer_bytes, sizeof send_buffer_bytes);
  sigemptyset(&none);
  sigaction(SIGTERM, &terminate, NULL);
  sigaction(SIGPIPE, &ignore, NULL);
  sigprocmask(SIG_SETMASK, &none, NULL);
  int status = 0;
  for (;;) {
    struct frame frame;
    struct files_request request;
    int got = read_request(&frame, storage);
    if (got == 0) break;
    status = 1;
    if (got < 0) break;
    if (frame.type >= FRAME_WALK && frame.type <= FRAME_CHOWN) {
      if (tree_serve(&frame) < 0) break;
    } else if (files_decode(&frame, &request) < 0 || serve(&request) < 0) {
      break;
    }
    /* Answers to requests that were sent ahead leave together. */
    int more = worker.start < worker.end && frame_writer_pending(&worker.writer) < ENTRIES_BYTES;
    if (!more && worker_flush() < 0) break;
    status = 0;
  }
  frame_writer_free(&worker.writer);
  if (worker.descriptors >= 0) close(worker.descriptors);
  return status;
}
