// SPDX-License-Identifier: Apache-2.0
//
// Processes that are killed: what they held is given back, and their peers notice what they would on Xen.

import TestSupport
import Glibc
import Platform
import Synchronization
import Testing
import Xen
@testable import XenConformance

@testable import XenLoopback

@Suite struct DeathTests {
  @Test func aDeadMappersPagesComeBackAndItsPeerNoticesNothing() throws {
    let machine = try Machine()
    let front = try machine.join(1)
    let sharing = try front.openGrantSharing()
    let pages = try sharing.share(pages: 8, with: .dom0, writable: true)
    let back = try Helper.party(machine, 0)
    _ = try back.map(pages.references, of: DomainID(1))
    _ = try back.map(Array(pages.references.prefix(2)), of: DomainID(1), writable: false)
    let memory = try memory(of: 1, machine)
    let first = pages.references[0].rawValue
    #expect(GrantEntry.writers(memory.grant(first).word.loadAcquiring()) == 1)
    #expect(GrantEntry.readers(memory.grant(first).word.loadAcquiring()) == 1)
    back.kill()
    eventually("the counts going back") {
      pages.references.allSatisfy {
        memory.grant($0.rawValue).word.loadAcquiring() >> 32 == 0
      }
    }
    pages.baseAddress.storeBytes(of: 1, as: UInt8.self)
    // Its domain's maptrack frames are free for the next process.
    let own = try self.memory(of: 0, machine)
    eventually("the frames going back") {
      (0..<DomainLayout.frameCount).allSatisfy { own.frameOwner($0).loadAcquiring() == 0 }
    }
    let again = try Helper.party(machine, 0)
    let mapped = try again.map(pages.references, of: DomainID(1))
    #expect(try again.peek(mapped, 0, 1) == [1])
  }

  @Test func aPageThatItsMapperDiesWithAfterItWasUnsharedIsFreed() throws {
    let machine = try Machine()
    let front = try machine.join(1)
    var pages: SharedPages? = try front.openGrantSharing().share(pages: 1, with: .dom0, writable: true)
    let references = pages?.references ?? []
    let back = try Helper.party(machine, 0)
    _ = try back.map(references, of: DomainID(1))
    pages = nil
    let memory = try memory(of: 1, machine)
    let word = memory.grant(references[0].rawValue).word
    #expect(word.loadAcquiring() != 0)
    back.kill()
    eventually("the entry being free") { word.loadAcquiring() == 0 }
  }

