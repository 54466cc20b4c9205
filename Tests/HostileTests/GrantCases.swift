// SPDX-License-Identifier: Apache-2.0
//
// Cases 18 to 26 of the hostile backend: what it does with granted pages. It may write them whenever it likes; what
// it may not is change another's bytes, or see what was not meant for it.

import HostileBackend
import Platform
import Testing
import Xen
import XenLoopback

@testable import XbdFront

@Suite struct GrantCases {
  @Test(arguments: CopyMode.allCases)
  func case18_aPageThatStaysMappedIsNotUsedForAnybodyElse(copy: CopyMode) throws {
    let victim = try Victim(
      Plan([.keepMappings, .changeReadsAfterAnswer, .changeWrites]),
      options: Victim.options {
        $0.grants = .perRequest
        $0.copy = copy
      })
    victim.backend.keepRequests()
    victim.backend.catchUp()
    for index in 0..<12 {
      let data = Victim.bytes(8192, seed: UInt64(index))
      #expect(victim.perform(.write, index * 8192, 8192, data: data)?.status == .okay)
    }
    let used = victim.backend.observations.requests.flatMap { $0.segments.map(\.reference) }
    // Each page was granted once and never again while the backend had it.
    #expect(used.count == 24)
    #expect(Set(used).count == used.count)
    let counters = victim.queue.counters
    #expect(counters.grantsMade == counters.grantsEnded + 1 || counters.grantsMade == counters.grantsEnded)
    #expect(try victim.machine.toolstack.status(of: HostileMachine.domain).pagesShared <= 2)
    for index in 0..<12 {
      #expect(
        victim.backend.disk.contents(index * 8192, 8192) == Victim.bytes(8192, seed: UInt64(index)))
    }
    victim.stop()
  }

  @Test func case19_pagesKeptAfterTheEndAreEmptyAndNobodyElses() throws {
    var victim: Victim? = try Victim(Plan([.keepMappings]))
    victim?.expectWorking()
    let machine = try #require(victim?.machine)
    let backend = try #require(victim?.backend)
    victim?.stop(keepsBackend: true)
    #expect(backend.lookAtEverything().filled > 0)
    // The queue goes with its owner, and the pages with it.
    victim = nil
    let kept = backend.lookAtEverything()
    #expect(kept.pages > 10)
    #expect(kept.filled == 0, "\(kept.filled) of \(kept.pages) pages")
    #expect(try machine.toolstack.status(of: HostileMachine.domain).pagesShared == 0)
    // The next user of the domain's grant table gets others.
    backend.keepRequests()
    let next = try Victim(again: machine, backend)
    next.expectWorking()
    let used = Set(backend.observations.requests.flatMap { $0.segments.map(\.reference) })
    #expect(!used.isEmpty && used.isDisjoint(with: kept.references))
    next.stop()
  }

  @Test func case20_whatWasReadOnceDoesNotChangeAnyMore() throws {
    let victim = try Victim(
      Plan([.changeReadsAfterAnswer, .changeWrites]), options: Victim.options { $0.copy = .bounce })
    victim.keepsMemory = true
    for index in 0..<20 {
      let tag = try #require(victim.submit(.read, index * 8192 + 100, 5000))
      victim.run("an answer", until: { victim.ended[tag] != nil })
      victim.run(milliseconds: 5)
      // The backend may have changed its answer before it was copied; what was copied stays.
      let operation = try #require(victim.kept[tag])
      #expect(victim.contents(victim.queue, operation) == victim.ended[tag]?.data)
      victim.queue.release(operation)
    }
    victim.keepsMemory = false
    victim.backend.follow(Plan([.changeWrites]))
    // What is written is what the caller gave, whatever the pages of the sectors around it have become.
    for index in 0..<20 {
      let data = Victim.bytes(1000, seed: UInt64(index))
      #expect(victim.perform(.write, index * 4096 + 100, 1000, data: data)?.status == .okay)
      #expect(victim.backend.disk.contents(index * 4096 + 100, 1000) == data)
    }
    victim.stop()
  }

  @Test func case20_aDirectReadShowsOnlyItsOwnPages() throws {
    // Sent from the pages themselves: the backend can change its own answer for as long as it is not sent, no more.
    let victim = try Victim(Plan([.changeReadsAfterAnswer]))
    for index in 0..<50 {
      let read = try #require(victim.perform(.read, index * 4096, 4096))
      let disk = victim.backend.disk.contents(index * 4096, 4096)
      #expect(zip(read.data, disk).allSatisfy { $0 == $1 || $0 == 0x6C })
    }
    victim.stop()
  }

  @Test func case20_pagesOfABrokenDeviceAreNeverUsedAgain() throws {
    let victim = try Victim(Plan([.producer(add: 9)], after: 1))
    #expect(victim.status(.read, 0, 4096) == .okay)
    let tags = (0..<3).map { victim.submit(.write, $0 * 4096, 4096) }
    victim.expectBroken("responses", inFlight: tags)
    let taken = victim.backend.observations.taken
    for _ in 0..<20 { _ = victim.status(.write, 0, 4096) }
    #expect(victim.backend.observations.taken == taken)
    victim.stop()
  }

  @Test(arguments: CopyMode.allCases)
  func case21_whatIsWrittenBesideAReadReachesNobody(copy: CopyMode) throws {
    let victim = try Victim(Plan([.writeOutsideSegments]), options: Victim.options { $0.copy = copy })
    for (offset, count) in [(0, 100), (511, 2), (700, 5000), (4095, 1), (512, 512), (0, 45056 + 512)] {
      #expect(victim.perform(.read, offset, count)?.data == victim.backend.disk.contents(offset, count))
    }
    victim.expectWorking()
    victim.stop()
  }

  @Test(arguments: CopyMode.allCases, GrantMode.allCases)
  func case22_anUntrustedBackendSeesNothingOfEarlierRequestsBehindAWrite(copy: CopyMode, grants: GrantMode)
    throws
  {
    let victim = try Victim(
      trusted: false,
      options: Victim.options {
        $0.copy = copy
        $0.grants = grants
      })
    victim.backend.checkTails()
    for round in 0..<4 {
      #expect(victim.status(.write, 0, 65536) == .okay)
      for count in [512, 1024, 4096 + 512, 8192 + 3584, 100] {
        #expect(victim.status(.write, 131_072 + round * 512, count) == .okay)
        #expect(victim.status(.writeZeroes, 131_072, count) == .okay)
      }
    }
    // `stop` looks at what the backend has to complain about.
    victim.stop()
  }

  @Test func case22_theCheckSeesATrustedBackendsLeftovers() throws {
    let victim = try Victim()
    victim.backend.checkTails()
    #expect(victim.status(.write, 0, 65536) == .okay)
    for _ in 0..<20 { #expect(victim.status(.write, 0, 512) == .okay) }
    #expect(!victim.backend.observations.complaints.isEmpty)
    victim.backend.perform { $0.forgive() }
    victim.backend.catchUp()
    victim.stop()
  }

  @Test(arguments: CopyMode.allCases)
  func case23_listsOfSegmentsAreNotReadAgain(copy: CopyMode) throws {
    let victim = try Victim(
      Plan([.changeIndirectPages]), options: Victim.options { $0.copy = copy })
    victim.expectWorking()
    #expect(victim.queue.counters.indirectRequests > 0)
    victim.stop()
  }

  @Test(arguments: [0, 1])
  func case24_withoutPagesTheDeviceFailsCleanly(limit: Int) throws {
    let machine = try HostileMachine(pageLimit: 1024)
    let backend = try HostileBackend(machine)
    defer { backend.stop() }
    try machine.toolstack.setPageLimit(limit, of: HostileMachine.domain)
    do {
      let victim = try Victim(again: machine, backend)
      victim.stop()
      Issue.record("connected without a page")
    } catch let error as XbdError {
      #expect(error.message.contains("limit"), "\(error.message)")
    }
    #expect(try machine.toolstack.status(of: HostileMachine.domain).pagesShared == 0)
    // With pages it works, as if nothing had been.
    try machine.toolstack.setPageLimit(1024, of: HostileMachine.domain)
    let victim = try Victim(again: machine, backend)
    victim.expectWorking()
    victim.stop()
  }

  @Test(arguments: [2, 3, 12, 40], GrantMode.allCases)
  func case24_aLimitInTheMiddleMakesThePoolSmaller(limit: Int, grants: GrantMode) throws {
    let victim = try Victim(pageLimit: limit, options: Victim.options { $0.grants = grants })
    let tags = (0..<40).map {
      victim.submit(.write, $0 * 16384, 16384, data: Victim.bytes(16384, seed: UInt64($0)))
    }
    victim.run("every answer", until: { victim.ended.count == 40 })
    #expect(tags.allSatisfy { $0.flatMap { victim.ended[$0]?.status } == .okay })
    for index in 0..<40 {
      #expect(victim.backend.disk.contents(index * 16384, 16384) == Victim.bytes(16384, seed: UInt64(index)))
    }
    victim.run("a word about the limit", until: { victim.said.with { $0.contains { $0.contains("limit") } } })
    victim.stop()
  }

  @Test(arguments: [0, 1, 7], CopyMode.allCases)
  func case25_aBackendThatKeepsFewGrantsServesTheRightBytes(limit: Int, copy: CopyMode) throws {
    let victim = try Victim(Plan([.persistentLimit(limit)]), options: Victim.options { $0.copy = copy })
    for round in 0..<4 { victim.expectWorking(seed: UInt64(round)) }
    #expect(victim.backend.observations.mapped < 64)
    #expect(victim.queue.counters.grantsEnded == 0)
    victim.stop()
  }

  @Test func case26_persistenceComesAndGoesBetweenConnections() throws {
    let machine = try HostileMachine()
    let backend = try HostileBackend(machine, nodes: ["feature-persistent": "0"])
    for value in ["0", "1", "0", "1"] {
      backend.put("feature-persistent", value)
      backend.catchUp()
      let victim = try Victim(again: machine, backend)
      #expect(victim.device.features.persistent == (value == "1"))
      victim.expectWorking()
      victim.stop(keepsBackend: true)
    }
    #expect(backend.observations.connections == 4)
    backend.stop()
  }
}
