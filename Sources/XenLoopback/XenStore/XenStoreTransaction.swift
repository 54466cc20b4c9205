// SPDX-License-Identifier: Apache-2.0
//
// A transaction (docs/misc/xenstore.txt, "Transactions"): a snapshot to work on, and what must not have changed
// meanwhile for the work to count. Per node, as xenstored does it: two transactions that create children of the
// same node conflict, two that touch different nodes do not.

/// A change, to be made again when other nodes have changed since the transaction began.
enum XenStoreChange {
  case setValue(XenStorePath, [UInt8])
  case create(XenStorePath, [UInt8], [XenStoreRight])
  case remove(XenStorePath)
  case setPermissions(XenStorePath, [XenStoreRight])

  func apply(to tree: inout XenStoreTree) {
    switch self {
    case .setValue(let path, let value): tree.setValue(path, value)
    case .create(let path, let value, let permissions):
      tree.create(path, value: value, permissions: permissions)
    case .remove(let path): tree.remove(path)
    case .setPermissions(let path, let permissions): tree.setPermissions(path, permissions)
    }
  }
}

/// What watchers are to be told about once a change counts.
struct XenStoreNotice {
  let path: XenStorePath
  /// What was there, when the change was its removal: watches inside it fire as well.
  let removed: XenStoreNode?
  /// The permissions that it had before, if they may have changed.
  var before: [XenStoreRight]?
}

/// An open transaction of one connection.
final class XenStoreTransaction {
  let base: XenStoreTree
  var tree: XenStoreTree
  private(set) var changes: [XenStoreChange] = []
  private(set) var notices: [XenStoreNotice] = []
  // The generation that a node had when the transaction began, 0 for a node that did not exist.
  private var seen: [XenStorePath: UInt64] = [:]

  init(_ tree: XenStoreTree) {
    base = tree
    self.tree = tree
  }

  /// Whether a guest may go on with it.
  var isWithinGuestLimits: Bool {
    seen.count < XenStoreLimits.guestTransactionNodes
      && changes.count < XenStoreLimits.guestTransactionChanges
  }

  /// Remembers that the outcome depends on a node.
  func touch(_ path: XenStorePath) {
    if seen[path] == nil { seen[path] = base.node(path)?.generation ?? 0 }
  }

  func record(_ change: XenStoreChange, _ notice: XenStoreNotice) {
    changes.append(change)
    var notice = notice
    // Others see the transaction as one change.
    notice.before = base.node(notice.path)?.permissions
    // One event for a path, however often it changed; a removal is kept because of what was inside.
    if notice.removed != nil || !notices.contains(where: { $0.path == notice.path && $0.removed == nil }) {
      notices.append(notice)
    }
  }

  /// Makes the transaction's changes part of the live tree.
  ///
  /// - Throws: `.again` when a node it depends on has changed, `.noSpace` when a guest would own too many nodes by what
  ///   a guest does; the control domain may give it as many as it likes.
  func commit(to live: inout XenStoreTree, by identity: XenStoreIdentity) throws(XenStoreFailure) {
    for (path, generation) in seen where (live.node(path)?.generation ?? 0) != generation { throw .again }
    guard !changes.isEmpty else { return }
    for (domain, count) in tree.owned where domain != 0 && !identity.isPrivileged {
      let growth = count - (base.owned[domain] ?? 0)
      if growth > 0, (live.owned[domain] ?? 0) + growth > XenStoreLimits.guestNodes { throw .noSpace }
    }
    if live.root === base.root {
      live = tree
    } else {
      for change in changes { change.apply(to: &live) }
    }
  }
}
