// SPDX-License-Identifier: Apache-2.0
//
// What a user of a device does to it, against every profile of the reference backend: each byte is where it should
// be, whatever a backend has and has not.

import TestSupport
import Blkif
import Testing
import XbdBack
import XbdFront

@Suite struct ProfileDataTests {
  static let profiles = BackendProfile.allCases

  @Test(arguments: profiles, Driving.allCases)
  func aMixOfRequestsKeepsEveryByte(profile: BackendProfile, driving: Driving) throws {
    for copy in CopyMode.allCases {
      let pair = try Pair(profile, driving, byteCount: 2 << 20)
      var options = Pair.options
      options.copy = copy
      let device = try pair.connect(options)
      var random = SeededGenerator(seed: 7)
      var model = [UInt8](repeating: 0, count: 2 << 20)
      for round in 0..<60 as Range<UInt64> {
        // A handful in flight at once, none over another.
        var running: [(tag: UInt64, command: BlockRequest.Command, range: Range<Int>)] = []
        for _ in 0..<8 {
          let count = 1 + random.below([512, 5000, 70_000, 300_000][random.below(4)])
          let offset = random.below(model.count - count)
          let isAligned = random.below(2) == 0
          let range = isAligned ? offset / 512 * 512..<(offset + count) / 512 * 512 : offset..<offset + count
          if range.isEmpty || running.contains(where: { $0.range.overlaps(range) }) { continue }
          let commands: [BlockRequest.Command] = [.read, .read, .write, .write, .writeZeroes, .discard]
          let command = commands[random.below(commands.count)]
          if command == .discard, device.features.discard == nil { continue }
          let data = command == .write ? pattern(range.count, round) : []
          let canFUA = device.features.flushCache || device.features.barrier
          running.append(
            (
              try pair.start(
                command, range.lowerBound, range.count, data: data,
                fua: canFUA && command == .write && random.below(4) == 0), command, range
            ))
          if command == .write { model.replaceSubrange(range, with: data) }
          if command == .writeZeroes {
            model.replaceSubrange(range, with: repeatElement(0, count: range.count))
          }
        }
        for (tag, command, range) in running {
          let (status, bytes) = try pair.finish(tag, reading: command == .read ? range.count : 0)
          switch command {
          case .read: #expect(status == .okay && bytes == Array(model[range]), "\(range)")
          case .discard:
            // What it leaves is zero or what was there; the model follows.
            #expect(status == .okay || status == .notSupported)
            model.replaceSubrange(range, with: try pair.read(range.lowerBound, range.count))
          default: #expect(status == .okay, "\(command) \(range)")
          }
        }
      }
      #expect(try pair.read(0, model.count) == model)
    }
  }

