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

extension Duration {
  /// The duration in nanoseconds; negative ones count as none, endless ones as 292 years.
  public var nanoseconds: UInt64 {
    let (seconds, attoseconds) = components
    guard seconds >= 0, attoseconds >= 0 else { return 0 }
    let (whole, overflow) = UInt64(seconds).multipliedReportingOverflow(by: 1_000_000_000)
    guard !overflow, whole < UInt64(Int64.max) else { return UInt64(Int64.max) }
    return whole + UInt64(attoseconds) / 1_000_000_000
  }
}
