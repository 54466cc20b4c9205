// SPDX-License-Identifier: Apache-2.0
//
// A backend in a domain of its own, for which a node that is gone is one that it may not read.

import Glibc
import Platform
import TestSupport
import Testing
import XbdBack
import XbdFront
import Xen
import XenLoopback

@Suite struct DriverDomainTests {
  /// How a device comes to its end without a word from its frontend.
  enum End: CaseIterable {
    /// The toolstack removes its nodes.
    case forgotten
    /// The guest is destroyed.
    case destroyed
    /// The guest hides its state, and the toolstack detaches the device.
    case hidden
  }

  @Test(arguments: End.allCases)
  func aDeviceThatIsTakenAwayEnds(end: End) throws {
    let path = try makeTemporaryPath("driver")
    let host = try LoopbackHost(directory: path)
    defer { host.stop() }
    let toolstack = try LoopbackToolstack(directory: path)
    let (guest, driver) = (DomainID(1), DomainID(2))
    for domain in [guest, driver] { try toolstack.createDomain(domain) }
    let nodes = LoopbackBlockDevice(virtualDevice: 51712, name: "xvda", frontend: guest, backend: driver)
    try toolstack.attach(nodes)
    let backend = try Backend(
      system: LoopbackDomain(joining: path, domain: driver), logger: Pair.quiet)
    defer { backend.stop() }
    var configuration = BackendConfiguration()
    configuration.execution = .ownThread
    let served = try backend.add(
      directory: nodes.backendPath, storage: GatedStorage(byteCount: 1 << 20), configuration: configuration)
    let system = try LoopbackDomain(joining: path, domain: guest)
    let device = try BlockDevice.connect("xvda", on: system, options: Pair.options, logger: Pair.quiet)
    defer {
      device.close(within: .seconds(1))
      while !device.waitUntilClosed(milliseconds: 1) { for queue in device.queues { queue.poll() } }
    }
    #expect(served.waitForQueues(1, milliseconds: 30_000))
    #expect(!served.isRemoved)
    switch end {
    case .forgotten: try toolstack.forget(nodes)
    case .destroyed: try toolstack.destroyDomain(guest)
    case .hidden:
      let state = nodes.frontendPath + "/state"
      let hidden = [XenStorePermission(domain: guest, read: false, write: false)]
      try system.openXenStore().setPermissions(state, hidden)
      try toolstack.detach(nodes)
    }
    let deadline = MonotonicClock.nanoseconds() + 30_000_000_000
    while !served.isRemoved, MonotonicClock.nanoseconds() < deadline { usleep(500) }
    #expect(served.isRemoved)
    #expect(served.queueCount == 0)
  }
}
