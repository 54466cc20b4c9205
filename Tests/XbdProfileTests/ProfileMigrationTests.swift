// SPDX-License-Identifier: Apache-2.0
//
// The domain migrates under load: nothing of what it shared and bound is good any more, the devices' nodes are made
// anew, and at the other end is the same backend or another.

import Testing
import XbdBack
import XbdFront

@Suite struct ProfileMigrationTests {
  static func options(_ profile: BackendProfile, reconnects: Bool) -> FrontendOptions {
    var options = Pair.options
    options.reconnects = reconnects
    options.reconnectPause = .milliseconds(20)
    // Nothing may be shared anew while the backend of before still has requests, which it has while the gate is shut:
    // on Xen it would be on another machine.
    options.initialisingGrace = profile == .mirage ? .milliseconds(300) : .seconds(10)
    return options
  }

  @Test(arguments: Setting.all, [true, false])
  func whatIsInFlightWhenTheDomainMigratesIsAskedAgainOnce(setting: Setting, reconnects: Bool) throws {
    // With or without `--reconnect`: a migration is nobody's death.
    let pair = try Pair(setting)
    let device = try pair.connect(Self.options(setting.profile, reconnects: reconnects))
    let load = Load(pair)
    for round in 1...3 as ClosedRange<UInt64> {
      try load.startHeld(20, durably: false, withFlush: true)
      pair.settle()
      try pair.migrate()
      try load.start(6)
      pair.disk.open()
      try load.finish()
      #expect(device.queues[0].counters.reconnections == round, "\(setting)")
      try load.check()
    }
    #expect(device.queues[0].counters.resubmissions > 0)
    try pair.wait("the device is connected") { device.state == .connected }
  }

  @Test(arguments: Setting.all)
  func anotherBackendMayBeThereAfterwards(setting: Setting) throws {
    let own = BackendConfiguration.profile(setting.profile)
    let pair = try Pair(setting)
    let device = try pair.connect(Self.options(setting.profile, reconnects: false))
    let load = Load(pair)
    load.mayLackFlush = true
    for next in [ProfileReconnectTests.poorer(own), BackendConfiguration(), own] {
      try load.startHeld(20)
      // The backend of before stays where it was, and the domain is not.
      pair.killBackend()
      try pair.migrate()
      try pair.startBackend(next)
      try load.start(6)
      try load.finish()
      try load.check()
    }
    #expect(device.queues[0].counters.reconnections == 3)
    try pair.wait("the device is connected") { device.state == .connected }
  }
}
