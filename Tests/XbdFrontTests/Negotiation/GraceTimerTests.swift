// SPDX-License-Identifier: Apache-2.0
//
// A backend that stays at Initialising until the frontend has published (MirageOS) gets its grace from when it came there.

import Testing
import Xen

@testable import XbdFront

@Suite struct GraceTimerTests {
  typealias Event = FrontendStateMachine.Event

  /// The time passes while nobody is at Initialising, then somebody comes and stays.
  static func stays(_ machine: inout FrontendStateMachine, _ arrival: Event = .backendState(.initialising)) {
    #expect(machine.phase == .waitingForBackend)
    #expect(machine.handle(.graceExpired) == [])
    #expect(machine.handle(arrival) == [.startGraceTimer])
    // A watch that fires without news gives no more time.
    #expect(machine.handle(.backendState(.initialising)) == [])
    #expect(machine.handle(.graceExpired).first == .publish(assumeDefaults: true))
    #expect(machine.handle(.backendState(.connected)) == [.connect, .setState(.connected), .serve])
  }

  @Test func theFirstConnection() {
    var (machine, _) = FrontendStateMachineTests.run([.started(own: .initialising, backend: .closed)])
    Self.stays(&machine)
  }

  @Test func aBackendThatComesToInitialisingByItselfHasOneGrace() {
    var (machine, _) = FrontendStateMachineTests.run([.started(own: .connected, backend: .connected)])
    _ = machine.handle(.backendState(.closing))
    let actions = machine.handle(.backendState(.initialising))
    #expect(actions == [.setState(.initialising), .startTimer, .startGraceTimer])
  }

  @Test(arguments: [Event.backendState(.initialising), .backendReplaced(.initialising)])
  func theNextBackendAfterItsNodesWereGone(arrival: Event) {
    var (machine, _) = RecoveryTests.run(RecoveryTests.connected + [.backendState(.unknown), .suspended])
    #expect(machine.phase == .resettingClosed)
    // It does not follow, as there is nobody.
    _ = machine.handle(.timedOut)
    Self.stays(&machine, arrival)
  }

  @Test func theNextBackendAfterOneThatStayedAtClosed() {
    var (machine, _) = RecoveryTests.run(RecoveryTests.connected + [.backendState(.closed), .suspended])
    Self.stays(&machine)
  }
}
