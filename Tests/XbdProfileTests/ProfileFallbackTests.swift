// SPDX-License-Identifier: Apache-2.0
//
// Features that fail when they are used although they were offered, and features that are offered late.

import Testing
import XbdBack
import XbdFront

@Suite struct ProfileFallbackTests {
  @Test(arguments: Setting.all)
  func aFlushThatFailsIsDoneTheNextBestWayAndNotAskedForAgain(setting: Setting) throws {
    // The first two that come: what each profile has, one after the other.
    let plan = try FaultPlan(parsing: ["notsupported:flush@1", "notsupported:flush@2"], seed: 1)
    let pair = try Pair(setting) { $0.faults = plan }
    let device = try pair.connect()
    let queue = device.queues[0]
    // linux-3.x's own flush fails before a barrier is tried.
    let ways = (device.features.flushCache ? 1 : 0) + (device.features.barrier ? 1 : 0)
    for _ in 0..<3 { #expect(try pair.perform(.flush) == .notSupported) }
    #expect(queue.parameters.flush == .none)
    #expect(queue.counters.unsupportedResponses == UInt64(ways), "\(setting)")
    #expect(try pair.perform(.write, 0, data: pattern(4096, 1), fua: true) == .notSupported)
    #expect(queue.counters.unsupportedResponses == UInt64(ways))
    // Everything else goes on.
    #expect(try pair.perform(.write, 0, data: pattern(70_000, 2)) == .okay)
    #expect(try pair.read(0, 70_000) == pattern(70_000, 2))
  }

  @Test(arguments: Setting.all)
  func manyFlushesAtOnceSurviveTheFailureOfTheFirst(setting: Setting) throws {
    let plan = try FaultPlan(parsing: ["notsupported:flush@1"], seed: 1)
    let pair = try Pair(setting) { $0.faults = plan }
    let device = try pair.connect()
    let tags = try (0..<6).map {
      try pair.start(.write, $0 << 13, data: pattern(4096, UInt64($0)), fua: false)
    }
    let flushes = try (0..<6).map { _ in try pair.start(.flush) }
    for tag in tags { #expect(try pair.finish(tag).0 == .okay) }
    let hasBoth = device.features.flushCache && device.features.barrier
    for tag in flushes {
      let status = try pair.finish(tag).0
      // One that was asked for beside the first may have been done; none says that it was where it was not.
      #expect(status == .okay || !hasBoth && status == .notSupported, "\(setting): \(status)")
    }
    #expect(device.queues[0].parameters.flush == (hasBoth ? .barrier : .none))
    for index in 0..<6 { #expect(try pair.read(index << 13, 4096) == pattern(4096, UInt64(index))) }
  }

  @Test(arguments: Setting.all)
  func aDiscardThatFailsIsNotAskedForAgain(setting: Setting) throws {
    let plan = try FaultPlan(parsing: ["notsupported:discard@1"], seed: 1)
    let pair = try Pair(setting) { $0.faults = plan }
    let device = try pair.connect()
    let offered = device.features.discard != nil
    #expect(try pair.perform(.write, 0, data: pattern(1 << 20, 1)) == .okay)
    for _ in 0..<3 { #expect(try pair.perform(.discard, 0, 1 << 20) == .notSupported) }
    #expect(device.queues[0].counters.unsupportedResponses == (offered ? 1 : 0))
    #expect(device.queues[0].parameters.discard == nil)
    #expect(try pair.read(0, 1 << 20) == pattern(1 << 20, 1))
    #expect(try pair.perform(.writeZeroes, 0, 1 << 20) == .okay)
    #expect(try pair.read(0, 1 << 20).allSatisfy { $0 == 0 })
  }

  @Test(arguments: Setting.all)
  func indirectRequestsThatFailBecomeDirectOnes(setting: Setting) throws {
    // The first write is an indirect one where there are any; where not, its failure is the caller's to know.
    let plan = try FaultPlan(parsing: ["notsupported:write@1"], seed: 1)
    let pair = try Pair(setting) { $0.faults = plan }
    let device = try pair.connect()
    let hasIndirect = device.transport.maxSegments > 11
    let data = pattern(1 << 20, 6)
    #expect(try pair.perform(.write, 4096, data: data) == (hasIndirect ? .okay : .notSupported))
    if hasIndirect {
      #expect(device.queues[0].parameters.maxSegments == 11)
      #expect(try pair.read(4096, data.count) == data)
    }
    let before = device.queues[0].counters.indirectRequests
    #expect(try pair.perform(.write, 4096, data: data) == .okay)
    #expect(try pair.read(4096, data.count) == data)
    if hasIndirect { #expect(device.queues[0].counters.indirectRequests == before) }
  }

  @Test(arguments: Setting.all, [Publication.split, .early, .late])
  func featuresMayComeAtAnyTime(setting: Setting, publication: Publication) throws {
    // MirageOS never goes through InitWait, and publishes nothing there.
    guard setting.profile != .mirage || publication == .late else { return }
    let pair = try Pair(setting) { $0.publication = publication }
    let device = try pair.connect()
    let configuration = BackendConfiguration.profile(setting.profile)
    #expect(device.features.flushCache == (configuration.flush != .off))
    #expect(device.features.barrier == (configuration.barrier != .off))
    #expect((device.features.discard != nil) == (configuration.discard != .off))
    #expect(device.transport.maxSegments == min(max(configuration.maxIndirectSegments, 11), 256))
    // What nobody could know when the ring was made is not there.
    if publication == .late { #expect(device.transport.ringPageOrder == 0 || setting.profile == .netbsd) }
    let load = Load(pair)
    for _ in 0..<3 {
      try load.start(8)
      try load.finish()
    }
    try load.check()
  }
}
