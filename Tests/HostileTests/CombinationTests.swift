// SPDX-License-Identifier: Apache-2.0
//
// Two faults at once, drawn at random. What a backend does wrong may be serious or not; what must hold is the same for
// all: each request ends once and in time, a device that is given up says why, what is read is what was asked for,
// nothing private is granted, and the device closes.
//
//   XBD_HOSTILE_SEED=n      repeats the first combination of a run from its printed seed
//   XBD_HOSTILE_ROUNDS=n    combinations, 48 unless set

import TestSupport
import Glibc
import HostileBackend
import Platform
import Testing
import Xen

@testable import XbdFront

@Suite struct CombinationTests {
  /// Everything that a backend can do wrong once it is connected.
  static let faults: [Fault] =
    [
      .neverAnswer(every: 3), .neverAnswer(every: 1), .reverseAnswers(batch: 5),
      .answerLate(milliseconds: 20),
      .answerTwice(sameBatch: true), .answerTwice(sameBatch: false), .answerTheFuture, .operation(1),
      .operation(9),
      .status(0), .status(-1), .status(-2), .status(77), .refuse(operation: 3, status: -2),
      .refuse(operation: 1, status: -1), .failNth(4), .refuseIndirect, .outerOperation, .rubbishPadding,
      .flipResponses, .producer(add: 1), .producer(add: 100), .producer(add: 1 << 31), .producer(add: .max),
      .suppressNotifications, .demandNotifications, .scribbleHeader, .scribbleSlots, .keepMappings,
      .persistentLimit(3), .scribbleFreePages, .writeOutsideSegments, .changeWrites, .changeReadsAfterAnswer,
      .changeIndirectPages, .eventStorm, .noEvents, .closeChannel, .node("sectors", nil),
      .node("sectors", Array("nonsense".utf8)), .node("state", Array("4444".utf8)), .bounce([4, 7, 3, 4]),
      .bounce([5]),
      .bounce([2]), .bounce([6, 4]), .bounce([1, 2, 3, 4, 5, 6]), .watchStorm, .vanish, .denyReading,
      .resizeStorm,
    ] + Fault.WrongID.allCases.map { .wrongID($0) }

  /// Those after which what is read is the backend's own business.
  static func spoilsData(_ fault: Fault) -> Bool {
    switch fault {
    case .status(0), .changeReadsAfterAnswer, .scribbleFreePages, .changeWrites, .wrongID, .operation,
      .answerTwice, .flipResponses, .producer:
      true
    default: false
    }
  }

  private static func number(_ name: String) -> UInt64? {
    getenv(name).flatMap { UInt64(String(cString: $0)) }
  }

  @Test func twoFaultsAtOnceNeverDoMoreThanOne() throws {
    let rounds = Int(Self.number("XBD_HOSTILE_ROUNDS") ?? 48)
    let first = Self.number("XBD_HOSTILE_SEED") ?? UInt64.random(in: 0..<1 << 32)
    print("HostileTests: \(rounds) combinations from XBD_HOSTILE_SEED=\(first)")
    for round in 0..<rounds {
      try Self.combine(seed: first &+ UInt64(round))
    }
  }

  static func combine(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    let one = faults[random.below(faults.count)]
    var two = one
    while two == one { two = faults[random.below(faults.count)] }
    let plan = Plan([one, two], after: 2 + random.below(20))
    let options = Victim.options {
      $0.requestTimeout = .seconds(1)
      $0.closeTimeout = .milliseconds(150)
      $0.copy = CopyMode.allCases[random.below(2)]
      $0.grants = random.below(4) == 0 ? .perRequest : .persistent
      $0.ringPageOrder = random.below(3)
      $0.trusted = random.below(2) == 0
    }
    let what = "seed \(seed): \(plan), \(options.copy) \(options.grants)"
    // Nodes are spoiled once the device is connected; before that, NodeCases has them.
    let victim = try Victim(options: options)
    victim.backend.follow(plan)
    var expected: [UInt64: [UInt8]] = [:]
    var tags: [UInt64] = []
    for index in 0..<30 {
      // Each request has a place of its own, so that what is there does not depend on the order.
      let place = index * 131_072
      let tag: UInt64?
      switch random.below(8) {
      case 0, 1:
        let count = [512, 4096, 20480, 131_072][random.below(4)]
        tag = victim.submit(.read, place, count)
        if let tag { expected[tag] = victim.backend.disk.contents(place, count) }
      case 2: tag = victim.submit(.write, place, [512, 4096, 65536][random.below(3)])
      case 3: tag = victim.submit(.write, place + 100, 3000)
      case 4: tag = victim.submit(.read, place + 11, 5000)
      case 5: tag = victim.submit(.flush)
      case 6: tag = victim.submit(.writeZeroes, place, 9000)
      default: tag = victim.submit(.discard, place, 65536)
      }
      if let tag { tags.append(tag) }
      if random.below(3) == 0 { victim.queue.poll() }
    }
    let began = MonotonicClock.nanoseconds()
    victim.run("an end of everything; \(what)", until: { tags.allSatisfy { victim.ended[$0] != nil } })
    let seconds = Double(MonotonicClock.nanoseconds() - began) / 1e9
    #expect(seconds < patience, "\(what)")
    let spoiled = plan.faults.contains { spoilsData($0) }
    for (tag, bytes) in expected where !spoiled && victim.ended[tag]?.status == .okay {
      #expect(victim.ended[tag]?.data == bytes, "\(what)")
    }
    for tag in tags where victim.ended[tag]?.status != .okay {
      #expect(victim.ended[tag]?.data.isEmpty == true, "\(what)")
    }
    #expect(victim.queue.unfinishedOperations == 0, "\(what)")
    if victim.queue.violation != nil {
      victim.run("a reason; \(what)", until: { victim.failure != nil })
      #expect((victim.failure?.message.utf8.count ?? 0) > 20)
    }
    victim.stop(complains: false)
  }
}
