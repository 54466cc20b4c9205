// SPDX-License-Identifier: Apache-2.0
//
// The machine that a host holds: its domains, their joins, and event channels. Creating, binding and closing ports
// happens here, on the host's thread, so that it is one at a time as under Xen's event lock; sending does not.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage

/// A process that has joined a domain.
///
/// Several may have joined one.
final class HostJoin {
  let number: UInt32
  /// Its place in the domain's table of joins.
  let place: Int
  let domain: UInt16
  let serial: UInt32
  /// Ends the connection, when the domain is destroyed under it.
  let disconnect: () -> Void

  init(number: UInt32, place: Int, domain: HostDomain, disconnect: @escaping () -> Void) {
    self.number = number
    self.place = place
    self.domain = domain.memory.domain
    self.serial = domain.memory.serial
    self.disconnect = disconnect
  }
}

/// A domain that exists.
final class HostDomain {
  let memory: DomainMemory
  var joins: [UInt32: HostJoin] = [:]
  fileprivate var portsInUse = [Bool](repeating: false, count: DomainLayout.portCount)
  fileprivate(set) var portCount = 0

  init(_ memory: DomainMemory) {
    self.memory = memory
    portsInUse[0] = true
  }
}

/// An event-channel handle of a join.
final class HostHandle {
  let number: UInt32
  let index: Int
  let join: HostJoin
  let descriptor: OwnedDescriptor
  fileprivate(set) var ports: Set<UInt32> = []

  init(number: UInt32, index: Int, join: HostJoin, descriptor: consuming OwnedDescriptor) {
    self.number = number
    self.index = index
    self.join = join
    self.descriptor = descriptor
  }
}

/// Domains, joins, handles and ports of one host.
///
/// Used by the host's thread only.
final class HostMachine {
  private(set) var domains: [UInt16: HostDomain] = [:]
  private(set) var handles: [UInt32: HostHandle] = [:]
  /// Told when a join ends that had ports bound to another domain.
  var lostPeer: (UInt16, UInt16) -> Void = { _, _ in }
  private var lastSerial: UInt32 = 0
  private var lastJoin: UInt32 = 0
  private var lastHandle: UInt32 = 0

  // MARK: domains

  func createDomain(_ number: UInt16, pageLimit: UInt32, frameLimit: UInt32) throws(Errno) {
    guard domains[number] == nil else { throw .fileExists }
    guard number < 0x7FF0, pageLimit <= DomainLayout.grantCount - DomainLayout.firstGrant,
      frameLimit >= 1, frameLimit <= DomainLayout.frameCount
    else { throw .invalidArgument }
    lastSerial += 1
    let memory = try DomainMemory(
      creating: number, serial: lastSerial, pageLimit: pageLimit, frameLimit: frameLimit)
    domains[number] = HostDomain(try memory.registered())
  }

  /// Takes a domain out of existence.
  ///
  /// Pages of it that others map stay theirs until they unmap.
  func destroyDomain(_ number: UInt16) throws(Errno) {
    guard let domain = domains[number] else { throw .noSuchFileOrDirectory }
    for join in Array(domain.joins.values) {
      end(join)
      join.disconnect()
    }
    domain.memory.header.alive.storeReleasing(0)
    domains[number] = nil
    // Nothing can be bound to a domain that is gone; the other ends are unbound for good.
  }

  /// Makes every grant and event channel of a domain useless, as they are after it was restored or has migrated
  /// (Linux's gntalloc and evtchn drivers hear nothing of it: pages stay mapped in the domain, ports stay numbers).
  func invalidate(_ domain: HostDomain) {
    let memory = domain.memory
    memory.redirectAll(to: DomainLayout.nobody)
    for handle in handles.values where handle.join.serial == memory.serial {
      for port in handle.ports {
        let entry = memory.port(port)
        let state = entry.state.loadRelaxed()
        if PortEntry.kind(state) == .interdomain, let other = domains[PortEntry.domain(state)],
          other.memory.serial == entry.remoteSerial.loadRelaxed()
        {
          other.memory.port(PortEntry.port(state)).state.storeReleasing(
            PortEntry.state(.unbound, domain: DomainLayout.nobody, port: 0))
        }
        entry.state.storeReleasing(
          PortEntry.state(.unbound, domain: DomainLayout.nobody, port: 0))
      }
    }
  }

  // MARK: joins

  func join(_ number: UInt16, disconnect: @escaping () -> Void) throws(Errno) -> HostJoin {
    guard let domain = domains[number] else { throw .noSuchFileOrDirectory }
    let taken = Set(domain.joins.values.map(\.place))
    guard let place = (0..<DomainLayout.joinCount).first(where: { !taken.contains($0) }) else {
      throw .tooManyOpenFiles
    }
    lastJoin += 1
    let join = HostJoin(number: lastJoin, place: place, domain: domain, disconnect: disconnect)
    domain.joins[join.number] = join
    return join
  }

  func domain(of join: HostJoin) -> HostDomain? {
    domains[join.domain].flatMap { $0.memory.serial == join.serial ? $0 : nil }
  }

  /// The other domains that a join has event channels to.
  func peers(of join: HostJoin) -> Set<UInt16> {
    guard let memory = domain(of: join)?.memory else { return [] }
    var found: Set<UInt16> = []
    for handle in handles.values where handle.join === join {
      for port in handle.ports {
        let state = memory.port(port).state.loadRelaxed()
        if PortEntry.kind(state) == .interdomain { found.insert(PortEntry.domain(state)) }
      }
    }
    return found
  }

