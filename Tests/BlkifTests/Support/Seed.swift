// SPDX-License-Identifier: Apache-2.0
//
// Random schedules that can be repeated: every failure names the seed, and XBD_TEST_SEED brings it back.

import Glibc

/// A generator that gives the same numbers for the same seed (splitmix64).
struct Seeded: RandomNumberGenerator {
  private var state: UInt64

  init(_ seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }
}

/// The seed of this run: XBD_TEST_SEED, or a new one.
let runSeed: UInt64 = {
  if let text = getenv("XBD_TEST_SEED"), let value = UInt64(String(cString: text)) { return value }
  let seed = UInt64.random(in: 0...UInt64.max)
  print("random schedules: XBD_TEST_SEED=\(seed)")
  return seed
}()
