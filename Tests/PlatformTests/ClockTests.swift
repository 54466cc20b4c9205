// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing

@Suite struct ClockTests {
  @Test func aDurationInNanosecondsNeverWraps() {
    #expect(Duration.milliseconds(1500).nanoseconds == 1_500_000_000)
    #expect(Duration.nanoseconds(7).nanoseconds == 7)
    #expect(Duration.seconds(-1).nanoseconds == 0)
    for endless in [Int64.max, 1 << 40, 9_223_372_037] {
      #expect(Duration.seconds(endless).nanoseconds == UInt64(Int64.max))
    }
    #expect(Duration.seconds(9_223_372_035 as Int64).nanoseconds == 9_223_372_035_000_000_000)
  }
}
