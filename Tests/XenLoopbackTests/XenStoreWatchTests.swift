// SPDX-License-Identifier: Apache-2.0
//
// Watches as xenstored has them: who hears of a change, and what the same watch is.

import Platform
import SystemPackage
import Testing
import Xen

@testable import XenLoopback

@Suite struct XenStoreWatchTests {
  private func raw(_ machine: Machine, _ domain: UInt16) throws -> RawXenStore {
    try RawXenStore(LoopbackPaths.store(machine.host.directory, domain))
  }

  /// The events that a client has been sent until now, as "path token", that of its first registration left out.
  private func events(_ client: RawXenStore) -> [String] {
    var mark: [UInt8] = []
    XenStoreHeader(
      type: XenStoreOperation.getDomainPath.rawValue, request: 99, transaction: 0, byteCount: 2
    ).append(to: &mark)
    client.send(mark + Array("1\0".utf8))
    var events: [String] = []
    while let message = client.next(), message.request != 99 {
      events.append(message.text.split(separator: "\0").joined(separator: " "))
    }
    return events
  }

  private let path = "/local/domain/1/data/shown"

  /// Makes a node of domain 1's that domain 2 may read and watches, its first event read.
  private func show(_ path: String, of owner: RawXenStore, to reader: RawXenStore) {
    #expect(owner.call(.write, "\(path)\u{0}v")?.failure == nil)
    #expect(owner.call(.setPermissions, "\(path)\0n1\0r2\0")?.failure == nil)
    #expect(reader.call(.watch, "\(path)\0t\0")?.failure == nil)
    #expect(events(reader) == ["\(path) t"])
  }

  @Test func whoLosesTheRightToReadHearsOfIt() throws {
    let machine = try Machine()
    let (owner, reader) = (try raw(machine, 1), try raw(machine, 2))
    show(path, of: owner, to: reader)
    #expect(owner.call(.setPermissions, "\(path)\0n1\0")?.failure == nil)
    #expect(events(reader) == ["\(path) t"])
    // And of nothing after that.
    #expect(owner.call(.write, "\(path)\u{0}w")?.failure == nil)
    #expect(events(reader) == [])
  }

  @Test func whoLosesTheRightToReadInATransactionHearsOfIt() throws {
    let machine = try Machine()
    let (owner, reader) = (try raw(machine, 1), try raw(machine, 2))
    show(path, of: owner, to: reader)
    let transaction = UInt32(owner.call(.transactionStart, "\0")?.text.dropLast() ?? "") ?? 0
    #expect(owner.call(.write, "\(path)\u{0}w", transaction: transaction)?.failure == nil)
    #expect(owner.call(.setPermissions, "\(path)\0n1\0", transaction: transaction)?.failure == nil)
    #expect(events(reader) == [])
    #expect(owner.call(.transactionEnd, "T\0", transaction: transaction)?.failure == nil)
    #expect(events(reader) == ["\(path) t"])
  }

  @Test func whoMayReadADirectoryHearsOfTheNodesInIt() throws {
    let machine = try Machine()
    let (owner, reader) = (try raw(machine, 1), try raw(machine, 2))
    let directory = "/local/domain/1/data"
    #expect(owner.call(.write, "\(directory)/inner/hidden\u{0}v")?.failure == nil)
    #expect(owner.call(.setPermissions, "\(directory)\0n1\0r2\0")?.failure == nil)
    #expect(reader.call(.watch, "\(directory)\0t\0")?.failure == nil)
    #expect(events(reader) == ["\(directory) t"])
    #expect(owner.call(.write, "\(directory)/inner\u{0}v")?.failure == nil)
    #expect(events(reader) == ["\(directory)/inner t"])
    #expect(owner.call(.write, "\(directory)/inner/hidden\u{0}w")?.failure == nil)
    #expect(events(reader) == [])
    #expect(owner.call(.remove, "\(directory)/inner\0")?.failure == nil)
    #expect(events(reader) == ["\(directory)/inner t"])
  }

  @Test func aWatchIsTheSameWhicheverWayItsPathIsGiven() throws {
    let machine = try Machine()
    let client = try raw(machine, 1)
    #expect(client.call(.watch, "data\0t\0")?.failure == nil)
    #expect(client.call(.watch, "/local/domain/1/data\0t\0")?.failure == "EEXIST")
    #expect(client.call(.watch, "/local/domain/1/data\0u\0")?.failure == nil)
    #expect(client.call(.unwatch, "/local/domain/1/data\0t\0")?.failure == nil)
    #expect(client.call(.unwatch, "data\0t\0")?.failure == "ENOENT")
    #expect(client.call(.unwatch, "data\0u\0")?.failure == nil)
  }

  @Test func anEventThatIsNoMessageOfTheProtocolIsNotSent() throws {
    let machine = try Machine()
    let (client, writer) = (try raw(machine, 1), try raw(machine, 1))
    let token = String(repeating: "t", count: 4080)
    #expect(client.call(.watch, "data\0\(token)\0")?.failure == nil)
    #expect(events(client) == ["data \(token)"])
    #expect(writer.call(.write, "data/a\u{0}")?.failure == nil)
    #expect(writer.call(.write, "data/a-long-name\u{0}")?.failure == nil)
    #expect(events(client) == ["data/a \(token)"])
  }

  @Test func oneWatchTooManyIsTheQuotaAndNotASystemError() throws {
    let machine = try Machine()
    let store = try machine.join(1).openXenStore()
    for index in 0..<128 { try store.watch("data", token: "\(index)") }
    #expect { try store.watch("data", token: "one-more") } throws: { error in
      guard let error = error as? XenError else { return false }
      return error.code == .limitReached && error.errno == .argListTooLong && error.message.contains("quota")
    }
    // What is too long for a request has the same errno, and is no quota.
    let long = String(repeating: "t", count: 4096)
    #expect { try store.watch("data", token: long) } throws: { ($0 as? XenError)?.code != .limitReached }
  }
}
