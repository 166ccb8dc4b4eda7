/* Which tasks descend from a program that process 1 spawned, however far they went from it. */
#ifndef HUTCH_DESCENT_H
#define HUTCH_DESCENT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct task {
  pid_t pid, parent, group, session;
  uint8_t below;
};

/*
 * For the child between clone and exec: what it starts can be told by it even after setsid and the death of every
 * parent. The mark is a soft limit that nothing enforces (RLIMIT_LOCKS), which forks and execs inherit.
 */
void descent_init(void);
/* What of the mark is this guest's own; taken over from the guest that programs were with before. */
uint32_t descent_own(void);
void descent_take_over(uint32_t own);
void descent_mark_self(uint32_t id);

/* All tasks there are, in order of pid; the array is grown as needed and is the caller's. */
size_t tasks_read(struct task **tasks);
/* NULL when there is none. */
struct task *tasks_find(struct task *tasks, size_t count, pid_t pid);
/*
 * Sets `below` of everything below `root` (which may be gone), with what bears the mark of `id`, and with its session and
 * group unless `root` is ourselves. Tasks in `known` (in order of pid) are not looked at for marks.
 */
void descent_of(struct task *tasks, size_t count, pid_t root, uint32_t id, struct task *known, size_t known_count);

#endif
