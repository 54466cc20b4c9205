// SPDX-License-Identifier: Apache-2.0
//
// Where the fields of requests and responses lie, for the three layouts that exist (xen/io/protocols.h).
//
//                      x86_64, arm               x86_32 (64-bit fields aligned to 4)
//   operation u8            0                         0
//   nr_segments u8          1                         1
//   handle u16              2                         2
//   id u64                  8                         4
//   sector_number u64      16                        12
//   seg[11]                24                        20
//   slot stride           112                       108
//
// A 32-bit guest's fields from `id` on lie four bytes lower; nothing else differs. Responses use the same slots.

/// One of the three layouts of blkif, as the `protocol` node names it.
public enum ABI: String, Sendable, CaseIterable {
  /// 64-bit x86.
  case x86_64 = "x86_64-abi"
  /// 32-bit x86.
  case x86_32 = "x86_32-abi"
  /// 32- and 64-bit arm; laid out like x86_64.
  case arm = "arm-abi"

  /// The layout of the machine that this was compiled for.
  public static var native: ABI {
    #if arch(x86_64)
      .x86_64
    #elseif arch(i386)
      .x86_32
    #else
      .arm
    #endif
  }
}

/// Offsets and sizes, in bytes, of one ABI.
public struct RingLayout: Sendable, Equatable {
  /// How much lower than in x86_64 the fields from `id` on lie: 0 or 4.
  @usableFromInline let shift: Int

  /// The layout of an ABI.
  @inlinable
  public init(_ abi: ABI) {
    shift = abi == .x86_32 ? 4 : 0
  }

  /// The four indices and their padding, before the first slot (ring.h: struct __name##_sring).
  public static let headerSize = 64
  /// From one slot to the next.
  @inlinable public var stride: Int { 112 - shift }
  @inlinable var id: Int { 8 - shift }
  @inlinable var sector: Int { 16 - shift }
  @inlinable var segments: Int { 24 - shift }
  @inlinable var discardSectorCount: Int { 24 - shift }
  @inlinable var indirectHandle: Int { 24 - shift }
  @inlinable var indirectReferences: Int { 28 - shift }

  /// How many requests a ring holds: the largest power of two that fits (ring.h: __RING_SIZE).
  ///
  /// - Parameter pageCount: 1 or more.
  public func capacity(pageCount: Int) -> UInt32 {
    let slots = (pageCount * 4096 - Self.headerSize) / stride
    return 1 << UInt32(31 - UInt32(slots).leadingZeroBitCount)
  }
}
