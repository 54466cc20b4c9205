// SPDX-License-Identifier: Apache-2.0
//
// The host's control socket: one connection for each join, whose end is the join's death.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage

/// Accepts processes on the control socket.
///
/// Everything runs on the loop's thread.
final class ControlServer {
  let machine: HostMachine
  private var listener: HostListener?
  private let loop: HostLoop
  private let createDomain: (UInt16, UInt32, UInt32) throws(Errno) -> Void
  private let destroyDomain: (UInt16) throws(Errno) -> Void
  private let introduceDomain: (UInt16) -> Void
  private let storeCounts: (UInt16) -> XenStoreCounts
  private var connections: [ObjectIdentifier: ControlConnection] = [:]

  init(
    _ socket: consuming OwnedDescriptor, machine: HostMachine, loop: HostLoop,
    createDomain: @escaping (UInt16, UInt32, UInt32) throws(Errno) -> Void,
    destroyDomain: @escaping (UInt16) throws(Errno) -> Void, introduceDomain: @escaping (UInt16) -> Void,
    storeCounts: @escaping (UInt16) -> XenStoreCounts
  ) throws(Errno) {
    self.machine = machine
    self.loop = loop
    self.createDomain = createDomain
    self.destroyDomain = destroyDomain
    self.introduceDomain = introduceDomain
    self.storeCounts = storeCounts
    listener = try HostListener(socket, loop: loop) { [unowned self] descriptor in accept(descriptor) }
  }

  private func accept(_ descriptor: consuming OwnedDescriptor) {
    guard let connection = try? ControlConnection(descriptor, server: self, loop: loop) else { return }
    connections[ObjectIdentifier(connection)] = connection
  }

  func stop() {
    listener?.close()
    for connection in Array(connections.values) { connection.close() }
  }

  func closed(_ connection: ControlConnection) {
    if let join = connection.join { machine.end(join) }
    connections[ObjectIdentifier(connection)] = nil
  }

  /// Carries a request out.
  ///
  /// - Parameter received: the descriptor that came with it; consumed by the operation that wants one.
  func serve(
    _ request: ControlMessage, _ received: consuming ReceivedDescriptor, from connection: ControlConnection
  ) throws(Errno) -> (ControlMessage, [Int32]) {
    guard let operation = ControlOperation(rawValue: request.code) else { throw .invalidArgument }
    var reply = ControlMessage(0)
    switch operation {
    case .join:
      guard connection.join == nil else { throw .socketIsConnected }
      let join = try machine.join(try Self.domain(request.a)) { [unowned connection] in connection.close() }
      connection.join = join
      reply.a = join.number
      reply.b = UInt32(join.place)
      return (reply, try descriptors(of: join.domain))
    case .lookUp: return (reply, try descriptors(of: Self.domain(request.a)))
    case .openHandle:
      let join = try joined(connection)
      let eventfd = try received.take()
      // What is written to it has to be no message to anybody.
      if let name = SymbolicLink.targetName("/proc/self/fd/\(eventfd.raw)"), name != "anon_inode:[eventfd]" {
        throw .invalidArgument
      }
      // Its owner may take that back, so `kick` looks as well.
      try eventfd.setNonBlocking()
      let handle = try machine.openHandle(join, eventfd)
      reply.a = handle.number
      reply.b = UInt32(handle.index)
    case .closeHandle: machine.closeHandle(try handle(request.a, connection))
    case .bindUnbound:
      reply.a = try machine.bindUnbound(handle(request.a, connection), remote: Self.domain(request.b))
    case .bindInterdomain:
      reply.a = try machine.bindInterdomain(
        handle(request.a, connection), remote: Self.domain(request.b), port: request.c)
    case .closePort: machine.closePort(try handle(request.a, connection), request.b)
    case .handleDescriptor:
      _ = try joined(connection)
      guard let handle = machine.handles[request.c], UInt32(handle.join.domain) == request.a,
        handle.join.serial == request.b
      else { throw .noSuchFileOrDirectory }
      return (reply, [handle.descriptor.raw])
    case .send:
      guard let domain = machine.domain(of: try joined(connection)) else { throw .noSuchProcess }
      machine.send(domain, request.a, of: request.b)
    case .createDomain: try createDomain(Self.domain(request.a), request.b, request.c)
    case .destroyDomain: try destroyDomain(Self.domain(request.a))
    case .introduceDomain: try introduceDomain(domain(request.a).memory.domain)
    case .invalidateDomain: machine.invalidate(try domain(request.a))
    case .setPageLimit:
      guard request.b <= UInt32(DomainLayout.grantCount - DomainLayout.firstGrant) else {
        throw .invalidArgument
      }
      try domain(request.a).memory.header.pageLimit.storeRelaxed(request.b)
    case .status:
      let domain = try domain(request.a)
      reply.a = domain.memory.header.pagesShared.loadRelaxed()
      reply.b = domain.memory.header.pageLimit.loadRelaxed()
      reply.c = UInt32(domain.portCount)
      reply.d = UInt32(domain.joins.count)
    case .nextDomain:
      guard let number = machine.domains.keys.filter({ UInt32($0) >= request.a }).min() else {
        throw .noSuchFileOrDirectory
      }
      reply.a = UInt32(number)
    case .storeStatus:
      let counts = storeCounts(try domain(request.a).memory.domain)
      reply.a = UInt32(counts.connections)
      reply.b = UInt32(counts.watches)
      reply.c = UInt32(counts.transactions)
      reply.d = UInt32(counts.nodes)
    }
    return (reply, [])
  }

