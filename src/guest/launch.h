/* The launcher: a process that stays, and forks itself for each instance (launcher.c); one launch (launch.c). */
#ifndef HUTCH_LAUNCH_H
#define HUTCH_LAUNCH_H

#include <stddef.h>
#include <stdint.h>

/*
 * In a process of its own, with nothing open but stdin, stdout and stderr: makes an instance from its specification,
 * answers LAUNCHED or ERROR with id `request` on stdout, and stays as the instance's keeper.
 */
_Noreturn void launch(uint32_t request, const void *specification, size_t length);

#endif
