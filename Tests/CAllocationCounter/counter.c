// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "include/CAllocationCounter.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WATCHES 16

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static _Atomic int watched[WATCHES];
static _Atomic uint64_t counts[WATCHES];
static _Atomic int watching;
static __thread int own_id;

static void count(void) {
    // Free of charge unless some test watches.
    if (atomic_load_explicit(&watching, memory_order_relaxed) == 0) return;
    if (own_id == 0) own_id = (int)syscall(SYS_gettid);
    for (int i = 0; i < WATCHES; i++) {
        if (atomic_load_explicit(&watched[i], memory_order_relaxed) == own_id) atomic_fetch_add(&counts[i], 1);
    }
}

// The sanitizers bring a malloc of their own: under them nothing is counted.
#if !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer)

void *malloc(size_t size) {
    count();
    return __libc_malloc(size);
}
void *calloc(size_t n, size_t size) {
    count();
    return __libc_calloc(n, size);
}
void *realloc(void *old, size_t size) {
    count();
    return __libc_realloc(old, size);
}
void *aligned_alloc(size_t alignment, size_t size) {
    count();
    return __libc_memalign(alignment, size);
}
int posix_memalign(void **result, size_t alignment, size_t size) {
    count();
    void *memory = __libc_memalign(alignment, size);
    if (memory == NULL) return ENOMEM;
    *result = memory;
    return 0;
}

#else
// Used by the functions above only.
void allocation_counter_unused(void) { count(); }
#endif

int allocation_counter_watch(int thread_id) {
    for (int i = 0; i < WATCHES; i++) {
        int unused = 0;
        if (atomic_compare_exchange_strong(&watched[i], &unused, thread_id)) {
            atomic_store(&counts[i], 0);
            atomic_fetch_add(&watching, 1);
            return i;
        }
    }
    return -1;
}
uint64_t allocation_counter_count(int watch) { return atomic_load(&counts[watch]); }
void allocation_counter_unwatch(int watch) {
    atomic_store(&watched[watch], 0);
    atomic_fetch_sub(&watching, 1);
}
