// SPDX-License-Identifier: Apache-2.0
//
// The backend's side of grants: pages of another domain mapped into ours, or copied from and to.

/// Maps and copies pages that other domains have granted to ours (xengnttab.h: xengnttab_*; on Linux gntdev).
///
/// What every implementation guarantees, and the conformance tests check:
/// * A mapping shows the granter's own page: what either side writes the other sees, until it is unmapped.
/// * A reference that does not exist, is meant for another domain, or is read-only when `writable` is asked for
///   makes the whole call fail, and nothing stays mapped.
/// * The pages of one `map` call lie next to each other in the order of the references.
/// * The same reference may be mapped more than once.
/// * A mapping goes on showing the page after the granter has unshared it; unmapping then succeeds.
/// * Copying never maps; each segment has its own outcome, and a refused one does not stop the others.
/// * The process's end unmaps everything.
///
/// Calls may come from any thread, but one set of mappings belongs to one thread at a time.
public protocol GrantMapping: AnyObject, Sendable {
  /// Maps granted pages, all of them or none.
  ///
  /// - Parameters:
  ///   - references: one or more.
  ///   - domain: who granted them.
  ///   - writable: whether the mapping may be written.
  /// - Returns: the first page; `references.count` pages follow each other. Unmap with the same count.
  /// - Throws: `.notFound` or `.denied` for a reference that may not be mapped so, `.limitReached` when no
  ///   maptrack handle is left.
  func map(
    _ references: Span<GrantRef>, of domain: DomainID, writable: Bool
  ) throws(XenError) -> UnsafeMutableRawPointer

  /// Maps one page and says what its unmapping does to the other side (xengnttab_map_grant_ref_notify).
  func map(
    _ reference: GrantRef, of domain: DomainID, writable: Bool, notification: UnmapNotification
  ) throws(XenError) -> UnsafeMutableRawPointer

  /// Takes back what one `map` call returned.
  ///
  /// - Parameters:
  ///   - address: what `map` returned, and nobody uses any more.
  ///   - count: the number of pages of that call.
  func unmap(_ address: UnsafeMutableRawPointer, count: Int) throws(XenError)

  /// Copies between granted pages and local memory (or other granted pages) without mapping anything.
  ///
  /// - Parameter segments: what to copy; each one's `status` is set.
  /// - Throws: only when the call as a whole could not be made.
  func copy(_ segments: inout MutableSpan<GrantCopySegment>) throws(XenError)
}

extension GrantMapping {
  /// Maps granted pages, all of them or none.
  public func map(
    _ references: [GrantRef], of domain: DomainID, writable: Bool
  ) throws(XenError) -> UnsafeMutableRawPointer {
    // SAFETY: the address goes on to the caller, who unmaps it.
    try unsafe map(references.span, of: domain, writable: writable)
  }
}

/// One stretch to be copied; it may not cross a page on a granted side (grant_table.h: GNTTABOP_copy).
public struct GrantCopySegment {
  /// Where bytes come from or go to.
  @safe public enum Place {
    // SAFETY: whoever names a place in this process promises that `byteCount` bytes are there until they have been copied;
    // the place itself is only ever handed to what copies.

    /// Memory of this process; as many bytes as the segment has, for as long as the segment may be copied.
    case local(UnsafeMutableRawPointer)
    /// A granted page: its reference, who granted it, and the byte offset in the page (0 to 4,095).
    case granted(GrantRef, DomainID, offset: UInt16)
  }
  /// What became of a segment (grant_table.h: GNTST_*).
  public enum Status: Int16, Sendable {
    /// Copied (GNTST_okay).
    case okay = 0
    /// Some failure without a name (GNTST_general_error).
    case generalError = -1
    /// The domain does not exist (GNTST_bad_domain).
    case badDomain = -2
    /// The reference is no grant, or not for us (GNTST_bad_gntref).
    case badReference = -3
    /// The page may not be written (GNTST_permission_denied).
    case permissionDenied = -8
    /// The stretch leaves its page (GNTST_bad_copy_arg).
    case badArgument = -10
  }
  /// Where the bytes come from.
  public var source: Place
  /// Where they go.
  public var destination: Place
  /// How many; offset plus count is at most a page on a granted side.
  public var byteCount: UInt16
  /// Set by `copy`.
  public var status: Status = .okay

  /// A segment to be copied.
  public init(source: Place, destination: Place, byteCount: UInt16) {
    self.source = source
    self.destination = destination
    self.byteCount = byteCount
  }
}
