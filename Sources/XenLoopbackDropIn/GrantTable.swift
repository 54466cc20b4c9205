// SPDX-License-Identifier: Apache-2.0
//
// xengnttab.h, the consumer's half: libxengnttab over gntdev, here over the loopback's grant mapping. The errno
// values are gntdev's: EINVAL for whatever Xen refuses.

public import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage
internal import Xen
internal import XenLoopback

/// An xengnttab_handle.
private final class GrantTableHandle: LibraryHandle {
  /// How many pages gntdev maps for one request (its parameter `limit`).
  static let mappingLimit = 65_536

  private let mapping: any GrantMapping
  let descriptor: OwnedDescriptor
  /// Mappings of several domains' pages, by the address that the program knows.
  private let mixed = Mutex<[UInt: MixedMapping]>([:])

  init(_ domain: LoopbackDomain) throws(XenError) {
    descriptor = OwnedDescriptor(try placeholderDescriptor())
    mapping = try domain.openGrantMapping()
  }

  /// Maps pages of one domain.
  @safe func map(
    _ references: Span<GrantRef>, of domain: DomainID, writable: Bool, _ notification: UnmapNotification?
  ) throws(XenError) -> UnsafeMutableRawPointer {
    // SAFETY: the program's from here on, until it unmaps the pages.
    guard let notification else { return try unsafe mapping.map(references, of: domain, writable: writable) }
    return try unsafe mapping.map(references[0], of: domain, writable: writable, notification: notification)
  }

  /// Maps pages of several domains.
  @safe func map(
    _ references: CallerArray<UInt32>, of domains: CallerArray<UInt32>, writable: Bool
  ) throws(XenError) -> UnsafeMutableRawPointer {
    let pages = try MixedMapping.map(references, of: domains, writable: writable, mapping)
    let address = pages.window.address
    mixed.withLock { $0[UInt(bitPattern: address)] = pages }
    // SAFETY: the program's from here on; the table keeps the pages until it unmaps them.
    return unsafe address
  }

  /// Takes back what one `map` returned.
  @safe func unmap(_ address: UnsafeMutableRawPointer?, count: Int) throws(XenError) {
    // The pages end with the last reference, which must not be inside the lock.
    let pages = mixed.withLock { mixed -> MixedMapping? in
      let key = UInt(bitPattern: address)
      guard let pages = mixed[key], pages.window.pageCount == count else { return nil }
      mixed[key] = nil
      return pages
    }
    guard pages == nil else { return }
    // SAFETY: that it uses the pages no more is what the program says with this call.
    guard let address = unsafe address else { throw XenError(.invalid, "nothing is mapped at address 0") }
    try unsafe mapping.unmap(address, count: count)
  }

  /// Copies all segments, each with its own outcome.
  ///
  /// - Throws: what the driver says to the call as a whole; some segments may have been copied then, as there.
  func copy(_ segments: inout CallerSegments) throws(Errno) {
    for index in 0..<segments.count {
      guard let segment = try segments.segment(index) else {
        // Nothing to copy: done at once, and nothing of it looked at.
        segments.setStatus(.okay, index)
        continue
      }
      do throws(XenError) {
        var one = CollectionOfOne(segment)
        var span = one.mutableSpan
        try mapping.copy(&span)
        segments.setStatus(one[0].status, index)
      } catch {
        throw Errno(rawValue: number(error))
      }
    }
  }
}

/// Opens the mapping side of grants; NULL with ENOENT when no host is named.
@c @implementation
public func xengnttab_open(_ logger: OpaquePointer?, _ open_flags: UInt32) -> OpaquePointer? {
  Membership.open("xengnttab_open", isLogged: true) { domain throws(XenError) in try GrantTableHandle(domain)
  }
}

/// Closes a handle and unmaps what is mapped through it.
@c @implementation
public func xengnttab_close(_ xgt: OpaquePointer?) -> Int32 { LibraryHandle.close(xgt) }

/// A descriptor to call fcntl on.
@c @implementation
public func xengnttab_fd(_ xgt: OpaquePointer?) -> Int32 {
  guard let handle = GrantTableHandle.behind(xgt) else { return fail(EINVAL, -1) }
  return handle.descriptor.raw
}

// MARK: mapping

/// Maps a page; NULL with EINVAL when it may not be mapped so.
@c @implementation
public func xengnttab_map_grant_ref(
  _ xgt: OpaquePointer?, _ domid: UInt32, _ ref: UInt32, _ prot: Int32
) -> UnsafeMutableRawPointer? {
  let one = CollectionOfOne(GrantRef(ref))
  return map(GrantTableHandle.behind(xgt), one.span, domid, prot, nil)
}

