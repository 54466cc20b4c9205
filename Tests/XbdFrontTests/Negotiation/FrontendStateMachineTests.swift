// SPDX-License-Identifier: Apache-2.0
//
// Every phase against every state, and the orders that backends are known to take.

import Testing
import Xen

@testable import XbdFront

@Suite struct FrontendStateMachineTests {
  typealias Machine = FrontendStateMachine
  typealias Event = Machine.Event
  typealias Action = Machine.Action

  static func run(_ events: [Event]) -> (Machine, [Action]) {
    var machine = Machine()
    var actions: [Action] = []
    for event in events { actions += machine.handle(event) }
    return (machine, actions)
  }
  static func states(_ actions: [Action]) -> [XenbusState] {
    actions.compactMap { if case .setState(let state) = $0 { state } else { nil } }
  }
  static func error(_ actions: [Action]) -> XbdError? {
    actions.compactMap { if case .fail(let error) = $0 { error } else { nil } }.first
  }
  static func fresh(_ backend: XenbusState = .initWait) -> Event {
    .started(own: .initialising, backend: backend)
  }
  static let connected: [Event] = [fresh(), .backendState(.connected)]

  /// A way into each phase.
  static let ways: [String: [Event]] = [
    "idle": [],
    "resettingClosing": [.started(own: .connected, backend: .connected)],
    "resettingClosed": [.started(own: .connected, backend: .closing)],
    "waiting": [fresh(.initialising)],
    "published": [fresh()],
    "connected": connected,
    "drainingByBackend": connected + [.backendState(.closing)],
    "drainingByUs": connected + [.closeRequested],
    "closing": connected + [.closeRequested, .drained],
    "closed": connected + [.backendState(.closing), .drained],
    "finished": connected + [.directoryRemoved],
  ]
  static let others: [Event] = [
    .graceExpired, .timedOut, .closeRequested, .drained, .actionFailed(XbdError(.system, "x")),
    .directoryRemoved,
    .violation("y"),
  ]

