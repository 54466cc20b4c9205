// SPDX-License-Identifier: Apache-2.0
//
// Event channels: libxenevtchn over Linux's evtchn driver.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage

/// A set of event channels of /dev/xen/evtchn.
///
/// The library's calls are one ioctl, read or write each on the descriptor and keep no state of their own, so
/// they are made from any thread without a lock.
public final class LibXenEventChannels: EventChannels {
  // SAFETY: an immutable struct with the descriptor in it; the driver locks.
  private nonisolated(unsafe) let handle: OpaquePointer
  /// Readable while an unmasked port is pending.
  public let fileDescriptor: Int32

  /// Opens the device; reading never waits.
  ///
  /// - Throws: `.unavailable` or `.denied`, with what to do.
  public init() throws(XenError) {
    guard let opened = xenevtchn_open(nil, 0) else {
      throw cannotOpen(.current, device: "/dev/xen/evtchn", module: "xen-evtchn")
    }
    let descriptor = xenevtchn_fd(opened)
    do {
      try setNonBlocking(descriptor)
    } catch {
      _ = xenevtchn_close(opened)
      throw XenError(errno: error, "cannot make /dev/xen/evtchn non-blocking")
    }
    _ = cxen_set_cloexec(descriptor, 1)
    handle = opened
    fileDescriptor = descriptor
  }

  deinit {
    _ = xenevtchn_close(handle)
  }

  /// Creates a port for another domain to bind (xenevtchn_bind_unbound_port).
  public func bindUnbound(remote: DomainID) throws(XenError) -> EventChannelPort {
    let port = xenevtchn_bind_unbound_port(handle, UInt32(remote.rawValue))
    guard port >= 0 else {
      throw XenError(errno: .current, "cannot create an event channel for domain \(remote)")
    }
    return EventChannelPort(UInt32(port))
  }

  /// Binds to a port of another domain (xenevtchn_bind_interdomain).
  public func bindInterdomain(remote: DomainID, port: EventChannelPort) throws(XenError) -> EventChannelPort {
    let local = xenevtchn_bind_interdomain(handle, UInt32(remote.rawValue), port.rawValue)
    guard local >= 0 else {
      throw XenError(errno: .current, "cannot bind to event channel port \(port) of domain \(remote)")
    }
    return EventChannelPort(UInt32(local))
  }

  /// Tells the other end (xenevtchn_notify).
  public func notify(_ port: EventChannelPort) throws(XenError) {
    guard xenevtchn_notify(handle, port.rawValue) == 0 else {
      throw Self.failed(.current, "cannot notify event channel port \(port)")
    }
  }

  /// Takes a pending port (xenevtchn_pending on a non-blocking descriptor).
  public func nextPending() throws(XenError) -> EventChannelPort? {
    while true {
      let port = xenevtchn_pending(handle)
      if port >= 0 { return EventChannelPort(UInt32(port)) }
      switch Errno.current {
      case .interrupted: continue
      case .wouldBlock, .resourceTemporarilyUnavailable: return nil
      // evtchn.c answers EFBIG once its ring of pending ports has overflowed, and until it is reset.
      case .fileTooLarge:
        throw XenError(
          .disconnected, "/dev/xen/evtchn lost events because its buffer overflowed; reconnect",
          errno: .fileTooLarge)
      case let other: throw XenError(errno: other, "cannot read pending ports from /dev/xen/evtchn")
      }
    }
  }

  /// Lets a port deliver again (xenevtchn_unmask).
  public func unmask(_ port: EventChannelPort) throws(XenError) {
    guard xenevtchn_unmask(handle, port.rawValue) == 0 else {
      throw Self.failed(.current, "cannot unmask event channel port \(port)")
    }
  }

  /// Closes a port (xenevtchn_unbind).
  public func unbind(_ port: EventChannelPort) throws(XenError) {
    guard xenevtchn_unbind(handle, port.rawValue) == 0 else {
      throw Self.failed(.current, "cannot close event channel port \(port)")
    }
  }

  /// The driver says ENOTCONN for a port that this handle does not have.
  private static func failed(_ errno: Errno, _ what: String) -> XenError {
    errno == .socketNotConnected
      ? XenError(.notFound, "\(what): it is no port of this handle", errno: errno)
      : XenError(errno: errno, what)
  }
}
