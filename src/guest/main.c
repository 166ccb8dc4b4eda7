#include <stdio.h>
#include <string.h>

#include "helper.h"

static const char NAME[] = "hutch-helper";

/* A sandbox reads the arguments of its process 1: they must not tell where on the host we are. */
static void hide_path(char *path) {
  size_t length = strlen(path), kept = strlen(NAME) < length ? strlen(NAME) : length;
  memset(path, 0, length);
  memcpy(path, NAME, kept);
}

int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "launch")) {
    hide_path(argv[0]);
    return launcher_main();
  }
  if (argc == 2 && !strcmp(argv[1], "guest")) return guest_without_isolation();
  if (argc == 2 && !strcmp(argv[1], "unpack")) return unpack_main();
  if (argc == 2 && !strcmp(argv[1], "empty")) return empty_main();
  if (argc == 2 && !strcmp(argv[1], "version")) {
    printf("%d\n", PROTOCOL_VERSION);
    return 0;
  }
  fprintf(stderr, "usage: hutch-helper launch|guest|unpack|empty|version\n");
  return 2;
}
