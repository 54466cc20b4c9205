// SPDX-License-Identifier: Apache-2.0
//
// Calls and constants of glibc that are behind _GNU_SOURCE or are macros, so that Swift does not see them.
// Each wrapper has the contract of the call it names: -1 and errno on failure.
#ifndef CXEN_POSIX_H
#define CXEN_POSIX_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

int cxen_memfd_create(const char *name, unsigned int flags);
// The size of a memfd that allows seals stays what it is, whoever holds it.
int cxen_seal_size(int fd);
int cxen_accept4(int fd, int flags);
int cxen_pipe2(int fds[2], int flags);
int cxen_fallocate(int fd, int mode, off_t offset, off_t length);
ssize_t cxen_preadv2(int fd, const struct iovec *vectors, int count, off_t offset, int flags);
// How late a timer of the calling thread may be, in nanoseconds; 50,000 unless set.
int cxen_set_timer_slack(unsigned long nanoseconds);
// SCHED_BATCH, or SCHED_OTHER, for the calling thread.
int cxen_set_batch(int on);
int cxen_gettid(void);
// PR_SET_PDEATHSIG: the signal that this process gets when the thread that started it is gone; survives exec.
int cxen_end_with_parent(int signal);
int cxen_set_thread_name(const char *name);
// Whether libxenevtchn's functions are that library's own, and not those of one that was preloaded in its place.
int cxen_has_own_libxen(void);

// fcntl with an argument, which is variadic in C.
int cxen_get_status_flags(int fd);
int cxen_set_status_flags(int fd, int flags);
int cxen_set_cloexec(int fd, int on);
// F_OFD_SETLK on the whole file: 0, or -1 with EAGAIN when another open file description holds a lock.
int cxen_lock_whole_file(int fd, int exclusive);
// BLKGETSIZE64 and BLKSSZGET of a block device; BLKDISCARD and BLKSECDISCARD of a byte range.
int cxen_block_device_size(int fd, uint64_t *bytes);
int cxen_block_device_sector_size(int fd, int *bytes);
int cxen_block_device_discard(int fd, uint64_t offset, uint64_t length, int secure);
int cxen_is_block_device(mode_t mode);
int cxen_is_regular_file(mode_t mode);

// One datagram or a stretch of a stream, with up to 16 descriptors. `fd_count` is in and out on receiving;
// received descriptors are close-on-exec.
ssize_t cxen_send_with_fds(int socket, const void *data, size_t length, const int *fds, size_t fd_count);
ssize_t cxen_receive_with_fds(int socket, void *data, size_t length, int *fds, size_t *fd_count);

// Tells the processor that this is a spin loop.
static inline void cxen_spin_hint(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

extern const int cxen_O_CLOEXEC;
extern const int cxen_O_NONBLOCK;
extern const int cxen_MFD_CLOEXEC;
extern const int cxen_MFD_ALLOW_SEALING;
extern const int cxen_FALLOC_FL_KEEP_SIZE;
extern const int cxen_FALLOC_FL_PUNCH_HOLE;
extern const int cxen_RWF_NOWAIT;
extern const int cxen_MAP_POPULATE;
extern const int cxen_SEEK_HOLE;

#endif
