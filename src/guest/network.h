#ifndef HUTCH_NETWORK_H
#define HUTCH_NETWORK_H

enum {
  EGRESS_PORT = 1, /* inside: where everything arrives that is sent to an address outside */
  API_PORT = 8080, /* inside: the sandbox's own API */
};

/* Sockets in the instance's network, for the keeper; -1: not there. */
struct network {
  int tcp_fd, dns_fd, api_fd;
  int redirects; /* 0: this kernel cannot redirect, nothing leaves */
};

/* Sets up the network namespace that the caller is in. Fails with stage `network`. */
struct network network_setup(int with_api);

#endif
