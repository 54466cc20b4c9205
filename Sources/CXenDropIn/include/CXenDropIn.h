// SPDX-License-Identifier: Apache-2.0
//
// What the drop-in's Swift and C halves share: saying on stderr that something cannot be done, and
// what Linux is asked about memory.
#ifndef CXENDROPIN_H
#define CXENDROPIN_H

#include <stddef.h>
#include <stdint.h>

/// Writes "xenloopback[PID]: sentence" and a newline to stderr in one call; errno stays.
void xenloopback_log(const char *sentence);

/// Logs that a function does not exist on the loopback, sets errno to ENOSYS and returns -1.
int xenloopback_unsupported(const char *function);

/// Maps the pages of a shared mapping a second time, over what is at `place` (mremap with an old length of zero).
///
/// 0, or -1 with errno.
int xenloopback_map_again(void *pages, size_t length, void *place);

/// Whether this process can read the eight bytes at an address; 1 as well when the kernel will not say.
int xenloopback_is_readable(uintptr_t address);

#endif
