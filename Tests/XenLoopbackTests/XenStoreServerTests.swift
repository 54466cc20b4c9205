// SPDX-License-Identifier: Apache-2.0
//
// The xenstore server against docs/misc/xenstore.txt: requests, errors, limits and what rubbish does.

import TestSupport
import Glibc
import Platform
import Testing
import Xen

@testable import XenLoopback

@Suite struct XenStoreServerTests {
  private func raw(_ machine: Machine, _ domain: UInt16) throws -> RawXenStore {
    try RawXenStore(LoopbackPaths.store(machine.host.directory, domain))
  }

  @Test func requestNumberAndTransactionComeBackWithTheReply() throws {
    let machine = try Machine()
    let client = try raw(machine, 0)
    #expect(
      client.call(.write, "/a\u{0}v")
        == .init(type: 11, request: 77, transaction: 0, payload: Array("OK\0".utf8)))
    #expect(client.call(.read, "/a\0")?.text == "v")
    #expect(client.call(.getDomainPath, "5\0")?.text == "/local/domain/5\0")
    #expect(client.call(.isDomainIntroduced, "1\0")?.text == "T\0")
    #expect(client.call(.isDomainIntroduced, "9\0")?.text == "F\0")
  }

  @Test(arguments: [
    (XenStoreOperation.read, "/a"), (.read, "/a\0/b\0"), (.read, ""), (.read, "\0"), (.read, "/a//b\0"),
    (.read, "/a/\0"),
    (.read, "/a:b\0"), (.read, "/a b\0"), (.write, "/a"), (.directoryPart, "/\0"),
    (.directoryPart, "/\0-1\0"),
    (.directoryPart, "/\0x\0"), (.setPermissions, "/a\0"), (.setPermissions, "/a\0x5\0"),
    (.setPermissions, "/a\0b\0"),
    (.setPermissions, "/a\0b99999\0"), (.setPermissions, "/a\0b-1\0"), (.watch, "/a\0"),
    (.transactionEnd, "X\0"),
    (.introduce, "1\0"), (.introduce, "x\u{0}1\u{0}1\0"), (.remove, "/\0"), (.getDomainPath, "+1\0"),
    (.read, "/" + String(repeating: "a", count: 3072) + "\0"),
    (.read, String(repeating: "a", count: 2049) + "\0"),
  ])
  func aMalformedRequestIsAnsweredWithEINVAL(_ operation: XenStoreOperation, _ payload: String) throws {
    let machine = try Machine()
    let client = try raw(machine, 0)
    #expect(client.call(operation, payload)?.failure == "EINVAL")
    #expect(client.call(.directory, "/\0")?.failure == nil)
  }

  @Test func whatIsNotSupportedIsAnsweredWithENOSYS() throws {
    let machine = try Machine()
    let client = try raw(machine, 0)
    for operation in [XenStoreOperation.control, .watchEvent, .error] {
      #expect(client.call(operation, "x\0")?.failure == "ENOSYS")
    }
    var unknown: [UInt8] = []
    XenStoreHeader(type: 999, request: 1, transaction: 0, byteCount: 0).append(to: &unknown)
    client.send(unknown)
    #expect(client.next()?.failure == "ENOSYS")
  }

  @Test func aPayloadOverTheLimitClosesThatConnectionOnly() throws {
    let machine = try Machine()
    let good = try raw(machine, 0)
    for length in [4097, 1 << 20, Int(Int32.max), Int(UInt32.max)] {
      let client = try raw(machine, 0)
      var header: [UInt8] = []
      XenStoreHeader(type: 2, request: 1, transaction: 0, byteCount: length).append(to: &header)
      client.send(header)
      #expect(client.next() == nil)
      #expect(good.call(.directory, "/\0")?.failure == nil)
    }
    #expect(good.call(.write, "/big\u{0}" + String(repeating: "x", count: 4091))?.failure == nil)
  }

  @Test func rubbishAtAnyByteHarmsNobodyElse() throws {
    let machine = try Machine()
    let good = try raw(machine, 1)
    var generator = SeededGenerator(seed: 1)
    var valid: [UInt8] = []
    for (operation, payload) in [
      (XenStoreOperation.write, "data/x\u{0}v"), (.watch, "data\u{0}t\u{0}"), (.transactionStart, "\0"),
      (.directoryPart, "data\u{0}0\u{0}"), (.setPermissions, "data/x\u{0}b1\u{0}r2\u{0}"),
    ] {
      XenStoreHeader(type: operation.rawValue, request: 1, transaction: 0, byteCount: payload.utf8.count)
        .append(to: &valid)
      valid += Array(payload.utf8)
    }
    for position in 0..<valid.count {
      let client = try raw(machine, 1)
      var bytes = valid
      bytes[position] = UInt8.random(in: 0...255, using: &generator)
      client.send(bytes)
    }
    for _ in 0..<50 {
      let client = try raw(machine, 1)
      client.send(
        (0..<Int.random(in: 1...200, using: &generator)).map { _ in .random(in: 0...255, using: &generator) })
    }
    #expect(good.call(.read, "domid\0")?.text == "1")
  }

  @Test func requestsSentInPiecesAndTogetherAreAllAnswered() throws {
    let machine = try Machine()
    let client = try raw(machine, 0)
    var request: [UInt8] = []
    XenStoreHeader(type: 11, request: 5, transaction: 0, byteCount: 4).append(to: &request)
    request += Array("/p\u{0}1".utf8)
    for byte in request { client.send([byte]) }
    #expect(client.next()?.request == 5)
    client.send(Array((0..<100).map { _ in request }.joined()))
    for _ in 0..<100 { #expect(client.next()?.text == "OK\0") }
  }

  @Test func permissionsFollowXenstoredsRules() throws {
    let machine = try Machine()
    let root = try raw(machine, 0)
    let (one, two) = (try raw(machine, 1), try raw(machine, 2))
    #expect(one.call(.write, "data/mine\u{0}v")?.failure == nil)
    #expect(one.call(.getPermissions, "data/mine\0")?.text == "n1\0")
    #expect(two.call(.read, "/local/domain/1/data/mine\0")?.failure == "EACCES")
    #expect(two.call(.write, "/local/domain/1/data/mine\u{0}x")?.failure == "EACCES")
    // The owner may open it, not give it away.
    #expect(one.call(.setPermissions, "data/mine\0n1\0r2\0")?.failure == nil)
    #expect(two.call(.read, "/local/domain/1/data/mine\0")?.text == "v")
    #expect(two.call(.write, "/local/domain/1/data/mine\u{0}x")?.failure == "EACCES")
    #expect(one.call(.setPermissions, "data/mine\0n2\0")?.failure == "EPERM")
    #expect(two.call(.setPermissions, "/local/domain/1/data/mine\0n2\0")?.failure == "EACCES")
    // A guest may write neither its home nor at the top, nor see what is not there under what it may not read.
    #expect(one.call(.write, "new\u{0}v")?.failure == "EACCES")
    #expect(one.call(.write, "/top\u{0}v")?.failure == "EACCES")
    #expect(one.call(.read, "/nothing\0")?.failure == "EACCES")
    #expect(one.call(.read, "data/nothing\0")?.failure == "ENOENT")
    #expect(one.call(.introduce, "1\u{0}1\u{0}1\0")?.failure == "EACCES")
    #expect(one.call(.release, "2\0")?.failure == "EACCES")
    // What dom0 creates belongs to whom its parent belongs; dom0 may do everything.
    #expect(root.call(.write, "/local/domain/1/data/by-root\u{0}v")?.failure == nil)
    #expect(root.call(.getPermissions, "/local/domain/1/data/by-root\0")?.text == "n1\0")
    #expect(root.call(.setPermissions, "/local/domain/1/data/by-root\0b2\0")?.failure == nil)
  }

  @Test func aDomainInheritsNothingFromAnEarlierOneOfItsNumber() throws {
    let machine = try Machine()
    let root = try raw(machine, 0)
    #expect(root.call(.write, "/open\u{0}v")?.failure == nil)
    #expect(root.call(.setPermissions, "/open\0n0\0b2\0r1\0")?.failure == nil)
    #expect(try raw(machine, 2).call(.write, "/open\u{0}w")?.failure == nil)
    try machine.toolstack.destroyDomain(DomainID(2))
    try machine.toolstack.createDomain(DomainID(2))
    #expect(root.call(.getPermissions, "/open\0")?.text == "n0\0r1\0")
    #expect(try raw(machine, 2).call(.write, "/open\u{0}x")?.failure == "EACCES")
  }

  @Test func aGuestsQuotasHoldAndTheControlDomainHasNone() throws {
    let machine = try Machine()
    let (root, guest) = (try raw(machine, 0), try raw(machine, 1))
    var created = 0
    while created < 2000, guest.call(.write, "data/d\(created / 50)/n\(created)\u{0}")?.failure == nil {
      created += 1
    }
    #expect(created > 900 && created < 1000)
    #expect(guest.call(.write, "data/one-more\u{0}")?.failure == "ENOSPC")
    #expect(guest.call(.write, "data/d0/n0\u{0}value")?.failure == nil)
    for index in 0..<1100 { #expect(root.call(.write, "/root/n\(index)\u{0}")?.failure == nil) }
    #expect(guest.call(.remove, "data/d0\0")?.failure == nil)
    #expect(guest.call(.write, "data/one-more\u{0}")?.failure == nil)

    #expect(
      guest.call(.write, "data/one-more\u{0}" + String(repeating: "x", count: 2049))?.failure == "ENOSPC")
    #expect(root.call(.write, "/root/n0\u{0}" + String(repeating: "x", count: 4000))?.failure == nil)

    var watches = 0
    while watches < 300, guest.call(.watch, "data\0w\(watches)\0")?.failure == nil { watches += 1 }
    #expect(watches == 128)
    #expect(guest.call(.watch, "data\0one-more\0")?.failure == "E2BIG")
    var transactions = 0
    while transactions < 30, guest.call(.transactionStart, "\0")?.failure == nil { transactions += 1 }
    #expect(transactions == 10)
    #expect(guest.call(.resetWatches, "\0")?.failure == nil)
    #expect(guest.call(.watch, "data\0w\0")?.failure == nil)
    #expect(guest.call(.transactionStart, "\0")?.failure == nil)
  }

  @Test func aListTooLongForOneReplyIsE2BIGAndComesInParts() throws {
    let machine = try Machine()
    let client = try raw(machine, 0)
    let names = (0..<900).map { "a-rather-long-name-\($0)" }
    for name in names { _ = client.call(.makeDirectory, "/long/\(name)\0") }
    #expect(client.call(.directory, "/long\0")?.failure == "E2BIG")
    // libxenstore puts the parts together.
    #expect(Set(try machine.toolstack.store.list("/long") ?? []) == Set(names))
    #expect(client.call(.directoryPart, "/long\u{0}99999999\0")?.payload.suffix(2) == [0, 0])
  }

  @Test func transactionsConflictOverWhatTheyReadAndNotOverTheRest() throws {
    let machine = try Machine()
    let (one, two) = (try raw(machine, 0), try raw(machine, 0))
    for path in ["/t/a", "/t/b", "/u/c"] { _ = one.call(.write, "\(path)\u{0}0") }
    func start(_ client: RawXenStore) -> UInt32 {
      UInt32(client.call(.transactionStart, "\0")?.text.dropLast() ?? "") ?? 0
    }
    func end(_ client: RawXenStore, _ id: UInt32) -> String? {
      client.call(.transactionEnd, "T\0", transaction: id)?.failure
    }
    // Different nodes: both go through, and both changes are there.
    var (first, second) = (start(one), start(two))
    _ = one.call(.write, "/t/a\u{0}1", transaction: first)
    _ = two.call(.write, "/t/b\u{0}2", transaction: second)
    #expect(end(one, first) == nil && end(two, second) == nil)
    #expect(one.call(.read, "/t/a\0")?.text == "1" && one.call(.read, "/t/b\0")?.text == "2")
    // The same node: the second must run again.
    (first, second) = (start(one), start(two))
    _ = one.call(.read, "/t/a\0", transaction: first)
    _ = two.call(.write, "/t/a\u{0}3", transaction: second)
    _ = one.call(.write, "/t/b\u{0}4", transaction: first)
    #expect(end(two, second) == nil && end(one, first) == "EAGAIN")
    #expect(one.call(.read, "/t/b\0")?.text == "2")
    // A write outside any transaction counts as well, and so does a node that was not there.
    first = start(one)
    #expect(one.call(.read, "/t/new\0", transaction: first)?.failure == "ENOENT")
    _ = two.call(.write, "/t/new\u{0}x")
    _ = one.call(.write, "/u/c\u{0}y", transaction: first)
    #expect(end(one, first) == "EAGAIN")
    // Inside, its own changes; outside, none of them until the end; nothing after an abort.
    first = start(one)
    _ = one.call(.remove, "/t\0", transaction: first)
    #expect(one.call(.read, "/t/a\0", transaction: first)?.failure == "ENOENT")
    #expect(two.call(.read, "/t/a\0")?.text == "3")
    #expect(one.call(.transactionEnd, "F\0", transaction: first)?.failure == nil)
    #expect(two.call(.read, "/t/a\0")?.text == "3")
    #expect(one.call(.read, "/t/a\0", transaction: first)?.failure == "ENOENT")
    #expect(one.call(.transactionStart, "\0", transaction: start(one))?.failure == "EBUSY")
  }

  @Test func removingANodeFiresTheWatchesInsideItAndEventsOfATransactionComeAtItsEnd() throws {
    let machine = try Machine()
    let store = machine.toolstack.store
    try store.write("/w/a/b", "x")
    let watcher = try machine.join(0).openXenStore()
    try watcher.watch("/w/a/b", token: "inner")
    try watcher.watch("/w", token: "outer")
    func next() throws -> String? {
      eventually("an event") { isReadable(watcher.fileDescriptor) }
      return try watcher.nextWatchEvent().map { "\($0.path) \($0.token)" }
    }
    #expect(try [next(), next()] == ["/w/a/b inner", "/w outer"])
    try store.transaction { (operations) throws(XenError) in
      try operations.write("/w/c", "1")
      try operations.remove("/w/a")
    }
    var seen: Set<String> = []
    for _ in 0..<3 { if let event = try next() { seen.insert(event) } }
    #expect(seen == ["/w/c outer", "/w/a outer", "/w/a/b inner"])
    #expect(try watcher.nextWatchEvent() == nil)
  }

  @Test func whoMayNotReadANodeIsNotToldThatItChanged() throws {
    let machine = try Machine()
    let guest = try machine.join(2).openXenStore()
    try guest.watch("/local/domain/1/data", token: "spy")
    eventually("the first event") { isReadable(guest.fileDescriptor) }
    _ = try guest.nextWatchEvent()
    try machine.join(1).openXenStore().write("data/secret", "x")
    try machine.toolstack.store.write("/local/domain/2/data/mark", "x")
    try guest.watch("data/mark", token: "mark")
    eventually("the mark") { isReadable(guest.fileDescriptor) }
    #expect(try guest.nextWatchEvent()?.token == "mark")
  }

  @Test func domainsComingAndGoingAreAnnounced() throws {
    let machine = try Machine()
    let watcher = try machine.join(0).openXenStore()
    let guest = try machine.join(1).openXenStore()
    for special in ["@introduceDomain", "@releaseDomain"] { try watcher.watch(special, token: "t") }
    for _ in 0..<2 {
      eventually("the first events") { isReadable(watcher.fileDescriptor) }
      _ = try watcher.nextWatchEvent()
    }
    try guest.watch("@releaseDomain", token: "t")
    eventually("the guest's first event") { isReadable(guest.fileDescriptor) }
    _ = try guest.nextWatchEvent()
    try machine.toolstack.createDomain(DomainID(7))
    eventually("the introduction") { isReadable(watcher.fileDescriptor) }
    #expect(try watcher.nextWatchEvent()?.path == "@introduceDomain")
    try machine.join(7).openXenStore().write("data/left-behind", "x")
    try machine.toolstack.destroyDomain(DomainID(7))
    eventually("the release") { isReadable(watcher.fileDescriptor) }
    #expect(try watcher.nextWatchEvent()?.path == "@releaseDomain")
    #expect(try machine.toolstack.store.read("/local/domain/7") == nil)
    #expect(try guest.nextWatchEvent() == nil)
  }

  @Test func aClientThatNeverReadsItsEventsIsCutOff() throws {
    let machine = try Machine()
    let deaf = try raw(machine, 1)
    for index in 0..<100 { _ = deaf.call(.watch, "data\0token-\(index)\0") }
    let writer = try raw(machine, 1)
    for index in 0..<3000 {
      guard writer.call(.write, "data/n\u{0}\(index)")?.failure == nil else { break }
    }
    #expect(writer.call(.read, "domid\0")?.text == "1")
    // What had been sent to it is there; then the connection ends.
    while deaf.next() != nil {}
    #expect(deaf.call(.read, "domid\0") == nil)
  }

  @Test func aGuestsTransactionIsBounded() throws {
    let machine = try Machine()
    for writes in [false, true] {
      let guest = try raw(machine, 1)
      let transaction = try #require(UInt32(guest.call(.transactionStart, "\0")?.text.dropLast() ?? ""))
      var refused = 0
      for index in 0..<5000 {
        let answer =
          writes
          ? guest.call(.write, "/local/domain/1/data/x\u{0}\(index)", transaction: transaction)
          : guest.call(.read, "/local/domain/1/none-\(index)\0", transaction: transaction)
        if answer?.failure == "ENOSPC" { refused += 1 }
      }
      #expect(refused > 500)
      #expect(guest.call(.transactionEnd, "F\0", transaction: transaction)?.failure == nil)
    }
  }
}
