// SPDX-License-Identifier: Apache-2.0
//
// Disks with sectors of 4,096 bytes, as those profiles have them that can; callers ask for any range of bytes.

import TestSupport
import Testing
import XbdBack
import XbdFront

@Suite struct ProfileSectorTests {
  /// QEMU, NetBSD and the least that there is have sectors of 512 bytes only.
  static let able = Setting.all.filter { !BackendConfiguration.profile($0.profile).only512 }
  static let unable = BackendProfile.allCases.filter { BackendConfiguration.profile($0).only512 }

  static func options(_ profile: BackendProfile) -> FrontendOptions {
    var options = Pair.options
    if BackendConfiguration.profile(profile).countsInSectorSize { options.sectorsUnit = .sectorSize }
    return options
  }

  @Test(arguments: able, CopyMode.allCases)
  func anyRangeOfBytesOfLargeSectors(setting: Setting, copy: CopyMode) throws {
    let pair = try Pair(setting) { $0.sectorSize = 4096 }
    var options = Self.options(setting.profile)
    options.copy = copy
    let device = try pair.connect(options)
    #expect(device.features.sectorSize == 4096)
    #expect(device.features.sectorCount == 8192)
    // What is aligned to 512 bytes is as unaligned here as anything else.
    let load = Load(pair, seed: 11)
    for _ in 0..<8 {
      try load.start(8)
      try load.finish()
    }
    try load.check()
    #expect(device.queues[0].counters.unalignedOperations > 20)
    // The end of the disk is where it is.
    #expect(try pair.perform(.write, (4 << 20) - 1, data: [7]) == .okay)
    #expect(try pair.read((4 << 20) - 2, 2).last == 7)
    #expect(try pair.perform(.write, (4 << 20) - 1, data: [7, 7]) == .outOfRange)
    #expect(pair.served.statistics.errors == 0)
  }

  @Test(arguments: unable)
  func aBackendOfSmallSectorsRefusesALargeOne(profile: BackendProfile) {
    #expect(throws: (any Error).self) { try Pair(profile) { $0.sectorSize = 4096 } }
  }

  @Test(arguments: able)
  func unalignedWritesInFlightGoFromLargeSectorsToSmallOnes(setting: Setting) throws {
    let configuration = BackendConfiguration.profile(setting.profile)
    // What counts in its own sectors cannot be followed by one that does not.
    guard !configuration.countsInSectorSize else { return }
    let pair = try Pair(setting) { $0.sectorSize = 4096 }
    let device = try pair.connect(ProfileReconnectTests.options)
    let load = Load(pair, seed: 13)
    for next in [configuration, configuration] {
      try load.startHeld(12, atLeast: 1)
      pair.killBackend()
      try pair.mournBackend()
      try pair.replaceBackend(next)
      try load.finish()
      try load.check()
    }
    #expect(device.queues[0].counters.reconnections == 2)
  }
}
