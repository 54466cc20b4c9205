// SPDX-License-Identifier: Apache-2.0
//
// A value under a POSIX mutex. Synchronization.Mutex hands a contended lock over inside the kernel (FUTEX_LOCK_PI),
// which ThreadSanitizer cannot see and reports as races; it knows pthread_mutex_lock.

internal import Glibc

/// A value that one thread uses at a time, about 20 ns when nobody else wants it.
@safe struct Guarded<Value: ~Copyable>: ~Copyable, @unchecked Sendable {
  // SAFETY: the value is only reached with the mutex held; both live as long as this owner.
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private let value: UnsafeMutablePointer<Value>

  init(_ value: consuming Value) {
    // SAFETY: two allocations of one element, initialised here, given back in the deinit. A mutex must not move.
    unsafe mutex = .allocate(capacity: 1)
    unsafe mutex.initialize(to: pthread_mutex_t())
    unsafe pthread_mutex_init(mutex, nil)
    unsafe self.value = .allocate(capacity: 1)
    unsafe self.value.initialize(to: value)
  }

  deinit {
    // SAFETY: nobody is in `withLock`, which borrows this value.
    unsafe pthread_mutex_destroy(mutex)
    unsafe mutex.deallocate()
    unsafe value.deinitialize(count: 1)
    unsafe value.deallocate()
  }

  borrowing func withLock<Result>(_ body: (inout Value) -> Result) -> Result {
    // SAFETY: with the mutex held the value is this thread's alone, until `body` returns.
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    return unsafe body(&value.pointee)
  }
}
