// SPDX-License-Identifier: Apache-2.0
//
// What time tells a queue about its backend. Three things go wrong without any sign but time: a notification that
// was lost or never wanted (the request is repeated by another kick), a request that is never answered (the queue
// is given up, if a timeout was asked for), and events with nothing behind them (they are let through at
// intervals). The owner of the queue passes in the time that it has looked at anyway; a request costs one store.
//
// Time in which the owner itself did not run, because its domain was paused or its process stopped, is no time of the
// backend's: it is left out.
//
//   owner: keepTime(now) ──► when to call again at the latest ──► the longest sleep

/// The clock of one queue: a value that is told the time and never asks for it.
struct StallWatch {
  /// How long nothing may be answered before the backend is notified again, in nanoseconds; doubles while that
  /// does not help.
  static let firstKick: UInt64 = 100_000_000
  static let longestKick: UInt64 = 10_000_000_000
  /// Events in a row without a response behind any of them that are taken for chance.
  static let harmlessEvents = 16
  /// How long the port then stays masked, in nanoseconds; doubles while it goes on.
  static let firstHold: UInt64 = 1_000_000
  static let longestHold: UInt64 = 16_000_000
  /// How much later than it was asked to the owner may call before it counts as stopped.
  static let longestDelay: UInt64 = 1_000_000_000

  /// What is to be done about the time that has passed.
  struct Duty: Equatable {
    /// Notify the backend although it did not ask to be.
    var mustKick = false
    /// Look for a request that is older than the timeout.
    var mustCheckAges = false
    /// When the time must be told again, at the latest.
    var next = UInt64.max
  }

  /// The longest a request may stay unanswered, in nanoseconds; 0 for as long as it likes.
  let timeout: UInt64
  /// The time as it was last told, in nanoseconds of the monotonic clock less `stopped`; 0 while nobody tells it.
  private(set) var now: UInt64 = 0
  /// How long the owner did not run although it had to, altogether.
  private var stopped: UInt64 = 0
  /// When it was to call again.
  private var promised = UInt64.max
  /// Responses when something was last seen to move.
  private var responses: UInt64 = 0
  private var kickAt: UInt64 = 0
  private var kickInterval = firstKick
  private var checkAt: UInt64 = 0
  private var emptyEvents = 0
  private var hold = firstHold
  private var holdUntil: UInt64 = 0

  init(timeout: UInt64) {
    self.timeout = timeout
  }

  /// Takes the time.
  ///
  /// - Parameters:
  ///   - inFlight: requests that the backend has.
  ///   - answered: responses so far, of all time.
  mutating func tell(_ time: UInt64, inFlight: Int, answered: UInt64) -> Duty {
    let latest = max(promised, now).addingReportingOverflow(Self.longestDelay)
    let wasStopped = !latest.overflow && time > stopped &+ latest.partialValue
    if wasStopped { stopped = time &- latest.partialValue }
    now = max(now, time &- stopped)
    // The backend may have been stopped with it: it gets a moment more.
    if wasStopped, checkAt > 0 { checkAt = max(checkAt, now &+ Self.longestDelay) }
    var duty = duties(inFlight: inFlight, answered: answered)
    promised = duty.next
    if duty.next != .max { duty.next &+= stopped }
    return duty
  }

  private mutating func duties(inFlight: Int, answered: UInt64) -> Duty {
    var duty = Duty()
    if isHolding { duty.next = holdUntil }
    guard inFlight > 0 else {
      kickAt = 0
      checkAt = 0
      return duty
    }
    if kickAt == 0 || responses != answered {
      responses = answered
      kickInterval = Self.firstKick
      kickAt = now &+ kickInterval
    } else if now >= kickAt {
      duty.mustKick = true
      kickInterval = min(kickInterval &* 2, Self.longestKick)
      kickAt = now &+ kickInterval
    }
    duty.next = min(duty.next, kickAt)
    if timeout > 0 {
      // No request in flight can be due before this.
      if checkAt == 0 { checkAt = now &+ timeout }
      duty.mustCheckAges = now >= checkAt
      duty.next = min(duty.next, checkAt)
    }
    return duty
  }

  /// The oldest request in flight was put into the ring at this time.
  mutating func oldest(since time: UInt64) {
    checkAt = max(time &+ timeout, now &+ 1)
  }

  // MARK: Events

  /// An event came and there was nothing behind it.
  mutating func emptyEvent() {
    emptyEvents += 1
    guard emptyEvents > Self.harmlessEvents, now > 0 else { return }
    holdUntil = now &+ hold
    hold = min(hold &* 2, Self.longestHold)
  }

  /// The backend has answered something: its events mean something again.
  mutating func progress() {
    guard emptyEvents > 0 else { return }
    emptyEvents = 0
    hold = Self.firstHold
    holdUntil = 0
  }

  /// Whether events are not to be let through yet.
  var isHolding: Bool { holdUntil > now }
}
