// SPDX-License-Identifier: Apache-2.0
//
// What a caller asks of a queue, in bytes; and what it gets back. The queue turns it into sectors, segments and
// as many ring requests as the device needs.

/// One thing to do with a range of the device.
///
/// The range need not be aligned to sectors.
public struct BlockRequest: Sendable {
  /// What to do.
  public enum Command: UInt8, Sendable {
    /// Bring bytes from the device into memory.
    case read
    /// Store bytes from memory on the device.
    case write
    /// Make every write that completed earlier durable; the range is ignored.
    case flush
    /// Forget a range; only whole discard extents inside it are forgotten.
    case discard
    /// Make a range read as zeroes, without reading anything to do so.
    case writeZeroes
  }

  /// What to do.
  public var command: Command
  /// Durable before it completes; by a flush behind it where the backend has nothing better.
  public var forceUnitAccess: Bool
  /// A discard after which nothing can read what was there (BLKIF_DISCARD_SECURE); refused by devices that cannot.
  public var isSecure = false
  /// The first byte.
  public var byteOffset: UInt64
  /// How many bytes; up to 64 MiB for a read or write.
  public var byteCount: UInt64

  /// A request.
  public init(command: Command, forceUnitAccess: Bool = false, byteOffset: UInt64, byteCount: UInt64) {
    self.command = command
    self.forceUnitAccess = forceUnitAccess
    self.byteOffset = byteOffset
    self.byteCount = byteCount
  }
}

/// A request that a queue has taken on.
///
/// Stale ones are recognised by their generation.
public struct OperationID: Hashable, Sendable {
  /// Generation in the upper half, place in the operation table in the lower.
  public let rawValue: UInt64
  /// An operation by the number that `rawValue` gave.
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  init(index: Int32, generation: UInt32) {
    rawValue = UInt64(generation) << 32 | UInt64(UInt32(bitPattern: index))
  }
  var index: Int { Int(UInt32(truncatingIfNeeded: rawValue)) }
  var generation: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) }
}

/// How an operation ended.
public enum OperationStatus: UInt8, Sendable {
  /// All of it was done.
  case okay
  /// The backend reported an error for some part of it, or broke the protocol.
  case ioError
  /// The device cannot do this.
  case notSupported
  /// The device is read-only.
  case readOnly
  /// The range is not on the device.
  case outOfRange
  /// The device is closing or gone; what became of the operation is unknown.
  case shutdown
}

/// An operation that ended.
///
/// Its memory is the caller's until it is released.
public struct Completion: Sendable {
  /// Which one; to be released.
  public let operation: OperationID
  /// What the caller gave to `begin`.
  public let tag: UInt64
  /// How it ended.
  public let status: OperationStatus
}

/// Whose memory a payload passes through (`--copy`).
public enum CopyMode: String, Sendable, CaseIterable {
  /// Private memory, copied to and from pages of the free list, as NetBSD's driver does.
  case bounce
  /// The granted pages themselves, wherever the request allows it.
  case direct
}
