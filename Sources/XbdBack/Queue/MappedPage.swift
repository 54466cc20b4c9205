// SPDX-License-Identifier: Apache-2.0
//
// Pages of a frontend that are mapped here: the only way from a request's segments to their memory.

internal import Blkif
internal import Glibc
internal import Platform
internal import Xen

/// A page that is mapped; whoever keeps the value keeps the page mapped.
@safe struct MappedPage: BitwiseCopyable {
  // SAFETY: a page that a `GrantMapping` gave, mapped until `unmap`. The frontend may write it at any time: what is read from
  // it is copied once and then checked, payload excepted, which means nothing here.
  private let base: UnsafeMutableRawPointer

  /// - Parameter base: a page that stays mapped for as long as the value is used.
  @inline(__always)
  init(_ base: UnsafeMutableRawPointer) {
    // SAFETY: kept; the caller's promise.
    unsafe self.base = base
  }

  /// Where a segment's sectors are, all of them within the page.
  @inline(__always)
  func address(of segment: Segment) -> UnsafeMutableRawPointer {
    // SAFETY: the segment is valid, as the caller has checked: its first sector is one of the page's eight.
    unsafe base + Int(segment.firstSector) &* BlkIf.sectorSize
  }

  /// Copies the page's first bytes.
  ///
  /// - Parameter destination: has room for them.
  func copy(to destination: UnsafeMutableRawPointer, byteCount: Int) {
    precondition(byteCount >= 0 && byteCount <= Page.size, "more than a page")
    // SAFETY: checked; and the caller's room.
    unsafe destination.copyMemory(from: base, byteCount: byteCount)
  }

  /// Lets go of the page, mapped by a call of its own; the value and its copies are not to be used again.
  func unmap(_ grants: any GrantMapping) {
    // SAFETY: it fails only for what is not mapped, and then there is nothing to let go of.
    try? unsafe grants.unmap(base, count: 1)
  }
}

/// Pages next to each other that one call has mapped for one request.
@safe struct TransientMapping: BitwiseCopyable {
  // SAFETY: `count` pages, otherwise as `MappedPage.base`.
  private let base: UnsafeMutableRawPointer
  let count: Int

  /// - Parameters:
  ///   - base: what a `map` call returned.
  ///   - count: of how many pages.
  init(_ base: UnsafeMutableRawPointer, count: Int) {
    // SAFETY: kept; the caller's promise.
    unsafe self.base = base
    self.count = count
  }

  /// One of the pages.
  func page(_ index: Int) -> MappedPage {
    precondition(index >= 0 && index < count, "no such page")
    // SAFETY: checked.
    return unsafe MappedPage(base + index * Page.size)
  }

  /// Lets go of the pages; the value and its copies are not to be used again.
  func unmap(_ grants: any GrantMapping) {
    // SAFETY: see `MappedPage.unmap`.
    try? unsafe grants.unmap(base, count: count)
  }
}
