// SPDX-License-Identifier: Apache-2.0
//
// Where a worker's loop keeps what changes: memory of its own instead of properties of an object. Swift checks
// every use of a class's properties for overlaps at run time, and a request makes some hundred of them.
//
// Why it is right without that check, for all three types: they belong to one loop and are used by its thread
// only. A use is a load, a store or a method of the element, and no such method calls the loop, so none begins
// before the last one has ended.

/// A value in a place of its own.
@safe struct Cell<Value: ~Copyable>: ~Copyable {
  // SAFETY: one value, initialised by `init` and ended by the deinit.
  private let place: UnsafeMutablePointer<Value>

  init(_ value: consuming Value) {
    // SAFETY: new memory for one of it.
    unsafe place = .allocate(capacity: 1)
    unsafe place.initialize(to: value)
  }

  deinit {
    // SAFETY: of `init`, and whoever had the cell uses it no more.
    unsafe place.deinitialize(count: 1)
    unsafe place.deallocate()
  }

  /// The value, read or changed where it stands.
  var pointee: Value {
    @inline(__always)
    unsafeAddress {
      // SAFETY: there for as long as the cell is; why no two uses overlap stands above.
      unsafe UnsafePointer(place)
    }
    @inline(__always)
    nonmutating unsafeMutableAddress {
      // SAFETY: as above.
      unsafe place
    }
  }
}

/// One element of an `EntryTable`; good for as long as the table is there.
@safe struct Entry<Element: ~Copyable> {
  // SAFETY: an element of a table that the loop has to its end. Entries are locals of the loop's methods.
  private let place: UnsafeMutablePointer<Element>

  @inline(__always)
  fileprivate init(_ place: UnsafeMutablePointer<Element>) {
    // SAFETY: kept, not used.
    unsafe self.place = place
  }

  /// The element, read or changed where it stands.
  var pointee: Element {
    @inline(__always)
    unsafeAddress {
      // SAFETY: an element of a table that is there; why no two uses overlap stands above.
      unsafe UnsafePointer(place)
    }
    @inline(__always)
    nonmutating unsafeMutableAddress {
      // SAFETY: as above.
      unsafe place
    }
  }
}

/// A fixed number of elements that never move; an index is checked once, and its entry then used as often as needed.
@safe struct EntryTable<Element: ~Copyable>: ~Copyable {
  /// How many elements there are.
  let count: Int
  // SAFETY: `count` elements, initialised by `init` and ended by the deinit.
  private let base: UnsafeMutablePointer<Element>

  /// Makes a table.
  ///
  /// - Parameters:
  ///   - count: how many elements, 0 or more.
  ///   - element: makes the element of an index; called once for each, in order.
  init(count: Int, element: (_ index: Int) -> Element) {
    precondition(count >= 0, "a table of less than nothing")
    self.count = count
    // SAFETY: new memory, initialised from the first element to the last before anyone can see it.
    unsafe base = .allocate(capacity: count)
    for index in 0..<count { unsafe (base + index).initialize(to: element(index)) }
  }

  deinit {
    // SAFETY: of `init`, and whoever had the table uses no entry of it any more.
    unsafe base.deinitialize(count: count)
    unsafe base.deallocate()
  }

  /// An element by its index, 0 to `count` - 1; another one ends the process.
  @inline(__always)
  subscript(index: Int) -> Entry<Element> {
    precondition(UInt(bitPattern: index) < UInt(bitPattern: count), "no such entry in the table")
    // SAFETY: checked.
    return unsafe Entry(base + index)
  }

  /// The same by an index as lists keep them; the end of a list, -1, is out of bounds.
  @inline(__always)
  subscript(index: Int32) -> Entry<Element> { self[Int(index)] }
}
