// SPDX-License-Identifier: Apache-2.0
//
// Whether to let requests pile up, and how. A thread that sleeps on a socket is woken by the client's very next
// send, and it is the client who pays for that: the call that wakes a thread costs several times what it costs without.
// There are two ways out. Where every processor is busy, a thread that does not take the processor from the client when it
// is woken finds all that the client had to send. Where one is idle, a thread that sleeps on a timer finds many requests
// at once; the longer it sleeps the less its own turns cost a request, until the client has nothing more to send and is only
// held up. Which is best cannot be seen from here, so it is tried: now and then another way, and kept if that serves the
// client better.

/// How a thread sleeps.
struct SleepWay: Equatable {
  /// How long it sleeps on a timer before it sleeps on the sockets; being woken takes some 20 µs more.
  var nanoseconds: Int
  /// When woken it waits for its turn on the processor (`ThreadScheduling.setPatient`).
  var isPatient: Bool

  /// How many requests the thread takes from a connection before it answers them.
  ///
  /// Behind a timer it finds many. Answered in parts, the client goes on with the first while the thread is at the rest, and
  /// has enough left to do for the next sleep to be long. It sleeps when a receive has not brought that many.
  var requestsAtOnce: Int { nanoseconds > 0 ? 8 : 4096 }

  /// Until something comes.
  static let plain = SleepWay(nanoseconds: 0, isPatient: false)
}

/// Learns how to sleep between turns.
struct GatherPolicy {
  /// What there is to choose from, by number.
  private static let ways: InlineArray<5, SleepWay> = [
    .plain, SleepWay(nanoseconds: 0, isPatient: true), SleepWay(nanoseconds: 20_000, isPatient: true),
    SleepWay(nanoseconds: 40_000, isPatient: true), SleepWay(nanoseconds: 80_000, isPatient: true),
  ]
  /// How long a way is watched at a time, in nanoseconds.
  private static let window: UInt64 = 4_000_000
  /// Windows of a trial: by turns the way that is thought best and another, since what else goes on in a machine changes
  /// faster than a trial takes.
  private static let trialWindows = 8
  /// Windows between two trials, at least and at most.
  ///
  /// Once every way has been tried, each trial that fails doubles the wait.
  private static let soonest = 8
  private static let latest = 128
  /// Windows before the first trial where nothing is known yet.
  private static let beforeFirstTrial = 2

  /// What was measured of a way.
  private struct Measure {
    /// Requests, nanoseconds that they took, and nanoseconds of this thread's processor time.
    var requests: UInt64 = 0
    var elapsed: UInt64 = 0
    var processorTime: UInt64 = 0

    /// Requests in a nanosecond.
    var rate: Double { Double(requests) / Double(max(elapsed, 1)) }
    /// Four per cent more requests are worth as much as 15 % less time of this thread for each.
    var score: Double { rate * rate * rate * rate * Double(requests) / Double(max(processorTime, 1)) }

    mutating func add(_ window: Measure) {
      requests &+= window.requests
      elapsed &+= window.elapsed
      processorTime &+= window.processorTime
    }
  }

  private let processors: Int
  private var connections = 0
  /// Which way was best for each number of connections, the last one for all above; -1 where that is not known yet.
  private var bests = InlineArray<9, Int>(repeating: -1)
  /// The way that is thought best at this moment, and the one that is in use.
  private var preferred = 0
  private var current = 0
  /// The way that is or was last on trial.
  private var candidate = 0
  /// What the trial has shown so far, and how many windows of it are left; none when there is no trial.
  private var ofPreferred = Measure()
  private var ofCandidate = Measure()
  private var windowsOfTrial = 0
  private var windowsUntilTrial = Self.soonest
  private var patience = Self.soonest
  /// Trials since the load changed.
  private var trials = 0
  /// Windows in a row that were not as the last trial.
  private var windowsOfAnotherLoad = 0

  private var windowStart: UInt64 = 0
  private var windowProcessorTime: UInt64 = 0
  private var windowRequests: UInt64 = 0

