// SPDX-License-Identifier: Apache-2.0
//
// What a user of a device does to it, against every profile of the reference backend: each byte is where it should
// be, whatever a backend has and has not.

import Blkif
import Testing
import XbdBack
import XbdFront

@Suite struct ProfileDataTests {
  @Test(arguments: Setting.all)
  func aMixOfRequestsKeepsEveryByte(setting: Setting) throws {
    for copy in CopyMode.allCases {
      let pair = try Pair(setting, byteCount: 2 << 20)
      var options = Pair.options
      options.copy = copy
      try pair.connect(options)
      let load = Load(pair)
      load.sizes = [512, 5000, 70_000, 300_000]
      for _ in 0..<60 {
        // A handful in flight at once, none over another.
        try load.start(8)
        try load.finish()
      }
      try load.check()
    }
  }

  @Test(arguments: Setting.all)
  func flushAndFUAAreDoneOrHonestlyNotThere(setting: Setting) throws {
    let pair = try Pair(setting)
    let device = try pair.connect()
    let queue = device.queues[0]
    let hasNone = setting.profile == .mirage || setting.profile == .minimal
    #expect((queue.parameters.flush == .none) == hasNone)
    #expect(try pair.perform(.flush) == (hasNone ? .notSupported : .okay))
    guard !hasNone else { return }
    let before = pair.served.statistics
    #expect(try pair.perform(.write, 512, data: pattern(4096, 1), fua: true) == .okay)
    let after = pair.served.statistics
    #expect(after.flushes + after.barriers > before.flushes + before.barriers)
    #expect(try pair.read(512, 4096) == pattern(4096, 1))
    // A barrier-only backend gets empty barriers, and one whose flush failed does from then on.
    if setting.profile == .tapdisk || setting.profile == .linux3 { #expect(after.barriers > 0) }
    if setting.profile == .qemu || setting.profile == .netbsd { #expect(after.barriers == 0) }
  }

  @Test(arguments: Setting.all)
  func discardAndZeroes(setting: Setting) throws {
    let pair = try Pair(setting)
    let device = try pair.connect()
    let data = pattern(256 << 10, 3)
    #expect(try pair.perform(.write, 0, data: data) == .okay)
    #expect(try pair.perform(.writeZeroes, 1000, 100_000) == .okay)
    #expect(try pair.read(1000, 100_000).allSatisfy { $0 == 0 })
    #expect(try pair.read(101_000, 1000) == Array(data[101_000..<102_000]))
    #expect(try pair.read(0, 1000) == Array(data[..<1000]))
    let mayDiscard = setting.profile == .linux6 || setting.profile == .linux3 || setting.profile == .qemu
    #expect((device.features.discard != nil) == mayDiscard)
    let status = try pair.perform(.discard, 128 << 10, 64 << 10)
    // linux-3.x finds out when it is asked, and is not asked again.
    #expect(status == (setting.profile == .linux6 || setting.profile == .qemu ? .okay : .notSupported))
    if status == .okay { #expect(try pair.read(128 << 10, 64 << 10).allSatisfy { $0 == 0 }) }
    _ = try pair.perform(.discard, 128 << 10, 64 << 10)
    if setting.profile == .linux3 { #expect(pair.served.statistics.discards == 1) }
    #expect(try pair.read(192 << 10, 64 << 10) == Array(data[(192 << 10)...]))
  }

  @Test(arguments: Setting.all)
  func aRequestOfManyMegabytes(setting: Setting) throws {
    let pair = try Pair(setting, byteCount: 16 << 20)
    try pair.connect()
    let data = pattern(12 << 20, 5)
    #expect(try pair.perform(.write, 1 << 20, data: data) == .okay)
    #expect(try pair.read(1 << 20, 12 << 20) == data)
    let statistics = pair.served.statistics
    let limit = BackendConfiguration.profile(setting.profile).maxIndirectSegments
    // Never more than a backend takes, and no indirect request where 11 segments do. MirageOS's are seen although the
    // ring was published without it.
    #expect((statistics.indirects > 0) == (limit > 11), "\(statistics)")
    let device = try #require(pair.device)
    #expect(device.transport.maxSegments == min(max(limit, 11), Pair.options.maxSegments))
    #expect(statistics.errors == 0)
  }

  @Test(arguments: Setting.all)
  func pastTheEndAndReadOnly(setting: Setting) throws {
    let pair = try Pair(setting)
    try pair.connect()
    #expect(try pair.perform(.read, 4 << 20, 512) == .outOfRange)
    #expect(try pair.perform(.write, (4 << 20) - 512, data: pattern(1024, 1)) == .outOfRange)
    #expect(try pair.perform(.write, (4 << 20) - 512, data: pattern(512, 1)) == .okay)
    pair.close()

    let readOnly = try Pair(setting) { $0.readOnly = true }
    let device = try readOnly.connect()
    let status = try readOnly.perform(.write, 0, data: pattern(512, 1))
    // A backend without an info node says so only when it is asked.
    #expect(status == (setting.profile == .minimal ? .ioError : .readOnly))
    #expect(device.features.info.contains(.readOnly) == (setting.profile != .minimal))
    #expect(try readOnly.read(0, 4096).allSatisfy { $0 == 0 })
  }

  @Test(arguments: Setting.all)
  func severalQueuesWhereTheBackendHasThem(setting: Setting) throws {
    let pair = try Pair(setting)
    var options = Pair.options
    options.queueCount = 3
    options.ringPageOrder = 1
    let device = try pair.connect(options)
    #expect(device.queues.count == (setting.profile == .linux6 ? 3 : 1))
    for index in device.queues.indices {
      #expect(
        try pair.perform(.write, index << 20, data: pattern(70_000, UInt64(index)), queue: index) == .okay)
    }
    for index in device.queues.indices {
      let other = (index + 1) % device.queues.count
      #expect(try pair.read(index << 20, 70_000, queue: other) == pattern(70_000, UInt64(index)))
    }
    let configuration = BackendConfiguration.profile(setting.profile)
    #expect(device.transport.ringPageOrder == min(1, configuration.maxRingPageOrder))
  }

  @Test(arguments: Setting.all)
  func grantsForEachOperationAndOtherLayouts(setting: Setting) throws {
    for abi in ABI.allCases where BackendConfiguration.profile(setting.profile).abis.contains(abi) {
      let pair = try Pair(setting)
      var options = Pair.options
      options.grants = .perRequest
      options.abi = abi
      try pair.connect(options)
      #expect(try pair.perform(.write, 100, data: pattern(200_000, 9)) == .okay)
      #expect(try pair.read(100, 200_000) == pattern(200_000, 9))
    }
  }
}
