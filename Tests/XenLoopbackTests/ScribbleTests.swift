// SPDX-License-Identifier: Apache-2.0
//
// Any process of a host may write anything into the tables, and a client of it must neither trap nor touch memory that
// is not its own because of it. What it is refused, or what events it misses, is nobody's promise.

import CXen
import Glibc
import Platform
import TestSupport
import Testing
import Xen

@testable import XenLoopback

@Suite struct ScribbleTests {
  @Test func nobodyWhoHasADomainsMemoryCanMakeItSmallerUnderTheOthers() throws {
    let memory = try DomainMemory(creating: 1, serial: 1, pageLimit: 8, frameLimit: 4)
    for file in [memory.tablesDescriptor.raw, memory.pagesDescriptor.raw] {
      // Reading what was cut off would be SIGBUS in every process that has it mapped.
      for length in [0, 4096, 1 << 40] as [off_t] {
        #expect(ftruncate(file, length) == -1)
        #expect(errno == EPERM)
      }
    }
    #expect(memory.isAlive)
  }

  // MARK: each way out of the tables that there was

  @Test(arguments: [32768, 1 << 24, 0x7FFF_FFFF] as [UInt32])
  func regression_aFreeListThatLeadsOutOfTheTableDoesNotTakeTheMapperThere(link: UInt32) throws {
    for policy in MaptrackPolicy.allCases {
      let memory = try DomainMemory(creating: 1, serial: 1, pageLimit: 8, frameLimit: 4)
      let maptrack = Maptrack(memory, join: 1, policy: policy)
      let first = try #require(maptrack.take(0))
      for handle in 0..<UInt32(DomainLayout.entriesPerFrame) {
        memory.maptrack(handle).reference.storeRelaxed(link)
      }
      // One was at the head, the next is what its link said.
      for _ in 0..<4 { if let handle = maptrack.take(0) { maptrack.put(handle) } }
      maptrack.put(first)
    }
  }

  @Test(arguments: [1, 63, 64, UInt32.max] as [UInt32])
  func regression_anEntryOfAListThatIsNotUsedIsNotHungBehindNothing(vcpu: UInt32) throws {
    let memory = try DomainMemory(creating: 1, serial: 1, pageLimit: 8, frameLimit: 4)
    let maptrack = Maptrack(memory, join: 1, policy: .perVCPU)
    let handle = try #require(maptrack.take(0))
    let last = memory.maptrack(UInt32(DomainLayout.maptrackCount - 1)).reference
    last.storeRelaxed(77)
    memory.maptrack(handle).vcpu.storeRelaxed(vcpu)
    maptrack.put(handle)
    #expect(last.loadRelaxed() == 77)
  }

  @Test(arguments: [0, 1, 40000, UInt32.max - 1] as [UInt32])
  func regression_aChainOfPagesThatWasChangedIsFollowedForAsManyPagesAsThereAre(next: UInt32) throws {
    let machine = try Machine()
    let pages = try machine.join(1).openGrantSharing().share(pages: 4, with: .dom0, writable: true)
    let back = try machine.join(0)
    let mapping = try back.openGrantMapping()
    let address = try mapping.map(pages.references, of: DomainID(1), writable: true)
    let own = try memory(of: 0, machine)
    for handle in 0..<UInt32(DomainLayout.entriesPerFrame) { own.maptrack(handle).next.storeRelaxed(next) }
    try mapping.unmap(address, count: 4)
  }

  @Test func regression_aByteToClearThatIsWrittenLaterIsNotClearedInAReadOnlyPage() throws {
    let machine = try Machine()
    let pages = try machine.join(1).openGrantSharing().share(pages: 1, with: .dom0, writable: false)
    let mapping = try machine.join(0).openGrantMapping()
    let address = try mapping.map(pages.references, of: DomainID(1), writable: false)
    let own = try memory(of: 0, machine)
    for handle in 0..<UInt32(DomainLayout.entriesPerFrame) {
      own.maptrack(handle).clearOffset.storeRelaxed(8)
    }
    try mapping.unmap(address, count: 1)
  }

  @Test(arguments: [0, 7, 32769, UInt32.max] as [UInt32])
  func regression_aHighWaterMarkOutsideTheTableDoesNotLeadAMigrationOutside(mark: UInt32) throws {
    let machine = HostMachine()
    try machine.createDomain(1, pageLimit: 64, frameLimit: 4)
    let domain = try #require(machine.domains[1])
    domain.memory.header.grantHighWater.storeRelaxed(mark)
    machine.invalidate(domain)
  }

