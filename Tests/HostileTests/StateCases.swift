// SPDX-License-Identifier: Apache-2.0
//
// Cases 39 to 45 of the hostile backend: the order in which states come, and devices that change under their users.

import Glibc
import HostileBackend
import Platform
import Testing
import Xen
import XenLoopback

@testable import XbdFront

@Suite struct StateCases {
  /// Every content that a state node can have.
  static let contents: [String?] =
    (0...8).map { String($0) } + [nil, "abc", "99", "-1", "", "4 ", String(repeating: "4", count: 2000)]

  @Test(arguments: contents)
  func case39_everyPairOfStatesComesToAnOutcome(own: String?) throws {
    let machine = try HostileMachine()
    let frontend = try machine.frontend()
    let store = machine.toolstack.store
    let front = machine.device.frontendPath + "/state"
    let back = machine.device.backendPath + "/state"
    try store.write(machine.device.backendPath + "/sectors", "2048")
    for backend in Self.contents {
      for (path, value) in [(front, own), (back, backend)] {
        if let value { try store.write(path, value) } else { try store.remove(path) }
      }
      let options = Victim.options {
        $0.handshakeTimeout = .milliseconds(25)
        $0.initialisingGrace = .milliseconds(5)
        $0.closeTimeout = .milliseconds(10)
      }
      let began = MonotonicClock.nanoseconds()
      do {
        let device = try BlockDevice.connect(
          String(machine.device.virtualDevice), on: frontend, options: options,
          logger: Victim.logger(Locked([])))
        // NetBSD's is at Connected before there is a ring; nothing else may pass for connected. With a frontend that has
        // closed it is connected to that one's ring.
        #expect(backend == "4" && own != "6", "own \(own ?? "-"), backend \(backend ?? "-")")
        device.close()
        while !device.waitUntilClosed(milliseconds: 1), MonotonicClock.nanoseconds() - began < 20_000_000_000
        {
          device.queues[0].poll()
        }
      } catch {
        #expect([.timedOut, .backendGone].contains(error.code), "\(error)")
        #expect(error.message.contains("backend "))
      }
      #expect(MonotonicClock.nanoseconds() - began < 20_000_000_000)
      #expect(try machine.toolstack.status(of: HostileMachine.domain).pagesShared <= 1)
    }
  }

  @Test func case40_aBackendAtConnectedBeforeThereIsARingIsServed() throws {
    let victim = try Victim(Plan([.startAt(4)]))
    victim.expectWorking()
    victim.stop()
    // And one that skips InitWait.
    let other = try Victim(Plan([.startAt(3)]))
    other.expectWorking()
    other.stop()
  }

  @Test(arguments: [[4], [4, 4, 4, 4], [7, 8, 4], [3, 4], [3], [8], [7, 3, 8, 4]] as [[UInt8]])
  func case40_statesThatMeanNothingChangeNothing(states: [UInt8]) throws {
    let victim = try Victim()
    victim.backend.follow(Plan([.bounce(states)]))
    victim.run(milliseconds: 100)
    victim.expectWorking()
    victim.stop()
  }

  @Test(arguments: [1, 2, 0, 6] as [UInt8])
  func case40_aBackendThatGoesBackFailsWhatIsInFlight(state: UInt8) throws {
    let victim = try Victim(Plan([.neverAnswer(every: 1)], after: 1))
    #expect(victim.status(.read, 0, 4096) == .okay)
    let tag = try #require(victim.submit(.read, 0, 4096))
    victim.run(milliseconds: 20)
    victim.backend.go(to: state)
    victim.run("a failed device", until: { victim.failure != nil })
    victim.run("an end of the request", until: { victim.ended[tag] != nil })
    #expect(victim.failure?.code == .backendGone)
    #expect(victim.failure?.message.contains("\(state) (") == true)
    #expect(victim.ended[tag]?.status == .shutdown)
    victim.stop()
  }

