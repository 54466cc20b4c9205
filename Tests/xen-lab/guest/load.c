// SPDX-License-Identifier: Apache-2.0
//
// The load of the comparison with the kernel's blkfront: 4 KiB at random or 128 KiB in order, N in flight, either with
// AIO on a block device (O_DIRECT) or as NBD requests on a Unix socket.
//
//   load PATH read|write BYTES DEPTH SECONDS    prints requests per second and MiB
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int is_write;
static size_t bytes;
static unsigned depth;
static uint64_t disk, next_offset;
static double seconds;
static uint64_t done;

static void fail(const char *what) {
  fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint64_t place(void) {
  uint64_t slots = disk / bytes;
  if (bytes > 4096) return next_offset++ % slots * bytes;
  static uint64_t state = 88172645463325252u;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state % slots * bytes;
}

static void with_aio(const char *path) {
  int file = open(path, O_RDWR | O_DIRECT);
  if (file < 0 || ioctl(file, BLKGETSIZE64, &disk) < 0) fail(path);
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, depth, &context) < 0) fail("io_setup");
  struct iocb *blocks = calloc(depth, sizeof *blocks), **list = calloc(depth, sizeof *list);
  struct io_event *events = calloc(depth, sizeof *events);
  char *memory;
  if (!blocks || !list || !events || posix_memalign((void **)&memory, 4096, depth * bytes)) fail("memory");
  for (unsigned index = 0; index < depth; index++) {
    blocks[index].aio_fildes = (uint32_t)file;
    blocks[index].aio_lio_opcode = is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    blocks[index].aio_buf = (uintptr_t)(memory + index * bytes);
    blocks[index].aio_nbytes = bytes;
    blocks[index].aio_data = index;
    list[index] = &blocks[index];
  }
  long ready = depth;
  double end = now() + seconds;
  while (now() < end) {
    for (long index = 0; index < ready; index++) list[index]->aio_offset = (int64_t)place();
    if (syscall(SYS_io_submit, context, ready, list) != ready) fail("io_submit");
    ready = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
    if (ready < 1) fail("io_getevents");
    for (long index = 0; index < ready; index++) {
      if (events[index].res != (int64_t)bytes) fail("a request");
      list[index] = &blocks[events[index].data];
    }
    done += (uint64_t)ready;
  }
}

static void all(int line, void *data, size_t length, int out) {
  for (size_t at = 0; at < length;) {
    ssize_t moved = out ? write(line, (char *)data + at, length - at) : read(line, (char *)data + at, length - at);
    if (moved <= 0) fail("the NBD connection");
    at += (size_t)moved;
  }
}

static void with_nbd(const char *path) {
  int line = socket(AF_UNIX, SOCK_STREAM, 0);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  if (line < 0 || connect(line, (struct sockaddr *)&address, sizeof address) < 0) fail(path);
  char greeting[18], answer[10];
  all(line, greeting, sizeof greeting, 0);
  // Fixed newstyle, no zeroes; then NBD_OPT_EXPORT_NAME with the empty name.
  struct __attribute__((packed)) {
    uint32_t flags;
    uint64_t magic;
    uint32_t option, length;
  } hello = {htobe32(3), htobe64(0x49484156454F5054u), htobe32(1), 0};
  all(line, &hello, sizeof hello, 1);
  all(line, answer, sizeof answer, 0);
  memcpy(&disk, answer, 8);
  disk = be64toh(disk);
  struct __attribute__((packed)) request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
  };
  struct __attribute__((packed)) {
    uint32_t magic, error;
    uint64_t cookie;
  } reply;
  size_t one = sizeof(struct request) + (is_write ? bytes : 0);
  // Requests that became free together go out together, as a kernel's plug would send them.
  char *out = calloc(depth, one), *in = malloc(65536 + bytes);
  if (!out || !in) fail("memory");
  unsigned ready = depth;
  size_t held = 0;
  double end = now() + seconds;
  while (now() < end) {
    for (unsigned index = 0; index < ready; index++) {
      struct request *request = (struct request *)(out + index * one);
      request->magic = htobe32(0x25609513);
      request->type = htobe16(is_write ? 1 : 0);
      request->cookie = index;
      request->offset = htobe64(place());
      request->length = htobe32((uint32_t)bytes);
    }
    if (ready) all(line, out, ready * one, 1);
    ready = 0;
    size_t reply_bytes = sizeof reply + (is_write ? 0 : bytes);
    ssize_t got = read(line, in + held, 65536 + bytes - held);
    if (got <= 0) fail("the NBD connection");
    held += (size_t)got;
    size_t at = 0;
    while (held - at >= reply_bytes) {
      memcpy(&reply, in + at, sizeof reply);
      if (be32toh(reply.magic) != 0x67446698 || reply.error) fail("a reply");
      at += reply_bytes;
      ready++;
      done++;
    }
    memmove(in, in + at, held - at);
    held -= at;
  }
}

int main(int count, char **words) {
  if (count != 6) return 2;
  is_write = strcmp(words[2], "write") == 0;
  bytes = strtoul(words[3], NULL, 10);
  depth = (unsigned)strtoul(words[4], NULL, 10);
  seconds = strtod(words[5], NULL);
  struct stat what;
  if (stat(words[1], &what) < 0) fail(words[1]);
  double begin = now();
  if (S_ISSOCK(what.st_mode)) with_nbd(words[1]); else with_aio(words[1]);
  double took = now() - begin;
  printf("%.0f %.1f\n", (double)done / took, (double)(done * bytes) / 1048576);
}
