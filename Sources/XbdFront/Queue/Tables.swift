// SPDX-License-Identifier: Apache-2.0
//
// The two tables of a queue: operations that callers asked for, and ring requests in flight for them. Both are
// fixed in size and allocate nothing; both recognise stale numbers by a generation.

public import Blkif
internal import Platform

/// An operation: what the caller asked for and how far it has got.
struct OperationRecord {
  enum State: UInt8 {
    case free
    /// Begun; a write's memory is being filled.
    case begun
    /// Submitted; in the queue of operations that have something to issue.
    case queued
    /// Submitted; everything of the present step is in flight.
    case active
    /// Held back: another operation works on the same sectors.
    case parked
    /// Reported; its memory is held until it is released.
    case done
  }
  /// What an operation works through, one after another.
  enum Step: UInt8 {
    /// The sectors that an unaligned write covers in part are read.
    case edges
    /// The operation itself.
    case main
    /// A flush behind it.
    case flush
  }

  var state = State.free
  var step = Step.main
  var command = BlockRequest.Command.read
  var forceUnitAccess = false
  /// A discard that has to be a secure one.
  var isSecure = false
  /// Begins or ends inside a sector.
  var isUnaligned = false
  /// Counted by the write gate.
  var holdsGate = false
  /// Another queue carries it out.
  var isAway = false
  /// It is another queue's.
  var isGuest = false
  /// It has had its turn, and goes behind the others with what is left of it.
  var yields = false
  /// Some request was refused as indirect, or a flush as unknown: run the step again without.
  var mustRestart = false
  var status = OperationStatus.okay
  var generation: UInt32 = 0
  var tag: UInt64 = 0
  /// What the caller asked for, in bytes.
  var byteOffset: UInt64 = 0
  var byteCount: UInt64 = 0
  /// The same widened to whole sectors.
  var alignedOffset: UInt64 = 0
  var alignedCount: UInt64 = 0
  /// Bytes of the aligned range that have been put into the ring.
  var issued: UInt64 = 0
  /// Bytes at the beginning of the aligned range that are written and need not be asked for again: their pages have been
  /// given back.
  var settled: UInt64 = 0
  /// Where in the aligned range its turn began.
  var turnStart: UInt64 = 0
  /// Requests in flight.
  var outstanding: Int32 = 0
  /// The operation's granted pages; byte `settled` + n of the aligned range lies in page n / 4096.
  var pages = PageList()
  /// The next of them to be put into the ring.
  var cursor: Int32 = -1
  /// The page that its caller was last shown memory from, and which of the pages that is: a transfer in many parts goes on there.
  var shownPage: Int32 = -1
  var shownIndex: Int32 = 0
  /// The next in whichever list the operation is in.
  var next: Int32 = -1
  /// Private memory holding the aligned range, when there are no granted pages.
  var buffer: PrivateBuffer?

  /// Whether it changes sectors that an unaligned write may be changing.
  var needsGate: Bool { command != .read && command != .flush }
}

/// A first-in first-out list threaded through the operation table.
struct OperationList {
  var first: Int32 = -1
  var last: Int32 = -1
  var isEmpty: Bool { first < 0 }

  @inline(__always)
  mutating func append(_ slot: Int32, _ operations: inout Table<OperationRecord>) {
    operations[slot].next = -1
    if last >= 0 { operations[last].next = slot } else { first = slot }
    last = slot
  }

  @inline(__always)
  mutating func removeFirst(_ operations: inout Table<OperationRecord>) {
    let next = operations[first].next
    operations[first].next = -1
    first = next
    if next < 0 { last = -1 }
  }
}

