// SPDX-License-Identifier: Apache-2.0
//
// Coming and going, against every profile: states, second connections, detach, faults of the disk.

import Testing
import XbdBack
import XbdFront

@Suite struct ProfileLifeTests {
  @Test(arguments: Setting.all)
  func closingAndConnectingAgainOrASentenceThatNamesBothStates(setting: Setting) throws {
    let pair = try Pair(setting)
    try pair.connect()
    #expect(try pair.perform(.write, 0, data: pattern(4096, 1)) == .okay)
    pair.close()
    #expect(try pair.frontNode("state") == "6")
    if BackendConfiguration.profile(setting.profile).reconnects {
      for _ in 0..<3 {
        try pair.connect()
        #expect(try pair.read(0, 4096) == pattern(4096, 1))
        pair.close()
      }
    } else {
      var options = Pair.options
      options.handshakeTimeout = .milliseconds(300)
      let error = #expect(throws: XbdError.self) { try pair.connect(options) }
      #expect(error?.message.contains("backend 6 (Closed)") == true, "\(error?.message ?? "")")
    }
  }

  @Test(arguments: Setting.all)
  func anotherRingOnTheSecondConnection(setting: Setting) throws {
    let pair = try Pair(setting)
    guard BackendConfiguration.profile(setting.profile).reconnects else { return }
    for (order, queues) in [(3, 1), (0, 1), (1, 2), (0, 2), (2, 1)] {
      var options = Pair.options
      options.ringPageOrder = order
      options.queueCount = queues
      try pair.connect(options)
      #expect(try pair.perform(.write, 0, data: pattern(9000, UInt64(order))) == .okay)
      #expect(try pair.read(0, 9000) == pattern(9000, UInt64(order)))
      pair.close()
    }
  }

  @Test(arguments: Setting.all)
  func theToolstackTakesTheDeviceAway(setting: Setting) throws {
    let pair = try Pair(setting)
    let device = try pair.connect()
    #expect(try pair.perform(.write, 0, data: pattern(4096, 1)) == .okay)
    try pair.detach()
    #expect(pair.turn { device.waitUntilClosed(milliseconds: 0) })
    #expect(pair.turn { pair.served.isRemoved } || pair.served.isRemoved)
    #expect(try pair.node("state") == (setting.profile == .qemu ? nil : "6"))
  }

  @Test(arguments: Setting.all, ["error:read@2", "late@*2", "delay=3@*3", "notsupported:flush@1"])
  func faultsOfADiskReachTheCallerAndNobodyElse(setting: Setting, fault: String) throws {
    let plan = try FaultPlan(parsing: [fault], seed: 1)
    let pair = try Pair(setting) { $0.faults = plan }
    let device = try pair.connect()
    #expect(try pair.perform(.write, 0, data: pattern(4096, 1)) == .okay)
    var statuses: [OperationStatus] = []
    let tags = try (0..<6).map { _ in try pair.start(.read, 0, 4096) }
    for tag in tags {
      let (status, bytes) = try pair.finish(tag, reading: 4096)
      statuses.append(status)
      if status == .okay { #expect(bytes == pattern(4096, 1)) }
    }
    #expect(statuses.filter { $0 != .okay } == (fault == "error:read@2" ? [.ioError] : []))
    let flush = device.features.flushCache || device.features.barrier
    if flush {
      // A flush that turns out not to be there becomes a barrier, or none.
      let both = device.features.flushCache && device.features.barrier
      let expected: OperationStatus = fault.hasPrefix("notsupported") && !both ? .notSupported : .okay
      #expect(try pair.perform(.flush) == expected)
    }
  }
}
