// SPDX-License-Identifier: Apache-2.0
//
// Whether to let requests pile up. A thread that sleeps on a socket is woken by the client's very next send, and it
// is the client who pays for that: the call that wakes a thread costs several times what it costs without. A client
// that keeps its processor busy is served faster by a thread that sleeps on a timer instead, and then finds many
// requests at once. A client that waits for its replies is only held up. Which of the two it is cannot be seen from
// here, so it is tried: for a moment now and then, and kept for as long as more requests come that way.

/// Learns whether sleeping on a timer between turns brings more requests than sleeping on the sockets.
struct GatherPolicy {
  /// How long the thread sleeps on the timer, in nanoseconds.
  ///
  /// Being woken takes about as long again.
  static let sleepNanoseconds = 30_000
  /// How long a way of sleeping is watched before it is judged, in nanoseconds.
  private static let window: UInt64 = 8_000_000
  /// Windows between two tries, at least and at most; every try that fails doubles the wait.
  private static let soonest: UInt32 = 4
  private static let latest: UInt32 = 128

  /// The way that is thought better at this moment, and the one that is in use.
  private var prefersTimer = false
  private var usesTimer = false
  private var windowStart: UInt64 = 0
  private var windowRequests: UInt64 = 0
  /// Requests per millisecond while the preferred way was in use, recent average, in 1/256.
  private var preferredRate: UInt64 = 0
  private var windowsUntilTry = Self.soonest
  private var patience = Self.soonest

  /// Takes note of requests that came in.
  @inline(__always)
  mutating func observe(_ requests: UInt64) { windowRequests &+= requests }

  /// Asked when there is nothing to do.
  ///
  /// - Parameters:
  ///   - now: in nanoseconds.
  ///   - isDeep: whether several requests came with each of the last turns; otherwise there is nothing to gather.
  /// - Returns: whether to sleep on the timer first.
  mutating func shouldGather(now: UInt64, isDeep: Bool) -> Bool {
    let elapsed = now &- windowStart
    if elapsed >= Self.window {
      // A gap in the load says nothing about either way.
      if elapsed < 2 &* Self.window { judge(windowRequests &* 256_000_000 / elapsed) }
      windowStart = now
      windowRequests = 0
    }
    return usesTimer && isDeep
  }

  private mutating func judge(_ rate: UInt64) {
    if usesTimer == prefersTimer {
      preferredRate = preferredRate == 0 ? rate : (preferredRate &* 3 &+ rate) / 4
      windowsUntilTry &-= 1
      if windowsUntilTry == 0 { usesTimer.toggle() }
      return
    }
    // The timer has to earn its place: it makes each single request slower.
    let isBetter =
      usesTimer ? rate &* 100 > preferredRate &* 105 : rate &* 100 > preferredRate &* 98
    if isBetter {
      prefersTimer = usesTimer
      preferredRate = rate
      patience = Self.soonest
    } else {
      usesTimer = prefersTimer
      patience = min(patience &* 2, Self.latest)
    }
    windowsUntilTry = patience
  }
}
