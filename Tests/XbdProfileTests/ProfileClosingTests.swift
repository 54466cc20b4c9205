// SPDX-License-Identifier: Apache-2.0
//
// The end of a device under load, asked for by its user, by the toolstack or by nobody: what is in flight ends once
// and honestly, what comes later is refused, and nothing is left behind.

import Testing
import XbdBack
import XbdFront
import XenLoopback

@Suite struct ProfileClosingTests {
  /// A device with requests in flight, and their tags.
  ///
  /// - Parameter isStuck: they are never answered; otherwise they wait for the gate.
  private static func busy(
    _ setting: Setting, isStuck: Bool = false, _ change: (inout FrontendOptions) -> Void = { _ in }
  ) throws -> (Pair, [UInt64]) {
    let plan = try FaultPlan(parsing: ["stop:read@1+"], seed: 1)
    let pair = try Pair(setting) { if isStuck { $0.faults = plan } }
    var options = Pair.options
    options.queueCount = 2
    change(&options)
    let device = try pair.connect(options)
    #expect(try pair.perform(.write, 0, data: pattern(1 << 20, 1)) == .okay)
    if !isStuck { pair.disk.shut() }
    // More than a ring holds; reads of what is there, and writes beside it.
    let tags = try (0..<80).map { index in
      index % 2 == 0
        ? try pair.start(.read, index << 12, 4096, queue: index / 2 % device.queues.count)
        : try pair.start(
          .write, (2 << 20) + (index << 12), data: pattern(4096, UInt64(index)),
          queue: index / 2 % device.queues.count)
    }
    pair.pollAll()
    if isStuck { return (pair, tags) }
    pair.turn { pair.disk.held >= 8 }
    #expect(pair.disk.held >= 8, "\(pair.standing)")
    return (pair, tags)
  }

  /// Everything was done.
  private static func expectDone(_ pair: Pair, _ tags: [UInt64]) throws {
    let disk = pattern(1 << 20, 1)
    for (index, tag) in tags.enumerated() {
      let (status, bytes) = try pair.finish(
        tag, reading: index % 2 == 0 ? 4096 : 0)
      #expect(status == .okay, "\(pair.standing)")
      let isRight = index % 2 == 1 || bytes == Array(disk[(index << 12)..<(index << 12) + 4096])
      #expect(isRight)
    }
  }

  /// The disk has what was written.
  private static func expectWritten(_ pair: Pair, _ count: Int) {
    for index in stride(from: 1, to: count, by: 2) {
      let isRight = pair.disk.bytes((2 << 20) + (index << 12), 4096) == pattern(4096, UInt64(index))
      #expect(isRight)
    }
  }

  @Test(arguments: Setting.all)
  func closingUnderLoadFinishesWhatIsInFlightAndRefusesTheRest(setting: Setting) throws {
    let (pair, tags) = try Self.busy(setting)
    pair.device?.close()
    pair.turn { pair.device?.state == .closing }
    pair.pollAll()
    #expect(try pair.perform(.read, 0, 512) == .shutdown)
    #expect(try pair.perform(.flush) == .shutdown)
    #expect(try pair.frontNode("state") == "4")
    pair.disk.open()
    try Self.expectDone(pair, tags)
    pair.close()
    #expect(try pair.frontNode("state") == "6")
    Self.expectWritten(pair, tags.count)
    try pair.expectNothingLeft()
  }

  @Test(arguments: Setting.all, [true, false])
  func aDeviceThatIsTakenAwayUnderLoadAnswersFirst(setting: Setting, reconnects: Bool) throws {
    // With or without `--reconnect`: the toolstack wants it gone, and nobody waits for another.
    let (pair, tags) = try Self.busy(setting) { $0.reconnects = reconnects }
    try pair.detach()
    pair.turn { pair.device?.state == .closing }
    #expect(pair.device?.state == .closing, "\(pair.standing)")
    pair.pollAll()
    #expect(try pair.perform(.read, 0, 512) == .shutdown)
    pair.disk.open()
    try Self.expectDone(pair, tags)
    pair.turn { pair.device?.waitUntilClosed(milliseconds: 0) ?? false }
    #expect(pair.device?.state == .closed, "\(pair.standing)")
    #expect(try pair.perform(.write, 0, data: pattern(512, 1)) == .shutdown)
    try pair.wait("the backend is over") { pair.served.isRemoved }
    Self.expectWritten(pair, tags.count)
    pair.close()
    try pair.expectNothingLeft()
  }

  @Test(arguments: Setting.all)
  func aDeviceWhoseNodesAreRemovedByForceFailsWhatIsInFlightOnce(setting: Setting) throws {
    let (pair, tags) = try Self.busy(setting, isStuck: true)
    try pair.toolstack.forget(pair.nodes)
    let statuses = try tags.map { try pair.finish($0).0 }
    #expect(statuses.allSatisfy { $0 == .shutdown }, "\(statuses)")
    #expect(try pair.perform(.read, 0, 512) == .shutdown)
    pair.turn { pair.device?.waitUntilClosed(milliseconds: 0) ?? false }
    // Nobody makes the nodes again.
    #expect(try pair.frontNode("state") == nil)
    pair.close()
    try pair.expectNothingLeft()
  }

  @Test(arguments: Setting.all)
  func aBackendThatDoesNotAnswerDelaysClosingOnce(setting: Setting) throws {
    let (pair, tags) = try Self.busy(setting, isStuck: true) { $0.closeTimeout = .milliseconds(200) }
    pair.device?.close()
    let statuses = try tags.map { try pair.finish($0).0 }
    #expect(statuses.allSatisfy { $0 == .shutdown }, "\(statuses)")
    pair.turn { pair.device?.waitUntilClosed(milliseconds: 0) ?? false }
    pair.expectFailed(because: "does not answer")
    pair.close()
    try pair.expectNothingLeft()
  }
}
