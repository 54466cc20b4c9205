// SPDX-License-Identifier: Apache-2.0
//
// Watches: who is told that a node changed, and under which name (docs/misc/xenstore.txt, "Watches").

extension XenStoreServer {
  // MARK: registering

  func watch(
    _ payload: XenStorePayload, _ connection: XenStoreConnection, _ after: inout (() -> Void)?
  ) throws(XenStoreFailure) {
    let watch = try parseWatch(payload, connection)
    guard !connection.watches.contains(where: watch.isSame) else { throw .exists }
    if connection.domain != 0 {
      let held = connections.values.reduce(0) { $0 + ($1.domain == connection.domain ? $1.watches.count : 0) }
      // What xenstored says up to Xen 4.20.
      guard held < XenStoreLimits.guestWatches else { throw .tooBig }
    }
    connection.watches.append(watch)
    // "Fires once up front", after the reply: who registers need not look first.
    after = { self.deliver(watch.given, watch.token, to: connection) }
  }

  func unwatch(_ payload: XenStorePayload, _ connection: XenStoreConnection) throws(XenStoreFailure) {
    let watch = try parseWatch(payload, connection)
    guard let index = connection.watches.firstIndex(where: watch.isSame) else { throw .notFound }
    connection.watches.remove(at: index)
  }

  private func parseWatch(
    _ payload: XenStorePayload, _ connection: XenStoreConnection
  ) throws(XenStoreFailure) -> XenStoreWatch {
    let strings = try payload.strings()
    guard strings.count >= 2 else { throw .invalid }
    let (given, token) = (strings[0], strings[1])
    if given.utf8.first == UInt8(ascii: "@") {
      guard given.utf8.count <= XenStoreLimits.relativePathBytes else { throw .invalid }
      return XenStoreWatch(path: nil, given: given, token: token, isRelative: false)
    }
    let path = try XenStorePath(given, relativeTo: connection.domain)
    return XenStoreWatch(
      path: path, given: given, token: token, isRelative: given.utf8.first != UInt8(ascii: "/"))
  }

  // MARK: firing

  func fire(_ notice: XenStoreNotice) {
    for connection in connections.values {
      let identity = identity(of: connection)
      for watch in connection.watches {
        guard let watched = watch.path else { continue }
        let changed: XenStorePath
        if notice.path.isAtOrUnder(watched) {
          changed = notice.path
        } else if let removed = notice.removed, watched.isAtOrUnder(notice.path),
          removed.descendant(watched.components[notice.path.components.count...]) != nil
        {
          // What was watched went with something above it.
          changed = watched
        } else {
          continue
        }
        guard mayLearn(identity, of: changed, notice) else { continue }
        deliver(report(changed, watch, connection.domain), watch.token, to: connection)
      }
    }
  }

  func fire(special name: String) {
    guard let rights = special[name] else { return }
    for connection in connections.values where identity(of: connection).may(read: true, rights) {
      for watch in connection.watches where watch.given == name { deliver(name, watch.token, to: connection) }
    }
  }

  /// Whether somebody may learn that a node changed: who may read it or the node above it, or might read it before, so
  /// that who loses that right hears of the loss.
  private func mayLearn(
    _ identity: XenStoreIdentity, of changed: XenStorePath, _ notice: XenStoreNotice
  ) -> Bool {
    func may(_ node: XenStoreNode?) -> Bool { node.map { identity.may(read: true, $0.permissions) } ?? false }
    if changed == notice.path, let before = notice.before, identity.may(read: true, before) { return true }
    guard let removed = notice.removed else {
      guard let node = tree.node(changed) else { return false }
      return may(node) || may(changed.parent.flatMap { tree.node($0) })
    }
    let inside = changed.components[notice.path.components.count...]
    if may(removed.descendant(inside)) { return true }
    return may(
      inside.isEmpty ? changed.parent.flatMap { tree.node($0) } : removed.descendant(inside.dropLast()))
  }

  /// The path in the form that the watch was registered in.
  private func report(_ path: XenStorePath, _ watch: XenStoreWatch, _ domain: UInt16) -> String {
    guard watch.isRelative else { return path.text }
    return String(path.text.dropFirst(XenStorePath.home(domain).count + 1))
  }

  private func deliver(_ path: String, _ token: String, to connection: XenStoreConnection) {
    let payload = Array("\(path)\0\(token)\0".utf8)
    // A long path with a long token: no client could take it for a message of this protocol.
    guard payload.count <= XenStoreLimits.payloadBytes else { return }
    connection.send(XenStoreOperation.watchEvent.rawValue, request: 0, transaction: 0, payload)
  }
}
