// SPDX-License-Identifier: Apache-2.0
//
// Backends that die or leave under load, and those that come after them: the same, poorer, richer. Every operation
// ends once, and every byte is where the model has it.

import Testing
import XbdBack
import XbdFront

@Suite struct ProfileReconnectTests {
  static var options: FrontendOptions {
    var options = Pair.options
    options.reconnects = true
    options.reconnectPause = .milliseconds(20)
    options.queueCount = 2
    return options
  }

  /// Neither persistent grants, nor indirect requests, nor a ring of several pages, nor several queues, nor a flush.
  static func poorer(_ configuration: BackendConfiguration) -> BackendConfiguration {
    var poorer = configuration
    poorer.persistentGrants = false
    poorer.maxIndirectSegments = 0
    poorer.maxRingPageOrder = 0
    poorer.maxQueues = 1
    poorer.flush = .off
    poorer.barrier = .off
    poorer.discard = .off
    return poorer
  }

  @Test(arguments: Setting.all)
  func everyByteSurvivesBackendsThatDieUnderLoad(setting: Setting) throws {
    let own = BackendConfiguration.profile(setting.profile)
    let pair = try Pair(setting)
    let device = try pair.connect(Self.options)
    let load = Load(pair)
    try load.start(16)
    try load.finish()
    let maxSegments = device.queues[0].parameters.maxSegments
    // Poorer, richer than most, and what it was at first.
    let successors = [Self.poorer(own), BackendConfiguration(), own]
    for (generation, next) in successors.enumerated() {
      // Begun with a backend that has one, and done by one that has none.
      load.mayLackFlush = generation == 0 || setting.profile == .mirage || setting.profile == .minimal
      try load.startHeld(20, withFlush: true)
      pair.killBackend()
      try pair.mournBackend()
      // What comes in the gap waits.
      try load.start(6)
      let inFlight = load.count
      try pair.replaceBackend(next)
      try load.finish()
      #expect(inFlight > 10)
      try pair.wait("the device is connected") { device.state == .connected }
      let parameters = device.queues[0].parameters
      switch generation {
      case 0: #expect(parameters.maxSegments == 11 && parameters.flush == .none, "\(setting)")
      case 1: #expect(parameters.maxSegments > 100 && parameters.flush == .flushCache, "\(setting)")
      default: #expect(parameters.maxSegments == maxSegments, "\(setting)")
      }
      try load.check()
    }
    let counters = device.queues[0].counters
    #expect(counters.reconnections == 3)
    #expect(counters.resubmissions > 0)
  }

  @Test(arguments: Setting.all)
  func aBackendThatEndsAnswersWhatItHasAndTheNextOneDoesTheRest(setting: Setting) throws {
    let pair = try Pair(setting)
    let device = try pair.connect(Self.options)
    let load = Load(pair)
    for _ in 0..<2 {
      try load.startHeld(20)
      pair.disk.open()
      try load.start(6)
      try pair.endBackend()
      try load.start(6)
      try pair.startBackend(.profile(setting.profile))
      try load.finish()
      try pair.wait("the device is connected") { device.state == .connected }
      try load.check()
    }
    #expect(device.queues[0].counters.reconnections == 2)
  }

  @Test(arguments: Setting.all)
  func withoutReconnectingADeadBackendFailsEverythingOnce(setting: Setting) throws {
    let pair = try Pair(setting)
    try pair.connect()
    pair.disk.shut()
    let tags = try (0..<8).map { try pair.start($0 % 2 == 0 ? .read : .writeZeroes, $0 << 16, 8192) }
    pair.turn { pair.disk.held >= 2 }
    // Told while the disk still has the requests: a dead program answers nothing, but ours, whose disk is then lost, might
    // before it is stopped.
    try pair.mournBackend()
    let statuses = try tags.map { try pair.finish($0).0 }
    #expect(statuses.allSatisfy { $0 == .shutdown }, "\(statuses)")
    pair.killBackend()
    #expect(try pair.perform(.read, 0, 512) == .shutdown)
    pair.expectFailed(because: "it was killed")
    pair.close()
    try pair.expectNothingLeft()
  }
}
