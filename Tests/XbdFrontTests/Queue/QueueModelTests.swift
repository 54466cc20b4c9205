// SPDX-License-Identifier: Apache-2.0
//
// Everything a queue can do at once, at random, against an array: every byte is compared.

import TestSupport
import Blkif
import Testing

@testable import XbdFront

@Suite struct QueueModelTests {
  static let segments = [1, 11, 12, 32, 256, 4096]
  static let pools = [1, 2, 12, 64, 960]

  @Test(arguments: segments, pools)
  func everyMixOfRequestsKeepsEveryByte(maxSegments: Int, poolPages: Int) throws {
    var seed = UInt64(maxSegments * 1000 + poolPages)
    for copy in CopyMode.allCases {
      for grants in GrantMode.allCases {
        for sectorSize in [512, 4096] {
          for order in [0, 2] {
            seed += 1
            let setup = QueueSetup(
              copy: copy, grants: grants, maxSegments: maxSegments, ringPageOrder: order,
              sectorSize: sectorSize, poolPages: poolPages, isInline: seed % 2 == 0,
              discard: DiscardLimits(granularity: 8192, alignment: 4096, secure: false),
              trusted: seed % 3 != 0, start: seed % 5 == 0 ? UInt32.max - 9 : 0,
              abi: seed % 7 == 0 ? .x86_32 : .native)
            let run = try ModelRun(setup, seed: seed)
            run.go(operations: 40)
            if run.failed { return }
          }
        }
      }
    }
  }

  @Test func manyRequestsAtOnceKeepEveryByte() throws {
    for seed in 0..<6 as Range<UInt64> {
      let setup = QueueSetup(
        copy: seed % 2 == 0 ? .direct : .bounce, maxSegments: 32, poolPages: 300, isInline: seed % 3 == 0,
        start: UInt32.max - 40)
      let run = try ModelRun(setup, seed: seed)
      run.depth = 100
      run.largest = 70_000
      run.go(operations: 1500)
    }
  }
}

/// One random run.
final class ModelRun {
  let harness: QueueHarness
  private var random: SeededGenerator
  private var model: [UInt8]
  private var busy: [OperationID: Expected] = [:]
  private var refusals = 0
  private var quietTurns = 0
  var depth = 12
  var largest = 1 << 20
  var failed = false
  /// How seldom the backend is lost; 0 for never.
  var rarityOfLoss = 0
  /// What a backend that is lost does to the pages that it could write.
  var spoilsPages = false
  private(set) var losses = 0

  struct Expected {
    var command: BlockRequest.Command
    var range: Range<Int>
    var data: [UInt8]
  }

  init(_ setup: QueueSetup, seed: UInt64) throws {
    harness = try QueueHarness(setup)
    random = SeededGenerator(seed: seed)
    model = Array(Pattern.bytes[..<setup.diskBytes])
    _ = harness.backend.disk.update(fromContentsOf: model)
    harness.backend.keepsLog = false
    // A backend that takes its time and answers in any order.
    var decisions = SeededGenerator(seed: seed ^ 0xABCD)
    harness.backend.judge = { _ in decisions.below(4) == 0 ? .hold : .serve }
    harness.onCompletion = { [unowned self] in ended($0) }
  }