/// A request in the ring.
struct InFlightRecord {
  enum Role: UInt8 {
    case data
    /// The first or last sector of an unaligned write, being read.
    case edge
    case flush
    case discard
  }
  /// The operation that it belongs to; -1 in a free slot.
  var operation: Int32 = -1
  var generation: UInt32 = 0
  /// What the response must carry; for an indirect request the operation inside.
  var wireOperation: UInt8 = 0
  var isIndirect = false
  var role = Role.data
  /// Where in the operation's aligned range, and how much, in bytes.
  var offset: UInt64 = 0
  var count: UInt64 = 0
  /// Pages of this request alone: copies and zeroes.
  var pages = PageList()
  /// Pages that list the segments.
  var indirectPages = PageList()
  /// When it was put into the ring, as the queue last heard the time.
  var issuedAt: UInt64 = 0
  var nextFree: Int32 = -1
}

/// How the backend broke the block protocol, or the patience of its user.
///
/// The device is of no use until it is connected again.
public enum ProtocolViolation: Error, Equatable, Sendable, CustomStringConvertible {
  /// The ring's indices make no sense.
  case ring(RingViolation)
  /// A response carries an id that no request ever had.
  case unknownID(UInt64)
  /// A response answers a request that is not in flight, or was answered before.
  case notInFlight(UInt64)
  /// A response carries another operation than its request.
  case wrongOperation(expected: UInt8, got: UInt8)
  /// Requests have been in flight for longer than the user allows; the oldest in words.
  case unanswered(outstanding: Int, oldest: String, seconds: UInt64)

  /// A sentence with the numbers.
  public var description: String {
    switch self {
    case .ring(let violation): violation.description
    case .unknownID(let id): "the backend answered request id \(id), which was never sent"
    case .notInFlight(let id): "the backend answered request id \(id), which is not in flight"
    case .wrongOperation(let expected, let got):
      "the backend answered operation \(expected) as operation \(got)"
    case .unanswered(let outstanding, let oldest, let seconds):
      "the backend left \(outstanding == 1 ? "a request" : "\(outstanding) requests") unanswered, the oldest, "
        + "\(oldest), for \(seconds) s"
    }
  }
}

/// The requests in flight, by the ring's number of slots.
struct InFlightTable: ~Copyable {
  /// By slot; whoever takes a slot fills its record in.
  var records: Table<InFlightRecord>
  private var freeHead: Int32 = 0
  private(set) var count = 0

  var capacity: Int { records.count }

  init(capacity: Int) {
    records = Table(count: capacity) { InFlightRecord(nextFree: $0 + 1 < capacity ? Int32($0 + 1) : -1) }
  }

  /// Takes a free slot and gives it a new generation.
  ///
  /// - Returns: the slot; its id goes into the request. Never more than the ring has room for.
  mutating func take() -> Int32 {
    let slot = freeHead
    precondition(slot >= 0, "more requests in flight than the ring holds")
    freeHead = records[slot].nextFree
    records[slot].generation &+= 1
    count += 1
    return slot
  }

  /// The number that names a slot in a request: generation above, slot below, so that a stale or repeated answer
  /// is told from a right one.
  func id(_ slot: Int32) -> UInt64 {
    UInt64(records[slot].generation) << 32 | UInt64(UInt32(bitPattern: slot))
  }

  /// Checks a response, whose every field can be anything, against what is in flight.
  func match(_ response: WireResponse) throws(ProtocolViolation) -> Int32 {
    let slot = UInt32(truncatingIfNeeded: response.id)
    guard slot < capacity else { throw .unknownID(response.id) }
    let record = records[Int(slot)]
    guard record.operation >= 0, id(Int32(slot)) == response.id else { throw .notInFlight(response.id) }
    // Every known backend answers an indirect request with the operation inside it; blkif.h reads as if the
    // outer one were right. Both are accepted.
    guard
      response.operation == record.wireOperation
        || record.isIndirect && response.operation == BlockOperation.indirect.rawValue
    else { throw .wrongOperation(expected: record.wireOperation, got: response.operation) }
    return Int32(slot)
  }

  /// Gives a slot back.
  mutating func put(_ slot: Int32) {
    records[slot].operation = -1
    records[slot].nextFree = freeHead
    freeHead = slot
    count -= 1
  }
}
