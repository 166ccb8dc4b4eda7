/*
 * libFuzzer target of everything that parses what comes over a channel (scripts/fuzz-helper.sh). The first byte chooses:
 * the frame reader and cursor, the decoders, process 1's connection and process table with programs that never start
 * and signals that go nowhere, or the whole files worker, or the unpacker of layers, inside an empty root directory.
 */
#ifdef HUTCH_FUZZ
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <unistd.h>

static int fuzz_clone(int (*entry)(void *), void *stack, int flags, void *argument);
static int fuzz_kill(pid_t pid, int signal);
static pid_t fuzz_fork(void);
#define clone fuzz_clone
#define kill fuzz_kill
#define fork fuzz_fork
/* Included, so that what they do to the system is redirected and what they hide can be driven. */
#include "spawn.c"
#include "signals.c"
#include "process.c"
#include "guest.c"
#undef clone
#undef kill
#undef fork

#include <dirent.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

#include "dial.h"
#include "files.h"
#include "tree.h"
#include "unpack.h"

enum {
  FAKE_PROCESSES_MAX = 64,
  FAKE_PID_FIRST = 1 << 28, /* no real one */
  RUNS_PER_CLEANING = 16,
  OUTPUT_BYTES_MAX = 256 << 10,
};

static pid_t fake_pids[FAKE_PROCESSES_MAX];
static int fake_outputs[FAKE_PROCESSES_MAX], fake_count;
static pid_t fake_pid_next = FAKE_PID_FIRST;
static int chrooted;

static int fuzz_clone(int (*entry)(void *), void *stack, int flags, void *argument) {
  (void)entry, (void)stack, (void)flags;
  const struct child *child = argument;
  size_t length = 0;
  for (char **at = child->spawn->argv; *at; at++) length += strlen(*at);
  for (char **at = child->spawn->envp; *at; at++) length += strlen(*at);
  errno = EAGAIN;
  if (fake_count == FAKE_PROCESSES_MAX || length > FRAME_PAYLOAD_BYTES_MAX) return -1;
  fake_pids[fake_count] = fake_pid_next;
  fake_outputs[fake_count] = dup(child->fds[1]);
  fcntl(fake_outputs[fake_count++], F_SETFL, O_NONBLOCK);
  return fake_pid_next++;
}

static int fuzz_kill(pid_t pid, int signal) {
  (void)pid, (void)signal;
  return 0;
}

static pid_t fuzz_fork(void) {
  errno = EAGAIN;
  return -1;
}

struct input_bytes {
  const uint8_t *at;
  size_t left;
};

static uint8_t next_byte(struct input_bytes *input) {
  if (input->left == 0) return 0;
  input->left--;
  return *input->at++;
}

static size_t next_length(struct input_bytes *input, size_t max) {
  size_t length = next_byte(input);
  if (length > 200) length = (length - 200) * 256 + next_byte(input);
  if (length > max) length = max;
  return length < input->left ? length : input->left;
}

static void decode_as_all(const struct frame *frame) {
  struct control_request control;
  struct files_request files;
  struct dial_request dial;
  /* The cursor ends strings in place, so every decoder gets a copy of its own. */
  uint8_t *copy = malloc(frame->length + 1);
  struct frame own = *frame;
  own.payload = copy;
  memcpy(copy, frame->payload, frame->length);
  if (control_decode(&own, &control) == 0) control_request_free(&control);
  memcpy(copy, frame->payload, frame->length);
  if (files_decode(&own, &files) == 0 && files.path && strlen(files.path) > frame->length) abort();
  memcpy(copy, frame->payload, frame->length);
  struct tree_request tree;
  tree_decode(&own, &tree);
  tree_request_free(&tree);
  uint32_t id, root;
  memcpy(copy, frame->payload, frame->length);
  if (sockets_decode(&own, &id, &root) == 0 && frame->length != 8) abort();
  memcpy(copy, frame->payload, frame->length);
  if (dial_decode(&own, &dial) == 0 && strlen(dial.target) > frame->length) abort();
  free(copy);
}

