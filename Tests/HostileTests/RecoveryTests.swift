// SPDX-License-Identifier: Apache-2.0
//
// Case 44 of the hostile backend, and what comes after harm: with `--reconnect` the device is of use again as soon as
// its backend behaves.

import HostileBackend
import Platform
import Testing
import Xen
import XenLoopback

@testable import XbdFront

@Suite struct RecoveryTests {
  static func options(_ change: (inout FrontendOptions) -> Void = { _ in }) -> FrontendOptions {
    Victim.options {
      $0.reconnects = true
      $0.reconnectPause = .milliseconds(50)
      $0.reconnectTimeout = .seconds(25)
      $0.handshakeTimeout = .seconds(2)
      $0.requestTimeout = .seconds(3)
      change(&$0)
    }
  }

  @Test(arguments: CopyMode.allCases, [true, false])
  func case44_whatIsInFlightWhenTheDomainMigratesIsAskedAgainOnce(copy: CopyMode, reconnects: Bool) throws {
    // With or without `--reconnect`: a migration is nobody's death.
    let victim = try Victim(
      Plan([.answerLate(milliseconds: 100)]),
      options: Self.options {
        $0.copy = copy
        $0.reconnects = reconnects
        // It answers everything, but on a busy machine its thread may wait.
        $0.requestTimeout = .seconds(20)
      })
    for round in 0..<3 {
      var writes: [(UInt64?, Int, [UInt8])] = []
      var reads: [(UInt64?, Int)] = []
      let before = victim.ended.count
      for index in 0..<10 {
        let place = index * 65536
        let data = Victim.bytes(20480, seed: UInt64(round * 100 + index))
        writes.append((victim.submit(.write, place, 20480, data: data), place, data))
        reads.append((victim.submit(.read, (2 << 20) + place, 12288), (2 << 20) + place))
      }
      victim.run(milliseconds: 20)
      try victim.machine.toolstack.migrate(HostileMachine.domain)
      victim.run("every answer", until: { victim.ended.count >= before + 20 || victim.failure != nil })
      for (tag, place, data) in writes {
        #expect(tag.flatMap { victim.ended[$0]?.status } == .okay)
        #expect(victim.perform(.read, place, 20480)?.data == data)
      }
      for (tag, place) in reads {
        #expect(tag.flatMap { victim.ended[$0]?.data } == victim.backend.disk.contents(place, 12288))
      }
      #expect(victim.failure == nil)
      #expect(victim.queue.unfinishedOperations == 0)
    }
    #expect(victim.backend.observations.connections == 4)
    #expect(victim.queue.counters.resubmissions > 0)
    victim.backend.follow(Plan())
    victim.expectWorking()
    // The rings of before are of no use to anybody.
    victim.stop(complains: false)
  }

  /// Each breaks the device for certain.
  static let harm: [[Fault]] = [
    [.wrongID(.beyondTheRing)], [.answerTwice(sameBatch: true), .neverAnswer(every: 2)], [.operation(7)],
    [.producer(add: 1 << 31)], [.neverAnswer(every: 1)], [.closeChannel], [.answerTheFuture, .eventStorm],
    [.producer(add: 40), .watchStorm],
  ]

  @Test(arguments: harm)
  func afterHarmTheDeviceWorksAgainWhenItsBackendBehaves(faults: [Fault]) throws {
    let victim = try Victim(options: Self.options())
    victim.expectWorking()
    for episode in 0..<2 {
      let connections = victim.backend.observations.connections
      victim.backend.follow(Plan(faults))
      let tags = (0..<6).compactMap { victim.submit(.read, $0 * 4096, 4096) }
      victim.run("an end of everything in flight", until: { tags.allSatisfy { victim.ended[$0] != nil } })
      let failed = tags.filter { victim.ended[$0]?.status != .okay }
      #expect(!failed.isEmpty || faults == [.closeChannel])
      #expect(failed.allSatisfy { victim.ended[$0]?.status == .ioError })
      #expect(failed.allSatisfy { victim.ended[$0]?.data.isEmpty == true })
      // It may have connected meanwhile, and been harmed again.
      victim.backend.follow(Plan())
      victim.run(
        "a working device",
        until: {
          victim.status(.read, 0, 4096) == .okay && victim.backend.observations.connections > connections
        })
      victim.expectWorking(seed: UInt64(episode))
    }
    #expect(victim.queue.counters.reconnections >= 2)
    #expect(victim.said.with { $0.contains { $0.contains("is broken") } })
    victim.stop(complains: false)
  }
}