  @Test(arguments: Array(ways.keys).sorted())
  func everyStateInEveryPhaseEndsSomewhere(phase: String) {
    let way = Self.ways[phase] ?? []
    let first: [Event] = XenbusState.allCases.map { .backendState($0) } + Self.others
    for one in first {
      for two in first {
        var (machine, before) = Self.run(way)
        let wasFinished = machine.phase == .finished
        var actions = machine.handle(one) + machine.handle(two)
        #expect(actions.count < 30)
        // Whatever it was, patience and a close always bring it to its end.
        actions += machine.handle(.closeRequested)
        for _ in 0..<8 { actions += machine.handle(.timedOut) }
        if machine.phase != .finished, machine.phase != .idle {
          Issue.record("\(phase) + \(one) + \(two) hangs in \(machine.phase)")
        }
        if wasFinished { #expect(actions.isEmpty, "\(one) \(two)") }
        before += actions
        #expect(before.filter { $0 == .release }.count <= 1)
        // A device that broke may be taken away as well; its user is told of the first.
        #expect(before.filter { if case .fail = $0 { true } else { false } }.count <= 2)
        // What was published or connected is let go of.
        let published = before.contains { if case .publish = $0 { true } else { false } }
        if published, machine.phase == .finished { #expect(before.contains(.release)) }
      }
    }
  }

  @Test func everyPairOfStatesAtTheStart() {
    for own in XenbusState.allCases {
      for backend in XenbusState.allCases {
        var (machine, actions) = Self.run([.started(own: own, backend: backend)])
        #expect(actions.count < 20)
        for _ in 0..<8 { actions += machine.handle(.timedOut) }
        let connectedWithoutRing =
          actions.contains(.connect) && !actions.contains(.publish(assumeDefaults: false))
        #expect(!connectedWithoutRing)
        #expect(machine.phase == .finished || machine.phase == .connected)
      }
    }
  }

  @Test func theOrdinaryHandshake() {
    let (machine, actions) = Self.run([
      Self.fresh(.initialising), .backendState(.initWait), .backendState(.initialised),
      .backendState(.connected),
    ])
    #expect(machine.phase == .connected)
    #expect(
      actions == [
        .setState(.initialising), .startTimer, .startGraceTimer, .publish(assumeDefaults: false), .startTimer,
        .connect, .setState(.connected), .serve,
      ])
  }

  @Test(arguments: [XenbusState.initialised, .connected])
  func aBackendThatSkipsInitWaitIsServed(state: XenbusState) {
    let (machine, actions) = Self.run([Self.fresh(state)])
    #expect(actions.contains(.publish(assumeDefaults: false)))
    // NetBSD's says Connected before there is a ring.
    #expect(machine.phase == (state == .connected ? .connected : .published))
  }

  @Test func aBackendThatStaysAtInitialisingIsMetWithDefaults() {
    // mirage's
    let (machine, actions) = Self.run([Self.fresh(.initialising), .graceExpired, .backendState(.connected)])
    #expect(actions.contains(.publish(assumeDefaults: true)))
    #expect(machine.phase == .connected)
    let (other, late) = Self.run([Self.fresh(.closed), .graceExpired])
    #expect(!late.contains(.publish(assumeDefaults: true)))
    #expect(other.phase == .waitingForBackend)
  }

  @Test func connectedAgainIsALookAtTheSize() {
    var (machine, _) = Self.run(Self.connected)
    #expect(machine.handle(.backendState(.connected)) == [.rereadSize])
    for state in [XenbusState.reconfiguring, .reconfigured, .initialised] {
      #expect(machine.handle(.backendState(state)) == [])
    }
    #expect(machine.handle(.backendState(.connected)) == [.rereadSize])
    #expect(machine.phase == .connected)
  }

  @Test(arguments: [XenbusState.initWait, .initialising, .closed, .unknown])
  func aBackendThatLeavesWithoutClosingFailsEverything(state: XenbusState) {
    let (_, actions) = Self.run(Self.connected + [.backendState(state)])
    #expect(actions.contains(.failInFlight))
    #expect(Self.error(actions)?.code == .backendGone)
    #expect(Self.states(actions).last == .closed)
  }

  @Test func aBackendThatClosesIsDrainedFirst() {
    var (machine, actions) = Self.run(Self.connected + [.backendState(.closing)])
    #expect(machine.phase == .draining(byBackend: true))
    #expect(Self.states(actions).last == .connected)
    actions = machine.handle(.drained)
    #expect(actions == [.setState(.closed), .startTimer])
    #expect(machine.handle(.backendState(.closed)) == [.release])
    #expect(machine.phase == .finished)
  }

  @Test func closingByUsGoesThroughFiveAndSix() {
    var (machine, _) = Self.run(Self.connected + [.closeRequested])
    #expect(machine.handle(.drained) == [.setState(.closing), .startTimer])
    #expect(machine.handle(.backendState(.closing)) == [.setState(.closed), .startTimer])
    #expect(machine.handle(.backendState(.closed)) == [.release])
  }

  @Test func aBackendLeftClosedIsWaitedFor() {
    var (machine, actions) = Self.run([.started(own: .closed, backend: .closed)])
    #expect(Self.states(actions) == [.initialising])
    actions = machine.handle(.backendState(.initWait))
    #expect(actions.first == .publish(assumeDefaults: false))
  }

  @Test(arguments: [XenbusState.initialised, .connected, .closing])
  func whatACrashLeftBehindIsClosedFirst(own: XenbusState) {
    var (machine, actions) = Self.run([.started(own: own, backend: .connected)])
    #expect(Self.states(actions) == [.closing])
    actions = machine.handle(.backendState(.closing))
    #expect(Self.states(actions) == [.closed])
    actions = machine.handle(.backendState(.closed))
    #expect(Self.states(actions) == [.initialising])
    actions = machine.handle(.backendState(.initWait))
    #expect(machine.phase == .published)
  }

  @Test(arguments: [XenbusState.closing, .closed])
  func aBackendThatFollowsAResetLateIsWaitedForOnce(late: XenbusState) {
    // It has nothing to let go of, so nobody waits for it; then it reads the 5 of the reset.
    var (machine, actions) = Self.run([.started(own: .connected, backend: .initWait)])
    #expect(machine.phase == .published)
    #expect(Self.states(actions) == [.closing, .closed, .initialising])
    actions = machine.handle(.backendState(late))
    #expect(actions.first == .abandon)
    #expect(Self.states(actions) == (late == .closed ? [.closed, .initialising] : [.closed]))
    _ = machine.handle(.backendState(.closed))
    #expect(machine.phase == .waitingForBackend)
    _ = machine.handle(.backendState(.initWait))
    #expect(machine.phase == .published)
    actions = machine.handle(.backendState(late))
    #expect(machine.phase == .finished)
  }

  @Test(arguments: [XenbusState.closing, .closed])
  func aBackendThatHasNotReadOfAnEarlierClosingIsWaitedForOnce(late: XenbusState) {
    // The frontend before us has closed a moment ago.
    var (machine, _) = Self.run([.started(own: .closed, backend: .initWait)])
    #expect(machine.phase == .published)
    #expect(machine.handle(.backendState(late)).first == .abandon)
    _ = machine.handle(.backendState(.closed))
    _ = machine.handle(.backendState(.initWait))
    #expect(machine.phase == .published)
    _ = machine.handle(.backendState(late))
    #expect(machine.phase == .finished)
  }

  @Test func aBackendThatIsStillClosingIsNotTakenForOneThatBegins() {
    // At 1 it would wait for a 6 that nobody writes any more.
    var (machine, actions) = Self.run([.started(own: .closed, backend: .closing)])
    #expect(Self.states(actions) == [.closed])
    actions = machine.handle(.backendState(.closed))
    #expect(Self.states(actions) == [.initialising])
  }

  @Test func aBackendThatFollowsAResetLateBeforeItsRingIsWaitedFor() {
    var (machine, _) = Self.run([.started(own: .connected, backend: .closed)])
    #expect(machine.phase == .waitingForBackend)
    #expect(Self.states(machine.handle(.backendState(.closing))) == [.closed])
    #expect(Self.states(machine.handle(.backendState(.closed))) == [.initialising])
    _ = machine.handle(.backendState(.initWait))
    #expect(machine.phase == .published)
  }

  @Test func aBackendThatKeepsAnEarlierRingIsNotTakenForConnected() {
    var (machine, _) = Self.run([.started(own: .connected, backend: .connected)])
    let actions = machine.handle(.timedOut)
    #expect(!actions.contains(.connect))
    #expect(Self.error(actions)?.code == .timedOut)
    #expect(machine.phase == .finished)
  }

  @Test(arguments: [XenbusState.closing, .closed, .unknown])
  func closingDuringTheHandshakeFailsIt(state: XenbusState) {
    let (machine, actions) = Self.run([Self.fresh(), .backendState(state)])
    #expect(machine.phase == .finished)
    #expect(Self.error(actions)?.code == .backendGone)
    #expect(actions.contains(.release))
  }

  @Test func timeoutsNameTheState() {
    let (_, one) = Self.run([Self.fresh(.initialising), .timedOut])
    #expect(Self.error(one)?.message.contains("1 (Initialising)") == true)
    let (_, two) = Self.run([Self.fresh(.initWait), .timedOut])
    #expect(Self.error(two)?.message.contains("2 (InitWait)") == true)
    let (_, three) = Self.run([Self.fresh(.initialised), .timedOut])
    #expect(Self.error(three)?.code == .timedOut)
    let (five, stuck) = Self.run(
      Self.connected + [.closeRequested, .timedOut, .backendState(.closing), .timedOut])
    #expect(stuck.contains(.failInFlight))
    #expect(five.phase == .finished)
  }

  @Test func aDirectoryThatGoesWhileBothEndsCloseIsNoFailure() {
    var machine = FrontendStateMachine()
    for event in Self.connected { _ = machine.handle(event) }
    _ = machine.handle(.closeRequested)
    #expect(machine.handle(.drained).contains(.setState(.closing)))
    #expect(machine.handle(.directoryRemoved) == [.release])
    #expect(machine.phase == .finished)
  }

  @Test(arguments: Array(ways.keys).sorted())
  func aRemovedDirectoryEndsEverythingAndWritesNothing(phase: String) {
    var (machine, _) = Self.run(Self.ways[phase] ?? [])
    let actions = machine.handle(.directoryRemoved)
    #expect(machine.phase == .finished)
    #expect(Self.states(actions).isEmpty)
  }

  @Test func aViolationClosesTheDevice() {
    var (machine, _) = Self.run(Self.connected)
    let actions = machine.handle(.violation("it lied"))
    #expect(Self.error(actions) == XbdError(.violation, "it lied"))
    #expect(machine.handle(.violation("again")) == [])
    #expect(machine.phase == .closing)
  }
}
