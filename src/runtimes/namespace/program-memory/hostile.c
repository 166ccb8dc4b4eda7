/*
 * Programs that do not want to stand still while their memory is kept: they say so when they see who keeps it.
 *   undo           lets a timer of its own send the signal that undoes a stop
 *   forge HELPER   makes a process of the helper's executable and process 1's name, and has that look
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void look(void) {
  DIR *dir = opendir("/proc");
  struct dirent *entry;
  char path[300], name[32];
  while (dir && (entry = readdir(dir))) {
    if (atoi(entry->d_name) <= 0) continue;
    snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
    FILE *file = fopen(path, "r");
    if (!file) continue;
    if (fgets(name, sizeof name, file) && !strcmp(name, "criu\n")) {
      printf("saw it\n");
      fflush(stdout);
    }
    fclose(file);
  }
  if (dir) closedir(dir);
}

static void undo(void) {
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGCONT};
  struct itimerspec often = {.it_value.tv_nsec = 1000000, .it_interval.tv_nsec = 1000000};
  timer_t timer;
  signal(SIGCONT, SIG_IGN);
  if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0 || timer_settime(timer, 0, &often, NULL) < 0) exit(1);
  printf("ready\n");
  fflush(stdout);
  for (;;) look();
}

#ifdef __x86_64__
/* One system call, in the place of whatever the process would have executed. */
static long inject(pid_t pid, long number, long first, long second) {
  struct user_regs_struct before, now;
  ptrace(PTRACE_GETREGS, pid, NULL, &before);
  long code = ptrace(PTRACE_PEEKTEXT, pid, (void *)before.rip, NULL);
  ptrace(PTRACE_POKETEXT, pid, (void *)before.rip, (void *)((code & ~0xffffL) | 0x050f));
  now = before;
  now.rax = (unsigned long)number;
  now.orig_rax = (unsigned long)-1;
  now.rdi = (unsigned long)first;
  now.rsi = (unsigned long)second;
  ptrace(PTRACE_SETREGS, pid, NULL, &now);
  ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL);
  waitpid(pid, NULL, 0);
  ptrace(PTRACE_GETREGS, pid, NULL, &now);
  ptrace(PTRACE_POKETEXT, pid, (void *)before.rip, (void *)code);
  ptrace(PTRACE_SETREGS, pid, NULL, &before);
  return (long)now.rax;
}

static void forge(char *helper) {
  pid_t pid = fork();
  if (pid == 0) {
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    execl(helper, "sandbox-api", (char *)NULL);

    _exit(1);
  }
  waitpid(pid, NULL, 0);
  struct user_regs_struct registers;
  ptrace(PTRACE_GETREGS, pid, NULL, &registers);
  /* Below what the stack has. */
  long at = (long)(registers.rsp - 4096) & ~7L, words[2] = {0};
  memcpy(words, "hutch-guest", 12);
  for (int i = 0; i < 2; i++) ptrace(PTRACE_POKEDATA, pid, (void *)(at + 8 * i), (void *)words[i]);
  if (inject(pid, SYS_prctl, PR_SET_NAME, at) != 0) exit(2);
  ptrace(PTRACE_DETACH, pid, NULL, NULL);
  printf("ready\n");
  fflush(stdout);
  for (;;) pause();
}
#else
static void forge(char *helper) {
  (void)helper;
  exit(3);
}
#endif

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], "undo")) undo();
  if (argc > 2 && !strcmp(argv[1], "forge")) forge(argv[2]);
  return 1;
}
