/* The instance's user namespace. */
#ifndef HUTCH_USERNS_H
#define HUTCH_USERNS_H

#include <stdint.h>
#include <sys/types.h>

/* A process that is making the namespace while the caller goes on with other work. */
struct userns_maker {
  pid_t pid;
  int channel;
};

/* Starts a child that becomes `uidbase` and makes a namespace: its creator's uid owns the namespace's inotify limits. */
void userns_start(struct userns_maker *maker, uint32_t uidbase, uint32_t pids_max);
/* Maps 0..65535 to uidbase.. and answers a descriptor of the namespace; the child is gone. */
int userns_finish(struct userns_maker *maker, uint32_t uidbase);

/*
 * For an ordinary user: puts the caller itself into a new user and network namespace, as root there. Maps the user's
 * subordinate ids with newuidmap and newgidmap when they are there, else its own id only. Answers whether there is
 * more than one id.
 */
int userns_enter_unprivileged(void);

#endif
