// SPDX-License-Identifier: Apache-2.0
//
// gntalloc of the loopback: pages of the domain's file, mapped here and granted to another domain. Its rules are
// those of Linux's drivers/xen/gntalloc.c.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage
internal import Xen

/// Shares pages of a loopback domain.
final class LoopbackGrantSharing: GrantSharing {
  private let connection: LoopbackConnection

  init(_ connection: LoopbackConnection) {
    self.connection = connection
  }

  func share(
    pages count: Int, with domain: DomainID, writable: Bool, notification: UnmapNotification?
  ) throws(XenError) -> SharedPages {
    guard count > 0, let pages = UInt32(exactly: count) else {
      throw XenError(.invalid, "cannot share \(count) pages; share at least 1")
    }
    guard notification == nil || count == 1 else {
      throw XenError(
        .invalid, "cannot share \(count) pages with an unmap notification; it goes with exactly 1")
    }
    guard domain.rawValue < DomainID.firstReserved.rawValue else {
      throw XenError(.notFound, "cannot share pages with domain \(domain): there can be no such domain")
    }
    let numbers = try connection.numbers(of: notification)
    try reserve(pages)
    let references = claim(pages)
    guard references.count == count else {
      connection.memory.free(references)
      release(pages)
      throw XenError(
        .limitReached,
        "cannot share \(count) pages with domain \(domain): the grant table of domain "
          + "\(connection.domain) has only \(references.count) free entries")
    }
    let granted = references.map { GrantRef($0) }
    let base: UnsafeMutableRawPointer
    do throws(Errno) {
      // SAFETY: mapped until `end` unmaps it, which SharedPages calls once, when nobody has it any more.
      unsafe base = try mapPages(of: connection.memory, granted.span, writable: true)
    } catch {
      connection.memory.free(references)
      release(pages)
      throw XenError(errno: error, "cannot map \(count) pages to share with domain \(domain)")
    }
    for reference in references {
      connection.memory.publish(
        reference, to: domain.rawValue, writable: writable, owner: connection.join, numbers)
    }
    // SAFETY: only an address; what the other domain does to the bytes is SharedPages' to say.
    nonisolated(unsafe) let address = unsafe base
    return unsafe SharedPages(baseAddress: base, references: granted) { [connection] in
      unsafe Self.end(connection, address, references, numbers)
    }
  }

  /// Counts pages against the domain's limit, all or none.
  private func reserve(_ pages: UInt32) throws(XenError) {
    let header = connection.memory.header
    let limit = header.pageLimit.loadRelaxed()
    var shared = header.pagesShared.loadRelaxed()
    while true {
      guard pages <= limit, shared <= limit - pages else {
        throw XenError(
          .limitReached,
          "cannot share \(pages) pages: domain \(connection.domain) of the loopback \(connection.control.directory) "
            + "shares \(shared) of at most \(limit); raise its limit with LoopbackToolstack.setPageLimit, "
            + "as /sys/module/xen_gntalloc/parameters/limit on Linux", errno: .noSpace)
      }
      let (done, seen) = header.pagesShared.tryExchangeRelaxed(
        expected: shared, desired: shared + pages)
      if done { break }
      shared = seen
    }
    connection.pagesShared.addRelaxed(pages)
  }

  private func release(_ pages: UInt32) { Self.release(pages, connection) }

  /// Stops counting pages, unless the host has done so already because it ended the join.
  private static func release(_ pages: UInt32, _ connection: LoopbackConnection) {
    let mine = connection.pagesShared
    var current = mine.loadRelaxed()
    while current >= pages {
      let (done, seen) = mine.tryExchangeRelaxed(
        expected: current, desired: current - pages)
      if done {
        connection.memory.header.pagesShared.subtractRelaxed(pages)
        return
      }
      current = seen
    }
  }

  private func claim(_ pages: UInt32) -> [UInt32] {
    var references: [UInt32] = []
    references.reserveCapacity(Int(pages))
    var start = connection.memory.header.grantHint.loadRelaxed()
    for _ in 0..<pages {
      guard let reference = connection.memory.claim(for: connection.join, startingAt: start) else { break }
      references.append(reference)
      start = reference + 1
    }
    connection.memory.header.grantHint.storeRelaxed(start)
    return references
  }

  private static func end(
    _ connection: LoopbackConnection, _ address: UnsafeMutableRawPointer, _ references: [UInt32],
    _ numbers: UnmapNumbers
  ) {
    let memory = connection.memory
    if numbers.clearOffset < UInt32(Page.size) {
      // SAFETY: within the first page, which is mapped for writing until a few lines on.
      unsafe (address + Int(numbers.clearOffset)).storeBytes(of: 0, as: UInt8.self)
    }
    var unused: [UInt32] = []
    unused.reserveCapacity(references.count)
    for reference in references where memory.revoke(reference, join: connection.join) {
      unused.append(reference)
    }
    // SAFETY: what `mapPages` mapped, as long as it did; called once.
    _ = unsafe munmap(address, references.count << Page.shift)
    memory.free(unused)
    release(UInt32(references.count), connection)
    connection.send(numbers)
  }
}

/// Maps pages of a domain's file next to each other, with as few system calls as their numbers allow.
///
/// - Parameter references: of that domain's table (`DomainMemory.isReference`).
/// - Returns: the first page; `references.count` pages follow each other, the caller's to unmap.
func mapPages(
  of memory: DomainMemory, _ references: Span<GrantRef>, writable: Bool
) throws(Errno) -> UnsafeMutableRawPointer {
  guard !references.isEmpty else { throw .invalidArgument }
  let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
  let flags = Int32(MAP_SHARED) | cxen_MAP_POPULATE
  let file = memory.pagesDescriptor.raw
  let length = references.count << Page.shift
  let isOneStretch = endOfStretch(references, from: 0) == references.count
  // Several stretches of the file need address space that keeps them together.
  // SAFETY of both: without MAP_FIXED nothing that exists is mapped over.
  let space =
    isOneStretch
    ? unsafe mmap(nil, length, protection, flags, file, fileOffset(references[0]))
    : unsafe mmap(nil, length, PROT_NONE, Int32(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE), -1, 0)
  guard let base = unsafe space, unsafe base != MAP_FAILED else { throw .current }
  var index = isOneStretch ? references.count : 0
  while index < references.count {
    let end = endOfStretch(references, from: index)
    // SAFETY: over a part of the address space just made, which nobody else has.
    let got = unsafe mmap(
      base + index << Page.shift, (end - index) << Page.shift, protection, flags | Int32(MAP_FIXED), file,
      fileOffset(references[index]))
    guard unsafe got != MAP_FAILED else {
      let failure = Errno.current
      // SAFETY: the whole of that address space.
      _ = unsafe munmap(base, length)
      throw failure
    }
    index = end
  }
  return unsafe base
}

/// Where a stretch of references that follow one another ends.
private func endOfStretch(_ references: Span<GrantRef>, from first: Int) -> Int {
  var end = first + 1
  while end < references.count, references[end].rawValue == references[end - 1].rawValue &+ 1 { end += 1 }
  return end
}

/// Where a page is in its domain's file.
private func fileOffset(_ reference: GrantRef) -> off_t { off_t(Int(reference.rawValue) << Page.shift) }
