// SPDX-License-Identifier: Apache-2.0
//
// Big-endian integers in spans of bytes and in arrays: the wire's byte order.

extension RawSpan {
  /// A big-endian integer at an unaligned offset in bytes; one outside of the span ends the process.
  @inline(__always)
  func bigEndian<Value: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, as type: Value.Type) -> Value {
    // SAFETY: the span checks the place, and any bytes are a value of an integer.
    unsafe Value(bigEndian: unsafeLoadUnaligned(fromByteOffset: offset, as: Value.self))
  }
}

extension MutableRawSpan {
  /// Stores an integer big-endian at an unaligned offset in bytes; one outside of the span ends the process.
  @inline(__always)
  mutating func putBigEndian<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value, at offset: Int) {
    storeBytes(of: value.bigEndian, toByteOffset: offset, as: Value.self)
  }
}

extension Array where Element == UInt8 {
  /// Appends an integer, most significant byte first.
  mutating func appendBigEndian<Value: FixedWidthInteger>(_ value: Value) {
    for shift in stride(from: Value.bitWidth - 8, through: 0, by: -8) {
      append(UInt8(truncatingIfNeeded: value >> shift))
    }
  }
}

/// Reads a message from front to back; nil as soon as it is too short.
struct ByteReader {
  private var rest: ArraySlice<UInt8>

  init(_ bytes: ArraySlice<UInt8>) { rest = bytes }

  /// Bytes not read yet.
  var count: Int { rest.count }

  mutating func integer<Value: FixedWidthInteger & UnsignedInteger>(_ type: Value.Type) -> Value? {
    let width = Value.bitWidth / 8
    guard rest.count >= width else { return nil }
    let value = rest.prefix(width).reduce(Value(0)) { $0 << 8 | Value($1) }
    rest = rest.dropFirst(width)
    return value
  }

  mutating func bytes(_ count: UInt32) -> ArraySlice<UInt8>? {
    guard count <= rest.count else { return nil }
    defer { rest = rest.dropFirst(Int(count)) }
    return rest.prefix(Int(count))
  }
}
