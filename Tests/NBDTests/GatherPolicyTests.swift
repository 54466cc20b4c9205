// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import NBD

/// Whichever way of sleeping serves more requests is the one that is kept.
@Suite struct GatherPolicyTests {
  /// A client that sends so many requests each time that the policy is asked, which is every 50 µs.
  ///
  /// - Returns: how often of the last thousand times the timer was chosen.
  private func gathers(
    withTimer: UInt64, without: UInt64, isDeep: Bool = true, policy: inout GatherPolicy, from start: UInt64
  ) -> Int {
    var now = start
    var gathers = 0
    var isGathering = false
    for turn in 0..<20_000 {
      now += 50_000
      policy.observe(isGathering ? withTimer : without)
      isGathering = policy.shouldGather(now: now, isDeep: isDeep)
      if turn >= 19_000, isGathering { gathers += 1 }
    }
    return gathers
  }

  @Test func aTimerThatBringsMoreRequestsIsKept() {
    var policy = GatherPolicy()
    #expect(gathers(withTimer: 12, without: 10, policy: &policy, from: 1) > 900)
  }

  @Test func aTimerThatBringsFewerIsHardlyEverTried() {
    var policy = GatherPolicy()
    #expect(gathers(withTimer: 6, without: 10, policy: &policy, from: 1) < 200)
  }

  @Test func aTimerThatMakesNoDifferenceIsNotKept() {
    var policy = GatherPolicy()
    #expect(gathers(withTimer: 10, without: 10, policy: &policy, from: 1) < 200)
  }

  @Test func anotherLoadChangesTheAnswer() {
    var policy = GatherPolicy()
    #expect(gathers(withTimer: 12, without: 10, policy: &policy, from: 1) > 900)
    #expect(gathers(withTimer: 6, without: 10, policy: &policy, from: 2_000_000_000) < 200)
    #expect(gathers(withTimer: 12, without: 10, policy: &policy, from: 4_000_000_000) > 900)
  }

  @Test func singleRequestsAreNeverHeldUp() {
    var policy = GatherPolicy()
    #expect(gathers(withTimer: 12, without: 10, isDeep: false, policy: &policy, from: 1) == 0)
  }
}
