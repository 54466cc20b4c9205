// SPDX-License-Identifier: Apache-2.0
//
// Granting our own pages: xengntshr_* of libxengnttab over Linux's gntalloc driver.

internal import Platform
internal import SystemPackage

/// Shares pages through /dev/xen/gntalloc.
///
/// The library gives a page's lifetime to its mapping: unsharing is an munmap, and the process's end does the same.
/// Calls are made one at a time, because a library handle is not thread-safe.
public final class LibXenGrantSharing: GrantSharing {
  private let device: Locked<GrantSharingDevice>

  /// Opens the device.
  ///
  /// - Throws: `.unavailable` or `.denied`, with what to do.
  public init() throws(XenError) {
    guard let opened = GrantSharingDevice() else {
      throw cannotOpen(.current, device: "/dev/xen/gntalloc", module: "xen-gntalloc")
    }
    device = Locked(opened)
  }

  /// Shares freshly zeroed pages with another domain (xengntshr_share_pages).
  public func share(
    pages count: Int, with domain: DomainID, writable: Bool, notification: UnmapNotification?
  ) throws(XenError) -> SharedPages {
    guard count > 0, let rawCount = Int32(exactly: count) else {
      throw XenError(.invalid, "cannot share \(count) pages; share at least 1")
    }
    guard notification == nil || count == 1 else {
      throw XenError(
        .invalid, "cannot share \(count) pages with an unmap notification; it goes with exactly 1")
    }
    var references: [UInt32] = []
    // SAFETY: the address of new pages, which goes into the `SharedPages` below and nowhere else.
    let (address, failure) = unsafe device.with { device in
      unsafe (
        device.share(
          pages: rawCount, with: domain, writable: writable, notification: notification,
          references: &references), Errno.current
      )
    }
    guard let address = unsafe address else { throw Self.failed(failure, count, domain) }
    // SAFETY: `SharedPages` says when nobody has the pages any more, once.
    nonisolated(unsafe) let base = unsafe address
    // The closure keeps this object, and with it the device, for as long as the pages.
    return unsafe SharedPages(baseAddress: address, references: references.map { GrantRef($0) }) {
      self.device.with { device in unsafe device.unshare(base, count: UInt32(count)) }
    }
  }

  private static func failed(_ errno: Errno, _ count: Int, _ domain: DomainID) -> XenError {
    let what = "cannot share \(count) pages with domain \(domain)"
    if errno == .noSpace {
      return XenError(
        .limitReached,
        "\(what): gntalloc's page limit is reached; write a larger number to "
          + "/sys/module/xen_gntalloc/parameters/limit", errno: errno)
    }
    return XenError(errno: errno, what)
  }
}
