// SPDX-License-Identifier: Apache-2.0

import NBDTestSupport
import Testing

@testable import NBD

/// How much is received at a time follows what comes, and never holds a request up.
@Suite struct ReceiveQuotaTests {
  @Test func aFewRequestsAreAsManyBytesAsTheyCameWith() {
    var quota = ReceiveQuota()
    for _ in 0..<200 { quota.took(28 + 4096) }
    #expect(quota.bytes(requests: 8) == 8 * 4124)
    for _ in 0..<400 { quota.took(28) }
    // One that divides no further is as small as it gets: sixteen bytes and a header.
    #expect(quota.bytes(requests: 8) <= 8 * 48)
  }

  @Test func largeRequestsAmongSmallOnesAreRemembered() {
    var quota = ReceiveQuota()
    for turn in 0..<400 { quota.took(turn % 4 == 0 ? 28 + 4096 : 28) }
    #expect(quota.bytes(requests: 8) >= 6 * 4124)
  }

  @Test func theRestOfARequestMayComeAtOnce() {
    var quota = ReceiveQuota()
    for _ in 0..<400 { quota.took(28) }
    quota.needs(28 + 32_768)
    #expect(quota.bytes(requests: 8) >= 28 + 32_768)
    quota.expectsHeader(28)
    quota.needs(28 + 32_768)
    #expect(quota.bytes(requests: 1) >= 28 + 32_768)
  }

  @Test func onlyAHeaderIsReceivedWhereALargePayloadMayFollow() {
    var quota = ReceiveQuota()
    quota.expectsHeader(28)
    #expect(quota.bytes(requests: 4096) == 28)
    for _ in 0..<8 { quota.took(28) }
    #expect(quota.bytes(requests: 4096) > 64 << 10)
  }

  @Test func whatIsDroppedComesInLargePieces() {
    var quota = ReceiveQuota()
    for _ in 0..<400 { quota.took(28) }
    quota.expectsHeader(28)
    quota.lift()
    #expect(quota.bytes(requests: 8) >= WorkerLoop.bufferSize)
  }
}
