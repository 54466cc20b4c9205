// SPDX-License-Identifier: Apache-2.0
//
// xengnttab_map_grant_refs takes pages of several domains and shows them next to each other; the loopback maps one
// domain's pages at a time. So each stretch of one domain is mapped by itself and then once more, at its place.

internal import CXenDropIn
internal import Glibc
internal import Platform
internal import SystemPackage
internal import Xen

/// Pages of several domains in one stretch of addresses.
enum MixedMapping {
  /// What the loopback mapped: an address and a number of pages.
  struct Part: Sendable {
    let address: UInt
    let count: Int
  }

  /// Maps all pages or none.
  ///
  /// - Returns: the first page, and what `unmap` has to be given.
  static func map(
    _ references: UnsafeBufferPointer<UInt32>, of domains: UnsafeBufferPointer<UInt32>, writable: Bool,
    _ mapping: any GrantMapping
  ) throws(XenError) -> (UnsafeMutableRawPointer, [Part]) {
    let length = references.count << Page.shift
    let base = mmap(nil, length, PROT_NONE, MAP_PRIVATE | Int32(MAP_ANONYMOUS) | Int32(MAP_NORESERVE), -1, 0)
    guard let base, base != MAP_FAILED else { throw XenError(errno: .current, "no address space is left") }
    var parts: [Part] = []
    do throws(XenError) {
      var index = 0
      while index < references.count {
        var end = index + 1
        while end < references.count, domains[end] == domains[index] { end += 1 }
        guard let number = UInt16(exactly: domains[index]) else {
          throw XenError(.invalid, "\(domains[index]) is no domain's number")
        }
        let stretch = (index..<end).map { GrantRef(references[$0]) }
        let address = try mapping.map(stretch, of: DomainID(number), writable: writable)
        parts.append(Part(address: UInt(bitPattern: address), count: stretch.count))
        let place = base + index << Page.shift
        guard xenloopback_map_again(address, stretch.count << Page.shift, place) == 0 else {
          throw XenError(errno: .current, "cannot place \(stretch.count) pages of domain \(number)")
        }
        index = end
      }
    } catch {
      unmap(UInt(bitPattern: base), parts, mapping, byteCount: length)
      throw error
    }
    return (base, parts)
  }

  /// Takes back what `map` returned.
  static func unmap(_ address: UInt, _ parts: [Part], _ mapping: any GrantMapping) {
    unmap(address, parts, mapping, byteCount: parts.reduce(0) { $0 + $1.count } << Page.shift)
  }

  private static func unmap(_ address: UInt, _ parts: [Part], _ mapping: any GrantMapping, byteCount: Int) {
    _ = munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount)
    for part in parts {
      guard let start = UnsafeMutableRawPointer(bitPattern: part.address) else { continue }
      try? mapping.unmap(start, count: part.count)
    }
  }
}