  @Test func everyNumberNamesARecordWithinItsTable() throws {
    let memory = try DomainMemory(creating: 1, serial: 1, pageLimit: 8, frameLimit: 4)
    for number: UInt32 in [0, 1, 255, 256, 4095, 4096, 32767, 32768, 1 << 27, .max] {
      memory.port(number).remoteSerial.storeRelaxed(number)
      #expect(memory.port(number & 4095).remoteSerial.loadRelaxed() == number)
      memory.grant(number).clearOffset.storeRelaxed(number)
      #expect(memory.grant(number & 32767).clearOffset.loadRelaxed() == number)
      memory.maptrack(number).next.storeRelaxed(number)
      #expect(memory.maptrack(number & 32767).next.loadRelaxed() == number)
      memory.handle(Int(number)).announced.storeRelaxed(UInt64(number))
      #expect(memory.handle(Int(number & 255)).announced.loadRelaxed() == UInt64(number))
      memory.frameOwner(Int(number)).storeRelaxed(number)
      #expect(memory.frameOwner(Int(number & 255)).loadRelaxed() == number)
    }
    #expect(memory.header.magic.loadRelaxed() == DomainLayout.magic)
  }

  // MARK: anything, anywhere

  @Test(arguments: 0..<12 as Range<UInt64>)
  func clientsGoOnWhateverIsWrittenIntoTheTables(seed: UInt64) throws {
    let machine = try Machine(pageLimit: 256)
    let parties = try [
      Party(machine, 1, .perVCPU), Party(machine, 0, .perVCPU), Party(machine, 2, .singleLockedList),
    ]
    let tables = try [0, 1, 2].map { try memory(of: $0, machine) }
    var random = SeededGenerator(seed: seed)
    for step in 0..<1500 {
      parties[random.below(parties.count)].act(among: parties, &random)
      // Some quiet first, so that there is something to be written over.
      if step > 200, random.below(2) == 0 { scribble(tables[random.below(tables.count)], &random) }
    }
    // A domain whose tables were left alone is none the worse for it.
    try machine.toolstack.createDomain(DomainID(3))
    try machine.toolstack.createDomain(DomainID(4))
    let pages = try machine.join(3).openGrantSharing().share(pages: 3, with: DomainID(4), writable: true)
    pages.baseAddress.storeBytes(of: 42, as: UInt8.self)
    let mapping = try machine.join(4).openGrantMapping()
    let address = try mapping.map(pages.references, of: DomainID(3), writable: true)
    #expect(address.load(as: UInt8.self) == 42)
    try mapping.unmap(address, count: 3)
  }

  private func memory(of domain: UInt16, _ machine: Machine) throws -> DomainMemory {
    let reply = try ControlClient(machine.host.directory).call(ControlMessage(.lookUp, a: UInt32(domain)))
    return try DomainMemory.mapping(
      tables: OwnedDescriptor(reply.descriptors[0]), pages: OwnedDescriptor(reply.descriptors[1]))
  }

  /// A number that means something here or there, or none at all.
  private func number(_ random: inout SeededGenerator) -> UInt32 {
    switch random.below(6) {
    case 0: UInt32(random.below(16))
    case 1: UInt32.max - UInt32(random.below(2))
    case 2: UInt32(random.below(1 << 16))
    case 3: 1 << UInt32(random.below(32))
    case 4: 1 << 31 | UInt32(random.below(3)) | UInt32(random.below(2)) << 30
    default: UInt32(truncatingIfNeeded: random.next())
    }
  }

  /// Writes over some words, mostly where something is.
  private func scribble(_ memory: DomainMemory, _ random: inout SeededGenerator) {
    for _ in 0...random.below(24) {
      let index = UInt32(random.below(random.below(8) == 0 ? 32768 : 160))
      let field = random.below(8) * 4
      let word: SharedUInt32 =
        switch random.below(8) {
        case 0: memory.port(index % 24).record.word32(field)
        case 1, 2: memory.grant(index).record.word32(field)
        case 3, 4, 5: memory.maptrack(index).record.word32(field)
        case 6:
          random.below(2) == 0
            ? memory.handle(Int(index)).record.word32(field % 16) : memory.frameOwner(Int(index))
        // Not the serial and the number: whoever maps the tables anew would take the domain for another.
        default:
          random.below(2) == 0
            ? memory.header.record.word32(12 + field % 24) : memory.pagesShared(byJoinAt: Int(index))
        }
      word.storeRelaxed(number(&random))
    }
  }
}