  func remove(_ join: HostJoin) {
    domain(of: join)?.joins[join.number] = nil
  }

  // MARK: event channels

  func openHandle(_ join: HostJoin, _ descriptor: consuming OwnedDescriptor) throws(Errno) -> HostHandle {
    guard let domain = domain(of: join) else { throw .noSuchFileOrDirectory }
    let taken = Set(handles.values.filter { $0.join.serial == join.serial }.map(\.index))
    guard let index = (0..<DomainLayout.handleCount).first(where: { !taken.contains($0) }) else {
      throw .tooManyOpenFiles
    }
    lastHandle += 1
    let handle = HostHandle(number: lastHandle, index: index, join: join, descriptor: descriptor)
    // Whoever may write to it learns its place from a port, which is bound later.
    domain.memory.handle(index).announced.storeRelaxed(0)
    handles[handle.number] = handle
    return handle
  }

  func closeHandle(_ handle: HostHandle) {
    for port in handle.ports { closePort(handle, port) }
    handles[handle.number] = nil
  }

  func bindUnbound(_ handle: HostHandle, remote: UInt16) throws(Errno) -> UInt32 {
    guard remote < 0x7FF0 else { throw .invalidArgument }
    let (domain, port) = try allocatePort(handle)
    domain.memory.port(port).state.storeReleasing(
      PortEntry.state(.unbound, domain: remote, port: 0))
    return port
  }

  func bindInterdomain(_ handle: HostHandle, remote: UInt16, port remotePort: UInt32) throws(Errno) -> UInt32
  {
    guard let other = domains[remote] else { throw .noSuchProcess }
    guard remotePort > 0, remotePort < UInt32(DomainLayout.portCount) else { throw .invalidArgument }
    let theirs = other.memory.port(remotePort)
    let state = theirs.state.loadRelaxed()
    // Xen says EINVAL for all of these (evtchn_bind_interdomain).
    guard PortEntry.kind(state) == .unbound, PortEntry.domain(state) == handle.join.domain else {
      throw .invalidArgument
    }
    let (domain, port) = try allocatePort(handle)
    let ours = domain.memory.port(port)
    ours.remoteSerial.storeRelaxed(other.memory.serial)
    theirs.remoteSerial.storeRelaxed(domain.memory.serial)
    ours.state.storeReleasing(
      PortEntry.state(.interdomain, domain: remote, port: remotePort))
    theirs.state.storeReleasing(
      PortEntry.state(.interdomain, domain: handle.join.domain, port: port))
    // "Notifications may have been lost before": the binder looks once for itself.
    ours.bits.or(PortEntry.pending)
    kick(handle)
    return port
  }

  func closePort(_ handle: HostHandle, _ port: UInt32) {
    guard handle.ports.remove(port) != nil, let domain = domain(of: handle.join) else { return }
    let entry = domain.memory.port(port)
    let state = entry.state.loadRelaxed()
    if PortEntry.kind(state) == .interdomain, let other = domains[PortEntry.domain(state)],
      other.memory.serial == entry.remoteSerial.loadRelaxed()
    {
      // The other end stays, and may be bound again by the same domain.
      other.memory.port(PortEntry.port(state)).state.storeReleasing(
        PortEntry.state(.unbound, domain: handle.join.domain, port: 0))
    }
    entry.state.storeReleasing(PortEntry.state(.free, domain: 0, port: 0))
    entry.handle.storeReleasing(0)
    entry.bits.storeReleasing(0)
    domain.portsInUse[Int(port)] = false
    domain.portCount -= 1
  }

  /// EVTCHNOP_send on behalf of a domain, for an unmap notification.
  ///
  /// - Parameter handle: what the port has to belong to; another's port of that number is not the one meant.
  func send(_ domain: HostDomain, _ port: UInt32, of handle: UInt32) {
    guard port > 0, port < UInt32(DomainLayout.portCount) else { return }
    let entry = domain.memory.port(port)
    let state = entry.state.loadAcquiring()
    guard entry.handle.loadAcquiring() == handle else { return }
    guard PortEntry.kind(state) == .interdomain, let other = domains[PortEntry.domain(state)] else { return }
    let theirs = other.memory.port(PortEntry.port(state))
    let before = theirs.bits.or(PortEntry.pending)
    if before & (PortEntry.pending | PortEntry.masked) == 0,
      let handle = handles[theirs.handle.loadAcquiring()]
    {
      kick(handle)
    }
  }

  /// Makes a handle's owner look at its ports.
  func kick(_ handle: HostHandle) {
    guard EventDescriptor.hasRoom(handle.descriptor.raw) else { return }
    domain(of: handle.join)?.memory.handle(handle.index).announced.addReleasing(
      1)
    var one: UInt64 = 1
    // SAFETY: eight bytes of a local variable.
    _ = unsafe Glibc.write(handle.descriptor.raw, &one, 8)
  }

  /// The lowest free port, as Xen gives it, wired to its handle and not yet bound to anything.
  private func allocatePort(_ handle: HostHandle) throws(Errno) -> (HostDomain, UInt32) {
    guard let domain = domain(of: handle.join) else { throw .noSuchProcess }
    guard let free = domain.portsInUse.firstIndex(of: false) else { throw .noSpace }
    domain.portsInUse[free] = true
    domain.portCount += 1
    let port = UInt32(free)
    handle.ports.insert(port)
    let entry = domain.memory.port(port)
    entry.bits.storeRelaxed(0)
    entry.handleIndex.storeRelaxed(UInt32(handle.index))
    entry.handle.storeReleasing(handle.number)
    return (domain, port)
  }
}