  /// - Parameter processors: of the machine.
  init(processors: Int) { self.processors = processors }

  /// Takes note of requests that came in.
  @inline(__always)
  mutating func observe(_ requests: UInt64) { windowRequests &+= requests }

  /// Asked when there is nothing to do.
  ///
  /// - Parameters:
  ///   - now: in nanoseconds.
  ///   - connections: how many there are, with all workers: what is best for one is not what is best for several.
  ///   - isDeep: whether clients have several requests ready at a time; otherwise there is nothing to gather.
  ///   - processorTime: of this thread so far, in nanoseconds; asked for at the end of a window only.
  /// - Returns: how to sleep now.
  mutating func way(now: UInt64, connections: Int, isDeep: Bool, processorTime: () -> UInt64) -> SleepWay {
    if connections != self.connections { connectionsChanged(connections) }
    let elapsed = now &- windowStart
    if elapsed >= Self.window {
      let total = processorTime()
      // A gap in the load says nothing about any way.
      if isDeep, elapsed < 4 &* Self.window, windowRequests > 0 {
        judge(
          Measure(
            requests: windowRequests, elapsed: elapsed, processorTime: total &- windowProcessorTime))
      }
      windowStart = now
      windowProcessorTime = total
      windowRequests = 0
    }
    return isDeep ? Self.ways[current] : .plain
  }

  /// Begins with what was best for so many connections the last time.
  private mutating func connectionsChanged(_ count: Int) {
    bests[slot] = preferred
    connections = count
    preferred = bests[slot] >= 0 ? bests[slot] : firstGuess
    beginAnew()
    if bests[slot] < 0 { windowsUntilTrial = Self.beforeFirstTrial }
  }

  /// What to begin with, by number: 40 µs where a processor is left for this thread, else patience alone.
  private var firstGuess: Int { connections < processors ? 3 : 1 }

  /// The place of this number of connections in `bests`.
  private var slot: Int { min(connections, bests.count - 1) }

  /// The load is another: what was learned may be wrong.
  private mutating func beginAnew() {
    current = preferred
    windowsOfTrial = 0
    trials = 0
    windowsOfAnotherLoad = 0
    patience = Self.soonest
    windowsUntilTrial = Self.soonest
    windowStart = 0
  }

  private mutating func judge(_ window: Measure) {
    guard windowsOfTrial > 0 else {
      // Much more or much less than there was at the last trial, and not for a moment: it is another load.
      let change = window.rate / ofPreferred.rate
      windowsOfAnotherLoad = change > 1.5 || change < 0.67 ? windowsOfAnotherLoad + 1 : 0
      if windowsOfAnotherLoad >= Self.soonest && patience > Self.soonest { beginAnew() }
      windowsUntilTrial -= 1
      if windowsUntilTrial <= 0 { beginTrial() }
      return
    }
    if current == candidate { ofCandidate.add(window) } else { ofPreferred.add(window) }
    windowsOfTrial -= 1
    current = current == candidate ? preferred : candidate
    let limit = windowsOfTrial > Self.trialWindows / 2 ? 0.8 : 0.9
    let isHopeless = current == preferred && ofCandidate.rate < ofPreferred.rate * limit
    if windowsOfTrial == 0 || isHopeless { endTrial() }
  }

  private mutating func beginTrial() {
    repeat { candidate = (candidate + 1) % Self.ways.count } while candidate == preferred
    ofPreferred = Measure()
    ofCandidate = Measure()
    windowsOfTrial = Self.trialWindows
  }

  private mutating func endTrial() {
    // A longer sleep has to earn its place, and to keep it: it makes each single request slower.
    let isBetter = ofCandidate.score > ofPreferred.score * (candidate > preferred ? 1.1 : 0.95)
    if isBetter {
      preferred = candidate
      patience = max(patience / 2, Self.soonest)
    } else if trials >= Self.ways.count {
      patience = min(patience * 2, Self.latest)
    }
    trials += 1
    current = preferred
    windowsOfTrial = 0
    windowsUntilTrial = patience
  }
}
