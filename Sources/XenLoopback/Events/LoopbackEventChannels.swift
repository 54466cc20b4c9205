// SPDX-License-Identifier: Apache-2.0
//
// Event channels of the loopback. Sending is done here, on the tables: set the other end's pending bit and, if it
// was neither pending nor masked, write the eventfd of the handle it belongs to. The host is asked to create, bind
// and close ports, and once for each other end's eventfd.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage
internal import Xen

/// A handle on event channels of a loopback domain.
final class LoopbackEventChannels: EventChannels {
  private let connection: LoopbackConnection
  private let counter: EventCounter
  private let handle: UInt32
  private let handleIndex: Int
  private let state = Guarded(State())

  private struct State {
    var ports: [Port] = []
    /// Where the search for a pending port goes on, so that none is starved.
    var cursor = 0
    /// The sum of what was read from the eventfd.
    var consumed: UInt64 = 0
  }

  /// A port of this handle, and what is known about its other end.
  private struct Port {
    let number: UInt32
    var peer: Peer?
  }

  private struct Peer {
    let memory: DomainMemory
    let handle: UInt32
    let handleIndex: Int
    let descriptor: EventDescriptor
  }

  init(_ connection: LoopbackConnection) throws(XenError) {
    self.connection = connection
    do throws(Errno) {
      counter = try EventCounter()
      let reply = try connection.control.call(ControlMessage(.openHandle), sending: counter.fileDescriptor)
      handle = reply.message.a
      handleIndex = Int(reply.message.b)
    } catch {
      throw XenError(errno: error, "cannot open event channels of domain \(connection.domain)")
    }
  }

  deinit {
    _ = try? connection.control.call(ControlMessage(.closeHandle, a: handle))
  }

  var fileDescriptor: Int32 { counter.fileDescriptor }

  // MARK: ports

  func bindUnbound(remote: DomainID) throws(XenError) -> EventChannelPort {
    let request = ControlMessage(.bindUnbound, a: handle, b: UInt32(remote.rawValue))
    return try open(request, "cannot create an event channel for domain \(remote)")
  }

  func bindInterdomain(remote: DomainID, port: EventChannelPort) throws(XenError) -> EventChannelPort {
    let request = ControlMessage(.bindInterdomain, a: handle, b: UInt32(remote.rawValue), c: port.rawValue)
    return try open(
      request,
      "cannot bind to event channel port \(port) of domain \(remote), which domain \(connection.domain) "
        + "must be the one meant for and nobody may have bound yet")
  }

  private func open(_ request: ControlMessage, _ what: String) throws(XenError) -> EventChannelPort {
    do throws(Errno) {
      let number = try connection.control.call(request).message.a
      state.withLock { state in
        state.ports.append(Port(number: number))
        // An event may have come before the port was known here, and a look then have emptied the descriptor.
        if anyPending(state) { signalSelf() }
      }
      return EventChannelPort(number)
    } catch {
      if error == .noSuchProcess {
        throw XenError(.notFound, "\(what): there is no such domain", errno: error)
      }
      throw XenError(errno: error, what)
    }
  }

  func unbind(_ port: EventChannelPort) throws(XenError) {
    let wasOurs = state.withLock { state in
      guard let index = state.ports.firstIndex(where: { $0.number == port.rawValue }) else { return false }
      state.ports.remove(at: index)
      return true
    }
    guard wasOurs else { throw notOurs("close", port) }
    do throws(Errno) {
      try connection.control.call(ControlMessage(.closePort, a: handle, b: port.rawValue))
    } catch {
      throw XenError(errno: error, "cannot close event channel port \(port)")
    }
  }

  // MARK: sending

  func notify(_ port: EventChannelPort) throws(XenError) {
    let failure: XenError? = state.withLock { state in
      guard let index = state.ports.firstIndex(where: { $0.number == port.rawValue }) else {
        return notOurs("notify", port)
      }
      do throws(XenError) {
        try send(port.rawValue, &state.ports[index])
        return nil
      } catch {
        return error
      }
    }
    if let failure { throw failure }
  }

  private func send(_ number: UInt32, _ port: inout Port) throws(XenError) {
    let entry = connection.memory.port(number)
    // Pairs with the host's .releasing stores: who sees a binding sees what it is bound to.
    let link = entry.state.loadAcquiring()
    // Not bound, not any more, or its owner has gone: Xen drops the event and reports success.
    guard PortEntry.kind(link) == .interdomain else { return }
    let serial = entry.remoteSerial.loadRelaxed()
    guard let memory = try peerMemory(PortEntry.domain(link), serial, port.peer) else { return }
    let theirs = memory.port(PortEntry.port(link))
    // Before the bit is set: whoever finds it set trusts that somebody wakes the owner.
    try know(theirs, of: memory, &port)
    guard port.peer != nil else { return }
    let before = theirs.bits.or(PortEntry.pending)
    // Pending already: its owner will look. Masked: its owner looks when it unmasks. One event either way.
    guard before & (PortEntry.pending | PortEntry.masked) == 0 else { return }
    do throws(XenError) {
      // Another handle's by now, if it was closed and opened meanwhile.
      try know(theirs, of: memory, &port)
    } catch {
      _ = theirs.bits.and(~PortEntry.pending)
      throw error
    }
    guard let peer = port.peer else { return }
    // First announced, then written: see HandleEntry.
    memory.handle(peer.handleIndex).announced.addReleasing(1)
    peer.descriptor.signal()
  }

