// SPDX-License-Identifier: Apache-2.0
//
// Whether to let requests pile up, and for how long. A thread that sleeps on a socket is woken by the client's very next
// send, and it is the client who pays for that: the call that wakes a thread costs several times what it costs without.
// A client that keeps its processor busy is served faster by a thread that sleeps on a timer instead, and then finds
// many requests at once; the longer it sleeps the less its own turns cost a request, until the client has nothing more
// to send and is only held up. Where that is cannot be seen from here, so it is tried: now and then the next longer or
// shorter sleep, and kept if that serves the client better.

/// Learns how long to sleep on a timer between turns, if at all.
struct GatherPolicy {
  /// The ways to sleep: until something comes, or so many nanoseconds on a timer; being woken takes some 20 µs more.
  private static let sleeps: InlineArray<4, Int> = [0, 20_000, 40_000, 80_000]
  /// How long a way of sleeping is watched before it is judged, in nanoseconds.
  private static let window: UInt64 = 8_000_000
  /// Windows of a trial; the first of them ends it if it is much worse.
  private static let trialWindows = 3
  /// Windows between two trials, at least and at most; every trial that fails doubles the wait.
  private static let soonest = 4
  private static let latest = 128

  /// What is measured of a way of sleeping.
  private struct Measure {
    /// Requests in a nanosecond, and nanoseconds of this thread's processor time for each.
    var rate = 0.0
    var cost = 0.0

    /// Four per cent more requests are worth as much as 15 % less time of this thread for each.
    var score: Double { cost > 0 ? rate * rate * rate * rate / cost : 0 }

    /// Goes a part of the way to a newer measure.
    mutating func approach(_ newer: Measure, by part: Double) {
      rate += (newer.rate - rate) * part
      cost += (newer.cost - cost) * part
    }
  }

  /// The way that is thought best at this moment, what it does, and the one that is in use.
  private var preferred = 0
  private var measure = Measure()
  private var current = 0
  private var trial = Measure()
  private var trialLength = 0
  /// Where the next trial goes.
  private var goesUp = true
  private var windowsUntilTrial = Self.soonest
  private var patience = Self.soonest

  private var windowStart: UInt64 = 0
  private var windowProcessorTime: UInt64 = 0
  private var windowRequests: UInt64 = 0

  /// Takes note of requests that came in.
  @inline(__always)
  mutating func observe(_ requests: UInt64) { windowRequests &+= requests }

  /// Asked when there is nothing to do.
  ///
  /// - Parameters:
  ///   - now: in nanoseconds.
  ///   - isDeep: whether several requests came with each of the last turns; otherwise there is nothing to gather.
  ///   - processorTime: of this thread so far, in nanoseconds; asked for at the end of a window only.
  /// - Returns: nanoseconds to sleep on the timer first; 0 for none.
  mutating func sleep(now: UInt64, isDeep: Bool, processorTime: () -> UInt64) -> Int {
    let elapsed = now &- windowStart
    if elapsed >= Self.window {
      let total = processorTime()
      // A gap in the load says nothing about any way.
      if elapsed < 2 &* Self.window, windowRequests > 0 {
        judge(
          Measure(
            rate: Double(windowRequests) / Double(elapsed),
            cost: Double(total &- windowProcessorTime) / Double(windowRequests)))
      }
      windowStart = now
      windowProcessorTime = total
      windowRequests = 0
    }
    return isDeep ? Self.sleeps[current] : 0
  }

  private mutating func judge(_ window: Measure) {
    guard current != preferred else {
      if measure.rate == 0 { measure = window } else { measure.approach(window, by: 0.25) }
      windowsUntilTrial -= 1
      if windowsUntilTrial == 0 { beginTrial() }
      return
    }
    trialLength += 1
    trial.approach(window, by: 1 / Double(trialLength))
    let isHopeless = trial.rate < measure.rate * 0.85
    guard trialLength == Self.trialWindows || isHopeless else { return }
    // A longer sleep has to earn its place: it makes each single request slower.
    let isBetter = trial.score > measure.score * (current > preferred ? 1.15 : 1)
    if isBetter {
      preferred = current
      measure = trial
      patience = Self.soonest
    } else {
      current = preferred
      goesUp.toggle()
      patience = min(patience * 2, Self.latest)
    }
    windowsUntilTrial = patience
  }

  private mutating func beginTrial() {
    if preferred == 0 { goesUp = true }
    if preferred == Self.sleeps.count - 1 { goesUp = false }
    current = preferred + (goesUp ? 1 : -1)
    trial = Measure()
    trialLength = 0
  }
}
