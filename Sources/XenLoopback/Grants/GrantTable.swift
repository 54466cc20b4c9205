// SPDX-License-Identifier: Apache-2.0
//
// What Xen does with a grant entry (xen/common/grant_table.c), on the shared tables: pin it for a mapper or a copy,
// unpin it, end it; and what Linux's gntalloc does with a page whose grant has ended but which is still mapped.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization

/// Why a grant may not be used.
enum GrantRefusal: Error {
  /// No such entry, or it is not shared any more.
  case notGranted
  /// It is meant for another domain.
  case otherDomain
  /// It is read-only.
  case readOnly
  /// It is mapped 65,535 times already.
  case tooManyMappings
}

extension DomainMemory {
  /// Whether a number can be a reference at all.
  static func isReference(_ reference: UInt32) -> Bool {
    reference >= UInt32(DomainLayout.firstGrant) && reference < UInt32(DomainLayout.grantCount)
  }

  /// The references that were ever given out; within the table whatever a process has written there.
  var usedReferences: Range<UInt32> {
    let first = UInt32(DomainLayout.firstGrant)
    let end = header.grantHighWater.loadAcquiring()
    return first..<min(max(end, first), UInt32(DomainLayout.grantCount))
  }

  /// Checks a grant and counts a user of it, in one step.
  ///
  /// Cost: a load and a compare-and-exchange.
  func pin(_ reference: UInt32, by mapper: UInt16, writable: Bool) throws(GrantRefusal) {
    guard Self.isReference(reference) else { throw .notGranted }
    let word = grant(reference).word
    // Pairs with the .releasing store in `publish`.
    var current = word.loadAcquiring()
    while true {
      guard current & GrantEntry.permitAccess != 0 else { throw .notGranted }
      guard GrantEntry.domain(current) == mapper else { throw .otherDomain }
      guard !writable || current & GrantEntry.readOnly == 0 else { throw .readOnly }
      let count = writable ? GrantEntry.writers(current) : GrantEntry.readers(current)
      guard count < 0xFFFF else { throw .tooManyMappings }
      let (done, seen) = word.tryExchange(
        expected: current, desired: current &+ (writable ? GrantEntry.writer : GrantEntry.reader))
      if done { return }
      current = seen
    }
  }

  /// Takes a user of a grant back; frees the page when it was the last of a grant that has ended.
  ///
  /// - Parameter join: the join on whose behalf this happens, for the host to know should it die.
  func unpin(_ reference: UInt32, writable: Bool, join: UInt32) {
    guard Self.isReference(reference) else { return }
    let word = grant(reference).word
    let step = writable ? GrantEntry.writer : GrantEntry.reader
    var current = word.loadAcquiring()
    while true {
      guard current & GrantEntry.busy == 0,
        (writable ? GrantEntry.writers(current) : GrantEntry.readers(current)) > 0
      else { return }
      let rest = current &- step
      let isLast = rest & GrantEntry.permitAccess == 0 && rest >> 32 == 0
      let (done, seen) = word.tryExchange(
        expected: current, desired: isLast ? GrantEntry.busy(by: join) : rest)
      if done {
        if isLast { free(reference, count: 1) }
        return
      }
      current = seen
    }
  }

  /// Takes a free entry.
  ///
  /// - Returns: the reference, marked busy; nil when every entry is in use.
  func claim(for join: UInt32, startingAt start: UInt32) -> UInt32? {
    var reference = Self.isReference(start) ? start : UInt32(DomainLayout.firstGrant)
    for _ in 0..<(DomainLayout.grantCount - DomainLayout.firstGrant) {
      let word = grant(reference).word
      if word.loadRelaxed() == 0,
        word.compareExchange(expected: 0, desired: GrantEntry.busy(by: join))
      {
        raise(header.grantHighWater, to: reference + 1)
        return reference
      }
      reference += 1
      if reference == UInt32(DomainLayout.grantCount) { reference = UInt32(DomainLayout.firstGrant) }
    }
    return nil
  }

