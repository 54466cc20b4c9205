// SPDX-License-Identifier: Apache-2.0
//
// Whether to spin before sleeping. Being woken costs about 20 µs, so a lone request is answered almost twice as
// fast by a thread that is still looking. With many requests in flight spinning is a loss: a thread that sleeps
// finds many of them in one receive.

/// Learns from the recent past whether a short busy wait pays.
struct SpinPolicy {
  /// The longest spin; 0 turns spinning off.
  let maximumNanoseconds: UInt64
  /// A gap shorter than this between a reply and the next request means that more requests are on their way.
  static let pipelinedGap: UInt64 = 4_000
  /// Requests a turn, recent average, in sixteenths.
  private var averageBatch: UInt64 = 16
  /// Time until the next request came, recent average over spins that paid, in nanoseconds.
  private var averageGap: UInt64 = 20_000
  /// Sleeps to let pass before the next try.
  private var skips: UInt32 = 0
  /// What `skips` is set to after the next failure.
  private var penalty: UInt32 = 1

  init(maximumNanoseconds: UInt64) {
    self.maximumNanoseconds = maximumNanoseconds
  }

  /// Takes note of a turn that brought requests.
  @inline(__always)
  mutating func observe(batch: UInt64) {
    averageBatch = (averageBatch &* 7 &+ min(batch, 64) &* 16) >> 3
  }

  /// Asked when there is nothing to do.
  mutating func shouldSpin() -> Bool {
    guard maximumNanoseconds > 0, averageBatch <= 32, averageGap >= Self.pipelinedGap else {
      // Gaps are not seen while sleeping: let them be tried again after a while of small batches.
      if averageBatch <= 20 { averageGap &+= 64 }
      return false
    }
    guard skips == 0 else {
      skips &-= 1
      return false
    }
    return true
  }

  /// A request came after so many nanoseconds of spinning.
  mutating func hit(after gap: UInt64) {
    averageGap = (averageGap &* 15 &+ gap) >> 4
    penalty = 1
  }

  /// Nothing came.
  mutating func miss() {
    skips = penalty
    penalty = min(penalty &* 2, 1024)
  }

  /// Something came after so many nanoseconds of sleep, the wake-up included.
  mutating func slept(_ duration: UInt64) {
    // Spinning would have caught it.
    if duration < maximumNanoseconds {
      skips = 0
      penalty = 1
    }
  }
}