/* A program and a text: both ways to run it have to agree, and both have to end. */
static void fuzz_pattern(struct input_bytes input) {
  uint8_t bytes[8 * 64 + 6] = {0};
  uint32_t count = 1 + next_byte(&input) % 32;
  struct payload payload = {.at = bytes, .end = bytes + 6 + 8 * count};
  bytes[0] = next_byte(&input) % count;
  bytes[2] = (uint8_t)count;
  for (uint32_t i = 0; i < count; i++) {
    uint8_t *at = bytes + 6 + 8 * i, op = next_byte(&input);
    at[0] = op % 4;
    at[1] = at[0] == 3 ? op / 4 % 4 : next_byte(&input);
    at[2] = at[0] == 1 ? (uint8_t)(at[1] | next_byte(&input)) : 0;
    at[4] = next_byte(&input) % count;
    at[6] = next_byte(&input) % count;
  }
  struct pattern pattern;
  if (pattern_decode(&payload, &pattern) != 1) abort();
  /* No pattern of ours matches a line end; these might. */
  size_t length = input.left < 4096 ? input.left : 4096, start, end;
  uint8_t *text = malloc(length + 1);
  memcpy(text, input.at, length);
  for (size_t i = 0; i < length; i++)
    if (text[i] == '\n') text[i] = ' ';
  for (int lines = 0; lines < 2; lines++) {
    struct matcher *matcher = matcher_new(&pattern, lines);
    int found = matcher_find(matcher, text, text + length) != NULL;
    if (found != (pattern_locate(&pattern, text, length, &start, &end) == 1)) abort();
    if (found && (start > end || end > length)) abort();
    matcher_free(matcher);
  }
  pattern_free(&pattern);
  free(text);
}

/* Against the obvious way to look. */
static void fuzz_literals(struct input_bytes input) {
  struct frame_writer writer = {0};
  frame_begin(&writer, FRAME_SEARCH, 0);
  uint32_t count = 1 + next_byte(&input) % 3;
  put_u32(&writer, count);
  for (uint32_t i = 0; i < count; i++) {
    uint32_t length = 1 + next_byte(&input) % 16;
    put_u32(&writer, length);
    for (uint32_t at = 0; at < length; at++) put_u8(&writer, (uint8_t)('a' + next_byte(&input) % 4));
    for (uint32_t at = 0; at < length; at++) put_u8(&writer, next_byte(&input) & 1 ? 0x20 : 0);
  }
  struct payload payload = {.at = writer.data + FRAME_HEADER_BYTES, .end = writer.data + writer.end};
  struct literals literals;
  if (literals_decode(&payload, &literals) < 0) abort();
  size_t size = input.left < 4096 ? input.left : 4096;
  uint8_t *text = malloc(size + 1);
  for (size_t i = 0; i < size; i++) text[i] = (uint8_t)((input.at[i] & 0x20 ? 'A' : 'a') + input.at[i] % 4);
  const uint8_t *expected = NULL;
  for (size_t at = 0; at < size && !expected; at++)
    for (uint32_t i = 0; i < count; i++) {
      const struct literal *one = &literals.items[i];
      uint32_t same = 0;
      while (same < one->length && at + same < size && (text[at + same] | one->masks[same]) == one->bytes[same]) same++;
      if (same == one->length) expected = text + at;
    }
  const struct literal *which;
  if (literals_find(&literals, text, text + size, &which) != expected) abort();
  free(text);
  frame_writer_free(&writer);
}

static void fuzz_reader(struct input_bytes input) {
  struct frame_reader reader = {0};
  struct frame frame;
  int more = 1;
  while (input.left > 0 && more >= 0) {
    size_t length = next_length(&input, 4096);
    if (frame_reader_push(&reader, input.at, length) < 0) break;
    input.at += length;
    input.left -= length;
    while ((more = frame_reader_next(&reader, &frame)) > 0) decode_as_all(&frame);
  }
  frame_reader_free(&reader);
}

/* One frame whose header is right: type, id, length, payload. */
static void fuzz_decoders(struct input_bytes input) {
  struct frame frame = {.type = next_byte(&input), .id = next_byte(&input)};
  frame.payload = (uint8_t *)input.at;
  frame.length = (uint32_t)input.left;
  decode_as_all(&frame);
}

static void push_spawn(struct frame_writer *writer, uint32_t id, struct input_bytes *input) {
  frame_begin(writer, FRAME_SPAWN, id);
  put_u32(writer, next_byte(input) & 3);
  put_u32(writer, 0);
  put_u32(writer, 0);
  put_u16(writer, 80);
  put_u16(writer, 24);
  put_u64(writer, (uint64_t)next_byte(input) << 12);
  put_str(writer, "/");
  put_u32(writer, 1);
  put_str(writer, "true");
  put_u32(writer, 0);
  frame_end(writer);
}

static void fake_output(struct input_bytes *input) {
  static const uint8_t bytes[64 << 10];
  if (fake_count == 0) return;
  int fd = fake_outputs[next_byte(input) % fake_count];
  (void)!write(fd, bytes, (size_t)(next_byte(input) + 1) << 8);
}

