// SPDX-License-Identifier: Apache-2.0
//
// The frontend's pages in a hostile backend's hands: mapped for requests, kept when the plan says so, and looked
// through (by a mapping of their own, as any backend could) for what should not be in them.

internal import Glibc
internal import Platform
internal import Xen

final class HostileGrants {
  let mapping: any GrantMapping
  private let spy: any GrantMapping
  let isPersistent: Bool
  /// Pages mapped writable by their reference.
  private(set) var pages: [UInt32: UnsafeMutableRawPointer] = [:]
  /// Pages of the frontend's domain mapped for reading only, whether a request named them or not.
  private(set) var seen: [UInt32: UnsafeMutableRawPointer] = [:]

  init(mapping: any GrantMapping, spy: any GrantMapping, isPersistent: Bool) {
    self.mapping = mapping
    self.spy = spy
    self.isPersistent = isPersistent
  }

  /// A page by its reference, mapped if need be.
  func page(_ reference: UInt32) -> UnsafeMutableRawPointer? {
    if let page = pages[reference] { return page }
    guard let page = try? mapping.map([GrantRef(reference)], of: HostileMachine.domain, writable: true)
    else { return nil }
    pages[reference] = page
    return page
  }

  /// Whether a page is still granted, wherever it is mapped by now.
  func isGranted(_ reference: UInt32) -> Bool {
    guard let page = try? spy.map([GrantRef(reference)], of: HostileMachine.domain, writable: false)
    else { return false }
    try? spy.unmap(page, count: 1)
    return true
  }

  func release(_ reference: UInt32) {
    guard let page = pages.removeValue(forKey: reference) else { return }
    try? mapping.unmap(page, count: 1)
  }

  func releaseAll() {
    for reference in pages.keys { release(reference) }
    releaseSeen()
  }

  func releaseSeen() {
    for page in seen.values { try? spy.unmap(page, count: 1) }
    seen = [:]
  }

  /// Maps whatever the frontend's domain grants: references are small numbers, anybody can try them.
  func lookAround() {
    var misses = 0
    var reference: UInt32 = 8
    while misses < 80 {
      if seen[reference] == nil {
        if let page = try? spy.map([GrantRef(reference)], of: HostileMachine.domain, writable: false) {
          seen[reference] = page
          misses = 0
        } else {
          misses += 1
        }
      } else {
        misses = 0
      }
      reference += 1
    }
  }

  /// Looks through every page that can be read.
  ///
  /// - Returns: pages looked at and the references of those with the canary in them.
  func scan(for canary: [UInt8]) -> (Int, [UInt32]) {
    var found: [UInt32] = []
    let all = seen.merging(pages) { $1 }
    for (reference, page) in all where contains(page, 4096, canary) { found.append(reference) }
    return (all.count, found)
  }
}

/// Whether memory holds some bytes in a row, at any place.
///
/// Quick where the first of them is rare.
func contains(_ memory: UnsafeMutableRawPointer, _ count: Int, _ bytes: [UInt8]) -> Bool {
  bytes.withUnsafeBytes { wanted in
    guard let first = wanted.baseAddress, count >= wanted.count else { return false }
    var from = 0
    while from + wanted.count <= count,
      let hit = memchr(memory + from, Int32(bytes[0]), count - wanted.count + 1 - from)
    {
      if memcmp(hit, first, wanted.count) == 0 { return true }
      from = hit - memory + 1
    }
    return false
  }
}
