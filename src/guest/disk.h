#ifndef HUTCH_DISK_H
#define HUTCH_DISK_H

#include "spec.h"

/*
 * The file system that takes the instance's writes, as a detached mount: nothing refers to it but the descriptor, so
 * that it (and its loop device) goes away with the last process that uses it. `dir_fd` is the instance's directory,
 * opened in the present mount namespace. `device` becomes the disk's loop device, open, or -1. Fails with stage `disk`.
 */
int disk_open(const struct spec *spec, int dir_fd, int *device);

/*
 * From now on what is written to the disk passes the host's page cache by: it would be there twice. Until then nothing
 * of a new disk waits for the host's. Returns at once; closes `device`.
 */
void disk_settle(int device);

#endif
