/* Requests on control connections: decoding, and what they do. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "descent.h"
#include "guest.h"

/* Decoding */

static char **decode_list(struct payload *payload) {
  uint32_t count = payload_u32(payload);
  if (payload->failed || count > (size_t)(payload->end - payload->at) / 4) {
    payload->failed = 1;
    return NULL;
  }
  char **list = calloc((size_t)count + 1, sizeof *list);
  for (uint32_t i = 0; list && i < count; i++) list[i] = payload_str(payload);
  if (!list) payload->failed = 1;
  return list;
}

static void decode_spawn(struct payload *payload, uint32_t id, struct spawn *spawn) {
  spawn->id = id;
  spawn->flags = payload_u32(payload);
  spawn->uid = payload_u32(payload);
  spawn->gid = payload_u32(payload);
  spawn->cols = payload_u16(payload);
  spawn->rows = payload_u16(payload);
  spawn->output_bytes_max = payload_u64(payload);
  spawn->cwd = payload_str(payload);
  spawn->argv = decode_list(payload);
  spawn->envp = decode_list(payload);
}

static void decode_adoption(struct payload *payload, uint32_t id, struct adoption *adoption) {
  adoption->id = id;
  adoption->flags = payload_u32(payload);
  adoption->mark = payload_u32(payload);
  adoption->pid = payload_u32(payload);
  adoption->state = payload_u8(payload);
  adoption->code = payload_u32(payload);
  adoption->started_ms = payload_u64(payload);
  adoption->ended_ms = payload_u64(payload);
  adoption->output_bytes_max = payload_u64(payload);
}

void control_request_free(struct control_request *request) {
  free(request->spawn.argv);
  free(request->spawn.envp);
  request->spawn.argv = request->spawn.envp = NULL;
}

int control_decode(const struct frame *frame, struct control_request *request) {
  struct payload payload = payload_of(frame);
  memset(request, 0, sizeof *request);
  request->type = frame->type;
  request->id = frame->id;
  switch (frame->type) {
    case FRAME_PING:
    case FRAME_PONG:
    case FRAME_LIST:
    case FRAME_FORGET:
    case FRAME_DETACH:
    case FRAME_CLOSE_STDIN:
    case FRAME_DESCRIPTORS:
      break;
    case FRAME_ADOPT:
      decode_adoption(&payload, frame->id, &request->adoption);
      break;
    case FRAME_ADOPTED:
      request->scope = payload_u8(&payload);
      break;
    case FRAME_SPAWN:
      decode_spawn(&payload, frame->id, &request->spawn);
      break;
    case FRAME_SIGNAL:
      request->number = payload_u32(&payload);
      request->scope = payload_u8(&payload);
      break;
    case FRAME_ATTACH:
      request->consumed = payload_u64(&payload);
      break;
    case FRAME_STDIN:
      request->bytes = payload_bytes(&payload, &request->bytes_length);
      break;
    case FRAME_RESIZE:
      request->cols = payload_u16(&payload);
      request->rows = payload_u16(&payload);
      break;
    case FRAME_SHUTDOWN:
      request->number = payload_u32(&payload);
      break;
    default:
      return -1;
  }
  if (payload_done(&payload)) return 0;
  control_request_free(request);
  return -1;
}

/* What they do */

static void serve_spawn(struct connection *connection, const struct spawn *spawn) {
  const char *stage = "spawn";
  errno = ESHUTDOWN;
  struct process *process = guest_stopping() ? NULL : process_spawn(spawn, &stage);
  if (!process) {
    connection_answer(connection, spawn->id, errno, stage);
    return;
  }
  frame_begin(&connection->writer, FRAME_SPAWNED, spawn->id);
  put_u32(&connection->writer, (uint32_t)process->pid);
  put_u64(&connection->writer, process->started_ms);
  frame_end(&connection->writer);
  connection_flush(connection);
}

static void serve_list(struct connection *connection, uint32_t id) {
  for (struct process *process = processes_first(); process; process = process->next) {
    frame_begin(&connection->writer, FRAME_ITEM, id);
    put_process(&connection->writer, process);
    frame_end(&connection->writer);
  }
  frame_begin(&connection->writer, FRAME_END, id);
  frame_end(&connection->writer);
  connection_flush(connection);
}

