// SPDX-License-Identifier: Apache-2.0
//
// Counts allocations: this target defines malloc, calloc, realloc, aligned_alloc and posix_memalign for the program
// that links it, and passes them on to glibc. The count is per thread, so that tests running in parallel do not
// disturb each other.
#ifndef CALLOCATIONCOUNTER_H
#define CALLOCATIONCOUNTER_H

#include <stdint.h>

// Starts to count the allocations of the thread whose kernel id this is, from zero. One thread at a time for each
// of the 16 watches.
int allocation_counter_watch(int thread_id);
// What the watch has counted; safe from any thread.
uint64_t allocation_counter_count(int watch);
// Ends a watch.
void allocation_counter_unwatch(int watch);

#endif
