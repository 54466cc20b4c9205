// SPDX-License-Identifier: Apache-2.0
//
// The loopback's xenstored: every request of docs/misc/xenstore.txt on Unix sockets, one for each domain, so that
// the socket says who speaks. libxenstore, and what links it, connects with XENSTORED_PATH.

internal import Platform
internal import SystemPackage

/// A xenstore server.
///
/// Everything runs on the loop's thread.
final class XenStoreServer {
  var tree = XenStoreTree()
  private(set) var introduced: Set<UInt16> = [0]
  private let loop: HostLoop
  private(set) var connections: [ObjectIdentifier: XenStoreConnection] = [:]
  private var listeners: [UInt16: HostListener] = [:]
  private var targets: [UInt16: UInt16] = [:]
  private(set) var special: [String: [XenStoreRight]] = [
    "@introduceDomain": [XenStoreRight(domain: 0, read: false, write: false)],
    "@releaseDomain": [XenStoreRight(domain: 0, read: false, write: false)],
  ]
  private var lastTransaction: UInt32 = 0

  init(loop: HostLoop) {
    self.loop = loop
  }

  /// Accepts connections of a domain on a listening socket.
  func listen(_ socket: consuming OwnedDescriptor, for domain: UInt16) throws(Errno) {
    listeners[domain] = try HostListener(socket, loop: loop) { [unowned self] descriptor in
      accepted(descriptor, for: domain)
    }
  }

  /// Ends a domain's connections, takes what it owned out of the tree and tells those who watch.
  func forget(_ domain: UInt16) {
    listeners.removeValue(forKey: domain)?.close()
    for connection in connections.values where connection.domain == domain { connection.close() }
    release(domain)
  }

  /// Makes a domain known and tells those who watch.
  func introduce(_ domain: UInt16) {
    introduced.insert(domain)
    fire(special: "@introduceDomain")
  }

  /// Closes everything.
  func stop() {
    for listener in listeners.values { listener.close() }
    listeners = [:]
    for connection in connections.values { connection.close() }
  }

  /// Serves a connection, unless its domain has as many as it may.
  func accepted(_ descriptor: consuming OwnedDescriptor, for domain: UInt16) {
    if domain != 0 {
      func open() -> Int { connections.values.reduce(0) { $0 + ($1.domain == domain ? 1 : 0) } }
      // Those that have been left may not have been served since.
      if open() >= XenStoreLimits.guestConnections {
        for connection in connections.values where connection.domain == domain { connection.closeIfLeft() }
      }
      guard open() < XenStoreLimits.guestConnections else { return }
    }
    guard
      let connection = try? XenStoreConnection(descriptor, domain: domain, server: self, loop: loop)
    else { return }
    connections[ObjectIdentifier(connection)] = connection
  }

  func closed(_ connection: XenStoreConnection) {
    connection.transactions = [:]
    connection.watches = []
    connections[ObjectIdentifier(connection)] = nil
  }

  // MARK: requests

  func serve(_ header: XenStoreHeader, _ payload: XenStorePayload, from connection: XenStoreConnection) {
    var notices: [XenStoreNotice] = []
    var after: (() -> Void)?
    do throws(XenStoreFailure) {
      let reply = try answer(header, payload, connection, &notices, &after)
      guard reply.count <= XenStoreLimits.payloadBytes else { throw .tooBig }
      connection.send(header.type, request: header.request, transaction: header.transaction, reply)
    } catch {
      connection.send(
        XenStoreOperation.error.rawValue, request: header.request, transaction: header.transaction,
        Array(error.rawValue.utf8) + [0])
    }
    for notice in notices { fire(notice) }
    after?()
  }

  private static let acknowledgement = Array("OK\0".utf8)

