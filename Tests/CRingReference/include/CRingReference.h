// SPDX-License-Identifier: Apache-2.0
//
// Xen's own ring.h macros and blkif structs given linkage, so that tests can hold the Swift ring against them.
// One handle serves both ends and both layouts: `x86_32` picks the packed structs of a 32-bit guest.
#ifndef CRING_REFERENCE_H
#define CRING_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// One end of a ring. For a frontend `producer` is req_prod_pvt and `consumer` rsp_cons; for a backend they are
// rsp_prod_pvt and req_cons. Tests move both themselves, as drivers do.
struct cring {
    void *shared;
    uint32_t producer;
    uint32_t consumer;
    uint32_t capacity;
    bool x86_32;
};

// SHARED_RING_INIT moved to `start`, then FRONT_RING_ATTACH there (FRONT_RING_INIT when it is 0).
void cring_front_init(struct cring *ring, void *pages, size_t bytes, uint32_t start, bool x86_32);
// BACK_RING_ATTACH (BACK_RING_INIT when `start` is 0).
void cring_back_attach(struct cring *ring, void *pages, size_t bytes, uint32_t start, bool x86_32);

bool cring_push_requests_and_check_notify(struct cring *ring);
bool cring_push_responses_and_check_notify(struct cring *ring);
bool cring_final_check_for_requests(struct cring *ring);
bool cring_final_check_for_responses(struct cring *ring);
uint32_t cring_free_requests(const struct cring *ring);
uint32_t cring_unconsumed_requests(const struct cring *ring);
uint32_t cring_unconsumed_responses(const struct cring *ring);
bool cring_request_prod_overflow(const struct cring *ring, uint32_t producer);
bool cring_response_prod_overflow(const struct cring *ring, uint32_t producer);
void *cring_get_request(const struct cring *ring, uint32_t index);
void *cring_get_response(const struct cring *ring, uint32_t index);
size_t cring_slot_size(bool x86_32);

// Every field that any kind of request has; a kind uses some of them.
struct cring_segment {
    uint32_t reference;
    uint8_t first_sector;
    uint8_t last_sector;
};
struct cring_fields {
    uint8_t operation;
    uint64_t id;
    uint64_t sector;
    // direct
    uint8_t segment_count;
    uint16_t handle;
    struct cring_segment segments[11];
    // discard
    uint8_t discard_flag;
    uint64_t discard_sectors;
    // indirect
    uint8_t indirect_operation;
    uint16_t indirect_segment_count;
    uint16_t indirect_handle;
    uint32_t indirect_references[8];
};

// Write a request into a slot through the header's structs; the rest of the slot becomes zero.
void cring_write_direct(void *slot, bool x86_32, const struct cring_fields *fields);
void cring_write_discard(void *slot, bool x86_32, const struct cring_fields *fields);
void cring_write_indirect(void *slot, bool x86_32, const struct cring_fields *fields);
// Reads every field of every kind from the same bytes.
void cring_read_request(const void *slot, bool x86_32, struct cring_fields *fields);

void cring_write_response(void *slot, bool x86_32, uint64_t id, uint8_t operation, int16_t status);
void cring_read_response(const void *slot, bool x86_32, uint64_t *id, uint8_t *operation, int16_t *status);

#endif
