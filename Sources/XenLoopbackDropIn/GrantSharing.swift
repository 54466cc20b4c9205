// SPDX-License-Identifier: Apache-2.0
//
// xengnttab.h, the producer's half: libxengnttab over gntalloc, here over the loopback's grant sharing. As on Linux
// the pages belong to their mapping, not to the handle: they stay shared when it is closed, until they are unshared
// or the process ends.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import Xen
internal import XenLoopback

/// An xengntshr_handle.
private final class GrantSharingHandle: LibraryHandle {
  let sharing: any GrantSharing
  let descriptor: OwnedDescriptor

  init(_ domain: LoopbackDomain) throws(XenError) {
    descriptor = OwnedDescriptor(try placeholderDescriptor())
    sharing = try domain.openGrantSharing()
  }
}

/// Everything that this process shares, by address.
private let sharedPages = Mutex<[UInt: SharedPages]>([:])

/// Opens the sharing side of grants; NULL with ENOENT when no host is named.
@c @implementation
public func xengntshr_open(_ logger: OpaquePointer?, _ open_flags: UInt32) -> OpaquePointer? {
  Membership.open("xengntshr_open", isLogged: true) { domain throws(XenError) in
    try GrantSharingHandle(domain)
  }
}

/// Closes a handle; pages shared through it stay shared.
@c @implementation
public func xengntshr_close(_ xgs: OpaquePointer?) -> Int32 { LibraryHandle.close(xgs) }

/// A descriptor to call fcntl on.
@c @implementation
public func xengntshr_fd(_ xgs: OpaquePointer?) -> Int32 {
  guard let handle = GrantSharingHandle.behind(xgs) else { return fail(EINVAL, -1) }
  return handle.descriptor.raw
}

/// Shares zeroed pages; NULL with ENOSPC past the domain's limit.
@c @implementation
public func xengntshr_share_pages(
  _ xgs: OpaquePointer?, _ domid: UInt32, _ count: Int32, _ refs: UnsafeMutablePointer<UInt32>?,
  _ writable: Int32
) -> UnsafeMutableRawPointer? {
  share(GrantSharingHandle.behind(xgs), domid, CallerArray(refs, count: count), writable, nil)
}

/// Shares a page whose end clears a byte, notifies a port, or both.
@c @implementation
public func xengntshr_share_page_notify(
  _ xgs: OpaquePointer?, _ domid: UInt32, _ ref: UnsafeMutablePointer<UInt32>?, _ writable: Int32,
  _ notify_offset: UInt32, _ notify_port: UInt32
) -> UnsafeMutableRawPointer? {
  share(
    GrantSharingHandle.behind(xgs), domid, CallerArray(ref, count: 1), writable,
    notification(notify_offset, notify_port))
}

/// - Parameter references: as many as pages; becomes theirs.
@safe private func share(
  _ handle: GrantSharingHandle?, _ domid: UInt32, _ references: CallerArray<UInt32>?, _ writable: Int32,
  _ notification: UnmapNotification?
) -> UnsafeMutableRawPointer? {
  guard let handle, let references, let domain = UInt16(exactly: domid) else { return fail(EINVAL, nil) }
  do throws(XenError) {
    let pages = try handle.sharing.share(
      pages: references.count, with: DomainID(domain), writable: writable != 0, notification: notification)
    for (index, reference) in pages.references.enumerated() { references[index] = reference.rawValue }
    // SAFETY: the program's from here on, which uses the pages until it unshares them; `sharedPages` keeps them as long.
    let address = unsafe pages.baseAddress
    sharedPages.withLock { $0[UInt(bitPattern: address)] = pages }
    return unsafe address
  } catch {
    log("xengntshr_share_pages: \(error.message)")
    return fail(number(error), nil)
  }
}

/// Ends what one call shared, as a whole.
@c @implementation
public func xengntshr_unshare(
  _ xgs: OpaquePointer?, _ start_address: UnsafeMutableRawPointer?, _ count: UInt32
) -> Int32 {
  let key = UInt(bitPattern: start_address)
  // The pages end with the last reference, which must not be inside the lock.
  let pages = sharedPages.withLock { shared -> SharedPages? in
    guard let pages = shared[key], pages.pageCount == Int(count) else { return nil }
    shared[key] = nil
    return pages
  }
  return pages == nil ? fail(EINVAL, -1) : 0
}