/// A process's part in a domain: everything that it can do, and what it has.
private final class Party {
  let domain: DomainID
  private let machine: Machine
  private let policy: MaptrackPolicy
  private var member: LoopbackDomain
  private var sharing: any GrantSharing
  private var mapping: any GrantMapping
  private var events: any EventChannels
  private var shared: [SharedPages] = []
  private var mapped: [(address: UnsafeMutableRawPointer, count: Int, writable: Bool)] = []
  private var ports: [EventChannelPort] = []
  private let scratch = UnsafeMutableRawPointer.allocate(byteCount: Page.size, alignment: 8)

  init(_ machine: Machine, _ domain: UInt16, _ policy: MaptrackPolicy) throws {
    self.domain = DomainID(domain)
    self.machine = machine
    self.policy = policy
    member = try machine.join(domain, policy)
    sharing = try member.openGrantSharing()
    mapping = try member.openGrantMapping()
    events = try member.openEventChannels()
    scratch.initializeMemory(as: UInt8.self, repeating: 1, count: Page.size)
  }

  deinit { scratch.deallocate() }

  /// Does one thing; being refused is fine.
  func act(among parties: [Party], _ random: inout SeededGenerator) {
    let other = parties[random.below(parties.count)]
    switch random.below(13) {
    case 0, 1:
      let notification: UnmapNotification? =
        random.below(3) == 0 ? UnmapNotification(clearByteAt: 9, notify: ports.first) : nil
      let count = notification == nil ? 1 + random.below(6) : 1
      if let pages = try? sharing.share(
        pages: count, with: other.domain, writable: random.below(4) > 0, notification: notification)
      {
        shared.append(pages)
      }
    case 2: if !shared.isEmpty { shared.remove(at: random.below(shared.count)) }
    case 3, 4, 5:
      guard let pages = other.shared.last else { return }
      let writable = random.below(2) == 0
      if random.below(4) == 0, let reference = pages.references.first,
        let address = try? mapping.map(
          reference, of: other.domain, writable: writable,
          notification: UnmapNotification(clearByteAt: writable ? 5 : nil, notify: ports.last))
      {
        mapped.append((address, 1, writable))
      } else if let address = try? mapping.map(pages.references, of: other.domain, writable: writable) {
        mapped.append((address, pages.references.count, writable))
      }
    case 6, 7:
      guard !mapped.isEmpty else { return }
      let one = mapped.remove(at: random.below(mapped.count))
      if one.writable {
        one.address.storeBytes(of: 1, as: UInt8.self)
      } else {
        _ = one.address.load(as: UInt8.self)
      }
      #expect(throws: Never.self) { try mapping.unmap(one.address, count: one.count) }
    case 8:
      guard let reference = other.shared.last?.references.first else { return }
      var segments = [
        GrantCopySegment(
          source: .granted(reference, other.domain, offset: 16), destination: .local(scratch),
          byteCount: 512)
      ]
      var span = segments.mutableSpan
      try? mapping.copy(&span)
    case 9:
      if let port = try? events.bindUnbound(remote: other.domain) {
        ports.append(port)
        if let theirs = try? other.events.bindInterdomain(remote: domain, port: port) {
          other.ports.append(theirs)
        }
      }
    case 10: for port in ports { try? events.notify(port) }
    case 11:
      for _ in 0..<4 {
        guard let port = try? events.nextPending() else { break }
        try? events.unmask(port)
      }
      if ports.count > 8 { try? events.unbind(ports.removeFirst()) }
    default:
      // Now and then the process ends, or its domain migrates.
      switch random.below(20) {
      case 0: rejoin()
      case 1: _ = try? machine.toolstack.migrate(domain)
      case 2: _ = try? LoopbackDomainSurvey.all(in: machine.host.directory)
      default: break
      }
    }
  }

  private func rejoin() {
    guard let member = try? machine.join(domain.rawValue, policy),
      let sharing = try? member.openGrantSharing(),
      let mapping = try? member.openGrantMapping(), let events = try? member.openEventChannels()
    else { return }
    (shared, mapped, ports) = ([], [], [])
    (self.member, self.sharing, self.mapping, self.events) = (member, sharing, mapping, events)
  }
}
