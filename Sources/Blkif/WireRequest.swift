// SPDX-License-Identifier: Apache-2.0
//
// Requests and responses as they lie in the ring's slots: written by the frontend through `RequestSlot`, read by
// the backend from a private copy through `WireRequest`. Sources: blkif.h, blkif_request_t,
// blkif_request_discard_t, blkif_request_indirect_t, blkif_response_t.

public import Xen

/// A stretch of one granted page (blkif.h: struct blkif_request_segment).
public struct Segment: Equatable, Sendable {
  /// The page.
  public var reference: GrantRef
  /// The first 512-byte sector of the page, 0 to 7.
  public var firstSector: UInt8
  /// The last one, inclusive, not before the first.
  public var lastSector: UInt8

  /// A segment.
  @inlinable
  public init(reference: GrantRef, firstSector: UInt8, lastSector: UInt8) {
    self.reference = reference
    self.firstSector = firstSector
    self.lastSector = lastSector
  }

  /// Whether the sectors are within a page and in order.
  @inlinable public var isValid: Bool { firstSector <= lastSector && lastSector < BlkIf.sectorsPerPage }

  /// Sectors in the segment; only of a valid one.
  @inlinable public var sectorCount: Int { Int(lastSector) - Int(firstSector) + 1 }

  /// Bytes in the segment's wire form.
  public static let wireSize = 8

  /// Writes the wire form, padding included.
  @inlinable
  public func store(to address: UnsafeMutableRawPointer) {
    // SAFETY: the caller has 8 bytes there.
    unsafe address.storeBytes(of: reference.rawValue, as: UInt32.self)
    unsafe address.storeBytes(
      of: UInt32(firstSector) | UInt32(lastSector) << 8, toByteOffset: 4, as: UInt32.self)
  }

  /// Reads the wire form from a private copy.
  @inlinable
  public init(loading address: UnsafeRawPointer) {
    // SAFETY: the caller has 8 bytes there.
    reference = unsafe GrantRef(address.loadUnaligned(as: UInt32.self))
    firstSector = unsafe address.load(fromByteOffset: 4, as: UInt8.self)
    lastSector = unsafe address.load(fromByteOffset: 5, as: UInt8.self)
  }
}

/// A cleared slot of the ring that a request is written into.
///
/// Valid until the ring is published.
public struct RequestSlot {
  @usableFromInline let bytes: SlotBytes
  @usableFromInline let layout: RingLayout

  @inlinable
  init(bytes: SlotBytes, layout: RingLayout) {
    self.bytes = bytes
    self.layout = layout
  }

  /// Writes a direct request's fixed part: read, write, barrier or flush.
  ///
  /// - Parameters:
  ///   - segmentCount: 0 to 11; each is then set with `setSegment`.
  ///   - handle: the low 16 bits of the virtual device number.
  ///   - sector: in 512-byte units; 0 for a flush.
  @inlinable
  public func setDirect(
    _ operation: BlockOperation, id: UInt64, handle: UInt16, sector: UInt64, segmentCount: Int
  ) {
    precondition(segmentCount <= BlkIf.maxDirectSegments, "a direct request has at most 11 segments")
    bytes.put(operation.rawValue, at: 0)
    bytes.put(UInt8(segmentCount), at: 1)
    bytes.put(handle, at: 2)
    store(id, layout.id)
    store(sector, layout.sector)
  }

  /// Writes one segment of a direct request.
  @inlinable
  public func setSegment(_ index: Int, _ segment: Segment) {
    precondition(index >= 0 && index < BlkIf.maxDirectSegments, "a direct request has at most 11 segments")
    let offset = layout.segments + index * Segment.wireSize
    bytes.put(segment.reference.rawValue, at: offset)
    bytes.put(UInt32(segment.firstSector) | UInt32(segment.lastSector) << 8, at: offset + 4)
  }

  /// Writes a discard.
  ///
  /// - Parameters:
  ///   - sector: the first, in 512-byte units.
  ///   - sectorCount: how many.
  ///   - secure: erase so that it cannot be got back; only where `discard-secure` is 1.
  @inlinable
  public func setDiscard(
    id: UInt64, handle: UInt16, sector: UInt64, sectorCount: UInt64, secure: Bool = false
  ) {
    bytes.put(BlockOperation.discard.rawValue, at: 0)
    bytes.put(UInt8(secure ? 1 : 0), at: 1)
    bytes.put(handle, at: 2)
    store(id, layout.id)
    store(sector, layout.sector)
    store(sectorCount, layout.discardSectorCount)
  }

