// SPDX-License-Identifier: Apache-2.0
//
// Which mapping begins at which address: what unmap has to know. Open addressing, so that a mapping per request
// allocates nothing once the table has its size.

/// A mapping of one `map` call.
struct GrantMappingRecord: @unchecked Sendable {
  /// The first page's address; 0 in a free slot.
  var address: UInt
  var pageCount: Int
  /// The maptrack handle of the first page; the others are chained to it.
  var firstHandle: UInt32
  /// Retained once for the record.
  var granter: Unmanaged<DomainMemory>?
}

/// Records by address.
///
/// One owner, one thread at a time.
struct MappingTable: ~Copyable {
  private var slots: UnsafeMutableBufferPointer<GrantMappingRecord>
  private(set) var count = 0
  private static var empty: GrantMappingRecord {
    GrantMappingRecord(address: 0, pageCount: 0, firstHandle: 0, granter: nil)
  }

  init() {
    slots = .allocate(capacity: 64)
    slots.initialize(repeating: Self.empty)
  }

  deinit {
    slots.deallocate()
  }

  private func place(_ address: UInt) -> Int {
    Int(truncatingIfNeeded: ((address >> 12) &* 0x9E37_79B9_7F4A_7C15) >> 32) & (slots.count - 1)
  }

  mutating func insert(_ record: GrantMappingRecord) {
    if (count + 1) * 2 > slots.count { grow() }
    var index = place(record.address)
    while slots[index].address != 0 { index = (index + 1) & (slots.count - 1) }
    slots[index] = record
    count += 1
  }

  /// Takes the record at an address out, if its length is the one given.
  mutating func remove(_ address: UInt, pageCount: Int) -> GrantMappingRecord? {
    var index = place(address)
    while slots[index].address != address {
      if slots[index].address == 0 { return nil }
      index = (index + 1) & (slots.count - 1)
    }
    let record = slots[index]
    guard record.pageCount == pageCount else { return nil }
    // Close the gap: move back what would not be found past an empty slot.
    var hole = index
    var next = (index + 1) & (slots.count - 1)
    while slots[next].address != 0 {
      let home = place(slots[next].address)
      if (next &- home) & (slots.count - 1) >= (next &- hole) & (slots.count - 1) {
        slots[hole] = slots[next]
        hole = next
      }
      next = (next + 1) & (slots.count - 1)
    }
    slots[hole] = Self.empty
    count -= 1
    return record
  }

  /// Takes some record out, to empty the table one by one.
  mutating func removeAny() -> GrantMappingRecord? {
    slots.first { $0.address != 0 }.flatMap { remove($0.address, pageCount: $0.pageCount) }
  }

  private mutating func grow() {
    let old = slots
    slots = .allocate(capacity: old.count * 2)
    slots.initialize(repeating: Self.empty)
    count = 0
    for record in old where record.address != 0 { insert(record) }
    old.deallocate()
  }
}
