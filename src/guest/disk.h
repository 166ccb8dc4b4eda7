#ifndef HUTCH_DISK_H
#define HUTCH_DISK_H

#include "spec.h"

/*
 * The file system that takes the instance's writes, as a detached mount: nothing refers to it but the descriptor, so
 * that it (and its loop device) goes away with the last process that uses it. `dir_fd` is the instance's directory,
 * opened in the present mount namespace. Fails with stage `disk`.
 */
int disk_open(const struct spec *spec, int dir_fd);

#endif
