// SPDX-License-Identifier: Apache-2.0
//
// What the frontend says that it did is what the backend says that was done.

import Testing
import XbdBack
import XbdFront

@Suite struct ProfileCounterTests {
  @Test(arguments: Setting.all, GrantMode.allCases)
  func bothEndsCountTheSame(setting: Setting, grants: GrantMode) throws {
    let pair = try Pair(setting, byteCount: 8 << 20)
    var options = Pair.options
    options.grants = grants
    let device = try pair.connect(options)
    let queue = device.queues[0]
    let load = Load(pair)
    load.sizes = [512, 4096, 70_000, 1 << 20]
    for _ in 0..<4 {
      try load.start(8)
      try load.startFlush()
      try load.finish()
    }
    let (front, back) = (queue.counters, pair.served.statistics)
    #expect(front.directRequests + front.indirectRequests == pair.taken)
    #expect(front.responses == pair.taken)
    #expect(front.indirectRequests == back.indirects)
    #expect(front.unsupportedResponses == back.notSupported)
    #expect(back.errors == 0 && front.failures == front.discards - UInt64(Self.discarded(front, back)))
    #expect(front.outerOperationResponses == 0)
    if pair.driving == .inline { #expect(front.events == 0 && back.notificationsSent <= 1) }
    #expect(front.notificationsRepeated == 0 || pair.driving == .threads)
    // Each page that a request named was found mapped, mapped to be kept, mapped for it, or copied.
    let pages = front.segments
    let reached = back.persistentHits + back.persistentMisses + back.transientMaps + back.grantCopies
    let lists = front.indirectRequests
    #expect(reached == pages + lists, "\(setting): \(front), \(back)")
    let configuration = BackendConfiguration.profile(setting.profile)
    if grants == .persistent, configuration.persistentGrants, configuration.dataPath == .map {
      #expect(back.persistentMisses <= front.grantsMade)
      #expect(back.persistentGrants == back.persistentMisses - back.persistentEvictions)
      #expect(back.persistentHits > 0)
    } else {
      #expect(back.persistentHits + back.persistentMisses == 0)
    }
    #expect((front.grantsReused > 0) == (grants == .persistent))
  }

  private static func discarded(_ front: QueueCounters, _ back: BackendStatistics) -> UInt64 {
    front.unsupportedResponses > 0 ? 0 : front.discards
  }

  @Test(arguments: Setting.all)
  func bytesAreCountedAsTheyTravel(setting: Setting) throws {
    let pair = try Pair(setting)
    let device = try pair.connect()
    let sizes = [512, 4096, 45_056, 65_536, 1 << 20]
    for size in sizes {
      #expect(try pair.perform(.write, 0, data: pattern(size, 1)) == .okay)
      #expect(try pair.read(0, size) == pattern(size, 1))
    }
    let total = UInt64(sizes.reduce(0, +))
    var back = pair.served.statistics
    let front = device.queues[0].counters
    #expect(front.bytesRead == total && front.bytesWritten == total)
    #expect(back.sectorsRead * 512 == total && back.sectorsWritten * 512 == total)
    #expect(front.reads == UInt64(sizes.count) && front.writes == UInt64(sizes.count))
    // An unaligned write reads its edges; zeroes are written and nothing is read for them.
    #expect(try pair.perform(.write, 700, data: pattern(1000, 2)) == .okay)
    #expect(device.queues[0].counters.bytesWritten == total + 1000)
    back = pair.served.statistics
    #expect(back.sectorsRead * 512 == total + 1024)
    #expect(back.sectorsWritten * 512 == total + 1536)
    #expect(try pair.perform(.writeZeroes, 0, 65_536) == .okay)
    back = pair.served.statistics
    #expect(back.sectorsRead * 512 == total + 1024)
    #expect(back.sectorsWritten * 512 == total + 1536 + 65_536)
    #expect(back.errors == 0)
  }
}
