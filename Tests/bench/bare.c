// SPDX-License-Identifier: Apache-2.0
//
// An NBD server that does nothing but move bytes: what a client, a socket and the storage cost by themselves. No bound: a
// server that chooses better when to sleep can be faster. It takes as many requests as one recv brings and answers all of
// them with one sendmsg, behind a pause eight at a time, as xbd-user does (docs/data-path.md, "Eight at a time"); it checks
// hardly anything, and cannot flush. Memory leaves from where it lies; a file is read and written with one system call for
// each request.
//
//     bare SOCKET SIZE MICROSECONDS [FILE]
//
// FILE: what is served instead of memory.
// MICROSECONDS: after a turn that brought several requests it sleeps that long, so that more of them pile up; what a
// client that keeps its processor busy is served fastest by (docs/data-path.md, "Gathering").
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 4 << 20, LARGEST = 1 << 20, REQUEST = 28, REPLY = 16, CHUNK = 28, BATCH = 500, AT_ONCE = 8 };
enum { OPTION_EXPORT_NAME = 1, OPTION_ABORT = 2, OPTION_INFO = 6, OPTION_GO = 7, OPTION_STRUCTURED_REPLY = 8 };
enum { COMMAND_READ = 0, COMMAND_WRITE = 1, COMMAND_DISCONNECT = 2 };

struct connection {
  int socket;
  int structured;  // the client asked for it, as every server's client in the bench does: a read costs it two more receives
  size_t filled;
  size_t whole;  // bytes of the request that was answered last: the next one is taken to be like it
  char *buffer;
};

static uint64_t disk_size;
static char *memory;
static int file = -1;
// What was read for the replies of one turn.
static char staged[BUFFER];

static void put16(char *to, uint16_t v) { v = htobe16(v); memcpy(to, &v, sizeof v); }
static void put32(char *to, uint32_t v) { v = htobe32(v); memcpy(to, &v, sizeof v); }
static void put64(char *to, uint64_t v) { v = htobe64(v); memcpy(to, &v, sizeof v); }
static uint16_t get16(const char *from) { uint16_t v; memcpy(&v, from, sizeof v); return be16toh(v); }
static uint64_t get64(const char *from) { uint64_t v; memcpy(&v, from, sizeof v); return be64toh(v); }
static uint32_t get32(const char *from) { uint32_t v; memcpy(&v, from, sizeof v); return be32toh(v); }

static int read_all(int s, char *to, size_t n) {
  while (n > 0) {
    ssize_t got = read(s, to, n);
    if (got <= 0) return -1;
    to += got, n -= (size_t)got;
  }
  return 0;
}

static int answer_option(int s, uint32_t option, uint32_t type, const char *data, uint32_t length) {
  char head[20 + 16];
  put64(head, 0x3e889045565a9), put32(head + 8, option), put32(head + 12, type), put32(head + 16, length);
  memcpy(head + 20, data, length);
  return send(s, head, 20 + length, MSG_NOSIGNAL) < 0 ? -1 : 0;
}

// Fixed newstyle, without anything that is not needed.
static int shake_hands(int s, int *structured) {
  char text[4096];
  put64(text, 0x4e42444d41474943), put64(text + 8, 0x49484156454f5054), put16(text + 16, 3);
  if (send(s, text, 18, MSG_NOSIGNAL) != 18 || read_all(s, text, 4) < 0) return -1;
  for (;;) {
    if (read_all(s, text, 16) < 0) return -1;
    uint32_t option = get32(text + 8), length = get32(text + 12);
    if (length > sizeof text || read_all(s, text, length) < 0 || option == OPTION_EXPORT_NAME) return -1;
    if (option == OPTION_STRUCTURED_REPLY) {
      *structured = 1;
      if (answer_option(s, option, 1, "", 0) < 0) return -1;
      continue;
    }
    if (option != OPTION_GO && option != OPTION_INFO) {
      if (answer_option(s, option, option == OPTION_ABORT ? 1 : 0x80000001, "", 0) < 0) return -1;
      if (option == OPTION_ABORT) return -1;
      continue;
    }
    char info[12];
    // Flags, FLUSH, FUA, MULTI_CONN.
    put16(info, 0), put64(info + 2, disk_size), put16(info + 10, 1 | 1 << 2 | 1 << 3 | 1 << 8);
    if (answer_option(s, option, 3, info, sizeof info) < 0 || answer_option(s, option, 1, "", 0) < 0) return -1;
    if (option == OPTION_GO) return 0;
  }
}

static int send_all(int s, struct iovec *vectors, int count) {
  while (count > 0) {
    struct msghdr message = {.msg_iov = vectors, .msg_iovlen = (size_t)count};
    ssize_t sent = sendmsg(s, &message, MSG_NOSIGNAL);
    if (sent < 0) return -1;
    for (; count > 0 && (size_t)sent >= vectors->iov_len; count--) sent -= (ssize_t)vectors++->iov_len;
    if (count > 0) vectors->iov_base = (char *)vectors->iov_base + sent, vectors->iov_len -= (size_t)sent;
  }
  return 0;
}

