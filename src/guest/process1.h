/* Process 1 of an instance, from its fork by the launcher on, and what it says to that. */
#ifndef HUTCH_PROCESS1_H
#define HUTCH_PROCESS1_H

#include "failure.h"
#include "mounts.h"
#include "spec.h"

/* Said over the channel: so many bytes with the device of its disk, where it has one; one byte once it is ready. */
enum { DEVICE_NOTE_BYTES = 2 };

/* With it comes a descriptor of process 1, where that is not the process that the launcher made. */
struct process1_note {
  char kind[4];
  int32_t pid; /* as the launcher sees it */
};

/* Or why it will not be. */
struct report {
  char stage[16];
  int error;
  char message[FAILURE_MESSAGE_BYTES_MAX];
};

struct guest_plan {
  struct identity identity;
  int channel; /* to the launcher */
  int listen_fd; /* listening, run/guest.sock */
};

/* In the process that is to be process 1. */
_Noreturn void process1(struct guest_plan *plan, struct spec *spec);

#endif
