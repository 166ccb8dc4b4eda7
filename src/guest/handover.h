/* Descriptors that go from process to process beside the bytes of a unix socket. */
#ifndef HUTCH_HANDOVER_H
#define HUTCH_HANDOVER_H

#include <stddef.h>
#include <sys/types.h>

/*
 * As recv(2). A descriptor that comes beside the bytes replaces the one in `descriptor`, which is closed then (-1:
 * there is none). The bytes it came beside are the last of those answered.
 */
ssize_t receive_beside(int socket, void *bytes, size_t length, int *descriptor);

/* One message of one byte with one descriptor, which stays the caller's: 1 when it went. Never waits. */
int hand_over(int socket, int descriptor);

#endif
