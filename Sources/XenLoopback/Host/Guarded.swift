// SPDX-License-Identifier: Apache-2.0
//
// A value under a POSIX mutex. Synchronization.Mutex hands a contended lock over inside the kernel (FUTEX_LOCK_PI),
// which ThreadSanitizer cannot see and reports as races; it knows pthread_mutex_lock.

internal import Glibc

/// A value that one thread uses at a time, about 20 ns when nobody else wants it.
struct Guarded<Value: ~Copyable>: ~Copyable, @unchecked Sendable {
  // SAFETY: the value is only reached with the mutex held; both live as long as this owner.
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private let value: UnsafeMutablePointer<Value>

  init(_ value: consuming Value) {
    mutex = .allocate(capacity: 1)
    mutex.initialize(to: pthread_mutex_t())
    pthread_mutex_init(mutex, nil)
    self.value = .allocate(capacity: 1)
    self.value.initialize(to: value)
  }

  deinit {
    pthread_mutex_destroy(mutex)
    mutex.deallocate()
    value.deinitialize(count: 1)
    value.deallocate()
  }

  borrowing func withLock<Result>(_ body: (inout Value) -> Result) -> Result {
    pthread_mutex_lock(mutex)
    defer { pthread_mutex_unlock(mutex) }
    return body(&value.pointee)
  }
}