  @Test func case41_closingInTheMiddleOfRequestsWaitsForThem() throws {
    let victim = try Victim(
      Plan([.answerLate(milliseconds: 150)]), options: Victim.options { $0.closeTimeout = .seconds(20) })
    let tags = (0..<4).map { victim.submit(.read, $0 * 4096, 4096) }
    victim.run(milliseconds: 10)
    victim.backend.go(to: 5)
    victim.run("every answer", until: { victim.ended.count == 4 })
    for (index, tag) in tags.enumerated() {
      #expect(tag.flatMap { victim.ended[$0]?.data } == victim.backend.disk.contents(index * 4096, 4096))
    }
    victim.run("a closed device", until: { victim.device.waitUntilClosed(milliseconds: 1) })
    #expect(victim.device.state == .closed)
    victim.backend.catchUp()
    #expect(victim.backend.observations.states.last == 6)
    victim.stop()
  }

  @Test(arguments: [true, false])
  func case41_aDirectoryThatVanishesFailsWhatIsInFlight(comesBack: Bool) throws {
    let victim = try Victim(Plan([.neverAnswer(every: 1)], after: 1))
    #expect(victim.status(.read, 0, 4096) == .okay)
    let tag = try #require(victim.submit(.read, 0, 4096))
    victim.run(milliseconds: 20)
    victim.backend.follow(Plan([.vanish, .neverAnswer(every: 1)]))
    if comesBack {
      victim.backend.put("sectors", "8192")
      victim.backend.go(to: 2)
    }
    victim.run("a failed device", until: { victim.failure != nil })
    victim.run("an end of the request", until: { victim.ended[tag] != nil })
    #expect(victim.failure?.code == .backendGone)
    #expect(victim.ended[tag]?.status == .shutdown)
    victim.stop()
  }

  @Test func case41_aDeviceTakenAwayByForceIsNotCreatedAgain() throws {
    let victim = try Victim(Plan([.neverAnswer(every: 1)]))
    let tag = try #require(victim.submit(.read, 0, 4096))
    victim.run(milliseconds: 20)
    try victim.machine.toolstack.forget(victim.machine.device)
    victim.run("a failed device", until: { victim.failure != nil })
    victim.run("an end of the request", until: { victim.ended[tag] != nil })
    victim.stop()
    #expect(victim.failure?.message.contains("removed") == true)
    #expect(try victim.machine.toolstack.store.read(victim.machine.device.frontendPath + "/state") == nil)
  }

  @Test func case42_theToolstackTakesTheDeviceAway() throws {
    let victim = try Victim()
    victim.expectWorking()
    try victim.machine.toolstack.detach(victim.machine.device)
    victim.run("a closed device", until: { victim.device.waitUntilClosed(milliseconds: 1) })
    #expect(victim.status(.read, 0, 4096) == .shutdown)
    #expect(try victim.machine.toolstack.store.read(victim.machine.device.frontendPath + "/state") == "6")
    victim.stop()
  }

  @Test(arguments: [5, 6, 0] as [UInt8])
  func case42_aBackendThatClosesDuringTheHandshakeIsRefused(state: UInt8) throws {
    // At 3 the ring is published; then this backend leaves instead of connecting.
    let machine = try HostileMachine()
    let backend = try HostileBackend(machine, plan: Plan([.refuseToConnect(state)]))
    defer { backend.stop() }
    do {
      let victim = try Victim(again: machine, backend)
      victim.stop(keepsBackend: true)
      Issue.record("connected")
    } catch let error as XbdError {
      #expect(error.code == .backendGone)
      #expect(error.message.contains("backend \(state) ("), "\(error)")
    }
    #expect(try machine.toolstack.status(of: HostileMachine.domain).pagesShared == 0)
  }

  @Test func case42_aBackendLeftClosedByAnEarlierUserIsWaitedFor() throws {
    let victim = try Victim(Plan([.startAt(6)]))
    victim.expectWorking()
    victim.stop()
  }

