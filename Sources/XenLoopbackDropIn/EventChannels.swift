// SPDX-License-Identifier: Apache-2.0
//
// xenevtchn.h: libxenevtchn over /dev/xen/evtchn, here over the loopback's event channels. The errno values are the
// driver's. The descriptor waits or not in xenevtchn_pending as the program has set its O_NONBLOCK.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage
internal import Xen
internal import XenLoopback

/// An xenevtchn_handle.
private final class EventChannelHandle: LibraryHandle {
  let channels: any EventChannels
  /// The only domain that may be bound to (IOCTL_EVTCHN_RESTRICT_DOMID).
  let restriction = Mutex<UInt16?>(nil)

  init(_ domain: LoopbackDomain, closeOnExec: Bool) throws(XenError) {
    channels = try domain.openEventChannels()
    // The device is opened blocking; whoever wants it otherwise says so.
    let descriptor = channels.fileDescriptor
    _ = cxen_set_status_flags(descriptor, cxen_get_status_flags(descriptor) & ~cxen_O_NONBLOCK)
    if !closeOnExec { _ = cxen_set_cloexec(descriptor, 0) }
  }

  func permits(_ domain: UInt16) -> Bool { restriction.withLock { $0 == nil || $0 == domain } }
}

/// Opens a set of event channels with a blocking descriptor.
@c @implementation
public func xenevtchn_open(_ logger: OpaquePointer?, _ flags: UInt32) -> OpaquePointer? {
  guard flags & ~UInt32(XENEVTCHN_NO_CLOEXEC) == 0 else { return fail(EINVAL, nil) }
  return Membership.open("xenevtchn_open", isLogged: false) { domain throws(XenError) in
    try EventChannelHandle(domain, closeOnExec: flags & UInt32(XENEVTCHN_NO_CLOEXEC) == 0)
  }
}

/// Refused with ENOSYS: an inherited descriptor has no ports here.
@c @implementation
public func xenevtchn_fdopen(_ logger: OpaquePointer?, _ fd: Int32, _ open_flags: UInt32) -> OpaquePointer? {
  guard open_flags == 0 else { return fail(EINVAL, nil) }
  // The ports belong to a join, which does not outlive exec.
  _ = unsupported("xenevtchn_fdopen")
  return nil
}

/// Closes a handle and its ports.
@c @implementation
public func xenevtchn_close(_ xce: OpaquePointer?) -> Int32 { LibraryHandle.close(xce) }

/// The descriptor that is readable while a port is pending.
@c @implementation
public func xenevtchn_fd(_ xce: OpaquePointer?) -> Int32 {
  guard let handle = EventChannelHandle.behind(xce) else { return fail(EINVAL, -1) }
  return handle.channels.fileDescriptor
}

// MARK: ports

/// Creates a port that another domain may bind to.
@c @implementation
public func xenevtchn_bind_unbound_port(_ xce: OpaquePointer?, _ domid: UInt32) -> Int32 {
  bind(EventChannelHandle.behind(xce), domid) { channels, domain throws(XenError) in
    try channels.bindUnbound(remote: domain)
  }
}

/// Binds to another domain's port; the new port is pending at once.
@c @implementation
public func xenevtchn_bind_interdomain(
  _ xce: OpaquePointer?, _ domid: UInt32, _ remote_port: UInt32
) -> Int32 {
  bind(EventChannelHandle.behind(xce), domid) { channels, domain throws(XenError) in
    try channels.bindInterdomain(remote: domain, port: EventChannelPort(remote_port))
  }
}

/// Refused with ENOSYS: nothing here raises virtual interrupts.
@c @implementation
public func xenevtchn_bind_virq(_ xce: OpaquePointer?, _ virq: UInt32) -> Int32 {
  unsupported("xenevtchn_bind_virq")
}

private func bind(
  _ handle: EventChannelHandle?, _ domid: UInt32,
  _ body: (any EventChannels, DomainID) throws(XenError) -> EventChannelPort
) -> Int32 {
  guard let handle, let domain = UInt16(exactly: domid) else { return fail(EINVAL, -1) }
  guard handle.permits(domain) else { return fail(EACCES, -1) }
  do throws(XenError) {
    return Int32(bitPattern: try body(handle.channels, DomainID(domain)).rawValue)
  } catch {
    return fail(error.errno == .noSuchProcess ? ESRCH : number(error), -1)
  }
}

/// Closes a port; -1 with ENOTCONN when the handle does not have it.
@c @implementation
public func xenevtchn_unbind(_ xce: OpaquePointer?, _ port: UInt32) -> Int32 {
  guard let handle = EventChannelHandle.behind(xce), port < Ports.count else { return fail(EINVAL, -1) }
  return perform { () throws(XenError) in try handle.channels.unbind(EventChannelPort(port)) }
}

/// Tells the other end; dropped with success when there is none.
@c @implementation
public func xenevtchn_notify(_ xce: OpaquePointer?, _ port: UInt32) -> Int32 {
  guard let handle = EventChannelHandle.behind(xce) else { return fail(EINVAL, -1) }
  return perform { () throws(XenError) in try handle.channels.notify(EventChannelPort(port)) }
}

/// Lets a port deliver again.
@c @implementation
public func xenevtchn_unmask(_ xce: OpaquePointer?, _ port: UInt32) -> Int32 {
  guard let handle = EventChannelHandle.behind(xce) else { return fail(EINVAL, -1) }
  // A write to the device, which passes over ports that the handle does not have.
  try? handle.channels.unmask(EventChannelPort(port))
  return 0
}

/// The driver says ENOTCONN for a port that the handle does not have.
private func perform(_ body: () throws(XenError) -> Void) -> Int32 {
  do throws(XenError) {
    try body()
    return 0
  } catch {
    return fail(number(error, refused: ENOTCONN), -1)
  }
}

/// Xen's number of ports with two-level event channels.
private enum Ports {
  static let count: UInt32 = 4096
}

// MARK: receiving

/// Takes a pending port and masks it; waits for one unless the descriptor is non-blocking.
@c @implementation
public func xenevtchn_pending(_ xce: OpaquePointer?) -> Int32 {
  guard let channels = EventChannelHandle.behind(xce)?.channels else { return fail(EINVAL, -1) }
  let descriptor = channels.fileDescriptor
  while true {
    do throws(XenError) {
      if let port = try channels.nextPending() { return Int32(bitPattern: port.rawValue) }
    } catch {
      return fail(number(error), -1)
    }
    if cxen_get_status_flags(descriptor) & cxen_O_NONBLOCK != 0 { return fail(EAGAIN, -1) }
    guard waitUntilReadable(descriptor) else { return fail(errno, -1) }
  }
}

/// Waits for as long as it takes.
///
/// - Returns: false with the reason in errno, a signal for one.
private func waitUntilReadable(_ descriptor: Int32) -> Bool {
  var look = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
  // SAFETY: one descriptor to look at, the local variable.
  return unsafe poll(&look, 1, -1) >= 0
}

/// Confines a handle to channels with one domain, for good.
@c @implementation
public func xenevtchn_restrict(_ xce: OpaquePointer?, _ domid: UInt16) -> Int32 {
  guard let handle = EventChannelHandle.behind(xce) else { return fail(EINVAL, -1) }
  let code: Int32 = handle.restriction.withLock { restriction in
    if restriction != nil { return EACCES }
    if domid == 0 || domid >= DomainID.firstReserved.rawValue { return EINVAL }
    restriction = domid
    return 0
  }
  return code == 0 ? 0 : fail(code, -1)
}
