/* How the launcher's processes give up: one call, with the stage, errno and a message for people. */
#ifndef HUTCH_FAILURE_H
#define HUTCH_FAILURE_H

enum { FAILURE_MESSAGE_BYTES_MAX = 256 };

/* Called once, then the process exits with status 1. It may end the process itself. */
typedef void failure_handler(const char *stage, int error, const char *message);

void on_failure(failure_handler *handler);

/* Uses the present errno. */
_Noreturn void fail(const char *stage, const char *format, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void fail_with(int error, const char *stage, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
