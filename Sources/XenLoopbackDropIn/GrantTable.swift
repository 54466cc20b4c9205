// SPDX-License-Identifier: Apache-2.0
//
// xengnttab.h, the consumer's half: libxengnttab over gntdev, here over the loopback's grant mapping. The errno
// values are gntdev's: EINVAL for whatever Xen refuses.

public import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import Xen
internal import XenLoopback

/// An xengnttab_handle.
private final class GrantTableHandle: LibraryHandle {
  let mapping: any GrantMapping
  let descriptor: OwnedDescriptor
  /// Mappings of several domains' pages: their parts, by the address that the program knows.
  let mixed = Mutex<[UInt: [MixedMapping.Part]]>([:])

  init(_ domain: LoopbackDomain) throws(XenError) {
    descriptor = OwnedDescriptor(try placeholderDescriptor())
    mapping = try domain.openGrantMapping()
  }

  deinit {
    let left = mixed.withLock { $0 }
    for (address, parts) in left { MixedMapping.unmap(address, parts, mapping) }
  }
}

/// Opens the mapping side of grants; NULL with ENOENT when no host is named.
@c @implementation
public func xengnttab_open(_ logger: OpaquePointer?, _ open_flags: UInt32) -> OpaquePointer? {
  Membership.open("xengnttab_open", isLogged: true) { domain throws(XenError) in
    try GrantTableHandle(domain).exported()
  }
}

/// Closes a handle and unmaps what is mapped through it.
@c @implementation
public func xengnttab_close(_ xgt: OpaquePointer?) -> Int32 { LibraryHandle.close(xgt) }

/// A descriptor to call fcntl on.
@c @implementation
public func xengnttab_fd(_ xgt: OpaquePointer?) -> Int32 {
  guard let xgt else { return fail(EINVAL, -1) }
  return GrantTableHandle.borrowed(xgt).descriptor.raw
}

// MARK: mapping

/// Maps a page; NULL with EINVAL when it may not be mapped so.
@c @implementation
public func xengnttab_map_grant_ref(
  _ xgt: OpaquePointer?, _ domid: UInt32, _ ref: UInt32, _ prot: Int32
) -> UnsafeMutableRawPointer? {
  withUnsafePointer(to: ref) { map(xgt, 1, domid, $0, prot, nil) }
}

/// Maps pages of one domain next to each other, all of them or none.
@c @implementation
public func xengnttab_map_domain_grant_refs(
  _ xgt: OpaquePointer?, _ count: UInt32, _ domid: UInt32, _ refs: UnsafeMutablePointer<UInt32>?,
  _ prot: Int32
) -> UnsafeMutableRawPointer? {
  map(xgt, count, domid, refs, prot, nil)
}

/// Maps pages of several domains next to each other, all of them or none.
@c @implementation
public func xengnttab_map_grant_refs(
  _ xgt: OpaquePointer?, _ count: UInt32, _ domids: UnsafeMutablePointer<UInt32>?,
  _ refs: UnsafeMutablePointer<UInt32>?, _ prot: Int32
) -> UnsafeMutableRawPointer? {
  guard let xgt, let domids, let refs, count > 0 else { return fail(EINVAL, nil) }
  let domains = UnsafeBufferPointer(start: domids, count: Int(count))
  if domains.allSatisfy({ $0 == domids[0] }) { return map(xgt, count, domids[0], refs, prot, nil) }
  let handle = GrantTableHandle.borrowed(xgt)
  return answer("xengnttab_map_grant_refs") { () throws(XenError) in
    let (address, parts) = try MixedMapping.map(
      UnsafeBufferPointer(start: refs, count: Int(count)), of: domains, writable: prot & PROT_WRITE != 0,
      handle.mapping)
    handle.mixed.withLock { $0[UInt(bitPattern: address)] = parts }
    return address
  }
}

/// Maps a page whose unmapping clears a byte, notifies a port, or both.
@c @implementation
public func xengnttab_map_grant_ref_notify(
  _ xgt: OpaquePointer?, _ domid: UInt32, _ ref: UInt32, _ prot: Int32, _ notify_offset: UInt32,
  _ notify_port: UInt32
) -> UnsafeMutableRawPointer? {
  withUnsafePointer(to: ref) { map(xgt, 1, domid, $0, prot, notification(notify_offset, notify_port)) }
}

/// The library's two numbers: an offset past the page and a port of all ones mean none.
func notification(_ offset: UInt32, _ port: UInt32) -> UnmapNotification? {
  let clear = offset < UInt32(Page.size) ? Int(offset) : nil
  if clear == nil && port == .max { return nil }
  return UnmapNotification(clearByteAt: clear, notify: port == .max ? nil : EventChannelPort(port))
}

