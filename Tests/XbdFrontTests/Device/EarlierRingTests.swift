// SPDX-License-Identifier: Apache-2.0
//
// A backend that is still connected to the ring of an earlier frontend, which has gone as far as Closed: its 3 or 4
// says nothing about the ring that comes next.

import Blkif
import Testing
import Xen

@testable import XbdFront

@Suite struct EarlierRingTests {
  typealias Tests = FrontendStateMachineTests

  @Test(arguments: [XenbusState.initialised, .connected])
  func aBackendThatHasNotFollowedToClosedIsNotTakenForOneThatHasConnected(state: XenbusState) {
    var (machine, actions) = Tests.run([.started(own: .closed, backend: state)])
    #expect(actions == [.setState(.closed), .startTimer])
    #expect(machine.handle(.backendState(.connected)) == [])
    actions = machine.handle(.timedOut)
    #expect(Tests.error(actions)?.message.contains("does not let go of an earlier ring") == true)
    #expect(machine.phase == .finished)
  }

  @Test(arguments: [XenbusState.initialised, .connected])
  func oneThatFollowsLateIsConnectedTo(state: XenbusState) {
    var (machine, actions) = Tests.run([
      .started(own: .closed, backend: state), .backendState(.closing), .backendState(.closed),
    ])
    #expect(Tests.states(actions) == [.closed, .initialising])
    #expect(machine.handle(.backendState(.initWait)).first == .publish(assumeDefaults: false))
  }

  /// NetBSD's, with a frontend that has never been there.
  @Test func aBackendThatIsConnectedBeforeThereIsAFrontendIsServed() {
    let (machine, _) = Tests.run([.started(own: .initialising, backend: .connected)])
    #expect(machine.phase == .connected)
  }

  @Test(arguments: ["3", "4"])
  func aResetOfSuchADeviceIsNoSuccess(state: String) throws {
    let system = FakeSystem(backend: ["state": state])
    system.tree[FakeSystem.front + "/state"] = "6"
    system.tree[FakeSystem.front + "/ring-ref"] = "99"
    do throws(XbdError) {
      try BlockDevice.reset("xvdb", on: system, timeout: .milliseconds(50), logger: FakeSystem.logger)
      Issue.record("it was reset")
    } catch {
      #expect(error.code == .timedOut)
      #expect(error.message.contains("does not let go of an earlier ring"), "\(error)")
    }
    // The ring has the name by which the backend knows it for as long as it may be mapped.
    #expect(system.frontNodes["state"] == "6")
    #expect(system.frontNodes["ring-ref"] == "99")
  }

  @Test func aConnectionToSuchADeviceBeginsWhenTheBackendHasLetGo() throws {
    let system = FakeSystem(backend: ["state": "4"])
    system.tree[FakeSystem.front + "/state"] = "6"
    system.answer(FakeSystem.honest)
    let device = try system.connect()
    eventually("Connected is written") { system.frontNodes["state"] == "4" }
    #expect(system.ownStates.suffix(4) == ["6", "1", "3", "4"])
    #expect(BlockDeviceTests.close(device))
  }
}
