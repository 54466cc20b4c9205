// SPDX-License-Identifier: Apache-2.0
//
// Elements of a table as calls want them that take several at once.

extension Table {
  /// Lends elements for the time of a call.
  ///
  /// - Parameters:
  ///   - range: which, within the table; checked.
  ///   - body: is given them in order.
  @inlinable
  public func withElements<Result, Failure: Error>(
    _ range: Range<Int>, _ body: (Span<Element>) throws(Failure) -> Result
  ) throws(Failure) -> Result where Result: ~Copyable {
    precondition(range.lowerBound >= 0 && range.upperBound <= count, "more than the table has")
    // SAFETY: checked, and the table is borrowed until `body` returns, which the span does not outlive.
    let elements = unsafe UnsafeBufferPointer(start: base + range.lowerBound, count: range.count)
    return unsafe try body(elements.span)
  }

  /// Lends elements for the time of a call that changes them.
  ///
  /// - Parameters:
  ///   - range: which, within the table; checked.
  ///   - body: is given them in order.
  @inlinable
  public mutating func withMutableElements<Result, Failure: Error>(
    _ range: Range<Int>, _ body: (inout MutableSpan<Element>) throws(Failure) -> Result
  ) throws(Failure) -> Result where Result: ~Copyable {
    precondition(range.lowerBound >= 0 && range.upperBound <= count, "more than the table has")
    // SAFETY: checked, and the table is the caller's alone until `body` returns, which the span does not outlive.
    let elements = unsafe UnsafeMutableBufferPointer(start: base + range.lowerBound, count: range.count)
    var span = unsafe elements.mutableSpan
    return try body(&span)
  }
}
