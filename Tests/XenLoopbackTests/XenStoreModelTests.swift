// SPDX-License-Identifier: Apache-2.0
//
// xenstore under load: random operations against a model, and several processes at once through libxenstore.

import TestSupport
import Glibc
import Platform
import Testing
import Xen
@testable import XenConformance

@testable import XenLoopback

@Suite struct XenStoreModelTests {
  /// The tree as a dictionary of paths, which is all that the control domain can tell apart.
  private struct Model {
    var nodes: [String: String] = ["/m": ""]

    mutating func write(_ path: String, _ value: String) {
      var parent = path[...]
      while let slash = parent.lastIndex(of: "/"), slash != parent.startIndex {
        parent = parent[..<slash]
        if nodes[String(parent)] == nil { nodes[String(parent)] = "" }
      }
      nodes[path] = value
    }

    mutating func remove(_ path: String) {
      nodes = nodes.filter { $0.key != path && !$0.key.hasPrefix(path + "/") }
    }

    func children(_ path: String) -> Set<String>? {
      guard nodes[path] != nil else { return nil }
      return Set(
        nodes.keys.filter { $0.hasPrefix(path + "/") }.compactMap {
          $0.dropFirst(path.count + 1).split(separator: "/").first.map(String.init)
        })
    }
  }

  @Test(arguments: [1, 2, 3] as [UInt64])
  func randomOperationsDoWhatAModelDoes(_ seed: UInt64) throws {
    let machine = try Machine()
    let store = machine.toolstack.store
    var generator = SeededGenerator(seed: seed)
    var model = Model()
    try store.write("/m", "")
    func path() -> String {
      (0..<Int.random(in: 1...4, using: &generator)).reduce("/m") { text, _ in
        text + "/" + (["a", "b", "c", "d"].randomElement(using: &generator) ?? "a")
      }
    }
    func step(_ operations: any XenStoreOperations, _ model: inout Model) throws(XenError) {
      let path = path()
      switch Int.random(in: 0..<10, using: &generator) {
      case 0..<4:
        let value = String(UInt32.random(in: 0...99_999, using: &generator))
        try operations.write(path, value)
        model.write(path, value)
      case 4:
        try operations.makeDirectory(path)
        if model.nodes[path] == nil { model.write(path, "") }
      case 5:
        try operations.remove(path)
        model.remove(path)
      case 6..<8:
        let (seen, expected) = (try operations.read(path), model.nodes[path])
        #expect(seen == expected, "\(path)")
      default:
        let (seen, expected) = (try operations.list(path).map { Set($0) }, model.children(path))
        #expect(seen == expected, "\(path)")
      }
    }
    for _ in 0..<400 {
      if Int.random(in: 0..<5, using: &generator) == 0 {
        // A transaction that is committed, or thrown away, as a whole.
        var inside = model
        let keep = Bool.random(using: &generator)
        do {
          try store.transaction { (operations) throws(XenError) in
            for _ in 0..<5 { try step(operations, &inside) }
            if !keep { throw XenError(.invalid, "thrown away") }
          }
        } catch {
          #expect(error.code == .invalid)
        }
        if keep { model = inside }
      } else {
        try step(store, &model)
      }
    }
    for (path, value) in model.nodes { #expect(try store.read(path) == value, "\(path)") }
  }

  @Test func countingInTransactionsFromSeveralProcessesLosesNothing() throws {
    let machine = try Machine()
    let path = "/local/domain/1/data/counter"
    try machine.toolstack.store.write(path, "0")
    let parties = try (0..<3).map { _ in try Helper.party(machine, 1) }
    let threads = try parties.map { party in
      nonisolated(unsafe) let mine = party
      return try DedicatedThread(name: "counter") {
        guard let store = try? mine.openStore() else { return }
        try? mine.order("increment", "\(store)", path, "100")
      }
    }
    for thread in threads { thread.join() }
    #expect(try machine.toolstack.store.read(path) == "300")
  }

  @Test func everyWatcherInEveryProcessSeesTheLastOfManyChanges() throws {
    let machine = try Machine()
    let path = "/local/domain/1/data/busy"
    let parties = try (0..<3).map { _ in try Helper.party(machine, 1) }
    let stores = try parties.map { try $0.openStore() }
    for (party, store) in zip(parties, stores) { try party.watch(store, path, "w") }
    for number in 0..<500 { try machine.toolstack.store.write(path, "\(number)") }
    for (party, store) in zip(parties, stores) {
      var events = 0
      while events < 501, try party.event(store) != nil { events += 1 }
      #expect(events == 501)
      #expect(try party.read(store, path) == "499")
    }
  }
}
