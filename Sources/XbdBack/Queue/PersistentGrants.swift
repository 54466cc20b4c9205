// SPDX-License-Identifier: Apache-2.0
//
// The grants that a queue keeps mapped: reference ──► address, and which was used last.
//
//   index (open addressing)      entries (never move while in use)
//   ┌─────┬───────┐              ┌─────────┬───────────┬───────┬──────────┐
//   │ ref │ entry │ ───────────► │ address │ reference │ users │ last use │
//   └─────┴───────┘              └─────────┴───────────┴───────┴──────────┘
//
// All memory is there from the start. Linux: add_persistent_gnt, get_persistent_gnt, purge_persistent_gnt.

internal import Platform
internal import Xen

/// A bounded map from grant references of one domain to mapped pages, owned by a queue's thread.
struct PersistentGrants: ~Copyable {
  /// One page that is kept mapped.
  struct Entry {
    /// Nil in an entry that is not in use.
    var page: MappedPage?
    var reference: UInt32
    /// Requests in flight that use the page; it is not unmapped before there are none.
    var users: UInt32
    /// Rises with every use of any entry.
    var lastUse: UInt64
    /// When that was, in seconds of a coarse clock.
    var lastSecond: UInt32
  }
  let limit: Int
  private(set) var count = 0
  /// Do not give out a page that has a user already.
  var refusesUsed = false
  /// How often a page was refused because it had a user already.
  private(set) var usedAgain: UInt64 = 0
  /// A reference could not be kept since the last purge.
  var overflowed = false
  private var clock: UInt64 = 0
  /// A reference in the low half, its entry plus one in the high half; 0 marks an empty slot.
  private var index: Table<UInt64>
  private let mask: UInt32
  private let shift: UInt32
  private var entries: Table<Entry>
  /// Entries not in use, a stack; `limit - count` of them.
  private var free: Table<UInt32>

  /// - Parameter limit: grants at most, 0 or more.
  init(limit: Int) {
    self.limit = limit
    var bits: UInt32 = 4
    while 1 << bits < limit * 2 { bits += 1 }
    mask = 1 << bits - 1
    shift = 32 - bits
    index = Table(repeating: 0, count: 1 << Int(bits))
    entries = Table(
      repeating: Entry(page: nil, reference: 0, users: 0, lastUse: 0, lastSecond: 0), count: limit)
    free = Table(count: limit) { UInt32(limit - 1 - $0) }
  }

  /// The page of an entry that is in use.
  @inline(__always)
  func page(_ entry: UInt32) -> MappedPage? { entries[Int(entry)].page }

  /// Fibonacci hashing: references are often neighbours, and must not be told apart by their low bits alone.
  @inline(__always)
  private func home(_ reference: UInt32) -> UInt32 { (reference &* 0x9E37_79B1) >> shift }

