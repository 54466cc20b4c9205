// SPDX-License-Identifier: Apache-2.0
//
// The requests that a worker has taken in and not answered yet: a fixed table, so that a request costs no
// allocation and a completion is found by index. The generation in a tag makes a stale completion harmless.

internal import Platform

/// Where a request is between its header and its reply.
enum SlotState: UInt8 {
  case free
  /// A write whose payload is still coming, straight into the target's memory.
  case receiving
  /// A refused request whose payload is being dropped.
  case skipping
  /// With the target.
  case running
  /// In its connection's list of replies.
  case answered
}

/// What a reply carries.
enum ReplyKind: UInt8 {
  /// An error or success, nothing else.
  case status
  /// The bytes of a read.
  case data
  /// One extent of base:allocation.
  case blockStatus
}

/// One request.
struct RequestSlot {
  var cookie: UInt64 = 0
  var byteOffset: UInt64 = 0
  /// Bytes that the request affects; for a read the reply's payload, for block status the extent.
  var byteCount: UInt64 = 0
  var operation: UInt64 = 0
  /// The connection's index; -1 when it is gone.
  var connection: Int32 = -1
  /// The next in the free list or in the connection's replies; -1 ends a list.
  var next: Int32 = -1
  var generation: UInt32 = 0
  var error: UInt32 = NBDError.none
  /// What counts against the connection's limit of bytes.
  var chargedBytes: UInt32 = 0
  var reply = ReplyKind.status
  var state = SlotState.free
  /// A structured reply is due even for success: the request was a read.
  var isRead = false
  /// The target's operation has not been released.
  var holdsOperation = false
}

/// A fixed number of request slots with a free list, owned by one thread.
struct RequestTable: ~Copyable {
  private let slots: EntryTable<RequestSlot>
  private let freeHead = Cell<Int32>(0)

  /// Makes a table.
  ///
  /// - Parameter count: of slots, 1 or more.
  init(count: Int32) {
    slots = EntryTable(count: Int(count)) { index in
      var slot = RequestSlot()
      slot.next = index + 1 < Int(count) ? Int32(index + 1) : -1
      return slot
    }
  }

  /// How many slots there are.
  var count: Int { slots.count }

  /// One slot.
  @inline(__always)
  subscript(index: Int32) -> Entry<RequestSlot> { slots[index] }

  /// Whether `take` would succeed.
  var hasFree: Bool {
    @inline(__always) get { freeHead.pointee >= 0 }
  }

  /// Takes a free slot; the caller fills it in.
  ///
  /// - Returns: its index, or -1 when none is free.
  @inline(__always)
  func take() -> Int32 {
    let index = freeHead.pointee
    if index >= 0 { freeHead.pointee = slots[index].pointee.next }
    return index
  }

  /// Gives a slot back; tags made for it before are stale from now on.
  @inline(__always)
  func giveBack(_ index: Int32) {
    let slot = slots[index]
    slot.pointee.state = .free
    slot.pointee.generation &+= 1
    slot.pointee.connection = -1
    slot.pointee.holdsOperation = false
    slot.pointee.next = freeHead.pointee
    freeHead.pointee = index
  }

  /// What the target gets to name a slot by.
  @inline(__always)
  func tag(_ index: Int32) -> UInt64 {
    UInt64(slots[index].pointee.generation) << 32 | UInt64(UInt32(bitPattern: index))
  }

  /// The slot that a tag names.
  ///
  /// - Returns: its index, or -1 for a tag that is stale or none of ours.
  @inline(__always)
  func index(of tag: UInt64) -> Int32 {
    let low = UInt32(truncatingIfNeeded: tag)
    guard low < UInt32(truncatingIfNeeded: count),
      slots[Int(low)].pointee.generation == UInt32(truncatingIfNeeded: tag >> 32)
    else {
      return -1
    }
    return Int32(low)
  }
}
