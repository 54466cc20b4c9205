// SPDX-License-Identifier: Apache-2.0
//
// The frontend's half of the xenbus handshake as a pure value: events in, actions out (blkif.h: "STATE DIAGRAMS").
// Whoever performs the actions is in DeviceDriver.swift; every order of states that backends are known to take can
// be tried here without one.
//
//             backend ≥ 2          backend 4                 5 / close            drained
//   waiting ───────────► published ─────────► connected ───────────► draining ───────────► closing ─► closed
//      ▲   publish, own 3         connect, own 4                                   own 5        own 6
//      └── resetting: an earlier user left its state behind (own 3, 4 or 5): 5, 6, then 1 again
//
// What happens when the backend goes and may come back is in FrontendStateMachine+Recovery.swift.

public import Xen

/// The frontend's half of the handshake.
public struct FrontendStateMachine: Sendable, Equatable {
  /// Where the frontend stands.
  public enum Phase: Sendable, Equatable {
    /// Nothing has been looked at.
    case idle
    /// An earlier user's state is being closed: own state Closing.
    case resettingClosing
    /// The same, own state Closed.
    case resettingClosed
    /// The backend has not published its transport features.
    case waitingForBackend
    /// Ring and event channel are published; the backend has not connected.
    case published
    /// Requests flow.
    case connected
    /// No new requests; those in flight are waited for.
    case draining(byBackend: Bool)
    /// The backend has gone; the queues let go of what they shared with it and keep their requests.
    case suspending
    /// An attempt to connect again has failed; the next one comes in a moment.
    case pausing
    /// Own state Closing, the backend has not followed.
    case closing
    /// Own state Closed, the backend has not followed.
    case closed
    /// Everything is released.
    case finished
  }

  /// Who last wrote the backend's state node, as far as is known.
  enum Holder {
    /// The backend that may still have our ring of before.
    case same
    /// One that is dead, or had its time to let go: only a change of the node means anything.
    case dead
    /// One that has never seen a ring of ours, whatever its state.
    case successor
  }

  /// What happened.
  public enum Event: Sendable, Equatable {
    /// The handshake begins; both states as they are found.
    case started(own: XenbusState, backend: XenbusState)
    /// The backend's state node fired; it may say the same as before.
    case backendState(XenbusState)
    /// The backend has been at Initialising for as long as patience lasts.
    case graceExpired
    /// The phase has taken too long.
    case timedOut
    /// The user wants the device closed.
    case closeRequested
    /// Nothing is in flight any more.
    case drained
    /// An action failed; the sentence says how.
    case actionFailed(XbdError)
    /// The frontend's own directory is gone: the toolstack took the device away by force.
    case directoryRemoved
    /// The backend broke the protocol.
    case violation(String)
    /// What the toolstack's `online` node says: false once it wants the device gone.
    case online(Bool)
    /// The backend's program has ended, whatever its state node says; the sentence says how.
    case backendDied(String)
    /// The nodes of a backend that died were made anew since, and its successor's state is this.
    case backendReplaced(XenbusState)
    /// Every queue has let go.
    case suspended
    /// The domain was restored or migrated: the toolstack has made both directories anew.
    case resumed(own: XenbusState, backend: XenbusState)
    /// No backend has come back for as long as patience lasts.
    case reconnectExpired(String)
    /// xenstore does not answer any more.
    case storeLost(XbdError)
  }

  /// What to do.
  public enum Action: Sendable, Equatable {
    /// Write the own state node.
    case setState(XenbusState)
    /// Share rings, allocate event channels, write everything and state Initialised in one transaction.
    case publish(assumeDefaults: Bool)
    /// Read the device's properties and make the queues, or what they need to go on.
    case connect
    /// Give the queues to whoever waits for them: requests flow.
    case serve
    /// Read the size again.
    case rereadSize
    /// Refuse new requests and report when those in flight have ended.
    case drain
    /// Put no more requests into the ring, and report when those in flight have been answered.
    case hold
    /// Let go of the rings, keep the requests: they will go to another ring.
    case suspend
    /// Let go of a ring that was published and never connected.
    case abandon
    /// End everything in flight with an error: nobody will answer.
    case failInFlight
    /// Let go of rings, pages and event channels.
    case release
    /// Wait for the backend's next step, with the time that the phase allows.
    case startTimer
    /// Wait for the grace period in case the backend stays at Initialising.
    case startGraceTimer
    /// Wait for the next try to connect again.
    case startPauseTimer
    /// Wait until it is no use to hope for a backend any more.
    case startReconnectTimer
    /// Tell a person what has happened; the device goes on.
    case note(XbdError)
    /// The handshake or the device has failed; tell whoever waits.
    case fail(XbdError)
  }