  func go(operations: Int) {
    for _ in 0..<operations where !failed {
      if busy.count >= depth { step() }
      start()
      if random.below(3) == 0 { step() }
      if rarityOfLoss > 0, random.below(rarityOfLoss) == 0 { lose() }
    }
    while !busy.isEmpty, !failed { step() }
    let same = sameBytes(harness.diskBytes, model)
    #expect(same, "the disk differs: \(harness.setup)")
    #expect(harness.backend.complaints.isEmpty, "\(harness.setup)")
    #expect(harness.queue.violation == nil)
    #expect(harness.queue.unfinishedOperations == 0)
    let counters = harness.queue.counters
    #expect(counters.poolHighWater <= UInt64(harness.setup.poolPages))
    #expect(counters.grantsMade - counters.grantsEnded == UInt64(harness.sharing.liveCount))
    if harness.setup.grants == .perRequest { #expect(harness.sharing.liveCount == 0, "\(harness.setup)") }
  }

  private func start() {
    let limit = random.below(20) == 0 ? largest : [64, 512, 5000, 20_000, 70_000][random.below(5)]
    var count = 1 + random.below(limit)
    var offset = random.below(model.count - count)
    if random.below(2) == 0 {
      let unit = harness.setup.sectorSize
      offset = offset / unit * unit
      count = max(count / unit, 1) * unit
    }
    guard offset + count <= model.count else { return }
    let range = offset..<offset + count
    let commands: [BlockRequest.Command] = [
      .read, .read, .read, .write, .write, .write, .writeZeroes, .discard, .flush,
    ]
    let command = commands[random.below(commands.count)]
    if command == .discard, harness.setup.discard == nil { return }
    let conflict = busy.values.contains { other in
      other.range.overlaps(range) && !(command == .read && other.command == .read)
    }
    if conflict { return }
    guard
      let operation = harness.begin(
        command, UInt64(offset), UInt64(count), fua: command != .read && random.below(5) == 0)
    else {
      refusals += 1
      return
    }
    var expected = Expected(command: command, range: command == .flush ? 0..<0 : range, data: [])
    if command == .write {
      let start = random.below(Pattern.bytes.count - count)
      expected.data = Array(Pattern.bytes[start..<start + count])
      harness.fill(operation, expected.data)
      if random.below(10) == 0 { return harness.queue.cancel(operation) }
    }
    busy[operation] = expected
    harness.queue.submit(operation)
  }

  /// The backend goes in the middle of everything; some requests come while there is none; another one comes.
  private func lose() {
    losses += 1
    if spoilsPages { harness.sharing.overwrite(0xEE) }
    harness.loseBackend()
    for _ in 0..<random.below(4) { start() }
    harness.settle()
    var next = harness.setup
    next.maxSegments = QueueModelTests.segments[random.below(QueueModelTests.segments.count)]
    next.poolPages = QueueModelTests.pools[random.below(QueueModelTests.pools.count)]
    next.ringPageOrder = random.below(3)
    next.grants = GrantMode.allCases[random.below(2)]
    if random.below(4) == 0 { harness.loseBackend() }
    do { try harness.reconnect(next) } catch {
      failed = true
      Issue.record("\(error)")
    }
  }

  private func step() {
    quietTurns += 1
    if quietTurns > 20_000 {
      failed = true
      Issue.record("\(busy.count) operations make no progress while nobody sleeps: \(harness.setup)")
      return
    }
    if harness.turn() { return }
    if !harness.backend.held.isEmpty {
      var order = Array(harness.backend.held.indices)
      order.shuffle(using: &random)
      return harness.backend.answerHeld(order)
    }
    guard !busy.isEmpty else { return }
    failed = true
    Issue.record("a stall with \(busy.count) operations: \(harness.setup)")
  }

  private func ended(_ completion: Completion) {
    quietTurns = 0
    guard let expected = busy.removeValue(forKey: completion.operation) else {
      failed = true
      Issue.record("an operation ended twice")
      return
    }
    #expect(completion.status == .okay)
    switch expected.command {
    case .read:
      if !sameBytes(harness.contents(completion.operation), Array(model[expected.range])) {
        failed = true
        Issue.record("a read of \(expected.range) differs: \(harness.setup)")
      }
    case .write: model.replaceSubrange(expected.range, with: expected.data)
    case .writeZeroes: fill(expected.range, 0)
    case .discard: discard(expected.range)
    case .flush: break
    }
    harness.queue.release(completion.operation)
  }

  /// Whole extents only; the last one of the disk may be short.
  private func discard(_ range: Range<Int>) {
    guard let limits = harness.setup.discard else { return }
    var extent = Int(limits.alignment)
    while extent < model.count {
      let end = min(extent + Int(limits.granularity), model.count)
      if range.lowerBound <= extent, end <= range.upperBound {
        fill(extent..<end, 0xDD)
      }
      extent = end
    }
  }

  private func fill(_ range: Range<Int>, _ byte: UInt8) {
    model.replaceSubrange(range, with: repeatElement(byte, count: range.count))
  }
}