  @Test func case42_whatACrashLeftBehindIsClosedFirst() throws {
    let machine = try HostileMachine()
    let backend = try HostileBackend(machine)
    for state in ["4", "3", "5"] {
      try machine.toolstack.store.write(machine.device.frontendPath + "/state", state)
      let victim = try Victim(
        again: machine, backend, options: Victim.options { $0.handshakeTimeout = .seconds(3) })
      victim.expectWorking()
      // It has tried to map the earlier ring, which is gone.
      backend.forgive()
      victim.stop(keepsBackend: true)
    }
    backend.stop()
  }

  @Test(arguments: [5, 6] as [UInt8])
  func case42_aBackendThatFollowsTheClosingLateIsWaitedFor(state: UInt8) throws {
    // It had nothing to let go of, and comes to read our 5 or 6 when the ring is published.
    let machine = try HostileMachine()
    try machine.toolstack.store.write(machine.device.frontendPath + "/state", "4")
    let backend = try HostileBackend(machine, plan: Plan([.followLate(state)]))
    let victim = try Victim(again: machine, backend)
    victim.expectWorking()
    backend.forgive()
    victim.stop()
  }

  @Test(arguments: [1, 2, 3, 5] as [UInt8])
  func case43_aBackendThatStaysWhereItIsIsNamedWithBothStates(state: UInt8) throws {
    let began = MonotonicClock.nanoseconds()
    let error = try refusal(
      Plan([.stuck(state)]),
      options: Victim.options {
        $0.handshakeTimeout = .milliseconds(200)
        $0.initialisingGrace = .seconds(5)
      })
    #expect(error?.code == .timedOut || (state == 5 && error?.code == .backendGone))
    #expect(error?.message.contains("backend \(state) (") == true, "\(error as Any)")
    #expect(error?.message.contains("frontend ") == true)
    #expect(MonotonicClock.nanoseconds() - began < 20_000_000_000)
  }

  @Test func case45_sizesThatChangeUnderTheirUsers() throws {
    let victim = try Victim(Plan([.answerLate(milliseconds: 100)]))
    // In flight beyond the end that the device is about to have.
    let far = try #require(victim.submit(.write, 3 << 20, 8192))
    victim.run(milliseconds: 5)
    for (sectors, expected) in [
      ("2048", 2048), ("0", 0), ("x", 0), ("18446744073709551615", 0), ("8192", 8192),
    ]
      as [(String, UInt64)]
    {
      victim.backend.put("sectors", sectors)
      victim.backend.go(to: 4)
      victim.backend.catchUp()
      victim.run("size \(sectors)", until: { victim.queue.parameters.sectorCount == expected })
      let last = expected << 9
      if last == 0 {
        #expect(victim.status(.read, 0, 512) == .outOfRange)
      } else {
        #expect(victim.status(.read, Int(last) - 512, 512) == .okay)
        #expect(victim.status(.read, Int(last) - 512, 1024) == .outOfRange)
        #expect(victim.status(.write, Int(last), 512) == .outOfRange)
      }
    }
    victim.run("an end of what was in flight", until: { victim.ended[far] != nil })
    #expect(victim.ended[far]?.status == .okay)
    // A state without a change of size, a size without a state, another sector size: nothing.
    victim.backend.go(to: 4)
    victim.backend.put("sectors", "4096")
    victim.backend.put("sector-size", "4096")
    victim.backend.catchUp()
    victim.run(milliseconds: 100)
    #expect(victim.queue.parameters.sectorSize == 512)
    victim.backend.follow(Plan())
    victim.expectWorking()
    victim.stop()
  }

  @Test func case45_aStormOfSizesIsSurvived() throws {
    let victim = try Victim(Plan([.resizeStorm], after: 1))
    for index in 0..<60 {
      #expect(victim.status(.read, index * 4096, 4096) == .okay)
      victim.run(milliseconds: 10)
    }
    // Each size is worth a word to people, but they are not drowned in them.
    let said = victim.said.with { $0.count }
    #expect(said < 200, "\(said)")
    victim.backend.follow(Plan())
    victim.expectWorking()
    victim.stop()
  }
}
