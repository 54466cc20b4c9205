// SPDX-License-Identifier: Apache-2.0
//
// One request as a value, written through Swift's RequestSlot or through Xen's C structs.

import TestSupport
import Blkif
import CRingReference
import Xen

/// A request of any kind with any values, for comparing how it is laid out.
enum AnyRequest {
  case direct(cring_fields)
  case discard(cring_fields)
  case indirect(cring_fields)

  /// A request of a random kind with random fields.
  static func random(using generator: inout SeededGenerator) -> AnyRequest {
    var fields = cring_fields()
    fields.id = generator.next()
    fields.sector = generator.next()
    fields.handle = UInt16.random(in: 0...UInt16.max, using: &generator)
    switch Int.random(in: 0..<4, using: &generator) {
    case 0:
      fields.discard_flag = UInt8.random(in: 0...1, using: &generator)
      fields.discard_sectors = generator.next()
      return .discard(fields)
    case 1:
      fields.indirect_operation = UInt8.random(in: 0...1, using: &generator)
      fields.indirect_segment_count = UInt16.random(in: 1...4096, using: &generator)
      fields.indirect_handle = fields.handle
      withUnsafeMutableBytes(of: &fields.indirect_references) { bytes in
        for index in bytes.indices { bytes[index] = UInt8.random(in: 0...255, using: &generator) }
      }
      return .indirect(fields)
    default:
      fields.operation = UInt8.random(in: 0...3, using: &generator)
      fields.segment_count = UInt8.random(in: 0...11, using: &generator)
      withSegments(of: &fields) { segments in
        for index in segments.indices {
          segments[index].reference = UInt32.random(in: 0...UInt32.max, using: &generator)
          segments[index].first_sector = UInt8.random(in: 0...255, using: &generator)
          segments[index].last_sector = UInt8.random(in: 0...255, using: &generator)
        }
      }
      return .direct(fields)
    }
  }

  /// Writes it as the Swift frontend does.
  func write(to slot: RequestSlot) {
    switch self {
    case .direct(let fields):
      guard let operation = BlockOperation(rawValue: fields.operation) else { return }
      slot.setDirect(
        operation, id: fields.id, handle: fields.handle, sector: fields.sector,
        segmentCount: Int(fields.segment_count))
      for (index, segment) in segments(of: fields).prefix(Int(fields.segment_count)).enumerated() {
        slot.setSegment(
          index,
          Segment(
            reference: GrantRef(segment.reference), firstSector: segment.first_sector,
            lastSector: segment.last_sector))
      }
    case .discard(let fields):
      slot.setDiscard(
        id: fields.id, handle: fields.handle, sector: fields.sector, sectorCount: fields.discard_sectors,
        secure: fields.discard_flag == 1)
    case .indirect(let fields):
      slot.setIndirect(
        fields.indirect_operation == 0 ? .read : .write, id: fields.id, handle: fields.indirect_handle,
        sector: fields.sector, segmentCount: Int(fields.indirect_segment_count))
      for (index, reference) in indirectReferences(of: fields).enumerated() {
        slot.setIndirectPage(index, GrantRef(reference))
      }
    }
  }

  /// Writes it through blkif.h's structs.
  func write(toC slot: UnsafeMutableRawPointer, x86_32: Bool) {
    switch self {
    case .direct(var fields): cring_write_direct(slot, x86_32, &fields)
    case .discard(var fields): cring_write_discard(slot, x86_32, &fields)
    case .indirect(var fields): cring_write_indirect(slot, x86_32, &fields)
    }
  }
}

/// The eleven segments, which C keeps in an array and Swift sees as a tuple.
func segments(of fields: cring_fields) -> [cring_segment] {
  withUnsafeBytes(of: fields.segments) { Array($0.bindMemory(to: cring_segment.self)) }
}

/// The eight references, which C keeps in an array and Swift sees as a tuple.
func indirectReferences(of fields: cring_fields) -> [UInt32] {
  withUnsafeBytes(of: fields.indirect_references) { Array($0.bindMemory(to: UInt32.self)) }
}

private func withSegments(
  of fields: inout cring_fields, _ body: (UnsafeMutableBufferPointer<cring_segment>) -> Void
) {
  withUnsafeMutableBytes(of: &fields.segments) { body($0.bindMemory(to: cring_segment.self)) }
}
