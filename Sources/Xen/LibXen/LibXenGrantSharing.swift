// SPDX-License-Identifier: Apache-2.0
//
// Granting our own pages: xengntshr_* of libxengnttab over Linux's gntalloc driver.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage

/// Shares pages through /dev/xen/gntalloc.
///
/// The library gives a page's lifetime to its mapping: unsharing is an munmap, and the process's end does the same.
/// Calls are made one at a time, because a library handle is not thread-safe.
public final class LibXenGrantSharing: GrantSharing {
  private let handle: Locked<OpaquePointer>

  /// Opens the device.
  ///
  /// - Throws: `.unavailable` or `.denied`, with what to do.
  public init() throws(XenError) {
    guard let opened = xengntshr_open(nil, 0) else {
      throw cannotOpen(.current, device: "/dev/xen/gntalloc", module: "xen-gntalloc")
    }
    _ = cxen_set_cloexec(xengntshr_fd(opened), 1)
    handle = Locked(opened)
  }

  deinit {
    handle.with { handle in _ = xengntshr_close(handle) }
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
    var references = [UInt32](repeating: 0, count: count)
    let numbers = notification.rawNumbers
    let (address, failure) = handle.with { handle -> (UnsafeMutableRawPointer?, Errno) in
      let address =
        notification == nil
        ? xengntshr_share_pages(handle, UInt32(domain.rawValue), rawCount, &references, writable ? 1 : 0)
        : xengntshr_share_page_notify(
          handle, UInt32(domain.rawValue), &references, writable ? 1 : 0, numbers.offset, numbers.port)
      return (address, .current)
    }
    guard let address else { throw Self.failed(failure, count, domain) }
    // The closure keeps this object, and with it the device, for as long as the pages.
    nonisolated(unsafe) let base = address
    return SharedPages(baseAddress: address, references: references.map { GrantRef($0) }) {
      self.handle.with { handle in _ = xengntshr_unshare(handle, base, UInt32(count)) }
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
