// SPDX-License-Identifier: Apache-2.0
//
// A table of a fixed number of elements: what queues keep their operations, requests and pages in. Made once, it
// allocates nothing afterwards, and its elements never move.

/// A fixed number of elements in memory of their own, each found by its number.
///
/// Unlike an array it is never copied, counts no references and is changed where it stands. The bound is checked
/// with every use, in release builds too: a number that comes from another domain is to be checked before, because
/// one that is out of bounds ends the process.
@safe public struct Table<Element: ~Copyable>: ~Copyable {
  /// How many elements there are.
  public let count: Int
  // SAFETY: `count` elements, allocated and initialised by the initialiser, nobody else's, given back in the deinit.
  @usableFromInline let base: UnsafeMutablePointer<Element>

  /// Makes a table.
  ///
  /// - Parameters:
  ///   - count: how many elements, 0 or more.
  ///   - element: makes the element of a number; called once for each, in order.
  @inlinable
  public init(count: Int, element: (_ index: Int) -> Element) {
    precondition(count >= 0, "a table of less than nothing")
    self.count = count
    // SAFETY: new memory, initialised from the first element to the last before anyone can see it.
    unsafe base = .allocate(capacity: count)
    for index in 0..<count { unsafe (base + index).initialize(to: element(index)) }
  }

  deinit {
    // SAFETY: of the initialiser, and nobody has a pointer into it: the subscripts lend elements, no longer than for a use.
    unsafe base.deinitialize(count: count)
    unsafe base.deallocate()
  }

  /// An element, read or changed where it stands.
  ///
  /// - Parameter index: 0 to `count` - 1.
  @inlinable
  public subscript(index: Int) -> Element {
    @inline(__always)
    unsafeAddress {
      checkBound(index)
      // SAFETY: within the table, which is borrowed for as long as the element is.
      return unsafe UnsafePointer(base + index)
    }
    @inline(__always)
    unsafeMutableAddress {
      checkBound(index)
      // SAFETY: as above; and the table is the caller's alone meanwhile.
      return unsafe base + index
    }
  }

  /// An element by a number as lists keep them that are threaded through tables.
  ///
  /// - Parameter index: 0 to `count` - 1; the end of a list, -1, is out of bounds.
  @inlinable
  public subscript(index: Int32) -> Element {
    @inline(__always)
    unsafeAddress {
      checkBound(Int(index))
      // SAFETY: see the other subscript.
      return unsafe UnsafePointer(base + Int(index))
    }
    @inline(__always)
    unsafeMutableAddress {
      checkBound(Int(index))
      // SAFETY: see the other subscript.
      return unsafe base + Int(index)
    }
  }

  /// One comparison for both ends: a negative number is a large one without its sign.
  @inlinable @inline(__always)
  func checkBound(_ index: Int) {
    precondition(UInt(bitPattern: index) < UInt(bitPattern: count), "no such element in the table")
  }
}

extension Table {
  /// Makes a table of equal elements.
  ///
  /// - Parameters:
  ///   - element: what all of them are at first.
  ///   - count: how many, 0 or more.
  @inlinable
  public init(repeating element: Element, count: Int) {
    self.init(count: count) { _ in element }
  }
}

// SAFETY: it owns its elements, and is changed only by whoever has it to himself.
extension Table: @unchecked Sendable where Element: Sendable & ~Copyable {}
