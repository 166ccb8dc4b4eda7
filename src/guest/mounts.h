/* The instance's file system. */
#ifndef HUTCH_MOUNTS_H
#define HUTCH_MOUNTS_H

#include "spec.h"

/* Steps of making a mount that nothing refers to but its descriptor; they fail with `stage` and the kernel's reason. */
int filesystem_open(const char *stage, const char *type);
void filesystem_set(int fs, const char *stage, const char *key, const char *value);
void filesystem_flag(int fs, const char *stage, const char *key);
/* Closes `fs`. */
int filesystem_mount(int fs, const char *stage, unsigned attributes);

/* Which ids there are inside. */
struct identity {
  int userns_fd; /* namespace to map ids by, -1: the present one (ordinary user) */
  int many;      /* more than the one id of the root inside */
};

/* What is left open of the file systems once the root was entered. */
struct root {
  int dev_fd;  /* /dev inside, until proc_enter */
  int log_fd;  /* the log directory, as a mount of its own: `..` leads nowhere */
  int proc_fd;
  int null_fd; /* /dev/null inside */
  int disk_device; /* as disk_open gives it */
};

/*
 * For process 1 in a new mount namespace: makes everything, and makes it the root. Afterwards nothing of the host's
 * tree is reachable. Leaves the caller with the file system ids of the sandbox's root.
 */
void root_enter(const struct spec *spec, const struct identity *identity, struct root *root);

/* Afterwards, in the pid namespace that /proc is to show. */
void proc_enter(struct root *root);

#endif
