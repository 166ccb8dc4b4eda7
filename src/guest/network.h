#ifndef HUTCH_NETWORK_H
#define HUTCH_NETWORK_H

/* Sets up the network namespace that the caller is in: loopback and nothing else. Fails with stage `network`. */
void network_setup(void);

#endif
