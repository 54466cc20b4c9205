// SPDX-License-Identifier: Apache-2.0
//
// What libxenstore allocates for its callers: an array of which they are told the length, and which is theirs to free.

internal import Glibc

/// An array that a C library has given away; freed with this value.
@safe struct LibXenStoreMemory<Element>: ~Copyable {
  // SAFETY: `count` initialised elements in one piece from malloc, this value's alone, as whoever made it has promised.
  private let base: UnsafeMutablePointer<Element>
  private let count: Int

  /// Takes an array over.
  ///
  /// - Parameters:
  ///   - array: from malloc, nobody else's; nil, which failed calls return, makes no value.
  ///   - count: how many elements it has.
  init?(_ array: UnsafeMutablePointer<Element>?, count: Int) {
    // SAFETY: kept; the caller's promise.
    guard let array = unsafe array else { return nil }
    unsafe base = array
    self.count = count
  }

  deinit {
    // SAFETY: its end; what was made from it are copies.
    unsafe free(base)
  }

  /// All elements, copied.
  var elements: [Element] {
    // SAFETY: as many as there are, for the length of the copying.
    unsafe Array(UnsafeBufferPointer(start: base, count: count))
  }
}

extension LibXenStoreMemory where Element == UnsafeMutablePointer<CChar>? {
  /// All strings, copied; bytes that are not UTF-8 become replacement characters.
  var strings: [String] {
    // SAFETY: libxenstore puts the strings behind the array, into the same piece of memory, each with its NUL.
    unsafe elements.map { unsafe $0.map { unsafe String(cString: $0) } ?? "" }
  }
}
