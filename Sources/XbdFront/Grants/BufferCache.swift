// SPDX-License-Identifier: Apache-2.0
//
// Private memory for operations that cannot, or shall not, use granted pages directly: `--copy bounce`, unaligned
// writes, and operations larger than the pool. Sizes are powers of two; a few buffers of each size are kept so
// that a steady load allocates nothing.

internal import Platform

/// Buffers by size class.
///
/// Used by the queue's thread only.
struct BufferCache: ~Copyable {
  private static let smallest = 12  // 4 KiB
  private static let classes = 16  // up to 128 MiB
  /// Kept per class at most, in bytes; a larger buffer goes back to the system.
  private static let keptBytes = 4 << 20

  /// The buffers of one size that are kept.
  private struct Shelf {
    var first: PrivateBuffer?
    var count = 0
  }

  private var shelves = Table(repeating: Shelf(), count: Self.classes)

  deinit {
    for index in 0..<Self.classes {
      var kept = shelves[index].first
      while let buffer = kept {
        kept = buffer.nextKept
        buffer.deallocate()
      }
    }
  }

  /// The class that holds `byteCount` bytes.
  private static func index(for byteCount: Int) -> Int {
    let bits = Int.bitWidth - (max(byteCount, 1) - 1).leadingZeroBitCount
    return max(0, bits - smallest)
  }

  /// Gives a page-aligned buffer; its contents are left over from anywhere in this process.
  ///
  /// - Parameter byteCount: up to 128 MiB.
  /// - Returns: a buffer of at least that size; nil when memory is short or `byteCount` too large.
  mutating func take(_ byteCount: Int) -> PrivateBuffer? {
    let index = Self.index(for: byteCount)
    guard index < Self.classes else { return nil }
    if let buffer = shelves[index].first {
      shelves[index].first = buffer.nextKept
      shelves[index].count -= 1
      return buffer
    }
    return PrivateBuffer(allocating: 1 << (index + Self.smallest))
  }

  /// Gives a buffer back.
  mutating func put(_ buffer: PrivateBuffer) {
    let index = Self.index(for: buffer.byteCount)
    guard (shelves[index].count + 1) << (index + Self.smallest) <= Self.keptBytes else {
      return buffer.deallocate()
    }
    buffer.nextKept = shelves[index].first
    shelves[index].first = buffer
    shelves[index].count += 1
  }
}
