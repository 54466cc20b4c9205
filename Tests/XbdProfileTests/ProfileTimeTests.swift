// SPDX-License-Identifier: Apache-2.0
//
// Backends that are slow, or leave a request unanswered.

import Testing
import XbdBack
import XbdFront

@Suite struct ProfileTimeTests {
  @Test(arguments: Setting.all)
  func aBackendThatIsSilentIsNotifiedAgainAndWaitedFor(setting: Setting) throws {
    let pair = try Pair(setting)
    let queue = try pair.connect().queues[0]
    pair.disk.shut()
    let tags = try (0..<4).map { try pair.start(.write, $0 << 16, data: pattern(8192, UInt64($0))) }
    pair.turn { pair.disk.held >= 4 }
    if setting.driving == .threads {
      pair.turn { queue.counters.notificationsRepeated >= 2 }
      #expect(queue.counters.notificationsRepeated >= 2)
    }
    pair.disk.open()
    for tag in tags { #expect(try pair.finish(tag).0 == .okay) }
    for index in 0..<4 { #expect(try pair.read(index << 16, 8192) == pattern(8192, UInt64(index))) }
    // A backend on this thread is run, not notified.
    if setting.driving == .inline { #expect(queue.counters.notificationsRepeated == 0) }
  }

  @Test(arguments: Setting.all, ["drop@3", "stop@3"])
  func aRequestThatIsNeverAnsweredBreaksTheDevice(setting: Setting, fault: String) throws {
    let plan = try FaultPlan(parsing: [fault], seed: 1)
    let pair = try Pair(setting) { $0.faults = plan }
    var options = Pair.options
    options.requestTimeout = .milliseconds(200)
    options.closeTimeout = .milliseconds(500)
    try pair.connect(options)
    let tags = try (0..<6).map { try pair.start(.read, $0 << 12, 4096) }
    let statuses = try tags.map { try pair.finish($0).0 }
    // Others may have been answered before; what was not is told to have failed.
    #expect(statuses[2] == .ioError)
    #expect(statuses.allSatisfy { $0 == .okay || $0 == .ioError }, "\(statuses)")
    pair.turn { if case .failed? = pair.device?.state { true } else { false } }
    pair.expectFailed(because: "read of 8 sectors")
    #expect(try pair.perform(.read, 0, 512) != .okay)
    pair.close()
    try pair.expectNothingLeft()
  }

  @Test(arguments: Setting.all)
  func aDeviceThatReconnectsOutlivesARequestThatIsNeverAnswered(setting: Setting) throws {
    let plan = try FaultPlan(parsing: ["stop@9"], seed: 1)
    let pair = try Pair(setting) { $0.faults = plan }
    var options = ProfileReconnectTests.options
    options.requestTimeout = .seconds(2)
    let device = try pair.connect(options)
    #expect(try pair.perform(.write, 0, data: pattern(16384, 5)) == .okay)
    let tags = try (0..<12).map { try pair.start(.read, $0 << 12, 4096) }
    let statuses = try tags.map { try pair.finish($0).0 }
    #expect(
      statuses.contains(.ioError) && statuses.allSatisfy { $0 == .okay || $0 == .ioError }, "\(statuses)")
    if !BackendConfiguration.profile(setting.profile).reconnects {
      // It is gone with its frontend's first Closed.
      pair.turn { pair.served.isRemoved }
      pair.backend.stop()
      try pair.replaceBackend(.profile(setting.profile))
    }
    let works = pair.turn { (try? pair.read(0, 16384)) == pattern(16384, 5) }
    #expect(works, "\(pair.standing)")
    #expect(device.queues[0].counters.reconnections >= 1)
  }
}
