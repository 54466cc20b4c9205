// SPDX-License-Identifier: Apache-2.0
//
// Coming and going, against every profile: states, sizes, second connections, detach.

import Testing
import XbdBack
import XbdFront

@Suite struct ProfileLifeTests {
  static let profiles = BackendProfile.allCases

  @Test(arguments: profiles)
  func closingAndConnectingAgainOrASentenceThatNamesBothStates(profile: BackendProfile) throws {
    let pair = try Pair(profile)
    try pair.connect()
    #expect(try pair.perform(.write, 0, data: pattern(4096, 1)) == .okay)
    pair.close()
    #expect(try pair.frontNode("state") == "6")
    if BackendConfiguration.profile(profile).reconnects {
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

  @Test(arguments: profiles)
  func anotherRingOnTheSecondConnection(profile: BackendProfile) throws {
    let pair = try Pair(profile)
    guard BackendConfiguration.profile(profile).reconnects else { return }
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

  @Test(arguments: profiles)
  func theToolstackTakesTheDeviceAway(profile: BackendProfile) throws {
    let pair = try Pair(profile)
    let device = try pair.connect()
    #expect(try pair.perform(.write, 0, data: pattern(4096, 1)) == .okay)
    try pair.detach()
    #expect(pair.turn { device.waitUntilClosed(milliseconds: 0) })
    #expect(pair.turn { pair.served.isRemoved } || pair.served.isRemoved)
    #expect(try pair.node("state") == (profile == .qemu ? nil : "6"))
  }

  @Test(arguments: profiles)
  func growingIsSeenWhereTheBackendTells(profile: BackendProfile) throws {
    let pair = try Pair(profile)
    let device = try pair.connect()
    try pair.served.resize(to: 8 << 20)
    let tells = BackendConfiguration.profile(profile).sizeChange != .silent
    if tells {
      #expect(pair.turn { device.queues[0].parameters.sectorCount == 16384 })
      #expect(try pair.perform(.write, 7 << 20, data: pattern(4096, 2)) == .okay)
      #expect(try pair.read(7 << 20, 4096) == pattern(4096, 2))
    } else {
      #expect(try pair.perform(.write, 7 << 20, data: pattern(4096, 2)) == .outOfRange)
    }
  }

  @Test(arguments: profiles, ["error:read@2", "late@*2", "delay=3@*3", "notsupported:flush@1"])
  func faultsOfADiskReachTheCallerAndNobodyElse(profile: BackendProfile, fault: String) throws {
    let plan = try FaultPlan(parsing: [fault], seed: 1)
    let pair = try Pair(profile) { $0.faults = plan }
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
