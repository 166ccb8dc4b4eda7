#define _GNU_SOURCE
#include "network.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "failure.h"
#include "sys.h"

static void loopback_up(void) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("network", "socket");
  struct ifreq request = {.ifr_name = "lo"};
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  if (ioctl(fd, SIOCSIFFLAGS, &request) < 0) fail("network", "loopback cannot be brought up");
  close(fd);
}

void network_setup(void) {
  loopback_up();
  /* The namespace belongs to the host, so that root inside has no power over it: open ports below 1024 and ping. */
  if (write_file_at(AT_FDCWD, "/proc/sys/net/ipv4/ip_unprivileged_port_start", "0") < 0)
    fail("network", "ip_unprivileged_port_start");
  /* Group ids that are not mapped are refused, and a guest without ping is still a guest. */
  (void)write_file_at(AT_FDCWD, "/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}
