// SPDX-License-Identifier: Apache-2.0
// The three user-space libraries of Xen that this package links, from libxen-dev.
#ifndef CLIBXEN_H
#define CLIBXEN_H

// Without this ring.h and xen-compat.h fall back to interfaces of Xen 3.
#ifndef __XEN_INTERFACE_VERSION__
#define __XEN_INTERFACE_VERSION__ 0x00040e00
#endif

#include <xenevtchn.h>
#include <xengnttab.h>
#include <xenstore.h>

#endif
