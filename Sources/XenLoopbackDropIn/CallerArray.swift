// SPDX-License-Identifier: Apache-2.0
//
// What C functions are given beside handles: arrays, each a pointer and a number. Where the number is, is checked here;
// that so many elements are behind the pointer is what the caller of xengnttab.h promises.

internal import Xen

/// An array of the caller's, for the length of its call.
@safe struct CallerArray<Element: BitwiseCopyable> {
  // SAFETY: `count` elements, by the caller's word; used by those below only, within that number.
  private let start: UnsafeMutablePointer<Element>
  let count: Int

  /// - Returns: nil for NULL and for a number below 1 or past the limit; nothing is read then.
  @safe init?(_ start: UnsafeMutablePointer<Element>?, count: some BinaryInteger, limit: Int = .max) {
    guard let start = unsafe start, let count = Int(exactly: count), count > 0, count <= limit else {
      return nil
    }
    // SAFETY: kept, not used.
    unsafe self.start = start
    self.count = count
  }

  // SAFETY of both: one of the elements that the caller says are there.
  subscript(index: Int) -> Element {
    get {
      checkBound(index)
      return unsafe start[index]
    }
    nonmutating set {
      checkBound(index)
      unsafe start[index] = newValue
    }
  }

  private func checkBound(_ index: Int) {
    precondition(index >= 0 && index < count, "no such element in the caller's array")
  }
}

extension CallerArray<UInt32> {
  /// The array as grant references.
  @safe func withReferences<Result>(_ body: (Span<GrantRef>) -> Result) -> Result {
    // SAFETY: a GrantRef is one UInt32, and all of the caller's are lent to `body`, no longer than for the call.
    let first = unsafe UnsafeRawPointer(start).assumingMemoryBound(to: GrantRef.self)
    return unsafe body(UnsafeBufferPointer(start: first, count: count).span)
  }
}
