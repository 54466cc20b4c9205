// SPDX-License-Identifier: Apache-2.0
//
// A C program linked against the real libxengnttab and libxenevtchn that calls every function of their headers and
// compares with what Linux's drivers answer. It shares with its own domain, which Xen allows, and forks a child that
// acts for domain 2. Runs with the drop-in preloaded as domain 1, whose page limit is 64; on real Xen it would need
// a second domain in the child's place.
//
//   xen-walk          all checks; ends with "N checks, M failed"
//   xen-walk open     that opening fails with ENOENT, for want of a host
//   xen-walk join     that the handles of a process are one connection to the host
//   xen-walk misuse   that NULL and numbers without sense are an errno, each group in a process of its own
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <xenevtchn.h>
#include <xengnttab.h>

#define PAGE 4096
#define SELF 1
#define OTHER 2

static int checks, failures;

static void check(int holds, int line, const char *what) {
  checks++;
  if (holds) return;
  failures++;
  printf("walk.c:%d: %s (errno %d, %s)\n", line, what, errno, strerror(errno));
}

#define CHECK(condition) check((condition), __LINE__, #condition)
// The call fails with -1 or NULL, and with this errno.
#define FAILS(call, code) (errno = 0, check((call) == -1 && errno == (code), __LINE__, #call " is -1 with " #code))
#define FAILS_NULL(call, code) \
  (errno = 0, check((call) == NULL && errno == (code), __LINE__, #call " is NULL with " #code))

static int readable(int fd, int milliseconds) {
  struct pollfd look = {.fd = fd, .events = POLLIN};
  return poll(&look, 1, milliseconds) == 1;
}

// MARK: xengntshr_*

static void sharing(xengntshr_handle *xgs, xengnttab_handle *xgt) {
  uint32_t refs[65], ref;
  CHECK(fcntl(xengntshr_fd(xgs), F_GETFD) == FD_CLOEXEC);
  FAILS_NULL(xengntshr_share_pages(xgs, SELF, 0, refs, 1), EINVAL);
  unsigned char *pages = xengntshr_share_pages(xgs, SELF, 64, refs, 1);
  CHECK(pages != NULL);
  int zero = 1;
  for (int i = 0; pages && i < 64 * PAGE; i++) zero &= pages[i] == 0;
  CHECK(zero);
  // gntalloc's limit is the whole domain's.
  FAILS_NULL(xengntshr_share_pages(xgs, SELF, 1, &ref, 1), ENOSPC);
  FAILS(xengntshr_unshare(xgs, pages, 63), EINVAL);
  FAILS(xengntshr_unshare(xgs, pages + PAGE, 64), EINVAL);
  CHECK(xengntshr_unshare(xgs, pages, 64) == 0);
  FAILS(xengntshr_unshare(xgs, pages, 64), EINVAL);
  CHECK((pages = xengntshr_share_pages(xgs, SELF, 64, refs, 1)) != NULL);
  CHECK(xengntshr_unshare(xgs, pages, 64) == 0);
  // Pages outlive the handle, as with the device.
  xengntshr_handle *second = xengntshr_open(NULL, 0);
  CHECK((pages = xengntshr_share_pages(second, SELF, 1, &ref, 1)) != NULL);
  CHECK(xengntshr_close(second) == 0);
  unsigned char *mapped = xengnttab_map_grant_ref(xgt, SELF, ref, PROT_READ | PROT_WRITE);
  CHECK(mapped != NULL);
  if (pages && mapped) {
    pages[5] = 77;
    CHECK(mapped[5] == 77);
  }
  // Unmapping works after the grant has ended, and until then the page is there.
  CHECK(xengntshr_unshare(xgs, pages, 1) == 0);
  if (mapped) CHECK(mapped[5] == 77);
  CHECK(xengnttab_unmap(xgt, mapped, 1) == 0);
  FAILS_NULL(xengnttab_map_grant_ref(xgt, SELF, ref, PROT_READ), EINVAL);
  CHECK(xengntshr_close(NULL) == 0);
}

// MARK: xengnttab_*

static void mapping(xengntshr_handle *xgs, xengnttab_handle *xgt) {
  uint32_t refs[4], bad[2], domids[2], ref;
  CHECK(fcntl(xengnttab_fd(xgt), F_GETFD) == FD_CLOEXEC);
  CHECK(xengnttab_set_max_grants(xgt, 4096) == 0);
  unsigned char *pages = xengntshr_share_pages(xgs, SELF, 4, refs, 1);
  CHECK(pages != NULL);
  if (!pages) return;
  for (int i = 0; i < 4; i++) pages[i * PAGE] = (unsigned char)(i + 1);
  unsigned char *mapped = xengnttab_map_domain_grant_refs(xgt, 4, SELF, refs, PROT_READ | PROT_WRITE);
  CHECK(mapped && mapped[0] == 1 && mapped[PAGE] == 2 && mapped[2 * PAGE] == 3 && mapped[3 * PAGE] == 4);
  FAILS(xengnttab_unmap(xgt, mapped, 3), EINVAL);
  FAILS(xengnttab_unmap(xgt, NULL, 4), EINVAL);
  FAILS(xengnttab_unmap(xgt, pages, 4), EINVAL);
  CHECK(xengnttab_unmap(xgt, mapped, 4) == 0);
  FAILS(xengnttab_unmap(xgt, mapped, 4), EINVAL);
  domids[0] = domids[1] = SELF;
  mapped = xengnttab_map_grant_refs(xgt, 2, domids, refs + 2, PROT_READ);
  CHECK(mapped && mapped[0] == 3 && mapped[PAGE] == 4);
  CHECK(xengnttab_unmap(xgt, mapped, 2) == 0);

  // What is refused, each time as a whole.
  bad[0] = refs[0];
  bad[1] = 30000;
  FAILS_NULL(xengnttab_map_domain_grant_refs(xgt, 2, SELF, bad, PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_domain_grant_refs(xgt, 0, SELF, refs, PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_grant_ref(xgt, 1000, refs[0], PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_grant_ref(xgt, 0x12345, refs[0], PROT_READ), EINVAL);
  unsigned char *theirs = xengntshr_share_pages(xgs, OTHER, 1, &ref, 1);
  FAILS_NULL(xengnttab_map_grant_ref(xgt, SELF, ref, PROT_READ), EINVAL);
  CHECK(xengntshr_unshare(xgs, theirs, 1) == 0);
  unsigned char *constant = xengntshr_share_pages(xgs, SELF, 1, &ref, 0);
  FAILS_NULL(xengnttab_map_grant_ref(xgt, SELF, ref, PROT_READ | PROT_WRITE), EINVAL);
  CHECK((mapped = xengnttab_map_grant_ref(xgt, SELF, ref, PROT_READ)) != NULL);
  CHECK(xengnttab_unmap(xgt, mapped, 1) == 0);
  CHECK(xengntshr_unshare(xgs, constant, 1) == 0);
  CHECK(xengntshr_unshare(xgs, pages, 4) == 0);

  uint32_t number;
  FAILS(xengnttab_dmabuf_exp_from_refs(xgt, SELF, 0, 1, refs, &number), ENOSYS);
  FAILS(xengnttab_dmabuf_exp_wait_released(xgt, 0, 0), ENOSYS);
  FAILS(xengnttab_dmabuf_imp_to_refs(xgt, SELF, 0, 1, refs), ENOSYS);
  FAILS(xengnttab_dmabuf_imp_release(xgt, 0), ENOSYS);
  CHECK(xengnttab_close(NULL) == 0);
}

static void copying(xengntshr_handle *xgs, xengnttab_handle *xgt) {
  uint32_t refs[2], constant_ref;
  unsigned char *pages = xengntshr_share_pages(xgs, SELF, 2, refs, 1);
  unsigned char *constant = xengntshr_share_pages(xgs, SELF, 1, &constant_ref, 0);
  CHECK(pages && constant);
  if (!pages || !constant) return;
  char here[16] = "from here", there[16] = "";
  memcpy(pages + 100, "from there", 11);
  xengnttab_grant_copy_segment_t segments[4] = {
      {.source.foreign = {refs[0], 100, SELF}, .dest.virt = there, .len = 11, .flags = GNTCOPY_source_gref},
      {.source.virt = here, .dest.foreign = {30000, 0, SELF}, .len = 10, .flags = GNTCOPY_dest_gref},
      {.source.virt = here, .dest.foreign = {constant_ref, 0, SELF}, .len = 10, .flags = GNTCOPY_dest_gref},
      {.source.foreign = {refs[0], 100, SELF},
       .dest.foreign = {refs[1], 4085, SELF},
       .len = 11,
       .flags = GNTCOPY_source_gref | GNTCOPY_dest_gref},
  };
  // A refused segment does not stop the others.
  CHECK(xengnttab_grant_copy(xgt, 4, segments) == 0);
  CHECK(segments[0].status == GNTST_okay && strcmp(there, "from there") == 0);
  CHECK(segments[1].status < 0 && segments[2].status < 0 && constant[0] == 0);
  CHECK(segments[3].status == GNTST_okay && strcmp((char *)pages + PAGE + 4085, "from there") == 0);
  xengnttab_grant_copy_segment_t local = {.source.virt = here, .dest.virt = there, .len = 10};
  FAILS(xengnttab_grant_copy(xgt, 1, &local), EINVAL);
  segments[3].dest.foreign.offset = 4086;
  FAILS(xengnttab_grant_copy(xgt, 1, segments + 3), EINVAL);
  CHECK(xengntshr_unshare(xgs, pages, 2) == 0);
  CHECK(xengntshr_unshare(xgs, constant, 1) == 0);
}

// Of several domains in one call, the pages of one that follow each other need not do so in its grant table.
static void not_neighbours(xengntshr_handle *xgs, xengnttab_handle *xgt, uint32_t theirs) {
  uint32_t own[4], refs[8], domids[8];
  unsigned char *pages = xengntshr_share_pages(xgs, SELF, 4, own, 1);
  CHECK(pages != NULL);
  if (!pages) return;
  for (int i = 0; i < 4; i++) pages[i * PAGE] = (unsigned char)(i + 1);
  // Apart, in step, the other domain's, backwards, and the same page twice.
  const int order[8] = {0, 2, 3, -1, 3, 1, 1, 0};
  for (int i = 0; i < 8; i++) {
    refs[i] = order[i] < 0 ? theirs : own[order[i]];
    domids[i] = order[i] < 0 ? OTHER : SELF;
  }
  unsigned char *mapped = xengnttab_map_grant_refs(xgt, 8, domids, refs, PROT_READ | PROT_WRITE);
  CHECK(mapped != NULL);
  for (int i = 0; mapped && i < 8; i++) {
    CHECK(order[i] < 0 ? !strcmp((char *)mapped + i * PAGE, "domain 2") : mapped[i * PAGE] == order[i] + 1);
  }
  if (mapped) {
    mapped[PAGE] = 33;
    mapped[7 * PAGE] = 11;
    CHECK(pages[0] == 11 && pages[PAGE] == 2 && pages[2 * PAGE] == 33 && pages[3 * PAGE] == 4);
  }
  CHECK(xengnttab_unmap(xgt, mapped, 8) == 0);
  FAILS(xengnttab_unmap(xgt, mapped, 8), EINVAL);
  CHECK(xengntshr_unshare(xgs, pages, 4) == 0);
}

// A forked child has nothing of its parent's handles; it opens its own, here as another domain.
static void across_domains(xengntshr_handle *xgs, xengnttab_handle *xgt, xenevtchn_handle *xce) {
  int up[2], down[2];
  uint32_t theirs, ours;
  CHECK(pipe(up) == 0 && pipe(down) == 0);
  pid_t child = fork();
  if (child == 0) {
    setenv("XBD_LOOPBACK_DOMAIN", "2", 1);
    CHECK(xengntshr_close(xgs) == 0 && xengnttab_close(xgt) == 0 && xenevtchn_close(xce) == 0);
    xengntshr_handle *own = xengntshr_open(NULL, 0);
    char *page = own ? xengntshr_share_pages(own, SELF, 1, &theirs, 1) : NULL;
    if (!page) _exit(2);
    strcpy(page, "domain 2");
    if (write(up[1], &theirs, sizeof theirs) != sizeof theirs) _exit(3);
    char go;
    if (read(down[0], &go, 1) != 1) _exit(4);
    _exit(strcmp(page, "domain 1") == 0 ? failures : 5);
  }
  close(up[1]);
  if (read(up[0], &theirs, sizeof theirs) != sizeof theirs) theirs = 0;
  char *page = xengntshr_share_pages(xgs, SELF, 1, &ours, 1);
  CHECK(page != NULL);
  if (page) strcpy(page, "here");
  not_neighbours(xgs, xgt, theirs);
  uint32_t refs[3] = {theirs, ours, theirs}, domids[3] = {OTHER, SELF, OTHER};
  char *mapped = xengnttab_map_grant_refs(xgt, 3, domids, refs, PROT_READ | PROT_WRITE);
  CHECK(mapped && !strcmp(mapped, "domain 2") && !strcmp(mapped + PAGE, "here") &&
        !strcmp(mapped + 2 * PAGE, "domain 2"));
  if (mapped) {
    strcpy(mapped + 2 * PAGE, "domain 1");
    CHECK(!strcmp(mapped, "domain 1"));
  }
  FAILS(xengnttab_unmap(xgt, mapped, 2), EINVAL);
  CHECK(xengnttab_unmap(xgt, mapped, 3) == 0);
  refs[1] = 30000;
  FAILS_NULL(xengnttab_map_grant_refs(xgt, 3, domids, refs, PROT_READ), EINVAL);
  CHECK(write(down[1], "g", 1) == 1);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(xengntshr_unshare(xgs, page, 1) == 0);
  // The child's end took nothing of ours with it.
  CHECK(xenevtchn_bind_unbound_port(xce, SELF) > 0);
}

// MARK: xenevtchn_*

static void events(xenevtchn_handle *xce) {
  int fd = xenevtchn_fd(xce);
  CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
  CHECK((fcntl(fd, F_GETFL) & O_NONBLOCK) == 0);
  CHECK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0);
  FAILS(xenevtchn_pending(xce), EAGAIN);
  int here = xenevtchn_bind_unbound_port(xce, SELF);
  CHECK(here > 0);
  // Nobody is there yet: dropped, and no failure.
  CHECK(xenevtchn_notify(xce, (evtchn_port_t)here) == 0 && !readable(fd, 0));
  int there = xenevtchn_bind_interdomain(xce, SELF, (evtchn_port_t)here);
  CHECK(there > 0 && there != here);
  // The binder is pending at once, and only the binder.
  CHECK(readable(fd, 10000) && xenevtchn_pending(xce) == there);
  FAILS(xenevtchn_pending(xce), EAGAIN);
  FAILS(xenevtchn_bind_interdomain(xce, SELF, (evtchn_port_t)here), EINVAL);
  FAILS(xenevtchn_bind_interdomain(xce, SELF, 4000), EINVAL);
  FAILS(xenevtchn_bind_interdomain(xce, 1000, 1), ESRCH);
  FAILS(xenevtchn_bind_unbound_port(xce, 0x12345), EINVAL);
  // Masked until unmasked; many are one.
  CHECK(xenevtchn_notify(xce, (evtchn_port_t)here) == 0 && xenevtchn_notify(xce, (evtchn_port_t)here) == 0);
  CHECK(!readable(fd, 0));
  CHECK(xenevtchn_unmask(xce, (evtchn_port_t)there) == 0);
  CHECK(readable(fd, 10000) && xenevtchn_pending(xce) == there);
  CHECK(xenevtchn_unmask(xce, (evtchn_port_t)there) == 0 && !readable(fd, 0));
  // A closed peer: dropped, and no failure.
  CHECK(xenevtchn_unbind(xce, (evtchn_port_t)there) == 0);
  CHECK(xenevtchn_notify(xce, (evtchn_port_t)here) == 0 && !readable(fd, 0));
  FAILS(xenevtchn_unbind(xce, (evtchn_port_t)there), ENOTCONN);
  FAILS(xenevtchn_unbind(xce, 5000), EINVAL);
  FAILS(xenevtchn_notify(xce, (evtchn_port_t)there), ENOTCONN);
  CHECK(xenevtchn_unmask(xce, (evtchn_port_t)there) == 0);
  // It may be bound again, and then waits when it is asked to.
  CHECK((there = xenevtchn_bind_interdomain(xce, SELF, (evtchn_port_t)here)) > 0);
  CHECK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) == 0);
  CHECK(xenevtchn_pending(xce) == there);
  pid_t child = fork();
  if (child == 0) {
    // Only the parent's handle can end its waiting, so a second process of the domain does it through a new one.
    xenevtchn_handle *own = xenevtchn_open(NULL, 0);
    int port = own ? xenevtchn_bind_unbound_port(own, SELF) : -1;
    _exit(port > 0 && port != here && port != there ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  FAILS(xenevtchn_bind_virq(xce, 0), ENOSYS);
  FAILS_NULL(xenevtchn_open(NULL, 0x80), EINVAL);
  FAILS_NULL(xenevtchn_fdopen(NULL, fd, XENEVTCHN_NO_CLOEXEC), EINVAL);
  FAILS_NULL(xenevtchn_fdopen(NULL, fd, 0), ENOSYS);
  xenevtchn_handle *inherited = xenevtchn_open(NULL, XENEVTCHN_NO_CLOEXEC);
  CHECK(inherited && fcntl(xenevtchn_fd(inherited), F_GETFD) == 0);
  // A restricted handle knows one domain, for good.
  FAILS(xenevtchn_restrict(inherited, 0), EINVAL);
  CHECK(xenevtchn_restrict(inherited, OTHER) == 0);
  FAILS(xenevtchn_restrict(inherited, OTHER), EACCES);
  FAILS(xenevtchn_bind_unbound_port(inherited, SELF), EACCES);
  CHECK(xenevtchn_bind_unbound_port(inherited, OTHER) > 0);
  CHECK(xenevtchn_close(inherited) == 0 && xenevtchn_close(NULL) == 0);
}

// MARK: both

static void notifications(xengntshr_handle *xgs, xengnttab_handle *xgt, xenevtchn_handle *xce) {
  uint32_t ref;
  int here = xenevtchn_bind_unbound_port(xce, SELF);
  int there = xenevtchn_bind_interdomain(xce, SELF, (evtchn_port_t)here);
  CHECK(xenevtchn_pending(xce) == there && xenevtchn_unmask(xce, (evtchn_port_t)there) == 0);
  unsigned char *page = xengntshr_share_page_notify(xgs, SELF, &ref, 1, 9, (evtchn_port_t)here);
  CHECK(page != NULL);
  if (!page) return;
  memset(page, 1, PAGE);
  FAILS_NULL(xengnttab_map_grant_ref_notify(xgt, SELF, ref, PROT_READ, 3, -1), EINVAL);
  FAILS_NULL(xengnttab_map_grant_ref_notify(xgt, SELF, ref, PROT_READ | PROT_WRITE, 3, 4000), EINVAL);
  unsigned char *mapped =
      xengnttab_map_grant_ref_notify(xgt, SELF, ref, PROT_READ | PROT_WRITE, 3, (evtchn_port_t)there);
  CHECK(mapped != NULL);
  CHECK(xengnttab_unmap(xgt, mapped, 1) == 0);
  CHECK(page[2] == 1 && page[3] == 0 && page[4] == 1);
  CHECK(readable(xenevtchn_fd(xce), 10000) && xenevtchn_pending(xce) == here);
  CHECK(xenevtchn_unmask(xce, (evtchn_port_t)here) == 0);
  CHECK((mapped = xengnttab_map_grant_ref(xgt, SELF, ref, PROT_READ)) != NULL);
  CHECK(xengntshr_unshare(xgs, page, 1) == 0);
  CHECK(readable(xenevtchn_fd(xce), 10000) && xenevtchn_pending(xce) == there);
  if (mapped) CHECK(mapped[8] == 1 && mapped[9] == 0 && mapped[10] == 1);
  CHECK(xengnttab_unmap(xgt, mapped, 1) == 0);
  FAILS_NULL(xengntshr_share_page_notify(xgs, SELF, &ref, 1, -1, 4000), EINVAL);
  CHECK((page = xengntshr_share_page_notify(xgs, SELF, &ref, 1, -1, -1)) != NULL);
  CHECK(xengntshr_unshare(xgs, page, 1) == 0);
}

// MARK: misuse

struct handles {
  xengntshr_handle *xgs;
  xengnttab_handle *xgt;
  xenevtchn_handle *xce;
};

// The last `length` bytes before memory that cannot be read.
static void *before_the_end(size_t length) {
  unsigned char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED || mprotect(pages + PAGE, PAGE, PROT_NONE) != 0) _exit(9);
  return pages + PAGE - length;
}

static void no_handles(struct handles h) {
  uint32_t ref = 8, domid = SELF;
  xengnttab_grant_copy_segment_t segment = {.flags = GNTCOPY_source_gref};
  FAILS(xengnttab_fd(NULL), EINVAL);
  FAILS_NULL(xengnttab_map_grant_ref(NULL, SELF, 8, PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_grant_refs(NULL, 1, &domid, &ref, PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_domain_grant_refs(NULL, 1, SELF, &ref, PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_grant_ref_notify(NULL, SELF, 8, PROT_READ, 0, -1), EINVAL);
  FAILS(xengnttab_unmap(NULL, &ref, 1), EINVAL);
  FAILS(xengnttab_set_max_grants(NULL, 1), EINVAL);
  FAILS(xengnttab_grant_copy(NULL, 1, &segment), EINVAL);
  FAILS(xengntshr_fd(NULL), EINVAL);
  FAILS_NULL(xengntshr_share_pages(NULL, SELF, 1, &ref, 1), EINVAL);
  FAILS_NULL(xengntshr_share_page_notify(NULL, SELF, &ref, 1, 0, -1), EINVAL);
  FAILS(xengntshr_unshare(NULL, &ref, 1), EINVAL);
  FAILS(xenevtchn_fd(NULL), EINVAL);
  FAILS(xenevtchn_bind_unbound_port(NULL, SELF), EINVAL);
  FAILS(xenevtchn_bind_interdomain(NULL, SELF, 1), EINVAL);
  FAILS(xenevtchn_unbind(NULL, 1), EINVAL);
  FAILS(xenevtchn_notify(NULL, 1), EINVAL);
  FAILS(xenevtchn_unmask(NULL, 1), EINVAL);
  FAILS(xenevtchn_pending(NULL), EINVAL);
  FAILS(xenevtchn_restrict(NULL, 1), EINVAL);
  // To C the two kinds of grant handle are one.
  FAILS(xengnttab_fd(h.xgs), EINVAL);
  FAILS_NULL(xengnttab_map_grant_ref(h.xgs, SELF, 8, PROT_READ), EINVAL);
  FAILS_NULL(xengntshr_share_pages(h.xgt, SELF, 1, &ref, 1), EINVAL);
}

static void share_misused(struct handles h) {
  uint32_t ref;
  FAILS_NULL(xengntshr_share_pages(h.xgs, SELF, 1, NULL, 1), EINVAL);
  FAILS_NULL(xengntshr_share_pages(h.xgs, SELF, -1, &ref, 1), EINVAL);
  FAILS_NULL(xengntshr_share_pages(h.xgs, SELF, INT_MIN, &ref, 1), EINVAL);
  FAILS_NULL(xengntshr_share_pages(h.xgs, SELF, INT_MAX, &ref, 1), ENOSPC);
  FAILS_NULL(xengntshr_share_pages(h.xgs, UINT32_MAX, 1, &ref, 1), EINVAL);
  FAILS_NULL(xengntshr_share_pages(h.xgs, 0x7FF0, 1, &ref, 1), EINVAL);
  FAILS_NULL(xengntshr_share_page_notify(h.xgs, SELF, NULL, 1, -1, -1), EINVAL);
  FAILS(xengntshr_unshare(h.xgs, NULL, 1), EINVAL);
  unsigned char *page = xengntshr_share_page_notify(h.xgs, SELF, &ref, 1, UINT32_MAX - 1, -1);
  CHECK(page != NULL);
  FAILS(xengntshr_unshare(h.xgs, page, 0), EINVAL);
  FAILS(xengntshr_unshare(h.xgs, page, UINT32_MAX), EINVAL);
  CHECK(xengntshr_unshare(h.xgs, page, 1) == 0);
}

static void map_misused(struct handles h) {
  const uint32_t counts[] = {0, 65537, 1u << 31, UINT32_MAX};
  uint32_t *refs = before_the_end(2 * sizeof *refs), *domids = before_the_end(2 * sizeof *domids);
  unsigned char *pages = xengntshr_share_pages(h.xgs, SELF, 2, refs, 1);
  CHECK(pages != NULL);
  for (int same = 0; same < 2; same++) {
    domids[0] = SELF;
    domids[1] = same ? SELF : OTHER;
    for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
      FAILS_NULL(xengnttab_map_domain_grant_refs(h.xgt, counts[i], SELF, refs, PROT_READ), EINVAL);
      FAILS_NULL(xengnttab_map_grant_refs(h.xgt, counts[i], domids, refs, PROT_READ), EINVAL);
    }
  }
  FAILS_NULL(xengnttab_map_domain_grant_refs(h.xgt, 2, SELF, NULL, PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_grant_refs(h.xgt, 2, NULL, refs, PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_grant_refs(h.xgt, 2, domids, NULL, PROT_READ), EINVAL);
  domids[1] = UINT32_MAX;
  FAILS_NULL(xengnttab_map_grant_refs(h.xgt, 2, domids, refs, PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_grant_ref(h.xgt, SELF, UINT32_MAX, PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_grant_ref(h.xgt, UINT32_MAX, refs[0], PROT_READ), EINVAL);
  FAILS_NULL(xengnttab_map_grant_ref(h.xgt, 0x7FF0, refs[0], PROT_READ), EINVAL);
  unsigned char *mapped =
      xengnttab_map_grant_ref_notify(h.xgt, SELF, refs[0], PROT_READ | PROT_WRITE, UINT32_MAX - 1, -1);
  CHECK(mapped != NULL);
  FAILS(xengnttab_unmap(h.xgt, mapped, 0), EINVAL);
  FAILS(xengnttab_unmap(h.xgt, mapped, UINT32_MAX), EINVAL);
  CHECK(xengnttab_unmap(h.xgt, mapped, 1) == 0);
  CHECK(xengnttab_set_max_grants(h.xgt, UINT32_MAX) == 0);
  CHECK(xengntshr_unshare(h.xgs, pages, 2) == 0);
}

// What the driver says of addresses that nobody can have: EFAULT for the whole call.
static void copy_without_addresses(struct handles h) {
  uint32_t ref;
  char here[8] = "here";
  void *const nowhere[] = {NULL, (void *)16, (void *)(PAGE - 1), (void *)-1, (void *)(INTPTR_MIN)};
  unsigned char *page = xengntshr_share_pages(h.xgs, SELF, 1, &ref, 1);
  CHECK(page != NULL);
  CHECK(xengnttab_grant_copy(h.xgt, 0, NULL) == 0);
  FAILS(xengnttab_grant_copy(h.xgt, 1, NULL), EFAULT);
  FAILS(xengnttab_grant_copy(h.xgt, UINT32_MAX, NULL), EFAULT);
  for (unsigned i = 0; i < sizeof nowhere / sizeof *nowhere; i++) {
    xengnttab_grant_copy_segment_t out = {
        .source.foreign = {ref, 0, SELF}, .dest.virt = nowhere[i], .len = 4, .flags = GNTCOPY_source_gref};
    xengnttab_grant_copy_segment_t in = {
        .source.virt = nowhere[i], .dest.foreign = {ref, 0, SELF}, .len = 4, .flags = GNTCOPY_dest_gref};
    FAILS(xengnttab_grant_copy(h.xgt, 1, &out), EFAULT);
    FAILS(xengnttab_grant_copy(h.xgt, 1, &in), EFAULT);
    // Nothing to copy is nowhere looked for.
    in.len = out.len = 0;
    in.status = out.status = 7;
    CHECK(xengnttab_grant_copy(h.xgt, 1, &in) == 0 && in.status == GNTST_okay);
    CHECK(xengnttab_grant_copy(h.xgt, 1, &out) == 0 && out.status == GNTST_okay);
  }
  // The driver takes the segments in their order: what is wrong first is said.
  xengnttab_grant_copy_segment_t both[2] = {
      {.source.virt = here, .dest.foreign = {ref, 4090, SELF}, .len = 8, .flags = GNTCOPY_dest_gref},
      {.source.virt = NULL, .dest.foreign = {ref, 0, SELF}, .len = 4, .flags = GNTCOPY_dest_gref},
  };
  FAILS(xengnttab_grant_copy(h.xgt, 2, both), EINVAL);
  both[0].dest.foreign.offset = 0;
  FAILS(xengnttab_grant_copy(h.xgt, 2, both), EFAULT);
  CHECK(xengnttab_grant_copy(h.xgt, 1, both) == 0 && both[0].status == GNTST_okay && !strcmp((char *)page, "here"));
  CHECK(xengntshr_unshare(h.xgs, page, 1) == 0);
}

// More segments than there are: the driver meets the end of the memory, and says EFAULT.
static void copy_past_the_end(struct handles h) {
  uint32_t ref;
  char here[8] = "here";
  unsigned char *page = xengntshr_share_pages(h.xgs, SELF, 1, &ref, 1);
  CHECK(page != NULL);
  const uint32_t counts[] = {41, 1000, 1u << 31, UINT32_MAX};
  for (size_t odd = 0; odd <= 8; odd += 8) {
    xengnttab_grant_copy_segment_t *segments = before_the_end(40 * sizeof *segments + odd);
    for (int i = 0; i < 40; i++) {
      segments[i] = (xengnttab_grant_copy_segment_t){
          .source.virt = here, .dest.foreign = {ref, 8 * i, SELF}, .len = 8, .flags = GNTCOPY_dest_gref, .status = 7};
    }
    memset(page, 0, PAGE);
    for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
      FAILS(xengnttab_grant_copy(h.xgt, counts[i], segments), EFAULT);
    }
    CHECK(xengnttab_grant_copy(h.xgt, 40, segments) == 0);
    int done = 0;
    for (int i = 0; i < 40; i++) done += segments[i].status == GNTST_okay && !strcmp((char *)page + 8 * i, "here");
    CHECK(done == 40);
  }
  // An array may be longer than a page, and longer than what is taken at a time.
  xengnttab_grant_copy_segment_t *many = calloc(500, sizeof *many);
  char there[500] = "";
  memset(page, 'x', PAGE);
  for (int i = 0; many && i < 500; i++) {
    many[i] = (xengnttab_grant_copy_segment_t){
        .source.foreign = {i == 333 ? 30000 : ref, i, SELF}, .dest.virt = there + i, .len = 1,
        .flags = GNTCOPY_source_gref, .status = 7};
  }
  CHECK(many && xengnttab_grant_copy(h.xgt, 500, many) == 0);
  int done = 0;
  for (int i = 0; many && i < 500; i++) done += many[i].status == GNTST_okay && there[i] == 'x';
  CHECK(many && done == 499 && many[333].status == GNTST_bad_gntref && there[333] == 0);
  free(many);
  CHECK(xengntshr_unshare(h.xgs, page, 1) == 0);
}

static void events_misused(struct handles h) {
  FAILS(xenevtchn_bind_unbound_port(h.xce, UINT32_MAX), EINVAL);
  FAILS(xenevtchn_bind_interdomain(h.xce, UINT32_MAX, 1), EINVAL);
  FAILS(xenevtchn_bind_interdomain(h.xce, SELF, 0), EINVAL);
  FAILS(xenevtchn_bind_interdomain(h.xce, SELF, UINT32_MAX), EINVAL);
  FAILS(xenevtchn_unbind(h.xce, UINT32_MAX), EINVAL);
  FAILS(xenevtchn_notify(h.xce, 0), ENOTCONN);
  FAILS(xenevtchn_notify(h.xce, UINT32_MAX), ENOTCONN);
  CHECK(xenevtchn_unmask(h.xce, UINT32_MAX) == 0);
  FAILS(xenevtchn_restrict(h.xce, 0x7FF0), EINVAL);
  FAILS(xenevtchn_restrict(h.xce, UINT16_MAX), EINVAL);
  FAILS_NULL(xenevtchn_open(NULL, UINT_MAX), EINVAL);
  FAILS_NULL(xenevtchn_fdopen(NULL, -1, UINT_MAX), EINVAL);
}

// In a child, so that one that is killed does not hide the others.
static void alone(void (*body)(struct handles), const char *name) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    failures = 0;
    struct handles h = {xengntshr_open(NULL, 0), xengnttab_open(NULL, 0), xenevtchn_open(NULL, 0)};
    CHECK(h.xgs && h.xgt && h.xce);
    if (h.xgs && h.xgt && h.xce) {
      body(h);
      CHECK(xenevtchn_close(h.xce) == 0 && xengnttab_close(h.xgt) == 0 && xengntshr_close(h.xgs) == 0);
    }
    fflush(stdout);
    _exit(failures ? 1 : 0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  check(status == 0, __LINE__, name);
  if (WIFSIGNALED(status)) printf("%s: killed by signal %d\n", name, WTERMSIG(status));
}

static int sockets(void) {
  int count = 0;
  struct stat status;
  for (int fd = 0; fd < 1024; fd++) count += fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode);
  return count;
}

/* All handles are one connection to the host, which ends with the last of them. */
static void one_join(void) {
  int before = sockets();
  for (int round = 0; round < 2; round++) {
    xengntshr_handle *xgs = xengntshr_open(NULL, 0);
    CHECK(xgs && sockets() == before + 1);
    xengnttab_handle *xgt = xengnttab_open(NULL, 0);
    xenevtchn_handle *xce = xenevtchn_open(NULL, 0);
    CHECK(xgt && xce && sockets() == before + 1);
    CHECK(xengntshr_close(xgs) == 0 && xengnttab_close(xgt) == 0 && sockets() == before + 1);
    CHECK(xenevtchn_close(xce) == 0 && sockets() == before);
  }
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "open") == 0) {
    FAILS_NULL(xengntshr_open(NULL, 0), ENOENT);
    FAILS_NULL(xengnttab_open(NULL, 0), ENOENT);
    FAILS_NULL(xenevtchn_open(NULL, 0), ENOENT);
  } else if (argc > 1 && strcmp(argv[1], "join") == 0) {
    one_join();
  } else if (argc > 1 && strcmp(argv[1], "misuse") == 0) {
    alone(no_handles, "no handles");
    alone(share_misused, "sharing");
    alone(map_misused, "mapping");
    alone(copy_without_addresses, "copying without addresses");
    alone(copy_past_the_end, "copying past the end");
    alone(events_misused, "event channels");
  } else {
    xengntshr_handle *xgs = xengntshr_open(NULL, 0);
    xengnttab_handle *xgt = xengnttab_open(NULL, 0);
    xenevtchn_handle *xce = xenevtchn_open(NULL, 0);
    CHECK(xgs && xgt && xce);
    if (xgs && xgt && xce) {
      sharing(xgs, xgt);
      mapping(xgs, xgt);
      copying(xgs, xgt);
      events(xce);
      notifications(xgs, xgt, xce);
      across_domains(xgs, xgt, xce);
      CHECK(xenevtchn_close(xce) == 0 && xengnttab_close(xgt) == 0 && xengntshr_close(xgs) == 0);
    }
  }
  printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
