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
    try GrantSharingHandle(domain).exported()
  }
}

/// Closes a handle; pages shared through it stay shared.
@c @implementation
public func xengntshr_close(_ xgs: OpaquePointer?) -> Int32 { LibraryHandle.close(xgs) }

/// A descriptor to call fcntl on.
@c @implementation
public func xengntshr_fd(_ xgs: OpaquePointer?) -> Int32 {
  guard let xgs else { return fail(EINVAL, -1) }
  return GrantSharingHandle.borrowed(xgs).descriptor.raw
}

/// Shares zeroed pages; NULL with ENOSPC past the domain's limit.
@c @implementation
public func xengntshr_share_pages(
  _ xgs: OpaquePointer?, _ domid: UInt32, _ count: Int32, _ refs: UnsafeMutablePointer<UInt32>?,
  _ writable: Int32
) -> UnsafeMutableRawPointer? {
  share(xgs, domid, count, refs, writable, nil)
}

/// Shares a page whose end clears a byte, notifies a port, or both.
@c @implementation
public func xengntshr_share_page_notify(
  _ xgs: OpaquePointer?, _ domid: UInt32, _ ref: UnsafeMutablePointer<UInt32>?, _ writable: Int32,
  _ notify_offset: UInt32, _ notify_port: UInt32
) -> UnsafeMutableRawPointer? {
  share(xgs, domid, 1, ref, writable, notification(notify_offset, notify_port))
}

private func share(
  _ xgs: OpaquePointer?, _ domid: UInt32, _ count: Int32, _ refs: UnsafeMutablePointer<UInt32>?,
  _ writable: Int32,
  _ notification: UnmapNotification?
) -> UnsafeMutableRawPointer? {
  guard let xgs, let refs, count > 0, let number = UInt16(exactly: domid) else { return fail(EINVAL, nil) }
  do throws(XenError) {
    let pages = try GrantSharingHandle.borrowed(xgs).sharing.share(
      pages: Int(count), with: DomainID(number), writable: writable != 0, notification: notification)
    for (index, reference) in pages.references.enumerated() { refs[index] = reference.rawValue }
    sharedPages.withLock { $0[UInt(bitPattern: pages.baseAddress)] = pages }
    return pages.baseAddress
  } catch {
    log("xengntshr_share_pages: \(error.message)")
    return fail(XenLoopbackDropIn.number(error), nil)
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
