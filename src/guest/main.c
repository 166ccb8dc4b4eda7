#include <stdio.h>
#include <string.h>

#include "helper.h"

int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "launch")) return launch_main();
  if (argc == 2 && !strcmp(argv[1], "guest")) return guest_without_isolation();
  if (argc == 2 && !strcmp(argv[1], "version")) {
    printf("%d\n", PROTOCOL_VERSION);
    return 0;
  }
  fprintf(stderr, "usage: hutch-helper launch|guest|version\n");
  return 2;
}
