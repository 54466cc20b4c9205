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

/// A view of a ring's shared pages.
///
/// Does not own them.
@usableFromInline
struct SharedRing {
  @usableFromInline let base: UnsafeMutableRawPointer
  @usableFromInline let layout: RingLayout
  @usableFromInline let capacity: UInt32

  /// - Parameters:
  ///   - base: `pageCount` pages, next to each other, mapped for as long as the ring is used.
  ///   - pageCount: a power of two.
  @usableFromInline
  init(base: UnsafeMutableRawPointer, pageCount: Int, abi: ABI) {
    self.base = base
    layout = RingLayout(abi)
    capacity = layout.capacity(pageCount: pageCount)
  }

  // SAFETY: the words lie in a page that outlives the ring, are 4-aligned, and are only ever accessed as atomics;
  // Atomic<UInt32> has the size and alignment of UInt32.
  @inlinable
  func word(_ offset: Int) -> UnsafePointer<Atomic<UInt32>> {
    UnsafePointer((base + offset).assumingMemoryBound(to: Atomic<UInt32>.self))
  }

  @inlinable var requestProducer: UnsafePointer<Atomic<UInt32>> { word(0) }
  @inlinable var requestEvent: UnsafePointer<Atomic<UInt32>> { word(4) }
  @inlinable var responseProducer: UnsafePointer<Atomic<UInt32>> { word(8) }
  @inlinable var responseEvent: UnsafePointer<Atomic<UInt32>> { word(12) }

  @inlinable
  func slot(_ index: UInt32) -> UnsafeMutableRawPointer {
    base + (RingLayout.headerSize + Int(index & (capacity - 1)) * layout.stride)
  }

  /// Decides whether the other end asked to hear of entries between `old` and `new`
  /// (ring.h: RING_PUSH_…_AND_CHECK_NOTIFY).
  ///
  /// The caller has stored `new` with release ordering. The fence keeps that store ahead of the load of the event
  /// index; it pairs with the fence in the other end's `armNotification`, so that either we see its event index
  /// or it sees our entries.
  @inlinable
  static func notification(
    old: UInt32, new: UInt32, event: UnsafePointer<Atomic<UInt32>>
  ) -> NotifyPeer {
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    let wanted = event.pointee.load(ordering: .relaxed)
    return (new &- wanted) < (new &- old) ? .required : .notRequired
  }
}
