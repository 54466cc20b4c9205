// SPDX-License-Identifier: Apache-2.0
//
// The frontend's side of grants: pages of our own that another domain may map.

/// Gives pages to another domain (xengnttab.h: xengntshr_*; on Linux the gntalloc driver).
///
/// What every implementation guarantees, and the conformance tests check:
/// * The pages of one call lie next to each other in memory, are page-aligned and zero.
/// * Only the named domain may map them, and may write them only if `writable` was set.
/// * There is a limit on the pages of the whole domain (gntalloc's `limit`, 1,024 by default); a call that would
///   pass it throws `.limitReached` and shares nothing.
/// * Unsharing takes back a whole call's pages at once. It always succeeds: a page that the other domain still
///   maps stays in existence until it is unmapped there, and is used for nothing else. New mappings of it are
///   refused, at the latest some seconds after the last one has gone (Linux looks again every second).
/// * The process's end unshares everything.
///
/// Calls may come from any thread.
public protocol GrantSharing: AnyObject, Sendable {
  /// Shares freshly zeroed pages with another domain.
  ///
  /// - Parameters:
  ///   - count: how many pages, at least 1.
  ///   - domain: who may map them.
  ///   - writable: whether it may also write.
  ///   - notification: what the pages' end does to the other side (xengntshr_share_page_notify); only with
  ///     `count` 1.
  /// - Returns: the pages, shared until the value is unshared or released.
  /// - Throws: `.limitReached` when the domain's limit would be passed, `.notFound` for a domain that cannot be,
  ///   `.system` otherwise.
  func share(
    pages count: Int, with domain: DomainID, writable: Bool, notification: UnmapNotification?
  ) throws(XenError) -> SharedPages
}

extension GrantSharing {
  /// Shares freshly zeroed pages that do nothing on their end.
  public func share(
    pages count: Int, with domain: DomainID, writable: Bool
  ) throws(XenError) -> SharedPages {
    try share(pages: count, with: domain, writable: writable, notification: nil)
  }
}

/// What happens when a shared or mapped page is let go of, even by the process dying
/// (gntalloc.h: IOCTL_GNTALLOC_SET_UNMAP_NOTIFY).
public struct UnmapNotification: Sendable {
  /// The byte in the page that becomes 0; nil clears nothing.
  public var clearByteAt: Int?
  /// The local port that is notified; nil notifies nobody.
  public var notify: EventChannelPort?
  /// A notification; both parts are optional.
  public init(clearByteAt: Int? = nil, notify: EventChannelPort? = nil) {
    self.clearByteAt = clearByteAt
    self.notify = notify
  }
}

/// Pages shared by one call: unshared all together, at the latest when the last reference goes.
@safe public final class SharedPages: Sendable {
  // SAFETY: `references.count` pages, mapped until the deinit ends them; the address itself never changes. What is done with
  // their bytes is for its user to answer for, who has to keep this object meanwhile.

  /// The first byte.
  ///
  /// Zeroed at first; the other domain may change any byte at any time.
  public nonisolated(unsafe) let baseAddress: UnsafeMutableRawPointer
  /// One grant reference for each page, in the order of the pages.
  public let references: [GrantRef]
  private let end: @Sendable () -> Void

  /// Wraps pages that an implementation has shared.
  ///
  /// - Parameters:
  ///   - baseAddress: the first page; all of them are mapped until `end` is called.
  ///   - references: a reference for each page.
  ///   - end: unshares and unmaps; called exactly once.
  public init(
    baseAddress: UnsafeMutableRawPointer, references: [GrantRef], end: @escaping @Sendable () -> Void
  ) {
    // SAFETY: kept; that the pages are there is the implementation's promise.
    unsafe self.baseAddress = baseAddress
    self.references = references
    self.end = end
  }

  /// How many pages there are.
  public var pageCount: Int { references.count }

  deinit {
    end()
  }
}
