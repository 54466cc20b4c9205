// SPDX-License-Identifier: Apache-2.0
//
// A handshake that begins again before the device was ever connected: nothing of the first attempt counts.

import Blkif
import Testing
import Xen

@testable import XbdFront

@Suite struct SecondAttemptTests {
  @Test(arguments: [(3, 1), (1, 3), (2, 2)])
  func theQueuesAreThoseOfTheSecondAttempt(first: Int, second: Int) throws {
    let system = FakeSystem(backend: ["multi-queue-max-queues": "\(first)"])
    // A frontend died; the backend reads of its closing when the next ring is published, and offers itself again.
    system.tree[FakeSystem.front + "/state"] = "4"
    let rings = Guarded(0)
    system.tree.with { state in
      state.hook = { tree, path in
        guard path == FakeSystem.front + "/state", let own = tree[path] else { return }
        if own == "3" { rings.with { $0 += 1 } }
        let next: String?
        switch (rings.with { $0 }, own) {
        case (0, _): next = nil
        case (1, "3"): next = "5"
        case (1, "6"):
          tree[FakeSystem.back + "/multi-queue-max-queues"] = "\(second)"
          next = "6"
        default: next = FakeSystem.honest[own]
        }
        if let next, tree[FakeSystem.back + "/state"] != next { tree[FakeSystem.back + "/state"] = next }
      }
    }
    var options = system.options
    options.queueCount = 4
    options.closeTimeout = .seconds(2)
    let device = try system.connect(options)
    #expect(device.queues.count == second)
    #expect(device.transport.queueCount == second)
    // Closing waits for every queue that there is, and for no other.
    #expect(BlockDeviceTests.close(device))
    #expect(device.state == .closed)
  }
}
