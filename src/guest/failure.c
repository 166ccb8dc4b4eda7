#include "failure.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static failure_handler *current_handler;

void on_failure(failure_handler *handler) { current_handler = handler; }

static _Noreturn void give_up(const char *stage, int error, const char *format, va_list arguments) {
  char message[FAILURE_MESSAGE_BYTES_MAX];
  vsnprintf(message, sizeof message, format, arguments);
  for (char *at = message; *at; at++)
    if (*at == '\n') *at = ' ';
  failure_handler *handler = current_handler;
  current_handler = NULL;
  if (handler) handler(stage, error, message);
  _exit(1);
}

_Noreturn void fail(const char *stage, const char *format, ...) {
  int error = errno;
  va_list arguments;
  va_start(arguments, format);
  give_up(stage, error, format, arguments);
}

_Noreturn void fail_with(int error, const char *stage, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  give_up(stage, error, format, arguments);
}
