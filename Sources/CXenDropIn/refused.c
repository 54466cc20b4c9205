// SPDX-License-Identifier: Apache-2.0
//
// The libraries beside libxengnttab and libxenevtchn: a backend process opens them when it starts, and mostly leaves
// it at that. Opening and closing works; a function that would need a hypervisor or a guest's memory logs a line and
// fails with ENOSYS. The list is what the libraries of Xen 4.17 export and, of libxenctrl, what QEMU imports.
#define _GNU_SOURCE
#include "CXenDropIn.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void xenloopback_log(const char *sentence) {
  int saved = errno;
  dprintf(STDERR_FILENO, "xenloopback[%d]: %s\n", (int)getpid(), sentence);
  errno = saved;
}

int xenloopback_unsupported(const char *function) {
  char line[256];
  snprintf(line, sizeof line, "%s: a loopback Xen has no hypervisor to do this", function);
  xenloopback_log(line);
  errno = ENOSYS;
  return -1;
}

int xenloopback_map_again(void *pages, size_t length, void *place) {
  return mremap(pages, 0, length, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED ? -1 : 0;
}

int xenloopback_is_readable(uintptr_t address) {
  // The cheapest call that reads memory: a set of signals, to do with it what does not exist. EFAULT comes before EINVAL.
  int saved = errno;
  int refused = syscall(SYS_rt_sigprocmask, ~0, address, NULL, 8) == -1 && errno == EFAULT;
  errno = saved;
  return !refused;
}

// The headers are left out on purpose: a function that is refused needs no arguments, and what the caller put into
// registers for them does no harm.
#define REFUSED(name)                                                                                                \
  int name(void) { return xenloopback_unsupported(#name); }
#define REFUSED_POINTER(name)                                                                                        \
  void *name(void) {                                                                                                 \
    xenloopback_unsupported(#name);                                                                                  \
    return NULL;                                                                                                     \
  }
// A handle is a place in memory that nobody looks at.
#define OPENED(name)                                                                                                 \
  void *name(void) {                                                                                                 \
    static char handle;                                                                                              \
    return &handle;                                                                                                  \
  }
#define CLOSED(name)                                                                                                 \
  int name(void) { return 0; }

OPENED(xc_interface_open)
CLOSED(xc_interface_close)
REFUSED(xc_domain_bind_pt_pci_irq)
REFUSED(xc_domain_iomem_permission)
REFUSED(xc_domain_ioport_mapping)
REFUSED(xc_domain_memory_mapping)
REFUSED(xc_domain_populate_physmap_exact)
REFUSED(xc_domain_shutdown)
REFUSED(xc_domain_unbind_msi_irq)
REFUSED(xc_domain_unbind_pt_irq)
REFUSED(xc_domain_update_msi_irq)
REFUSED(xc_get_hvm_param)
REFUSED(xc_physdev_map_pirq)
REFUSED(xc_physdev_map_pirq_msi)
REFUSED(xc_physdev_unmap_pirq)
REFUSED(xc_set_hvm_param)

OPENED(xenforeignmemory_open)
CLOSED(xenforeignmemory_close)
REFUSED_POINTER(xenforeignmemory_map)
REFUSED_POINTER(xenforeignmemory_map2)
REFUSED_POINTER(xenforeignmemory_map_resource)
REFUSED(xenforeignmemory_resource_size)
REFUSED(xenforeignmemory_restrict)
REFUSED(xenforeignmemory_unmap)
REFUSED(xenforeignmemory_unmap_resource)

OPENED(xendevicemodel_open)
CLOSED(xendevicemodel_close)
REFUSED(xendevicemodel_create_ioreq_server)
REFUSED(xendevicemodel_destroy_ioreq_server)
REFUSED(xendevicemodel_get_ioreq_server_info)
REFUSED(xendevicemodel_inject_event)
REFUSED(xendevicemodel_inject_msi)
REFUSED(xendevicemodel_map_io_range_to_ioreq_server)
REFUSED(xendevicemodel_map_mem_type_to_ioreq_server)
REFUSED(xendevicemodel_map_pcidev_to_ioreq_server)
REFUSED(xendevicemodel_modified_memory)
REFUSED(xendevicemodel_modified_memory_bulk)
REFUSED(xendevicemodel_nr_vcpus)
REFUSED(xendevicemodel_pin_memory_cacheattr)
REFUSED(xendevicemodel_relocate_memory)
REFUSED(xendevicemodel_restrict)
REFUSED(xendevicemodel_set_ioreq_server_state)
REFUSED(xendevicemodel_set_irq_level)
REFUSED(xendevicemodel_set_isa_irq_level)
REFUSED(xendevicemodel_set_mem_type)
REFUSED(xendevicemodel_set_pci_intx_level)
REFUSED(xendevicemodel_set_pci_link_route)
REFUSED(xendevicemodel_shutdown)
REFUSED(xendevicemodel_track_dirty_vram)
REFUSED(xendevicemodel_unmap_io_range_from_ioreq_server)
REFUSED(xendevicemodel_unmap_pcidev_from_ioreq_server)

REFUSED(xentoolcore_restrict_all)