// Answers what the buffer begins with; how many requests that were, or -1 when the client is gone.
static int answer(struct connection *c, size_t *taken) {
  static struct iovec vectors[2 * BATCH];
  static char heads[BATCH][CHUNK];
  size_t at = *taken, used = 0;
  int requests = 0, count = 0;
  while (requests < BATCH && c->filled - at >= REQUEST) {
    const char *head = c->buffer + at;
    uint16_t command = get16(head + 6);
    uint64_t from = get64(head + 16);
    uint32_t length = get32(head + 24);
    if (command == COMMAND_DISCONNECT || length > LARGEST || from > disk_size || length > disk_size - from) return -1;
    size_t whole = REQUEST + (command == COMMAND_WRITE ? length : 0);
    if (c->filled - at < whole || used + length > sizeof staged) break;
    if (command == COMMAND_WRITE && memory) memcpy(memory + from, head + REQUEST, length);
    if (command == COMMAND_WRITE && !memory && pwrite(file, head + REQUEST, length, (off_t)from) != (ssize_t)length) return -1;
    char *reply = heads[requests++];
    int chunk = c->structured && command == COMMAND_READ;
    if (chunk) {
      // The only one of its reply (DONE), OFFSET_DATA.
      put32(reply, 0x668e33ef), put16(reply + 4, 1), put16(reply + 6, 1);
      put32(reply + 16, 8 + length), memcpy(reply + 20, head + 16, 8);
    } else {
      put32(reply, 0x67446698), put32(reply + 4, 0);
    }
    memcpy(reply + 8, head + 8, 8);
    vectors[count++] = (struct iovec){reply, chunk ? CHUNK : REPLY};
    if (command == COMMAND_READ) {
      vectors[count++] = (struct iovec){memory ? memory + from : staged + used, length};
      if (!memory && pread(file, staged + used, length, (off_t)from) != (ssize_t)length) return -1;
      used += length;
    }
    at += whole;
    c->whole = whole;
  }
  *taken = at;
  return send_all(c->socket, vectors, count) < 0 ? -1 : requests;
}

// One recv, and one sendmsg unless that brought very much; so on while a recv brings all that it was let.
static int turn(struct connection *c, int at_once) {
  int all = 0;
  for (;;) {
    size_t room = BUFFER - c->filled, wanted = (size_t)at_once * c->whole;
    if (wanted > c->filled && wanted - c->filled < room) room = wanted - c->filled;
    ssize_t got = recv(c->socket, c->buffer + c->filled, room, MSG_DONTWAIT);
    if (got <= 0) return got < 0 && errno == EAGAIN ? all : -1;
    c->filled += (size_t)got;
    size_t taken = 0;
    for (int some = 1; some > 0; all += some)
      if ((some = answer(c, &taken)) < 0) return -1;
    memmove(c->buffer, c->buffer + taken, c->filled - taken);
    c->filled -= taken;
    if (!at_once || (size_t)got < room) return all;
  }
}

static int add(int epoll, int s, struct connection *c) {
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, s, &event);
}

static void welcome(int epoll, int listener) {
  int s = accept(listener, NULL, NULL);
  if (s < 0) return;
  struct connection *c = calloc(1, sizeof *c);
  if (!c || shake_hands(s, &c->structured) < 0 || !(c->buffer = malloc(BUFFER))) {
    free(c), close(s);
    return;
  }
  // As xbd-user does where it may.
  setsockopt(s, SOL_SOCKET, SO_SNDBUFFORCE, &(int){1 << 20}, sizeof(int));
  c->socket = s;
  add(epoll, s, c);
}

int main(int count, char **words) {
  if (count < 4) return fprintf(stderr, "usage: bare SOCKET SIZE MICROSECONDS [FILE]\n"), 2;
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s", words[1]);
  disk_size = strtoull(words[2], NULL, 10);
  struct timespec rest = {.tv_nsec = atoi(words[3]) * 1000L};
  if (count > 4 && (file = open(words[4], O_RDWR)) < 0) return perror(words[4]), 1;
  if (file < 0) {
    memory = mmap(NULL, disk_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return perror("memory"), 1;
  }
  int listener = socket(AF_UNIX, SOCK_STREAM, 0), epoll = epoll_create1(0);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 8) < 0 || add(epoll, listener, NULL) < 0)
    return perror(words[1]), 1;
  for (int busy = 0;;) {
    struct epoll_event events[16];
    if (rest.tv_nsec && busy > 1) nanosleep(&rest, NULL);
    int ready = epoll_wait(epoll, events, 16, -1);
    busy = 0;
    for (int i = 0; i < ready; i++) {
      struct connection *c = events[i].data.ptr;
      if (!c) {
        welcome(epoll, listener);
        continue;
      }
      int requests = turn(c, rest.tv_nsec ? AT_ONCE : 0);
      if (requests < 0) close(c->socket), free(c->buffer), free(c);
      else busy += requests;
    }
  }
}