static void fake_exit(uint8_t which) {
  if (fake_count == 0) return;
  int at = which % fake_count;
  close(fake_outputs[at]);
  struct process *process = process_reaped(fake_pids[at], which << 8);
  if (process) broadcast_exit(process);
  fake_count--;
  fake_pids[at] = fake_pids[fake_count];
  fake_outputs[at] = fake_outputs[fake_count];
}

static void discard(int fd) {
  static uint8_t sink[64 << 10];
  while (recv(fd, sink, sizeof sink, MSG_DONTWAIT) > 0) continue;
}

/* Where there is one right length, most frames have it. */
static const uint8_t payload_bytes_of[] = {[FRAME_SIGNAL] = 5, [FRAME_ATTACH] = 8, [FRAME_STDIN] = 200,
                                           [FRAME_RESIZE] = 4, [FRAME_SHUTDOWN] = 4};

static void control_step(struct connection *connection, struct input_bytes *input) {
  uint8_t operation = next_byte(input);
  uint32_t id = next_byte(input) % 8;
  struct frame_writer writer = {0};
  if (operation < 8) {
    push_spawn(&writer, id, input);
  } else if (operation < 16) {
    fake_exit((uint8_t)id);
  } else if (operation < 24) {
    fake_output(input);
  } else {
    uint8_t type = operation % 40;
    size_t length = operation < 144 && type < sizeof payload_bytes_of ? payload_bytes_of[type] : next_length(input, 70000);
    if (length > input->left) length = input->left;
    frame_begin(&writer, type, id);
    put_bytes(&writer, input->at, length);
    frame_end(&writer);
    input->at += length;
    input->left -= length;
  }
  if (!connection->closed && frame_writer_pending(&writer) > 0) {
    if (frame_reader_push(&connection->reader, writer.data, writer.end) < 0) connection_close(connection);
    else control_serve(connection);
  }
  frame_writer_free(&writer);
}

static void fuzz_control(struct input_bytes input) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0) abort();
  struct connection *connection = calloc(1, sizeof *connection);
  *connection = (struct connection){.source = {SOURCE_CONNECTION}, .fd = ends[0], .reading = 1, .next = connections};
  connections = connection;
  watch(ends[0], &connection->source, EPOLLIN);
  size_t hello = next_length(&input, HELLO_BYTES);
  if (hello < HELLO_BYTES) {
    control_count++;
    connection->control = 1;
  } else {
    memcpy(connection->hello, input.at, hello);
    connection->hello_bytes = (uint32_t)hello;
    pending_count++;
    hello_done(connection);
    input.at += hello;
    input.left -= hello;
  }
  int reads = next_byte(&input) & 1;
  while (input.left > 0 && !connection->closed) {
    if (connection->control) control_step(connection, &input);
    else connection_close(connection);
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(epoll_fd, events, EVENTS_MAX, 0);
    for (int i = 0; i < count; i++) dispatch(&events[i]);
    processes_sweep();
    if (reads) discard(ends[1]);
  }
  connection_close(connection);
  connections_sweep();
  close(ends[1]);
  while (fake_count > 0) fake_exit(0);
  while (first_process) process_forget(first_process);
  struct epoll_event events[EVENTS_MAX];
  for (int count = 1; count > 0;) {
    count = epoll_wait(epoll_fd, events, EVENTS_MAX, 0);
    for (int i = 0; i < count; i++) dispatch(&events[i]);
    processes_sweep();
  }
  if (control_count || pending_count || connections || process_count) abort();
  stopping = 0;
}

static void *drain_all(void *argument) {
  int fd = *(int *)argument;
  static __thread uint8_t sink[64 << 10];
  while (read(fd, sink, sizeof sink) > 0) continue;
  return NULL;
}

static void clean_root(void) {
  DIR *dir = opendir("/");
  struct dirent *entry;
  while (dir && (entry = readdir(dir))) {
    char path[300];
    snprintf(path, sizeof path, "/%s", entry->d_name);
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) files_remove(path, 1);
  }
  if (dir) closedir(dir);
}

/* What no request can make. */
static void fill_root(void) {
  clean_root();
  int fd = open("/h", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd >= 0) close(fd);
  (void)!link("/h", "/i");
  (void)!symlink("d/f", "/l");
  mkfifo("/p", 0644);
  mkdir("/d", 0755);
  mkdir("/d/e", 0755);
  (void)!link("/h", "/d/e/f");
  /* Files are handed over only where they can be read into it first. */
  mkdir("/dev", 0755);
  (void)!mknod("/dev/null", S_IFCHR | 0666, makedev(1, 3));
}

