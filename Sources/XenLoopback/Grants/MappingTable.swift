// SPDX-License-Identifier: Apache-2.0
//
// Which mapping begins at which address: what unmap has to know. Open addressing, so that a mapping per request
// allocates nothing once the table has its size.

internal import Platform

/// A mapping of one `map` call.
struct GrantMappingRecord: Sendable {
  /// The first page's address; 0 in a free slot.
  var address: UInt
  var pageCount: Int
  /// The maptrack handle of the first page; the others are chained to it.
  var firstHandle: UInt32
  /// The byte of the page that is cleared first; all ones for none.
  ///
  /// Kept here too: what the entry in the shared table says by then may not be within the page, or the page be one that
  /// cannot be written.
  var clearOffset: UInt32
  /// Nil in a free slot.
  var granter: DomainMemory?
}

/// Records by address.
///
/// One owner, one thread at a time.
struct MappingTable: ~Copyable {
  private var slots = Table(repeating: Self.empty, count: 64)
  private(set) var count = 0
  private static var empty: GrantMappingRecord {
    GrantMappingRecord(address: 0, pageCount: 0, firstHandle: 0, clearOffset: .max, granter: nil)
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
    for index in 0..<slots.count where slots[index].address != 0 {
      return remove(slots[index].address, pageCount: slots[index].pageCount)
    }
    return nil
  }

  private mutating func grow() {
    var old = Table(repeating: Self.empty, count: slots.count * 2)
    swap(&old, &slots)
    count = 0
    for index in 0..<old.count where old[index].address != 0 { insert(old[index]) }
  }
}
