// SPDX-License-Identifier: Apache-2.0
//
// xengnttab_map_grant_refs takes pages of several domains and shows them next to each other; the loopback maps one
// domain's pages at a time. So each stretch of one domain is mapped by itself, and then its pages once more, at their places.

internal import CXenDropIn
internal import Glibc
internal import Platform
internal import SystemPackage
internal import Xen

/// Pages of several domains in one stretch of addresses; unmapped with the last reference.
final class MixedMapping: Sendable {
  // In this order: what the program sees goes first, and the grants are let go of when nobody sees their pages.
  let window: PageWindow
  private let parts: [MappedPages]

  private init(_ window: consuming PageWindow, _ parts: [MappedPages]) {
    self.window = window
    self.parts = parts
  }

  /// Maps all pages or none.
  ///
  /// - Parameter domains: as many as references.
  static func map(
    _ references: CallerArray<UInt32>, of domains: CallerArray<UInt32>, writable: Bool,
    _ mapping: any GrantMapping
  ) throws(XenError) -> MixedMapping {
    let window = try PageWindow(pageCount: references.count)
    var parts: [MappedPages] = []
    var first = 0
    while first < references.count {
      var end = first + 1
      while end < references.count, domains[end] == domains[first] { end += 1 }
      guard let domain = UInt16(exactly: domains[first]) else {
        throw XenError(.invalid, "\(domains[first]) is no domain's number")
      }
      let stretch = (first..<end).map { GrantRef(references[$0]) }
      let part = try MappedPages(stretch, of: DomainID(domain), writable: writable, mapping)
      parts.append(part)
      // One by one: neighbours in the window need not be neighbours in the domain's file, and mremap goes by that.
      for index in 0..<stretch.count { try part.show(index, in: window, at: first + index) }
      first = end
    }
    return MixedMapping(window, parts)
  }
}

/// Addresses for pages that are mapped elsewhere already.
@safe struct PageWindow: ~Copyable, Sendable {
  // SAFETY: `pageCount` pages of address space, reserved by the initialiser and this value's until the deinit.
  private nonisolated(unsafe) let base: UnsafeMutableRawPointer
  let pageCount: Int

  /// Reserves addresses; there is nothing to read there yet.
  init(pageCount: Int) throws(XenError) {
    precondition(pageCount > 0, "a window of no pages")
    let flags = Int32(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    // SAFETY: without MAP_FIXED nothing that exists is mapped over.
    let space = unsafe mmap(nil, pageCount << Page.shift, PROT_NONE, flags, -1, 0)
    guard let space = unsafe space, unsafe space != MAP_FAILED else {
      throw XenError(errno: .current, "no address space is left for \(pageCount) pages")
    }
    unsafe base = space
    self.pageCount = pageCount
  }

  deinit {
    // SAFETY: of the initialiser, with all that was put there; the program uses it no more.
    _ = unsafe munmap(base, pageCount << Page.shift)
  }

  /// The first page, for the program.
  // SAFETY: it uses the pages until it unmaps them, and this value is kept as long.
  @safe var address: UnsafeMutableRawPointer { unsafe base }

  /// Where a page goes.
  fileprivate func place(_ index: Int) -> UnsafeMutableRawPointer {
    precondition(index >= 0 && index < pageCount, "no such page in the window")
    // SAFETY: within the window.
    return unsafe base + index << Page.shift
  }
}

/// What one `map` call of the loopback returned; unmapped with the last reference.
@safe private final class MappedPages: Sendable {
  // SAFETY: `count` pages, mapped by the initialiser and until the deinit.
  private nonisolated(unsafe) let address: UnsafeMutableRawPointer
  private let count: Int
  private let mapping: any GrantMapping

  init(
    _ references: [GrantRef], of domain: DomainID, writable: Bool, _ mapping: any GrantMapping
  ) throws(XenError) {
    // SAFETY: kept, to be unmapped once.
    unsafe address = try mapping.map(references, of: domain, writable: writable)
    count = references.count
    self.mapping = mapping
  }

  deinit {
    // SAFETY: of the initialiser; only this object knew the address.
    try? unsafe mapping.unmap(address, count: count)
  }

  /// Shows a page in a window, too.
  func show(_ index: Int, in window: borrowing PageWindow, at place: Int) throws(XenError) {
    precondition(index >= 0 && index < count, "no such page in the mapping")
    // SAFETY: one of these pages, over one of the window's, which is nobody else's.
    let page = unsafe address + index << Page.shift
    guard unsafe xenloopback_map_again(page, Page.size, window.place(place)) == 0 else {
      throw XenError(errno: .current, "cannot show page \(index) of \(count) among those of other domains")
    }
  }
}