  private func answer(
    _ header: XenStoreHeader, _ payload: XenStorePayload, _ connection: XenStoreConnection,
    _ notices: inout [XenStoreNotice], _ after: inout (() -> Void)?
  ) throws(XenStoreFailure) -> [UInt8] {
    guard let operation = XenStoreOperation(rawValue: header.type) else { throw .notSupported }
    let identity = identity(of: connection)
    func path(_ text: String) throws(XenStoreFailure) -> XenStorePath {
      try XenStorePath(text, relativeTo: connection.domain)
    }
    switch operation {
    case .read:
      let path = try path(payload.single())
      return try reading(header, connection) { access, tree throws(XenStoreFailure) in
        try access.readable(path, in: tree).value
      }
    case .directory:
      let path = try path(payload.single())
      return try reading(header, connection) { access, tree throws(XenStoreFailure) in
        Self.names(try access.readable(path, in: tree))
      }
    case .directoryPart:
      let strings = try payload.strings()
      guard strings.count == 2, let offset = Int(strings[1]), offset >= 0 else { throw .invalid }
      let path = try path(strings[0])
      return try reading(header, connection) { access, tree throws(XenStoreFailure) in
        Self.part(try access.readable(path, in: tree), offset)
      }
    case .getPermissions:
      let text = try payload.single()
      if let rights = special[text], identity.isPrivileged { return Self.wire(rights) }
      let path = try path(text)
      return try reading(header, connection) { access, tree throws(XenStoreFailure) in
        Self.wire(try access.readable(path, in: tree).permissions)
      }
    case .write:
      let (text, value) = try payload.stringAndRest()
      let path = try path(text)
      try changing(header, connection, &notices) { access, tree throws(XenStoreFailure) in
        try access.write(path, value, in: &tree)
      }
    case .makeDirectory:
      let path = try path(payload.single())
      try changing(header, connection, &notices) { access, tree throws(XenStoreFailure) in
        try access.makeDirectory(path, in: &tree)
      }
    case .remove:
      let path = try path(payload.single())
      try changing(header, connection, &notices) { access, tree throws(XenStoreFailure) in
        try access.remove(path, in: &tree)
      }
    case .setPermissions:
      let strings = try payload.strings()
      guard strings.count >= 2 else { throw .invalid }
      var rights: [XenStoreRight] = []
      for text in strings.dropFirst() { rights.append(try XenStoreRight(wire: text)) }
      if special[strings[0]] != nil {
        guard identity.isPrivileged else { throw .denied }
        special[strings[0]] = rights
      } else {
        let path = try path(strings[0])
        try changing(header, connection, &notices) { access, tree throws(XenStoreFailure) in
          try access.setPermissions(path, rights, in: &tree)
        }
      }
    case .watch: try watch(payload, connection, &after)
    case .unwatch: try unwatch(payload, connection)
    case .resetWatches:
      connection.watches = []
      connection.transactions = [:]
    case .transactionStart: return try startTransaction(header, connection)
    case .transactionEnd: try endTransaction(header, payload, connection, &notices)
    case .introduce, .release, .isDomainIntroduced, .setTarget, .resume, .getDomainPath:
      return try domainRequest(operation, payload, identity, &after)
    case .control, .watchEvent, .error: throw .notSupported
    }
    return Self.acknowledgement
  }

  func identity(of connection: XenStoreConnection) -> XenStoreIdentity {
    XenStoreIdentity(domain: connection.domain, target: targets[connection.domain])
  }

  private func access(
    _ header: XenStoreHeader, _ connection: XenStoreConnection
  ) throws(XenStoreFailure) -> XenStoreAccess {
    var transaction: XenStoreTransaction?
    if header.transaction != 0 {
      transaction = connection.transactions[header.transaction]
      guard let transaction else { throw .notFound }
      guard connection.domain == 0 || transaction.isWithinGuestLimits else { throw .noSpace }
    }
    return XenStoreAccess(identity: identity(of: connection), transaction: transaction)
  }

  private func reading(
    _ header: XenStoreHeader, _ connection: XenStoreConnection,
    _ body: (XenStoreAccess, XenStoreTree) throws(XenStoreFailure) -> [UInt8]
  ) throws(XenStoreFailure) -> [UInt8] {
    let access = try access(header, connection)
    return try body(access, access.transaction?.tree ?? tree)
  }

