// SPDX-License-Identifier: Apache-2.0
//
// The state machine's way back after the backend has gone: every phase against every state, and the orders in which
// backends are known to come back (cases 41, 42 and 44).

import Testing
import Xen

@testable import XbdFront

@Suite struct RecoveryTests {
  typealias Event = FrontendStateMachine.Event
  typealias Action = FrontendStateMachine.Action

  static func run(_ events: [Event], reconnects: Bool = true) -> (FrontendStateMachine, [Action]) {
    var machine = FrontendStateMachine(reconnects: reconnects)
    var actions: [Action] = []
    for event in events { actions += machine.handle(event) }
    return (machine, actions)
  }
  static func states(_ actions: [Action]) -> [XenbusState] { FrontendStateMachineTests.states(actions) }
  static func publishes(_ actions: [Action]) -> Bool {
    actions.contains { if case .publish = $0 { true } else { false } }
  }
  static let connected: [Event] = [
    .started(own: .initialising, backend: .initWait), .backendState(.connected),
  ]
  static let killed = connected + [.backendDied("killed")]

  /// A way into each phase of the way back.
  static let ways: [String: [Event]] = [
    "suspending": killed,
    "resettingClosing": connected + [.backendState(.initWait), .suspended],
    "resettingClosed": killed + [.suspended],
    "waiting": killed + [.suspended, .backendState(.initialising)],
    "published": killed + [.suspended, .backendState(.initialising), .backendState(.initWait)],
    "connected again": killed + [
      .suspended, .backendState(.initialising), .backendState(.initWait), .backendState(.connected),
    ],
    "pausing": connected + [.violation("it lied"), .suspended],
    "draining": connected + [.backendState(.closing)],
    "restored": connected + [.resumed(own: .initialising, backend: .initialising)],
  ]
  static let others: [Event] =
    FrontendStateMachineTests.others + [
      .online(false), .online(true), .backendDied("z"), .backendReplaced(.connected), .suspended,
      .resumed(own: .initialising, backend: .initWait), .reconnectExpired("w"),
      .storeLost(XbdError(.system, "v")),
    ]

  /// Where it is not on its way back: its user closes it.
  static let closing = "closing"

  @Test(arguments: Array(ways.keys).sorted() + [closing])
  func everyStateInEveryPhaseEndsSomewhere(phase: String) {
    let way = phase == Self.closing ? Self.connected + [.closeRequested] : Self.ways[phase] ?? []
    let first: [Event] = XenbusState.allCases.map { .backendState($0) } + Self.others
    for one in first {
      for two in first {
        var (machine, before) = Self.run(way)
        let actions = machine.handle(one) + machine.handle(two)
        #expect(actions.count < 40, "\(phase) + \(one) + \(two)")
        before += actions
        // Whatever it was, the end of patience ends it, or it is connected, or the user ends it.
        before += machine.handle(.reconnectExpired("w"))
        if machine.phase != .connected, machine.phase != .finished, machine.isRecovering {
          Issue.record("\(phase) + \(one) + \(two) still waits in \(machine.phase)")
        }
        before += machine.handle(.closeRequested)
        for _ in 0..<8 { before += machine.handle(.timedOut) }
        #expect(machine.phase == .finished, "\(phase) + \(one) + \(two) hangs in \(machine.phase)")
        #expect(before.filter { $0 == .release }.count <= 1)
      }
    }
  }

  /// The user's close would be forgotten, and nobody ask for it again.
  @Test func regression_aQueueThatBreaksWhileItsUserClosesIsNotConnectedAgain() {
    var (machine, _) = Self.run(Self.connected + [.closeRequested])
    var actions = machine.handle(.violation("it lied"))
    #expect(machine.phase == .closing)
    #expect(actions.contains { if case .fail = $0 { true } else { false } })
    actions = machine.handle(.backendState(.closed))
    #expect(machine.phase == .finished)
    #expect(actions.contains(.release))
  }

  @Test(arguments: Array(ways.keys).sorted())
  func closingEndsTheWaiting(phase: String) {
    var (machine, _) = Self.run(Self.ways[phase] ?? [])
    var actions = machine.handle(.closeRequested)
    if phase == "connected again" {
      #expect(actions.contains(.drain))
      actions += machine.handle(.drained) + machine.handle(.timedOut) + machine.handle(.timedOut)
    } else {
      #expect(actions.first == .failInFlight)
    }
    #expect(machine.phase == .finished)
    #expect(actions.last == .release)
  }

