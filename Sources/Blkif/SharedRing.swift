// SPDX-License-Identifier: Apache-2.0
//
// The pages that both ends see (ring.h: struct blkif_sring). Everything here may change under our hands at any
// moment: each word is read once, into a local, and checked there.
//
//   0        4         8        12        16            64       64+stride
//   │req_prod│req_event│rsp_prod│rsp_event│ … unused … │ slot 0 │ slot 1 │ …
//
// Indices run freely through all of UInt32; slot = index & (capacity - 1). Only &+ and &- are used on them.

internal import CXen
public import Synchronization

/// A 32-bit word that both ends see; only ever read and written as a whole.
@usableFromInline
@safe struct SharedWord {
  // SAFETY: a 4-aligned word of a ring's pages, mapped for as long as the ring lives and only ever accessed as an atomic.
  @usableFromInline let pointer: UnsafePointer<Atomic<UInt32>>

  @inlinable
  init(_ address: UnsafeMutableRawPointer) {
    // SAFETY: Atomic<UInt32> has the size and alignment of UInt32; `SharedRing.word` is the only caller.
    unsafe pointer = UnsafePointer(address.assumingMemoryBound(to: Atomic<UInt32>.self))
  }

  // SAFETY of all four: see `pointer`.
  @inlinable func loadAcquiring() -> UInt32 { unsafe pointer.pointee.load(ordering: .acquiring) }
  @inlinable func loadRelaxed() -> UInt32 { unsafe pointer.pointee.load(ordering: .relaxed) }
  @inlinable func storeReleasing(_ value: UInt32) {
    unsafe pointer.pointee.store(value, ordering: .releasing)
  }
  @inlinable func storeRelaxed(_ value: UInt32) { unsafe pointer.pointee.store(value, ordering: .relaxed) }
}

/// One slot of a ring: written field by field, read only as a copy.
@usableFromInline
@safe struct SlotBytes {
  // SAFETY: `RingLayout.stride` bytes of a ring's pages, mapped for as long as the ring lives.
  @usableFromInline let address: UnsafeMutableRawPointer

  @inlinable
  init(_ address: UnsafeMutableRawPointer) {
    // SAFETY: kept, not used; `SharedRing.slot` is the only caller.
    unsafe self.address = address
  }

  /// Writes a field, aligned or not.
  ///
  /// - Parameter offset: of a field of `RingLayout`.
  @inlinable @inline(__always)
  func put<Value: BitwiseCopyable>(_ value: Value, at offset: Int) {
    // SAFETY: every caller's field lies within the slot; bounds of segments and pages are their preconditions.
    unsafe address.storeBytes(of: value, toByteOffset: offset, as: Value.self)
  }

  @inlinable
  func clear(_ byteCount: Int) {
    // By words, in every build: where the other side writes meanwhile, each is its or ours as a whole.
    // SAFETY: the slot has `byteCount` bytes, its layout's stride, a multiple of 4 as its place is.
    unsafe address.initializeMemory(as: UInt32.self, repeating: 0, count: byteCount / 4)
  }

  @inlinable
  func copy(to buffer: UnsafeMutableRawPointer, _ byteCount: Int) {
    // SAFETY: the slot has `byteCount` bytes, its layout's stride; the caller's buffer has room for any layout's.
    unsafe buffer.copyMemory(from: address, byteCount: byteCount)
  }
}

/// A view of a ring's shared pages.
///
/// Does not own them.
@usableFromInline
@safe struct SharedRing {
  // SAFETY: the pages outlive the ring, as its creator promises; only `word` and `slot` go there.
  @usableFromInline let base: UnsafeMutableRawPointer
  @usableFromInline let layout: RingLayout
  @usableFromInline let capacity: UInt32

  /// - Parameters:
  ///   - base: `pageCount` pages, next to each other, mapped for as long as the ring is used.
  ///   - pageCount: a power of two.
  @usableFromInline
  init(base: UnsafeMutableRawPointer, pageCount: Int, abi: ABI) {
    // SAFETY: kept, not used.
    unsafe self.base = base
    layout = RingLayout(abi)
    capacity = layout.capacity(pageCount: pageCount)
  }

  @inlinable
  func word(_ offset: Int) -> SharedWord {
    // SAFETY: callers ask for the header's words or for those of a slot below `capacity`; both are 4-aligned.
    unsafe SharedWord(base + offset)
  }

  @inlinable var requestProducer: SharedWord { word(0) }
  @inlinable var requestEvent: SharedWord { word(4) }
  @inlinable var responseProducer: SharedWord { word(8) }
  @inlinable var responseEvent: SharedWord { word(12) }

  @inlinable
  func slot(_ index: UInt32) -> SlotBytes {
    // SAFETY: masked, so it is one of `capacity` slots, which fit into the pages (`RingLayout.capacity`).
    unsafe SlotBytes(base + (RingLayout.headerSize + Int(index & (capacity - 1)) * layout.stride))
  }

  /// Decides whether the other end asked to hear of entries between `old` and `new`
  /// (ring.h: RING_PUSH_…_AND_CHECK_NOTIFY).
  ///
  /// The caller has stored `new` with release ordering. The fence keeps that store ahead of the load of the event
  /// index; it pairs with the fence in the other end's `armNotification`, so that either we see its event index
  /// or it sees our entries.
  @inlinable
  static func notification(
    old: UInt32, new: UInt32, event: SharedWord
  ) -> NotifyPeer {
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    let wanted = event.loadRelaxed()
    return (new &- wanted) < (new &- old) ? .required : .notRequired
  }
}
