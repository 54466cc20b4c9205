// SPDX-License-Identifier: Apache-2.0
//
// The macros of xen/io/ring.h as functions. Each function rebuilds the macro's own struct from the handle, runs
// the macro, and stores the private indices back; REFERENCE does it once for each layout.
#include "CRingReference.h"

#include <string.h>

#include "CXen.h"

// ring.h leaves the barriers to whoever includes it; these are what Xen's own tools define for Linux.
#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()

DEFINE_RING_TYPES(cring_native, struct blkif_request, struct blkif_response);
DEFINE_RING_TYPES(cring_x86_32, struct cxen_blkif_x86_32_request, struct cxen_blkif_x86_32_response);

#define REFERENCE(L)                                                                                          \
    static L##_front_ring_t L##_front(const struct cring *ring) {                                             \
        L##_front_ring_t front = {ring->producer, ring->consumer, ring->capacity, ring->shared};              \
        return front;                                                                                         \
    }                                                                                                         \
    static L##_back_ring_t L##_back(const struct cring *ring) {                                               \
        L##_back_ring_t back = {ring->producer, ring->consumer, ring->capacity, ring->shared};                \
        return back;                                                                                          \
    }                                                                                                         \
    static void L##_front_init(struct cring *ring, size_t bytes, uint32_t start) {                            \
        L##_sring_t *shared = ring->shared;                                                                   \
        L##_front_ring_t front;                                                                               \
        SHARED_RING_INIT(shared);                                                                             \
        shared->req_prod += start;                                                                            \
        shared->rsp_prod += start;                                                                            \
        shared->req_event += start;                                                                           \
        shared->rsp_event += start;                                                                           \
        FRONT_RING_ATTACH(&front, shared, start, bytes);                                                      \
        ring->producer = front.req_prod_pvt;                                                                  \
        ring->consumer = front.rsp_cons;                                                                      \
        ring->capacity = front.nr_ents;                                                                       \
    }                                                                                                         \
    static void L##_back_attach(struct cring *ring, size_t bytes, uint32_t start) {                           \
        L##_sring_t *shared = ring->shared;                                                                   \
        L##_back_ring_t back;                                                                                 \
        BACK_RING_ATTACH(&back, shared, start, bytes);                                                        \
        ring->producer = back.rsp_prod_pvt;                                                                   \
        ring->consumer = back.req_cons;                                                                       \
        ring->capacity = back.nr_ents;                                                                        \
    }                                                                                                         \
    static bool L##_push_requests(struct cring *ring) {                                                       \
        L##_front_ring_t front = L##_front(ring);                                                             \
        bool notify;                                                                                          \
        RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&front, notify);                                                  \
        return notify;                                                                                        \
    }                                                                                                         \
    static bool L##_push_responses(struct cring *ring) {                                                      \
        L##_back_ring_t back = L##_back(ring);                                                                \
        bool notify;                                                                                          \
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back, notify);                                                  \
        return notify;                                                                                        \
    }                                                                                                         \
    static bool L##_final_check_requests(struct cring *ring) {                                                \
        L##_back_ring_t back = L##_back(ring);                                                                \
        unsigned int work;                                                                                    \
        RING_FINAL_CHECK_FOR_REQUESTS(&back, work);                                                           \
        return work != 0;                                                                                     \
    }                                                                                                         \
    static bool L##_final_check_responses(struct cring *ring) {                                               \
        L##_front_ring_t front = L##_front(ring);                                                             \
        unsigned int work;                                                                                    \
        RING_FINAL_CHECK_FOR_RESPONSES(&front, work);                                                         \
        return work != 0;                                                                                     \
    }                                                                                                         \
    static uint32_t L##_free_requests(const struct cring *ring) {                                             \
        L##_front_ring_t front = L##_front(ring);                                                             \
        return RING_FREE_REQUESTS(&front);                                                                    \
    }                                                                                                         \
    static uint32_t L##_unconsumed_requests(const struct cring *ring) {                                       \
        L##_back_ring_t back = L##_back(ring);                                                                \
        return XEN_RING_NR_UNCONSUMED_REQUESTS(&back);                                                        \
    }                                                                                                         \
    static uint32_t L##_unconsumed_responses(const struct cring *ring) {                                      \
        L##_front_ring_t front = L##_front(ring);                                                             \
        return XEN_RING_NR_UNCONSUMED_RESPONSES(&front);                                                      \
    }                                                                                                         \
    static bool L##_request_overflow(const struct cring *ring, uint32_t producer) {                           \
        L##_back_ring_t back = L##_back(ring);                                                                \
        return RING_REQUEST_PROD_OVERFLOW(&back, producer);                                                   \
    }                                                                                                         \
    static bool L##_response_overflow(const struct cring *ring, uint32_t producer) {                          \
        L##_front_ring_t front = L##_front(ring);                                                             \
        return RING_RESPONSE_PROD_OVERFLOW(&front, producer);                                                 \
    }                                                                                                         \
    static void *L##_request(const struct cring *ring, uint32_t index) {                                      \
        L##_back_ring_t back = L##_back(ring);                                                                \
        return RING_GET_REQUEST(&back, index);                                                                \
    }                                                                                                         \
    static void *L##_response(const struct cring *ring, uint32_t index) {                                     \
        L##_front_ring_t front = L##_front(ring);                                                             \
        return RING_GET_RESPONSE(&front, index);                                                              \
    }

REFERENCE(cring_native)
REFERENCE(cring_x86_32)

#define EITHER(ring, function, ...) \
    ((ring)->x86_32 ? cring_x86_32_##function(__VA_ARGS__) : cring_native_##function(__VA_ARGS__))

void cring_front_init(struct cring *ring, void *pages, size_t bytes, uint32_t start, bool x86_32) {
    ring->shared = pages;
    ring->x86_32 = x86_32;
    EITHER(ring, front_init, ring, bytes, start);
}
void cring_back_attach(struct cring *ring, void *pages, size_t bytes, uint32_t start, bool x86_32) {
    ring->shared = pages;
    ring->x86_32 = x86_32;
    EITHER(ring, back_attach, ring, bytes, start);
}
bool cring_push_requests_and_check_notify(struct cring *ring) { return EITHER(ring, push_requests, ring); }
bool cring_push_responses_and_check_notify(struct cring *ring) { return EITHER(ring, push_responses, ring); }
bool cring_final_check_for_requests(struct cring *ring) { return EITHER(ring, final_check_requests, ring); }
bool cring_final_check_for_responses(struct cring *ring) { return EITHER(ring, final_check_responses, ring); }
uint32_t cring_free_requests(const struct cring *ring) { return EITHER(ring, free_requests, ring); }
uint32_t cring_unconsumed_requests(const struct cring *ring) { return EITHER(ring, unconsumed_requests, ring); }
uint32_t cring_unconsumed_responses(const struct cring *ring) { return EITHER(ring, unconsumed_responses, ring); }
bool cring_request_prod_overflow(const struct cring *ring, uint32_t producer) {
    return EITHER(ring, request_overflow, ring, producer);
}
bool cring_response_prod_overflow(const struct cring *ring, uint32_t producer) {
    return EITHER(ring, response_overflow, ring, producer);
}
void *cring_get_request(const struct cring *ring, uint32_t index) { return EITHER(ring, request, ring, index); }
void *cring_get_response(const struct cring *ring, uint32_t index) { return EITHER(ring, response, ring, index); }
size_t cring_slot_size(bool x86_32) {
    return x86_32 ? sizeof(union cring_x86_32_sring_entry) : sizeof(union cring_native_sring_entry);
}
