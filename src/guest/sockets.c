/* A sockets connection: one worker process that answers which sockets a program and its descendants have open. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "descent.h"
#include "frame.h"
#include "guest.h"

enum {
  OPEN_SOCKETS_MAX = 1 << 16, /* looked up by inode */
  SOCKETS_MAX = 4096, /* answered */
  OTHER_USERS_MAX = 16,
  SECLUDED_MAX = 64,
  TABLE_BYTES = 64 << 10,
  NAME_BYTES = 32,
  STATUS_BYTES = 1024,
  TCP = 6,
  UDP = 17,
};

struct open_socket {
  uint64_t inode;
  pid_t pid;
};

struct user {
  uint32_t uid, gid;
};

/* One whose descriptors no worker may read: it gave its user up without exec, or is not to be dumped. */
struct secluded {
  pid_t pid;
  uint32_t uids[4];
};

struct survey {
  struct open_socket *sockets;
  size_t count, capacity;
  /* Those whose descriptors only a worker with their own credentials may read. */
  struct user others[OTHER_USERS_MAX];
  struct secluded secluded[SECLUDED_MAX];
  uint32_t other_count, secluded_count, tasks;
};

static void add_socket(struct survey *survey, uint64_t inode, pid_t pid) {
  if (survey->count == survey->capacity) {
    size_t wanted = survey->capacity ? survey->capacity * 2 : 256;
    struct open_socket *grown =
        wanted > OPEN_SOCKETS_MAX ? NULL : realloc(survey->sockets, wanted * sizeof *survey->sockets);
    if (!grown) return;
    survey->sockets = grown;
    survey->capacity = wanted;
  }
  survey->sockets[survey->count++] = (struct open_socket){.inode = inode, .pid = pid};
}

static void add_secluded(struct survey *survey, int proc_fd, const char *name) {
  char path[NAME_BYTES + 8], text[STATUS_BYTES];
  if (survey->secluded_count == SECLUDED_MAX) return;
  snprintf(path, sizeof path, "%s/status", name);
  int fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  text[length > 0 ? length : 0] = 0;
  struct secluded found = {.pid = atoi(name)};
  const char *line = strstr(text, "\nUid:");
  uint32_t *uids = found.uids;
  if (!line || sscanf(line, "\nUid: %u %u %u %u", &uids[0], &uids[1], &uids[2], &uids[3]) != 4) return;
  survey->secluded[survey->secluded_count++] = found;
}

/* `path`: its descriptors. They are shown as root's where nobody may look at them. */
static void add_other(struct survey *survey, int proc_fd, const char *name, const char *path) {
  struct stat stat;
  if (fstatat(proc_fd, path, &stat, 0) < 0) return;
  if (stat.st_uid == geteuid()) {
    add_secluded(survey, proc_fd, name);
    return;
  }
  for (uint32_t i = 0; i < survey->other_count; i++)
    if (survey->others[i].uid == stat.st_uid && survey->others[i].gid == stat.st_gid) return;
  if (survey->other_count == OTHER_USERS_MAX) return;
  survey->others[survey->other_count++] = (struct user){.uid = stat.st_uid, .gid = stat.st_gid};
}

static void survey_task(struct survey *survey, int proc_fd, pid_t pid) {
  char name[NAME_BYTES], path[NAME_BYTES + 8], target[64];
  snprintf(name, sizeof name, "%d", (int)pid);
  snprintf(path, sizeof path, "%s/fd", name);
  int fd = openat(proc_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *dir = fd < 0 ? NULL : fdopendir(fd);
  if (!dir) {
    if (fd < 0 && (errno == EACCES || errno == EPERM)) add_other(survey, proc_fd, name, path);
    if (fd >= 0) close(fd);
    return;
  }
  struct dirent *entry;
  while ((entry = readdir(dir))) {
    ssize_t length = readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1);
    if (length < 0 && errno == EACCES) {
      add_other(survey, proc_fd, name, path);
      break;
    }
    if (length <= 0) continue;
    target[length] = 0;
    unsigned long long inode;
    if (sscanf(target, "socket:[%llu]", &inode) == 1) add_socket(survey, inode, pid);
  }
  closedir(dir);
}

static int by_inode(const void *left, const void *right) {
  const struct open_socket *a = left, *b = right;
  if (a->inode != b->inode) return a->inode < b->inode ? -1 : 1;
  return (a->pid > b->pid) - (a->pid < b->pid);
}

static void survey_tasks(struct survey *survey, int proc_fd, const struct task *tasks, size_t count, uint8_t below) {
  for (size_t i = 0; i < count; i++) {
    if (tasks[i].below != below) continue;
    survey->tasks++;
    survey_task(survey, proc_fd, tasks[i].pid);
  }
  if (survey->count > 0) qsort(survey->sockets, survey->count, sizeof *survey->sockets, by_inode);
}

/* `elsewhere`: what the rest of the sandbox has open, where that is to be known. */
static void survey_descent(struct survey *survey, struct survey *elsewhere, uint32_t id, pid_t root) {
  struct task *tasks = NULL;
  size_t count = tasks_read(&tasks);
  descent_of(tasks, count, root, id, NULL, 0);
  int proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (proc_fd >= 0) {
    survey_tasks(survey, proc_fd, tasks, count, 1);
    if (survey->secluded_count > 0) survey_tasks(elsewhere, proc_fd, tasks, count, 0);
    close(proc_fd);
  }
  free(tasks);
}

