// SPDX-License-Identifier: Apache-2.0
//
// Mapping and copying other domains' pages: xengnttab_* of libxengnttab over Linux's gntdev driver.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage

/// Maps and copies granted pages through /dev/xen/gntdev.
public final class LibXenGrantMapping: GrantMapping {
  private let state: Locked<UnsafeMutablePointer<State>>

  private struct State {
    let handle: OpaquePointer
    // The segments of a copy in the library's form; grows to the longest call made and stays.
    var segments: UnsafeMutableBufferPointer<xengnttab_grant_copy_segment_t>
  }

  /// Opens the device.
  ///
  /// - Throws: `.unavailable` or `.denied`, with what to do.
  public init() throws(XenError) {
    guard let opened = xengnttab_open(nil, 0) else {
      throw cannotOpen(.current, device: "/dev/xen/gntdev", module: "xen-gntdev")
    }
    let descriptor = xengnttab_fd(opened)
    if descriptor >= 0 { _ = cxen_set_cloexec(descriptor, 1) }
    let storage = UnsafeMutablePointer<State>.allocate(capacity: 1)
    storage.initialize(to: State(handle: opened, segments: .init(start: nil, count: 0)))
    state = Locked(storage)
  }

  deinit {
    state.with { state in
      _ = xengnttab_close(state.pointee.handle)
      state.pointee.segments.deallocate()
      state.deinitialize(count: 1)
      state.deallocate()
    }
  }

  /// Maps granted pages next to each other, all of them or none (xengnttab_map_domain_grant_refs).
  public func map(
    _ references: UnsafeBufferPointer<GrantRef>, of domain: DomainID, writable: Bool
  ) throws(XenError) -> UnsafeMutableRawPointer {
    guard let first = references.baseAddress, let count = UInt32(exactly: references.count), count > 0 else {
      throw XenError(.invalid, "no grant references of domain \(domain) to map")
    }
    // SAFETY: a GrantRef is one UInt32; the library only reads the array although it does not say const.
    let raw = UnsafeMutableRawPointer(mutating: first).assumingMemoryBound(to: UInt32.self)
    let (address, failure) = state.with { state -> (UnsafeMutableRawPointer?, Errno) in
      let address = xengnttab_map_domain_grant_refs(
        state.pointee.handle, count, UInt32(domain.rawValue), raw, Self.protection(writable))
      return (address, .current)
    }
    guard let address else {
      throw XenError(
        errno: failure,
        "cannot map \(count) grants of domain \(domain) \(writable ? "writable" : "read-only"), the first being "
          + "reference \(first.pointee)")
    }
    return address
  }

  /// Maps one page with a notification on its end (xengnttab_map_grant_ref_notify).
  public func map(
    _ reference: GrantRef, of domain: DomainID, writable: Bool, notification: UnmapNotification
  ) throws(XenError) -> UnsafeMutableRawPointer {
    let numbers = Optional(notification).rawNumbers
    let (address, failure) = state.with { state -> (UnsafeMutableRawPointer?, Errno) in
      let address = xengnttab_map_grant_ref_notify(
        state.pointee.handle, UInt32(domain.rawValue), reference.rawValue, Self.protection(writable),
        numbers.offset, numbers.port)
      return (address, .current)
    }
    guard let address else {
      throw XenError(
        errno: failure,
        "cannot map grant reference \(reference) of domain \(domain) \(writable ? "writable" : "read-only") "
          + "with an unmap notification")
    }
    return address
  }

  /// Unmaps what one `map` call returned (xengnttab_unmap).
  public func unmap(_ address: UnsafeMutableRawPointer, count: Int) throws(XenError) {
    guard let rawCount = UInt32(exactly: count) else {
      throw XenError(.invalid, "cannot unmap \(count) pages at \(address)")
    }
    let failure: Errno? = state.with { state in
      xengnttab_unmap(state.pointee.handle, address, rawCount) == 0 ? nil : .current
    }
    if let failure { throw XenError(errno: failure, "cannot unmap \(count) granted pages at \(address)") }
  }

  /// Copies without mapping (xengnttab_grant_copy).
  public func copy(_ segments: UnsafeMutableBufferPointer<GrantCopySegment>) throws(XenError) {
    guard !segments.isEmpty else { return }
    let failure: Errno? = state.with { state in
      if state.pointee.segments.count < segments.count {
        state.pointee.segments.deallocate()
        state.pointee.segments = .allocate(capacity: segments.count)
        state.pointee.segments.initialize(repeating: xengnttab_grant_copy_segment_t())
      }
      let raw = state.pointee.segments
      var count = 0
      for index in segments.indices {
        // gntdev would refuse the whole call for one segment that leaves its page.
        segments[index].status = segments[index].leavesPage ? .badArgument : .okay
        guard segments[index].status == .okay else { continue }
        var segment = xengnttab_grant_copy_segment_t()
        segment.len = segments[index].byteCount
        segment.source = Self.place(segments[index].source, 1, &segment.flags)  // GNTCOPY_source_gref
        segment.dest = Self.place(segments[index].destination, 2, &segment.flags)  // GNTCOPY_dest_gref
        raw[count] = segment
        count += 1
      }
      guard count == 0 || xengnttab_grant_copy(state.pointee.handle, UInt32(count), raw.baseAddress) == 0
      else {
        return .current
      }
      count = 0
      for index in segments.indices where segments[index].status == .okay {
        segments[index].status = .init(rawValue: raw[count].status) ?? .generalError
        count += 1
      }
      return nil
    }
    if let failure { throw XenError(errno: failure, "cannot copy \(segments.count) grant segments") }
  }

  private static func protection(_ writable: Bool) -> Int32 {
    writable ? PROT_READ | PROT_WRITE : PROT_READ
  }

  private static func place(
    _ place: GrantCopySegment.Place, _ grantedFlag: UInt16, _ flags: inout UInt16
  ) -> xengnttab_copy_ptr {
    var raw = xengnttab_copy_ptr()
    switch place {
    case .local(let pointer): raw.virt = pointer
    case .granted(let reference, let domain, let offset):
      flags |= grantedFlag
      raw.foreign.ref = reference.rawValue
      raw.foreign.domid = domain.rawValue
      raw.foreign.offset = offset
    }
    return raw
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
