/*
 * In the place of CRIU: does what its own last line says, as one that is defect, or has hostile programs before it, might.
 * Its words are done one after the other; it ends well after the last.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

enum { IMAGES_FD = 100, WORK_FD = 101, FREEZER_FD = 102, SCRIPT_BYTES_MAX = 256 };

/* Control groups of either version. */
static void thaw(void) {
  int fd = openat(FREEZER_FD, "freezer.state", O_WRONLY);
  const char *text = fd < 0 ? "0" : "THAWED";
  if (fd < 0) fd = openat(FREEZER_FD, "cgroup.freeze", O_WRONLY);
  if (fd < 0 || write(fd, text, strlen(text)) < 0) _exit(90);
  close(fd);
}

/* Holds every thread, as CRIU does, and lets the group go on. */
static void hold(void) {
  int list = openat(FREEZER_FD, "tasks", O_RDONLY);
  if (list < 0) list = openat(FREEZER_FD, "cgroup.threads", O_RDONLY);
  FILE *tasks = list < 0 ? NULL : fdopen(list, "r");
  char line[32];
  if (!tasks) _exit(91);
  while (fgets(line, sizeof line, tasks)) {
    pid_t pid = atoi(line);
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) < 0 || ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0) _exit(92);
  }
  rewind(tasks);
  thaw();
  while (fgets(line, sizeof line, tasks))
    if (waitpid(atoi(line), NULL, __WALL) < 0) _exit(93);
  fclose(tasks);
}

static void fill_file(int dir, const char *name) {
  static char bytes[65536];
  int fd = openat(dir, name, O_WRONLY | O_CREAT, 0600);
  if (fd < 0) _exit(94);
  while (write(fd, bytes, sizeof bytes) > 0) {}
  close(fd);
}

static void make_files(void) {
  char name[32];
  for (int i = 0;; i++) {
    snprintf(name, sizeof name, "ghost-%d.img", i);
    int fd = openat(IMAGES_FD, name, O_WRONLY | O_CREAT, 0600);
    if (fd < 0) _exit(95);
    close(fd);
    usleep(1000);
  }
}

static void do_word(const char *word) {
  if (!strcmp(word, "hold")) hold();
  else if (!strcmp(word, "thaw")) thaw();
  else if (!strcmp(word, "hang")) for (;;) pause();
  else if (!strcmp(word, "spin")) for (volatile int on = 1; on;) {}
  else if (!strcmp(word, "child")) {
    if (fork() == 0) for (;;) pause();
  } else if (!strcmp(word, "fill")) fill_file(IMAGES_FD, "pages-1.img");
  else if (!strcmp(word, "files")) make_files();
  else if (!strcmp(word, "log")) fill_file(WORK_FD, "log");
  else if (!strcmp(word, "link")) {
    if (symlinkat("/proc/self/status", WORK_FD, "log") < 0) _exit(96);
  } else if (!strcmp(word, "loud")) {
    for (int i = 0; i < 100000; i++) (void)!write(STDERR_FILENO, "Error (loud): loud\n", 19);
  } else if (!strcmp(word, "stop")) raise(SIGSTOP);
  else if (!strcmp(word, "die")) raise(SIGKILL);
  else if (!strcmp(word, "fail")) _exit(1);
  else _exit(97);
}

int main(void) {
  char text[SCRIPT_BYTES_MAX + 1];
  int self = open("/proc/self/exe", O_RDONLY);
  off_t size = self < 0 ? -1 : lseek(self, 0, SEEK_END);
  ssize_t got = size < SCRIPT_BYTES_MAX ? -1 : pread(self, text, SCRIPT_BYTES_MAX, size - SCRIPT_BYTES_MAX);
  if (got < 0) return 98;
  text[got] = 0;
  ssize_t from = got;
  while (from > 0 && text[from - 1] != '\n') from--;
  for (char *word = strtok(text + from, " "); word; word = strtok(NULL, " ")) do_word(word);
  return 0;
}
