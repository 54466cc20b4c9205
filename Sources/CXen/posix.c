// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "include/cxen_posix.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

int cxen_memfd_create(const char *name, unsigned int flags) { return memfd_create(name, flags); }
int cxen_seal_size(int fd) { return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL); }
int cxen_accept4(int fd, int flags) { return accept4(fd, NULL, NULL, flags); }
int cxen_pipe2(int fds[2], int flags) { return pipe2(fds, flags); }
int cxen_fallocate(int fd, int mode, off_t offset, off_t length) { return fallocate(fd, mode, offset, length); }
ssize_t cxen_preadv2(int fd, const struct iovec *vectors, int count, off_t offset, int flags) {
    return preadv2(fd, vectors, count, offset, flags);
}
int cxen_set_timer_slack(unsigned long nanoseconds) { return prctl(PR_SET_TIMERSLACK, nanoseconds); }
int cxen_set_batch(int on) {
    struct sched_param none = {0};
    return sched_setscheduler(0, on ? SCHED_BATCH : SCHED_OTHER, &none);
}
int cxen_end_with_parent(int signal) { return prctl(PR_SET_PDEATHSIG, signal); }
int cxen_has_own_libxen(void) {
    Dl_info from;
    void *function = dlsym(RTLD_DEFAULT, "xenevtchn_open");
    if (function == NULL || dladdr(function, &from) == 0) return 1;
    const char *slash = strrchr(from.dli_fname, '/');
    return strstr(slash != NULL ? slash : from.dli_fname, "libxenevtchn") != NULL;
}
int cxen_gettid(void) { return (int)gettid(); }
int cxen_set_thread_name(const char *name) {
    char shortened[16];
    snprintf(shortened, sizeof(shortened), "%s", name);
    return pthread_setname_np(pthread_self(), shortened);
}

int cxen_get_status_flags(int fd) { return fcntl(fd, F_GETFL); }
int cxen_set_status_flags(int fd, int flags) { return fcntl(fd, F_SETFL, flags); }
int cxen_set_cloexec(int fd, int on) { return fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0); }
int cxen_lock_whole_file(int fd, int exclusive) {
    struct flock lock = {.l_type = exclusive ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET};
    int result = fcntl(fd, F_OFD_SETLK, &lock);
    if (result == -1 && errno == EACCES) errno = EAGAIN;
    return result;
}
int cxen_block_device_size(int fd, uint64_t *bytes) { return ioctl(fd, BLKGETSIZE64, bytes); }
int cxen_block_device_sector_size(int fd, int *bytes) { return ioctl(fd, BLKSSZGET, bytes); }
int cxen_block_device_discard(int fd, uint64_t offset, uint64_t length, int secure) {
    uint64_t range[2] = {offset, length};
    return ioctl(fd, secure ? BLKSECDISCARD : BLKDISCARD, range);
}
int cxen_is_block_device(mode_t mode) { return S_ISBLK(mode); }
int cxen_is_regular_file(mode_t mode) { return S_ISREG(mode); }

#define MAX_FDS 16

ssize_t cxen_send_with_fds(int socket, const void *data, size_t length, const int *fds, size_t fd_count) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    } control;
    struct iovec vector = {.iov_base = (void *)data, .iov_len = length};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (fd_count > MAX_FDS) {
        errno = EINVAL;
        return -1;
    }
    if (fd_count > 0) {
        memset(&control, 0, sizeof(control));
        message.msg_control = control.space;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(header), fds, sizeof(int) * fd_count);
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL);
}

ssize_t cxen_receive_with_fds(int socket, void *data, size_t length, int *fds, size_t *fd_count) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    } control;
    struct iovec vector = {.iov_base = data, .iov_len = length};
    struct msghdr message = {
        .msg_iov = &vector,
        .msg_iovlen = 1,
        .msg_control = control.space,
        .msg_controllen = sizeof(control.space),
    };
    size_t room = *fd_count;
    *fd_count = 0;
    ssize_t received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (received < 0) return received;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        const unsigned char *bytes = CMSG_DATA(header);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, bytes + i * sizeof(int), sizeof(int));
            if (*fd_count < room) {
                fds[(*fd_count)++] = fd;
            } else {
                close(fd);
            }
        }
    }
    return received;
}

const int cxen_O_CLOEXEC = O_CLOEXEC;
const int cxen_O_NONBLOCK = O_NONBLOCK;
const int cxen_MFD_CLOEXEC = MFD_CLOEXEC;
const int cxen_MFD_ALLOW_SEALING = MFD_ALLOW_SEALING;
const int cxen_FALLOC_FL_KEEP_SIZE = FALLOC_FL_KEEP_SIZE;
const int cxen_FALLOC_FL_PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE;
const int cxen_RWF_NOWAIT = RWF_NOWAIT;
const int cxen_MAP_POPULATE = MAP_POPULATE;
const int cxen_SEEK_HOLE = SEEK_HOLE;
