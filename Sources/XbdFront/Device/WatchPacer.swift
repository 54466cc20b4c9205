// SPDX-License-Identifier: Apache-2.0
//
// How often the control thread looks at xenstore when watches fire all the time (XSA-349): a backend may write its
// state as fast as it likes, and each look costs several round trips. A few looks may follow each other at once, so
// that no handshake is held up; what comes faster is taken together.

/// Allowances for looking: so many at once, then one after each interval.
struct WatchPacer {
  /// Looks that may follow each other at once.
  static let burst = 32
  /// The time that earns another one, in nanoseconds.
  static let interval: UInt64 = 20_000_000

  /// The moment at which the allowance was, or will be, exhausted; it moves ahead by an interval with each look.
  private var spentUntil: UInt64 = 0

  /// When the next look is allowed: `now` or later.
  func next(_ now: UInt64) -> UInt64 {
    max(now, spentUntil &- min(spentUntil, UInt64(Self.burst - 1) &* Self.interval))
  }

  /// A look is taken.
  mutating func spend(_ now: UInt64) {
    spentUntil = max(spentUntil, now) &+ Self.interval
  }
}