static void serve_forget(struct connection *connection, struct process *process, uint32_t id) {
  int busy = process && process->state == STATE_RUNNING;
  if (!process) logs_forget(id);
  else if (!busy) process_forget(process);
  connection_answer(connection, id, busy ? EBUSY : 0, "forget");
}

static void serve_attach(struct connection *connection, struct process *process, uint64_t consumed) {
  int error = process_follow(process, connection, consumed);
  connection_answer(connection, process->id, error, "attach");
  if (!error) process_announce(process);
}

static void serve_stdin(struct connection *connection, struct process *process, const struct control_request *request) {
  int taken = process_input(process, connection, request->bytes, request->bytes_length);
  if (taken != 0) connection_answer(connection, process->id, taken < 0 ? -taken : 0, "stdin");
}

static void serve_adopt(struct connection *connection, const struct adoption *adoption) {
  errno = ESHUTDOWN;
  struct process *process = guest_stopping() ? NULL : process_adopt(adoption);
  if (process) descent_take_over(adoption->mark);
  connection_answer(connection, adoption->id, process ? 0 : errno, "adopt");
}

/* Numbers of descriptors of ours, for a host that looks at them by /proc. */
static void serve_descriptors(struct connection *connection, const struct process *process) {
  frame_begin(&connection->writer, FRAME_DESCRIPTORS_OK, process->id);
  put_u8(&connection->writer, process->is_pty);
  put_u32(&connection->writer, descent_own());
  put_u32(&connection->writer, (uint32_t)process->input.fd);
  put_u32(&connection->writer, (uint32_t)process->streams[0].fd);
  put_u32(&connection->writer, (uint32_t)process->streams[1].fd);
  frame_end(&connection->writer);
  connection_flush(connection);
}

static void serve(struct connection *connection, const struct control_request *request) {
  uint32_t id = request->id;
  struct process *process = process_of(id);
  /* Answers carry no more than the process id, so they go out in the order of the requests. */
  if (process && request->type > FRAME_SPAWNED && request->type != FRAME_LIST && request->type != FRAME_STDIN)
    process_input_accept(process, connection);
  switch (request->type) {
    case FRAME_PING:
      frame_begin(&connection->writer, FRAME_PONG, id);
      frame_end(&connection->writer);
      connection_flush(connection);
      return;
    case FRAME_PONG:
      return;
    case FRAME_SPAWN:
      serve_spawn(connection, &request->spawn);
      return;
    case FRAME_LIST:
      serve_list(connection, id);
      return;
    case FRAME_ADOPT:
      serve_adopt(connection, &request->adoption);
      return;
    case FRAME_FORGET:
      serve_forget(connection, process, id);
      return;
    case FRAME_DETACH:
      if (process) process_unfollow(process, connection);
      connection_answer(connection, id, 0, "");
      return;
    case FRAME_SHUTDOWN:
      guest_shutdown(request->number);
      return;
  }
  if (!process) {
    connection_answer(connection, id, ESRCH, "process");
    return;
  }
  switch (request->type) {
    case FRAME_SIGNAL:
      if (request->scope > SCOPE_TREE || request->number > 64) connection_answer(connection, id, EINVAL, "signal");
      else connection_answer(connection, id, process_signal(process, (int)request->number, request->scope), "signal");
      return;
    case FRAME_ATTACH:
      serve_attach(connection, process, request->consumed);
      return;
    case FRAME_STDIN:
      serve_stdin(connection, process, request);
      return;
    case FRAME_CLOSE_STDIN:
      connection_answer(connection, id, process_input_close(process), "stdin");
      return;
    case FRAME_ADOPTED:
      connection_answer(connection, id, process_adopted(process, request->scope), "adopt");
      return;
    case FRAME_DESCRIPTORS:
      serve_descriptors(connection, process);
      return;
    case FRAME_RESIZE:
      connection_answer(connection, id, process_resize(process, request->cols, request->rows), "resize");
      return;
  }
}

void control_serve(struct connection *connection) {
  struct frame frame;
  int more = 0;
  while (!connection->closed && frame_writer_pending(&connection->writer) <= CONNECTION_OUTPUT_BYTES_PAUSE &&
         (more = frame_reader_next(&connection->reader, &frame)) > 0) {
    struct control_request request;
    if (control_decode(&frame, &request) < 0) {
      connection_close(connection);
      return;
    }
    serve(connection, &request);
    control_request_free(&request);
  }
  if (more < 0) connection_close(connection);
}