  /// Where the frontend stands.
  public internal(set) var phase = Phase.idle
  /// The backend's state as last seen.
  public internal(set) var backend = XenbusState.unknown
  /// Whether a backend that goes is waited for.
  public let reconnects: Bool
  /// Whether the device was connected and is to be connected again.
  public internal(set) var isRecovering = false
  /// Who has the backend's nodes.
  var holder = Holder.same
  /// The toolstack does not want the device gone.
  var isOnline = true
  /// An earlier user has closed, or was closed, without the backend having been seen to follow: it may do so yet, once.
  var mayFollowLate = false
  /// The backend broke the protocol: it gets a moment to come to its senses.
  var mustPause = false
  /// The states after a migration, while the queues let go.
  var resumedOwn: XenbusState?

  /// A machine that has seen nothing.
  ///
  /// - Parameter reconnects: whether a backend that goes is waited for.
  public init(reconnects: Bool = false) {
    self.reconnects = reconnects
  }

  /// Takes one event.
  ///
  /// - Returns: what to do, in order.
  public mutating func handle(_ event: Event) -> [Action] {
    if phase == .connected, isRecovering {
      // Unless one of the actions that connect failed, they have worked.
      if case .actionFailed = event {} else { isRecovering = false }
    }
    switch event {
    case .started(let own, let backend):
      self.backend = backend
      return start(own)
    case .backendState(let state):
      return backendMoved(to: state)
    case .graceExpired:
      guard phase == .waitingForBackend, backend == .initialising else { return [] }
      return publish(assumeDefaults: true)
    case .timedOut:
      return isRecovering ? recoveryTimedOut() : timedOut()
    case .closeRequested:
      return isRecovering ? endRecovery() : closeRequested()
    case .drained:
      guard case .draining(let byBackend) = phase else { return [] }
      if isRecovering { return suspend() }
      if byBackend {
        phase = .closed
        return [.setState(.closed), .startTimer] + backendMoved()
      }
      phase = .closing
      return [.setState(.closing), .startTimer] + backendMoved()
    case .actionFailed(let error):
      return isRecovering && phase != .pausing ? retry(error) : fail(error)
    case .storeLost(let error):
      return fail(error)
    case .directoryRemoved:
      guard phase != .finished else { return [] }
      // Both ends are letting go: a toolstack that is quicker than the last state has taken nothing away.
      let isLeaving = phase == .closing || phase == .closed
      phase = .finished
      if isLeaving { return [.release] }
      return [
        .failInFlight, .release,
        .fail(XbdError(.backendGone, "the device was removed: its xenstore directory is gone")),
      ]
    case .violation(let sentence):
      return violated(XbdError(.violation, sentence))
    case .online(let online):
      isOnline = online
      return []
    case .backendDied(let sentence):
      return died(XbdError(.backendGone, sentence))
    case .backendReplaced(let state):
      if holder == .dead { holder = .successor }
      return backendMoved(to: state)
    case .suspended:
      return phase == .suspending ? queuesLetGo() : []
    case .resumed(let own, let backend):
      self.backend = backend
      return resumed(own)
    case .reconnectExpired(let sentence):
      return isRecovering ? fail(XbdError(.timedOut, sentence)) : []
    }
  }

  var isDraining: Bool {
    if case .draining = phase { return true }
    return false
  }

  mutating func start(_ own: XenbusState) -> [Action] {
    switch own {
    case .initialised, .connected, .initWait, .closing, .reconfiguring, .reconfigured:
      // Nobody resets the state of a frontend that died.
      phase = .resettingClosing
      return [.setState(.closing), .startTimer] + backendMoved()
    case .closed where backend == .closing || backend == .initialised || backend == .connected:
      // It has not followed an earlier user to Closed: its 3 or 4 is about that one's ring, and not about the next.
      phase = .resettingClosed
      return [.setState(.closed), .startTimer]
    case .closed:
      mayFollowLate = backend != .closed
      return beginWaiting()
    case .unknown, .initialising:
      return beginWaiting()
    }
  }

  mutating func beginWaiting() -> [Action] {
    phase = .waitingForBackend
    // Whoever it is sees the next ring.
    holder = .same
    return [.setState(.initialising), .startTimer, .startGraceTimer] + backendMoved()
  }

  mutating func backendMoved(to state: XenbusState) -> [Action] {
    // The grace is for the time at Initialising, however long the wait was before.
    let arrives = phase == .waitingForBackend && state == .initialising && backend != .initialising
    backend = state
    return backendMoved() + (arrives ? [.startGraceTimer] : [])
  }

