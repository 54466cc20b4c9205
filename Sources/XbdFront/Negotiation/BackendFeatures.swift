// SPDX-License-Identifier: Apache-2.0
//
// What a backend says of itself, read from its xenstore directory: a pure function from nodes to values. Missing
// nodes have blkif.h's defaults; malformed ones are refused, never guessed at.

public import Blkif

/// The nodes of one xenstore directory, by key.
public typealias Nodes = [String: [UInt8]]

/// A node whose value makes no sense.
public struct MalformedNode: Error, Equatable, Sendable, CustomStringConvertible {
  /// Its key.
  public let key: String
  /// Its value, as text that may be shown; cut at 64 characters.
  public let value: String
  /// What it should have been.
  public let expected: String

  init(_ key: String, _ value: [UInt8]?, expected: String) {
    self.key = key
    self.value = value.map { ForeignText.printable($0, atMost: 64) } ?? "(missing)"
    self.expected = expected
  }

  /// A phrase for a sentence.
  public var description: String { "\(key) is \"\(value)\" where \(expected) is expected" }
}

/// What must be known before the ring is made: published by the time the backend is at InitWait
/// (blkif.h: "Backend Device Properties", transport parameters).
public struct TransportFeatures: Equatable, Sendable {
  /// log2 of the largest ring, in pages; 0 when only single-page rings are served.
  public var maxRingPageOrder = 0
  /// How many queues are served, 1 or more.
  public var maxQueues = 1
  /// Segments that an indirect request may have; 0 when there are none.
  public var maxIndirectSegments = 0

  /// Reads the transport features of a backend's directory.
  public init(_ nodes: Nodes) throws(MalformedNode) {
    if nodes[Key.maxRingPageOrder] != nil {
      // Larger rings than any backend's are no use to us, and no error of the backend's either.
      maxRingPageOrder = min(Int(try number(nodes, Key.maxRingPageOrder, 0...31) ?? 0), 20)
    } else if let pages = try number(nodes, Key.maxRingPages, 1...(1 << 31)) {
      guard pages.nonzeroBitCount == 1 else {
        throw MalformedNode(Key.maxRingPages, nodes[Key.maxRingPages], expected: "a power of two")
      }
      maxRingPageOrder = min(pages.trailingZeroBitCount, 20)
    }
    maxQueues = Int(try number(nodes, Key.multiQueueMaxQueues, 0...65535) ?? 1)
    maxQueues = max(maxQueues, 1)
    maxIndirectSegments = min(
      Int(try number(nodes, Key.featureMaxIndirectSegments, 0...UInt64(UInt32.max)) ?? 0),
      BlkIf.maxIndirectSegments)
  }
}

/// What the device is: published by the time the backend is at Connected.
public struct DeviceFeatures: Equatable, Sendable {
  /// The size in 512-byte units.
  public var sectorCount: UInt64
  /// The logical sector in bytes, a power of two from 512 to 4,096.
  public var sectorSize: Int
  /// The physical sector in bytes, a multiple of the logical one.
  public var physicalSectorSize: Int
  /// CD-ROM, removable, read-only.
  public var info: DiskInfo
  /// Barriers are accepted.
  public var barrier: Bool
  /// Flushes are accepted.
  public var flushCache: Bool
  /// Grants may stay mapped.
  public var persistent: Bool
  /// Discards are accepted within these limits; nil when they are not.
  public var discard: DiscardLimits?

