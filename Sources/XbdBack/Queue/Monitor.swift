// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// A lock with a condition to wait for (pthread_mutex_t, pthread_cond_t); Synchronization has no condition.
@safe final class Monitor: @unchecked Sendable {
  // SAFETY: initialised by the initialiser, taken down in the deinit, never moved.
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private let condition: UnsafeMutablePointer<pthread_cond_t>

  init() {
    // SAFETY: new memory, which only these calls use.
    unsafe mutex = .allocate(capacity: 1)
    unsafe condition = .allocate(capacity: 1)
    unsafe mutex.initialize(to: pthread_mutex_t())
    unsafe condition.initialize(to: pthread_cond_t())
    unsafe pthread_mutex_init(mutex, nil)
    // Deadlines are moments of the monotonic clock.
    var attributes = pthread_condattr_t()
    unsafe pthread_condattr_init(&attributes)
    unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    unsafe pthread_cond_init(condition, &attributes)
    unsafe pthread_condattr_destroy(&attributes)
  }

  deinit {
    // SAFETY: nobody holds or waits for it any more.
    unsafe pthread_cond_destroy(condition)
    unsafe pthread_mutex_destroy(mutex)
    unsafe condition.deallocate()
    unsafe mutex.deallocate()
  }

  @inline(__always)
  func withLock<Value, Failure: Error>(_ body: () throws(Failure) -> Value) throws(Failure) -> Value {
    // SAFETY: see `mutex`.
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    return try body()
  }

  // SAFETY of all below: see `mutex`.

  /// Waits for `signalAll` or `signal`; only with the lock held, which is free meanwhile.
  func wait() { unsafe pthread_cond_wait(condition, mutex) }
  /// Waits at most until a moment of the monotonic clock, in nanoseconds.
  ///
  /// - Returns: false when it has passed.
  func wait(until deadline: UInt64) -> Bool {
    var moment = timespec(tv_sec: Int(deadline / 1_000_000_000), tv_nsec: Int(deadline % 1_000_000_000))
    return unsafe pthread_cond_timedwait(condition, mutex, &moment) != ETIMEDOUT
  }
  func signal() { unsafe pthread_cond_signal(condition) }
  func signalAll() { unsafe pthread_cond_broadcast(condition) }
}
