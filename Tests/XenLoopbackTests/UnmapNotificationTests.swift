// SPDX-License-Identifier: Apache-2.0
//
// Unmap notifications whose port was closed meanwhile: its number may be somebody else's.

import Platform
import Testing
import Xen

@testable import XenLoopback

@Suite struct UnmapNotificationTests {
  /// Two parts of domain 1, and domain 2, which has a channel to the first part and hears what comes through it.
  private struct Scene {
    let machine: Machine
    let first: LoopbackDomain
    let second: LoopbackDomain
    let other: LoopbackDomain
    let mine: any EventChannels
    let seconds: any EventChannels
    let ears: any EventChannels
    let port: EventChannelPort

    init() throws {
      machine = try Machine()
      first = try machine.join(1)
      second = try machine.join(1)
      other = try machine.join(2)
      mine = try first.openEventChannels()
      seconds = try second.openEventChannels()
      ears = try other.openEventChannels()
      port = try mine.bindUnbound(remote: DomainID(2))
      try listen()
    }

    /// Binds domain 2 to the port, and passes over what a binder hears first.
    func listen() throws {
      let bound = try ears.bindInterdomain(remote: DomainID(1), port: port)
      #expect(try ears.nextPending() == bound)
      try ears.unmask(bound)
    }

    /// Closes the port, whose number goes to the second part of the domain.
    func passOn() throws {
      try mine.unbind(port)
      #expect(try seconds.bindUnbound(remote: DomainID(2)) == port)
      try listen()
    }
  }

  @Test(arguments: [false, true]) func anUnsharedPageNotifiesItsOwnPortAlone(isPassedOn: Bool) throws {
    let scene = try Scene()
    let sharing = try scene.first.openGrantSharing()
    var pages: SharedPages? = try sharing.share(
      pages: 1, with: DomainID(2), writable: true, notification: UnmapNotification(notify: scene.port))
    if isPassedOn { try scene.passOn() }
    #expect(pages?.references.count == 1)
    pages = nil
    #expect(try (scene.ears.nextPending() == nil) == isPassedOn)
  }

  @Test(arguments: [false, true]) func anUnmappedPageNotifiesItsOwnPortAlone(isPassedOn: Bool) throws {
    let scene = try Scene()
    let pages = try scene.other.openGrantSharing().share(pages: 1, with: DomainID(1), writable: true)
    let mapping = try scene.first.openGrantMapping()
    let address = try mapping.map(
      pages.references[0], of: DomainID(2), writable: true,
      notification: UnmapNotification(notify: scene.port))
    if isPassedOn { try scene.passOn() }
    try mapping.unmap(address, count: 1)
    withExtendedLifetime(pages) {}
    #expect(try (scene.ears.nextPending() == nil) == isPassedOn)
  }

  @Test(arguments: [false, true], [false, true])
  func aDeadProcessNotifiesItsOwnPortAlone(isPassedOn: Bool, isSharer: Bool) throws {
    let scene = try Scene()
    // As a process that ends: the connection closes, and nothing was undone before.
    let joins = try scene.machine.toolstack.status(of: DomainID(1)).joins
    var dying: LoopbackConnection? = try LoopbackConnection(
      directory: scene.machine.host.directory, domain: 1, policy: .perVCPU)
    let pages = try scene.other.openGrantSharing().share(pages: 1, with: DomainID(1), writable: true)
    if let dying {
      let numbers = try dying.numbers(of: UnmapNotification(notify: scene.port))
      if isSharer {
        let reference = try #require(dying.memory.claim(for: dying.join, startingAt: 8))
        dying.memory.publish(reference, to: 2, writable: true, owner: dying.join, numbers)
      } else {
        let handle = try #require(dying.maptrack.take(dying.maptrack.assignVCPU()))
        let reference = pages.references[0].rawValue
        let granter = try dying.memory(of: 2)
        try granter.pin(reference, by: 1, writable: true)
        let entry = dying.memory.maptrack(handle)
        entry.reference.storeRelaxed(reference)
        entry.serial.storeRelaxed(granter.serial)
        entry.notifyPort.storeRelaxed(numbers.port)
        entry.notifyHandle.storeRelaxed(numbers.handle)
        entry.clearOffset.storeRelaxed(.max)
        entry.state.storeReleasing(MaptrackEntry.active | 2)
      }
    }
    if isPassedOn { try scene.passOn() }
    dying = nil
    try eventually("the end of the process") {
      try scene.machine.toolstack.status(of: DomainID(1)).joins == joins
    }
    withExtendedLifetime(pages) {}
    #expect(try (scene.ears.nextPending() == nil) == isPassedOn)
  }
}
