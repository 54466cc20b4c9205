// SPDX-License-Identifier: Apache-2.0
//
// Connections that a host cannot accept, or does not want to.

import CXen
import Glibc
import Platform
import SystemPackage
import TestSupport
import Testing

@testable import XenLoopback

@Suite struct ListenerTests {
  /// Something that is always ready and never gives a connection, as a socket is for a host without descriptors.
  private func hopeless() throws -> OwnedDescriptor {
    OwnedDescriptor(try retrying { eventfd(1, Int32(EFD_NONBLOCK | EFD_CLOEXEC)) })
  }

  /// Ten turns of the loop are some five pauses, and not ten looks at once, nor a wait for ever.
  private func expectRest(_ loop: HostLoop) {
    let begin = MonotonicClock.nanoseconds()
    for _ in 0..<10 { loop.turn(milliseconds: 2000) }
    let milliseconds = (MonotonicClock.nanoseconds() - begin) / 1_000_000
    #expect(milliseconds >= 300 && milliseconds < 9000)
  }

  @Test func aControlSocketThatCannotAcceptLetsTheHostRest() throws {
    let loop = try HostLoop()
    let server = try ControlServer(
      hopeless(), machine: HostMachine(), loop: loop, createDomain: { _, _, _ in }, destroyDomain: { _ in },
      introduceDomain: { _ in }, storeCounts: { _ in XenStoreCounts() })
    expectRest(loop)
    server.stop()
  }

  @Test func aXenstoreSocketThatCannotAcceptLetsTheHostRest() throws {
    let loop = try HostLoop()
    let server = XenStoreServer(loop: loop)
    try server.listen(hopeless(), for: 1)
    expectRest(loop)
    server.stop()
  }

  @Test func aGuestHasSixtyFourConnectionsToXenstoreAndTheControlDomainAsManyAsItLikes() throws {
    let machine = try Machine()
    func connect(_ domain: UInt16) throws -> RawXenStore {
      try RawXenStore(LoopbackPaths.store(machine.host.directory, domain))
    }
    var guests: [RawXenStore] = []
    for _ in 0..<64 { guests.append(try connect(1)) }
    for guest in guests { #expect(guest.call(.getDomainPath, "1\0") != nil) }
    #expect(try connect(1).call(.getDomainPath, "1\0") == nil)
    #expect(try connect(2).call(.getDomainPath, "1\0") != nil)
    var controls: [RawXenStore] = []
    for _ in 0..<70 {
      controls.append(try connect(0))
      #expect(controls.last?.call(.getDomainPath, "1\0") != nil)
    }
    // There is room again for each that goes.
    guests.removeFirst()
    try eventually("room for another") { try connect(1).call(.getDomainPath, "1\0") != nil }
  }

  /// Our own client of libxenstore tries a connection before it makes its own, and both may be accepted in one turn.
  @Test func aConnectionThatHasBeenLeftTakesNobodysPlace() throws {
    let server = XenStoreServer(loop: try HostLoop())
    var others: [Int32] = []
    defer { for other in others { close(other) } }
    func accept() throws {
      let (ours, theirs) = try makeSocketPair()
      server.accepted(OwnedDescriptor(ours), for: 1)
      others.append(theirs)
    }
    for _ in 0..<64 { try accept() }
    try accept()
    #expect(server.connections.count == 64 && isAbandoned(others[64]))
    // Not closed: a child that another test begins at this moment would have it as well.
    shutdown(others[5], Int32(SHUT_RDWR))
    try accept()
    #expect(server.connections.count == 64 && !isAbandoned(others[65], milliseconds: 0))
    server.stop()
  }
}