  private func changing(
    _ header: XenStoreHeader, _ connection: XenStoreConnection, _ notices: inout [XenStoreNotice],
    _ body: (XenStoreAccess, inout XenStoreTree) throws(XenStoreFailure) -> (XenStoreChange, XenStoreNotice)?
  ) throws(XenStoreFailure) {
    let access = try access(header, connection)
    if let transaction = access.transaction {
      if let (change, notice) = try body(access, &transaction.tree) { transaction.record(change, notice) }
    } else if let (_, notice) = try body(access, &tree) {
      notices.append(notice)
    }
  }

  // MARK: transactions

  private func startTransaction(
    _ header: XenStoreHeader, _ connection: XenStoreConnection
  ) throws(XenStoreFailure) -> [UInt8] {
    guard header.transaction == 0 else { throw .busy }
    if connection.domain != 0 {
      let open = connections.values.reduce(0) {
        $0 + ($1.domain == connection.domain ? $1.transactions.count : 0)
      }
      guard open < XenStoreLimits.guestTransactions else { throw .noSpace }
    }
    repeat {
      lastTransaction &+= 1
    } while lastTransaction == 0 || connection.transactions[lastTransaction] != nil
    connection.transactions[lastTransaction] = XenStoreTransaction(tree)
    return Array("\(lastTransaction)\0".utf8)
  }

  private func endTransaction(
    _ header: XenStoreHeader, _ payload: XenStorePayload, _ connection: XenStoreConnection,
    _ notices: inout [XenStoreNotice]
  ) throws(XenStoreFailure) {
    let answer = try payload.single()
    guard answer == "T" || answer == "F" else { throw .invalid }
    guard let transaction = connection.transactions.removeValue(forKey: header.transaction) else {
      throw .notFound
    }
    guard answer == "T" else { return }
    try transaction.commit(to: &tree, by: identity(of: connection))
    notices.append(contentsOf: transaction.notices)
  }

  // MARK: domains

  private func domainRequest(
    _ operation: XenStoreOperation, _ payload: XenStorePayload, _ identity: XenStoreIdentity,
    _ after: inout (() -> Void)?
  ) throws(XenStoreFailure) -> [UInt8] {
    let strings = try payload.strings()
    guard let first = strings.first else { throw .invalid }
    let domain = try parseDomain(first)
    switch operation {
    case .getDomainPath: return Array("\(XenStorePath.home(domain))\0".utf8)
    case .isDomainIntroduced: return Array((introduced.contains(domain) ? "T\0" : "F\0").utf8)
    case .introduce:
      guard strings.count >= 3 else { throw .invalid }
      guard identity.isPrivileged else { throw .denied }
      after = { self.introduce(domain) }
    case .release:
      guard identity.isPrivileged else { throw .denied }
      guard introduced.contains(domain) else { throw .notFound }
      guard domain != 0 else { throw .invalid }
      after = { self.release(domain) }
    case .resume:
      guard identity.isPrivileged else { throw .denied }
      guard introduced.contains(domain) else { throw .notFound }
    case .setTarget:
      guard identity.isPrivileged else { throw .denied }
      guard strings.count >= 2 else { throw .invalid }
      targets[domain] = try parseDomain(strings[1])
    default: throw .notSupported
    }
    return Self.acknowledgement
  }

  private func release(_ domain: UInt16) {
    guard introduced.remove(domain) != nil else { return }
    targets[domain] = nil
    // A later domain of the same number must inherit neither what this one owned (XSA-322) nor what others let it do.
    var mine: [XenStorePath] = []
    var others: [(XenStorePath, [XenStoreRight])] = []
    func without(_ rights: [XenStoreRight]) -> [XenStoreRight] {
      rights.prefix(1) + rights.dropFirst().filter { $0.domain != domain }
    }
    tree.root.visit { names, node in
      guard let path = try? XenStorePath(absolute: "/" + names.joined(separator: "/")) else { return }
      if node.owner == domain {
        if !mine.contains(where: { path.isAtOrUnder($0) }) { mine.append(path) }
      } else if without(node.permissions) != node.permissions {
        others.append((path, without(node.permissions)))
      }
    }
    for path in mine { fire(XenStoreNotice(path: path, removed: tree.remove(path))) }
    for (path, rights) in others where tree.node(path) != nil { tree.setPermissions(path, rights) }
    special = special.mapValues(without)
    fire(special: "@releaseDomain")
  }
}
