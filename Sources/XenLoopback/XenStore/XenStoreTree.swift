// SPDX-License-Identifier: Apache-2.0
//
// The tree. A transaction keeps the root as it was when it began; nodes are copied along the way to a change only
// when somebody else still holds them, so a snapshot costs one pointer.

/// One node; shared by every snapshot that holds it, and then never changed.
final class XenStoreNode {
  var value: [UInt8]
  /// The first names the owner and what everyone else may do.
  var permissions: [XenStoreRight]
  var children: [String: XenStoreNode]
  /// A number that no other state of any node ever has: changes with value, permissions and names of children.
  var generation: UInt64

  init(
    value: [UInt8], permissions: [XenStoreRight], children: [String: XenStoreNode] = [:], generation: UInt64
  ) {
    self.value = value
    self.permissions = permissions
    self.children = children
    self.generation = generation
  }

  var owner: UInt16 { permissions.first?.domain ?? 0 }

  /// The node at the end of names, this one for none.
  func descendant(_ names: ArraySlice<String>) -> XenStoreNode? {
    var node = self
    for name in names {
      guard let next = node.children[name] else { return nil }
      node = next
    }
    return node
  }

  /// Calls `body` with this node and everything under it.
  func visit(_ path: [String] = [], _ body: (_ path: [String], _ node: XenStoreNode) -> Void) {
    body(path, self)
    for (name, child) in children { child.visit(path + [name], body) }
  }
}

/// One entry of a node's permissions, on the wire "b5": a letter and a domain.
struct XenStoreRight: Equatable {
  var domain: UInt16
  var read: Bool
  var write: Bool

  init(domain: UInt16, read: Bool, write: Bool) {
    self.domain = domain
    self.read = read
    self.write = write
  }

  init(wire text: String) throws(XenStoreFailure) {
    let domain = try parseDomain(String(text.dropFirst()))
    switch text.utf8.first {
    case UInt8(ascii: "n"): self.init(domain: domain, read: false, write: false)
    case UInt8(ascii: "r"): self.init(domain: domain, read: true, write: false)
    case UInt8(ascii: "w"): self.init(domain: domain, read: false, write: true)
    case UInt8(ascii: "b"): self.init(domain: domain, read: true, write: true)
    default: throw .invalid
    }
  }

  var wire: String {
    let letter =
      switch (read, write) {
      case (true, true): "b"
      case (true, false): "r"
      case (false, true): "w"
      case (false, false): "n"
      }
    return letter + String(domain)
  }
}

/// A state of the whole tree, with how many nodes each domain owns in it.
struct XenStoreTree {
  private(set) var root: XenStoreNode
  private(set) var owned: [UInt16: Int] = [:]
  /// Shared by all snapshots, so that no two states of a node have the same number.
  let generations: Generations

  final class Generations {
    private var last: UInt64 = 0
    func next() -> UInt64 {
      last += 1
      return last
    }
  }

  /// An empty tree that belongs to the control domain.
  init() {
    generations = Generations()
    root = XenStoreNode(
      value: [], permissions: [XenStoreRight(domain: 0, read: false, write: false)],
      generation: generations.next())
    owned = [0: 1]
  }

  func node(_ path: XenStorePath) -> XenStoreNode? { root.descendant(path.components[...]) }

  /// The longest part of a path that exists, the root at least.
  func nearest(_ path: XenStorePath) -> (node: XenStoreNode, depth: Int) {
    var node = root
    var depth = 0
    for name in path.components {
      guard let next = node.children[name] else { break }
      node = next
      depth += 1
    }
    return (node, depth)
  }

  mutating func setValue(_ path: XenStorePath, _ value: [UInt8]) {
    let generation = generations.next()
    change(path.components[...]) { node in
      node.value = value
      node.generation = generation
    }
  }

  mutating func setPermissions(_ path: XenStorePath, _ permissions: [XenStoreRight]) {
    guard let node = node(path), let newOwner = permissions.first?.domain else { return }
    owned[node.owner, default: 0] -= 1
    owned[newOwner, default: 0] += 1
    let generation = generations.next()
    change(path.components[...]) { node in
      node.permissions = permissions
      node.generation = generation
    }
  }

  /// Creates a node and its missing parents, all with the same permissions.
  mutating func create(_ path: XenStorePath, value: [UInt8], permissions: [XenStoreRight]) {
    let (_, depth) = nearest(path)
    let missing = path.components[depth...]
    guard let top = missing.first, let owner = permissions.first?.domain else { return }
    var subtree = XenStoreNode(value: value, permissions: permissions, generation: generations.next())
    for name in missing.dropFirst().reversed() {
      subtree = XenStoreNode(
        value: [], permissions: permissions, children: [name: subtree], generation: generations.next())
    }
    owned[owner, default: 0] += missing.count
    let generation = generations.next()
    change(path.components[..<depth]) { node in
      node.children[top] = subtree
      node.generation = generation
    }
  }

  /// Takes a node and everything under it out of the tree.
  ///
  /// - Returns: what was taken out; nil when there was nothing.
  @discardableResult
  mutating func remove(_ path: XenStorePath) -> XenStoreNode? {
    guard let name = path.components.last, let removed = node(path) else { return nil }
    removed.visit { _, node in owned[node.owner, default: 0] -= 1 }
    let generation = generations.next()
    change(path.components.dropLast()) { node in
      node.children[name] = nil
      node.generation = generation
    }
    return removed
  }

  private mutating func change(_ names: ArraySlice<String>, _ body: (XenStoreNode) -> Void) {
    Self.change(&root, names, body)
  }

  private static func change(
    _ node: inout XenStoreNode, _ names: ArraySlice<String>, _ body: (XenStoreNode) -> Void
  ) {
    if !isKnownUniquelyReferenced(&node) {
      node = XenStoreNode(
        value: node.value, permissions: node.permissions, children: node.children, generation: node.generation
      )
    }
    guard let name = names.first else { return body(node) }
    // Out of the dictionary while it is changed, so that it has one reference and is not copied needlessly.
    guard var child = node.children.removeValue(forKey: name) else { return }
    change(&child, names.dropFirst(), body)
    node.children[name] = child
  }
}
