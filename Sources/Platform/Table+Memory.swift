// SPDX-License-Identifier: Apache-2.0
//
// Elements of a table as calls want them that take an address and a count.

extension Table {
  /// Lends elements for the time of a call.
  ///
  /// - Parameters:
  ///   - range: which, within the table; checked.
  ///   - body: must not keep the pointer.
  @inlinable
  public func withUnsafeElements<Result, Failure: Error>(
    _ range: Range<Int>, _ body: (UnsafeBufferPointer<Element>) throws(Failure) -> Result
  ) throws(Failure) -> Result where Result: ~Copyable {
    precondition(range.lowerBound >= 0 && range.upperBound <= count, "more than the table has")
    // SAFETY: checked, and the table is borrowed until `body` returns.
    return unsafe try body(UnsafeBufferPointer(start: base + range.lowerBound, count: range.count))
  }

  /// Lends elements for the time of a call that changes them.
  ///
  /// - Parameters:
  ///   - range: which, within the table; checked.
  ///   - body: must not keep the pointer.
  @inlinable
  public mutating func withUnsafeMutableElements<Result, Failure: Error>(
    _ range: Range<Int>, _ body: (UnsafeMutableBufferPointer<Element>) throws(Failure) -> Result
  ) throws(Failure) -> Result where Result: ~Copyable {
    precondition(range.lowerBound >= 0 && range.upperBound <= count, "more than the table has")
    // SAFETY: checked, and the table is the caller's alone until `body` returns.
    return unsafe try body(UnsafeMutableBufferPointer(start: base + range.lowerBound, count: range.count))
  }
}
