#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "dial.h"
#include "helper.h"

static const char NAME[] = "hutch-helper";

/* A sandbox reads the arguments of its process 1: they must not tell where on the host we are. */
static void hide_path(char *path) {
  size_t length = strlen(path), kept = strlen(NAME) < length ? strlen(NAME) : length;
  memset(path, 0, length);
  memcpy(path, NAME, kept);
}

/*
 * Images made for the cloud bring its sandbox API and start it beside their own servers. Here the platform answers at
 * 127.0.0.1:8080, and this is mounted over theirs: it stays as long as whoever started it wants it to.
 */
static int stand_in(void) {
  sigset_t ends;
  int signal_number;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  sigaddset(&ends, SIGHUP);
  if (sigprocmask(SIG_BLOCK, &ends, NULL) < 0) return 1;
  return sigwait(&ends, &signal_number) == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
  const char *name = strrchr(argv[0], '/');
  if (!strcmp(name ? name + 1 : argv[0], "sandbox-api")) return stand_in();
  if (argc == 2 && !strcmp(argv[1], "launch")) {
    hide_path(argv[0]);
    return launcher_main();
  }
  if (argc == 2 && !strcmp(argv[1], "guest")) return guest_without_isolation();
  if (argc == 2 && !strcmp(argv[1], "unpack")) return unpack_main();
  if (argc == 2 && !strcmp(argv[1], "empty")) return empty_main();
  if (argc > 2 && !strcmp(argv[1], "criu")) return criu_main(argc - 2, argv + 2);
  if (argc == 3 && !strcmp(argv[1], "dial")) return dial_main(argv[2]);
  if (argc == 2 && !strcmp(argv[1], "version")) {
    printf("%d\n", PROTOCOL_VERSION);
    return 0;
  }
  fprintf(stderr, "usage: hutch-helper launch|guest|unpack|empty|criu ...|dial SOCKET|version\n");
  return 2;
}
