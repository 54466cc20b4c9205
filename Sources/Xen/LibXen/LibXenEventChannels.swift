// SPDX-License-Identifier: Apache-2.0
//
// Event channels: libxenevtchn over Linux's evtchn driver.

internal import CXen
internal import Platform
internal import Synchronization
internal import SystemPackage

/// A set of event channels of /dev/xen/evtchn.
///
/// Calls are made from any thread; only making and closing a port takes a lock, for the list of ports.
public final class LibXenEventChannels: EventChannels {
  private let device: EventChannelDevice
  /// Readable while an unmasked port is pending.
  public let fileDescriptor: Int32
  private let open: LibXenOpenChannels?
  private let ports = Mutex(Ports())
  /// The domain was restored: that a port is not there any more is no news.
  private let hasLostPorts = Atomic<Bool>(false)

  private struct Ports {
    var mine: Set<UInt32> = []
    /// Those that the driver still has, and the domain has not since it was restored.
    var lost: Set<UInt32> = []
  }

  /// Opens the device; reading never waits.
  ///
  /// - Throws: `.unavailable` or `.denied`, with what to do.
  public convenience init() throws(XenError) {
    try self.init(among: nil)
  }

  /// Opens the device.
  ///
  /// - Parameter open: where it is listed as long as it is open.
  init(among open: LibXenOpenChannels?) throws(XenError) {
    guard let opened = EventChannelDevice() else {
      throw cannotOpen(.current, device: "/dev/xen/evtchn", module: "xen-evtchn")
    }
    let descriptor = opened.fileDescriptor
    do {
      try setNonBlocking(descriptor)
    } catch {
      // SAFETY: nobody else has it yet.
      unsafe opened.close()
      throw XenError(errno: error, "cannot make /dev/xen/evtchn non-blocking")
    }
    _ = cxen_set_cloexec(descriptor, 1)
    device = opened
    fileDescriptor = descriptor
    self.open = open
    open?.add(self)
  }

  deinit {
    open?.remove(ObjectIdentifier(self))
    // Closing the descriptor closes the ports that the driver lists, whosever they are by now.
    guard ports.withLock({ $0.lost.isEmpty }) else { return }
    // SAFETY: this object's end, and only this object has the device.
    unsafe device.close()
  }

  /// Creates a port for another domain to bind (xenevtchn_bind_unbound_port).
  public func bindUnbound(remote: DomainID) throws(XenError) -> EventChannelPort {
    let (port, failure) = make { device.bindUnbound(remote: remote) }
    guard let port else {
      throw XenError(errno: failure, "cannot create an event channel for domain \(remote)")
    }
    return EventChannelPort(port)
  }

  /// Binds to a port of another domain (xenevtchn_bind_interdomain).
  public func bindInterdomain(remote: DomainID, port: EventChannelPort) throws(XenError) -> EventChannelPort {
    let (local, failure) = make { device.bindInterdomain(remote: remote, port: port.rawValue) }
    guard let local else {
      throw XenError(errno: failure, "cannot bind to event channel port \(port) of domain \(remote)")
    }
    return EventChannelPort(local)
  }

  private func make(_ call: () -> Int32) -> (port: UInt32?, failure: Errno) {
    ports.withLock { ports in
      let answer = call()
      guard let port = UInt32(exactly: answer) else { return (nil, .current) }
      ports.mine.insert(port)
      ports.lost.remove(port)
      return (port, .current)
    }
  }

  /// Tells the other end (xenevtchn_notify).
  public func notify(_ port: EventChannelPort) throws(XenError) {
    guard device.notify(port.rawValue) || isLost(.current) else {
      throw Self.failed(.current, "cannot notify event channel port \(port)")
    }
  }

  /// Takes a pending port (xenevtchn_pending on a non-blocking descriptor).
  public func nextPending() throws(XenError) -> EventChannelPort? {
    while true {
      let port = device.pending()
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
    guard device.unmask(port.rawValue) || isLost(.current) else {
      throw Self.failed(.current, "cannot unmask event channel port \(port)")
    }
  }

  /// Closes a port (xenevtchn_unbind).
  public func unbind(_ port: EventChannelPort) throws(XenError) {
    let failure: Errno? = ports.withLock { ports in
      if ports.lost.contains(port.rawValue) { return nil }
      guard device.unbind(port.rawValue) else { return isLost(.current) ? nil : .current }
      ports.mine.remove(port.rawValue)
      return nil
    }
    if let failure { throw Self.failed(failure, "cannot close event channel port \(port)") }
  }

  // MARK: After a restore

  /// The domain has none of the ports any more; what is done with one from here on has no effect.
  ///
  /// - Returns: those that the driver still lists.
  func losePorts() -> Set<UInt32> {
    ports.withLock { ports in
      if !ports.mine.isEmpty { hasLostPorts.store(true, ordering: .relaxed) }
      ports.lost.formUnion(ports.mine)
      ports.mine = []
      return ports.lost
    }
  }

  /// Has the driver make a port of a number that it lists for this handle, whereupon it forgets all of them.
  ///
  /// - Returns: whether it did; if not, the port has been closed again.
  func forgetPorts() -> Bool {
    ports.withLock { ports in
      let port = device.bindUnbound(remote: .own)
      if port < 0, Errno.current == .fileExists {
        ports.lost = []
        return true
      }
      if port >= 0 { _ = device.unbind(UInt32(port)) }
      return false
    }
  }

  private func isLost(_ failure: Errno) -> Bool {
    failure == .socketNotConnected && hasLostPorts.load(ordering: .relaxed)
  }

  /// The driver says ENOTCONN for a port that this handle does not have.
  private static func failed(_ errno: Errno, _ what: String) -> XenError {
    errno == .socketNotConnected
      ? XenError(.notFound, "\(what): it is no port of this handle", errno: errno)
      : XenError(errno: errno, what)
  }
}