  mutating func backendMoved() -> [Action] {
    if isRecovering { return backendMovedInRecovery() }
    switch (phase, backend) {
    case (.resettingClosing, .closing), (.resettingClosing, .closed), (.resettingClosing, .initialising),
      (.resettingClosing, .initWait), (.resettingClosing, .unknown):
      // One that had nothing to let go of reads our 5 whenever it comes to it: by then we may have published.
      mayFollowLate = backend != .closing
      phase = .resettingClosed
      return [.setState(.closed), .startTimer] + backendMoved()
    case (.resettingClosed, .closed), (.resettingClosed, .initialising), (.resettingClosed, .initWait):
      return beginWaiting()

    case (.waitingForBackend, .closing) where mayFollowLate, (.published, .closing) where mayFollowLate,
      (.published, .closed) where mayFollowLate:
      mayFollowLate = false
      phase = .resettingClosed
      return [.abandon, .setState(.closed), .startTimer] + backendMoved()

    case (.waitingForBackend, .initWait), (.waitingForBackend, .initialised),
      (.waitingForBackend, .connected):
      return publish(assumeDefaults: false)
    case (.waitingForBackend, .unknown):
      return fail(
        XbdError(.backendGone, "the backend has no state node that may be read: its directory is gone"))

    case (.published, .connected):
      phase = .connected
      return [.connect, .setState(.connected), .serve]
    case (.published, .closing), (.published, .closed), (.published, .unknown):
      return fail(
        XbdError(.backendGone, "the backend went to state \(backend) instead of connecting"))

    case (.connected, .connected):
      return [.rereadSize]
    case (.connected, .closing):
      if reconnects, isOnline { return drainAndWait() }
      phase = .draining(byBackend: true)
      return [.drain, .startTimer]
    case (.connected, .closed), (.connected, .unknown), (.connected, .initialising), (.connected, .initWait),
      (.draining, .closed), (.draining, .unknown):
      if reconnects, isOnline, phase == .connected {
        return lose(XbdError(.backendGone, "the backend left without closing: it is at state \(backend)"))
      }
      phase = .closed
      return [
        .failInFlight,
        .fail(XbdError(.backendGone, "the backend left without closing: it is at state \(backend)")),
        .setState(.closed), .startTimer,
      ] + backendMoved()

    case (.closing, .closing), (.closing, .closed), (.closing, .unknown), (.closing, .initialising):
      phase = .closed
      return [.setState(.closed), .startTimer] + backendMoved()
    case (.closed, .closed), (.closed, .unknown), (.closed, .initialising), (.closed, .initWait):
      phase = .finished
      return [.release]
    default:
      return []
    }
  }

  mutating func publish(assumeDefaults: Bool) -> [Action] {
    phase = .published
    return [.publish(assumeDefaults: assumeDefaults), .startTimer] + backendMoved()
  }

  mutating func closeRequested() -> [Action] {
    switch phase {
    case .connected:
      phase = .draining(byBackend: false)
      return [.drain, .startTimer]
    case .idle:
      phase = .finished
      return []
    case .waitingForBackend, .published, .resettingClosing, .resettingClosed:
      phase = .closing
      return [.setState(.closing), .startTimer] + backendMoved()
    case .suspending, .pausing, .draining, .closing, .closed, .finished:
      return []
    }
  }

  mutating func timedOut() -> [Action] {
    switch phase {
    case .resettingClosing, .resettingClosed:
      // A backend that is still connected is so to the earlier user's ring, and would never look at ours.
      if backend == .initialised || backend == .connected {
        return fail(
          XbdError(.timedOut, "the backend stays at state \(backend) and does not let go of an earlier ring"))
      }
      // It does not follow; perhaps it will start afresh all the same.
      return beginWaiting()
    case .waitingForBackend:
      return fail(
        XbdError(.timedOut, "the backend stays at state \(backend) and does not go to InitWait"))
    case .published:
      return fail(
        XbdError(.timedOut, "the backend stays at state \(backend) and does not connect to the ring"))
    case .draining:
      // Who does not answer will not follow either.
      phase = .closed
      return [
        .failInFlight,
        .fail(XbdError(.timedOut, "the backend does not answer what is in flight; it has failed")),
        .setState(.closing), .setState(.closed), .startTimer,
      ] + backendMoved()
    case .closing:
      phase = .closed
      return [.setState(.closed), .startTimer] + backendMoved()
    case .closed:
      phase = .finished
      return [.release]
    case .idle, .connected, .suspending, .pausing, .finished:
      return []
    }
  }

  /// Something went wrong before the device was of use: close what there is.
  mutating func fail(_ error: XbdError) -> [Action] {
    guard phase != .finished else { return [] }
    phase = .finished
    return [.fail(error), .failInFlight, .setState(.closing), .setState(.closed), .release]
  }
}
