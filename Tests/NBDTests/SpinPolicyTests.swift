// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import NBD

/// When a worker spins and when it sleeps, without any clock.
@Suite struct SpinPolicyTests {
  @Test func aPolicyOfNoTimeNeverSpins() {
    var policy = SpinPolicy(maximumNanoseconds: 0)
    for _ in 0..<100 {
      policy.slept(1)
      let spins = policy.shouldSpin()
      #expect(!spins)
    }
  }

  @Test func oneRequestAtATimeIsWorthSpinningFor() {
    var policy = SpinPolicy(maximumNanoseconds: 50_000)
    for _ in 0..<100 {
      policy.observe(batch: 1)
      let spins = policy.shouldSpin()
      #expect(spins)
      policy.hit(after: 20_000)
    }
  }

  @Test func spinningInVainBecomesRareAndShortSleepsBringItBack() {
    var policy = SpinPolicy(maximumNanoseconds: 50_000)
    var spins = 0
    for _ in 0..<10_000 {
      policy.observe(batch: 1)
      if policy.shouldSpin() {
        spins += 1
        policy.miss()
      }
      policy.slept(5_000_000)
    }
    #expect(spins < 30)
    policy.slept(30_000)
    let again = policy.shouldSpin()
    #expect(again)
  }

  @Test func aDeepQueueIsNotSpunFor() {
    var byBatch = SpinPolicy(maximumNanoseconds: 50_000)
    for _ in 0..<50 { byBatch.observe(batch: 16) }
    let spinsForBatches = byBatch.shouldSpin()
    #expect(!spinsForBatches)
    var byGap = SpinPolicy(maximumNanoseconds: 50_000)
    for _ in 0..<200 {
      byGap.observe(batch: 2)
      byGap.hit(after: 500)
    }
    let spinsForGaps = byGap.shouldSpin()
    #expect(!spinsForGaps)
  }
}