private func map(
  _ xgt: OpaquePointer?, _ count: UInt32, _ domid: UInt32, _ refs: UnsafePointer<UInt32>?, _ prot: Int32,
  _ notification: UnmapNotification?
) -> UnsafeMutableRawPointer? {
  guard let xgt, let refs, count > 0, let number = UInt16(exactly: domid) else { return fail(EINVAL, nil) }
  let handle = GrantTableHandle.borrowed(xgt)
  let writable = prot & PROT_WRITE != 0
  // SAFETY: a GrantRef is one UInt32.
  let references = UnsafeBufferPointer(
    start: UnsafeRawPointer(refs).assumingMemoryBound(to: GrantRef.self), count: Int(count))
  return answer("xengnttab_map") { () throws(XenError) in
    if let notification {
      return try handle.mapping.map(
        references[0], of: DomainID(number), writable: writable, notification: notification)
    }
    return try handle.mapping.map(references.span, of: DomainID(number), writable: writable)
  }
}

private func answer(
  _ what: String, _ body: () throws(XenError) -> UnsafeMutableRawPointer
) -> UnsafeMutableRawPointer? {
  do throws(XenError) {
    return try body()
  } catch {
    log("\(what): \(error.message)")
    // The maptrack's end too: the driver has one word for whatever the hypervisor refuses.
    return fail(error.code == .limitReached ? EINVAL : number(error), nil)
  }
}

/// Unmaps what one call mapped, as a whole.
@c @implementation
public func xengnttab_unmap(
  _ xgt: OpaquePointer?, _ start_address: UnsafeMutableRawPointer?, _ count: UInt32
) -> Int32 {
  guard let xgt, let start_address else { return fail(EINVAL, -1) }
  let handle = GrantTableHandle.borrowed(xgt)
  let key = UInt(bitPattern: start_address)
  let parts = handle.mixed.withLock { mixed -> [MixedMapping.Part]? in
    guard let parts = mixed[key], parts.reduce(0, { $0 + $1.count }) == Int(count) else { return nil }
    mixed[key] = nil
    return parts
  }
  if let parts {
    MixedMapping.unmap(key, parts, handle.mapping)
    return 0
  }
  do throws(XenError) {
    try handle.mapping.unmap(start_address, count: Int(count))
    return 0
  } catch {
    return fail(number(error), -1)
  }
}

/// Does what Linux does: nothing, with success.
@c @implementation
public func xengnttab_set_max_grants(_ xgt: OpaquePointer?, _ nr_grants: UInt32) -> Int32 {
  // Linux has had no such limit since 2010, and the library says so with success.
  xgt == nil ? fail(EINVAL, -1) : 0
}

// MARK: copying

/// Copies segments, each with its own outcome; -1 with EINVAL for one that no driver would take.
@c @implementation
public func xengnttab_grant_copy(
  _ xgt: OpaquePointer?, _ count: UInt32, _ segs: UnsafeMutablePointer<xengnttab_grant_copy_segment_t>?
) -> Int32 {
  guard let xgt else { return fail(EINVAL, -1) }
  guard let segs, count > 0 else { return 0 }
  let raw = UnsafeMutableBufferPointer(start: segs, count: Int(count))
  // gntdev refuses the call for these; anything else is a segment's own affair.
  for segment in raw {
    let (from, to) = (segment.flags & UInt16(GNTCOPY_source_gref), segment.flags & UInt16(GNTCOPY_dest_gref))
    if from | to == 0 || from != 0 && crosses(segment.source, segment.len)
      || to != 0 && crosses(segment.dest, segment.len)
    {
      return fail(EINVAL, -1)
    }
  }
  let mapping = GrantTableHandle.borrowed(xgt).mapping
  let failure: XenError? = withUnsafeTemporaryAllocation(of: GrantCopySegment.self, capacity: raw.count) {
    segments in
    for (index, segment) in raw.enumerated() {
      segments.initializeElement(
        at: index,
        to: GrantCopySegment(
          source: place(segment.source, segment.flags & UInt16(GNTCOPY_source_gref) != 0),
          destination: place(segment.dest, segment.flags & UInt16(GNTCOPY_dest_gref) != 0),
          byteCount: segment.len))
    }
    do throws(XenError) {
      var span = segments.mutableSpan
      try mapping.copy(&span)
    } catch {
      return error
    }
    for index in raw.indices { raw[index].status = segments[index].status.rawValue }
    return nil
  }
  if let failure { return fail(number(failure), -1) }
  return 0
}

private func crosses(_ end: xengnttab_copy_ptr, _ length: UInt16) -> Bool {
  Int(end.foreign.offset) + Int(length) > Page.size
}

private func place(_ end: xengnttab_copy_ptr, _ isGranted: Bool) -> GrantCopySegment.Place {
  if isGranted {
    return .granted(GrantRef(end.foreign.ref), DomainID(end.foreign.domid), offset: end.foreign.offset)
  }
  // A missing address faults when it is used, as the driver's would.
  return .local(end.virt ?? UnsafeMutableRawPointer(bitPattern: 1).unsafelyUnwrapped)
}