  /// Makes a claimed entry a grant.
  func publish(
    _ reference: UInt32, to domain: UInt16, writable: Bool, owner: UInt32, _ numbers: UnmapNumbers
  ) {
    let entry = grant(reference)
    entry.owner.storeRelaxed(owner)
    entry.notifyPort.storeRelaxed(numbers.port)
    entry.notifyHandle.storeRelaxed(numbers.handle)
    entry.clearOffset.storeRelaxed(numbers.clearOffset)
    let flags = GrantEntry.allocated | GrantEntry.permitAccess | (writable ? 0 : GrantEntry.readOnly)
    // Pairs with the .acquiring load in `pin`.
    entry.word.storeReleasing(flags | UInt64(domain) << 16)
  }

  /// Ends a grant: no new mapping from now on.
  ///
  /// - Returns: whether the entry is the caller's to free; false while the page is still mapped somewhere, in which
  ///   case the last to unmap it frees it.
  func revoke(_ reference: UInt32, join: UInt32) -> Bool {
    let word = grant(reference).word
    var current = word.loadAcquiring()
    while true {
      guard current & GrantEntry.permitAccess != 0 else { return false }
      let unused = current >> 32 == 0
      let (done, seen) = word.tryExchange(
        expected: current, desired: unused ? GrantEntry.busy(by: join) : current & ~GrantEntry.permitAccess)
      if done { return unused }
      current = seen
    }
  }

  /// Makes a grant one for another domain; whoever has mapped the page keeps it until it unmaps it.
  private func redirect(_ reference: UInt32, to domain: UInt16) {
    let word = grant(reference).word
    var current = word.loadAcquiring()
    while current & GrantEntry.permitAccess != 0 {
      let (done, seen) = word.tryExchange(
        expected: current, desired: current & ~(UInt64(0xFFFF) << 16) | UInt64(domain) << 16)
      if done { return }
      current = seen
    }
  }

  /// Makes every grant one for another domain.
  ///
  /// Those whose pages are mapped come first, the rings among them: a backend that is refused a page finds its ring refused
  /// as well.
  func redirectAll(to domain: UInt16) {
    for reference in usedReferences where grant(reference).word.loadAcquiring() >> 32 != 0 {
      redirect(reference, to: domain)
    }
    for reference in usedReferences { redirect(reference, to: domain) }
  }

  /// Gives entries that are busy and next to each other back, and their pages to the system.
  func free(_ first: UInt32, count: Int) {
    // Punched before the entry is free: whoever takes it next finds a page of zeroes.
    _ = cxen_fallocate(
      pagesDescriptor.raw, cxen_FALLOC_FL_PUNCH_HOLE | cxen_FALLOC_FL_KEEP_SIZE,
      off_t(Int(first) << Page.shift), off_t(count << Page.shift))
    for reference in first..<(first + UInt32(count)) {
      grant(reference).word.storeReleasing(0)
    }
    header.grantHint.storeRelaxed(first)
  }

  /// Frees references in any order, neighbours together.
  func free(_ references: [UInt32]) {
    forEachRun(of: references) { first, count in free(first, count: count) }
  }

  private func raise(_ mark: SharedUInt32, to value: UInt32) {
    var current = mark.loadRelaxed()
    while current < value {
      let (done, seen) = mark.tryExchangeRelaxed(
        expected: current, desired: value)
      if done { return }
      current = seen
    }
  }
}

/// Calls `body` for each stretch of references that follow one another.
func forEachRun(of references: [UInt32], _ body: (_ first: UInt32, _ count: Int) -> Void) {
  var index = 0
  while index < references.count {
    var end = index + 1
    while end < references.count, references[end] == references[end - 1] &+ 1 { end += 1 }
    body(references[index], end - index)
    index = end
  }
}
