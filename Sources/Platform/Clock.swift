// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// The monotonic clock, cheap enough for the data path (about 25 ns).
public enum MonotonicClock {
  /// Nanoseconds since some moment in the past; never goes back.
  public static func nanoseconds() -> UInt64 { read(CLOCK_MONOTONIC) }
}

/// What the calling thread has used of a processor.
public enum ThreadClock {
  /// Nanoseconds of processor time since the thread began; a system call.
  public static func nanoseconds() -> UInt64 { read(CLOCK_THREAD_CPUTIME_ID) }
}

private func read(_ clock: clockid_t) -> UInt64 {
  var now = timespec()
  // SAFETY: the call writes to the local variable alone.
  unsafe clock_gettime(clock, &now)
  return UInt64(now.tv_sec) &* 1_000_000_000 &+ UInt64(now.tv_nsec)
}