  private static func domain(_ number: UInt32) throws(Errno) -> UInt16 {
    guard let domain = UInt16(exactly: number) else { throw .invalidArgument }
    return domain
  }

  private func domain(_ number: UInt32) throws(Errno) -> HostDomain {
    guard let domain = machine.domains[try Self.domain(number)] else { throw .noSuchFileOrDirectory }
    return domain
  }

  private func joined(_ connection: ControlConnection) throws(Errno) -> HostJoin {
    guard let join = connection.join else { throw .notPermitted }
    return join
  }

  private func handle(_ number: UInt32, _ connection: ControlConnection) throws(Errno) -> HostHandle {
    guard let handle = machine.handles[number], handle.join === connection.join else {
      throw .noSuchFileOrDirectory
    }
    return handle
  }

  private func descriptors(of number: UInt16) throws(Errno) -> [Int32] {
    guard let domain = machine.domains[number] else { throw .noSuchFileOrDirectory }
    return [domain.memory.tablesDescriptor.raw, domain.memory.pagesDescriptor.raw]
  }
}

/// A descriptor that came with a request, closed unless somebody takes it.
final class ReceivedDescriptor {
  private var raw: Int32?

  init(_ raw: Int32?) {
    self.raw = raw
  }

  /// Gives the descriptor to the caller, once.
  func take() throws(Errno) -> OwnedDescriptor {
    guard let raw else { throw .badFileDescriptor }
    self.raw = nil
    return OwnedDescriptor(raw)
  }

  deinit {
    if let raw { _ = Glibc.close(raw) }
  }
}

/// One process on the control socket.
final class ControlConnection: LoopClient {
  var join: HostJoin?
  private let descriptor: OwnedDescriptor
  private unowned let server: ControlServer
  private let loop: HostLoop
  private var token: UInt64 = 0
  private var input: [UInt8] = []
  private var received = ReceivedDescriptor(nil)
  private var isOpen = true

  init(_ descriptor: consuming OwnedDescriptor, server: ControlServer, loop: HostLoop) throws(Errno) {
    self.descriptor = descriptor
    self.server = server
    self.loop = loop
    token = try loop.add(self.descriptor.raw, .readable, self)
  }

  func ready(_ readiness: Readiness) {
    guard isOpen else { return }
    var descriptors: [Int32] = []
    let got = receiveMessage(&input, &descriptors, limit: 1, on: descriptor.raw)
    if let raw = descriptors.first { received = ReceivedDescriptor(raw) }
    if got < 0 {
      let error = Errno.current
      if error == .interrupted || error == .wouldBlock || error == .resourceTemporarilyUnavailable { return }
    }
    guard got > 0 else { return close() }
    guard input.count == ControlMessage.byteCount else { return }
    let request = ControlMessage(input)
    input.removeAll(keepingCapacity: true)
    let taken = received
    received = ReceivedDescriptor(nil)
    do throws(Errno) {
      let (reply, descriptors) = try server.serve(request, taken, from: self)
      send(reply, descriptors)
    } catch {
      send(ControlMessage(UInt32(error.rawValue)), [])
    }
  }

  func close() {
    guard isOpen else { return }
    isOpen = false
    loop.remove(descriptor.raw, token)
    _ = shutdown(descriptor.raw, Int32(SHUT_RDWR))
    server.closed(self)
  }

  // A client waits for each reply, so there is room for one; who does not read is cut off.
  private func send(_ reply: ControlMessage, _ descriptors: [Int32]) {
    guard isOpen else { return }
    let sent = sendMessage(reply.bytes, descriptors, on: descriptor.raw)
    if sent != ControlMessage.byteCount { close() }
  }
}
