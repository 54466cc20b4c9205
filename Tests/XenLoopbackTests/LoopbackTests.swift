// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing
import Xen

@testable import XenLoopback

@Suite struct LoopbackTests {
  @Test func aSharedPageIsSeenByItsMapperBothWays() throws {
    let machine = try Machine()
    let front = try machine.join(1)
    let back = try machine.join(0)
    let pages = try front.openGrantSharing().share(pages: 3, with: .dom0, writable: true)
    let mapping = try back.openGrantMapping()
    let address = try mapping.map(pages.references, of: DomainID(1), writable: true)
    (pages.baseAddress + 5000).storeBytes(of: 77, as: UInt8.self)
    #expect((address + 5000).load(as: UInt8.self) == 77)
    (address + 9000).storeBytes(of: 78, as: UInt8.self)
    #expect((pages.baseAddress + 9000).load(as: UInt8.self) == 78)
    try mapping.unmap(address, count: 3)
  }

  @Test func anEventGoesFromOneDomainToTheOther() throws {
    let machine = try Machine()
    let front = try machine.join(1).openEventChannels()
    let back = try machine.join(0).openEventChannels()
    let port = try front.bindUnbound(remote: .dom0)
    let theirs = try back.bindInterdomain(remote: DomainID(1), port: port)
    #expect(isReadable(back.fileDescriptor))
    #expect(try back.nextPending() == theirs)
    #expect(!isReadable(back.fileDescriptor))
    try back.unmask(theirs)
    try back.notify(theirs)
    #expect(isReadable(front.fileDescriptor))
    #expect(try front.nextPending() == port)
    #expect(try front.nextPending() == nil)
  }

  @Test func xenstoreWorksThroughLibxenstore() throws {
    let machine = try Machine()
    let store = try machine.join(1).openXenStore()
    #expect(try store.read("domid") == "1")
    try store.write("data/a/b", "hello")
    #expect(try store.read("/local/domain/1/data/a/b") == "hello")
    try store.watch("data/a", token: "t")
    eventually("the first event") { isReadable(store.fileDescriptor) }
    #expect(try store.nextWatchEvent() == XenStoreWatchEvent(path: "data/a", token: "t"))
    try machine.toolstack.store.write("/local/domain/1/data/a/c", "x")
    eventually("the second event") { isReadable(store.fileDescriptor) }
    #expect(try store.nextWatchEvent() == XenStoreWatchEvent(path: "data/a/c", token: "t"))
    #expect(try store.list("data/a") == ["b", "c"])
    #expect(try store.read("nothing") == nil)
  }
}