/* The holder with the lowest pid, or NULL. */
static const struct open_socket *holder_of(const struct survey *survey, uint64_t inode) {
  size_t low = 0, high = survey->count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (survey->sockets[middle].inode < inode) low = middle + 1;
    else high = middle;
  }
  return low < survey->count && survey->sockets[low].inode == inode ? &survey->sockets[low] : NULL;
}

/*
 * Whose a listening socket is that nobody who can be looked at has open: a secluded program's of its user, or any, when
 * it was opened as root. -1 when there is none.
 */
static pid_t secluded_holder(const struct survey *survey, uint32_t uid) {
  for (uint32_t i = 0; i < survey->secluded_count; i++)
    for (size_t j = 0; j < sizeof survey->secluded[i].uids / sizeof *survey->secluded[i].uids; j++)
      if (survey->secluded[i].uids[j] == uid) return survey->secluded[i].pid;
  return uid == 0 && survey->secluded_count > 0 ? survey->secluded[0].pid : -1;
}

static void read_name(pid_t pid, char name[NAME_BYTES]) {
  char path[NAME_BYTES];
  snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? 0 : read(fd, name, NAME_BYTES - 1);
  if (fd >= 0) close(fd);
  name[length > 0 ? length : 0] = 0;
  name[strcspn(name, "\n")] = 0;
}

/* A line of /proc/net/tcp and its like. 1 when it was a socket of ours. */
static int put_line(struct frame_writer *writer, uint32_t id, const struct survey *survey,
                    const struct survey *elsewhere, uint8_t protocol, const char *line) {
  char local[33], remote[33], name[NAME_BYTES];
  unsigned local_port, remote_port, state, uid;
  unsigned long long inode;
  if (sscanf(line, " %*u: %32[0-9A-F]:%4x %32[0-9A-F]:%4x %2x %*s %*s %*s %u %*s %llu", local, &local_port, remote,
             &remote_port, &state, &uid, &inode) != 7)
    return 0; /* the heading */
  const struct open_socket *holder = holder_of(survey, inode);
  pid_t pid = holder ? holder->pid : -1;
  if (!holder && protocol == TCP && state == TCP_LISTEN && !holder_of(elsewhere, inode))
    pid = secluded_holder(survey, uid);
  if (pid < 0) return 0;
  read_name(pid, name);
  frame_begin(writer, FRAME_SOCKET, id);
  put_u32(writer, (uint32_t)pid);
  put_u8(writer, protocol);
  put_u8(writer, (uint8_t)state);
  put_u16(writer, (uint16_t)local_port);
  put_u16(writer, (uint16_t)remote_port);
  put_str(writer, local);
  put_str(writer, remote);
  put_str(writer, name);
  frame_end(writer);
  return 1;
}

static uint32_t put_table(struct frame_writer *writer, uint32_t id, const struct survey *survey,
                          const struct survey *elsewhere, uint8_t protocol, const char *path, uint32_t left) {
  static char buffer[TABLE_BYTES];
  size_t held = 0;
  uint32_t put = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  while (fd >= 0 && put < left) {
    ssize_t got = read(fd, buffer + held, sizeof buffer - 1 - held);
    if (got <= 0) break;
    held += (size_t)got;
    buffer[held] = 0;
    char *line = buffer, *end;
    while (put < left && (end = strchr(line, '\n'))) {
      *end = 0;
      put += (uint32_t)put_line(writer, id, survey, elsewhere, protocol, line);
      line = end + 1;
    }
    held -= (size_t)(line - buffer);
    memmove(buffer, line, held);
    if (held == sizeof buffer - 1) break;
  }
  if (fd >= 0) close(fd);
  return put;
}

static void serve(struct frame_writer *writer, uint32_t request, uint32_t id, pid_t root) {
  static const struct {
    const char *path;
    uint8_t protocol;
  } tables[] = {{"/proc/self/net/tcp", TCP}, {"/proc/self/net/tcp6", TCP}, {"/proc/self/net/udp", UDP},
                {"/proc/self/net/udp6", UDP}};
  struct survey survey = {0}, elsewhere = {0};
  survey_descent(&survey, &elsewhere, id, root);
  uint32_t left = SOCKETS_MAX;
  for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
    left -= put_table(writer, request, &survey, &elsewhere, tables[i].protocol, tables[i].path, left);
  frame_begin(writer, FRAME_DESCENT, request);
  put_u32(writer, survey.tasks);
  put_u32(writer, survey.other_count);
  for (uint32_t i = 0; i < survey.other_count; i++) {
    put_u32(writer, survey.others[i].uid);
    put_u32(writer, survey.others[i].gid);
  }
  frame_end(writer);
  free(survey.sockets);
  free(elsewhere.sockets);
}

int sockets_decode(const struct frame *frame, uint32_t *id, uint32_t *root) {
  struct payload payload = payload_of(frame);
  *id = payload_u32(&payload);
  *root = payload_u32(&payload);
  return frame->type == FRAME_SOCKETS && payload_done(&payload) && *id > 0 ? 0 : -1;
}

int sockets_serve(int fd) {
  struct frame_reader reader = {0};
  struct frame_writer writer = {0};
  struct frame frame;
  uint32_t id, root;
  int next = 0, status = 1;
  while (next == 0 && frame_reader_fill(&reader, fd) > 0) next = frame_reader_next(&reader, &frame);
  if (next == 1 && sockets_decode(&frame, &id, &root) == 0) {
    /* What an id of nobody means: no parent, session or group is looked for. */
    serve(&writer, frame.id, id, root > 1 ? (pid_t)root : -1);
    status = frame_writer_flush(&writer, fd) == 1 ? 0 : 1;
  }
  frame_writer_free(&writer);
  frame_reader_free(&reader);
  return status;
}