/* PING with a socket on which files may be handed over; nobody receives them. Answers the other end. */
static int offer_handover(int fd) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) abort();
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
  memcpy(CMSG_DATA(&control.header), &ends[1], sizeof ends[1]);
  uint8_t ping[FRAME_HEADER_BYTES] = {[4] = FRAME_PING};
  struct iovec part = {.iov_base = ping, .iov_len = sizeof ping};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  if (sendmsg(fd, &message, MSG_NOSIGNAL) < 0) abort();
  close(ends[1]);
  return ends[0];
}

static void send_files(int fd, struct input_bytes input) {
  while (input.left > 0) {
    uint8_t type = next_byte(&input);
    size_t length = next_length(&input, OUTPUT_BYTES_MAX);
    struct frame_writer writer = {0};
    /* 21 ends a WRITE; the rest are the requests. */
    frame_begin(&writer, type < 32 ? FRAME_END : (uint8_t)(64 + type % 32), 1);
    put_bytes(&writer, input.at, length);
    frame_end(&writer);
    if (send(fd, writer.data, writer.end, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) input.left = length;
    frame_writer_free(&writer);
    input.at += length;
    input.left -= length;
  }
}

/* Frames of an unpacker, most of them of its own types. Wherever they lead, they stay in the root directory. */
static void fuzz_unpack(struct input_bytes input) {
  static unsigned runs;
  if (!chrooted) return;
  if (runs++ % RUNS_PER_CLEANING == 0) fill_root();
  struct unpacker unpacker;
  if (unpack_open(&unpacker, 1, 1) < 0) abort();
  for (int going = 1; going && input.left > 0 && !unpacker.finished;) {
    struct frame frame = {.type = (uint8_t)(FRAME_UNPACK_DIRECTORY + next_byte(&input) % 13)};
    size_t length = next_length(&input, 70000);
    /* The cursor ends strings in place. */
    uint8_t *copy = malloc(length + 1);
    memcpy(copy, input.at, length);
    frame.payload = copy;
    frame.length = (uint32_t)length;
    if (frame.type == FRAME_UNPACK_FINISH) going = 0; /* its sync takes the whole disk's time */
    else (void)unpack_frame(&unpacker, &frame);
    free(copy);
    input.at += length;
    input.left -= length;
  }
  unpack_close(&unpacker);
}

static void fuzz_files(struct input_bytes input, int framed) {
  static unsigned runs;
  int ends[2], handover = -1;
  if (!chrooted) return;
  if (runs++ % RUNS_PER_CLEANING == 0) fill_root();
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) abort();
  if (framed) handover = offer_handover(ends[1]);
  if (framed) send_files(ends[1], input);
  else (void)!send(ends[1], input.at, input.left, MSG_DONTWAIT | MSG_NOSIGNAL);
  shutdown(ends[1], SHUT_WR);
  pthread_t thread;
  if (pthread_create(&thread, NULL, drain_all, &ends[1]) != 0) abort();
  files_serve(ends[0]);
  close(ends[0]);
  pthread_join(thread, NULL);
  close(ends[1]);
  if (handover >= 0) close(handover);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  /* Two empty directories that the script made. */
  const char *root = "root", *logs = "logs";
  int logs_fd = open(logs, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (logs_fd < 0) return -1;
  logs_init(logs_fd);
  struct guest_start start = {.listen_fd = -1, .log_dir_fd = -1, .groups = {{-1, -1}, {-1, -1}}, .ready_fd = -1, .workdir = "/"};
  spawn_init(&start);
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  /* Paths are absolute, so an own root confines them; the working directory stays outside for the fuzzer's files. */
  if (geteuid() != 0 && unshare(CLONE_NEWUSER) < 0) fprintf(stderr, "no user namespace: files worker left out\n");
  else if (chroot(root) < 0) fprintf(stderr, "no chroot: files worker left out\n");
  else chrooted = 1;
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct input_bytes input = {data, size};
  switch (next_byte(&input) % 8) {
    case 0:
      fuzz_reader(input);
      break;
    case 1:
      fuzz_decoders(input);
      break;
    case 2:
      fuzz_control(input);
      break;
    case 5:
      fuzz_pattern(input);
      break;
    case 6:
      fuzz_literals(input);
      break;
    case 7:
      fuzz_unpack(input);
      break;
    default:
      fuzz_files(input, data[0] % 8 == 3);
  }
  return 0;
}
#endif
