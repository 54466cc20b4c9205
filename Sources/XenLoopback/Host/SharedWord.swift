// SPDX-License-Identifier: Apache-2.0
//
// Numbers that several processes see, each read and written as a whole. The only way into a domain's tables: whoever
// has a record has no address, and can only do what is here. Which word is used how: docs/memory-model.md.

internal import Synchronization

/// A 32-bit number that others change too.
@safe struct SharedUInt32: @unchecked Sendable {
  // SAFETY: a 4-aligned word that is only ever accessed as an atomic, of memory that its giver keeps mapped while words
  // of it are used: the tables of a `DomainMemory`, the lists of a `Maptrack`.
  private let pointer: UnsafePointer<Atomic<UInt32>>

  /// - Parameter address: of four bytes, 4-aligned, mapped for as long as the word is used.
  @inline(__always) init(_ address: UnsafeMutableRawPointer) {
    // SAFETY: Atomic<UInt32> has the size and alignment of UInt32; kept, not used.
    unsafe pointer = UnsafePointer(address.assumingMemoryBound(to: Atomic<UInt32>.self))
  }

  // SAFETY of all below: see `pointer`. A memory order must be a constant, so each accessor names its own.
  @inline(__always) func loadRelaxed() -> UInt32 { unsafe pointer.pointee.load(ordering: .relaxed) }
  @inline(__always) func loadAcquiring() -> UInt32 { unsafe pointer.pointee.load(ordering: .acquiring) }
  @inline(__always) func storeRelaxed(_ value: UInt32) {
    unsafe pointer.pointee.store(value, ordering: .relaxed)
  }
  @inline(__always) func storeReleasing(_ value: UInt32) {
    unsafe pointer.pointee.store(value, ordering: .releasing)
  }

  // SAFETY: as above.
  @inline(__always) func addRelaxed(_ value: UInt32) {
    unsafe pointer.pointee.wrappingAdd(value, ordering: .relaxed)
  }
  @inline(__always) func subtractRelaxed(_ value: UInt32) {
    unsafe pointer.pointee.wrappingSubtract(value, ordering: .relaxed)
  }
  @inline(__always) func exchangeRelaxed(_ value: UInt32) -> UInt32 {
    unsafe pointer.pointee.exchange(value, ordering: .relaxed)
  }

  // SAFETY: as above. These acquire and release.
  @inline(__always) func exchange(_ value: UInt32) -> UInt32 {
    unsafe pointer.pointee.exchange(value, ordering: .acquiringAndReleasing)
  }
  /// - Returns: what was there before.
  @inline(__always) @discardableResult func or(_ bits: UInt32) -> UInt32 {
    unsafe pointer.pointee.bitwiseOr(bits, ordering: .acquiringAndReleasing).oldValue
  }
  /// - Returns: what was there before.
  @inline(__always) func and(_ bits: UInt32) -> UInt32 {
    unsafe pointer.pointee.bitwiseAnd(bits, ordering: .acquiringAndReleasing).oldValue
  }
  /// - Returns: whether the number was the one expected, and is now the one desired.
  @inline(__always) func compareExchange(expected: UInt32, desired: UInt32) -> Bool {
    // SAFETY: as above.
    unsafe pointer.pointee.compareExchange(
      expected: expected, desired: desired, ordering: .acquiringAndReleasing
    ).exchanged
  }

  /// One try, which may fail for no reason, with relaxed order.
  ///
  /// - Returns: whether it was exchanged, and what was there.
  @inline(__always) func tryExchangeRelaxed(
    expected: UInt32, desired: UInt32
  ) -> (exchanged: Bool, original: UInt32) {
    // SAFETY: as above.
    unsafe pointer.pointee.weakCompareExchange(expected: expected, desired: desired, ordering: .relaxed)
  }
}

/// A 64-bit number that others change too.
@safe struct SharedUInt64: @unchecked Sendable {
  // SAFETY: an 8-aligned word; otherwise as `SharedUInt32.pointer`.
  private let pointer: UnsafePointer<Atomic<UInt64>>

  /// - Parameter address: of eight bytes, 8-aligned, mapped for as long as the word is used.
  @inline(__always) init(_ address: UnsafeMutableRawPointer) {
    // SAFETY: Atomic<UInt64> has the size and alignment of UInt64; kept, not used.
    unsafe pointer = UnsafePointer(address.assumingMemoryBound(to: Atomic<UInt64>.self))
  }

  // SAFETY of all below: see `pointer`.
  @inline(__always) func loadRelaxed() -> UInt64 { unsafe pointer.pointee.load(ordering: .relaxed) }
  @inline(__always) func loadAcquiring() -> UInt64 { unsafe pointer.pointee.load(ordering: .acquiring) }
  @inline(__always) func storeRelaxed(_ value: UInt64) {
    unsafe pointer.pointee.store(value, ordering: .relaxed)
  }
  @inline(__always) func storeReleasing(_ value: UInt64) {
    unsafe pointer.pointee.store(value, ordering: .releasing)
  }
  @inline(__always) func addReleasing(_ value: UInt64) {
    unsafe pointer.pointee.wrappingAdd(value, ordering: .releasing)
  }

  /// Acquires and releases.
  ///
  /// - Returns: whether the number was the one expected, and is now the one desired.
  @inline(__always) func compareExchange(expected: UInt64, desired: UInt64) -> Bool {
    // SAFETY: as above.
    unsafe pointer.pointee.compareExchange(
      expected: expected, desired: desired, ordering: .acquiringAndReleasing
    ).exchanged
  }

  /// One try, which may fail for no reason: acquires and releases when it succeeds, acquires when it does not.
  ///
  /// - Returns: whether it was exchanged, and what was there.
  @inline(__always) func tryExchange(
    expected: UInt64, desired: UInt64
  ) -> (exchanged: Bool, original: UInt64) {
    // SAFETY: as above.
    unsafe pointer.pointee.weakCompareExchange(
      expected: expected, desired: desired, successOrdering: .acquiringAndReleasing,
      failureOrdering: .acquiring)
  }
}

/// A place in shared memory with numbers at fixed offsets.
@safe struct SharedRecord: @unchecked Sendable {
  // SAFETY: a record of `DomainLayout`, 8-aligned, in tables that whoever asked for the record keeps mapped; all access
  // goes through atomics.
  private let base: UnsafeMutableRawPointer

  /// - Parameter base: 8-aligned, with the bytes of the record behind it, mapped for as long as words of it are used.
  @inline(__always) init(_ base: UnsafeMutableRawPointer) {
    // SAFETY: kept, not used.
    unsafe self.base = base
  }

  // SAFETY of both: the offsets are the constants of `DomainLayout`'s records, within them and aligned.
  @inline(__always) func word32(_ offset: Int) -> SharedUInt32 { unsafe SharedUInt32(base + offset) }
  @inline(__always) func word64(_ offset: Int) -> SharedUInt64 { unsafe SharedUInt64(base + offset) }
}
