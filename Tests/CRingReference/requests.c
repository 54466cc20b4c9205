// SPDX-License-Identifier: Apache-2.0
//
// Requests and responses written and read field by field through blkif.h's structs (and their 32-bit twins), so
// that the compiler, not a table of ours, says where each field lies.
#include <string.h>

#include "CRingReference.h"
#include "CXen.h"

#define KINDS(L, REQUEST, DISCARD, INDIRECT, RESPONSE)                                                    \
    static void L##_write_direct(void *slot, const struct cring_fields *fields) {                         \
        REQUEST *request = slot;                                                                          \
        request->operation = fields->operation;                                                           \
        request->nr_segments = fields->segment_count;                                                     \
        request->handle = fields->handle;                                                                 \
        request->id = fields->id;                                                                         \
        request->sector_number = fields->sector;                                                          \
        for (int i = 0; i < fields->segment_count && i < BLKIF_MAX_SEGMENTS_PER_REQUEST; i++) {           \
            request->seg[i].gref = fields->segments[i].reference;                                         \
            request->seg[i].first_sect = fields->segments[i].first_sector;                                \
            request->seg[i].last_sect = fields->segments[i].last_sector;                                  \
        }                                                                                                 \
    }                                                                                                     \
    static void L##_write_discard(void *slot, const struct cring_fields *fields) {                        \
        DISCARD *request = slot;                                                                          \
        request->operation = BLKIF_OP_DISCARD;                                                            \
        request->flag = fields->discard_flag;                                                             \
        request->handle = fields->handle;                                                                 \
        request->id = fields->id;                                                                         \
        request->sector_number = fields->sector;                                                          \
        request->nr_sectors = fields->discard_sectors;                                                    \
    }                                                                                                     \
    static void L##_write_indirect(void *slot, const struct cring_fields *fields) {                       \
        INDIRECT *request = slot;                                                                         \
        request->operation = BLKIF_OP_INDIRECT;                                                           \
        request->indirect_op = fields->indirect_operation;                                                \
        request->nr_segments = fields->indirect_segment_count;                                            \
        request->id = fields->id;                                                                         \
        request->sector_number = fields->sector;                                                          \
        request->handle = fields->indirect_handle;                                                        \
        for (int i = 0; i < BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST; i++)                                    \
            request->indirect_grefs[i] = fields->indirect_references[i];                                  \
    }                                                                                                     \
    static void L##_read_request(const void *slot, struct cring_fields *fields) {                         \
        const REQUEST *direct = slot;                                                                     \
        const DISCARD *discard = slot;                                                                    \
        const INDIRECT *indirect = slot;                                                                  \
        fields->operation = direct->operation;                                                            \
        fields->id = direct->id;                                                                          \
        fields->sector = direct->sector_number;                                                           \
        fields->segment_count = direct->nr_segments;                                                      \
        fields->handle = direct->handle;                                                                  \
        for (int i = 0; i < BLKIF_MAX_SEGMENTS_PER_REQUEST; i++) {                                        \
            fields->segments[i].reference = direct->seg[i].gref;                                          \
            fields->segments[i].first_sector = direct->seg[i].first_sect;                                 \
            fields->segments[i].last_sector = direct->seg[i].last_sect;                                   \
        }                                                                                                 \
        fields->discard_flag = discard->flag;                                                             \
        fields->discard_sectors = discard->nr_sectors;                                                    \
        fields->indirect_operation = indirect->indirect_op;                                               \
        fields->indirect_segment_count = indirect->nr_segments;                                           \
        fields->indirect_handle = indirect->handle;                                                       \
        for (int i = 0; i < BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST; i++)                                    \
            fields->indirect_references[i] = indirect->indirect_grefs[i];                                 \
    }                                                                                                     \
    static void L##_write_response(void *slot, uint64_t id, uint8_t operation, int16_t status) {          \
        RESPONSE *response = slot;                                                                        \
        memset(response, 0, sizeof(*response));                                                           \
        response->id = id;                                                                                \
        response->operation = operation;                                                                  \
        response->status = status;                                                                        \
    }                                                                                                     \
    static void L##_read_response(const void *slot, uint64_t *id, uint8_t *operation, int16_t *status) {  \
        const RESPONSE *response = slot;                                                                  \
        *id = response->id;                                                                               \
        *operation = response->operation;                                                                 \
        *status = response->status;                                                                       \
    }

KINDS(native, struct blkif_request, struct blkif_request_discard, struct blkif_request_indirect,
      struct blkif_response)
KINDS(x86_32, struct cxen_blkif_x86_32_request, struct cxen_blkif_x86_32_request_discard,
      struct cxen_blkif_x86_32_request_indirect, struct cxen_blkif_x86_32_response)

#define EITHER(is_32, function, ...) ((is_32) ? x86_32_##function(__VA_ARGS__) : native_##function(__VA_ARGS__))

void cring_write_direct(void *slot, bool x86_32, const struct cring_fields *fields) {
    memset(slot, 0, cring_slot_size(x86_32));
    EITHER(x86_32, write_direct, slot, fields);
}
void cring_write_discard(void *slot, bool x86_32, const struct cring_fields *fields) {
    memset(slot, 0, cring_slot_size(x86_32));
    EITHER(x86_32, write_discard, slot, fields);
}
void cring_write_indirect(void *slot, bool x86_32, const struct cring_fields *fields) {
    memset(slot, 0, cring_slot_size(x86_32));
    EITHER(x86_32, write_indirect, slot, fields);
}
void cring_read_request(const void *slot, bool x86_32, struct cring_fields *fields) {
    EITHER(x86_32, read_request, slot, fields);
}
void cring_write_response(void *slot, bool x86_32, uint64_t id, uint8_t operation, int16_t status) {
    EITHER(x86_32, write_response, slot, id, operation, status);
}
void cring_read_response(const void *slot, bool x86_32, uint64_t *id, uint8_t *operation, int16_t *status) {
    EITHER(x86_32, read_response, slot, id, operation, status);
}