  @Test func aKilledBackendIsFollowedByTheNextOnceItsNodesAreMadeAnew() {
    var (machine, actions) = Self.run(Self.killed)
    #expect(machine.phase == .suspending)
    #expect(actions.contains(.suspend))
    actions = machine.handle(.suspended)
    #expect(Self.states(actions) == [.closing, .closed])
    // The dead one's state node says what it said.
    #expect(machine.handle(.backendState(.connected)) == [])
    #expect(machine.handle(.timedOut) == [])
    actions = machine.handle(.backendState(.initialising))
    #expect(Self.states(actions) == [.initialising])
    #expect(machine.handle(.backendState(.initWait)).first == .publish(assumeDefaults: false))
    #expect(machine.handle(.backendState(.connected)) == [.connect, .setState(.connected), .serve])
    _ = machine.handle(.backendState(.connected))
    #expect(!machine.isRecovering)
  }

  /// NetBSD's is at 4 before it has seen a ring, and nobody may have looked while it was at 1 and 2.
  @Test(arguments: [XenbusState.initWait, .initialised, .connected])
  func aSuccessorIsKnownByItsNodesWhateverItsState(state: XenbusState) {
    var (machine, _) = Self.run(Self.killed + [.suspended])
    #expect(machine.handle(.backendState(.connected)) == [])
    let actions = machine.handle(.backendReplaced(state))
    #expect(Self.states(actions).first == .initialising)
    #expect(Self.publishes(actions))
  }

  @Test func aSuccessorThatComesWhileTheNextTryWaitsIsThereForIt() {
    var (machine, _) = Self.run((Self.ways["published"] ?? []) + [.backendDied("again")])
    #expect(machine.phase == .pausing)
    #expect(machine.handle(.backendReplaced(.connected)) == [])
    #expect(Self.publishes(machine.handle(.timedOut)))
  }

  @Test func aReplacementThatNobodyDiedForIsNoneButItsStateCounts() {
    var (machine, _) = Self.run(Self.connected + [.backendState(.initWait), .suspended])
    #expect(machine.handle(.backendReplaced(.connected)) == [])
    #expect(machine.phase == .resettingClosing)
    #expect(Self.states(machine.handle(.backendReplaced(.closing))) == [.closed])
  }

  /// QEMU's nodes stay, at 6, for its successor.
  @Test func aBackendThatCameAfterADeadOneIsAskedAsAnyOther() {
    var (machine, _) = Self.run(
      Self.killed + [.suspended, .backendState(.closed), .backendState(.connected)])
    #expect(machine.phase == .connected)
    _ = machine.handle(.backendState(.initWait))
    #expect(Self.states(machine.handle(.suspended)) == [.closing])
    #expect(machine.phase == .resettingClosing, "it may be connecting to the ring that the nodes name")
  }

  @Test(arguments: [XenbusState.initialising, .initWait])
  func aBackendThatStartedAfreshBesideTheOldRingHasToAnswerFirst(state: XenbusState) {
    var (machine, actions) = Self.run(Self.connected + [.backendState(state)])
    #expect(actions.contains(.suspend))
    actions = machine.handle(.suspended)
    // It may be connecting to the ring that the nodes name: nothing is published before it has said otherwise.
    #expect(Self.states(actions) == [.closing])
    #expect(Self.states(machine.handle(.backendState(.connected))) == [])
    #expect(Self.states(machine.handle(.backendState(.closing))) == [.closed])
    #expect(Self.states(machine.handle(.backendState(.closed))) == [.initialising])
    #expect(Self.publishes(machine.handle(.backendState(.initWait))))
  }

  @Test func aBackendThatIgnoresClosingIsGivenItsTime() {
    var (machine, _) = Self.run(Self.connected + [.backendState(.initWait), .suspended])
    #expect(Self.states(machine.handle(.timedOut)) == [.closed])
    let actions = machine.handle(.timedOut)
    #expect(Self.states(actions) == [.initialising])
    #expect(Self.publishes(actions))
  }

  @Test func aBackendThatClosesIsAnsweredToTheEndFirst() {
    var (machine, actions) = Self.run(Self.connected + [.backendState(.closing)])
    #expect(actions.contains(.hold))
    #expect(!actions.contains(.suspend))
    #expect(machine.handle(.drained).contains(.suspend))
    actions = machine.handle(.suspended)
    #expect(Self.states(actions) == [.closing, .closed])
    #expect(Self.states(machine.handle(.backendState(.closed))) == [.initialising])
  }

