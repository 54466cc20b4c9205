// SPDX-License-Identifier: Apache-2.0
//
// libxengnttab's half for mapping: a handle on /dev/xen/gntdev, and its calls with numbers and spans.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage

/// The open device; closed with this value, one call at a time.
@safe struct GrantMappingDevice: ~Copyable {
  // SAFETY: what xengnttab_open returned to `init`; this value alone has it, and closes it in the deinit.
  private let handle: OpaquePointer
  // The segments of a copy as the library takes them; grows to the longest call made and stays. The addresses in it are
  // followed by the call that they were written for, and by no other.
  private var segments: Table<xengnttab_grant_copy_segment_t>

  /// - Returns: nil with the reason in errno.
  init?() {
    // SAFETY: no logger of ours; the library makes one, and says no with NULL.
    guard let opened = unsafe xengnttab_open(nil, 0) else { return nil }
    unsafe handle = opened
    // SAFETY: plain data that is valid as zeros.
    unsafe segments = Table(repeating: xengnttab_grant_copy_segment_t(), count: 0)
    // SAFETY: open since a moment ago.
    let descriptor = unsafe xengnttab_fd(handle)
    if descriptor >= 0 { _ = cxen_set_cloexec(descriptor, 1) }
  }

  deinit {
    // SAFETY: the value's end, so no call is under way and none can follow. What is mapped stays until it is unmapped.
    _ = unsafe xengnttab_close(handle)
  }

  /// Maps pages next to each other (xengnttab_map_domain_grant_refs).
  ///
  /// - Parameter count: of the references.
  /// - Returns: the first page; nil with the reason in errno.
  func map(
    _ references: Span<GrantRef>, count: UInt32, of domain: DomainID, writable: Bool
  ) -> UnsafeMutableRawPointer? {
    // SAFETY: a GrantRef is one UInt32, and `count` of them lie in the span for the length of the call; the library only
    // reads them, although it does not say const. What it maps is a place of its own choosing.
    unsafe references.withUnsafeBytes { bytes in
      let first = unsafe UnsafeMutableRawPointer(mutating: bytes.baseAddress)
      return unsafe xengnttab_map_domain_grant_refs(
        handle, count, UInt32(domain.rawValue), first?.assumingMemoryBound(to: UInt32.self),
        Self.protection(writable))
    }
  }

  /// Maps one page with a notification on its end (xengnttab_map_grant_ref_notify).
  ///
  /// - Returns: the page; nil with the reason in errno.
  func map(
    _ reference: GrantRef, of domain: DomainID, writable: Bool, notification: UnmapNotification
  ) -> UnsafeMutableRawPointer? {
    let numbers = Optional(notification).rawNumbers
    // SAFETY: numbers, beside the handle. The driver clears a byte of this page and of no other: the library passes over an
    // offset that is not within it.
    return unsafe xengnttab_map_grant_ref_notify(
      handle, UInt32(domain.rawValue), reference.rawValue, Self.protection(writable), numbers.offset,
      numbers.port)
  }

  /// Unmaps what one `map` call returned (xengnttab_unmap).
  ///
  /// - Parameters:
  ///   - address: nobody uses the pages any more.
  ///   - count: of that call.
  /// - Returns: whether it did; if not, the reason is in errno.
  func unmap(_ address: UnsafeMutableRawPointer, count: UInt32) -> Bool {
    // SAFETY: the driver finds the mapping by its address, and the library refuses another count than it has; that nobody is
    // in the pages is the caller's promise.
    unsafe xengnttab_unmap(handle, address, count) == 0
  }

  /// Copies what does not leave its page, and sets every segment's status (xengnttab_grant_copy).
  ///
  /// - Returns: why the call as a whole failed.
  mutating func copy(_ wanted: inout MutableSpan<GrantCopySegment>) -> Errno? {
    // SAFETY: zeros as in `init`; nothing points into the old ones, which no call is using.
    if unsafe segments.count < wanted.count {
      unsafe segments = Table(repeating: xengnttab_grant_copy_segment_t(), count: wanted.count)
    }
    var count = 0
    for index in wanted.indices {
      // gntdev would refuse the whole call for one segment that leaves its page.
      wanted[index].status = wanted[index].leavesPage ? .badArgument : .okay
      guard wanted[index].status == .okay else { continue }
      // SAFETY: a copy of the segment in another form; see `Place` for its addresses.
      unsafe segments[count] = Self.raw(wanted[index])
      count += 1
    }
    guard count > 0 else { return nil }
    // SAFETY: the first `count` were written just now. The driver checks granted ends and answers EFAULT for local ones that
    // are not mapped; that they are the caller's to be written is what naming a `Place` promises.
    let isDone = unsafe segments.withMutableElements(0..<count) { list in
      unsafe list.withUnsafeMutableBufferPointer { list in
        unsafe xengnttab_grant_copy(handle, UInt32(list.count), list.baseAddress) == 0
      }
    }
    guard isDone else { return .current }
    count = 0
    for index in wanted.indices where wanted[index].status == .okay {
      // SAFETY: a number, which the call has set.
      wanted[index].status = .init(rawValue: unsafe segments[count].status) ?? .generalError
      count += 1
    }
    return nil
  }

  private static func protection(_ writable: Bool) -> Int32 {
    writable ? PROT_READ | PROT_WRITE : PROT_READ
  }

  private static func raw(_ segment: GrantCopySegment) -> xengnttab_grant_copy_segment_t {
    // SAFETY: plain data that is valid as zeros; `place` sets the flag that says which member of each union counts.
    var raw = unsafe xengnttab_grant_copy_segment_t()
    unsafe raw.len = segment.byteCount
    unsafe raw.source = place(segment.source, 1, &raw.flags)  // GNTCOPY_source_gref
    unsafe raw.dest = place(segment.destination, 2, &raw.flags)  // GNTCOPY_dest_gref
    return unsafe raw
  }

  private static func place(
    _ place: GrantCopySegment.Place, _ grantedFlag: UInt16, _ flags: inout UInt16
  ) -> xengnttab_copy_ptr {
    // SAFETY: a union of plain data, zero at first; the member that is written is the one that the flag announces.
    var raw = unsafe xengnttab_copy_ptr()
    switch place {
    case .local(let pointer): unsafe raw.virt = pointer
    case .granted(let reference, let domain, let offset):
      flags |= grantedFlag
      unsafe raw.foreign.ref = reference.rawValue
      unsafe raw.foreign.domid = domain.rawValue
      unsafe raw.foreign.offset = offset
    }
    return unsafe raw
  }
}

extension GrantCopySegment {
  /// Whether a granted end goes past the end of its page.
  fileprivate var leavesPage: Bool { source.leavesPage(byteCount) || destination.leavesPage(byteCount) }
}

extension GrantCopySegment.Place {
  fileprivate func leavesPage(_ byteCount: UInt16) -> Bool {
    guard case .granted(_, _, let offset) = self else { return false }
    return Int(offset) + Int(byteCount) > Page.size
  }
}