  /// Reads the properties of a connected backend's directory.
  ///
  /// - Parameter unit: what the backend counts `sectors` in.
  public init(_ nodes: Nodes, unit: SectorsUnit = .bytes512) throws(MalformedNode) {
    // A sector larger than a granted page could not be changed in part, nor sent in one segment.
    sectorSize = Int(try number(nodes, Key.sectorSize, 512...4096) ?? 512)
    guard sectorSize.nonzeroBitCount == 1 else {
      throw MalformedNode(
        Key.sectorSize, nodes[Key.sectorSize], expected: "a power of two from 512 to 4096")
    }
    sectorCount = try Self.sectorCount(nodes, sectorSize: sectorSize, unit: unit)
    let physical = Int(try number(nodes, Key.physicalSectorSize, 0...(1 << 30)) ?? 0)
    physicalSectorSize = physical >= sectorSize && physical % sectorSize == 0 ? physical : sectorSize
    info = DiskInfo(rawValue: UInt32(try number(nodes, Key.info, 0...UInt64(UInt32.max)) ?? 0))
    barrier = try flag(nodes, Key.featureBarrier)
    flushCache = try flag(nodes, Key.featureFlushCache)
    persistent = try flag(nodes, Key.featurePersistent)
    discard = try flag(nodes, Key.featureDiscard) ? try Self.discardLimits(nodes, sectorSize) : nil
  }

  /// Only the size, for a device that is in use while it is resized.
  ///
  /// - Returns: it in 512-byte units, whatever the backend's are.
  public static func sectorCount(
    _ nodes: Nodes, sectorSize: Int, unit: SectorsUnit = .bytes512
  ) throws(MalformedNode) -> UInt64 {
    let shift = unit == .sectorSize ? sectorSize.trailingZeroBitCount : 9
    guard let sectors = try number(nodes, Key.sectors, 0...(UInt64(Int64.max) >> UInt64(shift))) else {
      throw MalformedNode(Key.sectors, nil, expected: "the size in \(1 << shift)-byte sectors")
    }
    if unit == .sectorSize { return sectors << UInt64(shift - 9) }
    guard sectors % UInt64(sectorSize / 512) == 0 else {
      throw MalformedNode(
        Key.sectors, nodes[Key.sectors], expected: "a multiple of the sector size of \(sectorSize) bytes")
    }
    return sectors
  }

  /// A size in 512-byte units without what is less than a sector at its end.
  func wholeSectors(_ count: UInt64) -> UInt64 { count - count % UInt64(sectorSize / BlkIf.sectorSize) }

  /// QEMU publishes zeroes for "don't know"; a backend that names no extent means the sector.
  private static func discardLimits(_ nodes: Nodes, _ sectorSize: Int) throws(MalformedNode) -> DiscardLimits
  {
    var granularity = try number(nodes, Key.discardGranularity, 0...(1 << 40)) ?? 0
    if granularity == 0 { granularity = UInt64(sectorSize) }
    let alignment = try number(nodes, Key.discardAlignment, 0...(1 << 40)) ?? 0
    guard granularity % UInt64(sectorSize) == 0 else {
      throw MalformedNode(
        Key.discardGranularity, nodes[Key.discardGranularity], expected: "a multiple of the sector size")
    }
    guard alignment % UInt64(sectorSize) == 0 else {
      throw MalformedNode(
        Key.discardAlignment, nodes[Key.discardAlignment], expected: "a multiple of the sector size")
    }
    return DiscardLimits(
      granularity: granularity, alignment: alignment % granularity,
      secure: try flag(nodes, Key.discardSecure))
  }
}

/// A number in a range, or nil when the node is missing.
func number(
  _ nodes: Nodes, _ key: String, _ range: ClosedRange<UInt64>
) throws(MalformedNode) -> UInt64? {
  guard let value = nodes[key] else { return nil }
  do throws(NumberError) {
    return try Decimal.parse(value, in: range)
  } catch {
    throw MalformedNode(key, value, expected: "a number from \(range.lowerBound) to \(range.upperBound)")
  }
}

/// A feature node: 1 is on; 0 or missing is off.
func flag(_ nodes: Nodes, _ key: String) throws(MalformedNode) -> Bool {
  guard let value = nodes[key] else { return false }
  switch value {
  case [UInt8(ascii: "0")]: return false
  case [UInt8(ascii: "1")]: return true
  default: throw MalformedNode(key, value, expected: "0 or 1")
  }
}
