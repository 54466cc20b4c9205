// SPDX-License-Identifier: Apache-2.0
//
// The one parser for numbers that the other end wrote into xenstore: decimal ASCII digits and nothing else.

/// Why a node's value is not the number that was asked for.
public enum NumberError: Error, Equatable, Sendable {
  /// Not one to twenty decimal digits.
  case malformed
  /// Digits, but outside the range that the node allows.
  case outOfRange(UInt64?)
}

/// Strict numbers.
public enum Decimal {
  /// Reads an unsigned number: no sign, no blanks, no other base, no trailing bytes.
  ///
  /// - Parameters:
  ///   - bytes: the node's value, untrusted.
  ///   - range: what the node may hold.
  public static func parse(
    _ bytes: some Collection<UInt8>, in range: ClosedRange<UInt64> = 0...UInt64.max
  ) throws(NumberError) -> UInt64 {
    guard !bytes.isEmpty, bytes.count <= 20 else { throw .malformed }
    var value: UInt64 = 0
    var overflow = false
    for byte in bytes {
      guard byte >= 0x30, byte <= 0x39 else { throw .malformed }
      let (product, first) = value.multipliedReportingOverflow(by: 10)
      let (sum, second) = product.addingReportingOverflow(UInt64(byte - 0x30))
      overflow = overflow || first || second
      value = sum
    }
    if overflow { throw .outOfRange(nil) }
    guard range.contains(value) else { throw .outOfRange(value) }
    return value
  }

  /// Reads an unsigned number from text.
  public static func parse(
    _ text: String, in range: ClosedRange<UInt64> = 0...UInt64.max
  ) throws(NumberError) -> UInt64 {
    try parse(text.utf8, in: range)
  }
}