  @Test(arguments: profiles)
  func flushAndFUAAreDoneOrHonestlyNotThere(profile: BackendProfile) throws {
    let pair = try Pair(profile)
    let device = try pair.connect()
    let queue = device.queues[0]
    let hasNone = profile == .mirage || profile == .minimal
    #expect((queue.parameters.flush == .none) == hasNone)
    #expect(try pair.perform(.flush) == (hasNone ? .notSupported : .okay))
    guard !hasNone else { return }
    let before = pair.served.statistics
    #expect(try pair.perform(.write, 512, data: pattern(4096, 1), fua: true) == .okay)
    let after = pair.served.statistics
    #expect(after.flushes + after.barriers > before.flushes + before.barriers)
    #expect(try pair.read(512, 4096) == pattern(4096, 1))
    // A barrier-only backend gets empty barriers, and one whose flush failed does from then on.
    if profile == .tapdisk || profile == .linux3 { #expect(after.barriers > 0) }
    if profile == .qemu || profile == .netbsd { #expect(after.barriers == 0) }
  }

  @Test(arguments: profiles)
  func discardAndZeroes(profile: BackendProfile) throws {
    let pair = try Pair(profile)
    let device = try pair.connect()
    let data = pattern(256 << 10, 3)
    #expect(try pair.perform(.write, 0, data: data) == .okay)
    #expect(try pair.perform(.writeZeroes, 1000, 100_000) == .okay)
    #expect(try pair.read(1000, 100_000).allSatisfy { $0 == 0 })
    #expect(try pair.read(101_000, 1000) == Array(data[101_000..<102_000]))
    #expect(try pair.read(0, 1000) == Array(data[..<1000]))
    let mayDiscard = profile == .linux6 || profile == .linux3 || profile == .qemu
    #expect((device.features.discard != nil) == mayDiscard)
    let status = try pair.perform(.discard, 128 << 10, 64 << 10)
    // linux-3.x finds out when it is asked, and is not asked again.
    #expect(status == (profile == .linux6 || profile == .qemu ? .okay : .notSupported))
    if status == .okay { #expect(try pair.read(128 << 10, 64 << 10).allSatisfy { $0 == 0 }) }
    _ = try pair.perform(.discard, 128 << 10, 64 << 10)
    if profile == .linux3 { #expect(pair.served.statistics.discards == 1) }
    #expect(try pair.read(192 << 10, 64 << 10) == Array(data[(192 << 10)...]))
  }

  @Test(arguments: profiles, Driving.allCases)
  func aRequestOfManyMegabytes(profile: BackendProfile, driving: Driving) throws {
    let pair = try Pair(profile, driving, byteCount: 16 << 20)
    try pair.connect()
    let data = pattern(12 << 20, 5)
    #expect(try pair.perform(.write, 1 << 20, data: data) == .okay)
    #expect(try pair.read(1 << 20, 12 << 20) == data)
    let statistics = pair.served.statistics
    let limit = BackendConfiguration.profile(profile).maxIndirectSegments
    // Never more than a backend takes, and no indirect request where 11 segments do. MirageOS's are seen although the
    // ring was published without it.
    #expect((statistics.indirects > 0) == (limit > 11), "\(statistics)")
    let device = try #require(pair.device)
    #expect(device.transport.maxSegments == min(max(limit, 11), Pair.options.maxSegments))
    #expect(statistics.errors == 0)
  }

  @Test(arguments: profiles)
  func pastTheEndAndReadOnly(profile: BackendProfile) throws {
    let pair = try Pair(profile)
    try pair.connect()
    #expect(try pair.perform(.read, 4 << 20, 512) == .outOfRange)
    #expect(try pair.perform(.write, (4 << 20) - 512, data: pattern(1024, 1)) == .outOfRange)
    #expect(try pair.perform(.write, (4 << 20) - 512, data: pattern(512, 1)) == .okay)
    pair.close()

    let readOnly = try Pair(profile) { $0.readOnly = true }
    let device = try readOnly.connect()
    let status = try readOnly.perform(.write, 0, data: pattern(512, 1))
    // A backend without an info node says so only when it is asked.
    #expect(status == (profile == .minimal ? .ioError : .readOnly))
    #expect(device.features.info.contains(.readOnly) == (profile != .minimal))
    #expect(try readOnly.read(0, 4096).allSatisfy { $0 == 0 })
  }

  @Test(arguments: profiles, Driving.allCases)
  func severalQueuesWhereTheBackendHasThem(profile: BackendProfile, driving: Driving) throws {
    let pair = try Pair(profile, driving)
    var options = Pair.options
    options.queueCount = 3
    options.ringPageOrder = 1
    let device = try pair.connect(options)
    #expect(device.queues.count == (profile == .linux6 ? 3 : 1))
    for index in device.queues.indices {
      #expect(
        try pair.perform(.write, index << 20, data: pattern(70_000, UInt64(index)), queue: index) == .okay)
    }
    for index in device.queues.indices {
      let other = (index + 1) % device.queues.count
      #expect(try pair.read(index << 20, 70_000, queue: other) == pattern(70_000, UInt64(index)))
    }
    let configuration = BackendConfiguration.profile(profile)
    #expect(device.transport.ringPageOrder == min(1, configuration.maxRingPageOrder))
  }

  @Test(arguments: profiles)
  func grantsForEachOperationAndOtherLayouts(profile: BackendProfile) throws {
    for abi in ABI.allCases where BackendConfiguration.profile(profile).abis.contains(abi) {
      let pair = try Pair(profile)
      var options = Pair.options
      options.grants = .perRequest
      options.abi = abi
      try pair.connect(options)
      #expect(try pair.perform(.write, 100, data: pattern(200_000, 9)) == .okay)
      #expect(try pair.read(100, 200_000) == pattern(200_000, 9))
    }
  }
}
