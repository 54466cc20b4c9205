// SPDX-License-Identifier: Apache-2.0
//
// A lock as Xen's spin_lock is one, for the maptrack list that Xen kept under it.

internal import CXen
internal import Glibc
internal import Synchronization

/// A value under a lock that is spun on.
///
/// Held for a few loads and stores. A holder may lose its processor, as a vCPU may: who waits long gives way.
final class SpinLocked<Value: Sendable>: @unchecked Sendable {
  // SAFETY: only touched between `acquire` and `release`.
  private var value: Value
  private let isHeld = Atomic<Bool>(false)

  init(_ value: Value) {
    self.value = value
  }

  func withLock<Result>(_ body: (inout Value) -> Result) -> Result {
    acquire()
    defer { isHeld.store(false, ordering: .releasing) }
    return body(&value)
  }

  private func acquire() {
    var spins = 0
    while isHeld.exchange(true, ordering: .acquiring) {
      while isHeld.load(ordering: .relaxed) {
        spins += 1
        if spins % 1000 == 0 { sched_yield() } else { cxen_spin_hint() }
      }
    }
  }
}
