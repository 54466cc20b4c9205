// SPDX-License-Identifier: Apache-2.0
//
// A loopback host of its own for a test, in a directory of its own, and small helpers to wait with.

import TestSupport
import CXen
import Glibc
import Platform
import Testing
import Xen

@testable import XenLoopback

/// A host with domains 0, 1 and 2, gone with the fixture.
final class Machine {
  let host: LoopbackHost
  let toolstack: LoopbackToolstack

  init(pageLimit: Int = LoopbackDefaults.pageLimit, maptrackLimit: Int = LoopbackDefaults.maptrackLimit)
    throws
  {
    host = try LoopbackHost(directory: makeTemporaryPath("loopback"))
    toolstack = try LoopbackToolstack(directory: host.directory)
    try toolstack.createDomain(DomainID(1), pageLimit: pageLimit)
    try toolstack.createDomain(DomainID(2), pageLimit: pageLimit, maptrackLimit: maptrackLimit)
  }

  deinit {
    host.stop()
    _ = rmdir(host.directory)
  }

  func join(_ domain: UInt16, _ policy: MaptrackPolicy = .perVCPU) throws -> LoopbackDomain {
    try LoopbackDomain(joining: host.directory, domain: DomainID(domain), maptrack: policy)
  }
}

/// Waits until a condition holds; a generous bound, as machines under test are slow.
func eventually(_ what: String, seconds: Double = 20, _ condition: () throws -> Bool) rethrows {
  let end = MonotonicClock.nanoseconds() + UInt64(seconds * 1e9)
  while MonotonicClock.nanoseconds() < end {
    if try condition() { return }
    usleep(1000)
  }
  Issue.record("did not happen in \(seconds) s: \(what)")
}

/// Whether a descriptor is readable now, or becomes so within a time.
func isReadable(_ descriptor: Int32, milliseconds: Int32 = 0) -> Bool {
  var look = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
  return poll(&look, 1, milliseconds) == 1
}

/// Whether nobody has the other end of a socket any more, or soon nobody has.
///
/// A child that another test begins at this moment has every descriptor until it is another program.
func isAbandoned(_ descriptor: Int32, milliseconds: Int32 = 10_000) -> Bool {
  var look = pollfd(fd: descriptor, events: 0, revents: 0)
  return poll(&look, 1, milliseconds) == 1 && Int32(look.revents) & Int32(POLLHUP) != 0
}
