// SPDX-License-Identifier: Apache-2.0
//
// Every size and offset that the Swift code relies on, checked against Xen's own headers while compiling.
#include "include/CXen.h"

#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "size of " #type)
#define AT(type, field, bytes) _Static_assert(offsetof(type, field) == (bytes), #type "." #field)

// blkif.h, native layout (x86_64, arm32 and arm64 agree).
SIZE(struct blkif_request_segment, 8);
AT(struct blkif_request_segment, gref, 0);
AT(struct blkif_request_segment, first_sect, 4);
AT(struct blkif_request_segment, last_sect, 5);

SIZE(blkif_request_t, 112);
AT(blkif_request_t, operation, 0);
AT(blkif_request_t, nr_segments, 1);
AT(blkif_request_t, handle, 2);
AT(blkif_request_t, id, 8);
AT(blkif_request_t, sector_number, 16);
AT(blkif_request_t, seg, 24);

SIZE(blkif_request_discard_t, 32);
AT(blkif_request_discard_t, flag, 1);
AT(blkif_request_discard_t, handle, 2);
AT(blkif_request_discard_t, id, 8);
AT(blkif_request_discard_t, sector_number, 16);
AT(blkif_request_discard_t, nr_sectors, 24);

SIZE(blkif_request_indirect_t, 64);
AT(blkif_request_indirect_t, indirect_op, 1);
AT(blkif_request_indirect_t, nr_segments, 2);
AT(blkif_request_indirect_t, id, 8);
AT(blkif_request_indirect_t, sector_number, 16);
AT(blkif_request_indirect_t, handle, 24);
AT(blkif_request_indirect_t, indirect_grefs, 28);

SIZE(blkif_response_t, 16);
AT(blkif_response_t, id, 0);
AT(blkif_response_t, operation, 8);
AT(blkif_response_t, status, 10);

// The same for a 32-bit x86 guest.
SIZE(struct cxen_blkif_x86_32_request, 108);
AT(struct cxen_blkif_x86_32_request, id, 4);
AT(struct cxen_blkif_x86_32_request, sector_number, 12);
AT(struct cxen_blkif_x86_32_request, seg, 20);
SIZE(struct cxen_blkif_x86_32_request_discard, 28);
AT(struct cxen_blkif_x86_32_request_discard, nr_sectors, 20);
AT(struct cxen_blkif_x86_32_request_indirect, handle, 20);
AT(struct cxen_blkif_x86_32_request_indirect, indirect_grefs, 24);
SIZE(struct cxen_blkif_x86_32_request_indirect, 64);
SIZE(struct cxen_blkif_x86_32_response, 12);
AT(struct cxen_blkif_x86_32_response, operation, 8);
AT(struct cxen_blkif_x86_32_response, status, 10);

// ring.h: four indices, then 48 bytes nobody uses, then the slots.
AT(struct blkif_sring, req_prod, 0);
AT(struct blkif_sring, req_event, 4);
AT(struct blkif_sring, rsp_prod, 8);
AT(struct blkif_sring, rsp_event, 12);
AT(struct blkif_sring, ring, 64);
SIZE(union blkif_sring_entry, 112);

// Constants spelled in Swift.
_Static_assert(BLKIF_OP_READ == 0 && BLKIF_OP_WRITE == 1 && BLKIF_OP_WRITE_BARRIER == 2, "blkif operations");
_Static_assert(BLKIF_OP_FLUSH_DISKCACHE == 3 && BLKIF_OP_DISCARD == 5 && BLKIF_OP_INDIRECT == 6, "blkif operations");
_Static_assert(BLKIF_RSP_OKAY == 0 && BLKIF_RSP_ERROR == -1 && BLKIF_RSP_EOPNOTSUPP == -2, "blkif status");
_Static_assert(BLKIF_MAX_SEGMENTS_PER_REQUEST == 11, "segments of a direct request");
_Static_assert(BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST == 8, "pages of an indirect request");
_Static_assert(BLKIF_DISCARD_SECURE == 1, "discard flag");
_Static_assert(VDISK_CDROM == 1 && VDISK_REMOVABLE == 2 && VDISK_READONLY == 4, "info bits");
_Static_assert(XenbusStateUnknown == 0 && XenbusStateInitialising == 1 && XenbusStateInitWait == 2, "xenbus");
_Static_assert(XenbusStateInitialised == 3 && XenbusStateConnected == 4 && XenbusStateClosing == 5, "xenbus");
_Static_assert(XenbusStateClosed == 6 && XenbusStateReconfiguring == 7 && XenbusStateReconfigured == 8, "xenbus");

// xs_wire.h and grant_table.h.
SIZE(struct xsd_sockmsg, 16);
_Static_assert(XENSTORE_PAYLOAD_MAX == 4096, "xenstore payload");
SIZE(grant_ref_t, 4);
SIZE(domid_t, 2);
