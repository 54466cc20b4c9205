// SPDX-License-Identifier: Apache-2.0
//
// Descriptors that do not come with a host's reply, because the process has no number left for them, and hosts that
// do not reply any more: whoever asked is told, and nothing is left half done.

import CXen
import Glibc
import Platform
import SystemPackage
import TestSupport
import Testing
import Xen

@testable import XenLoopback

/// On until it is turned off, by another thread.
private final class Switch: Sendable {
  private let state = Guarded(true)
  var isOn: Bool { state.withLock { $0 } }
  func turnOff() { state.withLock { $0 = false } }
}

@Suite struct LostDescriptorTests {
  @Test(arguments: [ControlOperation.handleDescriptor, .lookUp])
  func aNotificationWhoseDescriptorDoesNotComeIsAnErrorAndTheNextOneArrives(lost: ControlOperation) throws {
    let machine = try Machine()
    let isFull = Switch()
    let front = try machine.join(1).openEventChannels()
    let port = try front.bindUnbound(remote: .dom0)
    try withControlProxy(of: machine.host.directory) { operation, descriptors in
      guard operation == lost, isFull.isOn else { return true }
      for descriptor in descriptors { close(descriptor) }
      descriptors = []
      return true
    } _: { directory in
      let back = try LoopbackDomain(joining: directory, domain: .dom0).openEventChannels()
      let bound = try back.bindInterdomain(remote: DomainID(1), port: port)
      for _ in 0..<2 {
        #expect { try back.notify(bound) } throws: { ($0 as? XenError)?.code == .limitReached }
        #expect(try front.nextPending() == nil)
      }
      isFull.turnOff()
      try back.notify(bound)
      #expect(isReadable(front.fileDescriptor))
      #expect(try front.nextPending() == port)
    }
  }

  @Test(arguments: [ControlOperation.handleDescriptor, .lookUp])
  func withoutAHostEveryNotificationToANewPeerFails(last: ControlOperation) throws {
    let machine = try Machine()
    let front = try machine.join(1).openEventChannels()
    let port = try front.bindUnbound(remote: .dom0)
    try withControlProxy(of: machine.host.directory) { operation, _ in
      operation != last
    } _: { directory in
      let back = try LoopbackDomain(joining: directory, domain: .dom0).openEventChannels()
      let bound = try back.bindInterdomain(remote: DomainID(1), port: port)
      for _ in 0..<3 {
        #expect { try back.notify(bound) } throws: { ($0 as? XenError)?.code == .disconnected }
      }
      #expect(try front.nextPending() == nil)
    }
  }

  @Test func aSurveyThatIsGivenOneDescriptorOfTwoClosesIt() throws {
    let machine = try Machine()
    let (raw, theirs) = try makeSocketPair()
    let ours = OwnedDescriptor(raw)
    try withControlProxy(of: machine.host.directory) { operation, descriptors in
      guard operation == .lookUp else { return true }
      for descriptor in descriptors { close(descriptor) }
      descriptors = [fcntl(theirs, F_DUPFD_CLOEXEC, 0)]
      return true
    } _: { directory in
      #expect { _ = try LoopbackDomainSurvey.all(in: directory) } throws: {
        ($0 as? XenError)?.code == .limitReached
      }
    }
    close(theirs)
    #expect(isAbandoned(ours.raw))
  }
}
