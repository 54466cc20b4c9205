// SPDX-License-Identifier: Apache-2.0

import Glibc

/// Bytes that differ from place to place.
enum Pattern {
  static let bytes: [UInt8] = {
    var generator = SeededGenerator(seed: 1)
    return [UInt8](unsafeUninitializedCapacity: 8 << 20) { buffer, count in
      let raw = UnsafeMutableRawBufferPointer(buffer)
      for index in stride(from: 0, to: raw.count, by: 8) {
        raw.storeBytes(of: generator.next(), toByteOffset: index, as: UInt64.self)
      }
      count = raw.count
    }
  }()
  /// Some of them.
  static func some(_ count: Int, seed: Int = 0) -> [UInt8] {
    let start = seed * 4099 % (4 << 20)
    return Array(bytes[start..<start + count])
  }
}

/// Compares as memcmp does: fast without optimisation, too.
func sameBytes(_ one: [UInt8], _ other: [UInt8]) -> Bool {
  one.count == other.count
    && one.withUnsafeBytes { first in
      other.withUnsafeBytes { second in
        guard let left = first.baseAddress, let right = second.baseAddress else { return true }
        return memcmp(left, right, first.count) == 0
      }
    }
}

/// A generator that repeats itself for the same seed (SplitMix64).
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }
  /// A number below a bound.
  mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(max(bound, 1))) }
}