  /// Writes an indirect request's fixed part.
  ///
  /// - Parameters:
  ///   - operation: read or write.
  ///   - segmentCount: how many segments the indirect pages list, 1 to 4,096.
  @inlinable
  public func setIndirect(
    _ operation: BlockOperation, id: UInt64, handle: UInt16, sector: UInt64, segmentCount: Int
  ) {
    precondition(segmentCount <= BlkIf.maxIndirectSegments, "an indirect request has at most 4,096 segments")
    bytes.put(BlockOperation.indirect.rawValue, at: 0)
    bytes.put(operation.rawValue, at: 1)
    bytes.put(UInt16(segmentCount), at: 2)
    store(id, layout.id)
    store(sector, layout.sector)
    bytes.put(handle, at: layout.indirectHandle)
  }

  /// Names one of an indirect request's pages of segments.
  @inlinable
  public func setIndirectPage(_ index: Int, _ reference: GrantRef) {
    precondition(index >= 0 && index < BlkIf.maxIndirectPages, "an indirect request has at most 8 pages")
    bytes.put(reference.rawValue, at: layout.indirectReferences + index * 4)
  }

  /// A 64-bit field, which a 32-bit layout aligns to 4 bytes only.
  @inlinable
  func store(_ value: UInt64, _ offset: Int) {
    bytes.put(value, at: offset)
  }
}

/// A private copy of a request.
///
/// Untrusted: every field can be anything.
@safe public struct WireRequest {
  // SAFETY: the 112 bytes that `BackRing.takeRequest` copied to, the caller's for as long as it uses this value.
  @usableFromInline let copy: UnsafeRawPointer
  @usableFromInline let layout: RingLayout

  @inlinable
  init(copy: UnsafeRawPointer, layout: RingLayout) {
    // SAFETY: kept, not used.
    unsafe self.copy = copy
    self.layout = layout
  }

  /// A field, aligned or not.
  @inlinable @inline(__always)
  func field<Value: BitwiseCopyable>(_ offset: Int, as type: Value.Type = Value.self) -> Value {
    // SAFETY: every caller's field lies within the copy; bounds of segments and pages are their preconditions.
    unsafe copy.loadUnaligned(fromByteOffset: offset, as: Value.self)
  }

  /// The raw operation (BLKIF_OP_*).
  @inlinable public var operation: UInt8 { field(0, as: UInt8.self) }
  /// The frontend's number for the request, to be echoed.
  @inlinable public var id: UInt64 { field(layout.id, as: UInt64.self) }
  /// The first sector, in 512-byte units.
  @inlinable public var sector: UInt64 {
    field(layout.sector, as: UInt64.self)
  }

  /// Direct: how many segments, 0 to 255 as the frontend wrote it.
  @inlinable public var segmentCount: Int { Int(field(1, as: UInt8.self)) }
  /// Direct and discard: the virtual device's low 16 bits.
  @inlinable public var handle: UInt16 { field(2, as: UInt16.self) }
  /// Direct: one segment, 0 to 10.
  @inlinable
  public func segment(_ index: Int) -> Segment {
    precondition(index >= 0 && index < BlkIf.maxDirectSegments, "a direct request has at most 11 segments")
    // SAFETY: the segment lies within the copy.
    return unsafe Segment(loading: copy + (layout.segments + index * Segment.wireSize))
  }

  /// Discard: the flag byte; bit 0 asks for a secure one.
  @inlinable public var discardFlag: UInt8 { field(1, as: UInt8.self) }
  /// Discard: how many 512-byte sectors.
  @inlinable public var discardSectorCount: UInt64 {
    field(layout.discardSectorCount, as: UInt64.self)
  }

  /// Indirect: the operation inside, raw.
  @inlinable public var indirectOperation: UInt8 { field(1, as: UInt8.self) }
  /// Indirect: how many segments, 0 to 65,535 as the frontend wrote it.
  @inlinable public var indirectSegmentCount: Int {
    Int(field(2, as: UInt16.self))
  }
  /// Indirect: the virtual device's low 16 bits.
  @inlinable public var indirectHandle: UInt16 {
    field(layout.indirectHandle, as: UInt16.self)
  }
  /// Indirect: one of the pages of segments, 0 to 7.
  @inlinable
  public func indirectPage(_ index: Int) -> GrantRef {
    precondition(index >= 0 && index < BlkIf.maxIndirectPages, "an indirect request has at most 8 pages")
    return GrantRef(
      field(layout.indirectReferences + index * 4, as: UInt32.self))
  }
}

/// A private copy of a response.
///
/// Untrusted: every field can be anything.
public struct WireResponse: Equatable, Sendable {
  /// The number of the request that it answers.
  public let id: UInt64
  /// The request's operation; of an indirect one every known backend gives the inner operation.
  public let operation: UInt8
  /// How it ended (BLKIF_RSP_*).
  public let status: Int16

  /// A response.
  @inlinable
  public init(id: UInt64, operation: UInt8, status: Int16) {
    self.id = id
    self.operation = operation
    self.status = status
  }
}
