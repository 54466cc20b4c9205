// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// A lock with a condition to wait for (pthread_mutex_t, pthread_cond_t); Synchronization has no condition.
final class Monitor: @unchecked Sendable {
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private let condition: UnsafeMutablePointer<pthread_cond_t>

  init() {
    mutex = .allocate(capacity: 1)
    condition = .allocate(capacity: 1)
    mutex.initialize(to: pthread_mutex_t())
    condition.initialize(to: pthread_cond_t())
    pthread_mutex_init(mutex, nil)
    // Deadlines are moments of the monotonic clock.
    var attributes = pthread_condattr_t()
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(condition, &attributes)
    pthread_condattr_destroy(&attributes)
  }

  deinit {
    pthread_cond_destroy(condition)
    pthread_mutex_destroy(mutex)
    condition.deallocate()
    mutex.deallocate()
  }

  @inline(__always)
  func withLock<Value, Failure: Error>(_ body: () throws(Failure) -> Value) throws(Failure) -> Value {
    pthread_mutex_lock(mutex)
    defer { pthread_mutex_unlock(mutex) }
    return try body()
  }

  /// Waits for `signalAll` or `signal`; only with the lock held, which is free meanwhile.
  func wait() { pthread_cond_wait(condition, mutex) }
  /// Waits at most until a moment of the monotonic clock, in nanoseconds.
  ///
  /// - Returns: false when it has passed.
  func wait(until deadline: UInt64) -> Bool {
    var moment = timespec(tv_sec: Int(deadline / 1_000_000_000), tv_nsec: Int(deadline % 1_000_000_000))
    return pthread_cond_timedwait(condition, mutex, &moment) != ETIMEDOUT
  }
  func signal() { pthread_cond_signal(condition) }
  func signalAll() { pthread_cond_broadcast(condition) }
}
