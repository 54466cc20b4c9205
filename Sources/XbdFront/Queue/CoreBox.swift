// SPDX-License-Identifier: Apache-2.0
//
// Where a queue's core lives: a place of its own, so that the compiler proves exclusive access to it once for each
// call of the core, instead of having it checked at every field of an object.

/// The memory of one `QueueCore`.
@safe struct CoreBox: ~Copyable {
  // SAFETY: one core, initialised by `init` and ended by the deinit.
  private let place: UnsafeMutablePointer<QueueCore>

  init(_ core: consuming QueueCore) {
    // SAFETY: new memory for one of it.
    unsafe place = .allocate(capacity: 1)
    unsafe place.initialize(to: core)
  }

  deinit {
    // SAFETY: of `init`, and whoever has the box uses it no more.
    unsafe place.deinitialize(count: 1)
    unsafe place.deallocate()
  }

  /// The core, read or changed where it stands.
  var pointee: QueueCore {
    @inline(__always)
    unsafeAddress {
      // SAFETY: see below.
      unsafe UnsafePointer(place)
    }
    @inline(__always)
    nonmutating unsafeMutableAddress {
      // SAFETY: no two uses overlap. Only the queue's owner thread comes here, and the core never calls its owner back
      // (completions are handed out one by one); what it does call, wake-ups, does not come here.
      unsafe place
    }
  }
}
