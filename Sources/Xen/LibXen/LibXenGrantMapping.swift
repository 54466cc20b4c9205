// SPDX-License-Identifier: Apache-2.0
//
// Mapping and copying other domains' pages: xengnttab_* of libxengnttab over Linux's gntdev driver.

internal import Platform
internal import SystemPackage

/// Maps and copies granted pages through /dev/xen/gntdev.
public final class LibXenGrantMapping: GrantMapping {
  private let device: Locked<GrantMappingDevice>

  /// Opens the device.
  ///
  /// - Throws: `.unavailable` or `.denied`, with what to do.
  public init() throws(XenError) {
    guard let opened = GrantMappingDevice() else {
      throw cannotOpen(.current, device: "/dev/xen/gntdev", module: "xen-gntdev")
    }
    device = Locked(opened)
  }

  /// Maps granted pages next to each other, all of them or none (xengnttab_map_domain_grant_refs).
  public func map(
    _ references: Span<GrantRef>, of domain: DomainID, writable: Bool
  ) throws(XenError) -> UnsafeMutableRawPointer {
    guard let count = UInt32(exactly: references.count), count > 0 else {
      throw XenError(.invalid, "no grant references of domain \(domain) to map")
    }
    // SAFETY: the address of a new mapping, which goes on to the caller.
    let (address, failure) = unsafe device.with { device in
      unsafe (device.map(references, count: count, of: domain, writable: writable), Errno.current)
    }
    guard let address = unsafe address else {
      throw XenError(
        errno: failure,
        "cannot map \(count) grants of domain \(domain) \(writable ? "writable" : "read-only"), the first being "
          + "reference \(references[0])")
    }
    return unsafe address
  }

  /// Maps one page with a notification on its end (xengnttab_map_grant_ref_notify).
  public func map(
    _ reference: GrantRef, of domain: DomainID, writable: Bool, notification: UnmapNotification
  ) throws(XenError) -> UnsafeMutableRawPointer {
    // SAFETY: the address of a new mapping, which goes on to the caller.
    let (address, failure) = unsafe device.with { device in
      unsafe (
        device.map(reference, of: domain, writable: writable, notification: notification), Errno.current
      )
    }
    guard let address = unsafe address else {
      throw XenError(
        errno: failure,
        "cannot map grant reference \(reference) of domain \(domain) \(writable ? "writable" : "read-only") "
          + "with an unmap notification")
    }
    return unsafe address
  }

  /// Unmaps what one `map` call returned (xengnttab_unmap).
  public func unmap(_ address: UnsafeMutableRawPointer, count: Int) throws(XenError) {
    guard let rawCount = UInt32(exactly: count) else {
      // SAFETY of both messages: the address is written down, not followed.
      throw unsafe XenError(.invalid, "cannot unmap \(count) pages at \(address)")
    }
    let failure: Errno? = device.with { device in
      // SAFETY: that these pages were mapped by a `map` call and nobody uses them any more is what the caller promises.
      unsafe device.unmap(address, count: rawCount) ? nil : .current
    }
    if let failure {
      // SAFETY: as above.
      throw unsafe XenError(errno: failure, "cannot unmap \(count) granted pages at \(address)")
    }
  }

  /// Copies without mapping (xengnttab_grant_copy).
  public func copy(_ segments: inout MutableSpan<GrantCopySegment>) throws(XenError) {
    guard !segments.isEmpty else { return }
    let failure = device.with { device in device.copy(&segments) }
    if let failure { throw XenError(errno: failure, "cannot copy \(segments.count) grant segments") }
  }
}
