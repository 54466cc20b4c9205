// SPDX-License-Identifier: Apache-2.0
//
// libxengnttab's half for granting: a handle on /dev/xen/gntalloc, and its calls with numbers and arrays.

internal import CXen
internal import Platform

/// The open device; closed with this value, one call at a time.
@safe struct GrantSharingDevice: ~Copyable {
  // SAFETY: what xengntshr_open returned to `init`; this value alone has it, and closes it in the deinit.
  private let handle: OpaquePointer

  /// - Returns: nil with the reason in errno.
  init?() {
    // SAFETY: no logger of ours; the library makes one, and says no with NULL.
    guard let opened = unsafe xengntshr_open(nil, 0) else { return nil }
    unsafe handle = opened
    // SAFETY: open since a moment ago.
    _ = cxen_set_cloexec(unsafe xengntshr_fd(handle), 1)
  }

  deinit {
    // SAFETY: the value's end, so no call is under way and none can follow; pages do not need the device to stay shared.
    _ = unsafe xengntshr_close(handle)
  }

  /// Shares new pages (xengntshr_share_pages, xengntshr_share_page_notify).
  ///
  /// - Parameters:
  ///   - count: 1 or more; with a notification 1.
  ///   - references: becomes a reference for each page.
  /// - Returns: the first page; nil with the reason in errno.
  func share(
    pages count: Int32, with domain: DomainID, writable: Bool, notification: UnmapNotification?,
    references: inout [UInt32]
  ) -> UnsafeMutableRawPointer? {
    precondition(count > 0 && (notification == nil || count == 1), "pages that the library does not share")
    references = [UInt32](repeating: 0, count: Int(count))
    guard notification != nil else {
      // SAFETY: the library writes `count` references, for which there is room.
      return unsafe xengntshr_share_pages(
        handle, UInt32(domain.rawValue), count, &references, writable ? 1 : 0)
    }
    let numbers = notification.rawNumbers
    // SAFETY: one page, so one reference is written; an offset outside of the page clears nothing.
    return unsafe xengntshr_share_page_notify(
      handle, UInt32(domain.rawValue), &references, writable ? 1 : 0, numbers.offset, numbers.port)
  }

  /// Takes back what one `share` call returned (xengntshr_unshare).
  ///
  /// - Parameters:
  ///   - address: nobody uses the pages any more: this is an munmap, and the library asks no questions.
  ///   - count: of that call.
  func unshare(_ address: UnsafeMutableRawPointer, count: UInt32) {
    // SAFETY: the caller's promise; it fails only for an address that no `share` call has returned.
    _ = unsafe xengntshr_unshare(handle, address, count)
  }
}
