// SPDX-License-Identifier: Apache-2.0
//
// Descriptors that processes send to a host: each is closed again, and none can make the host wait.

import CXen
import Glibc
import Platform
import SystemPackage
import TestSupport
import Testing

@testable import XenLoopback

@Suite struct ControlDescriptorTests {
  /// A host's control socket with one process on it, all in this thread.
  private final class Fixture {
    let machine = HostMachine()
    let server: ControlServer
    let connection: ControlConnection
    private let process: OwnedDescriptor

    init() throws {
      let loop = try HostLoop()
      let machine = machine
      try machine.createDomain(0, pageLimit: 64, frameLimit: 4)
      server = try ControlServer(
        OwnedDescriptor(eventfd(0, Int32(EFD_NONBLOCK | EFD_CLOEXEC))), machine: machine, loop: loop,
        createDomain: { _, _, _ in }, destroyDomain: { _ in }, introduceDomain: { _ in },
        storeCounts: { _ in XenStoreCounts() })
      let (ours, theirs) = try makeSocketPair()
      process = OwnedDescriptor(ours)
      connection = try ControlConnection(OwnedDescriptor(theirs), server: server, loop: loop)
    }

    /// Sends a request with a descriptor, and gives the errno that the host answers it with.
    func ask(_ operation: ControlOperation, _ descriptor: Int32?) -> UInt32 {
      let sent = sendMessage(
        ControlMessage(operation).bytes, descriptor.map { [$0] } ?? [], on: process.raw)
      guard sent == ControlMessage.byteCount else { return UInt32(EPIPE) }
      connection.ready(.readable)
      var reply: [UInt8] = []
      var descriptors: [Int32] = []
      guard receiveMessage(&reply, &descriptors, limit: 2, on: process.raw) == ControlMessage.byteCount else {
        return UInt32(EPIPE)
      }
      for descriptor in descriptors { close(descriptor) }
      return ControlMessage(reply).code
    }
  }

  // Found by Tests/fuzz/run control, which ran out of descriptors.
  @Test(arguments: [ControlOperation.openHandle, .status, .lookUp])
  func regression_aDescriptorOfAProcessThatHasNotJoinedIsClosed(operation: ControlOperation) throws {
    let fixture = try Fixture()
    let (ours, sent) = try makeSocketPair()
    defer { close(ours) }
    let answer = fixture.ask(operation, sent)
    close(sent)
    #expect(answer == (operation == .openHandle ? UInt32(EPERM) : 0))
    #expect(isAbandoned(ours))
    fixture.connection.close()
  }

  /// Expects a call to come back although an eventfd is full.
  private func expectNoWaiting(
    for full: borrowing OwnedDescriptor, _ call: @escaping @Sendable () -> Void
  ) throws {
    let returned = try EventCounter()
    let done = returned.fileDescriptor
    let thread = try DedicatedThread(name: "caller") {
      call()
      var one: UInt64 = 1
      _ = write(done, &one, 8)
    }
    #expect(isReadable(returned.fileDescriptor, milliseconds: 10_000))
    // Lets one go that does wait.
    var value: UInt64 = 0
    #expect(read(full.raw, &value, 8) == 8)
    thread.join()
  }

  @Test func aHandlesDescriptorCannotMakeTheHostWait() throws {
    let fixture = try Fixture()
    let counter = OwnedDescriptor(try retrying { eventfd(0, Int32(EFD_CLOEXEC)) })
    #expect(fixture.ask(.join, nil) == 0)
    #expect(fixture.ask(.openHandle, counter.raw) == 0)
    // (Asked of our own descriptor, which shares its flags with the host's.)
    let flags = cxen_get_status_flags(counter.raw)
    #expect(flags & cxen_O_NONBLOCK != 0)
    // Full, and its owner makes it wait again.
    var most = UInt64.max - 1
    #expect(write(counter.raw, &most, 8) == 8)
    #expect(cxen_set_status_flags(counter.raw, flags & ~cxen_O_NONBLOCK) == 0)
    let handle = try #require(fixture.machine.handles.values.first)
    // SAFETY: used by that thread alone until it is joined.
    nonisolated(unsafe) let (machine, target) = (fixture.machine, handle)
    try expectNoWaiting(for: counter) { machine.kick(target) }
    fixture.connection.close()
    #expect(fixture.machine.handles.isEmpty)
  }

  @Test func aHandlesDescriptorIsAnEventfd() throws {
    let fixture = try Fixture()
    let (ours, sent) = try makeSocketPair()
    #expect(fixture.ask(.join, nil) == 0)
    #expect(fixture.ask(.openHandle, sent) == UInt32(EINVAL))
    close(sent)
    // And the one that was refused is closed.
    #expect(isAbandoned(ours))
    close(ours)
    fixture.connection.close()
  }

  /// The same for a domain that notifies another.
  @Test func regression_aPeersDescriptorCannotMakeANotificationWait() throws {
    let peer = OwnedDescriptor(try retrying { eventfd(0, Int32(EFD_CLOEXEC)) })
    var most = UInt64.max - 1
    #expect(write(peer.raw, &most, 8) == 8)
    let shared = EventDescriptor(try peer.duplicate().release())
    try expectNoWaiting(for: peer) { shared.signal() }
  }
}
