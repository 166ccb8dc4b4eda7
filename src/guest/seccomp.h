#ifndef HUTCH_SECCOMP_H
#define HUTCH_SECCOMP_H

/*
 * Installs the default filter for the caller and all its children; `mounts`: the calls that mount and make namespaces of
 * mounts and host names are left to them. Fails with stage `seccomp`.
 */
void seccomp_install(int mounts);

/* Only what writing and removing the tree of a layer takes; anything else ends the process. */
void seccomp_allow_layers(void);

#endif