/// Maps pages of one domain next to each other, all of them or none.
@c @implementation
public func xengnttab_map_domain_grant_refs(
  _ xgt: OpaquePointer?, _ count: UInt32, _ domid: UInt32, _ refs: UnsafeMutablePointer<UInt32>?,
  _ prot: Int32
) -> UnsafeMutableRawPointer? {
  guard let references = CallerArray(refs, count: count, limit: GrantTableHandle.mappingLimit) else {
    return fail(EINVAL, nil)
  }
  return references.withReferences { map(GrantTableHandle.behind(xgt), $0, domid, prot, nil) }
}

/// Maps pages of several domains next to each other, all of them or none.
@c @implementation
public func xengnttab_map_grant_refs(
  _ xgt: OpaquePointer?, _ count: UInt32, _ domids: UnsafeMutablePointer<UInt32>?,
  _ refs: UnsafeMutablePointer<UInt32>?, _ prot: Int32
) -> UnsafeMutableRawPointer? {
  guard let handle = GrantTableHandle.behind(xgt),
    let domains = CallerArray(domids, count: count, limit: GrantTableHandle.mappingLimit),
    let references = CallerArray(refs, count: count, limit: GrantTableHandle.mappingLimit)
  else { return fail(EINVAL, nil) }
  if (1..<domains.count).allSatisfy({ domains[$0] == domains[0] }) {
    return references.withReferences { map(handle, $0, domains[0], prot, nil) }
  }
  return answer("xengnttab_map_grant_refs") { () throws(XenError) in
    try handle.map(references, of: domains, writable: prot & PROT_WRITE != 0)
  }
}

/// Maps a page whose unmapping clears a byte, notifies a port, or both.
@c @implementation
public func xengnttab_map_grant_ref_notify(
  _ xgt: OpaquePointer?, _ domid: UInt32, _ ref: UInt32, _ prot: Int32, _ notify_offset: UInt32,
  _ notify_port: UInt32
) -> UnsafeMutableRawPointer? {
  let one = CollectionOfOne(GrantRef(ref))
  return map(GrantTableHandle.behind(xgt), one.span, domid, prot, notification(notify_offset, notify_port))
}

/// The library's two numbers: an offset past the page and a port of all ones mean none.
func notification(_ offset: UInt32, _ port: UInt32) -> UnmapNotification? {
  let clear = offset < UInt32(Page.size) ? Int(offset) : nil
  if clear == nil && port == .max { return nil }
  return UnmapNotification(clearByteAt: clear, notify: port == .max ? nil : EventChannelPort(port))
}

@safe private func map(
  _ handle: GrantTableHandle?, _ references: Span<GrantRef>, _ domid: UInt32, _ prot: Int32,
  _ notification: UnmapNotification?
) -> UnsafeMutableRawPointer? {
  guard let handle, let domain = UInt16(exactly: domid) else { return fail(EINVAL, nil) }
  return answer("xengnttab_map") { () throws(XenError) in
    try handle.map(references, of: DomainID(domain), writable: prot & PROT_WRITE != 0, notification)
  }
}

@safe private func answer(
  _ what: String, _ body: () throws(XenError) -> UnsafeMutableRawPointer
) -> UnsafeMutableRawPointer? {
  do throws(XenError) {
    // SAFETY: the address that `body` gives to the program.
    return try unsafe body()
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
  guard let handle = GrantTableHandle.behind(xgt) else { return fail(EINVAL, -1) }
  do throws(XenError) {
    try handle.unmap(start_address, count: Int(count))
    return 0
  } catch {
    return fail(number(error), -1)
  }
}

/// Does what Linux does: nothing, with success.
@c @implementation
public func xengnttab_set_max_grants(_ xgt: OpaquePointer?, _ nr_grants: UInt32) -> Int32 {
  // Linux has had no such limit since 2010, and the library says so with success.
  GrantTableHandle.behind(xgt) == nil ? fail(EINVAL, -1) : 0
}

// MARK: copying

/// Copies segments, each with its own outcome; -1 with EINVAL or EFAULT for one that no driver would take.
@c @implementation
public func xengnttab_grant_copy(
  _ xgt: OpaquePointer?, _ count: UInt32, _ segs: UnsafeMutablePointer<xengnttab_grant_copy_segment_t>?
) -> Int32 {
  guard let handle = GrantTableHandle.behind(xgt) else { return fail(EINVAL, -1) }
  guard count > 0 else { return 0 }
  guard var segments = CallerSegments(segs, count: count) else { return fail(EFAULT, -1) }
  do throws(Errno) {
    try handle.copy(&segments)
    return 0
  } catch {
    return fail(error.rawValue, -1)
  }
}
