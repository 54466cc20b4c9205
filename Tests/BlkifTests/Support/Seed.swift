// SPDX-License-Identifier: Apache-2.0
//
// Random schedules that can be repeated: every failure names the seed, and XBD_TEST_SEED brings it back.

import Glibc

/// The seed of this run: XBD_TEST_SEED, or a new one.
let runSeed: UInt64 = {
  if let text = getenv("XBD_TEST_SEED"), let value = UInt64(String(cString: text)) { return value }
  let seed = UInt64.random(in: 0...UInt64.max)
  print("random schedules: XBD_TEST_SEED=\(seed)")
  return seed
}()