  /// - Returns: nil when the domain that was bound is no more.
  private func peerMemory(
    _ domain: UInt16, _ serial: UInt32, _ known: Peer?
  ) throws(XenError) -> DomainMemory? {
    if let known, known.memory.serial == serial, known.memory.domain == domain {
      return known.memory.isAlive ? known.memory : nil
    }
    do throws(Errno) {
      let memory = try connection.memory(of: domain)
      return memory.serial == serial ? memory : nil
    } catch {
      if error == .noSuchFileOrDirectory { return nil }
      throw XenError(errno: error, "cannot get domain \(domain)'s tables from the loopback host")
    }
  }

  /// Makes `port.peer` the handle that a port of another domain belongs to, nil when that is closed.
  ///
  /// Two loads when it is known already.
  private func know(_ theirs: PortEntry, of memory: DomainMemory, _ port: inout Port) throws(XenError) {
    let handle = theirs.handle.loadAcquiring()
    if port.peer?.memory === memory && port.peer?.handle == handle { return }
    port.peer = nil
    port.peer = try findPeer(memory, handle, Int(theirs.handleIndex.loadRelaxed()))
  }

  private func findPeer(_ memory: DomainMemory, _ handle: UInt32, _ index: Int) throws(XenError) -> Peer? {
    guard handle != 0, index < DomainLayout.handleCount else { return nil }
    do throws(Errno) {
      let reply = try connection.control.call(
        ControlMessage(.handleDescriptor, a: UInt32(memory.domain), b: memory.serial, c: handle))
      // The message came and its descriptor did not: the kernel had no number for it in this process.
      guard let raw = reply.descriptors.first else { throw .tooManyOpenFiles }
      return Peer(memory: memory, handle: handle, handleIndex: index, descriptor: EventDescriptor(raw))
    } catch {
      // Closed between our look and the host's.
      if error == .noSuchFileOrDirectory { return nil }
      throw XenError(
        errno: error, "cannot get domain \(memory.domain)'s event descriptor from the loopback host")
    }
  }

  // MARK: receiving

  func nextPending() throws(XenError) -> EventChannelPort? {
    state.withLock { state in
      if let port = take(&state) {
        // The descriptor stays readable only if there is more.
        if !anyPending(state) {
          drain(&state)
          if anyPending(state) { signalSelf() }
        }
        return EventChannelPort(port)
      }
      // Nothing pending. If a write is in the eventfd, or on its way there, take it out and look again.
      guard drain(&state) else { return nil }
      guard let port = take(&state) else { return nil }
      if anyPending(state) { signalSelf() }
      return EventChannelPort(port)
    }
  }

  func unmask(_ port: EventChannelPort) throws(XenError) {
    let isOurs = state.withLock { state in
      guard state.ports.contains(where: { $0.number == port.rawValue }) else { return false }
      let before = connection.memory.port(port.rawValue).bits.and(~PortEntry.masked)
      if before == PortEntry.masked | PortEntry.pending { signalSelf() }
      return true
    }
    guard isOurs else { throw notOurs("unmask", port) }
  }

  /// Takes a pending port and masks it.
  private func take(_ state: inout State) -> UInt32? {
    for step in 0..<state.ports.count {
      let index = (state.cursor + step) % state.ports.count
      let number = state.ports[index].number
      let bits = connection.memory.port(number).bits
      if bits.loadRelaxed() == PortEntry.pending,
        bits.compareExchange(expected: PortEntry.pending, desired: PortEntry.masked)
      {
        state.cursor = index + 1
        return number
      }
    }
    return nil
  }

  private func anyPending(_ state: borrowing State) -> Bool {
    for port in state.ports
    where connection.memory.port(port.number).bits.loadAcquiring() == PortEntry.pending {
      return true
    }
    return false
  }

  /// Empties the eventfd, without a system call when nothing can be in it.
  ///
  /// - Returns: whether something was in it.
  @discardableResult
  private func drain(_ state: inout State) -> Bool {
    guard entry.announced.loadAcquiring() != state.consumed else { return false }
    var value: UInt64 = 0
    // Never waits, whatever the owner of a drop-in's descriptor has set: the writer may have died before its write.
    // SAFETY: the vector has the eight bytes of the local variable.
    let got = unsafe withUnsafeMutableBytes(of: &value) { bytes in
      var vector = unsafe iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
      return unsafe cxen_preadv2(counter.fileDescriptor, &vector, 1, -1, cxen_RWF_NOWAIT)
    }
    guard got == 8 else { return false }
    state.consumed &+= value
    return true
  }

  private func signalSelf() {
    entry.announced.addReleasing(1)
    counter.signal()
  }

  private var entry: HandleEntry { connection.memory.handle(handleIndex) }

  private func notOurs(_ verb: String, _ port: EventChannelPort) -> XenError {
    XenError(
      .notFound,
      "cannot \(verb) event channel port \(port): it is no port of this handle of domain \(connection.domain)"
    )
  }
}

/// An eventfd of another handle, shared by whoever notifies it.
final class EventDescriptor: Sendable {
  private let counter: EventCounter

  init(_ raw: Int32) {
    counter = EventCounter(adopting: OwnedDescriptor(raw))
  }

  /// Makes its owner look at its ports.
  func signal() {
    if Self.hasRoom(counter.fileDescriptor) { counter.signal() }
  }

  /// Whether an eventfd can be written to.
  ///
  /// Its flags are its owner's as well, who may have made it blocking: one that is full is not written to, and is readable
  /// all the same.
  static func hasRoom(_ eventfd: Int32) -> Bool {
    var look = pollfd(fd: eventfd, events: Int16(POLLOUT), revents: 0)
    // SAFETY: one element, a local variable.
    return unsafe poll(&look, 1, 0) == 1 && Int32(look.revents) & Int32(POLLOUT) != 0
  }
}
