// SPDX-License-Identifier: Apache-2.0
//
// Disks that become smaller and larger while they are in use.

import Testing
import XbdBack
import XbdFront

@Suite struct ProfileSizeTests {
  static let half = 2 << 20
  static let whole = 4 << 20

  @Test(arguments: Setting.all)
  func growingIsSeenWhereTheBackendTells(setting: Setting) throws {
    let pair = try Pair(setting)
    let device = try pair.connect()
    pair.disk.shut()
    let load = Load(pair)
    try load.start(8)
    try pair.served.resize(to: 8 << 20)
    pair.disk.open()
    if BackendConfiguration.profile(setting.profile).sizeChange != .silent {
      pair.turn { device.queues[0].parameters.sectorCount == 16384 }
      #expect(try pair.perform(.write, 7 << 20, data: pattern(4096, 2)) == .okay)
      #expect(try pair.read(7 << 20, 4096) == pattern(4096, 2))
    } else {
      #expect(try pair.perform(.write, 7 << 20, data: pattern(4096, 2)) == .outOfRange)
    }
    try load.finish()
    try load.check()
  }

  /// Its size may have been published before anybody came.
  @Test(arguments: Setting.all)
  func aDiskThatWasResizedBeforeAnybodyConnectedHasItsNewSize(setting: Setting) throws {
    let pair = try Pair(setting)
    try pair.served.resize(to: 8 << 20)
    let device = try pair.connect()
    #expect(device.features.sectorCount == 16384)
    #expect(try pair.perform(.write, 7 << 20, data: pattern(4096, 2)) == .okay)
    #expect(try pair.read(7 << 20, 4096) == pattern(4096, 2))
  }

  @Test(arguments: Setting.all)
  func whatIsInFlightWhenTheDiskShrinksEndsOnceAndWhatIsLeftStays(setting: Setting) throws {
    let configuration = BackendConfiguration.profile(setting.profile)
    let pair = try Pair(setting)
    let device = try pair.connect()
    #expect(try pair.perform(.write, 0, data: pattern(Self.whole, 1)) == .okay)
    pair.disk.shut()
    let below = try (0..<4).map { try pair.start(.write, $0 << 16, data: pattern(8192, UInt64(10 + $0))) }
    let above = try (0..<4).map { try pair.start(.read, Self.half + ($0 << 16), 8192) }
    pair.settle()
    try pair.served.resize(to: UInt64(Self.half))
    pair.disk.open()
    for tag in below { #expect(try pair.finish(tag).0 == .okay) }
    // The backend had taken these on when the disk was larger: done, or an error.
    for tag in above {
      let status = try pair.finish(tag).0
      #expect(status == .okay || status == .ioError, "\(setting): \(status)")
    }
    for index in 0..<4 { #expect(try pair.read(index << 16, 8192) == pattern(8192, UInt64(10 + index))) }
    if configuration.sizeChange != .silent {
      pair.turn { device.queues[0].parameters.sectorCount == UInt64(Self.half) / 512 }
      #expect(try pair.perform(.read, Self.half, 512) == .outOfRange)
      #expect(try pair.perform(.write, Self.half - 512, data: pattern(1024, 1)) == .outOfRange)
      #expect(pair.served.statistics.errors == 0)
    } else if configuration.malformedRequest == .error, configuration.requestsToLose == 0 {
      // Who was told nothing finds out when it asks. (MirageOS would not answer, NetBSD lose a request by it.)
      #expect(try pair.perform(.read, Self.half, 512) == .ioError)
    }
    let rest = try pair.read(Self.half - 65536, 65536)
    #expect(rest == Array(pattern(Self.whole, 1)[(Self.half - 65536)..<Self.half]))
    // What was cut off is zero when it comes back.
    try pair.served.resize(to: UInt64(Self.whole))
    pair.turn { device.queues[0].parameters.sectorCount == UInt64(Self.whole) / 512 }
    #expect(try pair.read(Self.half, 65536).allSatisfy { $0 == 0 })
  }
}
