// SPDX-License-Identifier: Apache-2.0

import TestSupport
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
