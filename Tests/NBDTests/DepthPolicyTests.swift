// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import NBD

/// Whether a client has more requests than come at a time.
@Suite struct DepthPolicyTests {
  /// A thousand turns, each of one request, but for those after a probe.
  private static func run(_ policy: inout DepthPolicy, found: UInt64, connections: Int = 1) -> (
    probes: Int, deep: Int
  ) {
    var probes = 0
    var deep = 0
    for _ in 0..<1000 {
      let probe = policy.shouldProbe()
      if probe { probes += 1 }
      policy.observe(batch: probe ? found : 1, connections: connections)
      if policy.isDeep { deep += 1 }
    }
    return (probes, deep)
  }

  @Test func oneRequestAtATimeIsNotDeepAndRarelyHeldUp() {
    var policy = DepthPolicy()
    let (probes, deep) = Self.run(&policy, found: 1)
    #expect(deep == 0)
    #expect((1...5).contains(probes))
  }

  @Test func batchesAreDeep() {
    var policy = DepthPolicy()
    for _ in 0..<20 { policy.observe(batch: 8, connections: 1) }
    #expect(policy.isDeep)
    for _ in 0..<20 { policy.observe(batch: 1, connections: 1) }
    #expect(!policy.isDeep)
  }

  @Test func requestsThatPileUpWhileTheyAreWaitedForAreDeep() {
    var policy = DepthPolicy()
    #expect(Self.run(&policy, found: 6).deep > 700)
    // And it is noticed when they no longer do.
    _ = Self.run(&policy, found: 1)
    #expect(!policy.isDeep)
  }

  @Test func oneRequestFromEachOfManyConnectionsIsNotDeep() {
    var policy = DepthPolicy()
    #expect(Self.run(&policy, found: 6, connections: 6).deep == 0)
  }
}
