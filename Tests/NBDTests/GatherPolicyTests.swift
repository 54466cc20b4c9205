// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import NBD

/// Whichever way of sleeping serves a client best is the one that is kept.
@Suite struct GatherPolicyTests {
  /// A client, by what it sends and what that costs the thread in the 50 µs between two questions.
  private struct Load {
    var isDeep = true
    /// Requests for a sleep of so many nanoseconds.
    let requests: (Int) -> Int
    /// Nanoseconds of processor time for each of them.
    var cost: (Int) -> Int = { _ in 1000 }
  }

  private struct Run {
    var policy = GatherPolicy()
    var now: UInt64 = 1
    var processorTime: UInt64 = 0
    var sleep = 0

    /// Goes on for two seconds.
    ///
    /// - Returns: how often of the last thousand times each sleep was chosen.
    mutating func go(on load: Load) -> [Int: Int] {
      var chosen: [Int: Int] = [:]
      for turn in 0..<40_000 {
        now += 50_000
        let requests = load.requests(sleep)
        policy.observe(UInt64(requests))
        processorTime += UInt64(requests * load.cost(sleep))
        let total = processorTime
        sleep = policy.sleep(now: now, isDeep: load.isDeep) { total }
        if turn >= 39_000 { chosen[sleep, default: 0] += 1 }
      }
      return chosen
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

  @Test func singleRequestsAreNeverHeldUp() {
    var run = Run()
    let chosen = run.go(on: Load(isDeep: false, requests: { $0 == 0 ? 100 : 120 }))
    #expect(chosen[0] == 1000, "\(chosen)")
  }
}
