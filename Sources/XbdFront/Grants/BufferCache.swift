// SPDX-License-Identifier: Apache-2.0
//
// Private memory for operations that cannot, or shall not, use granted pages directly: `--copy bounce`, unaligned
// writes, and operations larger than the pool. Sizes are powers of two; a few buffers of each size are kept so
// that a steady load allocates nothing.

internal import Glibc
internal import Platform

/// Buffers by size class.
///
/// Used by the queue's thread only.
struct BufferCache: ~Copyable {
  private static let smallest = 12  // 4 KiB
  private static let classes = 16  // up to 128 MiB
  /// Kept per class at most, in bytes; a larger buffer goes back to the system.
  private static let keptBytes = 4 << 20

  /// The first word of a kept buffer points to the next one.
  private let heads: UnsafeMutablePointer<UnsafeMutableRawPointer?>
  private let counts: UnsafeMutablePointer<Int>

  init() {
    heads = .allocate(capacity: Self.classes)
    heads.initialize(repeating: nil, count: Self.classes)
    counts = .allocate(capacity: Self.classes)
    counts.initialize(repeating: 0, count: Self.classes)
  }

  deinit {
    for index in 0..<Self.classes {
      while let buffer = heads[index] {
        heads[index] = buffer.load(as: UnsafeMutableRawPointer?.self)
        free(buffer)
      }
    }
    heads.deallocate()
    counts.deallocate()
  }

  /// The class that holds `byteCount` bytes.
  private static func index(for byteCount: Int) -> Int {
    let bits = Int.bitWidth - (max(byteCount, 1) - 1).leadingZeroBitCount
    return max(0, bits - smallest)
  }

  /// Gives a page-aligned buffer; its contents are left over from anywhere in this process.
  ///
  /// - Parameter byteCount: up to 128 MiB.
  /// - Returns: nil when memory is short or `byteCount` too large.
  mutating func take(_ byteCount: Int) -> UnsafeMutableRawPointer? {
    let index = Self.index(for: byteCount)
    guard index < Self.classes else { return nil }
    if let buffer = heads[index] {
      heads[index] = buffer.load(as: UnsafeMutableRawPointer?.self)
      counts[index] -= 1
      return buffer
    }
    var buffer: UnsafeMutableRawPointer?
    guard posix_memalign(&buffer, Page.size, 1 << (index + Self.smallest)) == 0 else { return nil }
    return buffer
  }

  /// Gives a buffer back.
  ///
  /// - Parameter byteCount: what it was taken for.
  mutating func put(_ buffer: UnsafeMutableRawPointer, _ byteCount: Int) {
    let index = Self.index(for: byteCount)
    guard (counts[index] + 1) << (index + Self.smallest) <= Self.keptBytes else {
      free(buffer)
      return
    }
    buffer.storeBytes(of: heads[index], as: UnsafeMutableRawPointer?.self)
    heads[index] = buffer
    counts[index] += 1
  }
}
