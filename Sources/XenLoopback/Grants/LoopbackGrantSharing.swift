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
    let base: UnsafeMutableRawPointer
    do throws(Errno) {
      base = try mapPages(of: connection.memory, references, writable: true)
    } catch {
      connection.memory.free(references)
      release(pages)
      throw XenError(errno: error, "cannot map \(count) pages to share with domain \(domain)")
    }
    for reference in references {
      connection.memory.publish(
        reference, to: domain.rawValue, writable: writable, owner: connection.join, notifyPort: numbers.port,
        clearOffset: numbers.clearOffset)
    }
    nonisolated(unsafe) let address = base
    return SharedPages(baseAddress: base, references: references.map { GrantRef($0) }) { [connection] in
      Self.end(connection, address, references, numbers)
    }
  }

  /// Counts pages against the domain's limit, all or none.
  private func reserve(_ pages: UInt32) throws(XenError) {
    let header = connection.memory.header
    let limit = header.pageLimit.pointee.load(ordering: .relaxed)
    var shared = header.pagesShared.pointee.load(ordering: .relaxed)
    while true {
      guard pages <= limit, shared <= limit - pages else {
        throw XenError(
          .limitReached,
          "cannot share \(pages) pages: domain \(connection.domain) of the loopback \(connection.control.directory) "
            + "shares \(shared) of at most \(limit); raise its limit with LoopbackToolstack.setPageLimit, "
            + "as /sys/module/xen_gntalloc/parameters/limit on Linux", errno: .noSpace)
      }
      let (done, seen) = header.pagesShared.pointee.weakCompareExchange(
        expected: shared, desired: shared + pages, ordering: .relaxed)
      if done { break }
      shared = seen
    }
    connection.pagesShared.pointee.wrappingAdd(pages, ordering: .relaxed)
  }

  private func release(_ pages: UInt32) { Self.release(pages, connection) }

  /// Stops counting pages, unless the host has done so already because it ended the join.
  private static func release(_ pages: UInt32, _ connection: LoopbackConnection) {
    let mine = connection.pagesShared
    var current = mine.pointee.load(ordering: .relaxed)
    while current >= pages {
      let (done, seen) = mine.pointee.weakCompareExchange(
        expected: current, desired: current - pages, ordering: .relaxed)
      if done {
        connection.memory.header.pagesShared.pointee.wrappingSubtract(pages, ordering: .relaxed)
        return
      }
      current = seen
    }
  }

  private func claim(_ pages: UInt32) -> [UInt32] {
    var references: [UInt32] = []
    references.reserveCapacity(Int(pages))
    var start = connection.memory.header.grantHint.pointee.load(ordering: .relaxed)
    for _ in 0..<pages {
      guard let reference = connection.memory.claim(for: connection.join, startingAt: start) else { break }
      references.append(reference)
      start = reference + 1
    }
    connection.memory.header.grantHint.pointee.store(start, ordering: .relaxed)
    return references
  }

  private static func end(
    _ connection: LoopbackConnection, _ address: UnsafeMutableRawPointer, _ references: [UInt32],
    _ numbers: (port: UInt32, clearOffset: UInt32)
  ) {
    let memory = connection.memory
    if numbers.clearOffset < UInt32(Page.size) {
      (address + Int(numbers.clearOffset)).storeBytes(of: 0, as: UInt8.self)
    }
    var unused: [UInt32] = []
    unused.reserveCapacity(references.count)
    for reference in references where memory.revoke(reference, join: connection.join) {
      unused.append(reference)
    }
    _ = munmap(address, references.count << Page.shift)
    memory.free(unused)
    release(UInt32(references.count), connection)
    connection.send(numbers.port)
  }
}

/// Maps pages of a domain's file next to each other, with as few system calls as their numbers allow.
///
/// - Returns: the first page; `references.count` pages follow each other.
func mapPages(
  of memory: DomainMemory, _ references: [UInt32], writable: Bool
) throws(Errno) -> UnsafeMutableRawPointer {
  try references.withUnsafeBufferPointer { buffer in
    Result<UnsafeMutableRawPointer, Errno> { () throws(Errno) in
      try mapPages(of: memory, buffer, writable: writable)
    }
  }.get()
}

/// Maps pages of a domain's file next to each other, with as few system calls as their numbers allow.
func mapPages(
  of memory: DomainMemory, _ references: UnsafeBufferPointer<UInt32>, writable: Bool
) throws(Errno) -> UnsafeMutableRawPointer {
  let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
  let flags = Int32(MAP_SHARED) | cxen_MAP_POPULATE
  let length = references.count << Page.shift
  var base: UnsafeMutableRawPointer?
  var index = 0
  while index < references.count {
    var end = index + 1
    while end < references.count, references[end] == references[end - 1] &+ 1 { end += 1 }
    if index == 0 && end < references.count {
      // Several stretches of the file: they need address space that keeps them together.
      base = mmap(nil, length, PROT_NONE, Int32(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE), -1, 0)
      if base == MAP_FAILED { throw .current }
    }
    let got = mmap(
      base.map { $0 + index << Page.shift }, (end - index) << Page.shift, protection,
      base == nil ? flags : flags | Int32(MAP_FIXED), memory.pagesDescriptor.raw,
      off_t(Int(references[index]) << Page.shift))
    if got == MAP_FAILED {
      let failure = Errno.current
      if let base { _ = munmap(base, length) }
      throw failure
    }
    if base == nil { base = got }
    index = end
  }
  guard let base else { throw .invalidArgument }
  return base
}
