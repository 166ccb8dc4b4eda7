#ifndef HUTCH_SECCOMP_H
#define HUTCH_SECCOMP_H

/* Installs the default filter for the caller and all its children. Fails with stage `seccomp`. */
void seccomp_install(void);

/* Only what writing and removing the tree of a layer takes; anything else ends the process. */
void seccomp_allow_layers(void);

#endif
