// SPDX-License-Identifier: Apache-2.0
//
// Who may do what: the tree's operations with permissions and quotas checked, on the live tree or in a transaction.
// The rules are xenstored's (docs/misc/xenstore.txt, "Permissions").

/// On whose behalf a request is carried out.
struct XenStoreIdentity {
  let domain: UInt16
  /// The domain whose rights it has as well (SET_TARGET), for a device model of its own.
  var target: UInt16?
  /// The control domain may do everything and has no quotas.
  var isPrivileged: Bool { domain == 0 }

  func may(read: Bool = false, write: Bool = false, _ rights: [XenStoreRight]) -> Bool {
    if isPrivileged { return true }
    guard let first = rights.first else { return false }
    if owns(rights) { return true }
    let mine = rights.dropFirst().first { $0.domain == domain || $0.domain == target } ?? first
    return (!read || mine.read) && (!write || mine.write)
  }

  func owns(_ rights: [XenStoreRight]) -> Bool {
    guard let owner = rights.first?.domain else { return false }
    return isPrivileged || owner == domain || owner == target
  }
}

/// The operations of one identity on one state of the tree.
///
/// The caller puts `tree` back where it came from; `transaction`, if any, is told what was depended on.
struct XenStoreAccess {
  let identity: XenStoreIdentity
  let transaction: XenStoreTransaction?

  func readable(_ path: XenStorePath, in tree: borrowing XenStoreTree) throws(XenStoreFailure) -> XenStoreNode
  {
    transaction?.touch(path)
    guard let node = tree.node(path) else {
      throw identity.may(read: true, tree.nearest(path).node.permissions) ? .notFound : .denied
    }
    guard identity.may(read: true, node.permissions) else { throw .denied }
    return node
  }

  func write(
    _ path: XenStorePath, _ value: [UInt8], in tree: inout XenStoreTree
  ) throws(XenStoreFailure) -> (XenStoreChange, XenStoreNotice) {
    if let node = tree.node(path) {
      transaction?.touch(path)
      guard identity.may(write: true, node.permissions) else { throw .denied }
      try checkSize(node, valueBytes: value.count)
      tree.setValue(path, value)
      return (.setValue(path, value), XenStoreNotice(path: path, removed: nil))
    }
    return try create(path, value, in: &tree)
  }

  /// - Returns: nil when the node is there already.
  func makeDirectory(
    _ path: XenStorePath, in tree: inout XenStoreTree
  ) throws(XenStoreFailure) -> (XenStoreChange, XenStoreNotice)? {
    if let node = tree.node(path) {
      transaction?.touch(path)
      guard identity.may(write: true, node.permissions) else { throw .denied }
      return nil
    }
    return try create(path, [], in: &tree)
  }

  /// - Returns: nil when there was nothing to remove, which is no error while the parent exists.
  func remove(
    _ path: XenStorePath, in tree: inout XenStoreTree
  ) throws(XenStoreFailure) -> (XenStoreChange, XenStoreNotice)? {
    guard let parent = path.parent else { throw .invalid }
    transaction?.touch(path)
    guard let node = tree.node(path) else {
      let (nearest, depth) = tree.nearest(path)
      guard identity.may(write: true, nearest.permissions) else { throw .denied }
      if depth == path.components.count - 1 { return nil }
      throw .notFound
    }
    guard identity.may(write: true, node.permissions) else { throw .denied }
    if let transaction {
      transaction.touch(parent)
      node.visit { names, _ in
        if let inner = try? XenStorePath(absolute: ([path.text] + names).joined(separator: "/")) {
          transaction.touch(inner)
        }
      }
    }
    let removed = tree.remove(path)
    return (.remove(path), XenStoreNotice(path: path, removed: removed))
  }

  func setPermissions(
    _ path: XenStorePath, _ permissions: [XenStoreRight], in tree: inout XenStoreTree
  ) throws(XenStoreFailure) -> (XenStoreChange, XenStoreNotice) {
    guard let newOwner = permissions.first?.domain else { throw .invalid }
    transaction?.touch(path)
    guard let node = tree.node(path) else {
      throw identity.may(write: true, tree.nearest(path).node.permissions) ? .notFound : .denied
    }
    guard identity.owns(node.permissions) else { throw .denied }
    if !identity.isPrivileged {
      guard permissions.count <= XenStoreLimits.guestPermissions else { throw .noSpace }
      guard newOwner == node.owner else { throw .notPermitted }
    }
    let before = node.permissions
    tree.setPermissions(path, permissions)
    return (
      .setPermissions(path, permissions), XenStoreNotice(path: path, removed: nil, before: before)
    )
  }

  private func create(
    _ path: XenStorePath, _ value: [UInt8], in tree: inout XenStoreTree
  ) throws(XenStoreFailure) -> (XenStoreChange, XenStoreNotice) {
    let (parent, depth) = tree.nearest(path)
    transaction?.touch(path)
    transaction?.touch(path.prefix(depth))
    guard identity.may(write: true, parent.permissions) else { throw .denied }
    // A node is created with its parent's permissions, but a guest owns what it creates.
    var permissions = parent.permissions
    if !identity.isPrivileged { permissions[0].domain = identity.domain }
    let missing = path.components.count - depth
    if !identity.isPrivileged {
      let owner = permissions[0].domain
      guard (tree.owned[owner] ?? 0) + missing <= XenStoreLimits.guestNodes else { throw .noSpace }
      guard value.count <= XenStoreLimits.guestNodeBytes else { throw .noSpace }
      try checkSize(parent, newChild: path.components[depth])
    }
    tree.create(path, value: value, permissions: permissions)
    return (.create(path, value, permissions), XenStoreNotice(path: path, removed: nil))
  }

  /// A guest's nodes are bounded, the names of their children included.
  private func checkSize(
    _ node: XenStoreNode, valueBytes: Int? = nil, newChild: String? = nil
  ) throws(XenStoreFailure) {
    guard !identity.isPrivileged else { return }
    let names =
      node.children.keys.reduce(0) { $0 + $1.utf8.count + 1 } + (newChild.map { $0.utf8.count + 1 } ?? 0)
    guard (valueBytes ?? node.value.count) + names <= XenStoreLimits.guestNodeBytes else { throw .noSpace }
  }
}
