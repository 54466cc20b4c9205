// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import XbdFront

@Suite struct SizeAfterReconnectTests {
  /// The device keeps its sectors of 4,096 bytes when the next backend has smaller ones (DeviceReconnectTests), and
  /// that one may grow by any number of its own.
  @Test func aBackendWithSmallerSectorsThanTheDeviceMayResizeIt() throws {
    let (system, device, _) = try DeviceReconnectTests.connected { _ in
    } prepare: {
      $0.tree[FakeSystem.back + "/sector-size"] = "4096"
    }
    system.tree[FakeSystem.back + "/sector-size"] = "512"
    system.setBackend("6")
    DeviceReconnectTests.poll(device, until: "connected again") {
      system.ownStates.filter { $0 == "4" }.count == 2 && device.state == .connected
    }
    for (sectors, expected) in [("4103", 4096), ("815", 808), ("7", 0)] as [(String, UInt64)] {
      system.tree[FakeSystem.back + "/sectors"] = sectors
      system.setBackend("4")
      DeviceReconnectTests.poll(device, until: "size \(sectors)") {
        device.queues[0].parameters.sectorCount == expected
      }
    }
    #expect(device.queues[0].parameters.sectorSize == 4096)
    #expect(BlockDeviceTests.close(device))
  }
}