  @Test func aDeadSharersPagesLiveOnWhereTheyAreMappedAndStopCounting() throws {
    let machine = try Machine(pageLimit: 16)
    let front = try Helper.party(machine, 1)
    let shared = try front.share(16, with: .dom0)
    try front.poke(shared.id, 0, [1, 2, 3])
    let back = try machine.join(0).openGrantMapping()
    let address = try back.map([shared.references[0]], of: DomainID(1), writable: true)
    #expect(try machine.toolstack.status(of: DomainID(1)).pagesShared == 16)
    front.kill()
    try eventually("the pages being let go") {
      try machine.toolstack.status(of: DomainID(1)).pagesShared == 0
    }
    #expect(address.load(as: UInt8.self) == 1)
    #expect(throws: XenError.self) {
      _ = try back.map([shared.references[0]], of: DomainID(1), writable: true)
    }
    #expect(throws: XenError.self) {
      _ = try back.map([shared.references[5]], of: DomainID(1), writable: true)
    }
    // The domain goes on: another process of it has the whole limit, and not the page that is still mapped.
    let again = try Helper.party(machine, 1)
    let next = try again.share(16, with: .dom0)
    #expect(!next.references.contains(shared.references[0]))
    #expect(try again.peek(next.id, 0, 16 * 4096).allSatisfy { $0 == 0 })
    try back.unmap(address, count: 1)
  }

  @Test func aDeadProcessesPortsAreClosedAndItsPeersPortIsUnboundAgain() throws {
    let machine = try Machine()
    let front = try machine.join(1).openEventChannels()
    let port = try front.bindUnbound(remote: .dom0)
    let back = try Helper.party(machine, 0)
    let handle = try back.openEvents()
    let theirs = try back.bind(handle, DomainID(1), Int(port.rawValue))
    try back.notify(handle, theirs)
    #expect(try front.nextPending() == port)
    try front.unmask(port)
    back.kill()
    try eventually("the port being closed") { try machine.toolstack.status(of: .dom0).ports == 0 }
    // Nothing tells the peer: notifications succeed, and go nowhere.
    try front.notify(port)
    #expect(try front.nextPending() == nil)
    let again = try Helper.party(machine, 0)
    let second = try again.openEvents()
    let rebound = try again.bind(second, DomainID(1), Int(port.rawValue))
    _ = try again.pending(second, milliseconds: 20_000)
    try again.unmask(second, rebound)
    try front.notify(port)
    #expect(try again.pending(second, milliseconds: 20_000) == rebound)
  }

  @Test func unmapNotificationsAreSentForTheDead() throws {
    let machine = try Machine()
    let front = try machine.join(1)
    let events = try front.openEventChannels()
    let port = try events.bindUnbound(remote: .dom0)
    let pages = try front.openGrantSharing().share(pages: 1, with: .dom0, writable: true)
    (pages.baseAddress + 10).storeBytes(of: 1, as: UInt8.self)
    let back = try Helper.party(machine, 0)
    let handle = try back.openEvents()
    let theirs = try back.bind(handle, DomainID(1), Int(port.rawValue))
    _ = try back.map(pages.references[0], of: DomainID(1), clear: 10, notify: theirs)
    back.kill()
    eventually("the event") { isReadable(events.fileDescriptor) }
    eventually("the byte") { (pages.baseAddress + 10).load(as: UInt8.self) == 0 }
  }

  /// As far as a join gets that is killed between counting a page in the domain and in itself.
  @Test func regression_pagesCountedByHalfAreForgottenWithTheLastJoin() throws {
    let machine = try Machine(pageLimit: 64)
    try memory(of: 1, machine).header.pagesShared.addRelaxed(64)
    do {
      let front = try machine.join(1)
      #expect(throws: XenError.self) {
        _ = try front.openGrantSharing().share(pages: 1, with: .dom0, writable: true)
      }
    }
    try eventually("the join ending") { try machine.toolstack.status(of: DomainID(1)).joins == 0 }
    let next = try machine.join(1)
    #expect(try next.openGrantSharing().share(pages: 64, with: .dom0, writable: true).pageCount == 64)
  }

  @Test func twentyDeathsLeakNothing() throws {
    let machine = try Machine(pageLimit: 64)
    let front = try machine.join(1)
    let sharing = try front.openGrantSharing()
    let events = try front.openEventChannels()
    for _ in 0..<20 {
      let port = try events.bindUnbound(remote: .dom0)
      let pages = try sharing.share(pages: 60, with: .dom0, writable: true)
      let back = try Helper.party(machine, 0)
      let handle = try back.openEvents()
      let theirs = try back.bind(handle, DomainID(1), Int(port.rawValue))
      _ = try back.map(pages.references, of: DomainID(1))
      _ = try back.share(100, with: DomainID(1))
      try back.notify(handle, theirs)
      _ = try events.nextPending()
      back.kill()
      try events.unbind(port)
      _ = pages
    }
    try eventually("everything being given back") {
      let (zero, one) = (
        try machine.toolstack.status(of: .dom0), try machine.toolstack.status(of: DomainID(1))
      )
      return zero.pagesShared == 0 && zero.ports == 0 && zero.joins == 0 && one.pagesShared == 0
        && one.ports == 0
    }
    let memory = try memory(of: 1, machine)
    eventually("no grant being left") {
      (8..<memory.header.grantHighWater.loadRelaxed())
        .allSatisfy { memory.grant($0).word.loadAcquiring() == 0 }
    }
    // (Descriptors: Tests/interop/hundred-attaches.sh, as other tests of this process open and close some.)
  }

  @Test func aJoinInTheSameProcessGivesBackWhatItHeldWhenItsHandlesAreGone() throws {
    let machine = try Machine()
    let front = try machine.join(1)
    let pages = try front.openGrantSharing().share(pages: 2, with: .dom0, writable: true)
    do {
      let back = try machine.join(0)
      let mapping = try back.openGrantMapping()
      _ = try mapping.map(pages.references, of: DomainID(1), writable: true)
      _ = try back.openEventChannels().bindUnbound(remote: DomainID(1))
    }
    try eventually("the join ending") { try machine.toolstack.status(of: .dom0).joins == 0 }
    let memory = try memory(of: 1, machine)
    #expect(memory.grant(pages.references[0].rawValue).word.loadAcquiring() >> 32 == 0)
  }

  @Test func destroyingADomainDisconnectsItAndItsPeersKeepTheirMappings() throws {
    let machine = try Machine()
    let doomed = try machine.join(2)
    let events = try doomed.openEventChannels()
    let port = try events.bindUnbound(remote: .dom0)
    let pages = try doomed.openGrantSharing().share(pages: 1, with: .dom0, writable: true)
    let root = try machine.join(0)
    let mapping = try root.openGrantMapping()
    let channel = try root.openEventChannels()
    let theirs = try channel.bindInterdomain(remote: DomainID(2), port: port)
    let address = try mapping.map(pages.references, of: DomainID(2), writable: true)
    try machine.toolstack.destroyDomain(DomainID(2))
    address.storeBytes(of: 3, as: UInt8.self)
    try channel.notify(theirs)
    #expect(throws: XenError.self) { _ = try mapping.map(pages.references, of: DomainID(2), writable: true) }
    #expect(throws: XenError.self) { _ = try events.bindUnbound(remote: .dom0) }
    #expect(throws: XenError.self) { _ = try machine.join(2) }
    try mapping.unmap(address, count: 1)
    // The number can be used again, for a domain that has nothing of the old one.
    try machine.toolstack.createDomain(DomainID(2))
    let next = try machine.join(2).openGrantSharing().share(pages: 1, with: .dom0, writable: true)
    let mapped = try mapping.map(next.references, of: DomainID(2), writable: true)
    #expect(mapped.load(as: UInt8.self) == 0)
  }

  @Test func theHostsDeathIsNoticedAtTheNextRequestAndSharedMemoryLivesOn() throws {
    let directory = try makeTemporaryPath("loopback")
    let host = try RemoteHost(directory)
    let root = try LoopbackDomain(joining: directory, domain: .dom0)
    let toolstack = try LoopbackToolstack(directory: directory)
    try toolstack.createDomain(DomainID(1))
    let pages = try root.openGrantSharing().share(pages: 1, with: .dom0, writable: true)
    let mapping = try root.openGrantMapping()
    let events = try root.openEventChannels()
    host.kill()
    let address = try mapping.map(pages.references, of: .dom0, writable: true)
    address.storeBytes(of: 1, as: UInt8.self)
    #expect(pages.baseAddress.load(as: UInt8.self) == 1)
    #expect { _ = try events.bindUnbound(remote: .dom0) } throws: { ($0 as? XenError)?.code == .disconnected }
    #expect(throws: XenError.self) { _ = try toolstack.store.read("/local") }
    #expect { _ = try LoopbackDomain(joining: directory, domain: .dom0) } throws: {
      ($0 as? XenError)?.code == .unavailable
    }
    // What it left behind is replaced.
    let next = try LoopbackHost(directory: directory)
    #expect(try LoopbackToolstack(directory: directory).store.list("/") == [])
    #expect(throws: XenError.self) { _ = try LoopbackDomain(joining: directory, domain: DomainID(1)) }
    next.stop()
    _ = unlink(directory + "/host.lock")
    _ = rmdir(directory)
  }

  private func memory(of domain: UInt16, _ machine: Machine) throws -> DomainMemory {
    try LoopbackConnection(directory: machine.host.directory, domain: 2, policy: .perVCPU).memory(of: domain)
  }
}

/// A host in a process of its own, which can be killed.
final class RemoteHost {
  private let party: RemoteParty

  init(_ directory: String) throws {
    party = try RemoteParty([Helper.path, "host", directory], domain: .dom0)
    // The socket has a name a moment before anybody listens to it.
    eventually("the host") { (try? ControlClient(directory)) != nil }
  }

  func kill() { party.kill() }
}
