// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import NBD

/// Whichever way of sleeping serves a client best is the one that is kept.
@Suite struct GatherPolicyTests {
  /// A client, by what it sends and what that costs the thread in the 50 µs between two questions.
  private struct Load {
    var isDeep = true
    var connections = 1
    /// Requests for a sleep of so many nanoseconds.
    let requests: (Int) -> Int
    /// Nanoseconds of processor time for each of them.
    var cost: (Int) -> Int = { _ in 1000 }
    /// Requests more, in per cent, for a thread that is patient.
    var gainOfPatience = 0
    /// What everything is multiplied by at a time, in per cent: others use the machine.
    var weather: (UInt64) -> Int = { _ in 100 }
  }

  private struct Run {
    var policy = GatherPolicy(processors: 2)
    var now: UInt64 = 1
    var processorTime: UInt64 = 0
    var way = SleepWay.plain

    /// Goes on for two seconds.
    ///
    /// - Returns: how often of the last thousand times each sleep was chosen.
    mutating func go(on load: Load) -> [Int: Int] {
      var chosen: [Int: Int] = [:]
      go(on: load) { chosen[$0.nanoseconds, default: 0] += 1 }
      return chosen
    }

    mutating func go(on load: Load, last thousand: (SleepWay) -> Void) {
      for turn in 0..<40_000 {
        step(load)
        if turn >= 39_000 { thousand(way) }
      }
    }

    /// - Returns: how often of the next turns a sleep was chosen.
    mutating func count(of nanoseconds: Int, in turns: Int, on load: Load) -> Int {
      var count = 0
      for _ in 0..<turns {
        step(load)
        if way.nanoseconds == nanoseconds { count += 1 }
      }
      return count
    }

    private mutating func step(_ load: Load) {
      now += 50_000
      let percent = (way.isPatient ? 100 + load.gainOfPatience : 100) * load.weather(now)
      let requests = load.requests(way.nanoseconds) * percent / 10_000
      policy.observe(UInt64(requests))
      processorTime += UInt64(requests * load.cost(way.nanoseconds))
      let total = processorTime
      way = policy.way(now: now, connections: load.connections, isDeep: load.isDeep) { total }
    }
  }

  @Test func aSleepThatBringsMoreRequestsIsKept() {
    var run = Run()
    let chosen = run.go(on: Load { [0: 100, 20_000: 120][$0] ?? 80 })
    #expect(chosen[20_000, default: 0] > 700, "\(chosen)")
  }

  @Test func aSleepThatBringsFewerIsHardlyEverTried() {
    var run = Run()
    let chosen = run.go(on: Load { $0 == 0 ? 100 : 60 })
    #expect(chosen[0, default: 0] > 700, "\(chosen)")
  }

  @Test func aSleepThatMakesNoDifferenceIsNotKept() {
    var run = Run()
    let chosen = run.go(on: Load { _ in 100 })
    #expect(chosen[0, default: 0] > 600, "\(chosen)")
  }

  @Test func aSleepThatBringsAsManyForMuchLessIsKept() {
    var run = Run()
    let chosen = run.go(on: Load(requests: { _ in 100 }, cost: { 1000 - $0 / 100 }))
    #expect(chosen[80_000, default: 0] > 600, "\(chosen)")
  }

  @Test func whatSavesALittleIsNotWorthManyRequests() {
    var run = Run()
    let chosen = run.go(on: Load(requests: { $0 == 0 ? 100 : 90 }, cost: { $0 == 0 ? 1000 : 800 }))
    #expect(chosen[0, default: 0] > 700, "\(chosen)")
  }

  @Test func aSleepIsNoLongerThanTheClientHasRequestsFor() {
    var run = Run()
    let load = Load(requests: { $0 > 40_000 ? 70 : 100 + $0 / 1300 }, cost: { 1000 - $0 / 130 })
    let chosen = run.go(on: load)
    #expect(chosen[40_000, default: 0] > 600, "\(chosen)")
  }

  @Test func anotherLoadChangesTheAnswer() {
    var run = Run()
    let deep = Load { $0 == 0 ? 100 : 120 }
    #expect(run.go(on: deep)[0, default: 0] < 300)
    #expect(run.go(on: Load { $0 == 0 ? 100 : 60 })[0, default: 0] > 700)
    #expect(run.go(on: deep)[0, default: 0] < 300)
  }

  @Test func patienceIsKeptWhereItPays() {
    var patient = 0
    var run = Run()
    run.go(on: Load(requests: { $0 == 0 ? 100 : 60 }, gainOfPatience: 10)) { patient += $0.isPatient ? 1 : 0 }
    #expect(patient > 700, "\(patient)")
    // So small a change of the load is not seen at once.
    let other = Load(requests: { $0 == 0 ? 100 : 60 }, gainOfPatience: -10)
    run.go(on: other) { _ in }
    patient = 0
    run.go(on: other) { patient += $0.isPatient ? 1 : 0 }
    #expect(patient < 300, "\(patient)")
  }

  @Test func whatElseGoesOnInTheMachineIsNotTakenForTheEffectOfASleep() {
    // Every 30 ms the machine has half as much left, whatever the sleep.
    let weather: (UInt64) -> Int = { $0 / 30_000_000 % 2 == 0 ? 100 : 50 }
    var run = Run()
    let chosen = run.go(on: Load(requests: { $0 == 20_000 ? 120 : 100 }, weather: weather))
    #expect(chosen[20_000, default: 0] > 700, "\(chosen)")
  }

  @Test func anotherClientIsLearnedAboutSoon() {
    var run = Run()
    _ = run.go(on: Load { $0 == 0 ? 100 : 60 })
    // Of half a second.
    let inTime = run.count(
      of: 20_000, in: 10_000, on: Load(connections: 2, requests: { $0 == 20_000 ? 130 : 100 }))
    #expect(inTime > 4000, "\(inTime)")
  }

  @Test func aTimerIsTheFirstGuessWhereAProcessorIsLeft() {
    var one = Run()
    #expect(one.count(of: 40_000, in: 100, on: Load { _ in 100 }) == 100)
    var two = Run()
    #expect(two.count(of: 0, in: 100, on: Load(connections: 2, requests: { _ in 100 })) == 100)
    #expect(two.way.isPatient)
  }

  @Test func onlyBehindATimerRequestsAreAnsweredInParts() {
    var run = Run()
    run.go(on: Load { [0: 100, 20_000: 120][$0] ?? 80 }) { way in
      #expect((way.requestsAtOnce <= 16) == (way.nanoseconds > 0))
    }
  }

  @Test func whatWasBestForSoManyConnectionsIsKnownWhenTheyComeBack() {
    var run = Run()
    let one = Load { $0 == 20_000 ? 130 : 100 }
    let two = Load(connections: 2, requests: { $0 == 0 ? 130 : 100 })
    _ = run.go(on: one)
    _ = run.go(on: two)
    // Of the first 20 ms, in which nothing can be learned.
    #expect(run.count(of: 20_000, in: 400, on: one) == 400)
    #expect(run.count(of: 0, in: 400, on: two) == 400)
  }

  @Test func singleRequestsAreNeverHeldUp() {
    var run = Run()
    let chosen = run.go(on: Load(isDeep: false, requests: { $0 == 0 ? 100 : 120 }))
    #expect(chosen[0] == 1000, "\(chosen)")
  }
}
