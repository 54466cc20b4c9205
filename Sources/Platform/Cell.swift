// SPDX-License-Identifier: Apache-2.0
//
// Where one thread keeps what changes with every request: memory of its own instead of properties of an object, every
// use of which Swift checks for overlaps at run time. A request makes some hundred of them.
//
// What takes the check's place, for all three types, is that whoever has the memory is one thread's, and that what is
// done with an element does not come back to its owner: a use is a load, a store or a method of the element, and ends
// before the next one begins. Owners say at their declaration why that is so.

/// A value in a place of its own, for one thread.
@safe public struct Cell<Value: ~Copyable>: ~Copyable {
  // SAFETY: one value, initialised by `init` and ended by the deinit.
  @usableFromInline let place: UnsafeMutablePointer<Value>

  /// Puts a value there.
  @inlinable
  public init(_ value: consuming Value) {
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
  @inlinable public var pointee: Value {
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

/// One element of an `EntryTable`; good for as long as the table is there, in locals of its owner's methods.
@safe public struct Entry<Element: ~Copyable> {
  // SAFETY: an element of a table that its owner has to the owner's end.
  @usableFromInline let place: UnsafeMutablePointer<Element>

  @inlinable @inline(__always)
  init(_ place: UnsafeMutablePointer<Element>) {
    // SAFETY: kept, not used.
    unsafe self.place = place
  }

  /// The element, read or changed where it stands.
  @inlinable public var pointee: Element {
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

/// A table for one thread: a number is checked once, and its entry then used as often as needed.
public struct EntryTable<Element: ~Copyable>: ~Copyable {
  @usableFromInline let table: Table<Element>

  /// Makes a table.
  ///
  /// - Parameters:
  ///   - count: how many elements, 0 or more.
  ///   - element: makes the element of a number; called once for each, in order.
  @inlinable
  public init(count: Int, element: (_ index: Int) -> Element) {
    table = Table(count: count, element: element)
  }

  /// How many elements there are.
  @inlinable public var count: Int { table.count }

  /// An element by its number, 0 to `count` - 1; another one ends the process.
  @inlinable @inline(__always)
  public subscript(index: Int) -> Entry<Element> {
    table.checkBound(index)
    // SAFETY: checked; the entry is used no longer than the table is there, see `Entry`.
    return unsafe Entry(table.base + index)
  }

  /// The same by a number as lists keep them; the end of a list, -1, is out of bounds.
  @inlinable @inline(__always)
  public subscript(index: Int32) -> Entry<Element> { self[Int(index)] }
}
