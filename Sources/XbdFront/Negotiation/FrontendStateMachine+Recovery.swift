// SPDX-License-Identifier: Apache-2.0
//
// How the frontend outlives its backend: the queues let go of what they shared and keep their requests, the own state
// goes through Closing and Closed to Initialising, and the handshake begins again, as often as it takes, until a
// backend connects or patience ends. Nothing is asked of a new ring before the old backend is known to have let go
// of the old one: by Closed, by its program's death, or because the domain was restored elsewhere. A write that the
// old one still carried out would otherwise undo a later one.
//
//   connected ──► suspending ──► resettingClosing ──► resettingClosed ──► waiting ──► published ──► connected
//       backend gone   queues let go      own 5             own 6            own 1  ▲       │
//                                                                                   └─ pausing: an attempt failed

internal import Xen

extension FrontendStateMachine {
  // MARK: Losing the backend

  /// The backend has gone, and may come back.
  mutating func lose(_ error: XbdError) -> [Action] {
    isRecovering = true
    return [.note(error), .startReconnectTimer] + suspend()
  }

  /// The backend wants to close while the toolstack wants the device to stay: what is in flight is answered first.
  mutating func drainAndWait() -> [Action] {
    isRecovering = true
    phase = .draining(byBackend: true)
    return [
      .note(XbdError(.backendGone, "the backend is closing")), .startReconnectTimer, .hold, .startTimer,
    ]
  }

  /// Has the queues let go.
  mutating func suspend() -> [Action] {
    phase = .suspending
    return [.suspend, .startTimer]
  }

  /// The backend broke the protocol.
  mutating func violated(_ error: XbdError) -> [Action] {
    guard phase == .connected || isDraining else { return [] }
    // Whoever closes the device does not want it back.
    if reconnects, isOnline, phase != .draining(byBackend: false) {
      mustPause = true
      if !isRecovering { return lose(error) }
      return [.note(error)] + suspend()
    }
    isRecovering = false
    phase = .closing
    return [.fail(error), .setState(.closing), .startTimer] + backendMoved()
  }

  /// The backend's program has ended.
  mutating func died(_ error: XbdError) -> [Action] {
    switch phase {
    case .idle, .finished, .closing, .closed:
      return []
    case .connected where reconnects && isOnline:
      holder = .dead
      return lose(error)
    case .draining where isRecovering:
      holder = .dead
      return suspend()
    case .waitingForBackend, .published:
      guard isRecovering else { return fail(error) }
      holder = .dead
      return retry(error)
    case .suspending, .pausing, .resettingClosing, .resettingClosed:
      holder = .dead
      return backendMoved()
    case .connected, .draining:
      return fail(error)
    }
  }

  /// The toolstack has made the device anew: no ring, grant or event channel of before means anything.
  mutating func resumed(_ own: XenbusState) -> [Action] {
    switch phase {
    case .idle, .finished:
      return []
    case .closing, .closed, .draining(byBackend: false):
      phase = .finished
      return [.failInFlight, .setState(.closed), .release]
    case .connected, .draining, .suspending:
      resumedOwn = own
      holder = .same
      let note = XbdError(.backendGone, "the domain was restored: everything is shared anew")
      if !isRecovering { return lose(note) }
      return [.note(note)] + suspend()
    case .resettingClosing, .resettingClosed, .waitingForBackend, .published, .pausing:
      holder = .same
      return [.abandon] + start(own)
    }
  }

  // MARK: Coming back

  /// Every queue has let go of its ring.
  mutating func queuesLetGo() -> [Action] {
    if let own = resumedOwn {
      resumedOwn = nil
      mustPause = false
      return start(own)
    }
    if mustPause {
      mustPause = false
      phase = .pausing
      return [.setState(.closing), .setState(.closed), .startPauseTimer]
    }
    phase = .resettingClosing
    return [.setState(.closing), .startTimer] + backendMoved()
  }

  mutating func backendMovedInRecovery() -> [Action] {
    switch (phase, backend) {
    case (.draining, .closed), (.draining, .unknown), (.draining, .initialising), (.draining, .initWait):
      return suspend()

    // A backend that has started afresh is at 1 or 2, and may be about to connect to the ring that the nodes still
    // name. Only what it does in answer to our 5 and 6 counts, or the time that it had for an answer.
    case (.resettingClosing, _)
    where holder != .same || backend == .closing || backend == .closed || backend == .unknown:
      phase = .resettingClosed
      return [.setState(.closed), .startTimer] + backendMoved()
    case (.resettingClosed, .unknown):
      // Whatever has a state node here next is another one.
      if holder == .same { holder = .dead }
      return []
    case (.resettingClosed, .closed):
      return beginWaiting()
    // It lets go at last, and has the time for it that it had at first.
    case (.resettingClosed, .closing) where holder == .dead:
      return [.startTimer]
    // NetBSD's is at 4 before it has seen a ring.
    case (.resettingClosed, _) where holder == .successor,
      (.resettingClosed, .initialising) where holder == .dead,
      (.resettingClosed, .initWait) where holder == .dead:
      return beginWaiting()

    case (.waitingForBackend, .initWait), (.waitingForBackend, .initialised),
      (.waitingForBackend, .connected):
      return publish(assumeDefaults: false)
    case (.published, .connected):
      phase = .connected
      return [.connect, .setState(.connected), .serve]
    case (.published, .closing), (.published, .closed), (.published, .unknown):
      return retry(
        XbdError(.backendGone, "the backend went to state \(backend) instead of connecting"))
    default:
      return []
    }
  }

  /// A step of the way back has taken its time.
  mutating func recoveryTimedOut() -> [Action] {
    switch phase {
    case .draining:
      return suspend()
    case .suspending:
      // The queues' owners are busy elsewhere; they will let go when they come to it.
      return queuesLetGo()
    case .resettingClosing:
      phase = .resettingClosed
      return [.setState(.closed), .startTimer] + backendMoved()
    case .resettingClosed:
      // One that is still connected is so to the old ring. It has to move first, whereto does not matter.
      if backend == .initialised || backend == .connected {
        holder = .dead
        return []
      }
      return beginWaiting()
    case .published:
      return retry(
        XbdError(.timedOut, "the backend stays at state \(backend) and does not connect to the ring"))
    case .pausing:
      phase = .resettingClosed
      return [.startTimer] + backendMoved()
    case .idle, .waitingForBackend, .connected, .closing, .closed, .finished:
      return []
    }
  }

  /// An attempt has failed: another one in a moment.
  mutating func retry(_ error: XbdError) -> [Action] {
    guard phase != .finished else { return [] }
    isRecovering = true
    phase = .pausing
    return [.abandon, .note(error), .setState(.closing), .setState(.closed), .startPauseTimer]
  }

  /// The user does not want to wait any more.
  mutating func endRecovery() -> [Action] {
    guard phase != .finished else { return [] }
    phase = .finished
    return [.failInFlight, .setState(.closing), .setState(.closed), .release]
  }
}
