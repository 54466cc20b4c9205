// SPDX-License-Identifier: Apache-2.0
//
// An input read as a program: instruction bytes and their operands, from front to back. What is missing is zero.

/// The rest of an input.
struct FuzzInput {
  private let bytes: UnsafeBufferPointer<UInt8>
  private var position = 0

  init(_ bytes: UnsafeBufferPointer<UInt8>) { self.bytes = bytes }

  var isAtEnd: Bool { position >= bytes.count }

  mutating func byte() -> UInt8 {
    guard position < bytes.count else { return 0 }
    defer { position += 1 }
    return bytes[position]
  }

  /// A number below a bound.
  mutating func below(_ bound: Int) -> Int { bound <= 256 ? Int(byte()) % bound : Int(half()) % bound }

  mutating func flag() -> Bool { byte() & 1 != 0 }

  mutating func half() -> UInt16 { UInt16(byte()) | UInt16(byte()) << 8 }

  mutating func word() -> UInt32 { UInt32(half()) | UInt32(half()) << 16 }

  mutating func long() -> UInt64 { UInt64(word()) | UInt64(word()) << 32 }

  /// Up to `count` bytes.
  mutating func take(_ count: Int) -> [UInt8] {
    let taken = min(count, bytes.count - position)
    defer { position += taken }
    return Array(bytes[position..<position + taken])
  }

  mutating func rest() -> [UInt8] { take(bytes.count - position) }
}

/// SOCK_STREAM | SOCK_NONBLOCK, as a number.
let streamSocket: Int32 = 1 | 0o4000