  /// The entry of a slot that is not empty.
  @inline(__always)
  private static func entry(_ slot: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: slot >> 32) &- 1 }

  /// Finds a page and counts a user of it.
  ///
  /// - Returns: the entry, to be given back with `release`; nil when the reference is not kept, or is not to be given
  ///   to a second user.
  @inline(__always)
  mutating func acquire(_ reference: UInt32, second: UInt32) -> UInt32? {
    var position = home(reference)
    while true {
      let slot = index[Int(position)]
      if slot == 0 { return nil }
      if UInt32(truncatingIfNeeded: slot) == reference {
        let entry = Self.entry(slot)
        if refusesUsed, entries[Int(entry)].users > 0 { return nil }
        clock &+= 1
        entries[Int(entry)].users &+= 1
        entries[Int(entry)].lastUse = clock
        entries[Int(entry)].lastSecond = second
        return entry
      }
      position = (position &+ 1) & mask
    }
  }

  /// Whether a reference that `acquire` did not give out may be kept: there is room, and it is not there yet.
  mutating func hasRoom(for reference: UInt32) -> Bool {
    if refusesUsed {
      var position = home(reference)
      while index[Int(position)] != 0 {
        if UInt32(truncatingIfNeeded: index[Int(position)]) == reference {
          usedAgain &+= 1
          return false
        }
        position = (position &+ 1) & mask
      }
    }
    if count >= limit { overflowed = true }
    return count < limit
  }

  /// Keeps a page that has just been mapped, with one user.
  ///
  /// Only while `count` is below `limit`, and not twice.
  mutating func insert(_ reference: UInt32, _ page: MappedPage, second: UInt32) -> UInt32 {
    precondition(count < limit, "more grants are kept than the limit")
    count += 1
    clock &+= 1
    let entry = free[limit - count]
    entries[Int(entry)] = Entry(
      page: page, reference: reference, users: 1, lastUse: clock, lastSecond: second)
    var position = home(reference)
    while index[Int(position)] != 0 { position = (position &+ 1) & mask }
    index[Int(position)] = UInt64(entry &+ 1) << 32 | UInt64(reference)
    return entry
  }

  /// Ends one use.
  @inline(__always)
  mutating func release(_ entry: UInt32) {
    entries[Int(entry)].users &-= 1
  }

  /// Takes a page out.
  ///
  /// - Returns: the page, to be unmapped.
  mutating func remove(_ entry: UInt32) -> MappedPage? {
    let reference = entries[Int(entry)].reference
    var position = home(reference)
    while Self.entry(index[Int(position)]) != entry { position = (position &+ 1) & mask }
    // Close the gap, so that a search never has to step over a removed slot.
    var gap = position
    while true {
      position = (position &+ 1) & mask
      let slot = index[Int(position)]
      if slot == 0 { break }
      let distance = (position &- home(UInt32(truncatingIfNeeded: slot))) & mask
      if distance >= (position &- gap) & mask {
        index[Int(gap)] = slot
        gap = position
      }
    }
    index[Int(gap)] = 0
    free[limit - count] = entry
    count -= 1
    return entries[Int(entry)].page
  }

  /// Chooses what to let go of: everything unused for too long, and when the limit was not enough, the least
  /// recently used as well (Linux: purge_persistent_gnt).
  ///
  /// - Parameters:
  ///   - percent: of the limit, when it was not enough.
  ///   - unusedSeconds: 0 keeps for ever.
  ///   - body: gets each page; the entry is gone then.
  mutating func purge(
    percent: Int, unusedSeconds: UInt32, second: UInt32, _ body: (MappedPage) -> Void
  ) {
    var excess = 0
    if overflowed, count >= limit { excess = max(1, limit * percent / 100) }
    if percent == 0 { excess = 0 }
    overflowed = false
    guard count > 0, excess > 0 || (unusedSeconds > 0 && anyUnused(for: unusedSeconds, second)) else {
      return
    }
    var idle: [(lastUse: UInt64, entry: UInt32)] = []
    for position in 0..<index.count where index[position] != 0 {
      let entry = Self.entry(index[position])
      if entries[Int(entry)].users == 0 { idle.append((entries[Int(entry)].lastUse, entry)) }
    }
    idle.sort { $0.lastUse < $1.lastUse }
    for (position, candidate) in idle.enumerated() {
      let age = second &- entries[Int(candidate.entry)].lastSecond
      guard position < excess || (unusedSeconds > 0 && age >= unusedSeconds) else { break }
      if let page = remove(candidate.entry) { body(page) }
    }
  }

  private func anyUnused(for seconds: UInt32, _ second: UInt32) -> Bool {
    for position in 0..<index.count where index[position] != 0 {
      let entry = Int(Self.entry(index[position]))
      if entries[entry].users == 0, second &- entries[entry].lastSecond >= seconds { return true }
    }
    return false
  }

  /// Takes everything out, used or not; only when nothing is in flight any more.
  mutating func removeAll(_ body: (MappedPage) -> Void) {
    for position in 0..<index.count where index[position] != 0 {
      if let page = entries[Int(Self.entry(index[position]))].page { body(page) }
      index[position] = 0
    }
    count = 0
    for position in 0..<limit { free[position] = UInt32(limit - 1 - position) }
  }
}
