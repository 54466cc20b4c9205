// SPDX-License-Identifier: Apache-2.0
//
// blkif's constants (xen/io/blkif.h). CXen's abi_asserts.c checks each number against the header.

/// The fixed numbers of the block interface.
public enum BlkIf {
  /// The unit of `sector_number`, `first_sect`, `last_sect` and `sectors`, in bytes, whatever the device's own
  /// sector is (blkif.h: "sectors").
  public static let sectorSize = 512
  /// Sectors in one granted page.
  public static let sectorsPerPage = 8
  /// Segments that a direct request can hold (BLKIF_MAX_SEGMENTS_PER_REQUEST).
  public static let maxDirectSegments = 11
  /// Pages of segments that an indirect request can name (BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST).
  public static let maxIndirectPages = 8
  /// Segments that fit in one indirect page.
  public static let segmentsPerIndirectPage = 512
  /// Segments of the largest request that the protocol can express: 16 MiB.
  public static let maxIndirectSegments = 4096
  /// The largest ring that is in use anywhere: 16 pages, 512 requests.
  public static let maxRingPageOrder = 4

  /// How many indirect pages it takes to list segments.
  @inlinable
  public static func indirectPages(forSegments count: Int) -> Int {
    (count + segmentsPerIndirectPage - 1) / segmentsPerIndirectPage
  }
}

/// What a request asks for (BLKIF_OP_*).
public enum BlockOperation: UInt8, Sendable {
  /// Fill the segments from the device (BLKIF_OP_READ).
  case read = 0
  /// Store the segments on the device (BLKIF_OP_WRITE).
  case write = 1
  /// Store after everything before and ahead of everything behind; may be empty (BLKIF_OP_WRITE_BARRIER).
  case writeBarrier = 2
  /// Make completed writes durable (BLKIF_OP_FLUSH_DISKCACHE).
  case flush = 3
  /// Forget a range (BLKIF_OP_DISCARD).
  case discard = 5
  /// A read or write whose segments are listed in pages of their own (BLKIF_OP_INDIRECT).
  case indirect = 6
}

/// How a request ended (BLKIF_RSP_*).
public enum ResponseStatus: Sendable, Equatable {
  /// Done (BLKIF_RSP_OKAY).
  case okay
  /// Failed, as does every value that has no meaning (BLKIF_RSP_ERROR).
  case error
  /// The backend does not do this operation, or no longer (BLKIF_RSP_EOPNOTSUPP).
  case notSupported

  /// The meaning of a value from the ring, which may be anything.
  @inlinable
  public init(wire: Int16) {
    switch wire {
    case 0: self = .okay
    case -2: self = .notSupported
    default: self = .error
    }
  }

  /// The value that goes into the ring.
  @inlinable
  public var wire: Int16 {
    switch self {
    case .okay: 0
    case .error: -1
    case .notSupported: -2
    }
  }
}

/// Whether the other end has to be told that something new is in the ring.
///
/// The answer may not be ignored: a missed notification is a request that waits for ever.
public enum NotifyPeer: Sendable {
  /// Notify through the event channel.
  case required
  /// The other end is awake and will look by itself.
  case notRequired
}

/// How the other end broke the ring protocol.
///
/// The ring is of no use afterwards.
public enum RingViolation: Error, Equatable, Sendable, CustomStringConvertible {
  /// `rsp_prod` claims more responses than there are requests outstanding.
  case tooManyResponses(claimed: UInt32, outstanding: UInt32)
  /// `req_prod` claims more requests than the ring has slots.
  case tooManyRequests(claimed: UInt32, capacity: UInt32)

  /// A sentence with the numbers.
  public var description: String {
    switch self {
    case .tooManyResponses(let claimed, let outstanding):
      "the backend's rsp_prod announces \(claimed) responses to \(outstanding) outstanding requests"
    case .tooManyRequests(let claimed, let capacity):
      "the frontend's req_prod announces \(claimed) requests in a ring of \(capacity)"
    }
  }
}
