// SPDX-License-Identifier: Apache-2.0
//
// A POSIX mutex rather than `Synchronization.Mutex`: ThreadSanitizer does not see how that one hands itself over when
// it is contended, and reports races that are none.

import Glibc

/// A value behind a lock, for tests.
final class Guarded<Value>: @unchecked Sendable {
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private var value: Value

  init(_ value: Value) {
    mutex = .allocate(capacity: 1)
    pthread_mutex_init(mutex, nil)
    self.value = value
  }

  deinit {
    pthread_mutex_destroy(mutex)
    mutex.deallocate()
  }

  func with<Result>(_ body: (inout Value) -> Result) -> Result {
    pthread_mutex_lock(mutex)
    defer { pthread_mutex_unlock(mutex) }
    return body(&value)
  }
}
