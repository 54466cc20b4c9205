// SPDX-License-Identifier: Apache-2.0
//
// xenstore as a dictionary: transactions that really conflict, watches that fire at once, and a hook through which
// a test plays the other end.

import Platform
import SystemPackage
import Xen

/// The tree that all connections share.
final class FakeTree: Sendable {
  struct Watch: Sendable {
    var path: String
    var asGiven: String
    var token: String
    var connection: FakeXenStore
  }
  struct State: Sendable {
    var nodes: [String: [UInt8]] = [:]
    var generation = 0
    var watches: [Watch] = []
    /// Transactions that are made to conflict.
    var conflicts = 0
    var fault: XenError?
    var hook: (@Sendable (FakeTree, String) -> Void)?
    /// Every write of a state node, in order.
    var states: [String] = []
  }
  private let guarded = Guarded(State())
  func with<Value: Sendable>(_ body: (inout State) -> Value) -> Value { guarded.with(body) }

  subscript(path: String) -> String? {
    get { with { $0.nodes[path].map { String(decoding: $0, as: UTF8.self) } } }
    set { commit([path: newValue.map { Array($0.utf8) }]) }
  }
  func remove(_ path: String) {
    let under = with { $0.nodes.keys.filter { $0 == path || $0.hasPrefix(path + "/") } }
    commit(
      Dictionary(
        uniqueKeysWithValues: (under + [path]).map { ($0, nil) }, uniquingKeysWith: { one, _ in one }))
  }

  /// Makes changes and tells the watchers and the hook.
  func commit(_ changes: [String: [UInt8]?]) {
    let hook = with { state -> (@Sendable (FakeTree, String) -> Void)? in
      state.generation += 1
      for (path, value) in changes {
        state.nodes[path] = value
        if path.hasSuffix("/state"), let value {
          state.states.append(path + "=" + String(decoding: value, as: UTF8.self))
        }
        for watch in state.watches
        where path == watch.path || path.hasPrefix(watch.path + "/") || watch.path.hasPrefix(path + "/") {
          let rest = path.hasPrefix(watch.path) ? String(path.dropFirst(watch.path.count)) : ""
          watch.connection.deliver(XenStoreWatchEvent(path: watch.asGiven + rest, token: watch.token))
        }
      }
      return state.hook
    }
    for path in changes.keys.sorted() { hook?(self, path) }
  }
}

extension Dictionary {
  fileprivate init(uniqueKeysWithValues pairs: [(Key, Value)], uniquingKeysWith: (Value, Value) -> Value) {
    self.init(pairs, uniquingKeysWith: uniquingKeysWith)
  }
}

/// One domain's connection.
final class FakeXenStore: XenStore {
  let tree: FakeTree
  let home: String
  private let events = Guarded<[XenStoreWatchEvent]>([])
  private let arrived: EventCounter

  init(_ tree: FakeTree, domain: UInt16) throws(Errno) {
    self.tree = tree
    home = "/local/domain/\(domain)/"
    arrived = try EventCounter()
  }

  var fileDescriptor: Int32 { arrived.fileDescriptor }
  fileprivate func deliver(_ event: XenStoreWatchEvent) {
    events.with { $0.append(event) }
    arrived.signal()
  }
  func absolute(_ path: String) -> String { path.hasPrefix("/") ? path : home + path }
  private func check() throws(XenError) {
    if let fault = tree.with({ $0.fault }) { throw fault }
  }

  func readBytes(_ path: String) throws(XenError) -> [UInt8]? {
    try check()
    return tree.with { state in
      state.nodes[absolute(path)]
        ?? (state.nodes.keys.contains { $0.hasPrefix(absolute(path) + "/") } ? [] : nil)
    }
  }
  func write(_ path: String, _ value: [UInt8]) throws(XenError) {
    try check()
    tree.commit([absolute(path): value])
  }
  func list(_ path: String) throws(XenError) -> [String]? {
    try check()
    return FakeXenStore.children(absolute(path), tree.with { $0.nodes })
  }
  fileprivate static func children(_ path: String, _ nodes: [String: [UInt8]]) -> [String]? {
    var names: Set<String> = []
    for key in nodes.keys where key.hasPrefix(path + "/") {
      names.insert(String(key.dropFirst(path.count + 1).prefix { $0 != "/" }))
    }
    return names.isEmpty && nodes[path] == nil ? nil : names.sorted()
  }
  func makeDirectory(_ path: String) throws(XenError) {
    if try readBytes(path) == nil { try write(path, []) }
  }
  func remove(_ path: String) throws(XenError) {
    try check()
    tree.remove(absolute(path))
  }
  func setPermissions(_ path: String, _ permissions: [XenStorePermission]) throws(XenError) {}
  func permissions(_ path: String) throws(XenError) -> [XenStorePermission]? { nil }

  func transaction<Value>(
    _ body: (any XenStoreOperations) throws(XenError) -> Value
  ) throws(XenError) -> Value {
    for _ in 0..<20 {
      try check()
      let (nodes, generation) = tree.with { ($0.nodes, $0.generation) }
      let transaction = FakeTransaction(self, nodes)
      let value = try body(transaction)
      let conflict = tree.with { state in
        if state.conflicts > 0 {
          state.conflicts -= 1
          return true
        }
        return state.generation != generation
      }
      if conflict { continue }
      tree.commit(transaction.changes)
      return value
    }
    throw XenError(.conflict, "the transaction never went through")
  }

  func watch(_ path: String, token: String) throws(XenError) {
    try check()
    let watch = FakeTree.Watch(path: absolute(path), asGiven: path, token: token, connection: self)
    tree.with { $0.watches.append(watch) }
    deliver(XenStoreWatchEvent(path: path, token: token))
  }
  func unwatch(_ path: String, token: String) throws(XenError) {
    tree.with { state in
      state.watches.removeAll { $0.asGiven == path && $0.token == token && $0.connection === self }
    }
  }
  func nextWatchEvent() throws(XenError) -> XenStoreWatchEvent? {
    try check()
    arrived.drain()
    return events.with { waiting in
      if waiting.count > 1 { arrived.signal() }
      return waiting.isEmpty ? nil : waiting.removeFirst()
    }
  }
}

/// A transaction's own copy of the tree.
private final class FakeTransaction: XenStoreOperations {
  let store: FakeXenStore
  var nodes: [String: [UInt8]]
  var changes: [String: [UInt8]?] = [:]
  init(_ store: FakeXenStore, _ nodes: [String: [UInt8]]) {
    self.store = store
    self.nodes = nodes
  }
  func readBytes(_ path: String) throws(XenError) -> [UInt8]? { nodes[store.absolute(path)] }
  func write(_ path: String, _ value: [UInt8]) throws(XenError) {
    nodes[store.absolute(path)] = value
    changes[store.absolute(path)] = .some(value)
  }
  func list(_ path: String) throws(XenError) -> [String]? {
    FakeXenStore.children(store.absolute(path), nodes)
  }
  func makeDirectory(_ path: String) throws(XenError) {
    if nodes[store.absolute(path)] == nil { try write(path, []) }
  }
  func remove(_ path: String) throws(XenError) {
    let full = store.absolute(path)
    for key in nodes.keys where key == full || key.hasPrefix(full + "/") {
      nodes[key] = nil
      changes[key] = .some(nil)
    }
  }
  func setPermissions(_ path: String, _ permissions: [XenStorePermission]) throws(XenError) {}
  func permissions(_ path: String) throws(XenError) -> [XenStorePermission]? { nil }
}