  @Test func aDeviceThatTheToolstackWantsGoneIsNotWaitedFor() {
    var (machine, actions) = Self.run(Self.connected + [.online(false), .backendState(.closing)])
    #expect(actions.contains(.drain))
    actions = machine.handle(.drained)
    #expect(Self.states(actions) == [.closed])
    #expect(machine.handle(.backendState(.closed)) == [.release])
    let (_, gone) = Self.run(Self.connected + [.online(false), .backendState(.closed)])
    #expect(FrontendStateMachineTests.error(gone)?.code == .backendGone)
  }

  @Test(arguments: [XenbusState.closed, .unknown, .initialising, .initWait])
  func withoutReconnectingNothingChanges(state: XenbusState) {
    let (_, actions) = Self.run(Self.connected + [.backendState(state)], reconnects: false)
    #expect(actions.contains(.failInFlight))
    #expect(FrontendStateMachineTests.error(actions)?.code == .backendGone)
    let (machine, died) = Self.run(Self.killed, reconnects: false)
    #expect(machine.phase == .finished)
    #expect(FrontendStateMachineTests.error(died)?.message == "killed")
  }

  @Test func aDirectoryThatVanishesAndComesBackIsAnotherBackends() {
    var (machine, _) = Self.run(Self.connected + [.backendState(.unknown), .suspended])
    #expect(machine.phase == .resettingClosed)
    #expect(Self.states(machine.handle(.backendState(.initialising))) == [.initialising])
    #expect(Self.publishes(machine.handle(.backendState(.initWait))))
  }

  @Test func aFailedAttemptIsFollowedByAnotherInAMoment() {
    let way = Self.ways["published"] ?? []
    for event in [
      Event.backendState(.closing), .backendState(.closed), .backendState(.unknown), .timedOut,
      .actionFailed(XbdError(.malformed, "nonsense")), .backendDied("again"),
    ] {
      var (machine, _) = Self.run(way)
      let actions = machine.handle(event)
      #expect(machine.phase == .pausing, "\(event)")
      #expect(actions.first == .abandon)
      #expect(actions.last == .startPauseTimer)
      #expect(FrontendStateMachineTests.error(actions) == nil)
      _ = machine.handle(.backendState(.closed))
      #expect(machine.phase == .pausing, "nothing happens before the moment is over")
      #expect(Self.states(machine.handle(.timedOut)) == [.initialising])
    }
  }

  @Test func aConnectionThatFailsInItsLastStepIsTriedAgain() {
    var (machine, _) = Self.run(Self.ways["connected again"] ?? [])
    let actions = machine.handle(.actionFailed(XbdError(.malformed, "nonsense")))
    #expect(machine.phase == .pausing)
    #expect(FrontendStateMachineTests.error(actions) == nil)
  }

  @Test func aBackendThatBreaksTheProtocolGetsAMoment() {
    var (machine, actions) = Self.run(Self.connected + [.violation("it lied")])
    #expect(FrontendStateMachineTests.error(actions) == nil)
    actions = machine.handle(.suspended)
    #expect(machine.phase == .pausing)
    #expect(Self.states(actions) == [.closing, .closed])
    _ = machine.handle(.backendState(.closed))
    #expect(Self.states(machine.handle(.timedOut)) == [.initialising])
  }

  @Test func patienceEndsInOneSentence() {
    for way in Self.ways where way.key != "connected again" {
      var (machine, _) = Self.run(way.value)
      let actions = machine.handle(.reconnectExpired("no backend"))
      #expect(FrontendStateMachineTests.error(actions)?.message == "no backend", "\(way.key)")
      #expect(machine.phase == .finished)
      #expect(actions.contains(.failInFlight))
    }
  }

  @Test(arguments: [true, false])
  func aRestoredDomainSharesEverythingAnew(reconnects: Bool) {
    var (machine, actions) = Self.run(
      Self.connected + [.resumed(own: .initialising, backend: .initialising)], reconnects: reconnects)
    #expect(actions.contains(.suspend))
    actions = machine.handle(.suspended)
    // Nobody has a ring of ours: there is nothing to be closed.
    #expect(Self.states(actions) == [.initialising])
    #expect(Self.publishes(machine.handle(.backendState(.initWait))))
    #expect(machine.handle(.backendState(.connected)).contains(.serve))
  }

  @Test func regression_aViolationOfADeviceThatIsUnpluggedEndsInClosed() {
    let (machine, actions) = Self.run(
      Self.connected + [
        .online(true), .backendState(.closing), .online(false), .violation("x"), .backendState(.closed),
      ])
    #expect(Self.states(actions).last == .closed)
    #expect(machine.phase == .finished)
  }
}
